"""The summary of a session: one table with intrinsic dimensions, and loss and entropy of the same tokens.

It refuses to mix estimates from different code of an estimator or from different extractions. Mixed library versions
give a warning, and a column lists them. Only estimates with status `ok` enter mean, median, sd, and the statistics of
`id_scaling.results.uncertainty`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from polars import selectors
from threadpoolctl import threadpool_limits

from id_scaling.neighbors.cloud_kinds import CONTEXT
from id_scaling.results import uncertainty
from id_scaling.results.columns import COLUMNS, COMPANIONS, GROUP, KEYS, RUN_AXES
from id_scaling.results.equivalents import DISTRIBUTIONS, MAX_RATIO, REJECTED, equivalent, nearest_equivalent
from id_scaling.results.inputs import made_from
from id_scaling.results.permutations import p_of_maximum
from id_scaling.results.run_tables import SCORES, SITE, OpenRun, open_run
from id_scaling.results.text_table import mixture, readable
from id_scaling.results.training_steps import training_step, training_tokens
from id_scaling.runtime.atomic_files import sha256, writing_all
from id_scaling.runtime.logging import LOG, Progress
from id_scaling.storage.layout import Run, names_of, runs_of
from id_scaling.storage.records import write_table

# Rows that agree in these columns form a family; `family_per` says which runs it joins.
FAMILY = ["group", "view", "cloud", "estimator"]
_FAMILY_OF = {"run": lambda run: run, "model": lambda run: run.model, "study": lambda run: None}
# Values of sites in memory at once: 32 MB.
ELEMENTS = 2**22
# The largest statistic of each permutation, by test, group, view, cloud, and estimator.
Maxima = dict[tuple, np.ndarray]


def summarize(session: Path, settings: Mapping[str, Any], parquet: Path, csv: Path, text: Path) -> None:
    """Write the summary of a session as parquet, CSV, and readable text: all three files or none.

    Memory does not grow with contexts × rows, because `id_scaling.results.run_tables` reads a few sites at a time.

    Raises
    ------
    StoreError
        A table was made by other code, or from another extraction, than the session expects.
    ConfigError
        Documents of a run lack a field that `group_by` names, or the field has too many values.
    """
    runs, families = list(runs_of(settings)), []
    progress = Progress("summarized run", len(runs))
    # The number of BLAS threads changes last bits, and so can change a count of permutations.
    with threadpool_limits(1, user_api="blas"):
        for _, members in groupby(runs, key=_FAMILY_OF[settings["family_per"]]):
            families.append(_summarize_family(session, list(members), settings, progress))
    summary = pl.concat(families)
    summary = summary.with_columns(_equivalents(summary)).select([name for name, _, _ in COLUMNS])
    summary = summary.with_columns(selectors.float().fill_nan(None))
    if summary["versions"].n_unique() > 1:
        LOG.warning("mixed library versions, see the column `versions`: %s", summary["versions"].unique().to_list())
    if words := mixture({kind: set(summary[kind]) for kind in ("dtype", "device")}):
        LOG.warning("%s", words)
    columns = {name: {"unit": unit, "meaning": meaning} for name, unit, meaning in COLUMNS}
    with writing_all([parquet, csv, text]) as (new_parquet, new_csv, new_text):
        summary.write_csv(new_csv)
        new_text.write_text(readable(summary))
        files = {path.name: sha256(new) for path, new in ((csv, new_csv), (text, new_text))}
        facts = {**settings, "made_from": made_from(session, settings)}
        write_table(new_parquet, summary, facts, columns=columns, files=files)
    LOG.info("%d rows in %s", len(summary), parquet)


def _summarize_family(session: Path, runs: list[Run], settings: Mapping[str, Any], progress: Progress) -> pl.DataFrame:
    """Return the rows of the runs whose correlations are tested as one family."""
    sizes: Counter[str | None] = Counter()
    for run in runs:
        sizes.update(open_run(session, run, settings).n_tested())
    maxima: Maxima = {}
    tables = []
    for run in runs:
        tables.append(_summarize_run(open_run(session, run, settings), settings, sizes, maxima))
        progress.step()
    return _adjusted(pl.concat(tables), maxima)


def _summarize_run(
    run: OpenRun, settings: Mapping[str, Any], sizes: Mapping[str | None, int], maxima: Maxima
) -> pl.DataFrame:
    """Return the rows of one run without family adjustments; collect the largest statistics in `maxima`."""
    manifest, scores = run.manifest, run.scores()
    tables, statistics = [], _Uncertainty(run, scores, sizes, maxima)
    for ids in run.sites(settings, ["value", "stderr", "status", *COMPANIONS]):
        tables.append(_aggregated(_grouped(ids, run.groups)))
        statistics.add(ids.filter(cloud=CONTEXT))
    # Rows of all contexts come first, then those of each key, whatever the number of sites read at a time.
    table = pl.concat(tables).sort(pl.col("group").replace_strict(run.order, default=0), maintain_order=True)
    group_scores = _grouped(scores, run.groups).group_by(GROUP, maintain_order=True).agg(map(_mean, SCORES))
    names = names_of(run.run, settings)
    model, checkpoint = str(names["model"]), str(names["checkpoint"])
    return (
        table.join(statistics.table(), on=KEYS, how="left", nulls_equal=True, maintain_order="left")
        .join(group_scores, on=GROUP, how="left", nulls_equal=True, maintain_order="left")
        .join(_views(manifest), on="view", how="left", maintain_order="left")
        .with_columns(_of_levels(run.documents["document"].n_unique()))
        .with_columns(
            *(pl.lit(name).alias(axis) for axis, name in names.items()),
            pl.lit(manifest["n_layers"]).alias("n_layers"),
            _relative_depth(manifest["n_layers"]),
            *(pl.lit(manifest[name], pl.Int64).alias(name) for name in ("n_parameters", "n_embedding_parameters")),
            pl.lit(training_step(checkpoint), pl.Int64).alias("training_step"),
            pl.lit(training_tokens(model, checkpoint), pl.Int64).alias("training_tokens"),
            pl.lit(manifest["dtype"]).alias("dtype"),
            pl.lit(manifest["device"]).alias("device"),
        )
    )


def _of_levels(n_documents: int) -> list[pl.Expr]:
    """Return the level of each row, and the columns that differ in a row of one cloud of all contexts."""
    is_of_run = pl.col("cloud") != CONTEXT
    return [
        pl.when(is_of_run).then(pl.lit("run")).otherwise(pl.lit("context")).alias("level"),
        pl.when(is_of_run).then(n_documents).otherwise("n_documents").alias("n_documents"),
        pl.when(is_of_run).then(pl.lit("one_cloud")).otherwise("interval").alias("interval"),
        pl.when(~is_of_run).then("skip_first_tokens").alias("skip_first_tokens"),
    ]


def _relative_depth(n_layers: int) -> pl.Expr:
    """Return the share of the blocks up to a site."""
    outside = pl.col("module").replace_strict({"emb": 0.0, "unemb": 1.0}, default=None, return_dtype=pl.Float64)
    return pl.coalesce((pl.col("layer") + 1) / n_layers, outside).alias("relative_depth")


def _grouped(table: pl.DataFrame, groups: list[pl.DataFrame]) -> pl.DataFrame:
    """Return the rows of a table of contexts, repeated for each key of `group_by` with the value of their context."""
    all_contexts = table.with_columns(pl.lit(None, pl.String).alias(name) for name in GROUP)
    return pl.concat([all_contexts, *(table.join(group, on="context", maintain_order="left") for group in groups)])


def _mean(score: str) -> pl.Expr:
    """Return the mean of a score over all tokens of several contexts."""
    return (pl.col(f"sum_{score}").sum() / pl.col(f"n_{score}").sum()).alias(f"mean_{score}")


def _aggregated(ids: pl.DataFrame) -> pl.DataFrame:
    """Return one row for each group, view, cloud, layer, module, and estimator of a run."""
    is_ok = pl.col("status") == "ok"
    value = pl.col("value").filter(is_ok)
    failures = pl.col("status").filter(~is_ok)
    return (
        ids.group_by(KEYS, maintain_order=True)
        .agg(
            value.mean().alias("mean"),
            value.median().alias("median"),
            value.std().alias("sd"),
            pl.col("stderr").filter(is_ok).median(),
            pl.len().cast(pl.Int64).alias("n_contexts"),
            (~is_ok).sum().cast(pl.Int64).alias("n_failed"),
            failures.unique(maintain_order=True).alias("_words"),
            failures.alias("_failures"),
            *(pl.col(name).filter(is_ok).drop_nans().mean() for name in COMPANIONS),
            pl.col("versions").first(),
        )
        .with_columns(
            pl.struct("_words", "_failures").map_elements(_counted, return_dtype=pl.String).alias("statuses"),
        )
        .drop("_words", "_failures")
    )


class _Uncertainty:
    """Intervals and rank correlations of the rows of a run, computed for a few sites at a time."""

    def __init__(self, run: OpenRun, scores: pl.DataFrame, sizes: Mapping[str | None, int], maxima: Maxima) -> None:
        self.sizes, self.maxima = sizes, maxima
        self.contexts = run.documents.join(scores, on="context", how="left", maintain_order="left")
        self.sources = _sources(self.contexts, run.groups)
        self.parts = [((None, None), self.contexts["context"])]
        self.parts += [
            (names, part["context"])
            for group in run.groups
            for names, part in group.group_by(GROUP, maintain_order=True)
        ]
        self.held: list[tuple[pl.DataFrame, np.ndarray]] = []
        self.tables: list[pl.DataFrame] = []

    def add(self, ids: pl.DataFrame) -> None:
        """Add the estimates of complete sites; compute statistics once many values are pending."""
        self.held.append(_table(ids, self.contexts["context"]))
        if sum(values.size for _, values in self.held) >= ELEMENTS:
            self._compute()

    def table(self) -> pl.DataFrame:
        """Return the statistics of all rows; null if there are too few documents."""
        self._compute()
        return pl.concat(self.tables).fill_nan(None).with_columns(_interval())

    def _compute(self) -> None:
        """Compute the statistics of the pending sites."""
        if not self.held:
            return
        sites = pl.concat([pending for pending, _ in self.held])
        values = np.concatenate([pending for _, pending in self.held])
        self.held = []
        for names, members in self.parts:
            is_in = self.contexts["context"].is_in(members.implode()).to_numpy()
            self.tables.append(self._of_part(names, is_in, sites, values if is_in.all() else values[:, is_in]))

    def _of_part(
        self, names: tuple[str | None, str | None], is_in: np.ndarray, sites: pl.DataFrame, values: np.ndarray
    ) -> pl.DataFrame:
        """Return the statistics of sites over the contexts of a group, or over all contexts."""
        group, group_value = names
        contexts, family = self.contexts.filter(is_in), sites.select(["view", "cloud", "estimator"])
        scores = {score: contexts[score].cast(pl.Float64).fill_null(float("nan")).to_numpy() for score in SCORES}
        covariates = contexts.select(pl.col("token", "token_start").fill_null(0)).to_numpy().T.astype(float)
        sources = self.sources[is_in] if group is None else np.zeros(is_in.sum())
        kinds = family.unique(maintain_order=True).with_row_index("family")
        families = family.join(kinds, on=family.columns, how="left", maintain_order="left")["family"].to_numpy()
        family_sizes = np.full(len(sites), self.sizes[group])
        statistics = uncertainty.of_rows(
            values, contexts["document"].to_numpy(), scores, covariates, sources, family_sizes, families
        )
        for test, maxima_of_rows in statistics.maxima.items():
            for place, key in enumerate(kinds.drop("family").iter_rows()):
                # An array of maxima ends with the last family that has a row of the same contexts.
                family_maxima = [row_maxima[place] for row_maxima in maxima_of_rows if place < len(row_maxima)]
                _gather(self.maxima, (test, group, *key), family_maxima)
        names_of_part = {"group": pl.lit(group, pl.String), "group_value": pl.lit(group_value, pl.String)}
        return sites.with_columns(
            **names_of_part, **{name: pl.Series(column) for name, column in statistics.columns.items()}
        )


def _gather(maxima: Maxima, key: tuple, statistics: list[np.ndarray]) -> None:
    """Merge the largest statistics of rows of a family; keep only permutations that all rows have."""
    known = [maxima[key]] if key in maxima else []
    arrays = [array for array in (*known, *statistics) if len(array)]
    if arrays:
        n = min(map(len, arrays))
        maxima[key] = np.max([array[:n] for array in arrays], axis=0)


def _sources(contexts: pl.DataFrame, groups: list[pl.DataFrame]) -> np.ndarray:
    """Return the number of each context's value of the first key of `group_by`; 0 if it has none."""
    if not groups:
        return np.zeros(len(contexts))
    values = contexts.join(groups[0], on="context", how="left", maintain_order="left")["group_value"]
    return values.rank("dense").fill_null(0).to_numpy()


def _table(ids: pl.DataFrame, contexts: pl.Series) -> tuple[pl.DataFrame, np.ndarray]:
    """Return the sites of a run, and the estimates of (sites, contexts); NaN if the status is not `ok`."""
    value = pl.when(pl.col("status") == "ok").then("value").otherwise(float("nan"))
    grouped = ids.group_by(SITE, maintain_order=True).agg("context", value)
    columns = pl.DataFrame({"context": contexts}).with_row_index()
    contexts_in_order = grouped["context"].explode().to_frame()
    places = contexts_in_order.join(columns, on="context", how="left", maintain_order="left")["index"]
    values = np.full((len(grouped), len(contexts)), np.nan)
    values[np.repeat(np.arange(len(grouped)), grouped["context"].list.len()), places] = grouped["value"].explode()
    return grouped.select(SITE), values


def _interval() -> pl.Expr:
    """Return the kind of interval that the number of documents allows."""
    n = pl.col("n_documents")
    is_few, is_resampled = n < uncertainty.LEAST_DOCUMENTS, n >= uncertainty.LEAST_RESAMPLED
    kind = pl.when(is_few).then(pl.lit("too_few_documents")).when(is_resampled).then(pl.lit("bootstrap"))
    return kind.otherwise(pl.lit("t")).alias("interval")


def _equivalents(summary: pl.DataFrame) -> list[pl.Series]:
    """Return the equivalents of the mean of each row, with their status; null if there are none."""
    columns: dict[str, list[float | None]] = {f"value_{name}_equivalent": [] for name in DISTRIBUTIONS}
    statuses = []
    for mean, n_points, estimator in summary.select("mean", "n_used", "estimator").iter_rows():
        equivalents = [
            (None, None) if mean is None else equivalent(mean, n_points, estimator, name) for name in DISTRIBUTIONS
        ]
        statuses.append(equivalents[DISTRIBUTIONS.index("gaussian")][1])
        for values, (value, _) in zip(columns.values(), equivalents, strict=True):
            values.append(value)
    equivalent_columns = [pl.Series(name, values, pl.Float64).fill_nan(None) for name, values in columns.items()]
    rejected = _rejected(summary)
    status = pl.Series("equivalent_status", statuses, pl.String)
    is_rejected = rejected.str.contains("gaussian") & (status == "ok")
    status = pl.select(pl.when(is_rejected.fill_null(False)).then(pl.lit(REJECTED)).otherwise(status)).to_series()
    return [*equivalent_columns, status.alias("equivalent_status"), rejected]


def _rejected(summary: pl.DataFrame) -> pl.Series:
    """Return the distributions on which the estimators of the cloud of each row disagree; null if none."""
    cloud = [*RUN_AXES, *GROUP, *(key for key in SITE if key != "estimator")]
    clipped = summary.select(
        *cloud,
        *(
            pl.Series(
                name,
                [
                    None if mean is None else nearest_equivalent(mean, n_points, estimator, name)
                    for mean, n_points, estimator in summary.select("mean", "n_used", "estimator").iter_rows()
                ],
                pl.Float64,
            )
            for name in DISTRIBUTIONS
        ),
    )
    rejected_names = [
        pl.when(pl.col(name).max().over(cloud) > MAX_RATIO * pl.col(name).min().over(cloud)).then(pl.lit(name))
        for name in DISTRIBUTIONS
    ]
    listed = clipped.select(
        pl.concat_str(rejected_names, separator=", ", ignore_nulls=True).alias("equivalents_rejected")
    )
    return listed.to_series().replace("", None)


def _adjusted(rows: pl.DataFrame, maxima: Maxima) -> pl.DataFrame:
    """Return the rows of a family with p-values adjusted for the whole family."""
    tests = [*SCORES, *(f"partial_{score}" for score in SCORES)]
    adjustments = [
        expression
        for test in tests
        for expression in (
            _false_discovery(f"p_{test}").over(FAMILY).alias(f"q_{test}"),
            (pl.col(f"p_{test}_floor") * pl.col(f"p_{test}").count().over(FAMILY)).clip(upper_bound=1),
        )
    ]
    rows = rows.with_columns(adjustments).rename({f"p_{test}_floor": f"q_{test}_floor" for test in tests})
    return rows.with_columns(_family_wise(rows, test, maxima) for test in tests)


def _false_discovery(name: str) -> pl.Expr:
    """Return the p-values of a family, adjusted for the false discovery rate."""
    p = pl.col(name).fill_null(float("nan"))
    return p.map_batches(lambda values: pl.Series(uncertainty.adjusted(values.to_numpy())), pl.Float64).fill_nan(None)


def _family_wise(rows: pl.DataFrame, test: str, maxima: Maxima) -> pl.Series:
    """Return the p-values of rows, adjusted for the family-wise error rate."""
    statistic = test if test.startswith("partial_") else f"spearman_{test}"
    ordered = {key: np.sort(largest) for key, largest in maxima.items() if key[0] == test}
    values = []
    for *key, p, rho, n in rows.select(*FAMILY, f"p_{test}", statistic, f"n_{test}").iter_rows():
        values.append(None if p is None else p_of_maximum(rho, n, ordered[test, *key]))
    return pl.Series(f"p_{test}_maxt", values, pl.Float64)


def _counted(statuses: Mapping[str, list[str]]) -> str:
    """Return text such as `degenerate: 3, nonfinite: 1` for a list of statuses."""
    return ", ".join(f"{word}: {statuses['_failures'].count(word)}" for word in statuses["_words"])


def _views(manifest: Mapping[str, Any]) -> pl.DataFrame:
    """Return the settings of each view of a run."""
    views = manifest["settings"]["views"]
    return pl.DataFrame([{"view": name, **view} for name, view in views.items()])
