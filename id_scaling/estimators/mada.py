"""Manifold-adaptive dimension: growth of the radius when the number of neighbors doubles.

Farahmand, Szepesvári and Audibert (2007), "Manifold-adaptive dimension estimation". With k = 20, the ball that
holds half as many neighbors is 2^(1/d) times smaller:

    d_i = log 2 / log(R_k / R_{k/2}),

and the ID is the mean over points, as in scikit-dimension and R's ider.
"""

from __future__ import annotations

import numpy as np

from id_scaling.estimators.base import Estimator, mean_over_points
from id_scaling.estimators.standard_error_tables import mada as factors
from id_scaling.neighbors.find import Neighbors

K = 20


def make(name: str) -> Estimator:
    """Return the estimator."""
    ranks = (K // 2, K)
    spread = factors.RATIO[K]
    return Estimator(name, "neighbors", K + 1, mean, ranks, local=pointwise, is_mean=True, spread=spread)


def mean(neighbors: Neighbors) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over points of the pointwise estimates, and the standard error of that mean.

    Examples
    --------
    >>> neighbors = Neighbors((10, 20), np.ones((1, 2)), np.log([[[2.0, 4.0], [3.0, 4.0]]]), {})
    >>> [numbers.round(3).tolist() for numbers in mean(neighbors)]
    [[1.705], [0.705]]
    """
    return mean_over_points(pointwise(neighbors), neighbors)


def pointwise(neighbors: Neighbors) -> np.ndarray:
    """Return d_i, (n_clouds, n_points); NaN for unused points.

    Examples
    --------
    >>> neighbors = Neighbors((10, 20), np.ones((1, 2)), np.log([[[2.0, 4.0], [3.0, 4.0]]]), {})
    >>> pointwise(neighbors).round(3).tolist()
    [[1.0, 2.409]]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(2) / (neighbors.at(K) - neighbors.at(K // 2))
