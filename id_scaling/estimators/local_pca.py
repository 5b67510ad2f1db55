"""Local PCA: how many directions hold most of the variance of a point's neighborhood.

After Fukunaga and Olsen (1971), "An algorithm for finding intrinsic dimensionality of data", whose threshold is a
fraction of the largest variance and not of the whole. Of each point the k nearest
neighbors are centred; d_i is the fewest principal components that hold a per cent v of their variance, and the ID is
the mean over points. `local_pca_kNN_vNN` has both in its name. Where nearly all points have the same count, as on
planes, the standard error is what one more or less at one point makes, so that intervals are too wide there.
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
    """Return the estimator for k neighbors and a per cent of the variance; factors are those of 90 per cent."""
    given: dict[str, Any] = {"k": int(k), "percent": int(percent)}
    compute, local, spread = partial(mean, **given), partial(pointwise, **given), table_at(factors.MEAN, int(k))
    ceiling = partial(largest, **given)
    return Estimator(name, "points", int(k) + 1, compute, ceiling=ceiling, local=local, is_mean=True, spread=spread)


def largest(_: int, __: int, k: int, percent: int) -> float:
    """Return the largest value: k centred neighbors span k - 1 directions, the leading of which hold most variance.

    Examples
    --------
    >>> largest(500, 20, k=50, percent=90)
    45.0
    """
    return float(-(-percent * (k - 1) // 100))


def mean(points: np.ndarray, k: int, percent: int) -> tuple[float, float, np.ndarray]:
    """Return the mean over points, its standard error, no less than one more at one point makes, and all d_i.

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
    return np.concatenate([_of_grams(gram, percent / 100) for _, gram in gram_of_displacements(points, k)])


def _of_grams(gram: np.ndarray, share: float) -> np.ndarray:
    """Return d_i from inner products of displacements, (b, k, k)."""
    rows = gram.mean(axis=2, keepdims=True)
    centred = gram - rows - rows.transpose(0, 2, 1) + rows.mean(axis=1, keepdims=True)
    spectrum = np.clip(np.linalg.eigvalsh(centred)[:, ::-1], 0, None)
    held = spectrum.cumsum(axis=1) / spectrum.sum(axis=1, keepdims=True)
    return 1.0 + (held + ROUNDING < share).sum(axis=1)
