"""Maximum likelihood from the distances to the k nearest neighbors.

Hill (1975); Levina and Bickel (2004), "Maximum likelihood estimation of intrinsic dimension". With R_j
the distance to the j-th neighbor and k = 20, each point gives

    d_i = (k - 1) / sum_{j < k} log(R_k / R_j).

`mle` is the arithmetic mean of the d_i over points (scikit-dimension's `MLE().fit_transform`);
`mle_harmonic` their harmonic mean, the maximum of the joint likelihood (MacKay and Ghahramani, 2005).
"""

from __future__ import annotations

import numpy as np

from id_scaling.estimators.base import Estimator
from id_scaling.estimators.spread import table_at
from id_scaling.estimators.spread_tables import mle as factors
from id_scaling.neighbors import Neighbors

K = 20


def make(name: str, mean: str = "arithmetic") -> Estimator:
    """Return the estimator; `mean` is `arithmetic` or `harmonic`."""
    compute, tables = (harmonic, factors.HARMONIC) if mean == "harmonic" else (arithmetic, factors.ARITHMETIC)
    ranks = tuple(range(1, K + 1))
    return Estimator(name, "neighbors", min_points=K + 1, compute=compute, ranks=ranks, spread=table_at(tables, K))


def arithmetic(neighbors: Neighbors) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over points of the pointwise estimates, and the standard error of that mean."""
    pointwise = 1 / inverse_dimensions(neighbors)
    n = np.isfinite(neighbors.r1).sum(axis=1)
    value = np.nansum(pointwise, axis=1) / n
    variance = np.nansum((pointwise - value[:, None]) ** 2, axis=1) / (n - 1)
    return value, np.sqrt(variance / n)


def harmonic(neighbors: Neighbors) -> tuple[np.ndarray, np.ndarray]:
    """Return the harmonic mean of the pointwise estimates; its standard error is d / sqrt(n (k - 1))."""
    n = np.isfinite(neighbors.r1).sum(axis=1)
    value = n / np.nansum(inverse_dimensions(neighbors), axis=1)
    return value, value / np.sqrt(n * (K - 1))


def inverse_dimensions(neighbors: Neighbors) -> np.ndarray:
    """Return 1 / d_i, (n_clouds, n_points); NaN for points that do not count."""
    log_ratios = np.stack([neighbors.at(rank) for rank in range(1, K + 1)], axis=-1)
    return (log_ratios[..., -1:] - log_ratios[..., :-1]).sum(axis=-1) / (K - 1)
