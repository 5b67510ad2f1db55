"""Apply an estimator to clouds: check the input, estimate, and check the result.

A degenerate cloud gives a status, and no message, warning, or exception.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from id_scaling.estimators import near_copies
from id_scaling.estimators.base import (
    BOUNDARY,
    DEGENERATE,
    NEAR_COPIES,
    NONFINITE,
    OK,
    SATURATED,
    TIMEOUT,
    TOO_FEW_POINTS,
    Estimates,
    Estimator,
    mean_over_points,
    top_share,
)
from id_scaling.estimators.sandbox import DEFAULT_SECONDS, estimate_contained
from id_scaling.estimators.standard_errors import factor
from id_scaling.neighbors.find import Neighbors
from id_scaling.neighbors.points import prepare_points
from id_scaling.runtime.workers import ChildError

# If all points are at one distance, the dimension comes from rounding: log-ratios from float32 are accurate to 1e-5.
MAX_RESOLVED = 1e5
# Optimizers stop at this relative distance from their bound.
AT_CEILING = 1e-6


def estimate_from_neighbors(estimator: Estimator, neighbors: Neighbors, is_local: bool = False) -> Estimates:
    """Apply an estimator to the neighbors of many clouds.

    Parameters
    ----------
    estimator : Estimator
        An estimator that needs `neighbors`, `gram`, or `spectrum`.
    neighbors : Neighbors
        Neighbors with one leading axis over clouds.
    is_local : bool
        Whether to also return the estimate at each point.

    Examples
    --------
    >>> from id_scaling.estimators.registry import get_estimator
    >>> from id_scaling.neighbors.find import find_neighbors, stacked
    >>> from id_scaling.neighbors.views import View
    >>> rng = np.random.default_rng(0)
    >>> sheet = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 20))
    >>> (neighbors,) = find_neighbors(sheet, [View()], range(1, 21))
    >>> estimates = estimate_from_neighbors(get_estimator("mle_harmonic"), stacked([neighbors]))
    >>> estimates.value.round(2).tolist(), estimates.status.tolist()
    ([2.96], ['ok'])
    """
    status = screen(estimator, neighbors)
    with np.errstate(all="ignore"):
        local = _local(estimator, neighbors) if is_local or estimator.is_mean else None
        if estimator.is_mean and local is not None:
            value, stderr = mean_over_points(local, neighbors)
        else:
            value, stderr = estimator.compute(neighbors)
    if estimator.needs == "neighbors":
        status[(status == OK) & _decided_by_near_copies(neighbors, value, estimator.compute, estimator)] = NEAR_COPIES
    estimates = finalize(estimator, value, stderr, status, neighbors, local)
    return estimates if is_local else replace(estimates, local=None)


def _local(estimator: Estimator, neighbors: Neighbors) -> np.ndarray:
    """Return the estimate at each point, (n_clouds, n_points)."""
    if estimator.local is None:
        raise ValueError(f"{estimator.name} has no estimate at a point")
    return estimator.local(neighbors)


def _decided_by_near_copies(
    neighbors: Neighbors, value: np.ndarray, compute: Callable, estimator: Estimator
) -> np.ndarray:
    """Return which estimates change without the points that have a near copy, (n_clouds,) bool."""
    is_copy = near_copies.has_near_copy(neighbors)
    if not is_copy.any():
        return np.zeros(len(value), bool)
    with np.errstate(all="ignore"):
        without_copies = compute(near_copies.without(neighbors, is_copy))[0]
    return near_copies.decide(value, without_copies, is_copy, neighbors.r1, estimator.min_points)


def no_estimates(estimator: Estimator, neighbors: Neighbors, is_local: bool = False) -> Estimates:
    """Return the estimates, all missing, of clouds with too few points to store the ranks of an estimator."""
    missing = np.full(len(neighbors.r1), np.nan)
    status = np.full(len(missing), TOO_FEW_POINTS, dtype=object)
    status[neighbors.statistic("n_nonfinite") > 0] = NONFINITE
    # The top share of a mean depends on its local values.
    local = np.full(neighbors.r1.shape, np.nan) if is_local or estimator.is_mean else None
    estimates = finalize(estimator, missing, missing, status, neighbors, local)
    return estimates if is_local else replace(estimates, local=None)


def estimate_from_points(
    estimator: Estimator,
    clouds: Sequence[np.ndarray] | np.ndarray,
    neighbors: Neighbors,
    max_seconds: float = DEFAULT_SECONDS,
    is_local: bool = False,
) -> Estimates:
    """Apply an estimator to the used points of each cloud; a failure becomes a status.

    Parameters
    ----------
    estimator : Estimator
        An estimator that needs `points`.
    clouds : sequence of (n_points, d) arrays
        The clouds, as many as in `neighbors`.
    neighbors : Neighbors
        Which points are used: those whose r_1 is a number.
    max_seconds : float
        An estimate that takes more processor time is a `timeout`.
    is_local : bool
        Whether to also return the estimate at each point.
    """
    status = screen(estimator, neighbors)
    value, stderr, ceilings = (np.full(len(clouds), fill) for fill in (np.nan, np.nan, np.inf))
    has_local = is_local or estimator.is_mean
    local = np.full(neighbors.r1.shape, np.nan) if has_local else None
    is_copy, distances = near_copies.has_near_copy(neighbors), near_copies.copy_distance(neighbors)
    for index in np.flatnonzero(status == OK).tolist():
        is_counted = np.isfinite(neighbors.r1[index])
        points = np.asarray(clouds[index], dtype=np.float64)[is_counted]
        value[index], stderr[index], cloud_local, status[index] = _estimate_one_cloud(
            estimator, points, max_seconds, has_local
        )
        ceilings[index] = estimator.ceiling(*points.shape) if estimator.ceiling else np.inf
        if local is not None and cloud_local is not None:
            local[index, is_counted] = cloud_local
        is_copy_in_cloud = is_copy[index, is_counted]
        if status[index] == OK and not estimator.is_mean and is_copy_in_cloud.any():
            remaining = points[near_copies.one_of_each(points, is_copy_in_cloud, distances[index])]
            is_enough = len(remaining) >= estimator.min_points
            remaining_value, *_, remaining_status = (
                _estimate_one_cloud(estimator, remaining, max_seconds) if is_enough else (np.nan, "")
            )
            if remaining_status == TIMEOUT:  # whether near copies decide the estimate is unknown
                status[index] = TIMEOUT
            elif near_copies.move(value[index], remaining_value, len(points), is_copy_in_cloud.sum()):
                status[index] = NEAR_COPIES
    if estimator.is_mean and local is not None:
        compute = partial(mean_over_points, local)
        status[(status == OK) & _decided_by_near_copies(neighbors, value, compute, estimator)] = NEAR_COPIES
    estimates = finalize(estimator, value, stderr, status, neighbors, local, ceilings)
    return estimates if is_local else replace(estimates, local=None)


def _estimate_one_cloud(
    estimator: Estimator, points: np.ndarray, max_seconds: float, has_local: bool = False
) -> tuple[float, float, np.ndarray | None, str]:
    """Return value, standard error, local values if requested, and status of one cloud."""
    try:
        return (*estimate_contained(estimator.name, _rescaled(points), max_seconds, has_local), OK)
    except TimeoutError:
        return np.nan, np.nan, None, TIMEOUT
    except ChildError as error:
        return np.nan, np.nan, None, f"failed: {error}"


def _rescaled(points: np.ndarray) -> np.ndarray:
    """Return distinct points divided by a power of two, so that no square overflows or underflows.

    Raises
    ------
    ChildError
        Distinct points are equal here, because they were rounded when they were saved.
    """
    is_constant = points.min(axis=0) == points.max(axis=0)
    points = np.where(is_constant, 0.0, points)  # next to a large constant, products lose all other coordinates
    n_distinct = len(np.unique(prepare_points(points).first))
    if n_distinct < len(points):
        raise ChildError(
            f"{len(points)} different points are {n_distinct} as saved; save them in a wider type (save_fp)"
        )
    return np.ldexp(points, -int(np.frexp(np.abs(points).max())[1]))


def screen(estimator: Estimator, neighbors: Neighbors) -> np.ndarray:
    """Return the status of each cloud before the estimate."""
    status = np.full(neighbors.r1.shape[0], OK, dtype=object)
    # A zero distance has no logarithm, and the model of these estimators excludes it.
    if estimator.needs in ("neighbors", "points"):
        status[(neighbors.r1 == 0).any(axis=1)] = DEGENERATE
    if estimator.ranks:  # a window may leave too few neighbors
        status[np.isnan(neighbors.at(max(estimator.ranks))).all(axis=1)] = TOO_FEW_POINTS
    status[neighbors.statistic("n_used") < estimator.min_points] = TOO_FEW_POINTS
    status[neighbors.statistic("n_nonfinite") > 0] = NONFINITE
    for index in np.flatnonzero(status == OK).tolist():
        status[index] = _damage(estimator, neighbors, index) or OK
    return status


def _damage(estimator: Estimator, neighbors: Neighbors, index: int) -> str:
    """Return the defect in the stored distances of a cloud as a status; empty if there is none."""
    is_counted, n_used = np.isfinite(neighbors.r1[index]), int(neighbors.statistic("n_used")[index])
    if 0 < np.count_nonzero(is_counted) != n_used:
        return f"failed: {n_used} points count, of which {np.count_nonzero(is_counted)} have a nearest neighbor"
    columns = [neighbors.ranks.index(rank) for rank in estimator.ranks]
    is_number = np.isfinite(neighbors.log_ratio[index][is_counted][:, columns]).all(axis=1)
    if not is_number.all():
        return f"failed: {np.count_nonzero(~is_number)} of {n_used} points have a distance that is not a number"
    return ""


def finalize(
    estimator: Estimator,
    value: npt.ArrayLike,
    stderr: npt.ArrayLike,
    status: np.ndarray,
    neighbors: Neighbors,
    local: np.ndarray | None = None,
    ceilings: np.ndarray | float = np.inf,
) -> Estimates:
    """Return estimates whose value is a number where the status allows one, and NaN elsewhere.

    The asymptotic standard error is multiplied by the simulated factor of the estimator.
    """
    value, stderr, status = np.array(value), np.array(stderr), status.copy()
    is_counted = np.isfinite(neighbors.r1)
    if estimator.spread is not None:
        stderr = stderr * factor(estimator.spread, value, neighbors.statistic("n_used"))
    if local is not None:
        n_missing = (np.isnan(local) & is_counted).sum(axis=1)
        for index in np.flatnonzero((status == OK) & (n_missing > 0)):
            status[index] = f"failed: {n_missing[index]} of {is_counted[index].sum()} points have no local dimension"
    if estimator.needs == "points":
        status[(status == OK) & np.isposinf(value)] = BOUNDARY
    status[(status == OK) & ~((value > 0) & (value < MAX_RESOLVED))] = DEGENERATE
    status[(status == OK) & ((value >= estimator.cap) | (value >= ceilings * (1 - AT_CEILING)))] = SATURATED
    is_number = (status == OK) | (status == SATURATED)
    shares = _top_shares(local, is_counted, is_number) if estimator.is_mean and local is not None else None
    if local is not None:
        local = np.where(is_number[:, None] & np.isfinite(local), local, np.nan)
    value = np.where(is_number, np.minimum(value, estimator.cap), np.nan)
    return Estimates(value, np.where(status == OK, stderr, np.nan), status, local, shares)


def _top_shares(local: np.ndarray, is_counted: np.ndarray, is_number: np.ndarray) -> np.ndarray:
    """Return the share of each cloud's mean that comes from the top tenth of its points; NaN where there is no mean."""
    rows = zip(local, is_counted, is_number, strict=True)
    return np.array([top_share(row[is_used]) if has_mean else np.nan for row, is_used, has_mean in rows])
