"""The table of intrinsic dimensions of one run, module and estimator: one row per layer, view and cloud.

Reads the store alone: neighbors where the estimator needs no more, saved clouds where it does. A few
contexts are in memory at a time. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import joblib
import numpy as np
import polars as pl

from id_scaling.children import ending_children
from id_scaling.errors import StoreError, made_anew
from id_scaling.estimators import get_estimator
from id_scaling.estimators.base import Estimator, estimate_from_neighbors, estimate_from_points
from id_scaling.logs import LOG
from id_scaling.neighbors import Neighbors
from id_scaling.paths import file_of
from id_scaling.sealed import read_record, write_table
from id_scaling.statistics import participation_ratio, participation_ratio_corrected
from id_scaling.transforms import transform
from id_scaling.views import View

CONTEXTS_AT_ONCE = 32
# Of the median distance to the nearest neighbor: what is below is next to nothing.
TINY = 0.01

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
    "tiny_r1": pl.Float64,
    "median_norm": pl.Float64,
    "participation_ratio": pl.Float64,
    "participation_ratio_corrected": pl.Float64,
    "effective_rank": pl.Float64,
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
            path = _verified(folder, manifest, layer)
            for view in views:
                for start in range(0, manifest["n_contexts"], CONTEXTS_AT_ONCE):
                    stop = min(start + CONTEXTS_AT_ONCE, manifest["n_contexts"])
                    yield path, module, layer, view, range(start, stop)


def _verified(folder: Path, manifest: Mapping[str, Any], layer: int | None) -> Path:
    """Return a layer file, once it is known to be the one the manifest names."""
    name = file_of(layer)
    path = folder / name
    mend = made_anew(folder / "manifest.json")
    if not path.is_file():
        raise StoreError(f"{path}: missing, though the manifest names it; {mend}")
    found, expected = path.stat().st_size, manifest["files"][name]["bytes"]
    if found != expected:
        raise StoreError(f"{path}: found {found} bytes, the manifest says {expected}; {mend}")
    with _reading(path) as file:
        if file.attrs.get("digest") != manifest["digest"]:
            raise StoreError(f"{path}: made by another extraction than its manifest; {mend}")
        foreign = next(_foreign(file), None)
        if foreign:
            raise StoreError(f"{path}: {foreign} stands in another file, which no extraction writes; {mend}")
    return path


def _foreign(group: h5py.Group) -> Iterator[str]:
    """Yield the names in a group whose values HDF5 would take from another file."""
    for name in group:
        item = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
        if isinstance(item, h5py.Group):
            yield from _foreign(item)
        elif not isinstance(item, h5py.Dataset) or item.external or item.is_virtual:
            yield f"{group.name}/{name}"


@contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    """Open a layer file; whatever damage HDF5 finds in it is one error."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise StoreError(f"{path}: damaged ({error}); {made_anew(path.parent / 'manifest.json')}") from error


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
    with _reading(path) as file:
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
        **_nearness(neighbors.r1),
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


def read_neighbors(group: h5py.Group, manifest: Mapping[str, Any], rows: range, ranks: tuple[int, ...]) -> Neighbors:
    """Return the stored neighbors of some contexts under one view, from the first to the last rank asked."""
    part, stored = slice(rows.start, rows.stop), list(manifest["ranks"])
    columns = slice(stored.index(min(ranks)), stored.index(max(ranks)) + 1) if ranks else slice(0)
    statistics = dict(zip(manifest["statistics"], group["statistics"][part].T, strict=True))
    return Neighbors(tuple(stored[columns]), group["r1"][part], group["log_ratio"][part, :, columns], statistics)


def _nearness(r1: np.ndarray) -> dict[str, list[float]]:
    """Return of each row the median over the points that count, and the share of them far below it."""
    rows = [row[np.isfinite(row)] for row in r1]
    medians = [float(np.median(row)) if len(row) else np.nan for row in rows]
    tiny = [
        float(np.mean((row == 0) | (row < TINY * median))) if len(row) else np.nan
        for row, median in zip(rows, medians, strict=True)
    ]
    return {"median_r1": medians, "tiny_r1": tiny}
