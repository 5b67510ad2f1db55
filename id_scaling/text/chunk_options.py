"""Which documents are taken, and how they are cut.

The configuration makes its keys of these options without the libraries that `text.chunking` reads texts with, which
are slow to load.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from id_scaling.runtime.settings import setting

AddBos = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class Chunking:
    """How documents become contexts.

    Parameters
    ----------
    ctx_len : int
        Tokens of a context. The other fields are keys of the configuration, which say what they mean.
    """

    ctx_len: int
    min_chunks: int = setting(
        1,
        meaning="a document with fewer chunks is left out",
        key="dataset_config.filter_and_chunk_config.min_chunks_from_a_document",
        ge=1,
    )
    max_chunks: int | None = setting(
        None,
        meaning="largest number of chunks taken from a document, from its start; default: all",
        key="dataset_config.filter_and_chunk_config.max_chunks_from_a_document",
        ge=1,
    )
    max_documents: int | None = setting(
        None,
        meaning="largest number of documents read from a shard; default: all",
        key="dataset_config.max_dataset_size",
        ge=1,
    )
    max_contexts: int | None = setting(
        None,
        meaning="largest number of contexts taken from a shard, from its start; default: all",
        key="dataset_config.max_contexts",
        ge=1,
    )
    text_column: str = setting(
        "text", meaning="field of a record that holds the text", key="dataset_config.text_column"
    )
    id_column: str = setting(
        "id",
        meaning="field of a record that identifies the document, if there is one",
        key="dataset_config.id_column",
    )
    max_broken_share: float = setting(
        0.0,
        meaning="share of the records read that may be broken; above it, the run stops",
        key="dataset_config.max_broken_share",
        is_execution=True,
        ge=0,
        le=1,
    )
    add_bos: AddBos = setting(
        "auto",
        meaning="whether each context starts with the tokenizer's beginning-of-sequence token; `auto`: where the "
        "tokenizer itself puts it before a text",
    )
    allow_special_tokens: bool = setting(
        False,
        meaning="whether a string in a text that is spelled like a control token of the tokenizer, such as `<s>`, "
        "becomes that token; otherwise it is ordinary text",
        key="dataset_config.allow_special_tokens",
    )
