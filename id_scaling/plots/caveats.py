"""How far the numbers of a session carry, as the columns of its summary say it."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from id_scaling.neighbors.cloud_kinds import CONTEXT
from id_scaling.plots import style
from id_scaling.results.uncertainty import LEAST_DOCUMENTS, LEAST_RESAMPLED

# Estimators that are too low where the dimension is large, as `id_scaling.results.equivalents` has it of them.
OF_DISTANCES = ("mle", "twoNN", "mind_ml", "gride")
# Above it estimates from about a thousand points are compressed, the more the larger they are.
COMPRESSED = 15
# Shares of nearest neighbors of the same token, or nearby, that are worth a doubt.
MANY = 0.2
SIGNIFICANT = 0.05

# Whether it is a doubt, and what it says.
Remark = tuple[bool, str]


def remarks(summary: pl.DataFrame) -> list[Remark]:
    """Return what is to be said of the rows of the leading view, of all contexts."""
    of_run = list(_failures_of_run(summary.filter(level="run")))
    of_all = summary.filter(pl.col("group").is_null(), level=CONTEXT)
    if not len(of_all):
        return [
            (True, "No cloud is of one context, so no figure shows an ID: see `clouds` of the configuration."),
            *of_run,
        ]
    rows = style.leading(of_all)
    of_lead = [*_failures(rows), *_losses(rows), _documents(rows), _sizes(rows), *_neighbors(rows)]
    return [*of_lead, *_failures_elsewhere(of_all), *of_run, *_findings(rows), _versions(rows)]


def _failures(rows: pl.DataFrame) -> Iterator[Remark]:
    """Yield of each estimator how many clouds have no estimate, and why."""
    for estimator in style.unique(rows, "estimator"):
        part = rows.filter(estimator=estimator)
        n_failed, n_clouds = part["n_failed"].sum(), part["n_contexts"].sum()
        counted = ", ".join(filter(None, part["statuses"])).split(", ")
        words = ", ".join(sorted({word.split(":")[0] for word in counted}))
        why = f": {words}; these are in no mean" if n_failed else ""
        yield n_failed > 0, f"{estimator}: {n_failed:,} of {n_clouds:,} clouds have no estimate{why}."


def _failures_elsewhere(of_all: pl.DataFrame) -> Iterator[Remark]:
    """Yield of each other view how many clouds have no estimate, where there are such."""
    lead = style.leading(of_all)["view"][0]
    for view in style.unique(of_all.filter((pl.col("view") != lead) & (pl.col("n_failed") > 0)), "view"):
        part = of_all.filter(view=view)
        n_failed, n_clouds = part["n_failed"].sum(), part["n_contexts"].sum()
        yield True, f"View {view}: {n_failed:,} of {n_clouds:,} clouds have no estimate; these are in no mean."


def _failures_of_run(rows: pl.DataFrame) -> Iterator[Remark]:
    """Yield of each kind of cloud of all contexts of a run how many have no estimate, where there are such."""
    for cloud in style.unique(rows.filter(pl.col("n_failed") > 0), "cloud"):
        part = rows.filter(cloud=cloud)
        words = ", ".join(sorted({word.split(":")[0] for word in part["statuses"] if word}))
        yield True, f"Cloud `{cloud}`: {part['n_failed'].sum():,} of {len(part):,} have no estimate: {words}."


def _losses(rows: pl.DataFrame) -> Iterator[Remark]:
    """Yield that losses are not finite, where they are not."""
    runs = rows.filter(pl.col("mean_loss").is_null() | ~pl.col("mean_loss").is_finite()).select(style.RUN).unique()
    if len(runs):
        yield True, f"{len(runs)} runs have tokens whose loss is no number, so no mean loss; their figures lack it."


def _documents(rows: pl.DataFrame) -> Remark:
    """Return how many documents there are, and what that allows."""
    least, kinds = rows["n_documents"].min(), ", ".join(sorted(style.unique(rows, "interval")))
    few = f"; under {LEAST_DOCUMENTS} there are no intervals, under {LEAST_RESAMPLED} none of correlations"
    is_few = least < LEAST_RESAMPLED
    return is_few, f"Rows are of {least} documents at least; intervals: {kinds}{few if is_few else ''}."


def _sizes(rows: pl.DataFrame) -> Remark:
    """Return how many means are so large that they are too low."""
    rows = rows.filter(pl.col("estimator").str.contains(f"^({'|'.join(OF_DISTANCES)})"))
    means, n_points = rows["mean"].drop_nulls(), rows["n_used"].min() or 0
    n_high = (means > COMPRESSED).sum()
    what = "such values are too low, the more the larger they are, and so are differences between them"
    why = f": from {n_points:.0f} points, the fewest of a row, {what}" if n_high else ""
    return n_high > 0, f"{n_high} of {len(means)} means of estimators from distances are above {COMPRESSED}{why}."


def _neighbors(rows: pl.DataFrame) -> Iterator[Remark]:
    """Yield what nearest neighbors are made of."""
    for column, words, tells in (
        ("nn_same_token", "are the same token", "The view `one_per_token` leaves these out."),
        ("nn_within_5", "stand at most 5 positions away", "A view with `exclude_window` leaves these out."),
    ):
        known = rows.filter(pl.col(column).is_not_null())
        if len(known):
            largest = known.sort(column).row(-1, named=True)
            layer, share = largest["layer"], largest[column]
            where = f"{largest['module']}{'' if layer is None else f' of layer {layer}'}"
            is_doubt = share > MANY
            said = f"At most {share:.0%} of nearest neighbors {words} ({where})."
            yield is_doubt, f"{said} {tells}" if is_doubt else said


def _findings(rows: pl.DataFrame) -> Iterator[Remark]:
    """Yield how many correlations are left once p-values are adjusted."""
    for name in ("loss", "entropy", "partial_loss", "partial_entropy"):
        known = rows[f"q_{name}"].drop_nulls()
        if len(known):
            n_left, score = (known < SIGNIFICANT).sum(), name.removeprefix("partial_")
            what = f"{'partial ' if name != score else ''}correlations with {score}"
            family = "Benjamini and Hochberg 1995, a family is all rows of a view and estimator"
            yield False, f"{n_left} of {len(known)} {what} have q < {SIGNIFICANT} ({family})."


def _versions(rows: pl.DataFrame) -> Remark:
    """Return whether all rows were made by the same versions of libraries."""
    n_versions = rows["versions"].n_unique()
    one = "All rows were made by the same versions of libraries."
    return n_versions > 1, one if n_versions == 1 else f"Rows were made by {n_versions} sets of versions of libraries."
