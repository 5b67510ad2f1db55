"""Figures of means against the scale of an estimator, and against the number of points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import altair as alt
import numpy as np
import polars as pl

from id_scaling.estimators import gride, mle, twonn
from id_scaling.estimators.apply import estimate_from_neighbors
from id_scaling.estimators.base import OK, Estimator
from id_scaling.neighbors.find import Neighbors
from id_scaling.plots import style
from id_scaling.plots.catalog import SAME
from id_scaling.results.load import run_named
from id_scaling.storage.layer_reader import neighbors_at
from id_scaling.storage.layout import run_folder
from id_scaling.storage.records import read_record

# Kinds of estimators, by their names without the scale, and the meaning of the scale.
SCALES = {
    "mle_harmonic_k": "neighbors k",
    "gride_n": "rank n, of n and 2n",
    "twoNN_f": "points discarded (%)",
    "mle_k": "neighbors k",
}
# With a smaller k, the variance of `mle` is infinite.
LEAST_K = 4
MOST_CONTEXTS, MOST_SCALES = 16, 32
OF_SCALE = {"layer": pl.Int64, "kind": pl.String, "scale": pl.Int64, "mean": pl.Float64, "sd": pl.Float64}
OF_SCALE |= {"n_contexts": pl.Int64}
LAYERS = alt.Color("layer:O", scale=alt.Scale(scheme="viridis"), title="layer")


def id_by_scale(summary: pl.DataFrame, session: Path) -> style.Specification:
    """Return the figure of ID against scale at a few layers of the leading run, one panel per kind of estimator.

    It computes every estimate that stored neighbors allow, for up to 16 contexts, whatever estimators the study lists.
    """
    table = _of_leading_run(style.of_all_contexts(style.leading(summary)))
    first = table.row(0, named=True)
    run = {key: first[key] for key in style.RUN}
    folder = run_folder(session, run_named(session, run))
    manifest = read_record(folder / "manifest.json")
    rows = range(0, manifest["n_contexts"], -(-manifest["n_contexts"] // MOST_CONTEXTS))
    sites = [(layer, first["module"], first["view"]) for layer in style.unique(table, "layer")]
    neighbors_by_site = {site: neighbors_at(folder, manifest, *site, rows, tuple(manifest["ranks"])) for site in sites}
    means = pl.concat(_by_scale(neighbors, layer) for (layer, *_), neighbors in neighbors_by_site.items())
    names = (pl.lit(first[key]).alias(key) for key in ("model", "checkpoint", "module", "run"))

    def titles(row_table: pl.DataFrame) -> tuple[str, str]:
        contexts = f"mean ± 1 sd over {style.bounds(row_table['n_contexts'])[1]} of {manifest['n_contexts']} contexts"
        n_layers = row_table["layer"].n_unique()
        subtitle = f"module {first['module']!r}, view {first['view']!r}, {contexts}, {n_layers} layers{first['others']}"
        return first["run"], subtitle

    return style.configured(style.grid(means.with_columns(names), "run", "kind", _against_scale, titles))


def _by_scale(neighbors: Neighbors, layer: int | None) -> pl.DataFrame:
    """Return mean and standard deviation at every scale of a kind, over the same contexts.

    These are the contexts with status `ok` at any scale of the kind. A scale is left out if one of them has no estimate
    there, because a mean over other contexts would look like a dependence on scale.
    """
    rows = []
    for kind, scaled_estimators in _stored(neighbors.ranks).items():
        estimates = [estimate_from_neighbors(estimator, neighbors) for _, estimator in scaled_estimators]
        is_ok = np.array([estimate.status == OK for estimate in estimates])
        is_shown = is_ok.any(axis=0)
        for (scale, _), estimate, is_estimated in zip(scaled_estimators, estimates, is_ok, strict=True):
            if is_shown.any() and is_estimated[is_shown].all():
                values = pl.Series(estimate.value[is_shown], dtype=pl.Float64)
                rows.append((layer, kind, scale, values.mean(), values.std(), len(values)))
    table = pl.DataFrame(rows, schema=OF_SCALE, orient="row")
    return table.with_columns(low=(pl.col("mean") - pl.col("sd")).clip(0), high=pl.col("mean") + pl.col("sd"))


def _stored(ranks: Sequence[int]) -> dict[str, list[tuple[int, Estimator]]]:
    """Return the estimators that need only stored ranks, with their scales, for each kind that has at least two."""
    # Imported modules, not names in the registry, so that figures are drawn again when one of them changes.
    k_stored = [k for k in ranks if k >= LEAST_K]
    kinds = {
        "mle_harmonic_k": [(k, mle.make(f"mle_harmonic_k{k}", "harmonic", k=str(k))) for k in k_stored],
        "gride_n": [(n, gride.make(f"gride_n{n}", str(n))) for n in ranks],
        "twoNN_f": [(percent, twonn.make(f"twoNN_f{percent}", str(percent))) for percent in range(0, 100, 10)],
        "mle_k": [(k, mle.make(f"mle_k{k}", k=str(k))) for k in k_stored],
    }
    stored = {
        kind: [scaled for scaled in scaled_estimators if set(scaled[1].ranks) <= set(ranks)]
        for kind, scaled_estimators in kinds.items()
    }
    return {
        kind: style.spread(scaled_estimators, MOST_SCALES)
        for kind, scaled_estimators in stored.items()
        if len(scaled_estimators) > 1
    }


def id_by_n_points(summary: pl.DataFrame) -> style.Specification:
    """Return the figure of ID against the number of points at a few layers, one panel per estimator, for one run."""
    table = _of_leading_run(style.of_all_contexts(summary, *SAME, "decimate", "draw", "n_used"))
    lead = style.leading(summary)
    same = [pl.col(key) == lead[key][0] for key in SAME]
    means = ["model", "checkpoint", *style.PRECISION, "run", "module", "estimator", "layer", "decimate", "others"]
    drawn = table.filter(*same).group_by(means, maintain_order=True).agg(pl.col("mean", "n_used").mean(), pl.len())
    return style.configured(style.grid(drawn, "run", "estimator", _against_points, _titles))


def _of_leading_run(table: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of the leading run and the first module at a few layers."""
    table = table.with_columns(others=pl.lit(style.one_of(table)))
    table = table.filter(**style.leading_run(table)).filter(module=style.modules_of(table)[0])
    layers = style.spread(sorted(table["layer"].drop_nulls().unique()), style.MOST_LAYERS)
    return table.filter(pl.col("layer").is_in(layers) | pl.col("layer").is_null())


def _titles(row_table: pl.DataFrame) -> tuple[str, str]:
    """Return title and subtitle of a row of panels."""
    n_layers, module, note = row_table["layer"].n_unique(), row_table["module"][0], row_table["others"][0]
    return row_table["run"][0], f"module {module!r}, mean over contexts, {n_layers} layers{note}"


def _against_scale(table: pl.DataFrame) -> alt.LayerChart:
    """Return lines against scale, one per layer."""
    kind = table["kind"][0]
    scale = alt.Scale(type="linear", zero=False) if kind == "twoNN_f" else alt.Scale(type="log", base=2, nice=False)
    x = alt.X("scale:Q", title=SCALES[kind], scale=scale, axis=alt.Axis(format="d"))
    y = alt.Y("low:Q", title=style.ID, scale=alt.Scale(zero=True))
    band = alt.Chart(table).mark_area(opacity=0.12).encode(x=x, y=y, y2="high:Q", color=LAYERS)
    return band + _lines(table, x, "n_contexts")


def _against_points(table: pl.DataFrame) -> alt.LayerChart:
    """Return lines against the number of points, one per layer."""
    scale = alt.Scale(type="log", base=2, nice=False)
    return _lines(table, alt.X("n_used:Q", title="points", scale=scale, axis=alt.Axis(format="d")))


def _lines(table: pl.DataFrame, x: alt.X, *more: str) -> alt.LayerChart:
    """Return lines and points, one set per layer."""
    base = alt.Chart(table).encode(
        x=x,
        y=alt.Y("mean:Q", title=style.ID, scale=alt.Scale(zero=True)),
        color=LAYERS,
        tooltip=style.tooltip("layer", "mean", x.shorthand.removesuffix(":Q"), *more),
    )
    return base.mark_line(strokeWidth=1.5) + base.mark_point(filled=True, size=20)
