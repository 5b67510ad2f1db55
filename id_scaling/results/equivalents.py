"""Equivalents: the dimension of a simple distribution whose clouds, with as many points, give the same mean estimate.

About 1000 points of a 50-dimensional Gaussian give a `mle` of 27. So the Gaussian equivalent of a `mle` of 27 from 1000
points is 50. An equivalent is not an estimate, because representations are not Gaussian. It shows how much of the
difference between clouds of different sizes, or of large dimension, comes from the number of points.

`python -m tests.simulations.tabulate_equivalents` simulated mean estimates on the grid of DIMENSION and N_POINTS.
Between grid points, the mean is interpolated linearly in log n, and log d linearly in the log of the mean.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from id_scaling.results.equivalent_tables import TABLES

DIMENSION = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 65, 80, 100, 125, 150, 175, 200)
N_POINTS = (64, 128, 256, 512, 1024, 2048, 4096)
DISTRIBUTIONS = ("gaussian", "ball", "sphere")
OK, OUT_OF_RANGE, NOT_CALIBRATED, REJECTED = "ok", "out_of_range", "not_calibrated", "rejected"
# For clouds of one of these distributions, mean equivalents of two estimators differ by a few percent. Neither noise
# nor a shape between ball and sphere explains a factor of 1.5.
MAX_RATIO = 1.5


def equivalent(mean: float, n_points: float, estimator: str, distribution: str) -> tuple[float, str]:
    """Return the dimension of the distribution whose clouds of `n_points` points give this mean, and a status.

    Parameters
    ----------
    mean, n_points : float
        Mean estimate, and the number of points of each cloud.
    estimator : str
        Name of the estimator.
    distribution : {"gaussian", "ball", "sphere"}
        Standard normal, uniform in a ball, or uniform on a sphere, whose dimension is that of its surface.

    Returns
    -------
    (float, str)
        The dimension with `ok`; NaN with `not_calibrated` if the estimator was not simulated; NaN with `out_of_range`
        if the mean is outside the simulated means of 1 to 200 dimensions, or `n_points` is below 64 or above 4096.

    Examples
    --------
    >>> value, status = equivalent(8.0, 512, "mle", "gaussian")
    >>> round(value, 1), status
    (8.6, 'ok')
    >>> equivalent(8.0, 512, "phd", "gaussian")
    (nan, 'not_calibrated')
    """
    if estimator not in TABLES:
        return np.nan, NOT_CALIBRATED
    if not N_POINTS[0] <= n_points <= N_POINTS[-1]:
        return np.nan, OUT_OF_RANGE
    curve = _log_means(round(n_points), estimator, distribution)
    if not curve[0] <= np.log(mean) <= curve[-1]:
        return np.nan, OUT_OF_RANGE
    return float(np.exp(np.interp(np.log(mean), curve, np.log(DIMENSION)))), OK


def nearest_equivalent(mean: float, n_points: float, estimator: str, distribution: str) -> float | None:
    """Return the equivalent of a mean, clipped to the range of DIMENSION.

    Return None for an estimator that was not simulated, and for `n_points` below 64 or above 4096.
    """
    if estimator not in TABLES or not N_POINTS[0] <= n_points <= N_POINTS[-1]:
        return None
    curve = _log_means(round(n_points), estimator, distribution)
    return float(np.exp(np.interp(np.log(mean), curve, np.log(DIMENSION))))


@cache
def _log_means(n_points: int, estimator: str, distribution: str) -> np.ndarray:
    """Return the log of the mean estimate at each DIMENSION, made monotone because simulation noise can reverse it."""
    table = np.array(TABLES[estimator][distribution])
    position = np.interp(np.log(n_points), np.log(N_POINTS), np.arange(len(N_POINTS)))
    below = min(int(position), len(N_POINTS) - 2)
    weight = position - below
    return np.log(np.maximum.accumulate((1 - weight) * table[below] + weight * table[below + 1]))
