"""Linear dimensions from the covariance spectrum, by extraction's group `spectrum`.

`effective_rank`: exp(-sum p log p) with p the eigenvalues of the covariance divided by their sum (Roy and Vetterli
2007, "The effective rank: a measure of effective dimensionality"). `pca_NN`, NN 90, 95 or 99: the fewest principal
components that hold NN per cent of the variance.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from id_scaling.estimators.base import Estimator
from id_scaling.neighbors import Neighbors


def make(name: str, statistic: str) -> Estimator:
    """Return the estimator that reads one statistic."""
    return Estimator(
        name, "spectrum", min_points=3, compute=partial(read, statistic=statistic), statistics=(statistic,)
    )


def read(neighbors: Neighbors, statistic: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the stored statistic of each cloud; no standard error is known."""
    value = neighbors.statistic(statistic)
    return value, np.full(value.shape, np.nan)
