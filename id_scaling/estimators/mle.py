"""Maximum likelihood from the distances to the k nearest neighbors.

Hill (1975); Levina and Bickel (2004), "Maximum likelihood estimation of intrinsic dimension". With R_j
the distance to the j-th neighbor, each point gives

    d_i = (k - 1) / sum_{j < k} log(R_k / R_j).

`mle` is the arithmetic mean of the d_i over points with k = 20 (scikit-dimension's `MLE().fit_transform`), `mle_kNN`
the same with another k. `mle_harmonic` is their harmonic mean, the maximum of the joint likelihood (MacKay and
Ghahramani, 2005). `mle_unbiased` puts k - 2 for k - 1, which makes each d_i unbiased, in the harmonic mean.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from id_scaling.estimators.base import Estimator, mean_over_points
from id_scaling.estimators.standard_error_tables import mle as factors
from id_scaling.estimators.standard_errors import table_at
from id_scaling.neighbors.find import Neighbors

K = 20


def make(name: str, mean: str = "arithmetic", k: str = str(K)) -> Estimator:
    """Return the estimator; `mean` is `arithmetic`, `harmonic` or `unbiased`."""
    compute = {"arithmetic": arithmetic, "harmonic": harmonic, "unbiased": unbiased}[mean]
    tables = factors.ARITHMETIC if mean == "arithmetic" else factors.HARMONIC
    n = int(k)
    return Estimator(
        name,
        "neighbors",
        min_points=n + 1,
        compute=partial(compute, k=n),
        ranks=tuple(range(1, n + 1)),
        local=partial(pointwise_unbiased if mean == "unbiased" else pointwise, k=n),
        spread=table_at(tables, n),
    )


def arithmetic(neighbors: Neighbors, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over points of the pointwise estimates, and the standard error of that mean."""
    return mean_over_points(pointwise(neighbors, k), neighbors)


def harmonic(neighbors: Neighbors, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the harmonic mean of the pointwise estimates; its standard error is d / sqrt(n (k - 1))."""
    n = np.isfinite(neighbors.r1).sum(axis=1)
    value = n / np.nansum(1 / pointwise(neighbors, k), axis=1)
    return value, value / np.sqrt(n * (k - 1))


def unbiased(neighbors: Neighbors, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the harmonic mean with k - 2 for k - 1, and its standard error."""
    value, stderr = harmonic(neighbors, k)
    factor = (k - 2) / (k - 1)
    return factor * value, factor * stderr


def pointwise_unbiased(neighbors: Neighbors, k: int) -> np.ndarray:
    """Return d_i with k - 2 for k - 1."""
    return (k - 2) / (k - 1) * pointwise(neighbors, k)


def pointwise(neighbors: Neighbors, k: int) -> np.ndarray:
    """Return d_i, (n_clouds, n_points); NaN for points that do not count."""
    first, last = neighbors.ranks.index(1), neighbors.ranks.index(k)
    total = neighbors.log_ratio[..., first : last + 1].sum(axis=-1, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (k - 1) / (k * neighbors.at(k) - total)
