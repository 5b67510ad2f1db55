"""Records and tables: read as they were written, and whatever was changed since is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from id_scaling.errors import StoreError, UnsealedError
from id_scaling.storage.records import (
    BLANK,
    MARK,
    check_seal,
    read_record,
    read_table,
    seal,
    table_metadata,
    write_record,
)
from id_scaling.storage.records import write_table as write

RECORD = {"b": [1, 2.5, None], "a": "é\n"}
TABLE = pl.DataFrame({"name": ["a", None, "é" * 50], "value": [1.5, float("nan"), None], "ids": [[1, 2], [], None]})
FACTS = {"settings": {"k": 20}, "words": f"{BLANK} é"}


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """A record."""
    write_record(tmp_path / "record.json", RECORD)
    return tmp_path / "record.json"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table."""
    write(tmp_path / "table.parquet", TABLE, FACTS)
    return tmp_path / "table.parquet"


def test_record_is_read_as_it_was_written(record: Path) -> None:
    assert read_record(record) == RECORD
    # By a reader that knows nothing of seals.
    assert json.loads(record.read_text()) == {**RECORD, "seal": json.loads(record.read_text())["seal"]}


def test_table_is_read_as_it_was_written(table: Path) -> None:
    found, facts = read_table(table)
    assert found.equals(TABLE, null_equal=True)
    assert facts == FACTS
    # By readers that know nothing of seals.
    assert pl.read_parquet(table).equals(TABLE, null_equal=True)
    assert pq.read_table(table).to_pydict()["name"] == TABLE["name"].to_list()


def test_table_that_is_written_in_batches_is_sealed_too(tmp_path: Path) -> None:
    schema = pa.schema([("value", pa.int64())]).with_metadata(table_metadata(FACTS))
    with pq.ParquetWriter(tmp_path / "table.parquet", schema) as writer:
        for start in (0, 3):
            writer.write_table(pa.table({"value": range(start, start + 3)}, schema=schema))
    seal(tmp_path / "table.parquet")
    found, facts = read_table(tmp_path / "table.parquet")
    assert (found["value"].to_list(), facts) == (list(range(6)), FACTS)


@pytest.mark.parametrize("bit", [0, *(pytest.param(bit, marks=pytest.mark.slow) for bit in range(1, 7)), 7])
@pytest.mark.parametrize("kind", ["record", "table"])
def test_no_flipped_bit_is_missed(kind: str, bit: int, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(kind)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        with pytest.raises(StoreError, match=r"damaged|holds no checksum"):
            check_seal(path)


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "a byte less": lambda whole: whole[:-1],
    "half": lambda whole: whole[: len(whole) // 2],
    "less in front": lambda whole: whole[1:],
    "zeros at the end": lambda whole: whole[:-20] + bytes(20),
    "more": lambda whole: whole + b"\n",
    "twice": lambda whole: whole * 2,
    "an end that is only a mark": lambda whole: whole + MARK,
    "nothing but a mark": lambda whole: MARK,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["record", "table"])
def test_what_is_cut_or_added_is_found(kind: str, change: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(kind)
    path.write_bytes(CHANGES[change](path.read_bytes()))
    with pytest.raises(StoreError, match=r"damaged|holds no checksum"):
        check_seal(path)


def test_error_names_the_file_and_the_command_that_mends_it(tmp_path: Path) -> None:
    path = tmp_path / "it's a record.json"
    with pytest.raises(StoreError, match=r"record\.json: not there; remove it and ask"):
        read_record(path)
    path.write_text('{"value": 1}')
    with pytest.raises(StoreError) as caught:
        read_record(path)
    place = f"""'{tmp_path}/it'"'"'s a record.json'"""
    assert f"ask for it: rm {place} && snakemake … all {place} (…" in str(caught.value)


def test_file_without_a_seal_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    TABLE.write_parquet(tmp_path / "table.parquet")
    with pytest.raises(UnsealedError, match="written by an older version"):
        read_table(tmp_path / "table.parquet")


def test_value_that_is_no_json_leaves_the_older_record(record: Path) -> None:
    with pytest.raises(TypeError):
        write_record(record, {"a": object()})
    assert read_record(record) == RECORD
    assert [path.name for path in record.parent.iterdir()] == ["record.json"]
