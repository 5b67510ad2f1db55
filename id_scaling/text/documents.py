"""The documents of contexts, and groups of contexts: a group has the same value in a field that `group_by` names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from id_scaling.errors import ConfigError, StoreError, made_anew
from id_scaling.runtime.atomic_files import canonical_json
from id_scaling.runtime.logging import LOG
from id_scaling.storage.records import check_seal, read_facts, read_footer, read_table

if TYPE_CHECKING:
    import polars as pl

MOST_VALUES, MAX_FIELDS_SHOWN = 1000, 50
ABSENT = object()


def groups_of(path: Path, expected: str, keys: tuple[str, ...]) -> list[pl.DataFrame]:
    """Return the groups of contexts for each key of `group_by`.

    Parameters
    ----------
    path : Path
        The contexts.
    expected : str
        The expected hash of their tokens.
    keys : tuple of str
        Fields of the documents' records, dotted for fields inside other fields.

    Returns
    -------
    list of polars.DataFrame
        `context`, `group` (the key) and `group_value`, which is null if the record lacks the field.

    Raises
    ------
    ConfigError
        No record has the field, or it has more than `MOST_VALUES` values.
    StoreError
        The contexts have other tokens than expected.
    """
    return _groups(path, _seal_of(path, expected), keys) if keys else []


def documents_of(path: Path, expected: str) -> pl.DataFrame:
    """Return the `document` of each `context` and its `token_start` there, sorted by document and context.

    Parameters
    ----------
    path : Path
        The contexts.
    expected : str
        The expected hash of their tokens.

    Raises
    ------
    StoreError
        The contexts have other tokens than expected.
    """
    return _documents(path, _seal_of(path, expected))


# Cached, since many runs share their contexts. A replaced file has another seal, so it is read again.
@cache
def _groups(path: Path, _seal: str, keys: tuple[str, ...]) -> list[pl.DataFrame]:
    """Return the groups of verified contexts."""
    contexts = read_table(path, ["context", "metadata"])[0]
    records = [json.loads(text or "{}") for text in contexts["metadata"]]
    return [_group(contexts["context"], records, key, path) for key in keys]


@cache
def _documents(path: Path, _seal: str) -> pl.DataFrame:
    """Return the documents of verified contexts."""
    return read_table(path, ["context", "document", "token_start"])[0].sort("document", "context")


def _seal_of(path: Path, expected: str) -> str:
    """Return the seal of contexts after checking that they are the expected ones."""
    if not path.is_file():
        raise StoreError(f"{path}: not there; {made_anew(path)}")
    seal = read_footer(path)[1]
    _check_once(path, expected, seal)
    return seal


def check_contexts(path: Path, expected: str) -> None:
    """Raise a StoreError if contexts have other tokens than expected."""
    check_seal(path)
    if read_facts(path).get("tokens_sha256") != expected:
        raise StoreError(
            f"{path}: not the contexts that were extracted: they were cut again since then and have other tokens; run "
            "the workflow again, which extracts them"
        )


@cache
def _check_once(path: Path, expected: str, _seal: str) -> None:
    """Check contexts once for all runs that share them."""
    check_contexts(path, expected)


def check_groups(path: Path, keys: Sequence[str], settings: Mapping[str, Any] | None = None) -> None:
    """Raise a ConfigError if the documents of contexts lack a field of `group_by`, or if it has too many values.

    Contexts that are damaged, or have other settings than those given, are not checked: the workflow regenerates them.
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
    """Return the error for a field that no document has."""
    names = sorted(names)
    shown = ", ".join(names[:MAX_FIELDS_SHOWN]) + (", …" if len(names) > MAX_FIELDS_SHOWN else "")
    return ConfigError(
        f"dataset_config.group_by: no document of {where} has {key!r}; besides text and id they have "
        f"{shown or 'nothing'}"
    )


def _group(contexts: pl.Series, records: list[dict[str, Any]], key: str, path: Path) -> pl.DataFrame:
    """Return the `group_value` of each context for one key."""
    import polars as pl

    field_values = [value_at(record, key) for record in records]
    if all(value is ABSENT for value in field_values):
        raise absent_field(key, {name for record in records for name in field_names(record)}, path)
    values = pl.Series("group_value", list(map(_text, field_values)), pl.String)
    if values.n_unique() > MOST_VALUES:
        raise ConfigError(
            f"dataset_config.group_by: {key!r} has {values.n_unique()} values in {path}, at most {MOST_VALUES} can be "
            "summarized; group by another field"
        )
    typed = {(type(value), text) for value, text in zip(field_values, values, strict=True) if text is not None}
    if len(typed) > values.drop_nulls().n_unique():
        LOG.warning("%s: values of %r that are equal as text are of several types, and are one group", path, key)
    return pl.DataFrame([contexts]).with_columns(pl.lit(key).alias("group"), values)


def value_at(record: dict[str, Any], key: str) -> Any:
    """Return the value of a record at a key that may be dotted, ABSENT if there is none.

    A field with a dot in its own name has precedence over a field inside another field.
    """
    if key in record:
        return record[key]
    prefixes = (key[:index] for index, character in enumerate(key) if character == ".")
    candidates = ((record.get(prefix), key[len(prefix) + 1 :]) for prefix in prefixes)
    inner_values = (value_at(fields, inner_key) for fields, inner_key in candidates if isinstance(fields, dict))
    return next((value for value in inner_values if value is not ABSENT), ABSENT)


def field_names(record: dict[str, Any]) -> Iterator[str]:
    """Yield the dotted keys of a record's fields."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from (f"{name}.{inner_name}" for inner_name in field_names(value))
        else:
            yield name


def _text(value: Any) -> str | None:
    """Return a value as text: a string unchanged, any other value as JSON, null or an absent value as None."""
    if value is None or value is ABSENT:
        return None
    return value if isinstance(value, str) else canonical_json(value)
