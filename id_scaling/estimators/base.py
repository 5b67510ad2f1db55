"""Types of estimators and estimates.

An estimator that needs `neighbors` is a function of many clouds at once. An estimator that needs `points` gets the
points of one cloud. `id_scaling.estimators.apply` applies both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from id_scaling.estimators.standard_errors import Table
from id_scaling.neighbors.find import Neighbors

OK = "ok"
SATURATED = "saturated"
DEGENERATE = "degenerate"
NEAR_COPIES = "near_copies"
TOO_FEW_POINTS = "too_few_points"
NONFINITE = "nonfinite"
BOUNDARY = "boundary"
TIMEOUT = "timeout"


@dataclass(frozen=True)
class Estimate:
    """The intrinsic dimension of one cloud by one estimator.

    Parameters
    ----------
    value : float
        The dimension; NaN unless `status` is `ok` or `saturated`.
    stderr : float
        Standard error within the cloud: the estimator's asymptotic formula times a simulated factor, because
        neighboring points share distances. It says how much another cloud of the same kind would differ. It includes
        neither bias nor the variation between contexts: the true dimension is often many standard errors away.
    n_points, n_distinct, n_nonfinite : int
        Number of points, of different points, and of points with a coordinate that is not finite.
    status : str
        `ok`, `saturated`, `boundary`, `degenerate`, `near_copies`, `too_few_points`, `nonfinite`, `timeout` or
        `failed: …`.
    tiny_r1 : float
        Share of points whose nearest neighbor is at distance zero, or below a hundredth of the typical distance. The
        typical distance is the median over points of the distance past any jump by a factor of 100, see `near_copies`.
    top_share : float, optional
        For an arithmetic mean over points, the share of it that comes from the top tenth of the points, see
        `top_share`; None for other estimators, NaN if there is no estimate.
    """

    value: float
    stderr: float
    n_points: int
    n_distinct: int
    n_nonfinite: int
    status: str
    tiny_r1: float = np.nan
    top_share: float | None = None


@dataclass(frozen=True)
class Estimates:
    """The intrinsic dimensions of many clouds by one estimator: arrays over clouds.

    `local`, if requested, is (n_clouds, n_points): NaN where a point or its cloud has no value. `top_share` is None for
    an estimator that is not an arithmetic mean over points.
    """

    value: np.ndarray
    stderr: np.ndarray
    status: np.ndarray
    local: np.ndarray | None = None
    top_share: np.ndarray | None = None


@dataclass(frozen=True)
class Estimator:
    """A named estimator.

    Parameters
    ----------
    name : str
        The whole definition, parameters included.
    needs : {"neighbors", "gram", "spectrum", "points"}
        Its input: stored neighbor distances, stored statistics of the Gram matrix or of its spectrum, or the points
        of the cloud.
    ranks : tuple of int
        Neighbor ranks that it reads, if any.
    min_points : int
        A cloud with fewer used points is `too_few_points`.
    compute : callable
        `Neighbors` -> (value, stderr), arrays over clouds; rows of NaN are unused points. For `points`: (n, d)
        float64 array -> (value, stderr), and the local values (n,) if the estimator has them. The standard error is
        the asymptotic one.
    cap : float
        Ceiling in the definition: a larger value is replaced by it, and is `saturated`.
    ceiling : callable, optional
        For `points`: number of points, number of coordinates -> the largest value that the method can return for such
        a cloud; a value at or above it is `saturated`.
    statistics : tuple of str
        Cloud statistics that it reads, for `gram` and `spectrum`.
    local : callable, optional
        The estimate at each point: `Neighbors` -> (n_clouds, n_points), NaN for unused points. For `points`: (n, d)
        float64 array -> (n,).
    is_mean : bool
        Whether the estimate is the arithmetic mean of the local values.
    spread : table, optional
        Ratio of true standard deviation to asymptotic standard error, by n and d; without it the standard error stays
        asymptotic.
    """

    name: str
    needs: Literal["neighbors", "gram", "spectrum", "points"]
    min_points: int
    compute: Callable[..., tuple]
    ranks: tuple[int, ...] = ()
    cap: float = np.inf
    ceiling: Callable[[int, int], float] | None = None
    statistics: tuple[str, ...] = ()
    local: Callable[..., np.ndarray] | None = None
    is_mean: bool = False
    spread: Table | None = None


def mean_over_points(local: np.ndarray, neighbors: Neighbors) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over points of each cloud's local values, and its standard error as if points were independent.

    NaN at a used point makes both NaN.

    Examples
    --------
    >>> neighbors = Neighbors((1,), np.ones((1, 3)), np.zeros((1, 3, 1)), {})
    >>> value, stderr = mean_over_points(np.array([[2.0, 3.0, 4.0]]), neighbors)
    >>> value.tolist(), stderr.round(3).tolist()
    ([3.0], [0.577])
    """
    is_counted = np.isfinite(neighbors.r1)
    n = is_counted.sum(axis=1)
    value = np.where(is_counted, local, 0.0).sum(axis=1) / n
    deviations = np.where(is_counted, local - value[:, None], 0.0)
    return value, np.sqrt((deviations**2).sum(axis=1) / (n - 1) / n)


def top_share(local: np.ndarray) -> float:
    """Return the share of the sum of local values (n,), and so of their mean, that comes from the largest ⌈n / 10⌉.

    Examples
    --------
    >>> top_share(np.array([1.0] * 9 + [11.0]))
    0.55
    """
    n_top = -(-len(local) // 10)
    return float(np.sort(local)[-n_top:].sum() / local.sum())
