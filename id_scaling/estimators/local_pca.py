"""Local PCA: the number of directions that hold most of the variance of a point's neighborhood.

After Fukunaga and Olsen (1971), "An algorithm for finding intrinsic dimensionality of data", whose threshold is a
fraction of the largest variance, not of the total. For each point, the k nearest neighbors are centered, and d_i is the
smallest number of principal components that hold v percent of their variance. The ID is the mean over points.
`local_pca_kNN_vNN` has k and v in its name. The standard error is at least the effect of one more component at one
point, so intervals are too wide where nearly all points have the same d_i, as on planes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from id_scaling.estimators.base import Estimator
from id_scaling.estimators.local_geometry import gram_of_displacements, mean_and_error
from id_scaling.estimators.standard_error_tables import local_pca as factors
from id_scaling.estimators.standard_errors import table_at
from id_scaling.neighbors.statistics import ROUNDING


def make(name: str, k: str, percent: str) -> Estimator:
    """Return the estimator for k neighbors and a percentage of the variance; the factors are for 90 percent."""
    options: dict[str, Any] = {"k": int(k), "percent": int(percent)}
    compute, local, spread = partial(mean, **options), partial(pointwise, **options), table_at(factors.MEAN, int(k))
    ceiling = partial(largest, **options)
    return Estimator(name, "points", int(k) + 1, compute, ceiling=ceiling, local=local, is_mean=True, spread=spread)


def largest(_: int, __: int, k: int, percent: int) -> float:
    """Return the largest possible value: k centered neighbors span k - 1 directions, the leading with most variance.

    Examples
    --------
    >>> largest(500, 20, k=50, percent=90)
    45.0
    """
    return float(-(-percent * (k - 1) // 100))


def mean(points: np.ndarray, k: int, percent: int) -> tuple[float, float, np.ndarray]:
    """Return the mean over points, its standard error (at least one more component at one point), and all d_i.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> sheet = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 20))
    >>> [round(number, 3) for number in mean(sheet, k=50, percent=90)[:2]]
    [3.0, 0.005]
    """
    local = pointwise(points, k, percent)
    value, error = mean_and_error(local)
    return value, float(np.hypot(error, 1 / len(points))), local


def pointwise(points: np.ndarray, k: int, percent: int) -> np.ndarray:
    """Return d_i of each point, (n,)."""
    return np.concatenate([_dimensions(gram, percent / 100) for _, gram in gram_of_displacements(points, k)])


def _dimensions(gram: np.ndarray, share: float) -> np.ndarray:
    """Return d_i from inner products of displacements, (b, k, k)."""
    row_means = gram.mean(axis=2, keepdims=True)
    centred = gram - row_means - row_means.transpose(0, 2, 1) + row_means.mean(axis=1, keepdims=True)
    spectrum = np.clip(np.linalg.eigvalsh(centred)[:, ::-1], 0, None)
    cumulative_share = spectrum.cumsum(axis=1) / spectrum.sum(axis=1, keepdims=True)
    return 1.0 + (cumulative_share + ROUNDING < share).sum(axis=1)
