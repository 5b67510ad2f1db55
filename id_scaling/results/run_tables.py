"""Read the tables of one run in bounded memory: estimates site by site, tokens context by context.

Every table is verified before it is read: its checksum, and the code, settings, and extraction of the session.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl

from id_scaling.errors import StoreError, made_anew
from id_scaling.storage.layout import Run, contexts_path, extraction_digest, ids_path, run_folder
from id_scaling.storage.records import read_record, table_facts
from id_scaling.text.documents import documents_of, groups_of

SCORES = ("loss", "entropy")
SITE = ["view", "cloud", "position", "layer", "module", "estimator"]
# Rows in memory at once: about 30 MB of estimates with their cloud properties.
ROWS_AT_ONCE = 2**17


@dataclass(frozen=True)
class OpenRun:
    """A run whose extraction matches the session.

    Parameters
    ----------
    session : Path
        Folder of the session.
    run : Run
        Names of the run.
    manifest : mapping
        Manifest of the extraction.
    documents : polars.DataFrame
        `context`, `document`, and `token_start`, sorted by document and context.
    groups : list of polars.DataFrame
        For each key of `group_by`: `context`, `group`, and `group_value`.
    """

    session: Path
    run: Run
    manifest: Mapping[str, Any]
    documents: pl.DataFrame
    groups: list[pl.DataFrame]

    def n_tested(self) -> dict[str | None, int]:
        """Return the maximal number of rows of one view and estimator, for all contexts (None) and for each key."""
        n_values = {None: 1, **{group["group"][0]: group["group_value"].n_unique() for group in self.groups}}
        return {key: n * len(self.manifest["sites"]) for key, n in n_values.items()}

    @property
    def order(self) -> dict[str, int]:
        """Return the position of each key of `group_by`, from 1."""
        return {group["group"][0]: number for number, group in enumerate(self.groups, 1)}

    def scores(self) -> pl.DataFrame:
        """Return the `token_scores` of the run."""
        path = run_folder(self.session, self.run) / "tokens.parquet"
        check_table(path, {"digest": self.manifest["digest"]}, "from another extraction than its run's")
        return token_scores(path)

    def sites(self, settings: Mapping[str, Any], columns: list[str]) -> Iterator[pl.DataFrame]:
        """Yield the estimates of several complete sites at a time: `context`, SITE, `columns`, and `versions`."""
        pending: list[pl.DataFrame] = []
        for module, (estimator, code) in product(settings["modules"], settings["estimators"]):
            path = ids_path(self.session, self.run, module, estimator)
            for table in self._read(path, code, settings["clouds"], columns):
                if pending and sum(map(len, pending)) + len(table) > ROWS_AT_ONCE:
                    yield pl.concat(pending)
                    pending = []
                pending.append(table)
        if pending:
            yield pl.concat(pending)

    def _read(self, path: Path, code: str, clouds: list[str], columns: list[str]) -> Iterator[pl.DataFrame]:
        """Yield the rows of one table, several complete sites at a time, with library versions."""
        facts = table_facts(path)
        made_with = facts["settings"]
        if (made_with["code"], made_with.get("clouds"), facts["manifest"]) != (code, clouds, self.manifest["digest"]):
            raise StoreError(
                f"{path}: made by other code of its estimator, of other clouds, or from another extraction than this "
                f"session expects; {made_anew(path)}"
            )
        versions = pl.lit(_versions(self.manifest["versions"], facts["versions"])).alias("versions")
        for table in whole_groups(path, SITE, ["context", *SITE, *columns]):
            yield table.with_columns(versions)


def open_run(session: Path, run: Run, settings: Mapping[str, Any]) -> OpenRun:
    """Return a run of a session.

    Raises
    ------
    StoreError
        The extraction or the contexts of the run do not match the session.
    ConfigError
        Documents of the run lack a field that `group_by` names, or the field has too many values.
    """
    path = run_folder(session, run) / "manifest.json"
    manifest = read_record(path)
    extraction_settings, positions = manifest["settings"], settings["positions"][str(run.ctx_len)]
    if (
        extraction_digest(extraction_settings) != settings["extractions"][run.model]
        or extraction_settings.get("positions") != positions
    ):
        raise StoreError(
            f"{path}: made by another extraction than this session expects (other code or settings); {made_anew(path)}"
        )
    contexts = contexts_path(session, run, settings["tokenizers"][run.model])
    groups = groups_of(contexts, manifest["contexts"], tuple(settings["group_by"].get(run.dataset, ())))
    return OpenRun(session, run, manifest, documents_of(contexts, manifest["contexts"]), groups)


def check_table(path: Path, expected: Mapping[str, Any], otherwise: str) -> None:
    """Raise a StoreError if a table is damaged, or if one of the expected facts differs."""
    facts = table_facts(path)
    if {key: facts.get(key) for key in expected} != expected:
        raise StoreError(f"{path}: {otherwise}; {made_anew(path)}")


def token_scores(path: Path) -> pl.DataFrame:
    """Return the mean `loss` and `entropy` of each context over its tokens after the first, with sums and counts.

    `token` is the number of different tokens. `sum_loss`, `n_loss`, `sum_entropy`, and `n_entropy` are sums and counts,
    which give the means of several contexts. A context of one token has no row.
    """
    scores = [pl.col(name).cast(pl.Float64) for name in SCORES]
    tables = [
        table.filter(pl.col("position") > 0)
        .group_by("context", maintain_order=True)
        .agg(
            *(score.mean() for score in scores),
            pl.col("token").n_unique(),
            *(score.sum().name.prefix("sum_") for score in scores),
            *(score.count().cast(pl.Int64).name.prefix("n_") for score in scores),
        )
        for table in whole_groups(path, ["context"], ["context", "position", "token", *SCORES])
    ]
    return pl.concat(tables)


def whole_groups(path: Path, keys: list[str], columns: list[str]) -> Iterator[pl.DataFrame]:
    """Yield the rows of a table, about ROWS_AT_ONCE at a time; rows with the same keys stay together.

    Raises
    ------
    StoreError
        In a large table, rows with the same keys are not next to each other.
    """
    rows, start, pending, seen = pl.scan_parquet(path, glob=False).select(columns), 0, None, None
    while True:
        block = rows.slice(start, ROWS_AT_ONCE).collect()
        start += len(block)
        table = block if pending is None else pl.concat([pending, block])
        if len(block) < ROWS_AT_ONCE:
            break
        equals_last = [pl.col(key).eq_missing(pl.lit(table[key][-1], table.schema[key])) for key in keys]
        is_last = table.select(pl.all_horizontal(equals_last)).to_series()
        pending, table = table.filter(is_last), table.filter(~is_last)
        seen = _seen(seen, table.select(keys), path)
        if len(table):
            yield table
    if seen is not None:
        _seen(seen, table.select(keys), path)
    if len(table) or seen is None:
        yield table


def _seen(seen: pl.DataFrame | None, keys: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Return all keys read so far; raise a StoreError if one of the new keys was read before."""
    keys = keys.unique()
    if seen is None:
        return keys
    if len(keys.join(seen, on=keys.columns, how="semi", nulls_equal=True)):
        raise StoreError(
            f"{path}: rows with the same {' and '.join(keys.columns)} are not next to each other; {made_anew(path)}"
        )
    return pl.concat([seen, keys])


def _versions(extraction: Mapping[str, str], estimate: Mapping[str, str]) -> str:
    """Return the versions of the extraction and of the estimate as one line."""
    stages = {"extraction": extraction, "estimate": estimate}
    return "; ".join(
        f"{stage}: " + ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
        for stage, versions in stages.items()
    )
