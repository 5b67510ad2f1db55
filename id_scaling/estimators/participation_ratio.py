"""Participation ratio: how many directions share the variance, from the first two moments of the covariance spectrum.

With λ the eigenvalues of the covariance, PR = (sum λ)² / sum λ² = (tr S)² / tr S²; no spectrum is needed, for S and the
Gram matrix have the same traces. From n + 1 points of a distribution whose PR is not far below n it is biased low.
`participation_ratio_corrected` takes unbiased estimates of both parts for Gaussian samples (Srivastava 2005, "Some
tests concerning the covariance matrix in high dimensional data"): with E tr S² = (1 + 1/n) tr Σ² + (tr Σ)² / n and
E (tr S)² = (tr Σ)² + 2 tr Σ² / n,

    PR_c = ((n + 1) (tr S)² - 2 tr S²) / (n tr S² - (tr S)²).

Neither is a dimension of a manifold: both are linear, and a curved line can fill many directions.
"""

from __future__ import annotations

import numpy as np

from id_scaling.estimators.base import Estimator
from id_scaling.neighbors import Neighbors
from id_scaling.statistics import participation_ratio, participation_ratio_corrected

# Below it the corrected form is spread over orders of magnitude.
MIN_POINTS = 20


def make(name: str, form: str = "") -> Estimator:
    """Return the estimator; `form` is `corrected` or nothing."""
    compute, min_points = (corrected, MIN_POINTS) if form else (plain, 3)
    return Estimator(name, "gram", min_points, compute, statistics=("gram_trace", "gram_frobenius"))


def plain(neighbors: Neighbors) -> tuple[np.ndarray, np.ndarray]:
    """Return PR of each cloud; no standard error is known."""
    value = participation_ratio(neighbors.statistic("gram_trace"), neighbors.statistic("gram_frobenius"))
    return value, np.full(value.shape, np.nan)


def corrected(neighbors: Neighbors) -> tuple[np.ndarray, np.ndarray]:
    """Return PR_c of each cloud, NaN where the estimate of tr Σ² is not positive; no standard error is known."""
    names = ("gram_trace", "gram_frobenius", "n_used")
    value = participation_ratio_corrected(*(neighbors.statistic(name) for name in names))
    return value, np.full(value.shape, np.nan)
