"""Whether the records of a shard have the fields that a study names, as far as its beginning tells before any job."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from id_scaling.text.documents import ABSENT, absent_field, field_names, value_at
from id_scaling.text.readers import Document, Shard, fields_of, is_no_text, schema_of, wrong_text_column

# What JSON calls the values that are no text.
_KINDS = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
# Of a shard: a tenth of a second.
MOST_LOOKED_AT, MOST_BYTES_LOOKED_AT = 1000, 4_000_000


def check_records(shard: Shard, keys: Sequence[str], n_documents: int | None, dataset: str, is_strict: bool) -> None:
    """Raise an error where it is certain that no record of a shard has a text, or none of a document a field.

    Of parquet files the schemas say it; of others the first records do, where they are all that are read. Where no
    record may be broken, a beginning without a text is enough.

    Parameters
    ----------
    shard : Shard
    keys : sequence of str
        Fields of `group_by`, dotted inside others.
    n_documents : int or None
        Most documents that are read of the shard.
    dataset : str
        Its name, for messages.
    is_strict : bool
        Whether one record without a text is an error.

    Raises
    ------
    InputError
        No record has a text at `text_column`.
    ConfigError
        No document has a field.
    """
    if all(path.suffix == ".parquet" for path in shard.files):
        _check_schemas(shard, keys, dataset)
        return
    missing, names, kinds = set(keys), set(), set()
    columns: dict = {}
    n_read, beginning = 0, _Beginning(shard, n_documents)
    for document, record in beginning:
        if isinstance(document, Document):
            n_read += 1
            fields = json.loads(document.metadata or "{}")
            missing -= {key for key in missing if value_at(fields, key) is not ABSENT}
            names |= set(field_names(fields))
            if not missing:
                return
        elif isinstance(record, dict):
            columns |= dict.fromkeys(record)
            if shard.text_column in record:
                kinds.add(_KINDS.get(type(record[shard.text_column]), "text"))
    if n_read and missing and not beginning.is_cut:
        raise absent_field(min(missing, key=list(keys).index), names, shard.files[0])
    is_certain = is_strict or not beginning.is_cut
    if columns and not n_read and is_certain and "text" not in kinds:
        raise wrong_text_column(shard.files[0], shard.text_column, list(columns), sorted(kinds), dataset)


class _Beginning:
    """The first records of a shard, each with the document that it is, if it is one.

    Attributes
    ----------
    is_cut : bool
        Whether more are there that a job may read.
    """

    def __init__(self, shard: Shard, n_documents: int | None) -> None:
        self.shard, self.n_documents, self.is_cut = shard, n_documents, False

    def __iter__(self) -> Iterator[tuple[object, dict[str, Any] | str]]:
        n_read = 0
        for number, (where, record) in enumerate(self.shard.rows()):
            if n_read == self.n_documents:
                return
            if number == MOST_LOOKED_AT or self.shard.share * self.shard.n_bytes > MOST_BYTES_LOOKED_AT:
                self.is_cut = True
                return
            document = self.shard.document(number, where, record)
            n_read += isinstance(document, Document)
            yield document, record


def _check_schemas(shard: Shard, keys: Sequence[str], dataset: str) -> None:
    """Raise an error where the schema of a parquet file has no column of texts, or none has a field."""
    missing, names = set(keys), set()
    for path in shard.files:
        schema = schema_of(path)
        kinds = [field.type for field in schema if field.name == shard.text_column]
        if all(map(is_no_text, kinds)):
            raise wrong_text_column(path, shard.text_column, schema.names, list(map(str, kinds)), dataset)
        fields = fields_of(schema, (shard.text_column, shard.id_column))
        missing -= {key for key in missing if value_at(fields, key) is not ABSENT}
        names |= set(field_names(fields))
    if missing:
        raise absent_field(min(missing, key=list(keys).index), names, shard.files[0])
