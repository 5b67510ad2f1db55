"""Maximum likelihood from the distances to the k nearest neighbors.

Hill (1975); Levina and Bickel (2004), "Maximum likelihood estimation of intrinsic dimension". With R_j
the distance to the j-th neighbor, each point gives

    d_i = (k - 1) / sum_{j < k} log(R_k / R_j).

`mle` is the arithmetic mean of the d_i over points with k = 20 (scikit-dimension's `MLE().fit_transform`), and
`mle_kNN` uses another k. `mle_harmonic` is the harmonic mean of the d_i, the maximum of the joint likelihood (MacKay
and Ghahramani, 2005). `mle_unbiased` replaces k - 1 by k - 2 in the harmonic mean, which makes each d_i unbiased.
`mle_median` is the median of the d_i: a few values in the thousands can dominate an arithmetic mean, but not a median.

For independent points with uniform neighborhoods, d_i is (k - 1) d over a Gamma variable of shape k - 1, whose median
is about k - 4/3: with k = 20 the median of the d_i is 1.018 d, and their mean is 1.056 d.
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
    """Return the estimator; `mean` is `arithmetic`, `harmonic`, `unbiased` or `median`."""
    compute = {"arithmetic": arithmetic, "harmonic": harmonic, "unbiased": unbiased, "median": median}[mean]
    tables = {"arithmetic": factors.ARITHMETIC, "median": factors.MEDIAN}.get(mean, factors.HARMONIC)
    n_neighbors = int(k)
    return Estimator(
        name,
        "neighbors",
        min_points=n_neighbors + 1,
        compute=partial(compute, k=n_neighbors),
        ranks=tuple(range(1, n_neighbors + 1)),
        local=partial(pointwise_unbiased if mean == "unbiased" else pointwise, k=n_neighbors),
        is_mean=mean == "arithmetic",
        spread=table_at(tables, n_neighbors),
    )


def arithmetic(neighbors: Neighbors, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over points of the pointwise estimates, and the standard error of that mean.

    Examples
    --------
    >>> neighbors = Neighbors((1, 2), np.ones((1, 2)), np.log([[[1.0, 2.0], [1.0, 4.0]]]), {})
    >>> [numbers.round(3).tolist() for numbers in arithmetic(neighbors, k=2)]
    [[1.082], [0.361]]
    """
    return mean_over_points(pointwise(neighbors, k), neighbors)


def harmonic(neighbors: Neighbors, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the harmonic mean of the pointwise estimates; its standard error is d / sqrt(n (k - 1)).

    Examples
    --------
    >>> neighbors = Neighbors((1, 2), np.ones((1, 2)), np.log([[[1.0, 2.0], [1.0, 4.0]]]), {})
    >>> pointwise(neighbors, k=2).round(3).tolist()
    [[1.443, 0.721]]
    >>> [numbers.round(3).tolist() for numbers in harmonic(neighbors, k=2)]
    [[0.962], [0.68]]
    """
    is_counted = np.isfinite(neighbors.r1)
    n = is_counted.sum(axis=1)
    value = n / np.where(is_counted, 1 / pointwise(neighbors, k), 0.0).sum(axis=1)
    return value, value / np.sqrt(n * (k - 1))


def median(neighbors: Neighbors, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the median of the pointwise estimates, and its standard error as if points were independent.

    The rank of the median among n values has a standard deviation of √n / 2. So the standard error is half the
    difference between the values at ranks n / 2 ± √n / 2 (Woodruff 1952, "Confidence intervals for medians and other
    position measures").

    Examples
    --------
    >>> neighbors = Neighbors((1, 2), np.ones((1, 3)), np.log([[[1.0, 2.0], [1.0, 4.0], [1.0, 3.0]]]), {})
    >>> [numbers.round(3).tolist() for numbers in median(neighbors, k=2)]
    [[0.91], [0.208]]
    """
    clouds = zip(pointwise(neighbors, k), np.isfinite(neighbors.r1), strict=True)
    estimates = [_median_and_error(local[is_counted]) for local, is_counted in clouds]
    value, error = np.array(estimates).reshape(-1, 2).T
    return value, error


def _median_and_error(local: np.ndarray) -> tuple[float, float]:
    """Return the median of values, and its standard error; NaN if a value is NaN."""
    n = len(local)
    if n == 0 or np.isnan(local).any():
        return np.nan, np.nan
    share = 0.5 / np.sqrt(n)
    low, value, high = np.quantile(local, (0.5 - share, 0.5, 0.5 + share))
    return float(value), float(high - low) / 2


def unbiased(neighbors: Neighbors, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the harmonic mean with k - 2 instead of k - 1, and its standard error.

    Examples
    --------
    >>> neighbors = Neighbors((1, 2, 3), np.ones((1, 1)), np.log([[[1.0, 2.0, 4.0]]]), {})
    >>> [numbers.round(3).tolist() for numbers in unbiased(neighbors, k=3)]
    [[0.481], [0.34]]
    """
    value, stderr = harmonic(neighbors, k)
    factor = (k - 2) / (k - 1)
    return factor * value, factor * stderr


def pointwise_unbiased(neighbors: Neighbors, k: int) -> np.ndarray:
    """Return d_i with k - 2 instead of k - 1."""
    return (k - 2) / (k - 1) * pointwise(neighbors, k)


def pointwise(neighbors: Neighbors, k: int) -> np.ndarray:
    """Return d_i, (n_clouds, n_points); NaN for unused points.

    Examples
    --------
    >>> neighbors = Neighbors((1, 2, 3), np.ones((1, 1)), np.log([[[1.0, 2.0, 4.0]]]), {})
    >>> pointwise(neighbors, k=3).round(4).tolist(), round(float(2 / np.log(4 / 1 * 4 / 2)), 4)
    ([[0.9618]], 0.9618)
    """
    first, last = neighbors.ranks.index(1), neighbors.ranks.index(k)
    total = neighbors.log_ratio[..., first : last + 1].sum(axis=-1, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (k - 1) / (k * neighbors.at(k) - total)
