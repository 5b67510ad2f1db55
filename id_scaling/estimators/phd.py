"""Persistent-homology dimension of degree zero, with two protocols for subsets.

Schweinhart (2021), "Persistent homology and the upper box dimension"; Tulchinskii, Kuznetsov, Kushnareva,
Cherniavskii, Nikolenko, Burnaev, Barannikov and Piontkovskaya (2023), "Intrinsic dimension estimation for robust
detection of AI-generated texts". The lifetimes of degree zero are the edges of the minimum spanning tree, and
alpha = 1. Random subsets are drawn, several of each size. A line through the medians of their tree lengths against
size, both in logarithms, has the slope m, and d = 1 / (1 - m). This is repeated three times; m is the mean, and the
standard error comes from the standard deviation of the repeats, so it includes only the random draws. Draws are seeded:
the same cloud gives the same number.

The sizes for n points, and the number of draws of each; subsets of at least half of the points have 3 draws:

`phd`       50, 90, 130, …, at most 512; 7 draws. These are the defaults of the class in the authors' code.
`phd_text`  40, 40 + s, 40 + 2 s, … below n - s with s = ⌊(n - 40) / 7⌋: seven sizes (six if 7 divides n - 40);
            9 draws. The authors do this with a text, in the example of their code. They drop the first and the last
            token of a text, which are special tokens there.

On the 511 tokens of a context, the two differ by a tenth.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from id_scaling.estimators.base import Estimator
from id_scaling.estimators.spanning_trees import dimension_of_growth

FIRST, STEP, LAST, N_DRAWS = 50, 40, 512, 7
FIRST_OF_TEXT, N_STEPS, N_DRAWS_OF_TEXT = 40, 7, 9
# Draws of subsets with at least half of the points, because these overlap.
N_DRAWS_OF_MOST = 3
N_REPEATS, SEED = 3, 0


def make(name: str, protocol: str = "") -> Estimator:
    """Return the estimator; `protocol` is `text` or empty.

    A line needs three sizes; for `text`, the largest size has to be twice the smallest to show growth.
    """
    sizes, n_draws = (sizes_of_text, N_DRAWS_OF_TEXT) if protocol else (sizes_of_class, N_DRAWS)
    min_points = FIRST_OF_TEXT + N_STEPS * N_STEPS if protocol else FIRST + 2 * STEP
    return Estimator(name, "points", min_points, partial(dimension, sizes=sizes, n_draws=n_draws))


def sizes_of_class(n: int) -> np.ndarray:
    """Return the sizes of the subsets of n points by `phd`.

    Examples
    --------
    >>> sizes_of_class(300).tolist()
    [50, 90, 130, 170, 210, 250, 290]
    """
    return np.arange(FIRST, min(LAST, n) + 1, STEP)


def sizes_of_text(n: int) -> np.ndarray:
    """Return the sizes of the subsets of n points by `phd_text`."""
    step = (n - FIRST_OF_TEXT) // N_STEPS
    return np.arange(FIRST_OF_TEXT, n - step, step)


def dimension(
    points: np.ndarray, sizes: Callable[[int], np.ndarray] = sizes_of_class, n_draws: int = N_DRAWS
) -> tuple[float, float]:
    """Return the dimension from the mean slope over repeats, and its standard error.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> sheet = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 20))
    >>> [round(number, 3) for number in dimension(sheet)]
    [3.489, 0.188]
    """
    subset_sizes = sizes(len(points))
    draws = np.where(2 * subset_sizes >= len(points), N_DRAWS_OF_MOST, n_draws)
    return dimension_of_growth(points, subset_sizes, draws, N_REPEATS, np.median, SEED)
