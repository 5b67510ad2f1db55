"""Persistent-homology dimension of degree zero, by the protocol used for texts.

Schweinhart (2021), "Persistent homology and the upper box dimension"; Tulchinskii, Kuznetsov, Kushnareva,
Cherniavskii, Nikolenko, Burnaev, Barannikov and Piontkovskaya (2023), "Intrinsic dimension estimation for robust
detection of AI-generated texts". The lifetimes of degree zero are the edges of the minimum spanning tree. With
alpha = 1: random subsets of 50, 90, 130, … points, 512 at most, seven of each size; the line through the medians of
their tree lengths over size, both in logarithms, has the slope m, and d = 1 / (1 - m). That is done three times; m is
the mean and the standard error comes of their spread, which is that of the draws alone. Seeded: the same cloud
gives the same number.
"""

from __future__ import annotations

import numpy as np

from id_scaling.estimators.base import Estimator
from id_scaling.estimators.spanning_trees import dimension_of_growth

FIRST, STEP, LAST = 50, 40, 512
N_DRAWS, N_REPEATS, SEED = 7, 3, 0


def make(name: str) -> Estimator:
    """Return the estimator; a line needs three sizes."""
    return Estimator(name, "points", min_points=FIRST + 2 * STEP, compute=dimension)


def dimension(points: np.ndarray) -> tuple[float, float]:
    """Return the dimension of the mean slope over repeats, and its standard error."""
    sizes = np.arange(FIRST, min(LAST, len(points)) + 1, STEP)
    return dimension_of_growth(points, sizes, N_DRAWS, N_REPEATS, np.median, SEED)
