"""What contexts hold, as hashes that their table carries: of their tokens, and of what else is known of them.

An extraction reads the tokens only, a summary the documents only. Each names the hash of what it read, so it is stale
when, and only when, that has changed: not where contexts are cut again and come out the same, as after another setting
or another version of a library that makes no difference here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from id_scaling.runtime.atomic_files import canonical_json, digest
from id_scaling.storage.records import key_of

# Columns of contexts beside their number and their tokens.
OF_DOCUMENT = ("document", "document_id", "chunk", "token_start", "token_stop", "metadata")


class RowHash:
    """The SHA-256 of rows in their order, each given as bytes, however a file stores them."""

    def __init__(self) -> None:
        self._taken = hashlib.sha256()

    def add(self, row: bytes) -> None:
        """Add a row; its length counts, so that the same bytes in other rows have another hash."""
        self._taken.update(len(row).to_bytes(8, "little") + row)

    def add_tokens(self, tokens: np.ndarray) -> None:
        """Add the tokens of one context, in the same bytes on every machine."""
        self.add(np.ascontiguousarray(tokens, "<i4").tobytes())

    def add_document(self, context: Mapping[str, Any]) -> None:
        """Add what is known of the document of one context."""
        self.add(canonical_json([context[name] for name in OF_DOCUMENT]).encode())

    def hexdigest(self) -> str:
        """Return the hash of the rows so far, in hexadecimal."""
        return self._taken.hexdigest()


def recipe_of(facts: Mapping[str, Any]) -> str:
    """Return how contexts were cut, as a hash, from the facts of their table: whatever came out.

    The settings and the sources; of a control those of the plain contexts too, so that it is known without these.
    """
    return recipe_of_control(facts["settings"], facts["plain"]) if "plain" in facts else key_of(facts)


def recipe_of_control(settings: Mapping[str, Any], plain: str) -> str:
    """Return the recipe of contexts of a control from its settings and the recipe of the plain ones."""
    return key_of({"settings": settings, "made_from": {"contexts": plain}})


def content_of(facts: Mapping[str, Any]) -> str:
    """Return all that contexts hold, as one hash, from the facts of their table."""
    return digest([facts["tokens_sha256"], facts["documents_sha256"]])
