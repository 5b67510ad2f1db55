"""Tight local estimation: Hill's estimate over all pairs of neighbors, and their reflections.

Amsaleg, Chelly, Houle, Kawarabayashi, Radovanović and Treeratanajaru (2019), "Intrinsic dimensionality estimation
within tight localities". Let u_j be the distances of a point to its k = 20 neighbors, r = u_k, v_jl the distance
between two neighbors, and z_jl² = 2 u_j² + 2 u_l² - v_jl² the squared distance to a reflection. With

    s(w) = r (sqrt((u_j² + w² - u_l²)² + 4 w² (r² - u_j²)) - (u_j² + w² - u_l²)) / (2 (r² - u_j²))

(r w² / (r² + w² - u_l²) where u_j = r), each point gives

    d_i = -2 k² / (sum_{j≠l} log(s(v_jl) / r) + sum_{j≠l} log(s(z_jl) / r) + 2 sum_j log(u_j / r)).

The ID is the mean over points. A pair with a measurement below 1e-7 r is left out, and subtracted from k². The authors'
code and scikit-dimension leave out measurements below an absolute 1e-4, so their value depends on the unit of the
points; where no measurement is that small, all agree. Computation with 40 digits agrees with this implementation.
"""

from __future__ import annotations

import numpy as np

from id_scaling.estimators.base import Estimator
from id_scaling.estimators.local_geometry import gram_of_displacements, mean_and_error
from id_scaling.estimators.standard_error_tables import tle as factors

K = 20
# Measurements below this, relative to r, are rounding errors.
EPSILON = 1e-7


def make(name: str) -> Estimator:
    """Return the estimator."""
    return Estimator(name, "points", K + 1, mean, local=pointwise, is_mean=True, spread=factors.MEAN[K])


def mean(points: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Return the mean over points, its standard error, and d_i of each point, (n,).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> sheet = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 20))
    >>> [round(number, 3) for number in mean(sheet)[:2]]
    [3.088, 0.036]
    """
    local = pointwise(points)
    return (*mean_and_error(local), local)


def pointwise(points: np.ndarray) -> np.ndarray:
    """Return d_i of each point, (n,)."""
    return np.concatenate([_dimensions(gram) for _, gram in gram_of_displacements(points, K)])


def _dimensions(gram: np.ndarray) -> np.ndarray:
    """Return d_i from inner products of displacements, (b, k, k), in units of r."""
    u2 = np.diagonal(gram, axis1=1, axis2=2)
    gram, u2 = gram / u2[:, -1:, None], u2 / u2[:, -1:]
    v2 = np.maximum(u2[:, :, None] + u2[:, None, :] - 2 * gram, 0)
    z2 = u2[:, :, None] + u2[:, None, :] + 2 * gram
    s, t = _measure(v2, u2), _measure(z2, u2)
    is_pair = ~np.eye(K, dtype=bool) & (s > EPSILON) & (t > EPSILON)
    logs = np.log(np.where(is_pair, s * t, 1.0)).sum(axis=(1, 2))
    n_measured = K + is_pair.sum(axis=(1, 2))
    return -2 * n_measured / (logs + np.log(u2).sum(axis=1))


def _measure(w2: np.ndarray, u2: np.ndarray) -> np.ndarray:
    """Return s for squared distances (b, k, k) and squared distances to the neighbors (b, k), r = 1."""
    u2_j, u2_l = u2[:, :, None], u2[:, None, :]
    excess, gap = u2_j + w2 - u2_l, 1 - u2_j
    with np.errstate(divide="ignore", invalid="ignore"):
        within_radius = (np.sqrt(excess**2 + 4 * w2 * gap) - excess) / (2 * gap)
        on_the_sphere = w2 / (1 + w2 - u2_l)
    return np.where(gap > 0, within_radius, on_the_sphere)
