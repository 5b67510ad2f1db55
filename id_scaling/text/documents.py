"""The documents of contexts, and their groups: those whose records have one value in a field that `group_by` names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from id_scaling.errors import ConfigError, StoreError, made_anew
from id_scaling.runtime.atomic_files import canonical_json
from id_scaling.runtime.logging import LOG
from id_scaling.storage.records import check_seal, read_facts, read_footer, read_table

MOST_VALUES, MOST_SHOWN = 1000, 50
ABSENT = object()


def groups_of(path: Path, expected: str, keys: tuple[str, ...]) -> list[pl.DataFrame]:
    """Return for each key of `group_by` which context is in the group of which value.

    Parameters
    ----------
    path : Path
        The contexts.
    expected : str
        The hash of the tokens that they have to have.
    keys : tuple of str
        Fields of the documents' records, dotted inside others.

    Returns
    -------
    list of polars.DataFrame
        `context`, `group` (the key) and `group_value`, which is null where a record lacks the field.

    Raises
    ------
    ConfigError
        No record has a field, or it has more than `MOST_VALUES` values.
    StoreError
        The contexts are others than those that are expected.
    """
    return _groups(path, _seal_of(path, expected), keys) if keys else []


def documents_of(path: Path, expected: str) -> pl.DataFrame:
    """Return the `document` of each `context`, and the `token_start` of it there, sorted by both.

    Parameters
    ----------
    path : Path
        The contexts.
    expected : str
        The hash of the tokens that they have to have.

    Raises
    ------
    StoreError
        The contexts are others than those that are expected.
    """
    return _documents(path, _seal_of(path, expected))


# Many runs share their contexts. A file that was replaced has another seal, so it is read again.
@cache
def _groups(path: Path, _seal: str, keys: tuple[str, ...]) -> list[pl.DataFrame]:
    """Return the groups of contexts that were verified."""
    contexts = read_table(path, ["context", "metadata"])[0]
    records = [json.loads(text or "{}") for text in contexts["metadata"]]
    return [_group(contexts["context"], records, key, path) for key in keys]


@cache
def _documents(path: Path, _seal: str) -> pl.DataFrame:
    """Return the documents of contexts that were verified."""
    return read_table(path, ["context", "document", "token_start"])[0].sort("document", "context")


def _seal_of(path: Path, expected: str) -> str:
    """Return the seal of contexts, once they are known to be those that are expected."""
    if not path.is_file():
        raise StoreError(f"{path}: not there; {made_anew(path)}")
    seal = read_footer(path)[1]
    _check_once(path, expected, seal)
    return seal


def check_contexts(path: Path, expected: str) -> None:
    """Raise a StoreError where contexts have other tokens than those that are expected."""
    check_seal(path)
    if read_facts(path).get("tokens_sha256") != expected:
        raise StoreError(
            f"{path}: not the contexts that were extracted: they were cut again since, and have other tokens; run the "
            "workflow again, which extracts these"
        )


@cache
def _check_once(path: Path, expected: str, _seal: str) -> None:
    """Check contexts, which many runs share, once."""
    check_contexts(path, expected)


def check_groups(path: Path, keys: Sequence[str], settings: Mapping[str, Any] | None = None) -> None:
    """Raise a ConfigError where the documents of contexts lack a field of `group_by`, or it has too many values.

    Contexts that were cut with other settings than those given, or are damaged, are cut again and say nothing.
    """
    if not keys:
        return
    try:
        contexts, facts = read_table(path, ["context", "metadata"])
    except StoreError:
        return
    if settings not in (None, facts["settings"]):
        return
    records = [json.loads(text or "{}") for text in contexts["metadata"]]
    for key in keys:
        _group(contexts["context"], records, key, path)


def absent_field(key: str, names: Iterable[str], where: Path) -> ConfigError:
    """Return the error of a field that no document has."""
    names = sorted(names)
    shown = ", ".join(names[:MOST_SHOWN]) + (", …" if len(names) > MOST_SHOWN else "")
    return ConfigError(
        f"dataset_config.group_by: no document of {where} has {key!r}; beside text and id they have "
        f"{shown or 'nothing'}"
    )


def _group(contexts: pl.Series, records: list[dict[str, Any]], key: str, path: Path) -> pl.DataFrame:
    """Return which context is in the group of which value of one key."""
    found = [value_at(record, key) for record in records]
    if all(value is ABSENT for value in found):
        raise absent_field(key, {name for record in records for name in field_names(record)}, path)
    values = pl.Series("group_value", list(map(_text, found)), pl.String)
    if values.n_unique() > MOST_VALUES:
        raise ConfigError(
            f"dataset_config.group_by: {key!r} has {values.n_unique()} values in {path}, at most {MOST_VALUES} can be "
            "summarized; group by another field"
        )
    typed = {(type(value), text) for value, text in zip(found, values, strict=True) if text is not None}
    if len(typed) > values.drop_nulls().n_unique():
        LOG.warning("%s: values of %r that are equal as text are of several types, and one group here", path, key)
    return pl.DataFrame([contexts]).with_columns(pl.lit(key).alias("group"), values)


def value_at(record: dict[str, Any], key: str) -> Any:
    """Return the value of a record at a key that may be dotted, ABSENT where there is none.

    A field whose own name has a dot in it comes before one inside another.
    """
    if key in record:
        return record[key]
    heads = (key[:place] for place, letter in enumerate(key) if letter == ".")
    inner = ((record.get(head), key[len(head) + 1 :]) for head in heads)
    found = (value_at(section, rest) for section, rest in inner if isinstance(section, dict))
    return next((value for value in found if value is not ABSENT), ABSENT)


def field_names(record: dict[str, Any]) -> Iterator[str]:
    """Yield the dotted keys of a record's fields."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from (f"{name}.{inner}" for inner in field_names(value))
        else:
            yield name


def _text(value: Any) -> str | None:
    """Return a value as text: what is not text as JSON; null, or none, is null."""
    if value is None or value is ABSENT:
        return None
    return value if isinstance(value, str) else canonical_json(value)
