"""The table of intrinsic dimensions of one run, module and estimator: one row per layer, view and cloud.

This module reads only stored files. For clouds of contexts, it reads neighbors, and saved clouds only if the estimator
needs them, a few contexts at a time. For a cloud of all contexts of a run, points are stored, and the neighbor search
runs here. It never imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import joblib
import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits

from id_scaling.errors import ResourceError, StoreError, made_anew
from id_scaling.estimators.apply import estimate_from_neighbors, estimate_from_points, no_estimates
from id_scaling.estimators.base import Estimates, Estimator
from id_scaling.estimators.near_copies import K, tiny_share
from id_scaling.models.modules import request_of, with_layers
from id_scaling.neighbors.cloud_kinds import CONTEXT, POSITION, clouds_of_run, stored_as, view_of_run
from id_scaling.neighbors.find import Neighbors, find_neighbors, stacked
from id_scaling.neighbors.kernels.dispatch import kernels_of
from id_scaling.neighbors.precision import exceeds
from id_scaling.neighbors.statistics import group_of, participation_ratio, participation_ratio_corrected
from id_scaling.neighbors.transforms import transform
from id_scaling.neighbors.views import View, views_at
from id_scaling.runtime import memory
from id_scaling.runtime.logging import LOG
from id_scaling.runtime.workers import ending_children
from id_scaling.storage.layer_reader import read_neighbors, reading, verified
from id_scaling.storage.records import key_of, read_record, read_table, write_table

CONTEXTS_AT_ONCE = 32
# The order of contexts does not say which are near, and a spectrum is computed only for estimators that use it.
OMITTED_FOR_RUN = ("nn_within_5", "effective_rank")
# Statistic sets that fill columns of a cloud of a run; only a cloud at one position has one token per point.
STATISTICS_OF_RUN = {"mean": ("moments", "cosine"), "position": ("moments", "cosine", "shares")}

SCHEMA = {
    "view": pl.String,
    "cloud": pl.String,
    "context": pl.Int64,
    "position": pl.Int64,
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
    "top_share": pl.Float64,
    "median_norm": pl.Float64,
    "participation_ratio": pl.Float64,
    "participation_ratio_corrected": pl.Float64,
    "effective_rank": pl.Float64,
    "mean_cosine": pl.Float64,
    "nn_same_token": pl.Float64,
    "nn_within_5": pl.Float64,
    "nn_overlap": pl.Float64,
    "save_fp": pl.String,
}


@dataclass(frozen=True)
class Block:
    """Clouds of one site under one view: one cloud per context, or a single cloud of all contexts of a run.

    Parameters
    ----------
    path : Path
        The layer file.
    module, layer, view : str, int or None, str
        The site, and the name of the view.
    cloud : {"context", "mean", "position"}
        Kind of the clouds.
    contexts : range
        Contexts of the clouds.
    position : int, optional
        Position of the tokens in a `position` cloud.
    """

    path: Path
    module: str
    layer: int | None
    view: str
    cloud: str
    contexts: range
    position: int | None = None

    @property
    def is_of_run(self) -> bool:
        """Whether this is a single cloud of all contexts."""
        return self.cloud != CONTEXT

    def __len__(self) -> int:
        """Return the number of clouds."""
        return 1 if self.is_of_run else len(self.contexts)


def estimate_run(
    manifest_path: Path, module: str, estimator: Estimator, settings: Mapping[str, Any], output: Path, n_threads: int
) -> None:
    """Estimate every cloud of one module of a run with one estimator and write the table.

    Raises
    ------
    StoreError
        A layer file is missing, is not the one the manifest names, or fails its checksums.
    """
    manifest = read_record(manifest_path)
    blocks = list(_blocks(manifest_path.parent, manifest, module, settings))
    tokens = None
    if any(block.is_of_run for block in blocks):
        tokens = _tokens(manifest_path.parent / "tokens.parquet", manifest)
        kernels_of(np.empty((0, 0)))  # loads BLAS, so that the limit of threads below applies to it
    # Threads share the data. Estimators of points use one worker process per thread. The number of BLAS threads would
    # change the last bits of results for a cloud of a run.
    with ending_children(), threadpool_limits(1, user_api="blas"):
        tables = joblib.Parallel(n_jobs=n_threads, prefer="threads")(
            joblib.delayed(_estimate_block)(estimator, manifest, settings, tokens, block)
            for block in blocks
            if not block.is_of_run
        )
        # One after another, because the products of many contexts take much memory.
        tables += [_estimate_block(estimator, manifest, settings, tokens, block) for block in blocks if block.is_of_run]
    table = pl.concat(tables)
    facts = {
        "settings": dict(settings),
        "made_from": {"extraction": key_of(manifest)},
        "manifest": manifest["digest"],
        "versions": {key: version(key) for key in ("numpy", "polars", "scikit-dimension", "id_scaling")},
    }
    write_table(output, table, facts)
    n_failed = table.filter(pl.col("status") != "ok").height
    LOG.info(
        "%s of %s: %d clouds, %d not ok, median %.3f",
        estimator.name,
        module,
        len(table),
        n_failed,
        table.filter(pl.col("status") == "ok")["value"].median() or np.nan,
    )


def _blocks(folder: Path, manifest: Mapping[str, Any], module: str, settings: Mapping[str, Any]) -> Iterator[Block]:
    """Yield the clouds of a module in blocks."""
    extraction_settings, n_contexts = manifest["settings"], manifest["n_contexts"]
    run_clouds = clouds_of_run(settings["clouds"], extraction_settings.get("positions", ()))
    # `with_layers` turns each choice of layers into a list of numbers.
    view_layers = cast(
        "Mapping[str, list[int]]", with_layers(request_of(extraction_settings["sites"]), manifest["n_layers"]).views
    )
    for key, layer, _ in manifest["sites"]:
        if key == module:
            path = verified(folder, manifest, layer)
            views = views_at(layer, settings["views"], view_layers)
            for view in views if CONTEXT in settings["clouds"] else ():
                for start in range(0, n_contexts, CONTEXTS_AT_ONCE):
                    contexts = range(start, min(start + CONTEXTS_AT_ONCE, n_contexts))
                    yield Block(path, module, layer, view, CONTEXT, contexts)
            for cloud, position in run_clouds:
                for view in views:
                    if view_of_run(View(**extraction_settings["views"][view])):
                        yield Block(path, module, layer, view, cloud, range(n_contexts), position)


def _tokens(path: Path, manifest: Mapping[str, Any]) -> np.ndarray:
    """Return the tokens of a run, (contexts, tokens)."""
    table, facts = read_table(path, ["token"])
    if facts["digest"] != manifest["digest"]:
        raise StoreError(f"{path}: of another extraction than its run's; {made_anew(path)}")
    return table["token"].to_numpy().reshape(manifest["n_contexts"], -1)


def _estimate_block(
    estimator: Estimator,
    manifest: Mapping[str, Any],
    settings: Mapping[str, Any],
    tokens: np.ndarray | None,
    block: Block,
) -> pl.DataFrame:
    """Return the table of a block of clouds; `local`, if requested, has one value per point."""
    if block.is_of_run:
        neighbors, points, precisions = _of_run(estimator, manifest, tokens, block)
    else:
        neighbors, points, precisions = _of_contexts(estimator, manifest, block)
    if not {*estimator.ranks} <= {*neighbors.ranks}:
        estimates = no_estimates(estimator, neighbors, settings["has_local"])
    elif points is None:
        estimates = estimate_from_neighbors(estimator, neighbors, settings["has_local"])
    else:
        estimates = estimate_from_points(estimator, points, neighbors, settings["max_seconds"], settings["has_local"])
    table = _table(estimator, block, neighbors, estimates, precisions)
    if estimates.local is None:
        return table
    local = pl.Series("local", estimates.local.tolist(), dtype=pl.List(pl.Float64))
    return table.with_columns(local.list.eval(pl.element().fill_nan(None)))


def _of_contexts(
    estimator: Estimator, manifest: Mapping[str, Any], block: Block
) -> tuple[Neighbors, Any, list[str | None]]:
    """Return the stored neighbors of contexts, and their clouds and precisions if the estimator needs points."""
    rows = block.contexts
    with reading(block.path, manifest) as file:
        path = f"{block.module}/{block.view}"
        neighbors = read_neighbors(file, path, manifest, rows, _ranks_of(estimator, manifest))
        if estimator.needs != "points":
            return neighbors, None, [None] * len(block)
        clouds = file.read(f"{block.module}/activations", rows)
    extraction_settings = manifest["settings"]
    view = View(**extraction_settings["views"][block.view])
    is_wide, save_fp = (
        exceeds(clouds, extraction_settings["save_fp"]),
        {False: extraction_settings["save_fp"], True: str(clouds.dtype)},
    )
    return neighbors, _scaled(clouds, neighbors, view), [save_fp[is_wide_cloud] for is_wide_cloud in is_wide.tolist()]


def _ranks_of(estimator: Estimator, manifest: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the stored ranks that an estimate reads: those of the estimator, and those that reveal near copies."""
    # Contexts store no rank beyond their length, but a cloud of all contexts can have it.
    own = estimator.ranks if {*estimator.ranks} <= {*manifest["ranks"]} else ()
    return (*own, *(rank for rank in manifest["ranks"] if rank <= K))


def _of_run(
    estimator: Estimator, manifest: Mapping[str, Any], tokens: np.ndarray | None, block: Block
) -> tuple[Neighbors, Any, list[str | None]]:
    """Return the neighbors of one cloud of a run, and its points and their precision if the estimator needs points.

    Tokens seed the random choices (those at the position of the cloud, or all), so the choices agree between sites.
    """
    with reading(block.path, manifest) as file:
        points = file.read(f"{block.module}/{stored_as(block.cloud, block.position)}", block.contexts)
    view = view_of_run(View(**manifest["settings"]["views"][block.view]))
    if tokens is None or view is None:
        raise ValueError(
            f"{block.view}: a cloud of all contexts of a run needs the tokens, and a view that applies to contexts"
        )
    token_ids = tokens[:, block.position] if block.cloud == POSITION else tokens
    groups = dict.fromkeys([*STATISTICS_OF_RUN[block.cloud], *map(group_of, estimator.statistics)])
    ranks = sorted({*range(1, K + 1), *estimator.ranks})
    memory.require(
        8 * len(points) ** 2,
        f"{block.path}: one cloud of {len(points):,} contexts ({block.cloud})",
        "give the job more memory, use fewer contexts (max_contexts), or leave out this cloud",
    )
    try:
        neighbors = stacked(find_neighbors(points, [view], ranks, list(groups), token_ids))
    except MemoryError as error:
        raise ResourceError(
            f"{block.path}: all products of {len(points)} contexts ({block.cloud}) do not fit in memory; give the job "
            "more memory, use fewer contexts (max_contexts), or leave out this cloud"
        ) from error
    if estimator.needs != "points":
        return neighbors, None, [None]
    return neighbors, _scaled(points[None], neighbors, view, token_ids), [str(points.dtype)]


def _table(
    estimator: Estimator, block: Block, neighbors: Neighbors, estimates: Estimates, precisions: list[str | None]
) -> pl.DataFrame:
    """Return the rows of a block of clouds; missing numbers are null."""
    n_clouds, omitted = len(block), OMITTED_FOR_RUN if block.is_of_run else ()
    columns: dict[str, Any] = {
        "view": [block.view] * n_clouds,
        "cloud": [block.cloud] * n_clouds,
        "context": [None] if block.is_of_run else list(block.contexts),
        "position": [block.position] * n_clouds,
        "layer": [block.layer] * n_clouds,
        "module": [block.module] * n_clouds,
        "estimator": [estimator.name] * n_clouds,
        "value": estimates.value,
        "stderr": estimates.stderr,
        "status": [str(word) for word in estimates.status],
        "save_fp": precisions,
        "median_r1": _medians(neighbors.r1),
        "tiny_r1": tiny_share(neighbors),
        **{name: values for name, values in neighbors.statistics.items() if name in SCHEMA.keys() - omitted},
    }
    if {"gram_trace", "gram_frobenius"} <= neighbors.statistics.keys():
        moments = neighbors.statistic("gram_trace"), neighbors.statistic("gram_frobenius")
        columns["participation_ratio"] = participation_ratio(*moments)
        columns["participation_ratio_corrected"] = participation_ratio_corrected(
            *moments, neighbors.statistic("n_used")
        )
    if estimates.top_share is not None:
        columns["top_share"] = pl.Series(estimates.top_share).fill_nan(None)
    nulls = [None] * n_clouds
    series = {name: pl.Series(name, columns.get(name, nulls)).cast(kind) for name, kind in SCHEMA.items()}
    # Null, because a mean skips it; `status` says why a value is missing.
    return pl.DataFrame(series).fill_nan(None)


def _scaled(
    clouds: np.ndarray, neighbors: Neighbors, view: View, token_ids: np.ndarray | None = None
) -> np.ndarray | list[np.ndarray]:
    """Return saved clouds as a view scales them, or the null clouds with which it replaces them."""
    if view.is_as_made:
        return clouds
    selections = map(np.flatnonzero, np.isfinite(neighbors.r1))
    return [transform(view, cloud, selection, token_ids) for cloud, selection in zip(clouds, selections, strict=True)]


def _medians(r1: np.ndarray) -> list[float]:
    """Return the median of each row over its finite values, which belong to the points that count."""
    rows = [row[np.isfinite(row)] for row in r1]
    return [float(np.median(row)) if len(row) else np.nan for row in rows]
