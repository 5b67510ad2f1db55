"""What an estimator takes and gives.

An estimator of `neighbors` is a function of many clouds at once; one of `points` sees one cloud's
points. Neither prints, warns or raises on a degenerate cloud: the status says what happened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from id_scaling.estimators.sandbox import DEFAULT_SECONDS, estimate_contained
from id_scaling.estimators.standard_errors import Table, factor
from id_scaling.neighbors.find import Neighbors
from id_scaling.neighbors.search import survey
from id_scaling.runtime.workers import ChildError

OK = "ok"
SATURATED = "saturated"
DEGENERATE = "degenerate"
TOO_FEW_POINTS = "too_few_points"
NONFINITE = "nonfinite"
BOUNDARY = "boundary"
TIMEOUT = "timeout"

# Points all at one distance give a dimension from rounding: log-ratios are right to 1e-5 from narrow points.
MAX_RESOLVED = 1e5


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
        another cloud of the same kind would differ, and nothing of bias or of the spread between contexts.
    n_points, n_distinct, n_nonfinite : int
        Points given, different points among them, and points with a coordinate that is not finite.
    status : str
        `ok`, `saturated`, `boundary`, `degenerate`, `too_few_points`, `nonfinite`, `timeout` or `failed: …`.
    """

    value: float
    stderr: float
    n_points: int
    n_distinct: int
    n_nonfinite: int
    status: str


@dataclass(frozen=True)
class Estimates:
    """The intrinsic dimensions of many clouds by one estimator: arrays over clouds.

    `local`, if asked for, is (n_clouds, n_points): NaN where a point, or its cloud, has none.
    """

    value: np.ndarray
    stderr: np.ndarray
    status: np.ndarray
    local: np.ndarray | None = None


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
        or, for `points`, (n, d) float64 array -> (value, stderr). The standard error is the asymptotic one.
    cap : float
        A ceiling of the definition: a value at it is `saturated`.
    statistics : tuple of str
        Cloud statistics it reads, for `gram` and `spectrum`.
    local : callable, optional
        The estimate at each point: `Neighbors` -> (n_clouds, n_points), NaN for points that do not count; or, for
        `points`, (n, d) float64 array -> (n,).
    spread : table, optional
        True spread over asymptotic standard error, by n and d; without one the standard error stays as computed.
    """

    name: str
    needs: Literal["neighbors", "gram", "spectrum", "points"]
    min_points: int
    compute: Callable[..., tuple]
    ranks: tuple[int, ...] = ()
    cap: float = np.inf
    statistics: tuple[str, ...] = ()
    local: Callable[..., np.ndarray] | None = None
    spread: Table | None = None


def estimate_from_neighbors(estimator: Estimator, neighbors: Neighbors, is_local: bool = False) -> Estimates:
    """Apply an estimator to the neighbors of many clouds.

    Parameters
    ----------
    estimator : Estimator
        One that needs `neighbors`, `gram` or `spectrum`.
    neighbors : Neighbors
        With one leading axis over clouds.
    is_local : bool
        Whether to return the estimate at each point too.
    """
    status = screen(estimator, neighbors)
    with np.errstate(all="ignore"):
        value, stderr = estimator.compute(neighbors)
        local = estimator.local(neighbors) if is_local else None
    return settle(estimator, value, stderr, status, neighbors.statistic("n_used"), local)


def no_estimates(estimator: Estimator, neighbors: Neighbors, is_local: bool = False) -> Estimates:
    """Return the estimates of clouds with too few points for the ranks of an estimator, of which none is stored."""
    nothing = np.full(len(neighbors.r1), np.nan)
    status = np.full(len(nothing), TOO_FEW_POINTS, dtype=object)
    status[neighbors.statistic("n_nonfinite") > 0] = NONFINITE
    local = np.full(neighbors.r1.shape, np.nan) if is_local else None
    return settle(estimator, nothing, nothing, status, neighbors.statistic("n_used"), local)


def estimate_from_points(
    estimator: Estimator,
    clouds: Sequence[np.ndarray],
    neighbors: Neighbors,
    max_seconds: float = DEFAULT_SECONDS,
    is_local: bool = False,
) -> Estimates:
    """Apply an estimator to the points that count of each cloud; a failure is a status.

    Parameters
    ----------
    estimator : Estimator
        One that needs `points`.
    clouds : sequence of (n_points, d) arrays
        The clouds, as long as `neighbors` has clouds.
    neighbors : Neighbors
        Which points count: those whose r_1 is a number.
    max_seconds : float
        An estimate that takes longer is a `timeout`.
    is_local : bool
        Whether to return the estimate at each point too.
    """
    status = screen(estimator, neighbors)
    value, stderr = np.full(len(clouds), np.nan), np.full(len(clouds), np.nan)
    local = np.full(neighbors.r1.shape, np.nan) if is_local else None
    for index in np.flatnonzero(status == OK):
        is_counted = np.isfinite(neighbors.r1[index])
        try:
            points = _of_order_one(np.asarray(clouds[index], dtype=np.float64)[is_counted])
            value[index], stderr[index], found = estimate_contained(estimator.name, points, max_seconds, is_local)
            if is_local:
                local[index, is_counted] = found
        except TimeoutError:
            status[index] = TIMEOUT
        except ChildError as error:
            status[index] = f"failed: {error}"
    return settle(estimator, value, stderr, status, neighbors.statistic("n_used"), local)


def _of_order_one(points: np.ndarray) -> np.ndarray:
    """Return different points divided by a power of two, so that no square overflows or vanishes.

    Raises
    ------
    ChildError
        Points that differed are equal: they were rounded when they were saved.
    """
    n_distinct = len(np.unique(survey(points).first))
    if n_distinct < len(points):
        raise ChildError(
            f"{len(points)} different points are {n_distinct} as saved; save them in a wider type (save_fp)"
        )
    return np.ldexp(points, -int(np.frexp(np.abs(points).max())[1]))


def mean_over_points(local: np.ndarray, neighbors: Neighbors) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over points of each cloud's local values, and its standard error as of independent points."""
    n = np.isfinite(neighbors.r1).sum(axis=1)
    value = np.nansum(local, axis=1) / n
    variance = np.nansum((local - value[:, None]) ** 2, axis=1) / (n - 1)
    return value, np.sqrt(variance / n)


def screen(estimator: Estimator, neighbors: Neighbors) -> np.ndarray:
    """Return the status that a cloud has before it is estimated."""
    status = np.full(neighbors.r1.shape[0], OK, dtype=object)
    # A zero distance has no logarithm: the model behind these estimators excludes it.
    if estimator.needs in ("neighbors", "points"):
        status[(neighbors.r1 == 0).any(axis=1)] = DEGENERATE
    if estimator.ranks:  # a window may leave too few others
        status[np.isnan(neighbors.at(max(estimator.ranks))).all(axis=1)] = TOO_FEW_POINTS
    status[neighbors.statistic("n_used") < estimator.min_points] = TOO_FEW_POINTS
    status[neighbors.statistic("n_nonfinite") > 0] = NONFINITE
    return status


def settle(estimator: Estimator, value, stderr, status: np.ndarray, n_used: np.ndarray, local=None) -> Estimates:
    """Return estimates whose value is a number where the status allows one, and NaN elsewhere.

    The asymptotic standard error becomes the spread that such clouds have.
    """
    value, stderr, status = np.array(value), np.array(stderr), status.copy()
    if estimator.spread is not None:
        stderr = stderr * factor(estimator.spread, value, n_used)
    if estimator.needs == "points":
        status[(status == OK) & np.isposinf(value)] = BOUNDARY
    status[(status == OK) & ~((value > 0) & (value < MAX_RESOLVED))] = DEGENERATE
    status[(status == OK) & (value >= estimator.cap)] = SATURATED
    is_number = (status == OK) | (status == SATURATED)
    if local is not None:
        local = np.where(is_number[:, None] & np.isfinite(local), local, np.nan)
    value = np.where(is_number, np.minimum(value, estimator.cap), np.nan)
    return Estimates(value, np.where(status == OK, stderr, np.nan), status, local)
