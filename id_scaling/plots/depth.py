"""The first figure: ID against layer for each module."""

from __future__ import annotations

import altair as alt
import polars as pl

from id_scaling.neighbors.cloud_kinds import CONTEXT
from id_scaling.plots import style
from id_scaling.plots.catalog import SAME
from id_scaling.plots.style import ID, RUN


def id_by_layer(summary: pl.DataFrame) -> style.Specification:
    """Return the figure of means over contexts with a band of one standard deviation, one row per run, for a few runs.

    Each control is a run: its panels are below those of the plain text, with the same scale. Sites outside the blocks
    are next to them, `emb` before the first layer and the others after the last. The leading run has a second row, with
    one point per token, if there is such a view.
    """
    table = style.of_all_contexts(style.leading(summary))
    runs, left_out = style.shown(style.unique(table, "run"), style.MOST_RUNS, "runs")
    table = table.filter(pl.col("run").is_in(runs))
    table = pl.concat([table, _per_token(summary, table)]).with_columns(
        (pl.col("mean") - pl.col("sd")).clip(0).alias("low"),
        (pl.col("mean") + pl.col("sd")).alias("high"),
        _abscissa().alias("x"),
        row=pl.concat_str("run", "view", separator=" · "),
    )
    table = table.sort(pl.col("run").replace_strict(runs, range(len(runs))), maintain_order=True)
    table = table.with_columns(highest=pl.coalesce("high", "mean").max().over(*RUN[:-1], "estimator"))

    def titles(row_table: pl.DataFrame) -> tuple[str, str]:
        view, n_contexts = row_table["view"][0], style.bounds(row_table["n_contexts"] - row_table["n_failed"])[1]
        return row_table["run"][0], f"view {view!r}, mean ± 1 sd over {n_contexts} contexts{left_out}"

    return style.configured(style.grid(table, "row", "estimator", _panel, titles))


def _per_token(summary: pl.DataFrame, shown: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of the leading run among `shown`, under the first view with one point per token."""
    lead = style.leading(summary)
    same = [pl.col(key) == lead[key][0] for key in (*SAME, "decimate") if key != "duplicates"]
    is_per_token = (pl.col("duplicates") == "one_per_token") & (lead["duplicates"][0] != "one_per_token")
    views = style.unique(summary.filter(is_per_token, *same), "view")
    run = style.leading_run(shown)
    name = shown.filter(**run)["run"][0]
    rows = summary.filter(pl.col("view").is_in(views[:1]), pl.col("mean").is_not_null(), level=CONTEXT, **run)
    return style.of_all_contexts(rows).with_columns(run=pl.lit(name)) if len(rows) else shown.clear()


def _abscissa() -> pl.Expr:
    """Return the horizontal position of a site."""
    last = pl.col("layer").max().over("model")
    outside = pl.when(pl.col("module") == "emb").then(-1).otherwise(pl.coalesce(last, 0) + 1)
    return pl.coalesce("layer", outside).cast(pl.Int64)


def _panel(table: pl.DataFrame) -> alt.LayerChart:
    """Return one panel: lines and bands inside the blocks, points for all sites."""
    modules = style.unique(table, "module")
    colors = style.coloured("module", modules)
    first, last = style.bounds(table["x"])
    domain = [first - 0.5, last + 0.5]
    x = alt.X("x:Q", title="layer", scale=alt.Scale(domain=domain, nice=False), axis=style.layer_axis(table))
    # An explicit domain, because a filter of the report can remove all data inside the blocks.
    scale = alt.Scale(domain=[0, style.bounds(table["highest"])[1]], nice=True)
    y = alt.Y("mean:Q", title=ID, scale=scale)
    base = alt.Chart(table)
    inside = alt.datum.layer != None  # noqa: E711  (a Vega expression, not Python)
    band = (
        base.transform_filter(inside)
        .mark_area(opacity=0.15)
        .encode(x=x, y=alt.Y("low:Q", title=ID, scale=scale), y2="high:Q", color=colors["color"])
    )
    line = base.transform_filter(inside).mark_line(strokeWidth=1.5).encode(x=x, y=y, **colors)
    tooltip = style.tooltip("module", "layer", "mean", "sd", "n_contexts", "n_failed")
    shape = alt.Shape("module:N", scale=alt.Scale(domain=modules), title="module")
    points = base.mark_point(filled=True, size=30).encode(x=x, y=y, color=colors["color"], shape=shape, tooltip=tooltip)
    return band + line + points
