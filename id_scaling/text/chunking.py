"""Contexts: documents of a shard, tokenised and cut into chunks of `ctx_len` tokens.

Chunks of a document follow each other without a gap, from its first token; what is left at its end and is shorter
than a chunk is left out. No context has tokens of two documents. With a beginning-of-sequence token, each context
starts with it and holds one token less of the document; `token_start` and `token_stop` count the document's own tokens.

The facts of the table say what it holds (`storage.context_hashes`): `tokens_sha256` and `documents_sha256`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from id_scaling.errors import InputError
from id_scaling.runtime.atomic_files import writing
from id_scaling.runtime.logging import LOG, Progress
from id_scaling.storage.context_hashes import RowHash
from id_scaling.storage.records import seal, table_metadata
from id_scaling.text.chunk_options import Chunking
from id_scaling.text.readers import Broken, Document, Shard
from id_scaling.text.tokenization import MOST_WHOLE, TextTokenizer, bos_token, load_tokenizer, tokenize

# Of records that are tokenised together; of their texts, MOST_WHOLE characters.
MOST_RECORDS = 1024
MAX_BROKEN_NAMED = 5

SCHEMA = pa.schema(
    [
        ("context", pa.int64()),
        ("document", pa.int64()),
        ("document_id", pa.string()),
        ("chunk", pa.int64()),
        ("token_start", pa.int64()),
        ("token_stop", pa.int64()),
        ("input_ids", pa.list_(pa.int32())),
        ("metadata", pa.string()),
    ]
)


class Tally:
    """What was read of a shard so far; of broken records the first few are named."""

    def __init__(self, chunking: Chunking) -> None:
        self.chunking, self.n_documents, self.n_contexts, self.n_broken = chunking, 0, 0, 0
        self.longest = 0
        self.named: list[str] = []
        self._tokens, self._documents = RowHash(), RowHash()

    def add_broken(self, broken: Broken) -> None:
        """Count a broken record."""
        self.n_broken += 1
        if len(self.named) < MAX_BROKEN_NAMED:
            self.named.append(f"{broken.where}: {broken.what}")
            LOG.warning("broken record, %s: %s", broken.where, broken.what)

    def add_context(self, row: dict[str, Any]) -> None:
        """Count a context, and take what it holds into the hashes."""
        self.n_contexts += 1
        self._tokens.add_tokens(row["input_ids"])
        self._documents.add_document(row)

    @property
    def facts(self) -> dict[str, Any]:
        """What the table of contexts says of its content, and of the records that were read for it."""
        return {
            "tokens_sha256": self._tokens.hexdigest(),
            "documents_sha256": self._documents.hexdigest(),
            "n_records": self.n_documents + self.n_broken,
            "n_broken": self.n_broken,
        }

    @property
    def is_done(self) -> bool:
        """Whether all contexts that are asked for were cut."""
        return self.n_contexts == self.chunking.max_contexts

    @property
    def share(self) -> float:
        """The share of what is asked for that was read, as far as its number is."""
        documents, contexts = self.chunking.max_documents or np.inf, self.chunking.max_contexts or np.inf
        return max(self.n_documents / documents, self.n_contexts / contexts)

    @property
    def n_needed(self) -> int | None:
        """How many tokens of a document can be of use; None for all."""
        left = None if self.chunking.max_contexts is None else self.chunking.max_contexts - self.n_contexts
        most = min((bound for bound in (self.chunking.max_chunks, left) if bound is not None), default=None)
        return most and max(most, self.chunking.min_chunks) * self.chunking.ctx_len

    def check_broken(self) -> None:
        """Raise an InputError when a larger share of the records read is broken than may be."""
        n_read, most = self.n_documents + self.n_broken, self.chunking.max_broken_share
        if self.n_broken > most * max(n_read, 1):
            raise InputError(
                f"{self.n_broken} of {n_read} records are broken, allowed is a share of {most:g} "
                f"(dataset_config.max_broken_share): {'; '.join(self.named)}"
                + ("; …" if self.n_broken > len(self.named) else "")
            )

    def check_length(self, bos: int | None) -> None:
        """Raise an InputError when no document was long enough."""
        if self.n_contexts > 0:
            return
        n_chunks, ctx_len = self.chunking.min_chunks, self.chunking.ctx_len
        longest = f"the longest of {self.n_documents} has {self.longest}"
        raise InputError(
            f"no document is long enough: min_chunks_from_a_document {n_chunks} of ctx_len {ctx_len} needs "
            f"{n_chunks * (ctx_len - (bos is not None))} tokens, "
            f"{longest if self.n_documents else 'the shard has no document'}; lower either, or name another shard"
        )


def chunk_dataset(
    files: list[Path], tokenizer_folder: Path, chunking: Chunking, metadata: dict[str, Any], output: Path
) -> None:
    """Write the contexts of a shard as parquet.

    Raises
    ------
    InputError
        No document is long enough, too many records are broken, a column is missing, a token before contexts is asked
        for that the tokenizer does not have.
    """
    tokenizer = load_tokenizer(tokenizer_folder, chunking.allow_special_tokens)
    bos = bos_token(tokenizer, chunking.add_bos)
    shard, tally = Shard(files, chunking.text_column, chunking.id_column), Tally(chunking)
    progress = Progress("cut context")
    with _writing_table(output) as writer:
        for records in _batches(_first(shard.records(), chunking.max_documents)):
            rows = list(_contexts(records, tokenizer, bos, tally))
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
            progress.step(len(rows), max(shard.share, tally.share))
            if chunking.max_broken_share == 0:  # what follows cannot mend it
                tally.check_broken()
            if tally.is_done:
                break
        tally.check_broken()
        tally.check_length(bos)
        facts = {**metadata, "bos": bos, "tokenizer": tokenizer.read_from, **tally.facts}
        writer.add_key_value_metadata(table_metadata(facts))
    LOG.info(
        "read %d documents and %d broken records, cut %d contexts", tally.n_documents, tally.n_broken, tally.n_contexts
    )


@contextmanager
def _writing_table(output: Path) -> Iterator[pq.ParquetWriter]:
    """Yield a writer of batches, to be given the table's metadata; the table is whole or absent, and sealed."""
    with writing(output) as aside:
        with pq.ParquetWriter(aside, SCHEMA) as writer:
            yield writer
        seal(aside)


def _first(records: Iterable[Document | Broken], max_documents: int | None) -> Iterator[Document | Broken]:
    """Yield records to the last document that is asked for."""
    n_documents = 0
    for record in records:
        yield record
        n_documents += isinstance(record, Document)
        if n_documents == max_documents:
            return


def _batches(records: Iterable[Document | Broken]) -> Iterator[list[Document | Broken]]:
    """Yield records to be tokenised together: of some length in all, or one that is longer."""
    batch: list[Document | Broken] = []
    n_characters = 0
    for record in records:
        length = len(record.text) if isinstance(record, Document) else 0
        if batch and (len(batch) == MOST_RECORDS or n_characters + length > MOST_WHOLE):
            yield batch
            batch, n_characters = [], 0
        batch.append(record)
        n_characters += length
    if batch:
        yield batch


def _contexts(
    records: list[Document | Broken], tokenizer: TextTokenizer, bos: int | None, tally: Tally
) -> Iterator[dict[str, Any]]:
    """Yield the contexts of records, to the last one that is asked for."""
    texts = [record.text for record in records if isinstance(record, Document)]
    tokens_of = iter(tokenize(tokenizer, texts, tally.n_needed))
    for record in records:
        if isinstance(record, Broken):
            tally.add_broken(record)
            continue
        tokens = next(tokens_of)
        tally.n_documents, tally.longest = tally.n_documents + 1, max(tally.longest, len(tokens))
        for row in cut(record, tokens, bos, tally.chunking):
            yield {"context": tally.n_contexts, **row}
            tally.add_context(row)
            if tally.is_done:
                return


def cut(document: Document, tokens: np.ndarray, bos: int | None, chunking: Chunking) -> list[dict[str, Any]]:
    """Return the contexts of one tokenised document, without their numbers."""
    start_tokens = np.array([] if bos is None else [bos], np.int32)
    size = chunking.ctx_len - len(start_tokens)
    n_chunks = len(tokens) // size
    if n_chunks < chunking.min_chunks:
        return []
    if chunking.max_chunks is not None:
        n_chunks = min(n_chunks, chunking.max_chunks)
    return [
        {
            "document": document.number,
            "document_id": document.name,
            "chunk": chunk,
            "token_start": chunk * size,
            "token_stop": (chunk + 1) * size,
            "input_ids": np.concatenate([start_tokens, tokens[chunk * size : (chunk + 1) * size]]),
            "metadata": document.metadata,
        }
        for chunk in range(n_chunks)
    ]
