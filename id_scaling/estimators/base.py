"""What an estimator is, and what it gives.

An estimator of `neighbors` is a function of many clouds at once; one of `points` sees one cloud's
points. `id_scaling.estimators.apply` applies them.
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
        Standard error within the cloud: the estimator's asymptotic formula times the factor by which, in
        simulations, estimates of such clouds spread more, as neighboring points share distances. It says how
        another cloud of the same kind would differ, and nothing about bias or the spread between contexts: the true
        dimension is often many standard errors away.
    n_points, n_distinct, n_nonfinite : int
        Points given, different points among them, and points with a coordinate that is not finite.
    status : str
        `ok`, `saturated`, `boundary`, `degenerate`, `near_copies`, `too_few_points`, `nonfinite`, `timeout` or
        `failed: …`.
    tiny_r1 : float
        Share of points whose nearest neighbor is at no distance, or below a hundredth of the usual one: the median over
        points of the distance past any jump by a factor of a hundred, see `near_copies`.
    top_share : float, optional
        Of an arithmetic mean over points: the share of it that the top tenth of the points holds, see `top_share`;
        None for other estimators, NaN where there is no estimate.
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

    `local`, if asked for, is (n_clouds, n_points): NaN where a point, or its cloud, has none. `top_share` is None for
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
        What it reads: stored neighbor distances, stored statistics of the Gram matrix or of its spectrum, or the
        cloud itself.
    ranks : tuple of int
        Neighbor ranks it reads, if any.
    min_points : int
        Fewer points that count give `too_few_points`.
    compute : callable
        `Neighbors` -> (value, stderr), arrays over clouds, NaN rows being points that do not count;
        or, for `points`, (n, d) float64 array -> (value, stderr), and the local values, (n,), where it has them. The
        standard error is the asymptotic one.
    cap : float
        A ceiling of the definition: a larger value becomes it, and is `saturated`.
    ceiling : callable, optional
        Of `points`: number of points, number of coordinates -> the largest value that the method can return for such
        a cloud; a value at it, or above, is `saturated`.
    statistics : tuple of str
        Cloud statistics it reads, for `gram` and `spectrum`.
    local : callable, optional
        The estimate at each point: `Neighbors` -> (n_clouds, n_points), NaN for points that do not count; or, for
        `points`, (n, d) float64 array -> (n,).
    is_mean : bool
        Whether the estimate is the arithmetic mean of the local ones.
    spread : table, optional
        True spread over asymptotic standard error, by n and d; without one the standard error stays as computed.
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
    """Return the mean over points of each cloud's local values, and its standard error as of independent points.

    NaN at a point that counts makes both NaN.

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
    variance = np.where(is_counted, local - value[:, None], 0.0)
    return value, np.sqrt((variance**2).sum(axis=1) / (n - 1) / n)


def top_share(local: np.ndarray) -> float:
    """Return the share of the sum of local values, (n,), that the largest ⌈n / 10⌉ hold: the share of their mean.

    Examples
    --------
    >>> top_share(np.array([1.0] * 9 + [11.0]))
    0.55
    """
    n_top = -(-len(local) // 10)
    return float(np.sort(local)[-n_top:].sum() / local.sum())
