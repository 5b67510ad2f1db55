"""The tables of one run, read a bounded number of rows at a time: its estimates site by site, its tokens by context.

Every table is verified before it is read, and known to be of the session's code, settings and extraction.
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
# Rows that are in memory at once: some 30 MB of estimates with their companions.
ROWS_AT_ONCE = 2**17


@dataclass(frozen=True)
class OpenRun:
    """A run whose extraction is known to be the session's.

    Parameters
    ----------
    session : Path
        Its session.
    run : Run
        Its names.
    manifest : mapping
        What its extraction says of itself.
    documents : polars.DataFrame
        `context`, `document` and `token_start`, sorted by document and context.
    groups : list of polars.DataFrame
        Of each key of `group_by`: `context`, `group` and `group_value`.
    """

    session: Path
    run: Run
    manifest: Mapping[str, Any]
    documents: pl.DataFrame
    groups: list[pl.DataFrame]

    def n_tested(self) -> dict[str | None, int]:
        """Return how many rows of one view and estimator there are at most, of all contexts (None) and of each key."""
        n_values = {None: 1, **{group["group"][0]: group["group_value"].n_unique() for group in self.groups}}
        return {key: n * len(self.manifest["sites"]) for key, n in n_values.items()}

    @property
    def order(self) -> dict[str, int]:
        """Return the number of each key of `group_by`, from 1."""
        return {group["group"][0]: number for number, group in enumerate(self.groups, 1)}

    def scores(self) -> pl.DataFrame:
        """Return the `token_scores` of the run."""
        path = run_folder(self.session, self.run) / "tokens.parquet"
        check_table(path, {"digest": self.manifest["digest"]}, "from another extraction than its run's")
        return token_scores(path)

    def sites(self, settings: Mapping[str, Any], columns: list[str]) -> Iterator[pl.DataFrame]:
        """Yield the estimates of some whole sites at a time: `context`, SITE, columns, and library `versions`."""
        held: list[pl.DataFrame] = []
        for module, (estimator, code) in product(settings["modules"], settings["estimators"]):
            path = ids_path(self.session, self.run, module, estimator)
            for table in self._read(path, code, settings["clouds"], columns):
                if held and sum(map(len, held)) + len(table) > ROWS_AT_ONCE:
                    yield pl.concat(held)
                    held = []
                held.append(table)
        if held:
            yield pl.concat(held)

    def _read(self, path: Path, code: str, clouds: list[str], columns: list[str]) -> Iterator[pl.DataFrame]:
        """Yield the rows of one table, some whole sites at a time, with the library versions behind them."""
        facts = table_facts(path)
        made = facts["settings"]
        if (made["code"], made.get("clouds"), facts["manifest"]) != (code, clouds, self.manifest["digest"]):
            raise StoreError(
                f"{path}: made by other code of its estimator, of other clouds, or from another extraction, than this "
                f"session's; {made_anew(path)}"
            )
        versions = pl.lit(_versions(self.manifest["versions"], facts["versions"])).alias("versions")
        for table in whole_groups(path, SITE, ["context", *SITE, *columns]):
            yield table.with_columns(versions)


def open_run(session: Path, run: Run, settings: Mapping[str, Any]) -> OpenRun:
    """Return a run of a session.

    Raises
    ------
    StoreError
        Its extraction, or its contexts, are not the session's.
    ConfigError
        Its documents do not have a field that `group_by` names, or it has too many values.
    """
    path = run_folder(session, run) / "manifest.json"
    manifest = read_record(path)
    made, positions = manifest["settings"], settings["positions"][str(run.ctx_len)]
    if extraction_digest(made) != settings["extractions"][run.model] or made.get("positions") != positions:
        raise StoreError(
            f"{path}: made by another extraction than this session's (other code or settings); {made_anew(path)}"
        )
    contexts = contexts_path(session, run, settings["tokenizers"][run.model])
    groups = groups_of(contexts, manifest["contexts"], tuple(settings["group_by"].get(run.dataset, ())))
    return OpenRun(session, run, manifest, documents_of(contexts, manifest["contexts"]), groups)


def check_table(path: Path, expected: Mapping[str, Any], otherwise: str) -> None:
    """Raise a StoreError where a table is damaged, or its facts are not what is expected of some of them."""
    facts = table_facts(path)
    if {key: facts.get(key) for key in expected} != expected:
        raise StoreError(f"{path}: {otherwise}; {made_anew(path)}")


def token_scores(path: Path) -> pl.DataFrame:
    """Return of each context with tokens after its first: mean `loss` and `entropy` of these, and more.

    `token` is how many different ones there are, and `sum_loss`, `n_loss`, `sum_entropy`, `n_entropy` are sums and
    counts, from which the means of several contexts follow.
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
    """Yield the rows of a table, about ROWS_AT_ONCE at a time, those with the same keys never apart.

    Raises
    ------
    StoreError
        Rows of a large table that have the same keys do not stand together.
    """
    rows, start, held, seen = pl.scan_parquet(path, glob=False).select(columns), 0, None, None
    while True:
        block = rows.slice(start, ROWS_AT_ONCE).collect()
        start += len(block)
        table = block if held is None else pl.concat([held, block])
        if len(block) < ROWS_AT_ONCE:
            break
        of_last = [pl.col(key).eq_missing(pl.lit(table[key][-1], table.schema[key])) for key in keys]
        is_last = table.select(pl.all_horizontal(of_last)).to_series()
        held, table = table.filter(is_last), table.filter(~is_last)
        seen = _seen(seen, table.select(keys), path)
        if len(table):
            yield table
    if seen is not None:
        _seen(seen, table.select(keys), path)
    if len(table) or seen is None:
        yield table


def _seen(seen: pl.DataFrame | None, keys: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Return all keys that were read; raises a StoreError where some of these had been."""
    keys = keys.unique()
    if seen is None:
        return keys
    if len(keys.join(seen, on=keys.columns, how="semi", nulls_equal=True)):
        raise StoreError(f"{path}: rows of one {' and '.join(keys.columns)} do not stand together; {made_anew(path)}")
    return pl.concat([seen, keys])


def _versions(extraction: Mapping[str, str], estimate: Mapping[str, str]) -> str:
    """Return versions as one line: those of the extraction, and those of the estimate."""
    stages = {"extraction": extraction, "estimate": estimate}
    return "; ".join(
        f"{stage}: " + ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
        for stage, versions in stages.items()
    )
