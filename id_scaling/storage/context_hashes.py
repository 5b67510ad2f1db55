"""Hashes of the content of contexts, stored in their table: one of their tokens, one of their documents.

An extraction reads only the tokens, a summary only the documents. Each stores the hash of what it read, so it is stale
if, and only if, that content has changed. It stays current if regenerated contexts have the same content, for example
after a change of a setting or of a library version that makes no difference to them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from id_scaling.runtime.atomic_files import canonical_json, digest
from id_scaling.storage.records import key_of

# Columns of contexts other than their number and their tokens.
DOCUMENT_COLUMNS = ("document", "document_id", "chunk", "token_start", "token_stop", "metadata")


class RowHash:
    """The SHA-256 of rows of bytes in their order, independent of the file that stores them."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, row: bytes) -> None:
        """Add a row and its length, so that the same bytes in other rows have another hash."""
        self._hash.update(len(row).to_bytes(8, "little") + row)

    def add_tokens(self, tokens: np.ndarray) -> None:
        """Add the tokens of a context, as bytes that are equal on every machine."""
        self.add(np.ascontiguousarray(tokens, "<i4").tobytes())

    def add_document(self, context: Mapping[str, Any]) -> None:
        """Add the document columns of a context."""
        self.add(canonical_json([context[name] for name in DOCUMENT_COLUMNS]).encode())

    def hexdigest(self) -> str:
        """Return the hash of the added rows, in hexadecimal."""
        return self._hash.hexdigest()


def recipe_of(facts: Mapping[str, Any]) -> str:
    """Return the hash of how contexts were made, from the facts of their table: of their settings and their sources.

    For a control it covers the recipe of the plain contexts too, so that it is known without their table.
    """
    return recipe_of_control(facts["settings"], facts["plain"]) if "plain" in facts else key_of(facts)


def recipe_of_control(settings: Mapping[str, Any], plain: str) -> str:
    """Return the recipe of the contexts of a control from its settings and the recipe of the plain contexts."""
    return key_of({"settings": settings, "made_from": {"contexts": plain}})


def content_of(facts: Mapping[str, Any]) -> str:
    """Return the hash of the whole content of contexts, tokens and documents, from the facts of their table."""
    return digest([facts["tokens_sha256"], facts["documents_sha256"]])
