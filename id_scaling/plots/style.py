"""Shared parts of all figures: colors, sizes, grids of panels, and the choice of the runs to show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import altair as alt
import polars as pl

from id_scaling.neighbors.cloud_kinds import CONTEXT
from id_scaling.neighbors.views import leading_view
from id_scaling.results.text_table import mixture
from id_scaling.storage.layout import AXES

T = TypeVar("T")
# A figure, or a part of one, as a Vega-Lite specification with named data sets at its top.
Specification = dict[str, Any]
Panel = alt.LayerChart | alt.FacetChart

# Okabe and Ito (2008): safe for color-blind readers. Shapes and dashes distinguish lines without color.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
DASHES = [[1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [4, 4], [1, 3], [10, 4]]
PANEL_WIDTH, PANEL_HEIGHT = 300, 220
# With more, a figure is unreadable.
MOST_RUNS, MOST_LAYERS, MOST_LINES, MOST_POINTS = 8, 5, 7, 2000
# Columns of the summary that figures use.
SHOWN = ["view", "layer", "module", "estimator", "mean", "sd", "n_contexts", "n_failed", "n_documents", "mean_loss"]
SHOWN += ["mean_entropy", "spearman_loss", "spearman_loss_low", "spearman_loss_high", "partial_loss", "p_loss"]
SHOWN += ["q_loss", "n_parameters", "n_embedding_parameters", "training_step", "dtype", "device"]
PRECISION = ("dtype", "device")
RUN = list(AXES)
# What tells the texts of runs apart.
TEXT = [axis for axis in RUN if axis not in ("model", "checkpoint")]
ID = "intrinsic dimension"
CONFIG = {
    "view": {"continuousWidth": 300, "continuousHeight": 300, "stroke": None},
    "axis": {"grid": False, "labelFontSize": 11, "labelOverlap": True, "labelSeparation": 6, "titleFontSize": 12},
    "legend": {"labelLimit": 300, "symbolOpacity": 1, "symbolStrokeWidth": 2},
}


def spread(values: Sequence[T], most: int) -> list[T]:
    """Return up to `most` values, evenly spaced, including the first and the last."""
    n = min(most, len(values))
    return [values[round(step * (len(values) - 1) / max(n - 1, 1))] for step in range(n)]


def unique(table: pl.DataFrame, column: str) -> list:
    """Return the different values of a column in order of appearance."""
    return table[column].unique(maintain_order=True).to_list()


def of_all_contexts(summary: pl.DataFrame, *others: str) -> pl.DataFrame:
    """Return the rows over all contexts that have a mean, with the name of the run, and the other columns.

    Raises
    ------
    NothingToShowError
        No row has a mean.
    """
    is_shown = pl.col("group").is_null() & pl.col("mean").is_not_null()
    run = called(summary, RUN).alias("run")
    if not (summary["level"] == CONTEXT).any():
        raise NothingToShowError("no cloud is of one context")
    table = summary.filter(is_shown, level=CONTEXT).select(*RUN, *SHOWN, *others, run)
    if not len(table):
        raise NothingToShowError("no estimate has a mean")
    return table


def called(summary: pl.DataFrame, keys: Sequence[str]) -> pl.Expr:
    """Return a name from the given axes of a run; it includes the length only if the summary has several lengths."""
    has_lengths = summary["ctx_len"].n_unique() > 1
    tokens = pl.format("{} tokens", "ctx_len")
    names = [tokens if key == "ctx_len" else pl.col(key) for key in keys if has_lengths or key != "ctx_len"]
    return pl.concat_str(names, separator=" · ")


class NothingToShowError(Exception):
    """A figure has no data; the message says why."""


def leading(summary: pl.DataFrame) -> pl.DataFrame:
    """Return the rows over contexts under the leading view, see `leading_name`."""
    return summary.filter(view=leading_name(summary), level=CONTEXT)


def leading_name(summary: pl.DataFrame) -> str:
    """Return the name of the leading view of the whole summary, even if it has no estimates."""
    return leading_view(dict(summary.select("view", "null_cloud").iter_rows()))


def of_last_checkpoints(table: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of each model's last checkpoint, for one control, shard, and length.

    The control is plain text if present, else the first. The last checkpoint has the largest step; one with an unknown
    step, like `main`, comes after all others. The length is the largest.
    """
    if not len(table):
        raise NothingToShowError("no estimate has a mean")
    controls = unique(table, "control")
    table = table.filter(control="none" if "none" in controls else controls[0])
    table = table.filter(ctx_len=table["ctx_len"].max())
    table = table.filter(**{key: table[key][0] for key in ("dataset", "subset")})
    last = table.sort("training_step", nulls_last=True, maintain_order=True)
    last = last.group_by("model", maintain_order=True).agg(pl.col("checkpoint").last())
    return table.join(last, on=["model", "checkpoint"], how="semi", maintain_order="left")


def leading_run(table: pl.DataFrame) -> dict[str, Any]:
    """Return the axes of the leading run: the first model at its last checkpoint, see `of_last_checkpoints`."""
    return dict(zip(RUN, of_last_checkpoints(table).select(RUN).row(0), strict=True))


def one_of(table: pl.DataFrame) -> str:
    """Return a note that a figure shows one of the runs of a table; empty if there is only one."""
    n_runs = table["run"].n_unique()
    return f"; 1 of {n_runs} runs" if n_runs > 1 else ""


def finite(table: pl.DataFrame) -> pl.DataFrame:
    """Return a table with null for numbers that are not finite, so that no figure shows them."""
    floats = pl.selectors.float()
    return table.with_columns(pl.when(floats.is_finite()).then(floats))


def shown(values: Sequence[str], most: int, what: str) -> tuple[list[str], str]:
    """Return up to `most` values, and a note on the omitted values; empty if there are none."""
    kept = spread(values, most)
    return kept, "" if len(kept) == len(values) else f"; {len(kept)} of {len(values)} {what}, evenly spread"


def modules_of(table: pl.DataFrame) -> list[str]:
    """Return the modules inside the blocks, or all modules if there are none."""
    return unique(table.filter(pl.col("layer").is_not_null()), "module") or unique(table, "module")


def coloured(column: str, values: Sequence[str]) -> dict[str, Any]:
    """Return encodings that distinguish values by color and by dashes."""
    palette, dashes = PALETTE[: len(values)], DASHES[: len(values)]
    scale, dash = alt.Scale(domain=values, range=palette), alt.Scale(domain=values, range=dashes)
    return {
        "color": alt.Color(f"{column}:N", scale=scale, title=column, legend=alt.Legend(symbolType="stroke")),
        "strokeDash": alt.StrokeDash(f"{column}:N", scale=dash, title=column),
    }


def tooltip(*columns: str) -> list[alt.Tooltip]:
    """Return the tooltip of a point; explicit objects are faster, because altair parses plain names slowly."""
    return [alt.Tooltip(column) for column in columns]


def grid(
    table: pl.DataFrame,
    rows: str,
    columns: str,
    panel: Callable[[pl.DataFrame], Panel],
    titles: Callable[[pl.DataFrame], tuple[str, str | list[str]]],
    **scales: str,
) -> Specification:
    """Return a grid with one titled row per value of `rows`, and in it one panel per value of `columns`.

    `scales` names channels that are `independent` in each panel.

    Raises
    ------
    NothingToShowError
        The table has no rows.
    """
    drawn, table = [], finite(table)
    if not len(table):
        raise NothingToShowError("no estimate has a mean")
    for row in unique(table, rows):
        row_table = table.filter(pl.col(rows) == row)
        title, subtitle = titles(row_table)
        panels = [
            specified(panel(row_table.filter(pl.col(columns) == column)), str(column))
            for column in unique(row_table, columns)
        ]
        titled = {"title": {"text": title, "anchor": "start", "subtitle": subtitle}}
        drawn.append(beside("hconcat", panels, **scales) | titled)
    return beside("vconcat", drawn)


def specified(panel: Panel, title: str) -> Specification:
    """Return the specification of a panel; altair would copy an object with its data for every enclosing grid."""
    specification = panel.to_dict(validate=False)
    del specification["$schema"], specification["config"]
    return {**specification, "title": title, "width": PANEL_WIDTH, "height": PANEL_HEIGHT}


def beside(kind: str, parts: Sequence[Specification], **scales: str) -> Specification:
    """Return parts next to (`hconcat`) or below (`vconcat`) each other; `scales` as in `grid`."""
    datasets = {name: rows for part in parts for name, rows in part.pop("datasets", {}).items()}
    resolved = {"resolve": {"scale": scales}} if scales else {}
    return {kind: list(parts), **resolved, "datasets": datasets}


def with_warning(specification: Specification) -> Specification:
    """Return a figure, with a warning as its title if its rows have several dtypes or devices."""
    rows = [row for rows in specification.get("datasets", {}).values() for row in rows]
    words = mixture({key: {row[key] for row in rows if row.get(key)} for key in PRECISION})
    if not words:
        return specification
    return {**specification, "title": {"text": f"⚠ {words}", "anchor": "start", "color": PALETTE[1]}}


def configured(specification: Specification) -> Specification:
    """Return a figure with the shared style."""
    return {"$schema": alt.SCHEMA_URL, "config": CONFIG, **specification}


def nothing(words: str) -> Specification:
    """Return a figure that says why there is no data."""
    chart = alt.Chart(pl.DataFrame({"nothing": [f"Nothing to show: {words}"]}))
    chart = chart.mark_text(align="left", x=0, fontSize=13).encode(text="nothing:N")
    return configured({**chart.to_dict(validate=False), "width": PANEL_WIDTH, "height": 40, "config": CONFIG})


def bounds(column: pl.Series) -> tuple[float, float]:
    """Return the smallest and the largest number of a column that is not empty."""
    return cast("tuple[float, float]", (column.min(), column.max()))


def layer_axis(table: pl.DataFrame) -> alt.Axis:
    """Return an axis that labels only layers, not the positions of sites outside the blocks."""
    layers = sorted(table["layer"].drop_nulls().unique())
    n_layers = max(layers, default=0) + 1
    step = max(1, n_layers // 8)
    return alt.Axis(values=layers if len(layers) <= 8 else list(range(0, n_layers, step)), format="d")
