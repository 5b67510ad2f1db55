"""The maximum of a concave log-likelihood of one parameter, for many clouds at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

MAX_STEPS = 100
# Newton's steps square the error: the value after a step this small is right to the last digits.
RELATIVE_STEP = 1e-9


def maximum_between(low: np.ndarray, high: np.ndarray, score: Callable) -> np.ndarray:
    """Return where the score is zero for each cloud, by Newton steps kept inside a shrinking bracket.

    Parameters
    ----------
    low, high : (n_clouds,) arrays
        Above zero; the score is positive at `low` and negative at `high`.
    score : callable
        d (n_clouds,) -> the derivative of the log-likelihood at d, and its derivative.

    Examples
    --------
    >>> maximum_between(np.array([0.1]), np.array([9.0]), lambda d: (2 / d - 1, -2 / d**2)).tolist()
    [2.0]
    """
    d = np.sqrt(low * high)
    is_done = np.zeros(len(d), dtype=bool)
    for _ in range(MAX_STEPS):
        g, slope = score(d)
        low, high = np.where(g > 0, d, low), np.where(g > 0, high, d)
        step = d - g / slope
        following = np.where((step >= low) & (step <= high), step, (low + high) / 2)
        following = np.where(is_done, d, following)  # so that a cloud's maximum does not depend on its batch
        is_done |= (np.abs(following - d) <= RELATIVE_STEP * d) | ~np.isfinite(following)
        d = following
        if is_done.all():
            break
    return d
