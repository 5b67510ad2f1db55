"""The dimension of a simple distribution whose clouds give what was found: a mean with its sample size reckoned with.

About a thousand points of a Gaussian of 50 dimensions give a `mle` of 27. Read the other way round, 27 from as many
points is what a Gaussian of 50 dimensions gives: its equivalent. That is no estimate, as representations are no
Gaussian; it says how much of a difference between clouds of different sizes, or of large dimension, is one of size.

`python -m tests.simulations.tabulate_equivalents` simulated mean estimates over DIMENSION and N_POINTS. Between them
a mean is linear in log n, and log d in the log of the mean.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from id_scaling.results.equivalent_tables import TABLES

DIMENSION = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 65, 80, 100, 125, 150, 175, 200)
N_POINTS = (64, 128, 256, 512, 1024, 2048, 4096)
DISTRIBUTIONS = ("gaussian", "ball", "sphere")
OK, OUT_OF_RANGE, NOT_CALIBRATED, REJECTED = "ok", "out_of_range", "not_calibrated", "rejected"
# Two estimators of a cloud of one of these distributions have equivalents within a few percent of each other, as means
# over contexts; a factor of 1.5 is no noise, and no shape between ball and sphere.
MAX_RATIO = 1.5


def equivalent(mean: float, n_points: float, estimator: str, distribution: str) -> tuple[float, str]:
    """Return the dimension of a distribution whose clouds of as many points give a mean, and a status.

    Parameters
    ----------
    mean, n_points : float
        Mean estimate, and points that entered it.
    estimator : str
        Its name.
    distribution : {"gaussian", "ball", "sphere"}
        Standard normal, uniform in a ball, or uniform on a sphere; the latter's dimension is that of its surface.

    Returns
    -------
    (float, str)
        NaN with `not_calibrated` for an estimator that was not simulated, and with `out_of_range` for a mean below that
        of 1 dimension or above that of 200, and for n below 64 or above 4096; else `ok`.

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
    """Return the equivalent of a mean, or where it is out of range the end of DIMENSION next to it.

    None for an estimator that was not simulated, and for n below 64 or above 4096.
    """
    if estimator not in TABLES or not N_POINTS[0] <= n_points <= N_POINTS[-1]:
        return None
    curve = _log_means(round(n_points), estimator, distribution)
    return float(np.exp(np.interp(np.log(mean), curve, np.log(DIMENSION))))


@cache
def _log_means(n_points: int, estimator: str, distribution: str) -> np.ndarray:
    """Return the logarithm of the mean at each of DIMENSION; it never falls, as simulated means may by their noise."""
    table = np.array(TABLES[estimator][distribution])
    place = np.interp(np.log(n_points), np.log(N_POINTS), np.arange(len(N_POINTS)))
    below = min(int(place), len(N_POINTS) - 2)
    share = place - below
    return np.log(np.maximum.accumulate((1 - share) * table[below] + share * table[below + 1]))
