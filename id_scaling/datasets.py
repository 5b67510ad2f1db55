"""Contexts: documents of a shard, tokenised and cut into chunks of `ctx_len` tokens.

Chunks of a document follow each other without a gap, from its first token; what is left at its end and is
shorter than a chunk is left out. Where the tokenizer puts a beginning-of-sequence token before a
text, each context starts with one and holds one token less of the document. Shards are read as a stream.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from id_scaling.errors import InputError, nearest
from id_scaling.files import writing
from id_scaling.logs import LOG
from id_scaling.sealed import seal, table_metadata

DOCUMENTS_A_BATCH = 64
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
    ]
)


@dataclass(frozen=True)
class Chunking:
    """How documents become contexts.

    Parameters
    ----------
    ctx_len : int
        Tokens of a context.
    min_chunks, max_chunks : int
        A document with fewer chunks is left out; of a longer one the first `max_chunks` are taken.
    max_documents : int or None
        Most documents read from the shard.
    text_column, id_column : str
        Fields of a record; a record without an id is known by its number in the shard.
    max_broken_share : float
        Share of the records read that may be broken; above it the run stops.
    """

    ctx_len: int
    min_chunks: int
    max_chunks: int | None
    max_documents: int | None
    text_column: str = "text"
    id_column: str = "id"
    max_broken_share: float = 0.0


@dataclass(frozen=True)
class Document:
    """One text of a shard, and where it stands."""

    number: int
    name: str
    text: str


class BrokenRecords:
    """The records of a shard that cannot be read: counted, the first few named."""

    def __init__(self) -> None:
        self.n_broken, self.named = 0, []

    def add(self, where: str, what: str) -> None:
        """Count one broken record."""
        self.n_broken += 1
        if len(self.named) < MAX_BROKEN_NAMED:
            self.named.append(f"{where}: {what}")
            LOG.warning("broken record, %s: %s", where, what)

    def check(self, n_read: int, max_share: float) -> None:
        """Raise an InputError when more than `max_share` of the records read are broken."""
        if self.n_broken > max_share * max(n_read, 1):
            raise InputError(
                f"{self.n_broken} of {n_read} records are broken, allowed is a share of {max_share:g} "
                f"(dataset_config.max_broken_share): {'; '.join(self.named)}"
                + ("; …" if self.n_broken > len(self.named) else "")
            )


def chunk_dataset(
    shard: list[Path], tokenizer_folder: Path, chunking: Chunking, metadata: dict[str, Any], output: Path
) -> None:
    """Write the contexts of a shard as parquet.

    Raises
    ------
    InputError
        No document is long enough, too many records are broken, a column is missing.
    """
    tokenizer = load_tokenizer(tokenizer_folder)
    bos = bos_token(tokenizer)
    lengths: list[int] = []
    broken = BrokenRecords()
    documents = islice(read_documents(shard, chunking, broken), chunking.max_documents)
    n_contexts = 0
    schema = SCHEMA.with_metadata(table_metadata({**metadata, "bos": bos}))
    with _writing_table(output, schema) as writer:
        while batch := list(islice(documents, DOCUMENTS_A_BATCH)):
            ids = tokenizer([one.text for one in batch], add_special_tokens=False, verbose=False)["input_ids"]
            rows = [row for one, tokens in zip(batch, ids, strict=True) for row in cut(one, tokens, bos, chunking)]
            for row in rows:
                row["context"], n_contexts = n_contexts, n_contexts + 1
            lengths += [len(tokens) for tokens in ids]
            writer.write_table(pa.Table.from_pylist(rows, schema))
            LOG.info("read %d documents, cut %d contexts", len(lengths), n_contexts)
        broken.check(len(lengths) + broken.n_broken, chunking.max_broken_share)
        if n_contexts == 0:
            raise InputError(_nothing_long_enough(lengths, chunking, bos))


@contextmanager
def _writing_table(output: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Yield a writer of batches; the table is whole or absent, and sealed."""
    with writing(output) as aside:
        with pq.ParquetWriter(aside, schema) as writer:
            yield writer
        seal(aside)


def cut(document: Document, tokens: list[int], bos: int | None, chunking: Chunking) -> list[dict[str, Any]]:
    """Return the contexts of one tokenised document, without their numbers."""
    start_tokens = [] if bos is None else [bos]
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
            "input_ids": start_tokens + tokens[chunk * size : (chunk + 1) * size],
        }
        for chunk in range(n_chunks)
    ]


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a model folder.

    Raises
    ------
    InputError
        transformers cannot make it without code that comes with it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, ImportError) as error:
        raise InputError(
            f"{folder}: transformers cannot make this tokenizer, and Python code that may come with it is never run "
            f"({str(error).splitlines()[0]}); name a model with another in model_config.tokenizer"
        ) from error


def bos_token(tokenizer: Any) -> int | None:
    """Return the token that the tokenizer puts before a text by its own convention, if any."""
    bos = tokenizer.bos_token_id
    with_special = tokenizer("a")["input_ids"]
    return bos if bos is not None and with_special[:1] == [bos] else None


def read_documents(shard: list[Path], chunking: Chunking, broken: BrokenRecords) -> Iterator[Document]:
    """Yield the documents of a shard in order; broken records are counted and left out."""
    for number, (where, record) in enumerate(_records(shard, chunking)):
        wrong = record if isinstance(record, str) else _wrong_with(record, chunking.text_column)
        if wrong:
            broken.add(where, wrong)
            continue
        name = record.get(chunking.id_column)
        yield Document(number, str(number if name is None else name), record[chunking.text_column])


Record = dict[str, Any] | str


def _records(shard: list[Path], chunking: Chunking) -> Iterator[tuple[str, Record]]:
    """Yield (where, record) for the records of a shard's files; for a broken one, what is wrong with it."""
    for path in shard:
        if path.suffix == ".parquet":
            yield from _parquet_records(path, chunking)
        elif path.suffix == ".txt":
            yield from _text_record(path, chunking)
        else:
            yield from _json_records(path)


def _parquet_records(path: Path, chunking: Chunking) -> Iterator[tuple[str, Record]]:
    """Yield the rows of a parquet file, a batch in memory at a time."""
    try:
        yield from _parquet_rows(pq.ParquetFile(path), path, chunking)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({error}); fetch or write it again") from error


def _parquet_rows(file: pq.ParquetFile, path: Path, chunking: Chunking) -> Iterator[tuple[str, Record]]:
    """Yield the rows of an open parquet file that has the columns asked for."""
    columns = file.schema_arrow.names
    if chunking.text_column not in columns:
        raise InputError(
            f"{path}: found columns {', '.join(columns)}, expected {chunking.text_column!r} "
            f"(dataset_config.text_column); {nearest(chunking.text_column, columns)}"
        )
    wanted = [name for name in (chunking.text_column, chunking.id_column) if name in columns]
    row = 0
    for batch in file.iter_batches(batch_size=DOCUMENTS_A_BATCH, columns=wanted):
        for index in range(len(batch)):
            yield f"{path.name} row {row}", _parquet_record(batch.slice(index, 1))
            row += 1


def _parquet_record(row: pa.RecordBatch) -> Record:
    """Return the record of one row, or what is wrong with it."""
    try:
        return row.to_pylist()[0]
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start}"


def _json_records(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield the records of a JSON-lines file, plain or compressed."""
    with _opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path.name} line {number}", _json_record(line)


def _json_record(line: bytes) -> Record:
    """Return the record of one line, or what is wrong with it."""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start}"
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} at column {error.colno})"
    except (RecursionError, ValueError) as error:
        return f"not JSON that can be read ({error})"
    return record if isinstance(record, dict) else {}


@contextmanager
def _opened(path: Path) -> Iterator[Iterable[bytes]]:
    """Open a plain, gzip or zstandard file for reading by lines."""
    try:
        with _OPENERS.get(path.suffix, _open_plain)(path) as handle:
            yield handle
    except (EOFError, zlib.error, OSError) as error:
        raise InputError(f"{path}: damaged or cut short ({error}); fetch or write it again") from error


def _open_plain(path: Path) -> IO[bytes]:
    return path.open("rb")


def _open_zstandard(path: Path) -> IO[bytes]:
    return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))


_OPENERS = {".gz": gzip.open, ".zst": _open_zstandard}


def _text_record(path: Path, chunking: Chunking) -> Iterator[tuple[str, Record]]:
    """Yield the one document of a text file."""
    try:
        record: Record = {chunking.text_column: path.read_bytes().decode("utf-8"), chunking.id_column: path.stem}
    except UnicodeDecodeError as error:
        record = f"not UTF-8 at byte {error.start}"
    yield path.name, record


def _wrong_with(record: dict[str, Any], column: str) -> str | None:
    """Return what is wrong with a record that has no usable text."""
    if column not in record:
        return f"no {column!r} (dataset_config.text_column); it has {', '.join(map(str, record)) or 'nothing'}"
    if not isinstance(record[column], str):
        return f"{column!r} is {type(record[column]).__name__}, expected text"
    try:
        record[column].encode()
    except UnicodeEncodeError as error:
        return f"{column!r} has half a character (a lone surrogate) at {error.start}"
    return None


def _nothing_long_enough(lengths: list[int], chunking: Chunking, bos: int | None) -> str:
    """Return what to say of a shard without a document long enough."""
    needed = chunking.min_chunks * (chunking.ctx_len - (bos is not None))
    longest = f"the longest of {len(lengths)} has {max(lengths)}" if lengths else "the shard has no document"
    return (
        f"no document is long enough: min_chunks_from_a_document {chunking.min_chunks} of ctx_len "
        f"{chunking.ctx_len} needs {needed} tokens, {longest}; lower either, or name another shard"
    )
