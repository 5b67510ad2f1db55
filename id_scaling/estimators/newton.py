"""Maximize a concave log-likelihood of one parameter, for many clouds at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

MAX_STEPS = 100
# Newton steps square the error: after a step this small, the value is accurate to the last digits.
RELATIVE_STEP = 1e-9


def maximum_between(low: np.ndarray, high: np.ndarray, score: Callable) -> np.ndarray:
    """Return where the score of each cloud is zero, by Newton steps within a shrinking bracket.

    Parameters
    ----------
    low, high : (n_clouds,) arrays
        Bounds above zero; the score is positive at `low` and negative at `high`.
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
        gradient, slope = score(d)
        low, high = np.where(gradient > 0, d, low), np.where(gradient > 0, high, d)
        step = d - gradient / slope
        next_d = np.where((step >= low) & (step <= high), step, (low + high) / 2)
        next_d = np.where(is_done, d, next_d)  # so that a cloud's maximum does not depend on its batch
        is_done |= (np.abs(next_d - d) <= RELATIVE_STEP * d) | ~np.isfinite(next_d)
        d = next_d
        if is_done.all():
            break
    return d
