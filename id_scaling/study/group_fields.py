"""Whether the documents of a shard have the fields of `group_by`, as far as its beginning tells before any job."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from id_scaling.text.documents import ABSENT, absent_field, field_names, value_at
from id_scaling.text.readers import Document, Shard, schema_fields

# Of a shard: a tenth of a second.
MOST_LOOKED_AT, MOST_BYTES_LOOKED_AT = 1000, 4_000_000


def check_fields(shard: Shard, keys: Sequence[str], n_documents: int | None) -> None:
    """Raise a ConfigError where it is certain from the beginning of a shard that no document has a field.

    Of parquet files the schemas say it; of others the first documents do where they are all that are read.

    Parameters
    ----------
    shard : Shard
    keys : sequence of str
        Fields, dotted inside others.
    n_documents : int or None
        Most documents that are read of the shard.
    """
    missing, names = set(keys), set()
    fields, is_whole = _fields(shard, n_documents)
    for record in fields:
        missing -= {key for key in missing if value_at(record, key) is not ABSENT}
        names |= set(field_names(record))
        if not missing:
            return
    if missing and is_whole():
        raise absent_field(min(missing, key=list(keys).index), names, shard.files[0])


def _fields(shard: Shard, n_documents: int | None) -> tuple[Iterator[dict[str, Any]], Callable[[], bool]]:
    """Return the fields of the first documents of a shard, and what tells afterwards whether these were all."""
    if all(path.suffix == ".parquet" for path in shard.files):
        return (schema_fields(path, (shard.text_column, shard.id_column)) for path in shard.files), lambda: True
    n_read, is_cut = 0, False

    def read() -> Iterator[dict[str, Any]]:
        nonlocal n_read, is_cut
        for document in shard.records():
            if n_read == n_documents:
                return
            if n_read == MOST_LOOKED_AT or shard.share * shard.n_bytes > MOST_BYTES_LOOKED_AT:
                is_cut = True
                return
            if isinstance(document, Document):
                n_read += 1
                yield json.loads(document.metadata or "{}")

    return read(), lambda: not is_cut
