"""Intrinsic dimension of arrays of points: the library's front door, no files and no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from id_scaling.errors import ConfigError
from id_scaling.estimators import get_estimator
from id_scaling.estimators.base import Estimate, estimate_from_neighbors, estimate_from_points
from id_scaling.neighbors import Neighbors, find_neighbors, stacked
from id_scaling.statistics import group_of
from id_scaling.views import Duplicates, View

if TYPE_CHECKING:
    import polars as pl

DEFAULT_ESTIMATORS = ("mle", "mind_ml", "twoNN_f10")


def estimate(
    points: np.ndarray,
    estimators: Sequence[str] = DEFAULT_ESTIMATORS,
    duplicates: Duplicates = "distinct",
) -> dict[str, Estimate]:
    """Estimate the intrinsic dimension of one point cloud.

    Parameters
    ----------
    points : (n_points, d) array of floats
        Coordinates in any unit. Computed in float64, whatever the dtype given.
    estimators : sequence of str
        Names as in `save_IDs_list`: `mle`, `mle_harmonic`, `mind_ml`, `twoNN_f10`, …
    duplicates : {"distinct", "keep"}
        Count the first of each set of equal points, or all of them. A kept repetition has distance
        zero to its twin, which no estimator here accepts: `degenerate`.

    Returns
    -------
    dict of str to Estimate
        In the order of `estimators`. A cloud without an answer gives NaN and a status, no exception.

    Raises
    ------
    ConfigError
        Wrong rank or dtype of the points, an unknown estimator, an unknown policy.
    """
    points = _checked(points, ndim=2)
    return {
        name: Estimate(float(found.value[0]), float(found.stderr[0]), *_counts(neighbors)[0], str(found.status[0]))
        for name, found, neighbors in _estimates(points[None], estimators, duplicates)
    }


def estimate_batch(
    clouds: np.ndarray,
    estimators: Sequence[str] = DEFAULT_ESTIMATORS,
    duplicates: Duplicates = "distinct",
) -> pl.DataFrame:
    """Estimate the intrinsic dimension of many point clouds of one size.

    Parameters
    ----------
    clouds : (n_clouds, n_points, d) array of floats
        Coordinates in any unit.
    estimators, duplicates
        As in `estimate`.

    Returns
    -------
    polars.DataFrame
        One row per cloud and estimator: `cloud`, `estimator`, `value`, `stderr`, `n_points`,
        `n_distinct`, `status`.

    Raises
    ------
    ConfigError
        As in `estimate`.
    """
    import polars as pl

    clouds = _checked(clouds, ndim=3)
    tables = [
        pl.DataFrame(
            {
                "cloud": np.arange(len(clouds)),
                "estimator": [name] * len(clouds),
                "value": found.value,
                "stderr": found.stderr,
                "n_points": [count[0] for count in _counts(neighbors)],
                "n_distinct": [count[1] for count in _counts(neighbors)],
                "status": [str(word) for word in found.status],
            }
        )
        for name, found, neighbors in _estimates(clouds, estimators, duplicates)
    ]
    return pl.concat(tables).sort("cloud", maintain_order=True)


def _estimates(clouds: np.ndarray, names: Sequence[str], duplicates: Duplicates):
    """Yield (name, estimates, neighbors) for each estimator, all from one pass over the clouds."""
    if names is None or isinstance(names, str) or len(names) == 0:
        raise ConfigError(f"estimators: found {names!r}, expected a list of names such as ['mle']")
    if duplicates not in ("distinct", "keep"):
        raise ConfigError(f"duplicates: found {duplicates!r}, expected 'distinct' or 'keep'")
    estimators = [get_estimator(name) for name in dict.fromkeys(map(str, names))]
    ranks = tuple(sorted({1}.union(*(estimator.ranks for estimator in estimators))))
    view = View(skip_first_tokens=0, duplicates=duplicates)
    groups = sorted({group_of(name) for estimator in estimators for name in estimator.statistics})
    neighbors = stacked([find_neighbors(cloud, [view], ranks, groups)[0] for cloud in clouds])
    for estimator in estimators:
        if estimator.needs == "points":
            yield estimator.name, estimate_from_points(estimator, clouds, neighbors), neighbors
        else:
            yield estimator.name, estimate_from_neighbors(estimator, neighbors), neighbors


def _counts(neighbors: Neighbors) -> list[tuple[int, int]]:
    """Return (n_points, n_distinct) of each cloud."""
    points, distinct = neighbors.statistic("n_points"), neighbors.statistic("n_distinct")
    return [(int(a), int(b)) for a, b in zip(points, distinct, strict=True)]


def _checked(points: np.ndarray, ndim: int) -> np.ndarray:
    """Return the points as an array of floats, or say what is wrong with them."""
    shape = "(n_points, d)" if ndim == 2 else "(n_clouds, n_points, d)"
    try:
        array = np.asarray(points)
    except ValueError as error:
        raise ConfigError(f"points: found rows of different lengths ({error}), expected a {shape} array") from error
    if array.ndim != ndim or 0 in array.shape:
        raise ConfigError(f"points: found shape {array.shape}, expected a non-empty {shape} array")
    if not np.issubdtype(array.dtype, np.floating):
        raise ConfigError(
            f"points: found dtype {array.dtype}, expected floats; convert with points.astype(float) "
            "if these are coordinates and not indices"
        )
    return array
