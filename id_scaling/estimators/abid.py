"""Angle-based intrinsic dimension: in d dimensions, the squared cosine of two directions is 1 / d on average.

Thordsen and Schubert (2022), "ABID: Angle based intrinsic dimensionality - theory and analysis". Over all pairs of
directions from a point to its k neighbors, each with itself too,

    d_i = k² / sum_{j,l} cos²(x_j - x_i, x_l - x_i),

between 1 and k; the ID is the mean over points. `abid_kNN` has k in its name: it bounds the value. How much wider
estimates spread than its asymptotic standard error depends on the curvature, from 0.5 to 4.7 times: with the factor,
a mean of two geometries, 95 per cent intervals cover 79 to 100 per cent.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from id_scaling.estimators.base import Estimator
from id_scaling.estimators.displacements import gram_of_displacements, mean_and_error
from id_scaling.estimators.spread import table_at
from id_scaling.estimators.spread_tables import abid as factors


def make(name: str, k: str) -> Estimator:
    """Return the estimator for k neighbors."""
    compute, local = partial(mean, k=int(k)), partial(pointwise, k=int(k))
    spread = table_at(factors.MEAN, int(k))
    return Estimator(name, "points", min_points=int(k) + 1, compute=compute, local=local, spread=spread)


def mean(points: np.ndarray, k: int) -> tuple[float, float]:
    """Return the mean over points, and its standard error."""
    return mean_and_error(pointwise(points, k))


def pointwise(points: np.ndarray, k: int) -> np.ndarray:
    """Return d_i of each point, (n,)."""
    return np.concatenate([_of_grams(gram) for gram in gram_of_displacements(points, k)])


def _of_grams(gram: np.ndarray) -> np.ndarray:
    """Return d_i from inner products of displacements, (b, k, k)."""
    squares = np.diagonal(gram, axis1=1, axis2=2)
    squared_cosines = gram**2 / (squares[:, :, None] * squares[:, None, :])
    return gram.shape[1] ** 2 / squared_cosines.sum(axis=(1, 2))
