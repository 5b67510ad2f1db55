"""Figures of means against layer that compare estimators, views, lengths of contexts, or controls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import altair as alt
import polars as pl

from id_scaling.neighbors.cloud_kinds import CONTEXT
from id_scaling.neighbors.views import View
from id_scaling.plots import style
from id_scaling.plots.catalog import SAME

# Settings that sort views: views that scale points come after views that select points.
LATER = ["null_cloud", "preprocess", "exclude_window"]


def estimator_agreement(summary: pl.DataFrame) -> style.Specification:
    """Return the figure of all estimators, one panel per module and one row per run, for a few runs."""
    table = style.of_all_contexts(style.leading(summary))
    runs, left_out = style.shown(style.unique(table, "run"), style.MOST_RUNS, "runs")
    table = _inside(table).filter(pl.col("run").is_in(runs))

    def titles(row_table: pl.DataFrame) -> tuple[str, str]:
        return row_table["run"][0], f"view {row_table['view'][0]!r}{left_out}"

    return style.configured(_by_layer(table, "run", "module", "estimator", titles))


def id_by_view(summary: pl.DataFrame) -> style.Specification:
    """Return the figure of all views of the leading run, one panel per estimator and one row per module."""
    table = _inside(style.of_all_contexts(summary, *SAME, "decimate", "draw"))
    run = style.leading_run(table)
    lead = style.leading(summary)["view"][0]
    draws = pl.col("draw").n_unique().over(*SAME, "decimate")
    note = style.one_of(table)
    table = table.filter(**run).with_columns(name="view", name_draws=draws)
    table = table.with_columns(view=_without_draw()).drop("name_draws")
    # Similar views are next to each other: first those that select points, then those that scale them.
    ordered = table.sort(pl.col("view") != lead, *(pl.col(key) != _plain(key) for key in LATER), maintain_order=True)
    views, size = style.unique(ordered, "view"), style.MOST_LINES - 1
    starts = range(1, max(len(views), 2), size)
    drawn = []
    for number, start in enumerate(starts, 1):
        part_rows = ordered.filter(pl.col("view").is_in([lead, *views[start : start + size]]))
        part = f", part {number} of {len(starts)}" if len(starts) > 1 else ""
        drawn.append(_of_run(part_rows, "view", note + part, detail="name"))
    return style.configured(style.beside("vconcat", drawn, color="independent", strokeDash="independent"))


def _plain(key: str) -> str | int:
    """Return the default of a setting of views."""
    return getattr(View(), key)


def _without_draw() -> pl.Expr:
    """Return the name of a view without the number of its draw, so that all its draws have one color."""
    number = pl.format("-{}", "draw")
    stem = pl.col("view").str.strip_suffix(number)
    is_draw = pl.col("view").str.ends_with(number) & (pl.col("name_draws") > 1)
    return pl.when(is_draw).then(stem).otherwise("view")


def id_by_control(summary: pl.DataFrame) -> style.Specification:
    """Return the figure of all controls of the leading run, one panel per estimator and one row per module."""
    return style.configured(_of_axis(style.leading(summary), "control"))


def id_by_length(summary: pl.DataFrame) -> style.Specification:
    """Return the figure of all lengths of the leading run, one panel per estimator and one row per module.

    If a view draws few enough points, a second part below compares the lengths with equally many points.
    """
    summary = summary.sort("ctx_len", maintain_order=True)
    lead = style.leading(summary)
    drawn, equal_points = [_of_axis(lead, "ctx_len")], _of_as_many_points(summary, lead)
    if len(equal_points):
        note = f"; view {equal_points['view'][0]!r}, {equal_points['decimate'][0]} points at every length"
        drawn.append(_of_axis(equal_points, "ctx_len", note))
    return style.configured(style.beside("vconcat", drawn))


def _of_as_many_points(summary: pl.DataFrame, lead: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of the leading run under the view that draws most points and else equals the leading view.

    Every context must have enough points for it. A view with more failures than the leading view is skipped, because
    its means would be over other contexts. There are no rows if no view is left, or if the leading view draws points
    itself.
    """
    if lead["decimate"][0] > 0:
        return lead.clear()
    run = style.leading_run(_inside(style.of_all_contexts(lead)))
    same = {**{key: lead[key][0] for key in SAME}, **{key: run[key] for key in run if key != "ctx_len"}}
    run_rows = summary.filter(pl.col("group").is_null(), level=CONTEXT, **same)
    n_failed = run_rows.filter(view=lead["view"][0])["n_failed"].sum()
    drawing = run_rows.filter(pl.col("decimate") > 0).sort("decimate", descending=True, maintain_order=True)
    for view in style.unique(drawing, "view"):
        view_rows = drawing.filter(view=view)
        if view_rows["n_failed"].sum() <= n_failed:
            return view_rows
    return drawing.clear()


def _of_axis(rows: pl.DataFrame, axis: str, note: str = "") -> style.Specification:
    """Return one line per value of a run axis, for the runs that differ from the leading run only on this axis."""
    table = _inside(style.of_all_contexts(rows))
    same = {key: value for key, value in style.leading_run(table).items() if key != axis}
    table = table.with_columns(style.called(rows, list(same)).alias("run"))
    return _of_run(table.filter(**same), axis, style.one_of(table) + note)


def _inside(table: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of sites inside the blocks, or all rows if there are none."""
    return table.filter(pl.col("module").is_in(style.modules_of(table)))


def _of_run(run_rows: pl.DataFrame, by: str, more: str, detail: str | None = None) -> style.Specification:
    """Return one row of panels per module of a run, with one line per value of a column."""

    def titles(row_table: pl.DataFrame) -> tuple[str, str]:
        return row_table["module"][0], f"{row_table['run'][0]}, mean over contexts{more}"

    return _by_layer(run_rows, "module", "estimator", by, titles, detail)


def _by_layer(
    table: pl.DataFrame,
    rows: str,
    columns: str,
    by: str,
    titles: Callable[[pl.DataFrame], tuple[str, str]],
    detail: str | None = None,
) -> style.Specification:
    """Return a grid of panels of means against layer, with one line per value of a column."""
    values, left_out = style.shown(style.unique(table, by), style.MOST_LINES, f"{by}s")
    table = table.filter(pl.col(by).is_in(values))

    def titles_with_note(row_table: pl.DataFrame) -> tuple[str, str]:
        title, subtitle = titles(row_table)
        return title, subtitle + left_out

    panel = partial(_panel, by=by, values=values, detail=detail)
    return style.grid(table, rows, columns, panel, titles_with_note)


def _panel(table: pl.DataFrame, by: str, values: list[str], detail: str | None) -> alt.LayerChart:
    """Return lines and points against layer, one per value of a column."""
    base = alt.Chart(table).encode(
        x=alt.X("layer:Q", title="layer", axis=style.layer_axis(table), scale=alt.Scale(nice=False)),
        y=alt.Y("mean:Q", title=style.ID, scale=alt.Scale(zero=True)),
        **style.coloured(by, values),
        **({"detail": f"{detail}:N"} if detail else {}),
    )
    tooltip = style.tooltip(by, "layer", "mean", "sd", "n_contexts", "n_failed")
    return base.mark_line(strokeWidth=1.5) + base.mark_point(filled=True, size=20).encode(tooltip=tooltip)
