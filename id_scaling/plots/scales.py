"""Means against the scale at which an estimator looks, and against how many points it sees."""

from __future__ import annotations

import altair as alt
import polars as pl

from id_scaling.plots import style
from id_scaling.plots.catalogue import SAME, SCALED, SCALES


def id_by_scale(summary: pl.DataFrame) -> style.Specification:
    """Return the figure: a few layers against scale, a panel for each kind of estimator, of the leading run."""
    table = _of_leading_run(style.of_all_contexts(style.leading(summary)))
    named = table.with_columns(
        kind=pl.col("estimator").str.extract(SCALED.pattern, 1),
        scale=pl.col("estimator").str.extract(rf"^{SCALED.pattern}$", 2).cast(pl.Int64),
    ).filter(pl.col("scale").is_not_null())
    several = pl.col("scale").n_unique().over("kind") > 1
    return style.configured(style.grid(named.filter(several), "run", "kind", _against_scale, _titles))


def id_by_n_points(summary: pl.DataFrame) -> style.Specification:
    """Return the figure: a few layers against the number of points, a panel an estimator, of the leading run."""
    table = _of_leading_run(style.of_all_contexts(summary, *SAME, "decimate", "draw", "n_used"))
    lead = style.leading(summary)
    same = [pl.col(key) == lead[key][0] for key in SAME]
    means = ["model", "checkpoint", "run", "module", "estimator", "layer", "decimate", "others"]
    drawn = table.filter(*same).group_by(means, maintain_order=True).agg(pl.col("mean", "n_used").mean(), pl.len())
    return style.configured(style.grid(drawn, "run", "estimator", _against_points, _titles))


def _of_leading_run(table: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of the leading run and the first module, at a few layers."""
    table = table.with_columns(others=pl.lit(style.one_of(table)))
    table = table.filter(**style.leading_run(table)).filter(module=style.modules_of(table)[0])
    layers = style.spread(sorted(table["layer"].drop_nulls().unique()), style.MOST_LAYERS)
    return table.filter(pl.col("layer").is_in(layers) | pl.col("layer").is_null())


def _titles(of_row: pl.DataFrame) -> tuple[str, str]:
    """Return the title of a run's row."""
    n_layers, module, others = of_row["layer"].n_unique(), of_row["module"][0], of_row["others"][0]
    return of_row["run"][0], f"module {module!r}, mean over contexts, {n_layers} layers{others}"


def _against_scale(table: pl.DataFrame) -> alt.LayerChart:
    """Return lines against scale, one a layer."""
    kind = table["kind"][0]
    scale = alt.Scale(type="linear", zero=False) if kind == "twoNN_f" else alt.Scale(type="log", base=2, nice=False)
    return _lines(table, alt.X("scale:Q", title=SCALES[kind], scale=scale, axis=alt.Axis(format="d")))


def _against_points(table: pl.DataFrame) -> alt.LayerChart:
    """Return lines against the number of points, one a layer."""
    scale = alt.Scale(type="log", base=2, nice=False)
    return _lines(table, alt.X("n_used:Q", title="points", scale=scale, axis=alt.Axis(format="d")))


def _lines(table: pl.DataFrame, x: alt.X) -> alt.LayerChart:
    """Return lines and points, one a layer."""
    base = alt.Chart(table).encode(
        x=x,
        y=alt.Y("mean:Q", title=style.ID, scale=alt.Scale(zero=True)),
        color=alt.Color("layer:O", scale=alt.Scale(scheme="viridis"), title="layer"),
        tooltip=style.tooltip("layer", "mean", x.shorthand.removesuffix(":Q")),
    )
    return base.mark_line(strokeWidth=1.5) + base.mark_point(filled=True, size=20)
