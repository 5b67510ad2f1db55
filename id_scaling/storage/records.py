"""Records and tables with a checksum of their own, which shows whether they are as they were written to the last bit.

A record is a JSON object, a table a parquet file with facts in its metadata. Each holds a seal: the SHA-256 of its own
bytes, computed with zeros in place of the seal's digits. The seal is verified before anything is decoded.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from id_scaling.errors import StoreError, UnsealedError, made_anew
from id_scaling.runtime.atomic_files import canonical_json, digest, sha256, writing

if TYPE_CHECKING:
    import polars as pl

# The key of the seal in a record and in the metadata of a table, and the key of a table's facts.
SEAL, FACTS = "seal", "id_scaling"
MARK, N_DIGITS = b"sealed by id_scaling, sha256:", 64
BLANK = MARK.decode() + "0" * N_DIGITS
CHUNK_SIZE = 2**20


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record, whole or not at all."""
    with writing(path) as temporary:
        temporary.write_text(json.dumps({**record, SEAL: BLANK}, indent=1, sort_keys=True) + "\n")
        seal(temporary)


def read_record(path: Path, verify: bool = True) -> dict[str, Any]:
    """Return a record; raises a StoreError if it is not as it was written or, without `verify`, not a JSON object."""
    if verify:
        check_seal(path)
    try:
        record = json.loads(Path(path).read_text())
        record.pop(SEAL, None)
    except (AttributeError, ValueError) as error:
        raise StoreError(f"{path}: cut short, or not a record of this program ({error}); {made_anew(path)}") from error
    return record


def checksums(paths: Iterable[Path], folder: Path) -> dict[str, str]:
    """Return the SHA-256 of files by their paths relative to a folder; records store them for files without a seal."""
    return {str(Path(path).relative_to(folder)): sha256(path) for path in sorted(paths)}


def write_table(path: Path, table: pl.DataFrame, facts: Any, **notes: Any) -> None:
    """Write a table, whole or not at all, with its facts and named notes as JSON in its metadata."""
    with writing(path) as temporary:
        encoded_notes = {name: json.dumps(note, ensure_ascii=False) for name, note in notes.items()}
        content = BytesIO()  # written below: errors of polars hide those of the disk
        table.write_parquet(content, metadata={**encoded_notes, **table_metadata(facts)})
        temporary.write_bytes(content.getbuffer())
        seal(temporary)


def read_table(path: Path, columns: list[str] | None = None, verify: bool = True) -> tuple[pl.DataFrame, Any]:
    """Return a table, or only given columns, and its facts; raises a StoreError if it is not as it was written.

    Without `verify` the seal is not checked: a file that cannot be read is still an error, changed numbers are not.
    """
    facts = table_facts(path, verify)
    return read_unverified(path, columns), facts


def read_unverified(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    """Return a table, or only given columns, without checking that it is as it was written."""
    import polars as pl

    try:
        return pl.read_parquet(path, columns=columns, glob=False)
    except pl.exceptions.PolarsError as error:
        message = str(error).partition("\n")[0]
        raise StoreError(f"{path}: damaged, or of another version ({message}); {made_anew(path)}") from error


def table_facts(path: Path, verify: bool = True) -> Any:
    """Return the facts of a table; with `verify`, raises a StoreError if it is not as it was written."""
    if verify:
        check_seal(path)
        return read_facts(path)
    return _footer(path, FACTS)[0]


def read_note(path: Path, name: str) -> Any:
    """Return a note in the metadata of a verified table; None if it has no note of that name."""
    import polars as pl

    note = pl.read_parquet_metadata(path).get(name)
    return None if note is None else json.loads(note)


def read_facts(path: Path) -> dict[str, Any]:
    """Return the facts of a table from its footer, as `read_footer` does."""
    return read_footer(path)[0]


def read_footer(path: Path) -> tuple[dict[str, Any], str]:
    """Return the facts and the seal of a table from its footer, without verifying its content.

    Raises
    ------
    StoreError
        The file is not a table, or has no facts.
    """
    facts, seal_of_table = _footer(path, FACTS, SEAL)
    return facts, seal_of_table


def _footer(path: Path, *keys: str) -> list[Any]:
    """Return the values of keys in the footer of a table: FACTS as decoded JSON, others as text."""
    import polars as pl

    try:
        notes = pl.read_parquet_metadata(path)
        return [json.loads(notes[key]) if key == FACTS else notes[key] for key in keys]
    except (pl.exceptions.PolarsError, OSError, KeyError, ValueError) as error:
        raise StoreError(f"{path}: damaged, or not written by this program ({error}); {made_anew(path)}") from error


def key_of(facts: Mapping[str, Any]) -> str:
    """Return the key of an output: the hash of its settings and of the outputs from which it was made.

    Two outputs with the same key have the same content, unless library versions change it. An output names its inputs
    by this key, or by a hash of their content. So a key covers everything upstream, but not the machine, the time or
    the location.
    """
    return digest({"settings": facts["settings"], "made_from": facts["made_from"]})


def summary_settings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a summary: its facts without `made_from`."""
    return {key: value for key, value in facts.items() if key != "made_from"}


def table_metadata(facts: Any) -> dict[str, str]:
    """Return the metadata of a table that is not sealed yet."""
    return {FACTS: canonical_json(facts), SEAL: BLANK}


def seal(path: Path) -> None:
    """Write the digits of the seal into a finished file."""
    with _content(path) as content:
        start = content.rfind(BLANK.encode()) + len(MARK)
    assert start >= len(MARK), f"{path} holds no blank seal"
    digits = _digits(path, start)
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(digits)


def check_seal(path: Path) -> None:
    """Raise a StoreError, which says what to do, if a file is missing or not as it was written."""
    if not Path(path).is_file():
        raise StoreError(f"{path}: not there; {made_anew(path)}")
    with _content(path) as content:
        start = content.rfind(MARK) + len(MARK)
        if start < len(MARK):
            raise UnsealedError(
                f"{path}: holds no checksum: cut short, or written by an older version, or not by this program; "
                f"{made_anew(path)}"
            )
        digits = content[start : start + N_DIGITS]
    if digits != _digits(path, start):
        raise StoreError(
            f"{path}: damaged, or changed since it was written: its checksum is of other content; {made_anew(path)}"
        )


@contextmanager
def _content(path: Path) -> Iterator[bytes | mmap.mmap]:
    """Yield the bytes of a file, mapped, so that only the parts that are read are in memory."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            yield b""  # an empty file cannot be mapped
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content


def _digits(path: Path, start: int) -> bytes:
    """Return the digits of the seal of a file whose seal digits are at `start`; their present value does not count."""
    sha256_of_file = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(min(CHUNK_SIZE, start - file.tell())), b""):
            sha256_of_file.update(chunk)
        sha256_of_file.update(b"0" * N_DIGITS)
        file.seek(start + N_DIGITS)
        for chunk in iter(lambda: file.read(CHUNK_SIZE), b""):
            sha256_of_file.update(chunk)
    return sha256_of_file.hexdigest().encode()
