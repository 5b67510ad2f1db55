"""GRIDE: the ratio of the distances to the 2n-th and the n-th neighbor, by maximum likelihood.

Denti, Doimo, Laio and Mira (2022), "The generalized ratios intrinsic dimension estimator". With mu = r_{2n} / r_n,
the density of mu for uniform neighbors is

    f(mu) = d (mu^d - 1)^(n - 1) / (B(n, n) mu^((2n - 1) d + 1)),

and the derivative of the log-likelihood over N points, with x = log mu,

    g(d) = (N - 1) / d - (2n - 1) sum x + (n - 1) sum x / (1 - exp(-d x)),

crosses zero exactly once, from above. N - 1 in place of N makes the estimate at n = 1 unbiased, as in DADApy. n is the
scale: `gride_n1` is TwoNN by maximum likelihood; a larger n uses wider neighborhoods and so is less sensitive to noise.
All ratios are used; DADApy and scikit-dimension leave out those above 20 (q_95 - q_50) + q_50, with quantiles q of the
ratios.

A neighborhood that contains much of the cloud ends where the cloud ends, so the estimate decreases with the scale. For
1000 points (uniform in a cube or a ball, normal, or on a sphere) it is this share of the dimension:

    2n / N    1/16           1/4            1/2            2/3            1
    d = 2     0.93 to 1.03   0.86 to 1.00   0.80 to 1.00   0.76 to 1.00   0.35 to 1.00
    d = 5     0.82 to 0.94   0.75 to 0.84   0.65 to 0.75   0.55 to 0.68   0.21 to 0.43
    d = 10    0.73 to 0.80   0.63 to 0.68   0.49 to 0.57   0.40 to 0.50   0.14 to 0.24

A curved cloud can give more: a product of two circles gives 1.18 at 1/4 and 1.55 at 1/2. Beyond 2/3, fewer points are
outside the 2n-th neighbor than between it and the n-th neighbor, so the cloud has too few points.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from id_scaling.estimators.base import Estimator
from id_scaling.estimators.newton import maximum_between
from id_scaling.estimators.standard_error_tables import gride as factors
from id_scaling.estimators.standard_errors import table_at
from id_scaling.neighbors.find import Neighbors


def make(name: str, scale: str) -> Estimator:
    """Return the estimator at one scale n."""
    n = int(scale)
    ranks = (n, 2 * n)
    compute, spread = partial(maximum, scale=n), table_at(factors.RATIO, n)
    return Estimator(name, "neighbors", min_points=3 * n, compute=compute, ranks=ranks, spread=spread)


def maximum(neighbors: Neighbors, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the maximum of the likelihood and 1 / sqrt(observed information) there.

    Examples
    --------
    >>> neighbors = Neighbors((1, 2), np.ones((1, 4)), np.log([[[1.0, 2.0], [1.0, 4.0], [1.0, 3.0], [1.0, 9.0]]]), {})
    >>> [numbers.round(3).tolist() for numbers in maximum(neighbors, scale=1)]
    [[0.558], [0.322]]
    """
    x = neighbors.at(2 * scale) - neighbors.at(scale)
    is_counted = np.isfinite(neighbors.r1)
    x = np.where(is_counted, x, 0.0)
    n_points = is_counted.sum(axis=1)
    # 1 <= d x / (1 - exp(-d x)) <= 1 + d x for each point: g is positive at `low` and negative at `high`.
    total = x.sum(axis=1)
    low = (n_points - 1) / ((2 * scale - 1) * total)
    high = (n_points - 1 + (scale - 1) * n_points) / (scale * total)
    score = partial(_score, x=x, is_counted=is_counted, n_points=n_points, scale=scale)
    value = maximum_between(low, high, score)
    return value, 1 / np.sqrt(-score(value)[1])


def _score(
    d: np.ndarray, x: np.ndarray, is_counted: np.ndarray, n_points: np.ndarray, scale: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return g(d) and g'(d) = -(N - 1) / d² - (n - 1) sum x² e^(-d x) / (1 - e^(-d x))²; x = 0 gives the limits."""
    product = d[:, None] * x
    complement = -np.expm1(-product)
    is_positive = product > 0
    ratio = np.where(is_positive, product / complement, 1.0) * is_counted
    slope_terms = ratio * (ratio - product) * is_counted
    g = (n_points - 1) / d - (2 * scale - 1) * x.sum(axis=1) + (scale - 1) * ratio.sum(axis=1) / d
    return g, -(n_points - 1 + (scale - 1) * slope_terms.sum(axis=1)) / d**2
