"""Records and tables that tell whether they are, to the last bit, as they were written.

A record is a JSON object, a table a parquet file with facts beside its columns. Each holds a seal: the SHA-256 of its
own bytes, taken with the seal's digits as zeros. Nothing is decoded before it is known to be whole.
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

# The key of the seal in a record and in the metadata of a table, and that of a table's facts.
SEAL, FACTS = "seal", "id_scaling"
MARK, N_DIGITS = b"sealed by id_scaling, sha256:", 64
BLANK = MARK.decode() + "0" * N_DIGITS
PART = 2**20


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record, whole or not at all."""
    with writing(path) as aside:
        aside.write_text(json.dumps({**record, SEAL: BLANK}, indent=1, sort_keys=True) + "\n")
        seal(aside)


def read_record(path: Path, verify: bool = True) -> dict[str, Any]:
    """Return a record; raises a StoreError where it is not as it was written, or without `verify` no JSON object."""
    if verify:
        check_seal(path)
    try:
        record = json.loads(Path(path).read_text())
        record.pop(SEAL, None)
    except (AttributeError, ValueError) as error:
        raise StoreError(f"{path}: cut short, or not a record of this program ({error}); {made_anew(path)}") from error
    return record


def checksums(paths: Iterable[Path], folder: Path) -> dict[str, str]:
    """Return the SHA-256 of files by their paths inside a folder, as a record keeps those of files without a seal."""
    return {str(Path(path).relative_to(folder)): sha256(path) for path in sorted(paths)}


def write_table(path: Path, table: pl.DataFrame, facts: Any, **notes: Any) -> None:
    """Write a table, its facts, and notes by their names in its metadata as JSON, whole or not at all."""
    with writing(path) as aside:
        said = {name: json.dumps(note, ensure_ascii=False) for name, note in notes.items()}
        content = BytesIO()  # polars does not say what the disk says
        table.write_parquet(content, metadata={**said, **table_metadata(facts)})
        aside.write_bytes(content.getbuffer())
        seal(aside)


def read_table(path: Path, columns: list[str] | None = None, verify: bool = True) -> tuple[pl.DataFrame, Any]:
    """Return a table, or some columns of it, and its facts; raises a StoreError where it is not as it was written.

    Without `verify` its seal is not looked at: what cannot be read is an error still, changed numbers are none.
    """
    facts = table_facts(path, verify)
    return read_unverified(path, columns), facts


def read_unverified(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    """Return a table, or some columns of it, whether or not it is as it was written."""
    import polars as pl

    try:
        return pl.read_parquet(path, columns=columns, glob=False)
    except pl.exceptions.PolarsError as error:
        what = str(error).partition("\n")[0]
        raise StoreError(f"{path}: damaged, or of another version ({what}); {made_anew(path)}") from error


def table_facts(path: Path, verify: bool = True) -> Any:
    """Return the facts of a table; raises a StoreError where it is not as it was written."""
    if verify:
        check_seal(path)
        return read_facts(path)
    return _footer(path, FACTS)[0]


def read_note(path: Path, name: str) -> Any:
    """Return a note in the metadata of a table that is known to be as it was written; None where it has none."""
    import polars as pl

    note = pl.read_parquet_metadata(path).get(name)
    return None if note is None else json.loads(note)


def read_facts(path: Path) -> dict[str, Any]:
    """Return the facts of a table from its footer, as `read_footer`."""
    return read_footer(path)[0]


def read_footer(path: Path) -> tuple[dict[str, Any], str]:
    """Return the facts and the seal of a table from its footer: quick, and its content is not verified.

    Raises
    ------
    StoreError
        The file is no table, or has no facts.
    """
    facts, seal_of_table = _footer(path, FACTS, SEAL)
    return facts, seal_of_table


def _footer(path: Path, *keys: str) -> list[Any]:
    """Return what the footer of a table holds at FACTS, and as text at others."""
    import polars as pl

    try:
        notes = pl.read_parquet_metadata(path)
        return [json.loads(notes[key]) if key == FACTS else notes[key] for key in keys]
    except (pl.exceptions.PolarsError, OSError, KeyError, ValueError) as error:
        raise StoreError(f"{path}: damaged, or not written by this program ({error}); {made_anew(path)}") from error


def key_of(facts: Mapping[str, Any]) -> str:
    """Return what an output is, as a hash: the settings it was made with, and what it was made from.

    Two outputs of one key have the same content, as far as library versions do not change it. What is made from an
    output names it by this key, or by a hash of its content, so a key covers everything upstream, and nothing of the
    machine, the time or the place.
    """
    return digest({"settings": facts["settings"], "made_from": facts["made_from"]})


def summary_settings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a summary, whose facts are they and what it was made from."""
    return {key: value for key, value in facts.items() if key != "made_from"}


def table_metadata(facts: Any) -> dict[str, str]:
    """Return the metadata of a table that is yet to be sealed."""
    return {FACTS: canonical_json(facts), SEAL: BLANK}


def seal(path: Path) -> None:
    """Put the digits of its seal into a finished file."""
    with _content(path) as content:
        start = content.rfind(BLANK.encode()) + len(MARK)
    assert start >= len(MARK), f"{path} holds no blank seal"
    digits = _digits(path, start)
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(digits)


def check_seal(path: Path) -> None:
    """Raise a StoreError, which says what to do, where a file is not there or not as it was written."""
    if not Path(path).is_file():
        raise StoreError(f"{path}: not there; {made_anew(path)}")
    with _content(path) as content:
        start = content.rfind(MARK) + len(MARK)
        if start < len(MARK):
            raise UnsealedError(
                f"{path}: holds no checksum: cut short, or written by an older version, or not by this program; "
                f"{made_anew(path)}"
            )
        found = content[start : start + N_DIGITS]
    if found != _digits(path, start):
        raise StoreError(
            f"{path}: damaged, or changed since it was written: its checksum is of other content; {made_anew(path)}"
        )


@contextmanager
def _content(path: Path) -> Iterator[bytes | mmap.mmap]:
    """Yield the bytes of a file, of which no more is in memory than is looked at."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            yield b""  # nothing can be mapped of an empty file
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content


def _digits(path: Path, start: int) -> bytes:
    """Return the digits of the seal of a file that has, or will have, them at `start`."""
    taken = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(min(PART, start - file.tell())), b""):
            taken.update(part)
        taken.update(b"0" * N_DIGITS)
        file.seek(start + N_DIGITS)
        for part in iter(lambda: file.read(PART), b""):
            taken.update(part)
    return taken.hexdigest().encode()
