"""Inner products of the displacements from each point to its neighbors, for estimators of local geometry."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from id_scaling.neighbors.points import prepare_points
from id_scaling.neighbors.search import find_nearest

# Number of coordinates of displacements in memory at once: 128 MB.
HELD_AT_ONCE = 2**24


def gram_of_displacements(points: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the k nearest neighbors j of each point i, nearest first, and the inner products of all x_j - x_i.

    Parameters
    ----------
    points : (n, d) float64 array
        At least k + 1 different points.
    k : int
        Number of neighbors.

    Yields
    ------
    neighbors : (b, k) array of int
    gram : (b, k, k) array
    """
    nearest = find_nearest(prepare_points(points), np.arange(len(points)), k, np.empty(0, dtype=int)).indices[:, :k]
    step = max(1, HELD_AT_ONCE // (k * points.shape[1]))
    for start in range(0, len(points), step):
        batch = slice(start, start + step)
        displacements = points[nearest[batch]] - points[batch, None, :]
        yield nearest[batch], displacements @ displacements.transpose(0, 2, 1)


def mean_and_error(local: np.ndarray) -> tuple[float, float]:
    """Return the mean over points, and its standard error as if points were independent.

    Examples
    --------
    >>> [round(number, 3) for number in mean_and_error(np.array([2.0, 3.0, 4.0]))]
    [3.0, 0.577]
    """
    return float(local.mean()), float(local.std(ddof=1) / np.sqrt(len(local)))
