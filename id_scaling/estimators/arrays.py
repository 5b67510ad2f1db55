"""Intrinsic dimension of arrays of points: the public functions of the library, without files and models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from id_scaling.errors import ConfigError, ResourceError
from id_scaling.estimators.apply import estimate_from_neighbors, estimate_from_points
from id_scaling.estimators.base import Estimate, Estimates, Estimator
from id_scaling.estimators.near_copies import K, tiny_share
from id_scaling.estimators.registry import canonical_name, get_estimator
from id_scaling.estimators.sandbox import DEFAULT_SECONDS
from id_scaling.neighbors.find import Neighbors, find_neighbors, stacked
from id_scaling.neighbors.statistics import group_of
from id_scaling.neighbors.views import View
from id_scaling.runtime import memory

if TYPE_CHECKING:
    import polars as pl

# Measured memory per pair of points, for a spectrum, and for spanning trees and their distances.
BYTES_A_PAIR = {"spectrum": 65, "points": 24}
FEWER = "take fewer points, such as several random subsets, each a cloud of its own"
DEFAULT_ESTIMATORS = ("mle", "mind_ml", "twoNN_f10")


def estimate(
    points: np.ndarray,
    estimators: str | Sequence[str] = DEFAULT_ESTIMATORS,
    duplicates: Literal["distinct", "keep"] = "distinct",
    max_seconds: float = DEFAULT_SECONDS,
) -> dict[str, Estimate]:
    """Estimate the intrinsic dimension of one point cloud.

    Parameters
    ----------
    points : (n_points, d) array of floats
        Coordinates in any unit. Results from float16 and float32 agree with float64 as `neighbors.error_bounds` says.
    estimators : str or sequence of str
        A name, or names, as in `save_IDs_list`: `mle`, `mle_harmonic`, `mind_ml`, `twoNN_f10`, …
    duplicates : {"distinct", "keep"}
        Use the first of each set of equal points, or all of them. Kept duplicates are at distance zero, which no
        estimator of neighbor distances accepts: `degenerate`.
    max_seconds : float
        Processor time that an estimator of points, such as `phd`, may take for a cloud before it is a `timeout`. The
        limit on wall time is ten times as long, because other processes may share the cores.

    Returns
    -------
    dict of str to Estimate
        In the order of `estimators`, by canonical name. `mle_k20`, for example, is `mle`, and both names find it. A
        cloud without an estimate gives NaN and a status, no exception.

    Raises
    ------
    ConfigError
        Wrong rank or dtype of the points, an unknown estimator, an unknown policy.
    ResourceError
        All products of the points do not fit in memory.

    Examples
    --------
    >>> import numpy as np
    >>> from id_scaling import estimate
    >>> rng = np.random.default_rng(0)
    >>> sheet = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 20))
    >>> by_name = estimate(sheet, ["mle", "twoNN_f10"])
    >>> round(by_name["twoNN_f10"].value, 2), round(by_name["twoNN_f10"].stderr, 2), by_name["twoNN_f10"].status
    (3.07, 0.18, 'ok')
    >>> round(by_name["mle_k20"].value, 2)
    3.23
    """
    points = _checked(points, ndim=2)
    by_name = _ByName()
    for name, estimates, neighbors in _estimates(points[None], estimators, duplicates, max_seconds):
        counts, tiny_r1 = _counts(neighbors)[0], float(tiny_share(neighbors)[0])
        share = None if estimates.top_share is None else float(estimates.top_share[0])
        value, stderr, status = float(estimates.value[0]), float(estimates.stderr[0]), str(estimates.status[0])
        by_name[name] = Estimate(value, stderr, *counts, status, tiny_r1, share)
    return by_name


class _ByName(dict):
    """Estimates by canonical name; any other name of an estimator finds them too: `mle_k20` is `mle`."""

    def __missing__(self, name: str) -> Estimate:
        canonical = canonical_name(name)
        if canonical == name:
            raise KeyError(name)
        return self[canonical]


def estimate_batch(
    clouds: np.ndarray,
    estimators: str | Sequence[str] = DEFAULT_ESTIMATORS,
    duplicates: Literal["distinct", "keep"] = "distinct",
    max_seconds: float = DEFAULT_SECONDS,
) -> pl.DataFrame:
    """Estimate the intrinsic dimension of many point clouds of one size.

    Parameters
    ----------
    clouds : (n_clouds, n_points, d) array of floats
        Coordinates in any unit.
    estimators, duplicates, max_seconds
        As in `estimate`.

    Returns
    -------
    polars.DataFrame
        One row per cloud and estimator: `cloud`, `estimator`, `value`, `stderr`, `n_points`,
        `n_distinct`, `n_nonfinite`, `status`, `tiny_r1`, `top_share`, as the fields of `Estimate`.

    Raises
    ------
    ConfigError, ResourceError
        As in `estimate`.

    Examples
    --------
    >>> import numpy as np
    >>> from id_scaling import estimate_batch
    >>> rng = np.random.default_rng(0)
    >>> clouds = [rng.normal(size=(500, d)) @ rng.normal(size=(d, 20)) for d in (2, 5)]
    >>> table = estimate_batch(np.stack(clouds), "twoNN_f10")
    >>> table["value"].round(2).to_list(), table["status"].to_list()
    ([1.96, 5.08], ['ok', 'ok'])
    """
    import polars as pl

    clouds = _checked(clouds, ndim=3)
    tables = [
        pl.DataFrame(
            {
                "cloud": np.arange(len(clouds)),
                "estimator": [name] * len(clouds),
                "value": estimates.value,
                "stderr": estimates.stderr,
                "n_points": [count[0] for count in _counts(neighbors)],
                "n_distinct": [count[1] for count in _counts(neighbors)],
                "n_nonfinite": [count[2] for count in _counts(neighbors)],
                "status": [str(status) for status in estimates.status],
                "tiny_r1": tiny_share(neighbors),
                "top_share": pl.Series(estimates.top_share, dtype=pl.Float64)
                if estimates.top_share is not None
                else None,
            },
            schema_overrides={"top_share": pl.Float64},
        )
        for name, estimates, neighbors in _estimates(clouds, estimators, duplicates, max_seconds)
    ]
    return pl.concat(tables).sort("cloud", maintain_order=True)


def _estimates(
    clouds: np.ndarray, names: Any, duplicates: Any, max_seconds: Any
) -> Iterator[tuple[str, Estimates, Neighbors]]:
    """Yield (name, estimates, neighbors) for each estimator, all from one pass over the clouds."""
    is_names = isinstance(names, Iterable) and not isinstance(names, bytes)
    name_list = ([names] if isinstance(names, str) else list(names)) if is_names else []
    if not name_list:
        raise ConfigError(f"estimators: found {names!r}, expected a name or a list of names such as ['mle']")
    names = name_list
    if not isinstance(duplicates, str) or duplicates not in ("distinct", "keep"):
        raise ConfigError(f"duplicates: found {duplicates!r}, expected 'distinct' or 'keep'")
    is_number = isinstance(max_seconds, Real) and not isinstance(max_seconds, bool)
    if not is_number or not max_seconds > 0:
        raise ConfigError(f"max_seconds: found {max_seconds!r}, expected a number above 0")
    estimators = [get_estimator(name) for name in dict.fromkeys(canonical_name(str(name)) for name in names)]
    # The search for near copies needs the first K ranks.
    ranks = tuple(sorted(set(range(1, K + 1)).union(*(estimator.ranks for estimator in estimators))))
    view = View(skip_first_tokens=0, duplicates=cast("Literal['distinct', 'keep']", duplicates))
    groups = sorted({group_of(name) for estimator in estimators for name in estimator.statistics})
    _require_memory(clouds, estimators)
    try:
        neighbors = stacked([find_neighbors(cloud, [view], ranks, groups)[0] for cloud in clouds])
    except MemoryError as error:
        raise ResourceError(f"products of clouds of shape {clouds.shape[1:]}: {error}; {FEWER}") from error
    for estimator in estimators:
        if estimator.needs == "points":
            yield estimator.name, estimate_from_points(estimator, clouds, neighbors, max_seconds), neighbors
        else:
            yield estimator.name, estimate_from_neighbors(estimator, neighbors), neighbors


def _require_memory(clouds: np.ndarray, estimators: Sequence[Estimator]) -> None:
    """Raise an error if the products of all pairs of points do not fit in memory.

    Raises
    ------
    ResourceError
        As `memory.require` does.
    """
    n = clouds.shape[1]
    bytes_per_pair = max(
        [8 if clouds.dtype.itemsize > 4 else 4, *(BYTES_A_PAIR.get(estimator.needs, 0) for estimator in estimators)]
    )
    memory.require(bytes_per_pair * n**2, f"a cloud of {n:,} points", FEWER)


def _counts(neighbors: Neighbors) -> list[tuple[int, int, int]]:
    """Return n_points, n_distinct and n_nonfinite of each cloud."""
    names = ("n_points", "n_distinct", "n_nonfinite")
    columns = (neighbors.statistic(name).astype(int).tolist() for name in names)
    return list(zip(*columns, strict=True))


def _checked(points: np.ndarray, ndim: int) -> np.ndarray:
    """Return the points as an array of floats, or raise a ConfigError that says what is wrong."""
    shape = "(n_points, d)" if ndim == 2 else "(n_clouds, n_points, d)"
    try:
        array = np.asarray(points)
    except ValueError as error:
        raise ConfigError(f"points: found rows of different lengths ({error}), expected a {shape} array") from error
    except (TypeError, RuntimeError) as error:
        raise ConfigError(
            f"points: found a {type(points).__name__} that does not become a numpy array ({error}); a torch tensor "
            "does as points.detach().float().cpu().numpy()"
        ) from error
    if np.ma.is_masked(points):
        raise ConfigError("points: found a masked array; leave the masked points out")
    if array.ndim != ndim or 0 in array.shape:
        raise ConfigError(f"points: found shape {array.shape}, expected a non-empty {shape} array")
    if not np.issubdtype(array.dtype, np.floating):
        raise ConfigError(
            f"points: found dtype {array.dtype}, expected floats; convert with points.astype(float) "
            "if these are coordinates and not indices"
        )
    with np.errstate(over="ignore"):
        return array.astype(np.float64) if array.dtype.itemsize > 8 else array
