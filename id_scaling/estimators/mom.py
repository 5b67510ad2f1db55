"""Method of moments: the mean of the distances to the k nearest neighbors, over the largest.

Amsaleg, Chelly, Furon, Girard, Houle, Kawarabayashi and Nett (2018), "Extreme-value-theoretic estimation of local
intrinsic dimensionality". With m the mean of R_1..R_k and w = R_k, each point gives

    d_i = m / (w - m),

and the ID is the mean over points. `mom_kNN` has k in its name, because scikit-dimension's default of 100 needs
more ranks than are stored by default, all up to 32.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from id_scaling.estimators.base import Estimator, mean_over_points
from id_scaling.estimators.standard_error_tables import mom as factors
from id_scaling.estimators.standard_errors import table_at
from id_scaling.neighbors.find import Neighbors


def make(name: str, k: str) -> Estimator:
    """Return the estimator for k neighbors."""
    n_neighbors = int(k)
    return Estimator(
        name,
        "neighbors",
        min_points=n_neighbors + 1,
        compute=partial(mean, k=n_neighbors),
        ranks=tuple(range(1, n_neighbors + 1)),
        local=partial(pointwise, k=n_neighbors),
        is_mean=True,
        spread=table_at(factors.MOMENTS, n_neighbors),
    )


def mean(neighbors: Neighbors, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over points of the pointwise estimates, and the standard error of that mean.

    Examples
    --------
    >>> neighbors = Neighbors((1, 2), np.ones((1, 2)), np.log([[[1.0, 2.0], [1.0, 4.0]]]), {})
    >>> [numbers.round(3).tolist() for numbers in mean(neighbors, k=2)]
    [[2.333], [0.667]]
    """
    return mean_over_points(pointwise(neighbors, k), neighbors)


def pointwise(neighbors: Neighbors, k: int) -> np.ndarray:
    """Return d_i, (n_clouds, n_points); NaN for unused points.

    Examples
    --------
    >>> neighbors = Neighbors((1, 2), np.ones((1, 1)), np.log([[[1.0, 2.0]]]), {})
    >>> pointwise(neighbors, k=2).round(6).tolist()
    [[3.0]]
    """
    # expm1 of the log-ratios to the largest distance keeps the digits of w - m where all distances nearly agree.
    below = -np.stack([np.expm1(neighbors.at(rank) - neighbors.at(k)) for rank in range(1, k + 1)], axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 / below.mean(axis=-1) - 1
