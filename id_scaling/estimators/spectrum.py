"""Linear dimensions from the covariance spectrum, in the statistic set `spectrum` of an extraction.

`effective_rank`: exp(-sum p log p) with p the eigenvalues of the covariance divided by their sum (Roy and Vetterli
2007, "The effective rank: a measure of effective dimensionality"). `pca_NN`, with NN 90, 95 or 99: the smallest number
of principal components that hold NN percent of the variance.

The standard error of `effective_rank` is an infinitesimal jackknife over points, minus the noise of points with equal
variances (`neighbors.statistics`). From 1024 points of normal distributions, 95 percent intervals cover 92 to 98
percent, whether variances differ (effective rank 5 to 214) or are all equal (5 to 259), and 97 to 100 percent if two or
three are equal. `pca_NN` has no standard error, because a count has no derivative.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from id_scaling.estimators.base import Estimator
from id_scaling.neighbors.find import Neighbors


def make(name: str, statistic: str) -> Estimator:
    """Return the estimator that reads one statistic, and its standard error where there is one."""
    statistics = (statistic, f"{statistic}_stderr") if statistic == "effective_rank" else (statistic,)
    return Estimator(
        name, "spectrum", min_points=3, compute=partial(read, statistics=statistics), statistics=statistics
    )


def read(neighbors: Neighbors, statistics: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the stored statistic of each cloud, and its standard error, NaN for a count.

    Examples
    --------
    >>> neighbors = Neighbors((1,), np.ones((1, 2)), np.zeros((1, 2, 1)), {"pca_90": np.array([3.0])})
    >>> read(neighbors, ("pca_90",))[0].tolist()
    [3.0]
    """
    value, *error = (neighbors.statistic(name) for name in statistics)
    return value, error[0] if error else np.full(value.shape, np.nan)
