"""One table from many: the intrinsic dimensions of a session beside loss and entropy of the same tokens.

Refuses to mix estimates made by different code of one estimator, or of different extractions; mixed
library versions are a column and a warning. Only estimates with status `ok` enter mean, median and sd, and what
`intervals` adds of their uncertainty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from polars import selectors
from threadpoolctl import threadpool_limits

from id_scaling.neighbors.cloud_kinds import CONTEXT
from id_scaling.neighbors.views import leading_view
from id_scaling.results import uncertainty
from id_scaling.results.equivalents import DISTRIBUTIONS, MAX_RATIO, REJECTED, equivalent, nearest_equivalent
from id_scaling.results.inputs import made_from
from id_scaling.results.permutations import p_of_maximum
from id_scaling.results.run_tables import SCORES, SITE, OpenRun, open_run
from id_scaling.results.training_steps import training_step, training_tokens
from id_scaling.runtime.atomic_files import sha256, writing_all
from id_scaling.runtime.logging import LOG, Progress
from id_scaling.storage.layout import Run, called, runs_of
from id_scaling.storage.records import write_table

RUN_AXES = ["model", "checkpoint", "dataset", "subset", "ctx_len", "control"]
GROUP = ["group", "group_value"]
KEYS = [*GROUP, *SITE]
# Of the runs of a family, see `family_per`.
FAMILY = ["group", "view", "cloud", "estimator"]
_FAMILY_OF = {"run": lambda run: run, "model": lambda run: run.model, "study": lambda run: None}
# Of the values of sites, in memory at once: 32 MB.
ELEMENTS = 2**22
# The largest statistic of each permutation, by test, group, view, cloud and estimator.
Maxima = dict[tuple, np.ndarray]
COMPANIONS = (
    "n_points",
    "n_distinct",
    "n_used",
    "median_r1",
    "tiny_r1",
    "top_share",
    "median_norm",
    "participation_ratio",
    "participation_ratio_corrected",
    "effective_rank",
    "mean_cosine",
    "nn_same_token",
    "nn_within_5",
    "nn_overlap",
)


def _of_score(score: str) -> tuple[tuple[str, str, str], ...]:
    """Return the columns of the correlations of the ID with a score: name, unit and meaning."""
    fisher = "Fisher's z ± 1.96 standard errors between documents of its influence function (Croux and Dehon 2010)"
    share = (
        "two-sided p-value of `{}`: (b + 1)/(m + 1) of m permutations (Phipson and Smyth 2010; how many: "
        "docs/statistics.md) of"
    )
    few = "empty where there are fewer than 20 of these"
    plain, partial = f"spearman_{score}", f"partial_{score}"
    of_columns = (
        (
            plain,
            f"Spearman's rank correlation, over contexts with status `ok`, of the ID with the mean {score} of a "
            "context's tokens, the first left out; empty under 5 documents, and where all values are equal",
        ),
        (f"{plain}_low", f"lower end of its 95 % interval: {fisher}; empty under 20 documents"),
        (f"{plain}_high", "its upper end"),
        (f"p_{score}", f"{share.format(plain)} whole documents among those with equally many contexts; {few}"),
        *_of_family(score, plain),
        (
            partial,
            "Spearman's partial rank correlation of the same: that of what a linear regression leaves of both ranks, "
            "on the ranks of how many different tokens a context has, the first left out, and of where in its document "
            "it starts, and, in the rows of all contexts, on its document's value of the first key of `group_by`; "
            "empty under 20 documents, and one more for each such value but the first",
        ),
        (f"{partial}_low", f"lower end of its 95 % interval: {fisher}, less a degree of freedom for each covariate"),
        (f"{partial}_high", "its upper end"),
        (
            f"p_{partial}",
            f"{share.format(partial)} the residuals of whole documents (Freedman and Lane 1983) among those with "
            f"equally many contexts and the same value of the first key of `group_by`; {few}",
        ),
        *_of_family(partial, partial),
    )
    return tuple((name, "", meaning) for name, meaning in of_columns)


def _of_family(tested: str, statistic: str) -> tuple[tuple[str, str], ...]:
    """Return the columns that say what a p-value is worth among all of its family: name and meaning."""
    return (
        (
            f"q_{tested}",
            f"`p_{tested}` adjusted for the false discovery rate (Benjamini and Hochberg 1995); a family is all rows "
            "of one `group`, `view`, `cloud` and `estimator` of a run, or of what `family_per` says",
        ),
        (
            f"p_{tested}_maxt",
            f"`p_{tested}` adjusted for the family-wise error rate: the share of permutations whose largest absolute "
            f"`{statistic}` of the family, times √(contexts − 1), is at least this row's (single-step max-T, Westfall "
            "and Young 1993), which counts how rows resemble each other",
        ),
        (
            f"q_{tested}_floor",
            f"the smallest `q_{tested}` that a single effect in the family could have, from how many permutations "
            "there are: above 0.05 no single effect can be significant, whatever its size",
        ),
    )


# (column, unit, meaning): the documentation of the table, and its order.
COLUMNS = (
    ("model", "", "`model_name` of the configuration"),
    ("checkpoint", "", "training checkpoint: revision, folder or `main`"),
    ("dataset", "", "`dataset_name` of the configuration"),
    ("subset", "", "index of the shard"),
    ("ctx_len", "tokens", "tokens of a context"),
    (
        "control",
        "",
        "what was done to the text: `none`, or `shuffle-S`: up to 4^S blocks of a context permuted",
    ),
    (
        "group",
        "",
        "key of `group_by` whose value the contexts of this row have in common; empty: all contexts of the run",
    ),
    ("group_value", "", "that value; empty where the documents have none"),
    ("view", "", "name of the view: which points count"),
    (
        "skip_first_tokens",
        "tokens",
        "tokens left out at the start of each context by the view; empty where points are contexts",
    ),
    (
        "duplicates",
        "",
        "what the view does with equal points: `distinct` or `keep`; `one_per_token` counts the first of each token, "
        "`matched_subset` as many at random",
    ),
    ("decimate", "points", "how many points the view draws at random; 0: it counts all"),
    ("draw", "", "number of the view's random draw"),
    (
        "preprocess",
        "",
        "how the view scales points: `raw`, `standardised`, `unit_norm`, or `drop_top_C` leading principal components",
    ),
    ("exclude_window", "positions", "points at most this far apart are not neighbors under the view; 0: all may be"),
    ("null_cloud", "", "`gaussian`: points replaced by a Gaussian sample with their number, mean and covariance"),
    (
        "cloud",
        "",
        "`context`: the tokens of one context at one site; `mean`: the centers of all contexts of a run; `position`: "
        "the tokens at one position of all",
    ),
    ("position", "", "that position, from 0; empty for other clouds"),
    (
        "level",
        "",
        "what each estimate of the row is of: `context`, and the row is over contexts; `run`, one cloud of all "
        "contexts: its ID is `mean` and `median` alike, `stderr` is its own, and `sd` is empty",
    ),
    ("layer", "", "index of the block; empty outside the blocks"),
    ("module", "", "module key"),
    ("estimator", "", "name of the estimator, its whole definition"),
    ("mean", "", "mean ID over contexts with status `ok`"),
    ("median", "", "median ID over contexts with status `ok`"),
    ("sd", "", "standard deviation of the ID over contexts with status `ok`"),
    ("n_documents", "documents", "documents of the contexts with status `ok`; of all where points are contexts"),
    (
        "ci_low",
        "",
        "lower end of the 95 % interval of `mean`, with documents as the unit; empty under 5 documents",
    ),
    ("ci_high", "", "its upper end"),
    (
        "interval",
        "",
        "`t`, with 5 to 19 documents: `mean` ± Student's quantile of one degree of freedom less than documents × the "
        "standard error of the jackknife over documents (Efron and Stein 1981); `bootstrap`, from 20: percentiles of "
        "2000 draws of whole documents (Davison and Hinkley 1997); `too_few_documents`; `one_cloud`, which has none",
    ),
    ("stderr", "", "median standard error within a cloud: the asymptotic formula times a simulated factor"),
    (
        "value_gaussian_equivalent",
        "",
        "not an estimate: the dimension of the normal distribution whose clouds of `n_used` points give this `mean`, "
        "from simulations of 1 to 200 dimensions and 64 to 4096 points",
    ),
    ("value_ball_equivalent", "", "the same of the uniform distribution in a ball"),
    ("value_sphere_equivalent", "", "the same of that on a sphere, of the dimension of its surface"),
    (
        "equivalent_status",
        "",
        "of the first: `ok`; `rejected`, by the estimators of the cloud, see `equivalents_rejected`; `out_of_range`, "
        "above or below all that was simulated; `not_calibrated`, an estimator that was not",
    ),
    (
        "equivalents_rejected",
        "",
        "which of `gaussian`, `ball`, `sphere` the cloud is not like: by one of them its estimators have equivalents "
        "that differ by more than a factor of 1.5, where those of such a cloud would agree; empty: none, or only one "
        "estimator that is calibrated",
    ),
    ("n_contexts", "contexts", "clouds estimated"),
    (
        "n_failed",
        "contexts",
        "clouds whose status is not `ok`: in none of this row's means, medians, intervals and correlations",
    ),
    ("statuses", "", "count of each status that is not `ok`"),
    (
        "n_points",
        "points",
        "mean number of points under the view, before duplicates are dropped; this and what follows of clouds, over "
        "contexts with status `ok`",
    ),
    ("n_distinct", "points", "mean number of different points"),
    ("n_used", "points", "mean number of points that entered the estimate"),
    ("median_r1", "activation", "mean over contexts of the median nearest-neighbor distance"),
    (
        "tiny_r1",
        "share",
        "share of points whose nearest neighbor is at no distance, or below a hundredth of the median one",
    ),
    (
        "top_share",
        "share",
        "share of the mean over points that the tenth of the points with the largest local dimensions makes; empty for "
        "estimators that are not such a mean",
    ),
    ("median_norm", "activation", "mean over contexts of the median norm of a point"),
    ("participation_ratio", "", "mean of trace(G)²/‖G‖² of the centered Gram matrix G"),
    ("participation_ratio_corrected", "", "the same from unbiased estimates of its parts, for samples of few points"),
    (
        "effective_rank",
        "",
        "mean exponential of the entropy of the covariance spectrum (Roy and Vetterli 2007); empty unless "
        "`cloud_statistics` has `spectrum`, and for clouds of a run",
    ),
    ("mean_cosine", "", "mean cosine similarity of two different points"),
    ("nn_same_token", "share", "share of points whose nearest neighbor is the same token"),
    ("nn_within_5", "share", "share of points whose nearest neighbor is at most 5 positions away"),
    ("nn_overlap", "share", "share of the 10 nearest points that are also so at the same module one layer down"),
    ("n_layers", "blocks", "blocks of the model"),
    (
        "relative_depth",
        "",
        "(`layer` + 1) / `n_layers`: the share of the blocks that a token has been through; 0 for `emb`, 1 for `unemb`",
    ),
    ("n_parameters", "", "parameters of the model, shared ones counted once"),
    ("n_embedding_parameters", "", "those of them that embed tokens and positions or map to the vocabulary"),
    (
        "training_step",
        "updates",
        "as the checkpoint's name says it (`step1000`, `checkpoint-500`); 0 for `random-init`",
    ),
    (
        "training_tokens",
        "tokens",
        "as the checkpoint's name says it (`step1000-tokens4B`), or 2,097,152 an update for Pythia (Biderman et al. "
        "2023) and 2,048 for the embedded `sotu-neox`",
    ),
    ("mean_loss", "nats/token", "mean cross-entropy of the run's tokens, first token of a context left out"),
    ("mean_entropy", "nats/token", "mean entropy of the predictions of the same tokens"),
    *_of_score("loss"),
    *_of_score("entropy"),
    ("dtype", "", "precision of the model's weights"),
    ("device", "", "where the model ran"),
    ("versions", "", "library versions of extraction and estimate"),
)


def summarize(session: Path, settings: Mapping[str, Any], parquet: Path, csv: Path, text: Path) -> None:
    """Write the summary of a session as parquet, csv and readable text, all three or none.

    Memory does not grow with contexts × rows: tables are read some sites at a time (`id_scaling.results.run_tables`).

    Raises
    ------
    StoreError
        A table was made by other code or of another extraction than the session's.
    ConfigError
        The documents of a run do not have a field that `group_by` names, or it has too many values.
    """
    runs, families = list(runs_of(settings)), []
    progress = Progress("summarized run", len(runs))
    # How many threads BLAS has would change last bits, and so once in a while a count of permutations.
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


def mixture(values: Mapping[str, Iterable[str]]) -> str:
    """Return a warning of rows of several dtypes or devices, given those of each kind; empty where of one."""
    mixed = {kind: sorted(of_kind) for kind, of_kind in values.items() if len(set(of_kind)) > 1}
    listed = "; ".join(f"{kind} {', '.join(of_kind)}" for kind, of_kind in mixed.items())
    return f"mixed {listed}: differences between these may be of precision, not of the models" if mixed else ""


def readable(summary: pl.DataFrame) -> str:
    """Return the mean ID under the leading view at up to five layers, a line for each run, cloud and estimator."""
    view = leading_view(dict(summary.select("view", "null_cloud").iter_rows()))
    lines = [f"Mean intrinsic dimension by layer (view {view!r}), loss and entropy in nats/token"]
    if words := mixture({kind: set(summary[kind]) for kind in ("dtype", "device")}):
        lines.append(f"warning: {words}")
    rows = summary.filter(pl.col("group").is_null(), view=view)
    keys = ["model", "checkpoint", "dataset", "subset", "ctx_len", "control"]
    has_lengths = summary["ctx_len"].n_unique() > 1
    for run, table in rows.group_by(keys, maintain_order=True):
        scores = {score: table[f"mean_{score}"][0] for score in SCORES}
        layers = _spread(sorted(table["layer"].drop_nulls().unique()))
        marks = "".join(f"{f'layer {layer}':>10}" for layer in layers) + f"{'outside':>10}"
        n_layers = table["n_layers"][0]
        name = called(dict(zip(keys, run, strict=True)), has_lengths)
        scores = ", ".join(f"{score} {_cell(mean, 3) or 'no number'}" for score, mean in scores.items())
        lines += ["", f"{name}: {n_layers} layers, {scores}"]
        width = max(14, *(len(name) + 1 for name in table["estimator"]))
        lines.append(f"  {'module':<8}{'estimator':<{width}}{marks}   not ok")
        for (cloud, position), of_cloud in table.group_by("cloud", "position", maintain_order=True):
            if cloud != CONTEXT:
                where = "" if position is None else f" {position}"
                n_points = of_cloud["n_points"].max()  # none where no cloud has an estimate
                of_what = "all" if n_points is None else f"{n_points:.0f}"
                lines.append(f"  one cloud of {of_what} contexts: {cloud}{where}")
            lines += _lines(of_cloud, layers, width)
    return "\n".join(lines) + "\n"


def _lines(table: pl.DataFrame, layers: list[int], width: int) -> Iterator[str]:
    """Yield a line for each module and estimator, with the means at some layers and outside the blocks."""
    for (module, estimator), part in table.group_by(["module", "estimator"], maintain_order=True):
        means = dict(zip(part["layer"], part["mean"], strict=True))
        cells = "".join(f"{_cell(means.get(layer)):>10}" for layer in (*layers, None))
        yield f"  {module:<8}{estimator:<{width}}{cells}{_failed(part):>9}"


def _spread(layers: list[int]) -> list[int]:
    """Return up to five of some layers, evenly spread, first and last included."""
    n = min(5, len(layers))
    return [layers[round(step * (len(layers) - 1) / max(n - 1, 1))] for step in range(n)]


def _cell(mean: float | None, n_digits: int = 2) -> str:
    """Return a mean as text, empty where there is none."""
    return "" if mean is None else f"{mean:.{n_digits}f}"


def _failed(part: pl.DataFrame) -> str:
    """Return how many of the clouds are not ok."""
    return f"{part['n_failed'].sum()}/{part['n_contexts'].sum()}"


def _summarize_family(session: Path, runs: list[Run], settings: Mapping[str, Any], progress: Progress) -> pl.DataFrame:
    """Return the rows of runs whose correlations are tested as one family."""
    sizes = Counter()
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
    """Return the rows of one run but for what is of its family, whose largest statistics are gathered in `maxima`."""
    manifest, scores = run.manifest, run.scores()
    tables, certain = [], _Uncertainty(run, scores, sizes, maxima)
    for ids in run.sites(settings, ["value", "stderr", "status", *COMPANIONS]):
        tables.append(_aggregated(_grouped(ids, run.groups)))
        certain.add(ids.filter(cloud=CONTEXT))
    # Rows of all contexts first, then those of each key, as if all sites had been read at once.
    table = pl.concat(tables).sort(pl.col("group").replace_strict(run.order, default=0), maintain_order=True)
    of_groups = _grouped(scores, run.groups).group_by(GROUP, maintain_order=True).agg(map(_mean, SCORES))
    names, of = settings["names"], run.run
    model, checkpoint = (names[key].get(getattr(of, key), getattr(of, key)) for key in ("model", "checkpoint"))
    return (
        table.join(certain.table(), on=KEYS, how="left", nulls_equal=True, maintain_order="left")
        .join(of_groups, on=GROUP, how="left", nulls_equal=True, maintain_order="left")
        .join(_views(manifest), on="view", how="left", maintain_order="left")
        .with_columns(_of_levels(run.documents["document"].n_unique()))
        .with_columns(
            pl.lit(model).alias("model"),
            pl.lit(checkpoint).alias("checkpoint"),
            pl.lit(names["dataset"].get(of.dataset, of.dataset)).alias("dataset"),
            pl.lit(of.subset).alias("subset"),
            pl.lit(of.ctx_len).alias("ctx_len"),
            pl.lit(of.control).alias("control"),
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
    """Return the level of each row, and what a row of one cloud of all contexts has in place of what contexts have."""
    is_of_run = pl.col("cloud") != CONTEXT
    return [
        pl.when(is_of_run).then(pl.lit("run")).otherwise(pl.lit("context")).alias("level"),
        pl.when(is_of_run).then(n_documents).otherwise("n_documents").alias("n_documents"),
        pl.when(is_of_run).then(pl.lit("one_cloud")).otherwise("interval").alias("interval"),
        pl.when(~is_of_run).then("skip_first_tokens").alias("skip_first_tokens"),
    ]


def _relative_depth(n_layers: int) -> pl.Expr:
    """Return the share of the blocks that a token has been through at a site."""
    outside = pl.col("module").replace_strict({"emb": 0.0, "unemb": 1.0}, default=None, return_dtype=pl.Float64)
    return pl.coalesce((pl.col("layer") + 1) / n_layers, outside).alias("relative_depth")


def _grouped(table: pl.DataFrame, groups: list[pl.DataFrame]) -> pl.DataFrame:
    """Return a table of contexts with its rows again for each group that their context is in."""
    of_all = table.with_columns(pl.lit(None, pl.String).alias(name) for name in GROUP)
    return pl.concat([of_all, *(table.join(group, on="context", maintain_order="left") for group in groups)])


def _mean(score: str) -> pl.Expr:
    """Return the mean of a score of the tokens of some contexts."""
    return (pl.col(f"sum_{score}").sum() / pl.col(f"n_{score}").sum()).alias(f"mean_{score}")


def _aggregated(ids: pl.DataFrame) -> pl.DataFrame:
    """Return a row for each value of a group, view, cloud, layer, module and estimator of a run."""
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
    """Intervals and rank correlations of the rows of a run, some sites at a time."""

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
        """Take the estimates of some whole sites, and have what was taken computed once it is much."""
        self.held.append(_table(ids, self.contexts["context"]))
        if sum(values.size for _, values in self.held) >= ELEMENTS:
            self._compute()

    def table(self) -> pl.DataFrame:
        """Return the statistics of all rows, null where there are too few documents."""
        self._compute()
        return pl.concat(self.tables).fill_nan(None).with_columns(_interval())

    def _compute(self) -> None:
        """Compute the statistics of what was taken."""
        if not self.held:
            return
        sites = pl.concat([of_held for of_held, _ in self.held])
        values = np.concatenate([of_held for _, of_held in self.held])
        self.held = []
        for names, members in self.parts:
            is_in = self.contexts["context"].is_in(members.implode()).to_numpy()
            self.tables.append(self._of_part(names, is_in, sites, values if is_in.all() else values[:, is_in]))

    def _of_part(
        self, names: tuple[str | None, str | None], is_in: np.ndarray, sites: pl.DataFrame, values: np.ndarray
    ) -> pl.DataFrame:
        """Return the statistics of some sites over the contexts of a group, or over all."""
        group, group_value = names
        contexts, family = self.contexts.filter(is_in), sites.select(["view", "cloud", "estimator"])
        scores = {score: contexts[score].cast(pl.Float64).fill_null(float("nan")).to_numpy() for score in SCORES}
        covariates = contexts.select(pl.col("token", "token_start").fill_null(0)).to_numpy().T.astype(float)
        sources = self.sources[is_in] if group is None else np.zeros(is_in.sum())
        kinds = family.unique(maintain_order=True).with_row_index("family")
        families = family.join(kinds, on=family.columns, how="left", maintain_order="left")["family"].to_numpy()
        family_sizes = np.full(len(sites), self.sizes[group])
        found = uncertainty.of_rows(
            values, contexts["document"].to_numpy(), scores, covariates, sources, family_sizes, families
        )
        for test, largest in found.maxima.items():
            for place, key in enumerate(kinds.drop("family").iter_rows()):
                # Rows of the same contexts have maxima of the families up to the last that they are of.
                statistics = [of_rows[place] for of_rows in largest if place < len(of_rows)]
                _gather(self.maxima, (test, group, *key), statistics)
        names_of_part = {"group": pl.lit(group, pl.String), "group_value": pl.lit(group_value, pl.String)}
        return sites.with_columns(
            **names_of_part, **{name: pl.Series(column) for name, column in found.columns.items()}
        )


def _gather(maxima: Maxima, key: tuple, statistics: list[np.ndarray]) -> None:
    """Take in the largest statistics of some rows of a family; of fewer permutations, where some rows have fewer."""
    known = [maxima[key]] if key in maxima else []
    every = [largest for largest in (*known, *statistics) if len(largest)]
    if every:
        n = min(map(len, every))
        maxima[key] = np.max([largest[:n] for largest in every], axis=0)


def _sources(contexts: pl.DataFrame, groups: list[pl.DataFrame]) -> np.ndarray:
    """Return the number of each context's value of the first key of `group_by`, 0 where there is none."""
    if not groups:
        return np.zeros(len(contexts))
    values = contexts.join(groups[0], on="context", how="left", maintain_order="left")["group_value"]
    return values.rank("dense").fill_null(0).to_numpy()


def _table(ids: pl.DataFrame, contexts: pl.Series) -> tuple[pl.DataFrame, np.ndarray]:
    """Return the sites of a run, and the estimate of each and each context, NaN where it is not ok."""
    value = pl.when(pl.col("status") == "ok").then("value").otherwise(float("nan"))
    found = ids.group_by(SITE, maintain_order=True).agg("context", value)
    columns = pl.DataFrame({"context": contexts}).with_row_index()
    at = found["context"].explode().to_frame().join(columns, on="context", how="left", maintain_order="left")["index"]
    values = np.full((len(found), len(contexts)), np.nan)
    values[np.repeat(np.arange(len(found)), found["context"].list.len()), at] = found["value"].explode()
    return found.select(SITE), values


def _interval() -> pl.Expr:
    """Return what kind of interval a number of documents allows."""
    n = pl.col("n_documents")
    is_few, is_resampled = n < uncertainty.LEAST_DOCUMENTS, n >= uncertainty.LEAST_RESAMPLED
    kind = pl.when(is_few).then(pl.lit("too_few_documents")).when(is_resampled).then(pl.lit("bootstrap"))
    return kind.otherwise(pl.lit("t")).alias("interval")


def _equivalents(summary: pl.DataFrame) -> list[pl.Series]:
    """Return the dimensions of simple distributions whose clouds give the means of rows; null where there is none."""
    columns = {f"value_{name}_equivalent": [] for name in DISTRIBUTIONS}
    statuses = []
    for mean, n_points, estimator in summary.select("mean", "n_used", "estimator").iter_rows():
        found = [
            (None, None) if mean is None else equivalent(mean, n_points, estimator, name) for name in DISTRIBUTIONS
        ]
        statuses.append(found[DISTRIBUTIONS.index("gaussian")][1])
        for values, (value, _) in zip(columns.values(), found, strict=True):
            values.append(value)
    made = [pl.Series(name, values, pl.Float64).fill_nan(None) for name, values in columns.items()]
    rejected = _rejected(summary)
    status = pl.Series("equivalent_status", statuses, pl.String)
    is_rejected = rejected.str.contains("gaussian") & (status == "ok")
    status = pl.select(pl.when(is_rejected.fill_null(False)).then(pl.lit(REJECTED)).otherwise(status)).to_series()
    return [*made, status.alias("equivalent_status"), rejected]


def _rejected(summary: pl.DataFrame) -> pl.Series:
    """Return which distributions the estimators of each row's cloud do not agree about, null where of none."""
    cloud = [*RUN_AXES, *GROUP, *(key for key in SITE if key != "estimator")]
    bounded = summary.select(
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
    words = [
        pl.when(pl.col(name).max().over(cloud) > MAX_RATIO * pl.col(name).min().over(cloud)).then(pl.lit(name))
        for name in DISTRIBUTIONS
    ]
    listed = bounded.select(pl.concat_str(words, separator=", ", ignore_nulls=True).alias("equivalents_rejected"))
    return listed.to_series().replace("", None)


def _adjusted(rows: pl.DataFrame, maxima: Maxima) -> pl.DataFrame:
    """Return the rows of a family with what their p-values are worth among all of it."""
    tests = [*SCORES, *(f"partial_{score}" for score in SCORES)]
    of_family = [
        expression
        for test in tests
        for expression in (
            _false_discovery(f"p_{test}").over(FAMILY).alias(f"q_{test}"),
            (pl.col(f"p_{test}_floor") * pl.col(f"p_{test}").count().over(FAMILY)).clip(upper_bound=1),
        )
    ]
    rows = rows.with_columns(of_family).rename({f"p_{test}_floor": f"q_{test}_floor" for test in tests})
    return rows.with_columns(_family_wise(rows, test, maxima) for test in tests)


def _false_discovery(name: str) -> pl.Expr:
    """Return the p-values of a family, adjusted for the false discovery rate."""
    p = pl.col(name).fill_null(float("nan"))
    return p.map_batches(lambda of: pl.Series(uncertainty.adjusted(of.to_numpy())), pl.Float64).fill_nan(None)


def _family_wise(rows: pl.DataFrame, test: str, maxima: Maxima) -> pl.Series:
    """Return the p-values of rows, adjusted for the family-wise error rate."""
    statistic = test if test.startswith("partial_") else f"spearman_{test}"
    ordered = {key: np.sort(largest) for key, largest in maxima.items() if key[0] == test}
    values = []
    for *key, p, rho, n in rows.select(*FAMILY, f"p_{test}", statistic, f"n_{test}").iter_rows():
        largest = None if p is None else ordered[test, *key]
        values.append(None if p is None else p_of_maximum(rho, n, largest))
    return pl.Series(f"p_{test}_maxt", values, pl.Float64)


def _counted(statuses: Mapping[str, list[str]]) -> str:
    """Return `degenerate: 3, nonfinite: 1` for a list of statuses."""
    return ", ".join(f"{word}: {statuses['_failures'].count(word)}" for word in statuses["_words"])


def _views(manifest: Mapping[str, Any]) -> pl.DataFrame:
    """Return the settings of each view of a run."""
    views = manifest["settings"]["views"]
    return pl.DataFrame([{"view": name, **view} for name, view in views.items()])
