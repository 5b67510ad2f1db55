"""The table of intrinsic dimensions of one run, module and estimator: one row per layer, view and cloud.

Reads the store alone: neighbors where the estimator needs no more, saved clouds where it does. A few
contexts are in memory at a time. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import polars as pl

from id_scaling.children import ending_children
from id_scaling.estimators import get_estimator
from id_scaling.estimators.base import Estimator, estimate_from_neighbors, estimate_from_points
from id_scaling.layers import read_neighbors, reading, verified
from id_scaling.logs import LOG
from id_scaling.neighbors import Neighbors
from id_scaling.sealed import read_record, write_table
from id_scaling.statistics import participation_ratio, participation_ratio_corrected
from id_scaling.transforms import transform
from id_scaling.views import View

CONTEXTS_AT_ONCE = 32

SCHEMA = {
    "view": pl.String,
    "cloud": pl.String,
    "context": pl.Int64,
    "layer": pl.Int64,
    "module": pl.String,
    "estimator": pl.String,
    "value": pl.Float64,
    "stderr": pl.Float64,
    "status": pl.String,
    "n_points": pl.Int64,
    "n_distinct": pl.Int64,
    "n_nonfinite": pl.Int64,
    "n_used": pl.Int64,
    "median_r1": pl.Float64,
    "median_norm": pl.Float64,
    "participation_ratio": pl.Float64,
    "participation_ratio_corrected": pl.Float64,
    "mean_cosine": pl.Float64,
    "nn_same_token": pl.Float64,
    "nn_within_5": pl.Float64,
    "nn_overlap": pl.Float64,
}


def estimate_run(
    manifest_path: Path, module: str, name: str, settings: Mapping[str, Any], output: Path, n_threads: int
) -> None:
    """Estimate every cloud of one module of a run by one estimator and write the table.

    Raises
    ------
    StoreError
        A layer file is missing, is not the one the manifest names, or fails its checksums.
    """
    manifest = read_record(manifest_path)
    estimator = get_estimator(name)
    blocks = list(_blocks(manifest_path.parent, manifest, module, settings["views"]))
    # Threads share what is read; estimators of points have a process of their own for each thread.
    with ending_children():
        tables = joblib.Parallel(n_jobs=n_threads, prefer="threads")(
            joblib.delayed(_estimate_block)(estimator, manifest, settings, *block) for block in blocks
        )
    table = pl.concat(tables)
    facts = {
        "settings": dict(settings),
        "manifest": manifest["digest"],
        "versions": {key: version(key) for key in ("numpy", "polars", "scikit-dimension", "id_scaling")},
    }
    write_table(output, table, facts)
    n_failed = table.filter(pl.col("status") != "ok").height
    LOG.info(
        "%s of %s: %d clouds, %d not ok, median %.3f",
        name,
        module,
        len(table),
        n_failed,
        table.filter(pl.col("status") == "ok")["value"].median() or np.nan,
    )


def _blocks(folder: Path, manifest: Mapping[str, Any], module: str, views: list[str]):
    """Yield (file, module, layer, view, contexts) for every block of clouds of a module."""
    for key, layer, _ in manifest["sites"]:
        if key == module:
            path = verified(folder, manifest, layer)
            for view in views:
                for start in range(0, manifest["n_contexts"], CONTEXTS_AT_ONCE):
                    stop = min(start + CONTEXTS_AT_ONCE, manifest["n_contexts"])
                    yield path, module, layer, view, range(start, stop)


def _estimate_block(
    estimator: Estimator,
    manifest: Mapping[str, Any],
    settings: Mapping[str, Any],
    path: Path,
    module: str,
    layer: int | None,
    view: str,
    rows: range,
) -> pl.DataFrame:
    """Return the table of some contexts of one site under one view; `local`, if asked for, is one value a token."""
    with reading(path) as file:
        neighbors = read_neighbors(file[module][view], manifest, rows, estimator.ranks)
        points = file[module]["activations"][rows.start : rows.stop] if estimator.needs == "points" else None
    if points is not None:
        points = _scaled(points, neighbors, View(**manifest["settings"]["views"][view]))
    if points is None:
        found = estimate_from_neighbors(estimator, neighbors, settings["has_local"])
    else:
        found = estimate_from_points(estimator, points, neighbors, settings["max_seconds"], settings["has_local"])
    columns = {
        "view": [view] * len(rows),
        "cloud": ["context"] * len(rows),
        "context": list(rows),
        "layer": [layer] * len(rows),
        "module": [module] * len(rows),
        "estimator": [estimator.name] * len(rows),
        "value": found.value,
        "stderr": found.stderr,
        "status": [str(word) for word in found.status],
        "median_r1": _median(neighbors.r1),
        **{name: values for name, values in neighbors.statistics.items() if name in SCHEMA},
    }
    if {"gram_trace", "gram_frobenius"} <= neighbors.statistics.keys():
        moments = neighbors.statistic("gram_trace"), neighbors.statistic("gram_frobenius")
        columns["participation_ratio"] = participation_ratio(*moments)
        columns["participation_ratio_corrected"] = participation_ratio_corrected(
            *moments, neighbors.statistic("n_used")
        )
    nothing = [None] * len(rows)
    table = pl.DataFrame(
        {name: pl.Series(name, columns.get(name, nothing)).cast(kind) for name, kind in SCHEMA.items()}
    )
    if not settings["has_local"]:
        return table
    local = pl.Series("local", found.local.tolist(), dtype=pl.List(pl.Float64))
    return table.with_columns(local.list.eval(pl.element().fill_nan(None)))


def _scaled(clouds: np.ndarray, neighbors: Neighbors, view: View) -> np.ndarray | list[np.ndarray]:
    """Return saved clouds as a view scales them."""
    if view.is_as_made:
        return clouds
    selections = map(np.flatnonzero, np.isfinite(neighbors.r1))
    return [transform(view, cloud, selection, None) for cloud, selection in zip(clouds, selections, strict=True)]


def _median(r1: np.ndarray) -> list[float]:
    """Return the median of each row over the points that count."""
    return [float(np.median(row[np.isfinite(row)])) if np.isfinite(row).any() else np.nan for row in r1]
