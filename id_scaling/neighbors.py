"""Nearest-neighbor distances of one point cloud, under several views, from one product of its points.

Conventions: a cloud is (n_points, d). Arithmetic is float64 throughout, on the array library and the
device of the input (numpy, or torch on a GPU). The points are centred, then
|x_i - x_j|² = |x_i|² + |x_j|² - 2 x_i·x_j for all pairs at once. That difference loses
digits where a neighbor is much closer than the points' norms, so such rows are computed again from
differences of the coordinates as given. Equal points are decided on their values (−0.0 equals 0.0), never on
distances, and are at distance exactly 0.

What is kept of a point is r_1 and log(r_j / r_1) at a ladder of ranks j: the logarithms are formed
before anything is rounded, because at an attention sink all r_j agree to four digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

from id_scaling.views import View

# Rows are computed again when r_1² < REFINE · |x|²: above it the product's error, up to ten float64 epsilon of |x|²
# (2e-15), stays under 1e-9 of r_1², so under 1e-9 of any estimate made of such distances.
REFINE = 1e-5
# Coordinate differences held at once when rows are computed again: 32 MB.
REFINED_AT_ONCE = 2**22

STATISTICS = (
    "n_points",
    "n_distinct",
    "n_nonfinite",
    "n_used",
    "median_norm",
    "gram_trace",
    "gram_frobenius",
    "nn_same_token",
    "nn_within_5",
)


@dataclass(frozen=True)
class Neighbors:
    """Nearest-neighbor distances of clouds; leading axes, if any, run over clouds.

    Parameters
    ----------
    ranks : tuple of int
        The ranks j stored, increasing, 1 is the nearest neighbor.
    r1 : (..., n_points) float64
        Distance to the nearest neighbor in the units of the points; NaN for points that do not count.
    log_ratio : (..., n_points, n_ranks) float
        log(r_j / r_1); NaN for points that do not count and for ranks the cloud is too small for;
        where r_1 = 0 it is 0 for r_j = 0 and infinite for r_j > 0.
    statistics : (..., len(STATISTICS)) float64
        Counts and shares of the cloud under the view, in the order of `STATISTICS`.
    """

    ranks: tuple[int, ...]
    r1: np.ndarray
    log_ratio: np.ndarray
    statistics: np.ndarray

    def at(self, rank: int) -> np.ndarray:
        """Return log(r_rank / r_1), (..., n_points), in float64."""
        return self.log_ratio[..., self.ranks.index(rank)].astype(np.float64)

    def statistic(self, name: str) -> np.ndarray:
        """Return one named statistic of each cloud."""
        return self.statistics[..., STATISTICS.index(name)]


def find_neighbors(
    points: Any,
    views: Sequence[View],
    ranks: Sequence[int],
    token_ids: np.ndarray | None = None,
) -> list[Neighbors]:
    """Return the neighbors of one cloud under each view.

    Parameters
    ----------
    points : (n_points, d) array
        numpy, or torch on any device; any floating dtype. Computed in float64.
    views : sequence of View
        All are selections of the same points, so they share one product.
    ranks : sequence of int
        Neighbor ranks to keep, increasing.
    token_ids : (n_points,) array of int, optional
        Token of each point, for the share of nearest neighbors with the same token.

    Returns
    -------
    list of Neighbors
        One a view, each with numpy arrays of the cloud's full length.
    """
    xp = array_api_compat.array_namespace(points)
    points = xp.astype(points, xp.float64)
    first = first_occurrences(points)
    is_finite = xp.all(xp.isfinite(points), axis=1)
    scaled, centred, scale, norms = _normalise(points, is_finite)
    cloud = _Cloud(first, _host(is_finite), norms, token_ids)
    selections = [_select(view, cloud) for view in views]
    is_needed = any(len(selection) >= 2 for selection in selections)
    squares = _squared_distances(scaled, centred, first) if is_needed else None
    return [
        _nothing(view, selection, ranks, cloud)
        if len(selection) < 2
        else _under_view(view, selection, squares, scale, ranks, cloud)
        for view, selection in zip(views, selections, strict=True)
    ]


@dataclass(frozen=True)
class _Cloud:
    """What is known of each point of a cloud before any distance."""

    first: np.ndarray
    is_finite: np.ndarray
    norms: np.ndarray
    token_ids: np.ndarray | None


def _normalise(points: Any, is_finite: Any) -> tuple[Any, Any, float, np.ndarray]:
    """Return points divided by a power of two, the same centred, that power, and the points' own norms.

    The division is exact and keeps squares of the largest and smallest floats in range.
    """
    xp = array_api_compat.array_namespace(points)
    points = xp.where(is_finite[:, None], points, xp.zeros_like(points))
    largest = float(xp.max(xp.abs(points))) if points.size else 0.0
    scale = float(2.0 ** np.floor(np.log2(largest))) if largest > 0 else 1.0
    points = points / scale
    norms = _host(xp.sqrt(xp.sum(points**2, axis=1))) * scale
    n_finite = max(int(xp.sum(xp.astype(is_finite, xp.int64))), 1)
    centred = points - xp.sum(points, axis=0) / n_finite
    return points, centred, scale, norms


def first_occurrences(points: Any) -> np.ndarray:
    """Return, for each row, the index of the first row equal to it; NaN equals nothing.

    Rows are grouped by a random projection (equal rows project equally) and the grouping is then
    checked value by value, so no distance and no tolerance enters.
    """
    xp = array_api_compat.array_namespace(points)
    weights = np.random.default_rng(0).standard_normal(points.shape[1])
    key = _host(xp.vecdot(points, _like(weights, points)))
    key = np.where(np.isfinite(key), key, 0.0)  # projections that overflow share a group, to be told apart below
    _, index, inverse = np.unique(key, return_index=True, return_inverse=True, equal_nan=False)
    first = index[inverse]
    own = np.arange(len(first))
    repeated = np.flatnonzero(first != own)
    twins = (xp.take(points, _like(rows, points), axis=0) for rows in (repeated, first[repeated]))
    if bool(xp.all(next(twins) == next(twins))):
        return first
    # Different rows with one projection, or non-finite rows: compare the values themselves.
    rows = _host(points) + 0.0
    _, index, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True, equal_nan=False)
    return np.where(np.isfinite(rows).all(axis=1), index[inverse.ravel()], own)


def _select(view: View, cloud: _Cloud) -> np.ndarray:
    """Return the indices of the points that count; none when one of the view's points is not finite."""
    index = np.arange(view.skip_first_tokens, len(cloud.first))
    if not cloud.is_finite[index].all():
        return index[:0]
    if view.duplicates == "keep":
        return index
    return index[np.sort(np.unique(cloud.first[index], return_index=True)[1])]


def _under_view(view, selection, squares, scale, ranks, cloud) -> Neighbors:
    """Return the neighbors among the selected points, spread over the cloud's full length."""
    xp = array_api_compat.array_namespace(squares)
    squares = _submatrix(squares, selection)
    n = len(selection)
    statistics = [
        *_counts(view, selection, cloud),
        np.median(cloud.norms[selection]),
        *(float(moment) * scale * scale for moment in _gram_moments(squares)),
    ]
    own = xp.arange(n, device=array_api_compat.device(squares))
    squares[own, own] = xp.inf
    nearest = selection[_host(xp.argmin(squares, axis=1))]
    r1, log_ratio = _ladder(xp.sort(squares, axis=1, stable=False), ranks)
    squares[own, own] = 0.0
    full_r1 = np.full(len(cloud.first), np.nan)
    full_r1[selection] = r1 * scale
    full_ratio = np.full((len(cloud.first), len(ranks)), np.nan)
    full_ratio[selection] = log_ratio
    statistics += _neighbor_shares(selection, nearest, cloud.token_ids)
    return Neighbors(tuple(ranks), full_r1, full_ratio, np.array(statistics))


def _submatrix(matrix: Any, selection: np.ndarray) -> Any:
    """Return the rows and columns that are selected, without a copy where they are contiguous."""
    start, stop = int(selection[0]), int(selection[-1]) + 1
    if stop - start == len(selection):
        return matrix[start:stop, start:stop]
    xp = array_api_compat.array_namespace(matrix)
    index = _like(selection, matrix)
    return xp.take(xp.take(matrix, index, axis=0), index, axis=1)


def _squared_distances(scaled: Any, centred: Any, first: np.ndarray) -> Any:
    """Return all squared distances, exact for equal points and where the product is not."""
    xp = array_api_compat.array_namespace(centred)
    squares = centred @ centred.T
    norms = xp.asarray(xp.linalg.diagonal(squares), copy=True)
    squares *= -2
    squares += norms[:, None]
    squares += norms[None, :]
    is_near = squares < REFINE * norms[:, None]
    own = xp.arange(len(first), device=array_api_compat.device(squares))
    is_near[own, own] = False
    if len(np.unique(first)) < len(first):
        is_equal = _like(first[:, None] == first[None, :], squares)
        squares = xp.where(is_equal, xp.zeros_like(squares), squares)
        is_near = is_near & ~is_equal
    near_rows = np.flatnonzero(_host(xp.any(is_near, axis=1)))
    rows_a_block = max(1, REFINED_AT_ONCE // (scaled.shape[0] * scaled.shape[1]))
    for start in range(0, len(near_rows), rows_a_block):
        rows = _like(near_rows[start : start + rows_a_block], squares)
        differences = scaled[None, :, :] - xp.take(scaled, rows, axis=0)[:, None, :]
        squares[rows, :] = xp.sum(differences**2, axis=2)
    squares[own, own] = 0.0
    return squares


def _ladder(ascending: Any, ranks: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return r_1 and log(r_j / r_1) of rows of ascending squared distances (the last is infinite)."""
    xp = array_api_compat.array_namespace(ascending)
    n_neighbors = ascending.shape[1] - 1
    columns = np.minimum(np.asarray(ranks), n_neighbors) - 1
    squares = _host(xp.take(ascending, _like(columns, ascending), axis=1))
    nearest = _host(ascending[:, 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        log_ratio = 0.5 * np.log(squares / nearest[:, None])
    log_ratio[(squares == 0) & (nearest == 0)[:, None]] = 0.0
    log_ratio[:, np.asarray(ranks) > n_neighbors] = np.nan
    return np.sqrt(nearest), log_ratio


def _gram_moments(squares: Any) -> tuple[float, float]:
    """Return trace and Frobenius norm of the centred Gram matrix G = -½ H S H of squared distances S."""
    xp = array_api_compat.array_namespace(squares)
    n = squares.shape[0]
    row_means = xp.mean(squares, axis=1)
    mean = float(xp.mean(row_means))
    square = xp.sum(xp.vecdot(squares, squares)) - 2 * n * xp.sum(row_means**2) + n**2 * mean**2
    return n * mean / 2, float(np.sqrt(max(float(square), 0.0))) / 2


def _neighbor_shares(selection, nearest, token_ids) -> tuple[float, float]:
    """Return the shares of nearest neighbors with the same token, and within five positions."""
    same = np.nan if token_ids is None else np.mean(token_ids[selection] == token_ids[nearest])
    return float(same), float(np.mean(np.abs(selection - nearest) <= 5))


def _counts(view: View, selection: np.ndarray, cloud: _Cloud) -> list[int]:
    """Return n_points, n_distinct, n_nonfinite, n_used of a cloud under a view."""
    index = np.arange(view.skip_first_tokens, len(cloud.first))
    n_distinct = len(np.unique(cloud.first[index]))
    return [len(index), n_distinct, np.count_nonzero(~cloud.is_finite[index]), len(selection)]


def _nothing(view, selection, ranks, cloud) -> Neighbors:
    """Return the neighbors of a cloud that has none: too few points, or one not finite."""
    n = len(cloud.first)
    statistics = np.full(len(STATISTICS), np.nan)
    statistics[:4] = _counts(view, selection, cloud)
    no_ratio = np.full((n, len(ranks)), np.nan)
    return Neighbors(tuple(ranks), np.full(n, np.nan), no_ratio, statistics)


def _like(values: np.ndarray, other: Any) -> Any:
    """Return an index array on the device and in the library of `other`."""
    xp = array_api_compat.array_namespace(other)
    return xp.asarray(values, device=array_api_compat.device(other))


def _host(values: Any) -> np.ndarray:
    """Return an array's values as numpy, on the host."""
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()
