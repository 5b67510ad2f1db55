"""Points that are next to equal: how many there are, and whether they decide an estimate.

Equal points are found by value. Points a rounding error apart are not equal, and their distance is of rounding: it says
nothing about the manifold, but enters log-ratios as -log of it, and drives an ID toward 0 (or, in a group of copies,
toward the dimension of the rounding errors). A point has a *near copy* where
its nearest neighbor is at less than a hundredth of the usual distance between points that are not copies: the median
over the points of the distance to the nearest other past all jumps. A jump is a distance more than a hundred times the
one before, among those to the K nearest: where most points are copies, the median of the nearest distances would be a
rounding error too. A jump alone makes no copy: the two places of a token that a text has twice are at a usual distance,
and far from all others. Near copies are the share `tiny_r1` of every table.

In d dimensions of even density there are near copies at a share of about 100^-d of the points: at one point in ten
thousand for d = 2, and at none of any cloud for d = 5. So near copies are an artifact where they are more than that.

Estimators that read points are run again on one point of each group of copies. Measured on 400 normal points, d = 5,
and a copy of each, 1e-12 away: without copies and with them TwoNN of scikit-dimension gives 4.5 and 0.03, MLE 5.1 and
0.6, GRIDE 4.5 and 0.04, MiND_ML 4.9 and 1, PH 5.1 and 1.5, `phd` 5.1 and 3.2, `phd_text` 5.2 and 3.0, `mst` 5.1 and
1.6; but MOM 4.3 and 4.4, TLE 5.1 and 4.7, CorrInt 4.2 and 4.3, ESS 5.0 and 4.7, FisherS 5.0 and 4.9, lPCA 5 and 5.
Estimators of the Gram matrix and its spectrum are of all points together, and are not looked at.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from id_scaling.neighbors.find import Neighbors

# Of the usual distance to the nearest neighbor: what is below is next to nothing.
TINY = 0.01
# A jump of the distances to successive neighbors by more than 1 / TINY, among the first K.
JUMP, K = -np.log(TINY), 20
# Near copies decide an estimate that differs by more than a tenth without them: about as much as the bias of the
# estimators at these sizes, so that less would not change what a reader makes of the number.
MOVED = 0.1
# Coordinates that are compared before all are: those of the widest range.
FEW = 64
# They are more than the dimension explains where they are more than so many times the expected share: densities vary.
MORE = 8


def tiny_share(neighbors: Neighbors) -> np.ndarray:
    """Return the share of the points that count which have a near copy, or are at no distance; NaN for no points."""
    n, n_tiny = np.isfinite(neighbors.r1).sum(axis=1), has_near_copy(neighbors).sum(axis=1)
    return np.divide(n_tiny, n, out=np.full(len(n), np.nan), where=n > 0)


def has_near_copy(neighbors: Neighbors) -> np.ndarray:
    """Return which points have a near copy or an equal point, (n_clouds, n_points), as far as stored ranks tell."""
    return (neighbors.r1 == 0) | (neighbors.r1 < copy_distance(neighbors)[:, None])


def copy_distance(neighbors: Neighbors) -> np.ndarray:
    """Return the distance below which points are near copies, (n_clouds,); NaN for a cloud that has no usual one."""
    columns = [column for column, rank in enumerate(neighbors.ranks) if 1 < rank <= K]
    ranks = np.array([1, *(neighbors.ranks[column] for column in columns)])
    logs = np.concatenate([np.zeros((*neighbors.r1.shape, 1)), neighbors.log_ratio[..., columns]], axis=-1)
    with np.errstate(all="ignore"):
        jumps = (np.diff(logs, axis=-1) > JUMP) & (np.diff(ranks) == 1)
        past = np.max(np.where(jumps, logs[..., 1:], 0.0), axis=-1, initial=0.0)  # logs ascend: the last is the largest
        usual = neighbors.r1 * np.exp(past)
    rows = [row[np.isfinite(row) & (row > 0)] for row in usual]
    return TINY * np.array([np.median(row) if len(row) else np.nan for row in rows])


def one_of_each(points: np.ndarray, is_copy: np.ndarray, distance: float) -> np.ndarray:
    """Return which points to keep, (n,) bool: of those within `distance` of one another the first; all that have none.

    Parameters
    ----------
    points : (n, d) array
    is_copy : (n,) array of bool
        The points that have a near copy.
    distance : float
        Below which points are near copies.

    Examples
    --------
    >>> points = np.array([[0.0], [1e-9], [1.0]])
    >>> one_of_each(points, np.array([True, True, False]), distance=1e-6).tolist()
    [True, False, True]
    """
    is_kept, copies = np.ones(len(points), bool), np.flatnonzero(is_copy)
    few = points[:, np.argsort(np.ptp(points[copies], axis=0))[-FEW:]] if len(copies) else points
    for place, copy in enumerate(copies.tolist()):
        if is_kept[copy]:
            later = copies[place + 1 :]
            later = later[_is_near(few, copy, later, distance)]  # points far apart in a few coordinates are so in all
            is_kept[later[_is_near(points, copy, later, distance)]] = False
    return is_kept


def _is_near(points: np.ndarray, point: int, others: np.ndarray, distance: float) -> np.ndarray:
    """Return which of some other points are within `distance` of one, (n_others,) bool."""
    with np.errstate(over="ignore"):  # in units of the distance, so that no square of a near one vanishes
        return np.linalg.norm((points[others] - points[point]) / distance, axis=1) < 1


def without(neighbors: Neighbors, left_out: np.ndarray) -> Neighbors:
    """Return neighbors in which some more points do not count."""
    r1 = np.where(left_out, np.nan, neighbors.r1)
    log_ratio = np.where(left_out[..., None], np.nan, neighbors.log_ratio)
    return replace(neighbors, r1=r1, log_ratio=log_ratio)


def move(
    value: np.ndarray | float, others: np.ndarray | float, n: np.ndarray | int, n_copies: np.ndarray | int
) -> np.ndarray:
    """Return which estimates differ from those without near copies, which are more than their dimension explains.

    Parameters
    ----------
    value, others : (n_clouds,) arrays
        Estimates with near copies and without; where there is none without, near copies are taken to decide.
    n, n_copies : (n_clouds,) arrays
        Points that count, and those of them that have a near copy.
    """
    with np.errstate(all="ignore"):
        is_moved = ~(np.abs(value - others) <= MOVED * others)
        is_more = ~(n_copies <= MORE * n * TINY**others)
    return (n_copies > 0) & np.isfinite(value) & is_moved & is_more


def decide(value: np.ndarray, others: np.ndarray, is_copy: np.ndarray, r1: np.ndarray, min_points: int) -> np.ndarray:
    """Return which estimates near copies decide, (n_clouds,) bool.

    Parameters
    ----------
    value, others : (n_clouds,) arrays
        Estimates with near copies and without.
    is_copy : (n_clouds, n_points) array of bool
        The points that have a near copy.
    r1 : (n_clouds, n_points) array
        Distances to the nearest neighbor, NaN for points that do not count.
    min_points : int
        Of fewer points there is no estimate to compare with.
    """
    n, n_copies = np.isfinite(r1).sum(axis=1), is_copy.sum(axis=1)
    others = np.where(n - n_copies >= min_points, others, np.nan)
    # Where most points have one, the few others are no measure: they are the copies whose errors happen to be larger.
    is_most = n_copies > n / 2
    return move(value, others, n, n_copies) | (np.isfinite(value) & is_most)
