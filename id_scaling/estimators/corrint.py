"""Correlation dimension: how the number of pairs within a radius grows with the radius.

Grassberger and Procaccia (1983), "Measuring the strangeness of strange attractors", between two radii as in
scikit-dimension's CorrInt and R's ider. With C(r) the share of pairs nearer than r, and r_1, r_2 the medians
over points of the distances to the 10th and the 20th neighbor,

    d = log(C(r_2) / C(r_1)) / log(r_2 / r_1).
"""

from __future__ import annotations

import numpy as np

from id_scaling.estimators.base import Estimator
from id_scaling.neighbors import Neighbors

STATISTICS = ("correlation_r10", "correlation_r20", "correlation_pairs_r10", "correlation_pairs_r20")


def make(name: str) -> Estimator:
    """Return the estimator."""
    return Estimator(name, "gram", min_points=21, compute=slope, statistics=STATISTICS)


def slope(neighbors: Neighbors) -> tuple[np.ndarray, np.ndarray]:
    """Return the slope between the two radii; no standard error is known."""
    r1, r2, pairs1, pairs2 = (neighbors.statistic(name) for name in STATISTICS)
    value = np.log(pairs2 / pairs1) / np.log(r2 / r1)
    return value, np.full(value.shape, np.nan)
