"""Angle-based intrinsic dimension: in d dimensions, the squared cosine of two directions is 1 / d on average.

Thordsen and Schubert (2022), "ABID: Angle based intrinsic dimensionality - theory and analysis". Over all pairs of
directions from a point to its k neighbors, each with itself too,

    d_i = k² / sum_{j,l} cos²(x_j - x_i, x_l - x_i),

between 1 and k; the ID is the mean over points. `abid_kNN` has k in its name: it bounds the value.

The standard error is an infinitesimal jackknife over points, less what it counts more than once. The weight of point j
changes the sum of all d_i by d_j, and by sum_l φ_i(j, l) in each neighborhood i that j is in, with

    φ_i(j, l) = (2 d_i / k²) (1 - d_i cos²(x_j - x_i, x_l - x_i)).

Where the manifold is flat, a single point changes the sum by noise: only pairs and triples tell. The squares of the
points' influences then hold the part of a pair twice; that of Q_jl = sum_i φ_i(j, l) is taken off once. A third of the
sum of squares is left at least, as the part of a triple is in it three times. With a simulated factor near one, 95 per
cent intervals cover 92 to 99.5 per cent.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from id_scaling.estimators.base import Estimator
from id_scaling.estimators.local_geometry import gram_of_displacements
from id_scaling.estimators.standard_error_tables import abid as factors
from id_scaling.estimators.standard_errors import table_at


def make(name: str, k: str) -> Estimator:
    """Return the estimator for k neighbors."""
    compute, local = partial(mean, k=int(k)), partial(pointwise, k=int(k))
    spread = table_at(factors.MEAN, int(k))
    return Estimator(name, "points", int(k) + 1, compute, local=local, is_mean=True, spread=spread)


def mean(points: np.ndarray, k: int) -> tuple[float, float, np.ndarray]:
    """Return the mean over points, its standard error, and d_i of each point, (n,).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> sheet = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 20))
    >>> [round(number, 3) for number in mean(sheet, k=100)[:2]]
    [2.519, 0.036]
    """
    parts, pairs = [], np.zeros((len(points), len(points)))
    for neighbors, gram in gram_of_displacements(points, k):
        squared_cosines = _squared_cosines(gram)
        parts.append(_dimensions(squared_cosines))
        for members, d, of_pairs in zip(neighbors, parts[-1], squared_cosines, strict=True):
            pairs[np.ix_(members, members)] += 2 * d / k**2 * (1 - d * of_pairs)
    local = np.concatenate(parts)
    return float(local.mean()), jackknife_error(local, pairs), local


def pointwise(points: np.ndarray, k: int) -> np.ndarray:
    """Return d_i of each point, (n,)."""
    return np.concatenate([_dimensions(_squared_cosines(gram)) for _, gram in gram_of_displacements(points, k)])


def jackknife_error(local: np.ndarray, pairs: np.ndarray) -> float:
    """Return the standard error of the mean of d_i, (n,), from how each pair changes their sum, Q, (n, n).

    Examples
    --------
    >>> round(jackknife_error(np.array([2.0, 3.0, 4.0]), np.zeros((3, 3))), 3)
    0.471
    """
    influences = local - local.mean() + pairs.sum(axis=1)
    square = influences @ influences
    of_pairs = (np.vdot(pairs, pairs) - np.sum(np.diagonal(pairs) ** 2)) / 2
    return float(np.sqrt(max(square - of_pairs, square / 3)) / len(local))


def _squared_cosines(gram: np.ndarray) -> np.ndarray:
    """Return squared cosines from inner products of displacements, (b, k, k)."""
    squares = np.diagonal(gram, axis1=1, axis2=2)
    return gram**2 / (squares[:, :, None] * squares[:, None, :])


def _dimensions(squared_cosines: np.ndarray) -> np.ndarray:
    """Return d_i from squared cosines, (b, k, k)."""
    return squared_cosines.shape[1] ** 2 / squared_cosines.sum(axis=(1, 2))
