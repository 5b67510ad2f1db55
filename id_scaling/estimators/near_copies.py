"""Near copies: points that are almost equal, how many there are, and whether they decide an estimate.

Equal points are found by value. Points that differ by a rounding error are not equal, and their distance is a rounding
error: it contains no information about the manifold, but enters log-ratios as -log of the distance. It drives an ID
toward 0 or, in a cluster of copies, toward the dimension of the rounding errors.

A point has a *near copy* if its nearest neighbor is at less than a hundredth of the typical distance between points
that are not copies. The typical distance is the median over points of the distance to the nearest neighbor past all
jumps. A jump is a distance more than a hundred times the previous one, among those to the K nearest neighbors. Without
jumps, the median of the nearest distances would itself be a rounding error if most points are copies. A jump does not
make a copy: two occurrences of one token are at a typical distance from each other, and far from all other points. The
share of points with a near copy is `tiny_r1` in every table.

In d dimensions of uniform density, a share of about 100^-d of the points has a near copy: one point in ten thousand for
d = 2, and no point of any cloud for d = 5. So near copies are an artifact if there are more of them.

Estimators of points run a second time, on one point of each cluster of copies. Measured on 400 normal points, d = 5,
and a copy of each, 1e-12 away: without and with copies, TwoNN of scikit-dimension gives 4.5 and 0.03, MLE 5.1 and 0.6,
GRIDE 4.5 and 0.04, MiND_ML 4.9 and 1, PH 5.1 and 1.5, `phd` 5.1 and 3.2, `phd_text` 5.2 and 3.0, `mst` 5.1 and 1.6; but
MOM 4.3 and 4.4, TLE 5.1 and 4.7, CorrInt 4.2 and 4.3, ESS 5.0 and 4.7, FisherS 5.0 and 4.9, lPCA 5 and 5. Estimators of
the Gram matrix and its spectrum depend on all points together, and are not tested for near copies.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from id_scaling.neighbors.find import Neighbors

# Distances below this share of the typical distance to the nearest neighbor are near copies.
TINY = 0.01
# A jump is a ratio above 1 / TINY between the distances to successive neighbors, among the first K.
JUMP, K = -np.log(TINY), 20
# Near copies decide an estimate if it differs by more than a tenth without them. The bias of estimators at these sizes
# is about as large, so a smaller difference does not change the interpretation.
MOVED = 0.1
# Number of coordinates, those with the widest range, that are compared before all coordinates.
FEW = 64
# Near copies are too many for the dimension if they exceed the expected share by this factor, because densities vary.
MORE = 8


def tiny_share(neighbors: Neighbors) -> np.ndarray:
    """Return the share of used points that have a near copy or an equal point; NaN for no points."""
    n, n_tiny = np.isfinite(neighbors.r1).sum(axis=1), has_near_copy(neighbors).sum(axis=1)
    return np.divide(n_tiny, n, out=np.full(len(n), np.nan), where=n > 0)


def has_near_copy(neighbors: Neighbors) -> np.ndarray:
    """Return which points have a near copy or an equal point, (n_clouds, n_points), judged from the stored ranks."""
    return (neighbors.r1 == 0) | (neighbors.r1 < copy_distance(neighbors)[:, None])


def copy_distance(neighbors: Neighbors) -> np.ndarray:
    """Return the distance below which points are near copies, (n_clouds,); NaN if there is no typical distance."""
    columns = [column for column, rank in enumerate(neighbors.ranks) if 1 < rank <= K]
    ranks = np.array([1, *(neighbors.ranks[column] for column in columns)])
    logs = np.concatenate([np.zeros((*neighbors.r1.shape, 1)), neighbors.log_ratio[..., columns]], axis=-1)
    with np.errstate(all="ignore"):
        jumps = (np.diff(logs, axis=-1) > JUMP) & (np.diff(ranks) == 1)
        # Logs ascend, so the largest is the one after the last jump.
        log_past_jumps = np.max(np.where(jumps, logs[..., 1:], 0.0), axis=-1, initial=0.0)
        typical = neighbors.r1 * np.exp(log_past_jumps)
    rows = [row[np.isfinite(row) & (row > 0)] for row in typical]
    return TINY * np.array([np.median(row) if len(row) else np.nan for row in rows])


def one_of_each(points: np.ndarray, is_copy: np.ndarray, distance: float) -> np.ndarray:
    """Return which points to keep, (n,) bool: the first of those within `distance` of one another, and all others.

    Parameters
    ----------
    points : (n, d) array
    is_copy : (n,) array of bool
        Which points have a near copy.
    distance : float
        Points nearer than this are near copies.

    Examples
    --------
    >>> points = np.array([[0.0], [1e-9], [1.0]])
    >>> one_of_each(points, np.array([True, True, False]), distance=1e-6).tolist()
    [True, False, True]
    """
    is_kept, copies = np.ones(len(points), bool), np.flatnonzero(is_copy)
    few_coordinates = points[:, np.argsort(np.ptp(points[copies], axis=0))[-FEW:]] if len(copies) else points
    for position, copy in enumerate(copies.tolist()):
        if is_kept[copy]:
            later = copies[position + 1 :]
            # A cheap test first: points far apart in a few coordinates are far apart.
            later = later[_is_near(few_coordinates, copy, later, distance)]
            is_kept[later[_is_near(points, copy, later, distance)]] = False
    return is_kept


def _is_near(points: np.ndarray, point: int, others: np.ndarray, distance: float) -> np.ndarray:
    """Return which of the other points are within `distance` of a point, (n_others,) bool."""
    with np.errstate(over="ignore"):  # in units of the distance, so that no square of a near copy underflows
        return np.linalg.norm((points[others] - points[point]) / distance, axis=1) < 1


def without(neighbors: Neighbors, is_removed: np.ndarray) -> Neighbors:
    """Return neighbors without the removed points."""
    r1 = np.where(is_removed, np.nan, neighbors.r1)
    log_ratio = np.where(is_removed[..., None], np.nan, neighbors.log_ratio)
    return replace(neighbors, r1=r1, log_ratio=log_ratio)


def move(
    value: np.ndarray | float, without_copies: np.ndarray | float, n: np.ndarray | int, n_copies: np.ndarray | int
) -> np.ndarray:
    """Return which estimates differ without near copies, where there are more near copies than the dimension explains.

    Parameters
    ----------
    value, without_copies : (n_clouds,) arrays
        Estimates with and without near copies. If there is no estimate without, near copies decide.
    n, n_copies : (n_clouds,) arrays
        Number of used points, and of those with a near copy.
    """
    with np.errstate(all="ignore"):
        is_moved = ~(np.abs(value - without_copies) <= MOVED * without_copies)
        is_more = ~(n_copies <= MORE * n * TINY**without_copies)
    return (n_copies > 0) & np.isfinite(value) & is_moved & is_more


def decide(
    value: np.ndarray, without_copies: np.ndarray, is_copy: np.ndarray, r1: np.ndarray, min_points: int
) -> np.ndarray:
    """Return which estimates are decided by near copies, (n_clouds,) bool.

    Parameters
    ----------
    value, without_copies : (n_clouds,) arrays
        Estimates with and without near copies.
    is_copy : (n_clouds, n_points) array of bool
        Which points have a near copy.
    r1 : (n_clouds, n_points) array
        Distances to the nearest neighbor, NaN for unused points.
    min_points : int
        With fewer points, there is no estimate to compare with.
    """
    n, n_copies = np.isfinite(r1).sum(axis=1), is_copy.sum(axis=1)
    without_copies = np.where(n - n_copies >= min_points, without_copies, np.nan)
    # If most points have a near copy, the few others are no reference: they are copies with larger rounding errors.
    is_most = n_copies > n / 2
    return move(value, without_copies, n, n_copies) | (np.isfinite(value) & is_most)
