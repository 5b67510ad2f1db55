"""Means against layer, by what else they hang on: estimators, views, lengths of contexts, controls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import altair as alt
import polars as pl

from id_scaling.neighbors.cloud_kinds import CONTEXT
from id_scaling.neighbors.views import View
from id_scaling.plots import style
from id_scaling.plots.catalog import SAME

# Settings by which views are put in order, those that scale points after those that choose them.
LATER = ["null_cloud", "preprocess", "exclude_window"]


def estimator_agreement(summary: pl.DataFrame) -> style.Specification:
    """Return the figure: all estimators in one panel a module, a row for each of a few runs."""
    table = style.of_all_contexts(style.leading(summary))
    runs, left_out = style.shown(style.unique(table, "run"), style.MOST_RUNS, "runs")
    table = _inside(table).filter(pl.col("run").is_in(runs))

    def titles(of_row: pl.DataFrame) -> tuple[str, str]:
        return of_row["run"][0], f"view {of_row['view'][0]!r}{left_out}"

    return style.configured(_by_layer(table, "run", "module", "estimator", titles))


def id_by_view(summary: pl.DataFrame) -> style.Specification:
    """Return the figure: all views in one panel an estimator, a row for each module, of the leading run."""
    table = _inside(style.of_all_contexts(summary, *SAME, "decimate", "draw"))
    run = style.leading_run(table)
    lead = style.leading(summary)["view"][0]
    draws = pl.col("draw").n_unique().over(*SAME, "decimate")
    others = style.one_of(table)
    table = table.filter(**run).with_columns(name="view", name_draws=draws)
    table = table.with_columns(view=_without_draw()).drop("name_draws")
    # Like beside like: first those that choose points, then those that scale them.
    near = table.sort(pl.col("view") != lead, *(pl.col(key) != _plain(key) for key in LATER), maintain_order=True)
    views, size = style.unique(near, "view"), style.MOST_LINES - 1
    starts = range(1, max(len(views), 2), size)
    drawn = []
    for number, start in enumerate(starts, 1):
        of_part = near.filter(pl.col("view").is_in([lead, *views[start : start + size]]))
        part = f", part {number} of {len(starts)}" if len(starts) > 1 else ""
        drawn.append(_of_run(of_part, "view", others + part, detail="name"))
    return style.configured(style.beside("vconcat", drawn, color="independent", strokeDash="independent"))


def _plain(key: str) -> str | int:
    """Return what a view has of a key that it does not give."""
    return getattr(View(), key)


def _without_draw() -> pl.Expr:
    """Return what a view is called without the number of its draw: draws of one view are lines of one colour."""
    number = pl.format("-{}", "draw")
    stem = pl.col("view").str.strip_suffix(number)
    is_draw = pl.col("view").str.ends_with(number) & (pl.col("name_draws") > 1)
    return pl.when(is_draw).then(stem).otherwise("view")


def id_by_control(summary: pl.DataFrame) -> style.Specification:
    """Return the figure: all controls in one panel an estimator, a row for each module, of the leading run's."""
    return style.configured(_of_axis(style.leading(summary), "control"))


def id_by_length(summary: pl.DataFrame) -> style.Specification:
    """Return the figure: all lengths in one panel an estimator, a row for each module, of the leading run's.

    Beneath stands the same of as many points at every length, where a view draws so few.
    """
    summary = summary.sort("ctx_len", maintain_order=True)
    lead = style.leading(summary)
    drawn, few = [_of_axis(lead, "ctx_len")], _of_as_many_points(summary, lead)
    if len(few):
        said = f"; view {few['view'][0]!r}, {few['decimate'][0]} points at every length"
        drawn.append(_of_axis(few, "ctx_len", said))
    return style.configured(style.beside("vconcat", drawn))


def _of_as_many_points(summary: pl.DataFrame, lead: pl.DataFrame) -> pl.DataFrame:
    """Return the leading run's rows of the view that draws most, and differs from the leading one in that alone.

    Contexts have to have as many points as it draws: a view is left out that fails where the leading one does not, as
    its means would be of other contexts. There are no rows where none is left, or where the leading one draws itself.
    """
    if lead["decimate"][0] > 0:
        return lead.clear()
    run = style.leading_run(_inside(style.of_all_contexts(lead)))
    same = {**{key: lead[key][0] for key in SAME}, **{key: run[key] for key in run if key != "ctx_len"}}
    of_run = summary.filter(pl.col("group").is_null(), level=CONTEXT, **same)
    n_failed = of_run.filter(view=lead["view"][0])["n_failed"].sum()
    drawn = of_run.filter(pl.col("decimate") > 0).sort("decimate", descending=True, maintain_order=True)
    for view in style.unique(drawn, "view"):
        of_view = drawn.filter(view=view)
        if of_view["n_failed"].sum() <= n_failed:
            return of_view
    return drawn.clear()


def _of_axis(rows: pl.DataFrame, axis: str, more: str = "") -> style.Specification:
    """Return a line for each value of an axis of runs, of those that are the leading run but for it."""
    table = _inside(style.of_all_contexts(rows))
    same = {key: value for key, value in style.leading_run(table).items() if key != axis}
    table = table.with_columns(style.called(rows, list(same)).alias("run"))
    return _of_run(table.filter(**same), axis, style.one_of(table) + more)


def _inside(table: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of sites inside the blocks; all where there are none."""
    return table.filter(pl.col("module").is_in(style.modules_of(table)))


def _of_run(of_run: pl.DataFrame, by: str, more: str, detail: str | None = None) -> style.Specification:
    """Return a row for each module of one run, with a line for each value of a column."""

    def titles(of_row: pl.DataFrame) -> tuple[str, str]:
        return of_row["module"][0], f"{of_row['run'][0]}, mean over contexts{more}"

    return _by_layer(of_run, "module", "estimator", by, titles, detail)


def _by_layer(
    table: pl.DataFrame,
    rows: str,
    columns: str,
    by: str,
    titles: Callable[[pl.DataFrame], tuple[str, str]],
    detail: str | None = None,
) -> style.Specification:
    """Return a grid of panels of means against layer, with a line for each value of a column."""
    values, left_out = style.shown(style.unique(table, by), style.MOST_LINES, f"{by}s")
    table = table.filter(pl.col(by).is_in(values))

    def said(of_row: pl.DataFrame) -> tuple[str, str]:
        title, subtitle = titles(of_row)
        return title, subtitle + left_out

    panel = partial(_panel, by=by, values=values, detail=detail)
    return style.grid(table, rows, columns, panel, said)


def _panel(table: pl.DataFrame, by: str, values: list[str], detail: str | None) -> alt.LayerChart:
    """Return lines and points against layer, one for each value of a column."""
    base = alt.Chart(table).encode(
        x=alt.X("layer:Q", title="layer", axis=style.layer_axis(table), scale=alt.Scale(nice=False)),
        y=alt.Y("mean:Q", title=style.ID, scale=alt.Scale(zero=True)),
        **style.coloured(by, values),
        **({"detail": f"{detail}:N"} if detail else {}),
    )
    tooltip = style.tooltip(by, "layer", "mean", "sd", "n_contexts", "n_failed")
    return base.mark_line(strokeWidth=1.5) + base.mark_point(filled=True, size=20).encode(tooltip=tooltip)
