"""The figure of the TwoNN fit for one context: the diagnostic plot of Facco et al. (2017)."""

from __future__ import annotations

from pathlib import Path

import altair as alt
import numpy as np
import polars as pl

from id_scaling.plots import style
from id_scaling.results.load import run_named
from id_scaling.storage.layer_reader import neighbors_at
from id_scaling.storage.layout import run_folder
from id_scaling.storage.records import read_record

# Percentage of points in the fit, like `twoNN_f10`, and maximal number of points shown per layer.
KEPT_PERCENT, MOST_POINTS = 90, 250


def twonn_fit(summary: pl.DataFrame, session: Path) -> style.Specification:
    """Return the figure of -log(1 - F) against log(r_2 / r_1) at a few layers of one context, with fitted lines.

    F is the share of points up to each point. The dimension by TwoNN is the slope of the line through the origin.
    """
    table = style.of_all_contexts(style.leading(summary))
    run, note = style.leading_run(table), style.one_of(table)
    table = table.filter(**run)
    module, view = style.modules_of(table)[0], table["view"][0]
    layers = style.spread(sorted(table.filter(module=module)["layer"].drop_nulls().unique()), style.MOST_LAYERS)
    folder = run_folder(session, run_named(session, run))
    manifest = read_record(folder / "manifest.json")
    if 2 not in manifest["ranks"]:
        raise style.NothingToShowError("the second neighbor is not stored")
    log_ratios = {
        layer: neighbors_at(folder, manifest, layer, module, view, range(1), (2,)).at(2)[0]
        for layer in layers or [None]
    }
    names = {"model": run["model"], "checkpoint": run["checkpoint"], "module": module}
    points = pl.concat(_of_layer(layer, logs) for layer, logs in log_ratios.items())
    points = points.with_columns(pl.lit(name).alias(key) for key, name in names.items())
    title = (
        table["run"][0],
        f"module {module!r}, view {view!r}, the first context, without the last tenth of its points{note}",
    )
    return style.configured(style.grid(points.with_columns(row=pl.lit("all")), "row", "layer", _panel, lambda _: title))


def _of_layer(layer: int | None, logs: np.ndarray) -> pl.DataFrame:
    """Return points of the fit at one layer, from the values of log(r_2 / r_1), and their line."""
    logs = np.sort(logs[~np.isnan(logs)])
    if np.isinf(logs).any():  # two points at distance zero: TwoNN has no estimate either
        logs = logs[:0]
    kept = logs[: len(logs) * KEPT_PERCENT // 100]
    rise = -np.log1p(-np.arange(1, len(kept) + 1) / max(len(logs), 1))
    slope = float(kept @ rise / (kept @ kept)) if len(kept) and kept @ kept > 0 else float("nan")
    shown = style.spread(range(len(kept)), MOST_POINTS)
    panel = "outside the blocks" if layer is None else f"layer {layer}"
    return pl.DataFrame(
        {
            "layer": [f"{panel}, slope {slope:.2f}"] * len(shown),
            "log_mu": kept[shown],
            "rise": rise[shown],
            "line": slope * kept[shown],
        }
    )


def _panel(table: pl.DataFrame) -> alt.LayerChart:
    """Return the points of one layer with their line."""
    base = alt.Chart(table).encode(x=alt.X("log_mu:Q", title="log µ, µ = r₂ / r₁"))
    points = base.mark_circle(size=12, opacity=0.6, color=style.PALETTE[0])
    line = base.mark_line(color=style.PALETTE[1], strokeWidth=1.5)
    return points.encode(y=alt.Y("rise:Q", title="−log(1 − F)")) + line.encode(y=alt.Y("line:Q", title="−log(1 − F)"))
