"""MiND_ML: the ratio of the nearest to the (k+1)-th neighbor distance, by maximum likelihood.

Rozza, Lombardi, Ceruti, Casiraghi and Campadelli (2012), "Novel high intrinsic dimensionality estimators"
(MiND_MLk). With rho = r_1 / r_{k+1}, k = 20, the log-likelihood of n points is

    n log(k d) + (d - 1) sum log rho + (k - 1) sum log(1 - rho^d).

It is concave in d, and its derivative with a = -log rho,

    g(d) = n / d - sum a + (k - 1) sum a / (exp(a d) - 1),

crosses zero exactly once, between n / sum a and k n / sum a. `mind_ml` is this root, with no ceiling. `mind_ml_dNN`
is the smaller of the root and NN, with status `saturated` if NN is the smaller.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from id_scaling.estimators.base import Estimator
from id_scaling.estimators.newton import maximum_between
from id_scaling.estimators.standard_error_tables import mind_ml as factors
from id_scaling.estimators.standard_errors import table_at
from id_scaling.neighbors.find import Neighbors

K = 20


def make(name: str, cap: str | None = None) -> Estimator:
    """Return the estimator; `cap` is a ceiling for d, none by default."""
    ceiling = float(cap) if cap else np.inf
    spread = table_at(factors.RATIO, K)
    return Estimator(name, "neighbors", min_points=K + 2, compute=maximum, ranks=(K + 1,), cap=ceiling, spread=spread)


def maximum(neighbors: Neighbors) -> tuple[np.ndarray, np.ndarray]:
    """Return the maximum of the likelihood and 1 / sqrt(observed information) there.

    Examples
    --------
    >>> neighbors = Neighbors((21,), np.ones((1, 3)), np.log([[[2.0], [2.5], [3.0]]]), {})
    >>> [numbers.round(3).tolist() for numbers in maximum(neighbors)]
    [[3.788], [0.731]]
    """
    is_counted = np.isfinite(neighbors.r1)
    n = is_counted.sum(axis=1)
    a = np.where(is_counted, neighbors.at(K + 1), 0.0)
    total = a.sum(axis=1)
    score = partial(_score, a=a, n=n, total=total)
    value = maximum_between(n / total, K * n / total, score)
    return value, 1 / np.sqrt(-score(value)[1])


def _score(d: np.ndarray, a: np.ndarray, n: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return g(d) and g'(d) = -n / d² - (k - 1) sum a² e^(a d) / (e^(a d) - 1)².

    A point with a = 0 contributes the limits 1 / d and -1 / d².
    """
    product = a * d[:, None]
    with np.errstate(over="ignore"):
        growth = np.expm1(product)
    ratio = np.where(product > 0, product / growth, 1.0)
    n_padding = a.shape[1] - n
    score_terms = ratio.sum(axis=1) - n_padding
    slope_terms = (ratio * (ratio + product * np.isfinite(growth))).sum(axis=1) - n_padding
    return n / d - total + (K - 1) * score_terms / d, -(n + (K - 1) * slope_terms) / d**2
