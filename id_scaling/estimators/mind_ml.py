"""MiND_ML: the ratio of the nearest to the (k+1)-th neighbor distance, by maximum likelihood.

Rozza, Lombardi, Ceruti, Casiraghi and Campadelli (2012), "Novel high intrinsic dimensionality estimators"
(MiND_MLk). With rho = r_1 / r_{k+1}, k = 20, the log-likelihood of n points is

    n log(k d) + (d - 1) sum log rho + (k - 1) sum log(1 - rho^d).

It is concave in d, and its derivative with a = -log rho,

    g(d) = n / d - sum a + (k - 1) sum a / (exp(a d) - 1),

falls through zero exactly once, between n / sum a and k n / sum a. `mind_ml` is
that root, with no ceiling; `mind_ml_dNN` is the smaller of it and NN, `saturated` where NN binds.
"""

from __future__ import annotations

import numpy as np

from id_scaling.estimators.base import Estimator
from id_scaling.estimators.spread import table_at
from id_scaling.estimators.spread_tables import mind_ml as factors
from id_scaling.neighbors import Neighbors

K = 20
MAX_STEPS = 100
# Newton's steps square the error: the value after a step this small is right to the last digits.
RELATIVE_STEP = 1e-9


def make(name: str, cap: str | None = None) -> Estimator:
    """Return the estimator; `cap` is a ceiling on d, none by default."""
    ceiling = float(cap) if cap else np.inf
    spread = table_at(factors.RATIO, K)
    return Estimator(name, "neighbors", min_points=K + 2, compute=maximum, ranks=(K + 1,), cap=ceiling, spread=spread)


def maximum(neighbors: Neighbors) -> tuple[np.ndarray, np.ndarray]:
    """Return the maximum of the likelihood and 1 / sqrt(observed information) there."""
    a = neighbors.at(K + 1)
    n = np.isfinite(a).sum(axis=1)
    a = np.nan_to_num(a, nan=0.0, posinf=0.0)
    value = _root(a, n)
    return value, 1 / np.sqrt(-_score(value, a, n, a.sum(axis=1))[1])


def _root(a: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Return the zero of g for each cloud by Newton steps kept inside a shrinking bracket."""
    total = a.sum(axis=1)
    low, high = n / total, K * n / total
    d = np.sqrt(low * high)
    is_done = np.zeros(len(d), dtype=bool)
    for _ in range(MAX_STEPS):
        g, slope = _score(d, a, n, total)
        low, high = np.where(g > 0, d, low), np.where(g > 0, high, d)
        step = d - g / slope
        following = np.where((step > low) & (step < high), step, (low + high) / 2)
        following = np.where(is_done, d, following)  # so that a cloud's root does not depend on its batch
        is_done |= (np.abs(following - d) <= RELATIVE_STEP * d) | ~np.isfinite(following)
        d = following
        if is_done.all():
            break
    return d


def _score(d, a, n, total) -> tuple[np.ndarray, np.ndarray]:
    """Return g(d) and g'(d) = -n / d² - (k - 1) sum a² e^(a d) / (e^(a d) - 1)².

    A point with a = 0 contributes the limits, 1 / d and -1 / d².
    """
    product = a * d[:, None]
    with np.errstate(over="ignore"):
        growth = np.expm1(product)
    ratio = np.where(product > 0, product / growth, 1.0)
    n_padding = a.shape[1] - n
    of_score = ratio.sum(axis=1) - n_padding
    of_slope = (ratio * (ratio + product * np.isfinite(growth))).sum(axis=1) - n_padding
    return n / d - total + (K - 1) * of_score / d, -(n + (K - 1) * of_slope) / d**2
