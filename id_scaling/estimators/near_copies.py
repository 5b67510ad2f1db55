"""Points that are next to equal: how many there are, and whether they decide an estimate.

Equal points are found by value. Points a rounding error apart are not equal, and their distance is of rounding: it says
nothing about the manifold, but enters log-ratios as -log of it, and drives an ID toward 0 (or, in a group of copies,
toward the dimension of the rounding errors). A point has a *near copy* where
its nearest neighbor is at less than a hundredth of the usual distance between points that are not copies: the median
over the points of the distance to the nearest other past all jumps. A jump is a distance more than a hundred times the
one before, among those to the K nearest. Where few points have one, near copies are the share `tiny_r1` of every table;
where most points are copies, the median of the nearest distances would be a rounding error too. A jump alone makes no
copy: the two places of a token that a text has twice are at a usual distance, and far from all others.

In d dimensions of even density there are near copies at a share of about 100^-d of the points: at one point in ten
thousand for d = 2, and at none of any cloud for d = 5. So near copies are an artifact where they are more than that.
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
# They are more than the dimension explains where they are more than so many times the expected share: densities vary.
MORE = 8


def tiny_share(r1: np.ndarray) -> np.ndarray:
    """Return the share of the points that count whose nearest neighbor is at next to no distance; NaN for no points."""
    n, n_tiny = np.isfinite(r1).sum(axis=1), _is_tiny(r1, r1).sum(axis=1)
    return np.divide(n_tiny, n, out=np.full(len(r1), np.nan), where=n > 0)


def has_near_copy(neighbors: Neighbors) -> np.ndarray:
    """Return which points have a near copy, (n_clouds, n_points), as far as the stored ranks tell."""
    columns = [column for column, rank in enumerate(neighbors.ranks) if 1 < rank <= K]
    ranks = np.array([1, *(neighbors.ranks[column] for column in columns)])
    logs = np.concatenate([np.zeros((*neighbors.r1.shape, 1)), neighbors.log_ratio[..., columns]], axis=-1)
    with np.errstate(all="ignore"):
        jumps = (np.diff(logs, axis=-1) > JUMP) & (np.diff(ranks) == 1)
        past = np.max(np.where(jumps, logs[..., 1:], 0.0), axis=-1, initial=0.0)  # logs ascend: the last is the largest
        return _is_tiny(neighbors.r1, neighbors.r1 * np.exp(past))


def _is_tiny(r1: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Return which points have a nearest neighbor at no distance or far below the median of some distances."""
    rows = [row[np.isfinite(row)] for row in usual]
    medians = np.array([np.median(row) if len(row) else np.nan for row in rows])
    return (r1 == 0) | (r1 < TINY * medians[:, None])


def without(neighbors: Neighbors, left_out: np.ndarray) -> Neighbors:
    """Return neighbors in which some more points do not count."""
    r1 = np.where(left_out, np.nan, neighbors.r1)
    log_ratio = np.where(left_out[..., None], np.nan, neighbors.log_ratio)
    return replace(neighbors, r1=r1, log_ratio=log_ratio)


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
    with np.errstate(all="ignore"):
        others = np.where(n - n_copies >= min_points, others, np.nan)
        is_moved = ~(np.abs(value - others) <= MOVED * others)
        is_more = ~(n_copies <= MORE * n * TINY**others)
    # Where most points have one, the few others are no measure: they are the copies whose errors happen to be larger.
    is_most = n_copies > n / 2
    return (n_copies > 0) & np.isfinite(value) & ((is_moved & is_more) | is_most)
