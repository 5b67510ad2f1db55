"""GRIDE: the ratio of the distances to the 2n-th and the n-th neighbor, by maximum likelihood.

Denti, Doimo, Laio and Mira (2022), "The generalized ratios intrinsic dimension estimator". With mu = r_{2n} / r_n,
the density of mu for uniform neighbors is

    f(mu) = d (mu^d - 1)^(n - 1) / (B(n, n) mu^((2n - 1) d + 1)),

and the derivative of the log-likelihood over N points, with x = log mu,

    g(d) = (N - 1) / d - (2n - 1) sum x + (n - 1) sum x / (1 - exp(-d x)),

falls through zero exactly once; N - 1 in place of N makes the estimate at n = 1 unbiased, as in DADApy. n is the
scale: `gride_n1` is TwoNN by maximum likelihood, larger n looks at wider neighborhoods and so past noise. All
ratios count; scikit-dimension leaves out those above 20 (q_95 - q_50) + q_50, quantiles of the ratios.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from id_scaling.estimators.base import Estimator
from id_scaling.estimators.spread import table_at
from id_scaling.estimators.spread_tables import gride as factors
from id_scaling.neighbors import Neighbors

MAX_STEPS = 100
# Newton's steps square the error: the value after a step this small is right to the last digits.
RELATIVE_STEP = 1e-9


def make(name: str, scale: str) -> Estimator:
    """Return the estimator at one scale n."""
    n = int(scale)
    ranks = (n, 2 * n)
    compute, spread = partial(maximum, scale=n), table_at(factors.RATIO, n)
    return Estimator(name, "neighbors", min_points=2 * n + 1, compute=compute, ranks=ranks, spread=spread)


def maximum(neighbors: Neighbors, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the maximum of the likelihood and 1 / sqrt(observed information) there."""
    x = neighbors.at(2 * scale) - neighbors.at(scale)
    is_counted = np.isfinite(neighbors.r1)
    x = np.where(is_counted, x, 0.0)
    n_points = is_counted.sum(axis=1)
    value = _root(x, is_counted, n_points, scale)
    return value, 1 / np.sqrt(-_score(value, x, is_counted, n_points, scale)[1])


def _root(x: np.ndarray, is_counted: np.ndarray, n_points: np.ndarray, scale: int) -> np.ndarray:
    """Return the zero of g for each cloud by Newton steps kept inside a shrinking bracket."""
    # 1 <= d x / (1 - exp(-d x)) <= 1 + d x for each point: g is positive at `low` and negative at `high`.
    total = x.sum(axis=1)
    low = (n_points - 1) / ((2 * scale - 1) * total)
    high = (n_points - 1 + (scale - 1) * n_points) / (scale * total)
    d, is_done = np.sqrt(low * high), np.zeros(len(x), dtype=bool)
    for _ in range(MAX_STEPS):
        g, slope = _score(d, x, is_counted, n_points, scale)
        low, high = np.where(g > 0, d, low), np.where(g > 0, high, d)
        step = d - g / slope
        following = np.where((step > low) & (step < high), step, (low + high) / 2)
        following = np.where(is_done, d, following)  # so that a cloud's root does not depend on its batch
        is_done |= (np.abs(following - d) <= RELATIVE_STEP * d) | ~np.isfinite(following)
        d = following
        if is_done.all():
            break
    return d


def _score(d, x, is_counted, n_points, scale) -> tuple[np.ndarray, np.ndarray]:
    """Return g(d) and g'(d) = -(N - 1) / d² - (n - 1) sum x² e^(-d x) / (1 - e^(-d x))²; x = 0 gives the limits."""
    product = d[:, None] * x
    shrunk = -np.expm1(-product)
    is_positive = product > 0
    ratio = np.where(is_positive, product / shrunk, 1.0) * is_counted
    of_slope = ratio * (ratio - product) * is_counted
    g = (n_points - 1) / d - (2 * scale - 1) * x.sum(axis=1) + (scale - 1) * ratio.sum(axis=1) / d
    return g, -(n_points - 1 + (scale - 1) * of_slope.sum(axis=1)) / d**2
