"""Minimum-spanning-tree dimension, from subsets of half to all of the points.

Costa and Hero (2004), "Geodesic entropic graphs for dimension and entropy estimation in manifold learning", with
Euclidean edges. Random subsets have ten sizes, from half of the points to all but a twentieth, with ten draws of each
size. A line through the means of their tree lengths against size, both in logarithms, has the slope m, and
d = 1 / (1 - m). There are three repeats, as for `phd`, which uses medians and subsets of 50 to 512 points, a coarser
scale. Costa and Hero round to an integer; here the value is not rounded. Draws are seeded.
"""

from __future__ import annotations

import numpy as np

from id_scaling.estimators.base import Estimator
from id_scaling.estimators.spanning_trees import dimension_of_growth

N_SIZES, N_DRAWS, N_REPEATS, SEED = 10, 10, 3, 0


def make(name: str) -> Estimator:
    """Return the estimator."""
    return Estimator(name, "points", min_points=40, compute=dimension)


def dimension(points: np.ndarray) -> tuple[float, float]:
    """Return the dimension from the mean slope over repeats, and its standard error.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> sheet = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 20))
    >>> [round(number, 3) for number in dimension(sheet)]
    [3.569, 0.108]
    """
    n = len(points)
    sizes = np.linspace(n // 2, n - n // 20, N_SIZES).astype(int)
    return dimension_of_growth(points, sizes, np.full(N_SIZES, N_DRAWS), N_REPEATS, np.mean, SEED)
