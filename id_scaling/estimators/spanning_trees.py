"""Dimension from how the length of a minimum spanning tree grows with the number of points.

Steele (1988), "Growth rates of Euclidean minimal spanning trees with power weighted edges": for n points of a
d-dimensional density the sum of the edge lengths to the power alpha grows like n^((d - alpha) / d). With alpha = 1 and
m the slope of the log length over log n, d = 1 / (1 - m). The methods differ in their subsets of points.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from id_scaling.kernels import compiled


def dimension_of_growth(
    points: np.ndarray, sizes: np.ndarray, n_draws: int, n_repeats: int, middle: Callable, seed: int
) -> tuple[float, float]:
    """Return the dimension of the mean slope over repeats, and its standard error from their spread.

    Infinite where twice that error of the slope reaches 1: then the draws do not tell any large dimensions apart.

    Parameters
    ----------
    points : (n, d) float64 array
        The cloud.
    sizes : array of int
        Sizes of the random subsets, drawn without replacement.
    n_draws : int
        Subsets of each size; `middle` of their lengths counts.
    n_repeats : int
        How many times all of this is done.
    middle : callable
        `np.median` or `np.mean`.
    seed : int
        Of the draws.
    """
    rng = np.random.default_rng(seed)
    centred = points - points.mean(axis=0)
    squared_norms = (centred**2).sum(axis=1)
    squares = np.maximum(squared_norms[:, None] + squared_norms - 2 * compiled.gram(centred), 0)
    distances = np.sqrt(squares)
    slopes = [_slope(distances, sizes, n_draws, middle, rng) for _ in range(n_repeats)]
    slope, error = np.mean(slopes), np.std(slopes, ddof=1) / np.sqrt(n_repeats)
    if slope + 2 * error >= 1:
        return np.inf, np.nan
    return float(1 / (1 - slope)), float(error / (1 - slope) ** 2)


def _slope(distances, sizes, n_draws, middle, rng) -> float:
    """Return the slope of the log length over log n."""
    lengths = [
        middle([_length(distances, rng.choice(len(distances), size, replace=False)) for _ in range(n_draws)])
        for size in sizes
    ]
    return np.polyfit(np.log(sizes), np.log(lengths), 1)[0]


def _length(distances: np.ndarray, subset: np.ndarray) -> float:
    """Return the length of the minimum spanning tree of a subset."""
    return float(compiled.tree_edges(distances[np.ix_(subset, subset)]).sum())
