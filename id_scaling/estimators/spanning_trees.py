"""Dimension from the growth of the length of a minimum spanning tree with the number of points.

Steele (1988), "Growth rates of Euclidean minimal spanning trees with power weighted edges": for n points of a
d-dimensional density, the sum of the edge lengths to the power alpha grows like n^((d - alpha) / d). With alpha = 1 and
m the slope of the log length against log n, d = 1 / (1 - m). The methods differ in their subsets of points.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from id_scaling.neighbors.kernels import numba_kernels

# Edges within SAME of the shortest tie with it. For half of the points of an evenly spaced line, where the slope is
# correct, half of the edges tie; for half of a lattice of two or more dimensions, where it is wrong, at least 0.83 do.
SAME, TIED = 1e-6, 2 / 3
# A squared distance from a product has only ten digits if it is below this share of the squared norms.
LOST = 1e-6


def dimension_of_growth(
    points: np.ndarray, sizes: np.ndarray, n_draws: np.ndarray, n_repeats: int, middle: Callable, seed: int
) -> tuple[float, float]:
    """Return the dimension from the mean slope over repeats, and its standard error from their standard deviation.

    The dimension is infinite in two cases. First, if the slope plus twice its error reaches 1: the draws cannot
    distinguish large dimensions. Second, if most edges of the smallest trees tie at the shortest length, as on a
    lattice: more points cannot shorten these edges, so the length grows with their number, as in infinite dimensions.

    Parameters
    ----------
    points : (n, d) float64 array
        The cloud.
    sizes : array of int
        Sizes of the random subsets, drawn without replacement.
    n_draws : array of int
        Number of subsets of each size; `middle` summarizes their lengths.
    n_repeats : int
        Number of repetitions with new subsets.
    middle : callable
        `np.median` or `np.mean`.
    seed : int
        Seed of the draws.
    """
    rng = np.random.default_rng(seed)
    distances = _distances(points)
    if _tied_share(distances, sizes[0], n_draws[0], seed) > TIED:
        return np.inf, np.nan
    slopes = [_slope(distances, sizes, n_draws, middle, rng) for _ in range(n_repeats)]
    slope, error = np.mean(slopes), np.std(slopes, ddof=1) / np.sqrt(n_repeats)
    if slope + 2 * error >= 1:
        return np.inf, np.nan
    return float(1 / (1 - slope)), float(error / (1 - slope) ** 2)


def _distances(points: np.ndarray) -> np.ndarray:
    """Return all distances: from products, or from differences for points whose nearest is too near for products."""
    centred = points - points.mean(axis=0)
    squared_norms = (centred**2).sum(axis=1)
    squares = squared_norms[:, None] + squared_norms - 2 * numba_kernels.gram(centred)
    np.fill_diagonal(squares, np.inf)
    inaccurate = np.flatnonzero(squares.min(axis=1) < LOST * squared_norms)
    if len(inaccurate):
        others = np.broadcast_to(np.arange(len(points)), (len(inaccurate), len(points)))
        squares[inaccurate] = numba_kernels.differences(points, inaccurate, others, np.float64)
        squares[:, inaccurate] = squares[inaccurate].T
    np.fill_diagonal(squares, 0.0)
    return np.sqrt(squares)


def _slope(
    distances: np.ndarray,
    sizes: np.ndarray,
    n_draws: np.ndarray,
    middle: Callable[[list[float]], float],
    rng: np.random.Generator,
) -> float:
    """Return the slope of the log length against log n."""
    lengths = [
        middle([_edges(distances, size, rng).sum() for _ in range(count)])
        for size, count in zip(sizes, n_draws, strict=True)
    ]
    return np.polyfit(np.log(sizes), np.log(lengths), 1)[0]


def _tied_share(distances: np.ndarray, size: int, n_draws: int, seed: int) -> float:
    """Return the share of edges that tie with the shortest, in trees of one size."""
    rng = np.random.default_rng(seed)
    edges = np.concatenate([_edges(distances, size, rng) for _ in range(n_draws)])
    return float(np.mean(edges <= (1 + SAME) * edges.min()))


def _edges(distances: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return the edges of the minimum spanning tree of a random subset of one size."""
    subset = rng.choice(len(distances), size, replace=False)
    return numba_kernels.tree_edges(distances[np.ix_(subset, subset)])
