"""Figures of a session: intrinsic dimension against layer, as HTML, SVG and PNG from one specification."""

from __future__ import annotations

from pathlib import Path

import altair as alt
import polars as pl

from id_scaling.files import writing
from id_scaling.logs import LOG
from id_scaling.sealed import read_table
from id_scaling.views import leading_view

# Okabe and Ito (2008): distinguishable by colour-blind eyes; shapes tell the modules apart in grey.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
PANEL_WIDTH, PANEL_HEIGHT = 300, 220


def plot_id_by_layer(summary_path: Path, outputs: list[Path]) -> None:
    """Draw the ID of the first view by layer, one panel per run and estimator, and write it in each format.

    A control is a run: its panels stand beneath those of the plain text, with axes of the same height.

    Parameters
    ----------
    summary_path : Path
        The session's `summary.parquet`.
    outputs : list of Path
        Files to write, `.html`, `.svg` or `.png`.
    """
    chart = id_by_layer(read_table(summary_path)[0])
    for output in outputs:
        with writing(output) as aside:
            options = {"inline": True} if output.suffix == ".html" else {"ppi": 150}
            chart.save(str(aside), format=output.suffix[1:], **(options if output.suffix != ".svg" else {}))
    LOG.info("drew %s", ", ".join(map(str, outputs)))


def id_by_layer(summary: pl.DataFrame) -> alt.Chart:
    """Return the figure: mean over all contexts with a band of one standard deviation between contexts.

    Sites outside the blocks stand beside them, `emb` before the first layer and the others after the last.
    """
    view = leading_view(summary["view"].unique(maintain_order=True).to_list())
    keys = ["model", "checkpoint", "dataset", "subset", "control"]
    is_shown = (pl.col("view") == view) & pl.col("mean").is_not_null() & pl.col("group").is_null()
    table = summary.filter(is_shown).with_columns(
        pl.concat_str(keys, separator=" · ").alias("run"),
        (pl.col("mean") - pl.col("sd")).alias("low"),
        (pl.col("mean") + pl.col("sd")).alias("high"),
        _abscissa().alias("x"),
    )
    highest = pl.coalesce("high", "mean").max().over(*keys[:-1], "estimator")
    table = table.with_columns(highest.alias("highest"))
    rows = [_row(table, run, view) for run in table["run"].unique(maintain_order=True)]
    return alt.vconcat(*rows).configure_view(stroke=None).configure_axis(grid=False, labelFontSize=11, titleFontSize=12)


def _abscissa() -> pl.Expr:
    """Return the horizontal place of a site."""
    last = pl.col("layer").max().over("model")
    outside = pl.when(pl.col("module") == "emb").then(-1).otherwise(pl.coalesce(last, 0) + 1)
    return pl.coalesce("layer", outside).cast(pl.Int64)


def _row(table: pl.DataFrame, run: str, view: str) -> alt.HConcatChart:
    """Return the panels of one run, one per estimator."""
    of_run = table.filter(pl.col("run") == run)
    panels = [
        _panel(of_run.filter(pl.col("estimator") == name), name)
        for name in of_run["estimator"].unique(maintain_order=True)
    ]
    contexts = of_run["n_contexts"].max()
    title = alt.TitleParams(run, subtitle=f"view {view!r}, mean ± 1 sd over {contexts} contexts", anchor="start")
    return alt.hconcat(*panels, title=title).resolve_scale(color="shared", shape="shared")


def _panel(table: pl.DataFrame, estimator: str) -> alt.LayerChart:
    """Return one panel: lines and bands inside the blocks, points outside them."""
    modules = table["module"].unique(maintain_order=True).to_list()
    color = alt.Color("module:N", scale=alt.Scale(domain=modules, range=PALETTE[: len(modules)]), title="module")
    domain = [table["x"].min() - 0.5, table["x"].max() + 0.5]
    x = alt.X("x:Q", title="layer", scale=alt.Scale(domain=domain, nice=False), axis=_layer_axis(table))
    scale = alt.Scale(zero=True, domainMax=table["highest"].max(), nice=True)
    y = alt.Y("mean:Q", title="intrinsic dimension", scale=scale)
    base = alt.Chart(table, title=estimator, width=PANEL_WIDTH, height=PANEL_HEIGHT)
    inside = alt.datum.layer != None  # noqa: E711  (a Vega expression, not Python)
    band = (
        base.transform_filter(inside)
        .mark_area(opacity=0.15)
        .encode(x=x, y=alt.Y("low:Q", title="intrinsic dimension"), y2="high:Q", color=color)
    )
    line = base.transform_filter(inside).mark_line(strokeWidth=1.5).encode(x=x, y=y, color=color)
    tooltip = ["module", "layer", "mean", "sd", "n_contexts", "n_failed"]
    points = base.mark_point(filled=True, size=30).encode(
        x=x, y=y, color=color, shape=alt.Shape("module:N", scale=alt.Scale(domain=modules)), tooltip=tooltip
    )
    return band + line + points


def _layer_axis(table: pl.DataFrame) -> alt.Axis:
    """Return an axis that marks layers alone, not the places beside them."""
    n_layers = (table["layer"].max() or 0) + 1
    step = max(1, n_layers // 8)
    return alt.Axis(values=list(range(0, n_layers, step)), format="d")
