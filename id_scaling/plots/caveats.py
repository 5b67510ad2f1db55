"""Remarks in the report on how far to trust the numbers of a session, from the columns of its summary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from id_scaling.neighbors.cloud_kinds import CONTEXT
from id_scaling.plots import style
from id_scaling.results.text_table import mixture
from id_scaling.results.uncertainty import LEAST_DOCUMENTS, LEAST_RESAMPLED

# A mean below this share of its Gaussian equivalent is biased low, as it would be for a Gaussian of as many points.
COMPRESSED = 0.9
# For a Gaussian cloud, the Gaussian equivalents of several estimators agree to a few percent.
DISAGREEING = 1.5
# Larger shares of nearest neighbors that are the same token, or at nearby positions, are a doubt.
MANY = 0.2
# In a flat cloud, local dimensions are equal up to noise, and the top tenth contributes 0.15 of the mean with k = 20,
# and 0.25 with k = 5. With a larger share, a tail dominates the mean.
MOST_OF_TOP = 0.3
SIGNIFICANT = 0.05
MOST_SITES = 8

# Whether the remark is a doubt (None: a neutral fact), and its sentence.
Remark = tuple[bool | None, str]


def remarks(summary: pl.DataFrame) -> list[Remark]:
    """Return the remarks on a session, mostly on the rows of all contexts under the leading view."""
    run_remarks = list(_failures_of_run(summary.filter(level="run")))
    context_rows = summary.filter(pl.col("group").is_null(), level=CONTEXT)
    if not len(context_rows):
        return [
            (
                True,
                "No cloud is of one context, so no figure shows an ID; add `context` to `clouds` in the configuration.",
            ),
            *run_remarks,
        ]
    rows = style.leading(context_rows)
    lead_remarks = [*_failures(rows), *_losses(rows), _documents(rows), _bias(), *_tails(rows), _sizes(rows)]
    lead_remarks += [*_disagreements(rows), *_neighbors(rows)]
    session_remarks = [_versions(rows), *_precision(summary)]
    return [*lead_remarks, *_failures_elsewhere(context_rows), *run_remarks, *_findings(rows), *session_remarks]


def _failures(rows: pl.DataFrame) -> Iterator[Remark]:
    """Yield the number of clouds without an estimate for each estimator, and why."""
    for estimator in style.unique(rows, "estimator"):
        part = rows.filter(estimator=estimator)
        n_failed, n_clouds = part["n_failed"].sum(), part["n_contexts"].sum()
        counted = ", ".join(filter(None, part["statuses"])).split(", ")
        words = ", ".join(sorted({word.split(":")[0] for word in counted}))
        why = f": {words}; means leave them out" if n_failed else ""
        yield n_failed > 0, f"{estimator}: {n_failed:,} of {n_clouds:,} clouds have no estimate{why}."


def _failures_elsewhere(context_rows: pl.DataFrame) -> Iterator[Remark]:
    """Yield the number of clouds without an estimate for each other view that has some."""
    lead = style.leading(context_rows)["view"][0]
    for view in style.unique(context_rows.filter((pl.col("view") != lead) & (pl.col("n_failed") > 0)), "view"):
        part = context_rows.filter(view=view)
        n_failed, n_clouds = part["n_failed"].sum(), part["n_contexts"].sum()
        n_expected = part.filter(_is_of_equal_tokens())["n_failed"].sum()
        why = f"; {n_expected:,} are expected, at `emb`, where equal tokens are equal points" if n_expected else ""
        sentence = f"View {view}: {n_failed:,} of {n_clouds:,} clouds have no estimate; means leave them out{why}."
        yield (True if n_failed > n_expected else None), sentence


def _is_of_equal_tokens() -> pl.Expr:
    """Return whether the clouds of a row must be degenerate: at `emb`, with equal points kept."""
    is_degenerate = pl.col("statuses").str.contains("^degenerate: [0-9]+$")
    return (pl.col("module") == "emb") & (pl.col("duplicates") == "keep") & is_degenerate


def _failures_of_run(rows: pl.DataFrame) -> Iterator[Remark]:
    """Yield the number of clouds of all contexts without an estimate, for each kind that has some."""
    for cloud in style.unique(rows.filter(pl.col("n_failed") > 0), "cloud"):
        part = rows.filter(cloud=cloud)
        words = ", ".join(sorted({word.split(":")[0] for word in part["statuses"] if word}))
        yield True, f"Cloud `{cloud}`: {part['n_failed'].sum():,} of {len(part):,} have no estimate: {words}."


def _losses(rows: pl.DataFrame) -> Iterator[Remark]:
    """Yield a remark if losses are missing or not finite."""
    runs = rows.filter(pl.col("mean_loss").is_null() | ~pl.col("mean_loss").is_finite()).select(style.RUN).unique()
    if len(runs):
        yield True, f"{len(runs)} runs have tokens whose loss is not a number, so figures do not show their mean loss."


def _documents(rows: pl.DataFrame) -> Remark:
    """Return the least number of documents, and which intervals it allows."""
    (least, _), kinds = style.bounds(rows["n_documents"]), ", ".join(sorted(style.unique(rows, "interval")))
    few = f"; intervals of means need {LEAST_DOCUMENTS} documents, those of correlations {LEAST_RESAMPLED}"
    is_few = least < LEAST_RESAMPLED
    return is_few, f"Each row has at least {least} documents; intervals: {kinds}{few if is_few else ''}."


def _bias() -> Remark:
    """Return what intervals and standard errors leave out: bias."""
    return None, (
        "`stderr` says how an estimate would change with other points, and 95 % intervals how a mean would change "
        "with other documents. They do not include bias: on 24 benchmark manifolds of known dimension, with 1000 "
        "points each, the true dimension was within two `stderr` of `twoNN_f10` on 13, and of `mle` on one."
    )


def _tails(rows: pl.DataFrame) -> Iterator[Remark]:
    """Yield the sites at which few points dominate a mean of local dimensions, for each such estimator."""
    if "top_share" not in rows.columns:  # a summary of an older version
        return
    for estimator in style.unique(rows.filter(pl.col("top_share").is_not_null()), "estimator"):
        part = rows.filter(pl.col("top_share").is_not_null(), estimator=estimator)
        dominated = part.filter(pl.col("top_share") > MOST_OF_TOP).sort(
            "top_share", descending=True, maintain_order=True
        )
        sentence = (
            f"{estimator}: in {len(dominated)} of {len(part)} rows, the tenth of points with the largest local "
            f"dimensions contributes more than {MOST_OF_TOP:.0%} of the mean"
        )
        instead = ", so a few points dominate it; `mle_harmonic` or `mle_median` is more reliable there"
        yield len(dominated) > 0, f"{sentence}{instead}: {_sites(dominated)}." if len(dominated) else f"{sentence}."


def _sites(rows: pl.DataFrame) -> str:
    """Return up to MOST_SITES sites with their shares, in words."""
    shown = [f"{_site(row)} {row['top_share']:.0%}" for row in rows.head(MOST_SITES).iter_rows(named=True)]
    n_more = len(rows) - len(shown)
    return ", ".join(shown) + (f" and {n_more} more (column `top_share`)" if n_more else "")


def _site(row: dict[str, Any]) -> str:
    """Return the site of a row in words."""
    return row["module"] if row["layer"] is None else f"{row['module']} of layer {row['layer']}"


def _sizes(rows: pl.DataFrame) -> Remark:
    """Return the number of means that are clearly below their Gaussian equivalent."""
    known = rows.filter(pl.col("mean").is_not_null() & pl.col("value_gaussian_equivalent").is_not_null())
    n_low = known.filter(pl.col("mean") < COMPRESSED * pl.col("value_gaussian_equivalent")).height
    is_unknown = pl.col("value_gaussian_equivalent").is_null() & (pl.col("equivalent_status") != "not_calibrated")
    n_unknown = rows.filter(pl.col("mean").is_not_null(), is_unknown).height
    if not len(known) and not n_unknown:
        return None, "No estimator has a Gaussian equivalent, so the bias from few points is unknown."
    counts = f"{n_low} of {len(known)} means are below {COMPRESSED} of their Gaussian equivalent"
    why = ": from so few points, they are too low, larger means more so, and differences between them are too small"
    more = f"; {n_unknown} more are outside what was simulated" if n_unknown else ""
    return n_low > 0, f"{counts}{why if n_low else ''}{more}."


def _disagreements(rows: pl.DataFrame) -> Iterator[Remark]:
    """Yield the number of sites where Gaussian equivalents of the estimators disagree."""
    equivalent = pl.col("value_gaussian_equivalent")
    known = rows.filter(equivalent.is_not_null()).group_by(*style.RUN, "layer", "module", maintain_order=True)
    is_apart = equivalent.max() / equivalent.min() > DISAGREEING
    if "equivalents_rejected" in rows.columns:  # absent in older versions; covers equivalents out of range too
        is_apart = pl.col("equivalents_rejected").str.contains("gaussian").fill_null(False).any()
    sites = known.agg(is_apart.alias("is_apart"), pl.len()).filter((pl.col("len") > 1) | pl.col("is_apart"))
    if len(sites):
        n_apart = sites["is_apart"].sum()
        sentence = (
            f"At {n_apart} of {len(sites)} sites, the Gaussian equivalents of one cloud by several estimators differ "
        )
        why = ", so these clouds are not Gaussian, and no equivalent is their dimension" if n_apart else ""
        yield n_apart > 0, f"{sentence}by more than a factor of {DISAGREEING}{why}."


def _neighbors(rows: pl.DataFrame) -> Iterator[Remark]:
    """Yield how many nearest neighbors are the same token, or at a nearby position."""
    for column, words, remedy in (
        ("nn_same_token", "are the same token", "The view `one_per_token` leaves these out."),
        ("nn_within_5", "are at most 5 positions away", "A view with `exclude_window` leaves these out."),
    ):
        known = rows.filter(pl.col(column).is_not_null())
        if len(known):
            largest = known.sort(column).row(-1, named=True)
            is_doubt = largest[column] > MANY
            sentence = f"At most {largest[column]:.0%} of nearest neighbors {words} ({_site(largest)})."
            yield is_doubt, f"{sentence} {remedy}" if is_doubt else sentence


def _findings(rows: pl.DataFrame) -> Iterator[Remark]:
    """Yield the number of significant correlations after adjustment, and whether a single one could be significant."""
    for name in ("loss", "entropy", "partial_loss", "partial_entropy"):
        known = rows.filter(pl.col(f"q_{name}").is_not_null())
        if not len(known):
            continue
        n_significant, score = (known[f"q_{name}"] < SIGNIFICANT).sum(), name.removeprefix("partial_")
        kind = f"{'partial ' if name != score else ''}correlations with {score}"
        sentence = f"{n_significant} of {len(known)} {kind} have q < {SIGNIFICANT} (Benjamini and Hochberg 1995)"
        if f"p_{name}_maxt" in known.columns:  # absent in older versions
            n_significant = (known[f"p_{name}_maxt"] < SIGNIFICANT).sum()
            sentence += f", {n_significant} have p < {SIGNIFICANT} by max-T (Westfall and Young 1993)"
        floors = known[f"q_{name}_floor"].drop_nulls() if f"q_{name}_floor" in known.columns else pl.Series([])
        n_hopeless = (floors >= SIGNIFICANT).sum() if len(floors) else 0
        if n_hopeless:
            sentence += (
                f"; documents allow so few permutations that in {n_hopeless} rows a single effect, however large, has "
                f"q ≥ {style.bounds(floors)[1]:.2g} at best"
            )
        yield (True if n_hopeless else None), f"{sentence}."


def _versions(rows: pl.DataFrame) -> Remark:
    """Return whether all rows come from the same library versions."""
    n_versions = rows["versions"].n_unique()
    if n_versions == 1:
        return False, "All rows come from the same library versions."
    return True, f"Rows come from {n_versions} different sets of library versions."


def _precision(summary: pl.DataFrame) -> Iterator[Remark]:
    """Yield a remark if rows have several dtypes or devices."""
    if words := mixture({kind: set(summary[kind]) for kind in style.PRECISION}):
        yield True, f"Rows have {words}."
