"""How far the numbers of a session carry, as the columns of its summary say it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from id_scaling.neighbors.cloud_kinds import CONTEXT
from id_scaling.plots import style
from id_scaling.results.text_table import mixture
from id_scaling.results.uncertainty import LEAST_DOCUMENTS, LEAST_RESAMPLED

# A mean below this share of its Gaussian equivalent is compressed: as few points of a Gaussian give a tenth less too.
COMPRESSED = 0.9
# Gaussian equivalents of one cloud by several estimators agree to a few per cent where it is Gaussian.
DISAGREEING = 1.5
# Shares of nearest neighbors of the same token, or nearby, that are worth a doubt.
MANY = 0.2
# Of a flat cloud, whose local dimensions are equal but for noise, the top tenth makes 0.15 of the mean with k = 20, and
# 0.25 with k = 5: what is above is a tail that carries the mean.
MOST_OF_TOP = 0.3
SIGNIFICANT = 0.05
MOST_SITES = 8

# Whether it is a doubt; None, where it is a fact that is neither good nor bad. And what it says.
Remark = tuple[bool | None, str]


def remarks(summary: pl.DataFrame) -> list[Remark]:
    """Return the remarks on the rows of the leading view, of all contexts."""
    of_run = list(_failures_of_run(summary.filter(level="run")))
    of_all = summary.filter(pl.col("group").is_null(), level=CONTEXT)
    if not len(of_all):
        return [
            (True, "No cloud is of one context, so no figure shows an ID: see `clouds` of the configuration."),
            *of_run,
        ]
    rows = style.leading(of_all)
    of_lead = [*_failures(rows), *_losses(rows), _documents(rows), _bias(), *_tails(rows), _sizes(rows)]
    of_lead += [*_disagreements(rows), *_neighbors(rows)]
    of_session = [_versions(rows), *_precision(summary)]
    return [*of_lead, *_failures_elsewhere(of_all), *of_run, *_findings(rows), *of_session]


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
        n_expected = part.filter(_is_of_equal_tokens())["n_failed"].sum()
        why = f"; {n_expected:,} are expected, at `emb`, where equal tokens are equal points" if n_expected else ""
        sentence = f"View {view}: {n_failed:,} of {n_clouds:,} clouds have no estimate; these are in no mean{why}."
        yield (True if n_failed > n_expected else None), sentence


def _is_of_equal_tokens() -> pl.Expr:
    """Return whether a row is one whose clouds are degenerate by definition: equal points are kept, as at `emb`."""
    is_degenerate = pl.col("statuses").str.contains("^degenerate: [0-9]+$")
    return (pl.col("module") == "emb") & (pl.col("duplicates") == "keep") & is_degenerate


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
    (least, _), kinds = style.bounds(rows["n_documents"]), ", ".join(sorted(style.unique(rows, "interval")))
    few = f"; under {LEAST_DOCUMENTS} there are no intervals, under {LEAST_RESAMPLED} none of correlations"
    is_few = least < LEAST_RESAMPLED
    return is_few, f"Rows are of {least} documents at least; intervals: {kinds}{few if is_few else ''}."


def _bias() -> Remark:
    """Return what intervals and standard errors do not hold."""
    return None, (
        "`stderr` and 95 % intervals say how a number would change with other points, or other documents. They hold "
        "no bias: on 24 benchmark manifolds of known dimension, 1000 points each, the true one was within two `stderr` "
        "of `twoNN_f10` 13 times, and of `mle` once."
    )


def _tails(rows: pl.DataFrame) -> Iterator[Remark]:
    """Yield of each mean over points in which sites few points carry it, where that is known."""
    if "top_share" not in rows.columns:  # a summary of an older version
        return
    for estimator in style.unique(rows.filter(pl.col("top_share").is_not_null()), "estimator"):
        part = rows.filter(pl.col("top_share").is_not_null(), estimator=estimator)
        carried = part.filter(pl.col("top_share") > MOST_OF_TOP).sort("top_share", descending=True, maintain_order=True)
        sentence = (
            f"{estimator}: in {len(carried)} of {len(part)} rows the tenth of points with the largest local dimensions "
            f"makes more than {MOST_OF_TOP:.0%} of the mean"
        )
        instead = ": a few points carry it, so trust `mle_harmonic` or `mle_median` more"
        yield len(carried) > 0, f"{sentence}{instead}: {_sites(carried)}." if len(carried) else f"{sentence}."


def _sites(rows: pl.DataFrame) -> str:
    """Return sites with their shares, the first of many."""
    shown = [f"{_site(row)} {row['top_share']:.0%}" for row in rows.head(MOST_SITES).iter_rows(named=True)]
    n_more = len(rows) - len(shown)
    return ", ".join(shown) + (f" and {n_more} more (column `top_share`)" if n_more else "")


def _site(row: dict[str, Any]) -> str:
    """Return the module and the layer of a row in words."""
    return row["module"] if row["layer"] is None else f"{row['module']} of layer {row['layer']}"


def _sizes(rows: pl.DataFrame) -> Remark:
    """Return how many means are lower than the dimension of a Gaussian that gives them from as many points."""
    known = rows.filter(pl.col("mean").is_not_null() & pl.col("value_gaussian_equivalent").is_not_null())
    n_low = known.filter(pl.col("mean") < COMPRESSED * pl.col("value_gaussian_equivalent")).height
    is_unknown = pl.col("value_gaussian_equivalent").is_null() & (pl.col("equivalent_status") != "not_calibrated")
    n_unknown = rows.filter(pl.col("mean").is_not_null(), is_unknown).height
    if not len(known) and not n_unknown:
        return None, "No estimator has a Gaussian equivalent, so nothing tells whether means are low for their points."
    what = f"{n_low} of {len(known)} means are below {COMPRESSED} of their Gaussian equivalent"
    why = ": from so few points they are too low, the more the larger they are, and so are differences between them"
    more = f"; {n_unknown} more are outside what was simulated" if n_unknown else ""
    return n_low > 0, f"{what}{why if n_low else ''}{more}."


def _disagreements(rows: pl.DataFrame) -> Iterator[Remark]:
    """Yield at how many sites estimators have Gaussian equivalents that are too far apart for a Gaussian cloud."""
    equivalent = pl.col("value_gaussian_equivalent")
    known = rows.filter(equivalent.is_not_null()).group_by(*style.RUN, "layer", "module", maintain_order=True)
    is_apart = equivalent.max() / equivalent.min() > DISAGREEING
    if "equivalents_rejected" in rows.columns:  # which a summary of an older version lacks; it knows those out of range
        is_apart = pl.col("equivalents_rejected").str.contains("gaussian").fill_null(False).any()
    sites = known.agg(is_apart.alias("is_apart"), pl.len()).filter((pl.col("len") > 1) | pl.col("is_apart"))
    if len(sites):
        n_apart = sites["is_apart"].sum()
        sentence = (
            f"At {n_apart} of {len(sites)} sites the Gaussian equivalents of one cloud by several estimators differ "
        )
        why = ": such clouds are not Gaussian, and no equivalent is their dimension" if n_apart else ""
        yield n_apart > 0, f"{sentence}by a factor above {DISAGREEING}{why}."


def _neighbors(rows: pl.DataFrame) -> Iterator[Remark]:
    """Yield what nearest neighbors are made of."""
    for column, words, tells in (
        ("nn_same_token", "are the same token", "The view `one_per_token` leaves these out."),
        ("nn_within_5", "are at most 5 positions away", "A view with `exclude_window` leaves these out."),
    ):
        known = rows.filter(pl.col(column).is_not_null())
        if len(known):
            largest = known.sort(column).row(-1, named=True)
            is_doubt = largest[column] > MANY
            sentence = f"At most {largest[column]:.0%} of nearest neighbors {words} ({_site(largest)})."
            yield is_doubt, f"{sentence} {tells}" if is_doubt else sentence


def _findings(rows: pl.DataFrame) -> Iterator[Remark]:
    """Yield how many correlations are left once p-values are adjusted, and whether one by itself could be."""
    for name in ("loss", "entropy", "partial_loss", "partial_entropy"):
        known = rows.filter(pl.col(f"q_{name}").is_not_null())
        if not len(known):
            continue
        n_left, score = (known[f"q_{name}"] < SIGNIFICANT).sum(), name.removeprefix("partial_")
        what = f"{'partial ' if name != score else ''}correlations with {score}"
        sentence = f"{n_left} of {len(known)} {what} have q < {SIGNIFICANT} (Benjamini and Hochberg 1995)"
        if f"p_{name}_maxt" in known.columns:  # a summary of an older version has neither of these
            n_left = (known[f"p_{name}_maxt"] < SIGNIFICANT).sum()
            sentence += f", {n_left} have p < {SIGNIFICANT} by max-T (Westfall and Young 1993)"
        floors = known[f"q_{name}_floor"].drop_nulls() if f"q_{name}_floor" in known.columns else pl.Series([])
        n_hopeless = (floors >= SIGNIFICANT).sum() if len(floors) else 0
        if n_hopeless:
            sentence += (
                f"; documents allow so few permutations that in {n_hopeless} rows a single effect, however large, has "
                f"q ≥ {style.bounds(floors)[1]:.2g} at best"
            )
        yield (True if n_hopeless else None), f"{sentence}."


def _versions(rows: pl.DataFrame) -> Remark:
    """Return whether all rows were made by the same versions of libraries."""
    n_versions = rows["versions"].n_unique()
    one = "All rows were made by the same versions of libraries."
    return n_versions > 1, one if n_versions == 1 else f"Rows were made by {n_versions} sets of versions of libraries."


def _precision(summary: pl.DataFrame) -> Iterator[Remark]:
    """Yield that rows are of several dtypes or devices, where they are."""
    if words := mixture({kind: set(summary[kind]) for kind in style.PRECISION}):
        yield True, f"Rows are of {words}."
