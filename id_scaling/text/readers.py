"""Records of a shard as a stream: its documents, and the problem of each record that cannot be read.

A record has a text, an identifier and other fields, which are its metadata. The memory does not grow with the size of a
shard or of a row group of parquet; it grows with the size of a record, which is at most `MOST_BYTES`.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import json
import math
import sys
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from id_scaling.errors import InputError, nearest
from id_scaling.runtime.atomic_files import canonical_json
from id_scaling.runtime.logging import LOG

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# The largest zstandard window that the `zstd` program reads, as `zstd --long=31` writes it.
MAX_WINDOW_LOG = 31
# Limits: of a line, a text file or a text in bytes; of a metadata field as JSON in characters.
MOST_BYTES, MAX_FIELD_CHARACTERS = 2**28, 10_000
BUFFER, MAX_BATCH_ROWS = 2**20, 64
MAX_COLUMNS_SHOWN = 50  # in a message


@dataclass(frozen=True)
class Document:
    """One text of a shard, its number and name, and the other fields of its record as canonical JSON."""

    number: int
    name: str
    text: str
    metadata: str | None


@dataclass(frozen=True)
class Broken:
    """A record that cannot be read: its place and its problem."""

    where: str
    what: str


class Shard:
    """The files of a shard.

    Parameters
    ----------
    files : list of Path
        Parquet files, plain or compressed JSON-lines files, and text files; a text file is one document.
    text_column, id_column : str
        Fields of a record; the name of a record without an id is its number in the shard.
    """

    def __init__(self, files: list[Path], text_column: str, id_column: str) -> None:
        self.files, self.text_column, self.id_column = files, text_column, id_column
        self.n_bytes = sum(path.stat().st_size for path in files)
        self._n_bytes_before, self._n_bytes_of_file = 0, 0.0
        self._fields_left_out: set[str] = set()

    @property
    def share(self) -> float:
        """The share of the shard's bytes that have been read."""
        return (self._n_bytes_before + self._n_bytes_of_file) / max(self.n_bytes, 1)

    def records(self) -> Iterator[Document | Broken]:
        """Yield the document of each record, or what is wrong with it, in the order of `rows`."""
        for number, (where, record) in enumerate(self.rows()):
            yield self.document(number, where, record)

    def rows(self) -> Iterator[tuple[str, dict[str, Any] | str]]:
        """Yield the place of each record, in order, and its fields, or what is wrong with it.

        Raises
        ------
        InputError
            A file is damaged, or a parquet file lacks the text column.
        """
        for path in self.files:
            yield from self._reader(path)(path)
            self._n_bytes_before, self._n_bytes_of_file = self._n_bytes_before + path.stat().st_size, 0.0

    def _reader(self, path: Path) -> Callable[[Path], Iterator[tuple[str, dict[str, Any] | str]]]:
        """Return the function that yields the rows of a file, by its suffix."""
        return {".parquet": self._parquet_rows, ".txt": self._text_rows}.get(path.suffix, self._line_rows)

    def _parquet_rows(self, path: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
        """Yield the rows of a parquet file."""
        try:
            # Without a buffer, pyarrow reads the column of a whole row group at once; with one, page by page.
            with pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
                if self.text_column not in file.schema_arrow.names:
                    raise wrong_text_column(path, self.text_column, file.schema_arrow.names)
                rows = (
                    batch.slice(row, 1) for batch in file.iter_batches(_rows_a_batch(file)) for row in range(len(batch))
                )
                bytes_a_row = path.stat().st_size / max(file.metadata.num_rows, 1)
                for number, row in enumerate(rows):
                    self._n_bytes_of_file = bytes_a_row * (number + 1)
                    yield f"{path.name} row {number}", _row(row)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: not a readable parquet file ({error}); fetch or write it again") from error

    def _line_rows(self, path: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
        """Yield the records of a plain or compressed JSON-lines file."""
        with _opened(path) as (file, decoded):
            for number, line in enumerate(_lines(decoded), start=1):
                if number == 1:
                    _check_encoding(path, line or b"")
                self._n_bytes_of_file = file.tell()
                if line is None or line.strip():
                    yield f"{path.name} line {number}", _json_record(line)

    def _text_rows(self, path: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
        """Yield the only record of a text file."""
        record: dict[str, Any] | str = f"longer than {MOST_BYTES} bytes"
        if path.stat().st_size <= MOST_BYTES:
            content = path.read_bytes()
            _check_encoding(path, content)
            try:
                record = {self.text_column: content.decode("utf-8-sig"), self.id_column: path.stem}
            except UnicodeDecodeError as error:
                record = f"not UTF-8 at byte {error.start}"
        yield path.name, record

    def document(self, number: int, where: str, record: dict[str, Any] | str) -> Document | Broken:
        """Return the document of a record, or what is wrong with it."""
        if isinstance(record, str):
            return Broken(where, record)
        if problem := _problem_of(record, self.text_column):
            return Broken(where, problem)
        name, text = record.get(self.id_column), record[self.text_column]
        name = str(number if name is None else name).encode("utf-8", "backslashreplace").decode()
        fields = {key: value for key, value in record.items() if key not in (self.text_column, self.id_column)}
        try:
            return Document(number, name, text, self._metadata(fields))
        except RecursionError:
            return Broken(where, "fields are nested too deep to be kept")

    def _metadata(self, fields: dict[str, Any]) -> str | None:
        """Return fields as canonical JSON without those that are too long; None if no field is left."""
        texts = {key: _json_of(value) for key, value in fields.items()}
        too_long = {key for key, text in texts.items() if len(text) > MAX_FIELD_CHARACTERS}
        for key in sorted(too_long - self._fields_left_out):
            LOG.warning(
                "field %r is left out of the metadata where it is longer than %d characters", key, MAX_FIELD_CHARACTERS
            )
        self._fields_left_out |= too_long
        kept = (f"{canonical_json(key)}:{texts[key]}" for key in sorted(texts.keys() - too_long))
        return "{" + ",".join(kept) + "}" if texts.keys() - too_long else None


def schema_of(path: Path) -> pa.Schema:
    """Return the schema of a parquet file; raises an InputError if it cannot be read."""
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({error}); fetch or write it again") from error


def fields_of(schema: pa.Schema, without: Collection[str] = ()) -> dict[str, Any]:
    """Return a record with the fields of a schema, nested ones too, without values."""
    return {field.name: _inner_fields(field.type) for field in schema if field.name not in without}


def is_no_text(kind: pa.DataType) -> bool:
    """Return whether values of a column type cannot be read as text; dates and times can."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(
        is_kind(kind)
        for is_kind in (
            pa.types.is_integer,
            pa.types.is_floating,
            pa.types.is_decimal,
            pa.types.is_boolean,
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_fixed_size_binary,
            pa.types.is_nested,
            pa.types.is_null,
        )
    )


def wrong_text_column(
    path: Path, column: str, columns: Collection[str], kinds: Collection[str] = (), dataset: str = ""
) -> InputError:
    """Return the error for a text column that no record has, or whose values are of other kinds than text."""
    shown = ", ".join(list(columns)[:MAX_COLUMNS_SHOWN]) + (", …" if len(columns) > MAX_COLUMNS_SHOWN else "")
    expected = f"{column!r} to be text, not {', '.join(kinds)}" if kinds else repr(column)
    key = f"dataset_config.text_column of {dataset}" if dataset else "dataset_config.text_column"
    other_columns = [name for name in columns if name != column]
    return InputError(
        f"{path}: found columns {shown}, expected {expected} ({key}); name the column that holds the text; "
        f"{nearest(column, other_columns) if other_columns else 'there is no other'}"
    )


def _inner_fields(kind: pa.DataType) -> dict[str, Any] | None:
    """Return the fields inside a field of this type; None if there are none."""
    return {inner.name: _inner_fields(inner.type) for inner in kind} if pa.types.is_struct(kind) else None


def _rows_a_batch(file: pq.ParquetFile) -> int:
    """Return how many rows of a parquet file are read at a time: many short rows, or one long row."""
    groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
    longest = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1)
    return max(1, min(MAX_BATCH_ROWS, int(BUFFER / max(longest, 1))))


def _row(batch: pa.RecordBatch) -> dict[str, Any] | str:
    """Return the record of a batch of one row, or what is wrong with it; dates and times become text as in arrow."""
    try:
        columns = (
            column.cast(pa.string()) if pa.types.is_temporal(column.type) else column for column in batch.columns
        )
        return {name: column.to_pylist()[0] for name, column in zip(batch.schema.names, columns, strict=True)}
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start}"
    except (ValueError, OverflowError) as error:
        return f"a value that cannot be read ({error})"


def _lines(handle: IO[bytes]) -> Iterator[bytes | None]:
    """Yield the lines of a file; None for a line that is too long, which is skipped without holding it in memory."""
    while line := handle.readline(MOST_BYTES + 1):
        is_too_long = len(line) > MOST_BYTES
        while is_too_long and line and not line.endswith(b"\n"):
            line = handle.readline(BUFFER)
        yield None if is_too_long else line


def _json_record(line: bytes | None) -> dict[str, Any] | str:
    """Return the record of one line, or what is wrong with it."""
    if line is None:
        return f"longer than {MOST_BYTES} bytes"
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start}"
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} at column {error.colno})"
    except (RecursionError, ValueError) as error:
        return f"not JSON that can be read ({error})"
    return record if isinstance(record, dict) else {}


def _check_encoding(path: Path, start: bytes) -> None:
    """Raise an InputError if a file starts with a byte order mark of UTF-16 or UTF-32."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        raise InputError(
            f"{path}: starts with a byte order mark of UTF-16 or UTF-32, expected UTF-8; convert it: iconv -f UTF-16 "
            "-t UTF-8 (or -f UTF-32)"
        )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Open a plain, gzip or zstandard file; yield the file itself, and its decompressed content."""
    try:
        with path.open("rb") as file, _DECODERS.get(path.suffix, contextlib.nullcontext)(file) as decoded:
            yield file, decoded
    except (EOFError, zlib.error, zstd.ZstdError, OSError) as error:
        if "too much memory" in str(error):
            raise InputError(
                f"{path}: needs a window of more than {2**MAX_WINDOW_LOG} bytes, the most that zstandard reads; "
                f"compress it again: zstd --long={MAX_WINDOW_LOG}"
            ) from error
        raise InputError(f"{path}: damaged or cut short ({error}); fetch or write it again") from error


def _zstandard(file: IO[bytes]) -> IO[bytes]:
    """Open a zstandard file with any window; the memory grows with its text up to the window, 2 GiB at most."""
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG}
    return io.BufferedReader(zstd.ZstdFile(file, options=options), BUFFER)


_DECODERS: dict[str, Callable[[IO[bytes]], Any]] = {".gz": gzip.open, ".zst": _zstandard}


def _problem_of(record: dict[str, Any], column: str) -> str | None:
    """Return what is wrong with the text of a record; None if it is usable."""
    if column not in record:
        return f"no {column!r} (dataset_config.text_column); it has {', '.join(map(str, record)) or 'nothing'}"
    text = record[column]
    if not isinstance(text, str):
        return f"{column!r} is {type(text).__name__}, expected text"
    try:
        n_bytes = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        return f"{column!r} has half a character (a lone surrogate) at {error.start}"
    return f"{column!r} is longer than {MOST_BYTES} bytes" if n_bytes > MOST_BYTES else None


def _json_of(value: Any) -> str:
    """Return a value as canonical JSON; bytes, dates, and numbers that are not finite become text."""
    try:
        return canonical_json(value)
    except (TypeError, ValueError):
        return canonical_json(_json_value(value))


def _json_value(value: Any) -> Any:
    """Return a value of any type as one that JSON can represent."""
    if isinstance(value, dict):
        return {str(key): _json_value(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(inner) for inner in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    is_plain = value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))
    return value if is_plain else str(value)
