"""Correlation dimension: growth of the number of pairs within a radius with the radius.

Grassberger and Procaccia (1983), "Measuring the strangeness of strange attractors", between two radii as in
scikit-dimension's CorrInt and R's ider. With C(r) the share of pairs nearer than r, and r_1 and r_2 the median
distances to the 10th and the 20th neighbor,

    d = log(C(r_2) / C(r_1)) / log(r_2 / r_1).

The standard error depends on the number of neighbors of each point within both radii (`neighbors.statistics`). So it
includes the correlation of pairs that share a point, and has no factor. True standard deviations were 0.9 to 1.1 times
the standard error from 256 points on, for flat tori and normal distributions of 1 to 40 dimensions, and 0.7 to 1.3
times with 40 points.

Radii that nearly agree show no growth: if r_2 / r_1 is below 1.01, there is no value (`degenerate`).
"""

from __future__ import annotations

import numpy as np

from id_scaling.estimators.base import Estimator
from id_scaling.neighbors.find import Neighbors

# A few pairs in ten thousand are on the wrong side of an edge, and medians of distances are uncertain. Over 1 % of the
# radius, these errors are as large as the growth. Up to about 50 dimensions, r_2 / r_1 is larger than this.
LEAST_RATIO = 1.01
STATISTICS = ("correlation_r10", "correlation_r20", "correlation_pairs_r10", "correlation_pairs_r20", "corrint_stderr")


def make(name: str) -> Estimator:
    """Return the estimator."""
    return Estimator(name, "gram", min_points=21, compute=slope, statistics=STATISTICS)


def slope(neighbors: Neighbors) -> tuple[np.ndarray, np.ndarray]:
    """Return the slope between the two radii, and its standard error.

    Examples
    --------
    >>> statistics = dict(zip(STATISTICS, np.array([[1.0], [2.0], [100.0], [800.0], [0.1]]), strict=True))
    >>> neighbors = Neighbors((1,), np.ones((1, 2)), np.zeros((1, 2, 1)), statistics)
    >>> [numbers.round(6).tolist() for numbers in slope(neighbors)]
    [[3.0], [0.1]]
    """
    r1, r2, pairs1, pairs2, error = (neighbors.statistic(name) for name in STATISTICS)
    growth = np.where(r2 / r1 >= LEAST_RATIO, np.log(r2 / r1), np.nan)
    return np.log(pairs2 / pairs1) / growth, error
