"""TwoNN: the ratio of the distances to the two nearest neighbors.

Facco, d'Errico, Rodriguez and Laio (2017), "Estimating the intrinsic dimension of datasets by a minimal
neighborhood information". mu = r_2 / r_1 follows F(mu) = 1 - mu^-d, so -log(1 - F) against log mu is
a line through the origin with slope d. The n ratios are sorted, F_i = i / n for i = 1..n, the largest
NN percent are discarded (kept = n (100 - NN) // 100, and never the last, where F = 1), and the slope is

    d = sum(x y) / sum(x²),    x = log mu_i,    y = -log(1 - i / n).

`twoNN_ml` is d = (n - 1) / sum log mu over all ratios: the maximum of the likelihood, with n - 1 instead of n, so that
it is unbiased.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from id_scaling.estimators.base import Estimator
from id_scaling.estimators.standard_error_tables import twonn as factors
from id_scaling.estimators.standard_errors import table_at
from id_scaling.neighbors.find import Neighbors


def make(name: str, discard_percent: str = "0", method: str = "line") -> Estimator:
    """Return the estimator; `method` is `line`, which discards a percentage of the largest ratios, or `ml`."""
    if method == "ml":
        return Estimator(name, "neighbors", 3, likelihood, ranks=(2,), spread=factors.LIKELIHOOD[0])
    percent = int(discard_percent)
    # Fewer than two kept ratios make no line.
    min_points = next(n for n in range(3, 1000) if n_kept(n, percent) >= 2)
    compute, spread = partial(slope, discard_percent=percent), table_at(factors.REGRESSION, percent)
    return Estimator(name, "neighbors", min_points=min_points, compute=compute, ranks=(2,), spread=spread)


def slope(neighbors: Neighbors, discard_percent: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the slope; its standard error is the one of a likelihood over the kept points, d / sqrt(kept).

    Examples
    --------
    >>> neighbors = Neighbors((1, 2), np.ones((1, 4)), np.log([[[1.0, 2.0], [1.0, 4.0], [1.0, 3.0], [1.0, 9.0]]]), {})
    >>> with np.errstate(divide="ignore"):  # from the last point, which is not used
    ...     value, stderr = slope(neighbors, discard_percent=10)
    >>> [value.round(3).tolist(), stderr.round(3).tolist()]
    [[0.799], [0.461]]
    """
    log_mu = np.sort(neighbors.at(2), axis=1)
    n = np.isfinite(neighbors.r1).sum(axis=1)[:, None]
    kept = n_kept(n, discard_percent)
    i = np.arange(1, log_mu.shape[1] + 1)
    is_kept = i <= kept
    x = np.where(is_kept, log_mu, 0.0)
    y = np.where(is_kept, -np.log1p(-np.minimum(i / n, 1.0)), 0.0)
    value = (x * y).sum(axis=1) / (x * x).sum(axis=1)
    return value, value / np.sqrt(kept[:, 0])


def likelihood(neighbors: Neighbors) -> tuple[np.ndarray, np.ndarray]:
    """Return the unbiased maximum of the likelihood; its standard error is d / sqrt(n).

    Examples
    --------
    >>> neighbors = Neighbors((1, 2), np.ones((1, 4)), np.log([[[1.0, 2.0], [1.0, 4.0], [1.0, 3.0], [1.0, 9.0]]]), {})
    >>> [numbers.round(3).tolist() for numbers in likelihood(neighbors)], round(float(3 / np.log(2 * 4 * 3 * 9)), 3)
    ([[0.558], [0.279]], 0.558)
    """
    is_counted = np.isfinite(neighbors.r1)
    n = is_counted.sum(axis=1)
    value = (n - 1) / np.where(is_counted, neighbors.at(2), 0.0).sum(axis=1)
    return value, value / np.sqrt(n)


def n_kept(n: int | np.ndarray, discard_percent: int) -> np.ndarray:
    """Return how many of n sorted ratios are kept, by integer arithmetic.

    Examples
    --------
    >>> int(n_kept(100, 10)), int(n_kept(100, 0))
    (90, 99)
    """
    return np.minimum(n * (100 - discard_percent) // 100, n - 1)
