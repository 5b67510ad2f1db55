"""Figures of ID against loss, and of loss along a context."""

from __future__ import annotations

from pathlib import Path

import altair as alt
import polars as pl

from id_scaling.plots import style
from id_scaling.plots.style import RUN
from id_scaling.results.load import load_contexts, load_tokens

# Positions are averaged over an eighth of an octave.
PARTS_OF_OCTAVE = 8
OF_POINT = ["model", "checkpoint", "module", "estimator", "layer", "document_id", "chunk"]
OF_POINT += ["loss", "entropy", "value", "stderr"]


def id_against_loss(summary: pl.DataFrame, session: Path) -> style.Specification:
    """Return the figure of contexts at the layer with the strongest correlation, and of the correlation by layer."""
    table = style.of_all_contexts(style.leading(summary))
    run, note = style.leading_run(table), style.one_of(table)
    table = table.filter(**run).filter(pl.col("module").is_in(style.modules_of(table)))
    module, view, name = style.modules_of(table)[0], table["view"][0], table["run"][0]
    scatter = []
    for estimator in style.unique(table.filter(module=module), "estimator"):
        strongest = _strongest(table.filter(estimator=estimator, module=module))
        contexts = load_contexts(session, **run, module=module, estimator=estimator)
        points = contexts.filter(pl.col("layer").eq_missing(strongest["layer"]), status="ok", view=view)
        panel = f"{estimator}, {_where(strongest)}{_correlation(strongest)}"
        kept, left_out = style.shown(points["context"].to_list(), style.MOST_POINTS, "contexts")
        points = points.filter(pl.col("context").is_in(kept)).select(*OF_POINT)
        scatter.append(points.with_columns(panel=pl.lit(panel + left_out), row=pl.lit("all")))
    title = name, f"module {module!r}, view {view!r}, one point per context{note}"
    drawn = [style.grid(pl.concat(scatter), "row", "panel", _scatter, lambda _: title)]
    correlated = table.filter(pl.col("spearman_loss").is_not_null(), pl.col("layer").is_not_null())
    if len(correlated):
        correlated_rows = correlated.with_columns(row=pl.lit("all"))
        correlation_title = "Spearman's correlation of ID and loss by layer", _documents(correlated)
        drawn.append(style.grid(correlated_rows, "row", "estimator", _correlations, lambda _: correlation_title))
    return style.configured(style.beside("vconcat", drawn))


def loss_by_position(summary: pl.DataFrame, session: Path) -> style.Specification:
    """Return the figure of mean loss and entropy at each position, one line per run, for a few runs."""
    table = style.of_all_contexts(summary)
    runs, left_out = style.shown(style.unique(table, "run"), style.MOST_LINES, "runs")
    means = []
    for run in runs:
        axes = dict(zip(RUN, table.filter(run=run).select(RUN).row(0), strict=True))
        tokens = load_tokens(session, **axes).filter(pl.col("position") > 0)
        binned = tokens.group_by(_octave().alias("octave")).agg(
            pl.col("position").mean(), pl.col("loss", "entropy").cast(pl.Float64).mean()
        )
        run_row = table.filter(run=run).row(0, named=True)
        names = {key: run_row[key] for key in ("run", "model", "checkpoint", *style.PRECISION)}
        binned = binned.sort("octave").drop("octave")
        means.append(binned.with_columns(pl.lit(name).alias(key) for key, name in names.items()))
    index = ["run", "model", "checkpoint", *style.PRECISION, "position"]
    scores = pl.concat(means).unpivot(["loss", "entropy"], index=index, variable_name="score")
    scores = scores.with_columns(row=pl.lit("all"))
    title = "Loss and entropy by position", f"mean over contexts{left_out}"
    return style.configured(style.grid(scores, "row", "score", _by_position, lambda _: title))


def _octave() -> pl.Expr:
    """Return the part of an octave that contains a position."""
    return (pl.col("position").log(2) * PARTS_OF_OCTAVE).floor()


def _strongest(table: pl.DataFrame) -> dict:
    """Return the row with the strongest correlation with the loss, or the middle row if no correlation is known."""
    known = table.filter(pl.col("spearman_loss").is_not_nan() & pl.col("spearman_loss").is_not_null())
    chosen = known.sort(pl.col("spearman_loss").abs()).tail(1) if len(known) else table[[len(table) // 2]]
    return chosen.row(0, named=True)


def _where(row: dict) -> str:
    """Return the site of a row in words."""
    return "outside the blocks" if row["layer"] is None else f"layer {row['layer']}"


def _correlation(row: dict) -> str:
    """Return the correlation of a row with the loss in words, with a note that it is the largest."""
    return "" if row["spearman_loss"] is None else f" (largest |ρ|), ρ = {row['spearman_loss']:.2f}"


def _documents(table: pl.DataFrame) -> str:
    """Return the number of documents behind the correlations, in words."""
    least, most = style.bounds(table["n_documents"])
    return f"{least} documents" if least == most else f"{least} to {most} documents"


def _scatter(table: pl.DataFrame) -> style.Panel:
    """Return contexts as points, with their least-squares line."""
    base = alt.Chart(table).encode(
        x=alt.X("loss:Q", title="loss (nats/token)", scale=alt.Scale(zero=False)),
        y=alt.Y("value:Q", title=style.ID, scale=alt.Scale(zero=False)),
    )
    tooltip = style.tooltip("document_id", "chunk", "loss", "entropy", "value", "stderr")
    points = base.mark_circle(size=25, opacity=0.6, color=style.PALETTE[0]).encode(tooltip=tooltip)
    return points + base.transform_regression("loss", "value").mark_line(color=style.PALETTE[1], strokeWidth=1.5)


def _correlations(table: pl.DataFrame) -> style.Panel:
    """Return correlations by layer with their intervals, one line per module."""
    x = alt.X("layer:Q", title="layer", axis=style.layer_axis(table), scale=alt.Scale(nice=False))
    scale = alt.Scale(domain=[-1, 1])
    colors = style.coloured("module", style.unique(table, "module"))
    base = alt.Chart(table)
    band = (
        base.transform_filter("isValid(datum.spearman_loss_low)")
        .mark_area(opacity=0.15)
        .encode(
            x=x,
            y=alt.Y("spearman_loss_low:Q", scale=scale, title="Spearman's ρ"),
            y2="spearman_loss_high:Q",
            color=colors["color"],
        )
    )
    line = base.mark_line(point=True).encode(
        x=x,
        y=alt.Y("spearman_loss:Q", scale=scale, title="Spearman's ρ"),
        **colors,
        tooltip=style.tooltip("module", "layer", "spearman_loss", "partial_loss", "p_loss", "q_loss"),
    )
    zero = alt.Chart(pl.DataFrame({"zero": [0]})).mark_rule(color="#888").encode(y="zero:Q")
    # Vega warns about an area without data.
    return zero + band + line if table["spearman_loss_low"].count() else zero + line


def _by_position(table: pl.DataFrame) -> style.Panel:
    """Return a score against position, one line per run."""
    base = alt.Chart(table).encode(
        x=alt.X("position:Q", title="position (tokens)", scale=alt.Scale(type="log", nice=False)),
        y=alt.Y("value:Q", title=f"{table['score'][0]} (nats/token)", scale=alt.Scale(zero=True)),
        **style.coloured("run", style.unique(table, "run")),
    )
    return alt.layer(base.mark_line(strokeWidth=1).encode(tooltip=style.tooltip("run", "position", "value")))
