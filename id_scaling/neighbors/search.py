"""Distances from each point of a cloud to its nearest neighbors, as accurate as an ID needs, for about one product.

All inner products come from one symmetric product of the centered points: in float64 for float64 points, in float32 for
all others. |x_i|² + |x_j|² - 2 x_i·x_j loses digits where a neighbor is much closer than the norms of the points.
`neighbors.error_bounds` says for which points this loss matters. For these points, distances to a list of the nearest
neighbors, slightly longer than needed, are recomputed from differences of the coordinates. If the list may miss a
neighbor, the distances to all points that the product does not rule out are recomputed.

A few rows show in advance whether most lists would fail. If so, points are centered by cluster (`neighbors.clusters`).
If this would fail too, or if too many rows remain, the product is in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

from id_scaling.neighbors.error_bounds import (
    SIGMAS_OF_A_PAIR,
    TIMES_SEEN,
    close_together,
    deviations,
    suspects,
)
from id_scaling.neighbors.points import Centred, Cloud, host, is_wide

# Ranks up to LISTED come with their indices. Lists have SPARES more, because recomputed distances change the order: few
# where the product separates neighbors well, more where it does not.
LISTED, SPARES = 32, (4, 8, 16)
# If lists are not enough for more than this share of the points, one float64 product is cheaper than recomputing rows.
SETTLED_BY_ROWS = 1 / 16
# A few probes represent all rows, so their margin is larger by half.
PROBE_MARGIN = 1.5 * SIGMAS_OF_A_PAIR
# Float32 differences are not enough where their squares underflow, or for so few points that errors do not average out.
LEAST_NARROW, FEW_POINTS = 2.0**-100, 64


@dataclass
class Nearest:
    """Nearest neighbors of n selected points, in units of the cloud's points.

    Parameters
    ----------
    squares : (n, m) float64
        Squared distances to the m nearest, ascending.
    indices : (n, m) int
        Indices of these neighbors in the cloud.
    beyond : (n, n_further) float64
        Squared distances at further ranks.
    centred : Centred
        The centered points whose products give the distances that were not recomputed.
    window : int
        Points at most this many positions apart are not neighbors.
    n_again, n_rows : int
        Number of points whose list was recomputed, and of those whose whole row was.
    """

    squares: np.ndarray
    indices: np.ndarray
    beyond: np.ndarray
    centred: Centred
    window: int = 0
    n_again: int = 0
    n_rows: int = 0


def n_allowed(selection: np.ndarray, window: int) -> np.ndarray:
    """Return how many of the selected points may be neighbors of each selected point.

    Examples
    --------
    >>> n_allowed(np.array([0, 1, 2, 3]), window=1).tolist()
    [2, 1, 1, 2]
    """
    n_near = np.searchsorted(selection, selection + window, side="right") - np.searchsorted(
        selection, selection - window
    )
    return len(selection) - n_near


def find_nearest(cloud: Cloud, selection: np.ndarray, n_settled: int, further: np.ndarray, window: int = 0) -> Nearest:
    """Return the nearest neighbors among the selected points of a cloud.

    Parameters
    ----------
    cloud : Cloud
        From `prepare_points`.
    selection : (n,) array of int
        Indices of the points in use: at least two, all finite.
    n_settled : int
        This many leading ranks are exact. At most the smallest number of allowed neighbors of a point.
    further : array of int
        Further ranks, above `n_settled` and with the same upper limit.
    window : int
        Points at most this many positions apart are not neighbors.
    """
    lengths = [min(n_settled + spare, n_allowed(selection, window).min()) for spare in SPARES]
    for length, centred in () if cloud.is_wide else _narrow(cloud, selection, n_settled, lengths, further, window):
        if neighbors := _nearest(cloud, centred, selection, n_settled, length, further, window):
            return neighbors
    neighbors = _nearest(cloud, cloud.about_mean(np.float64), selection, n_settled, lengths[0], further, window)
    assert neighbors is not None  # float64 never leaves too many rows
    return neighbors


def _narrow(
    cloud: Cloud, selection: np.ndarray, n_settled: int, lengths: list[int], further: np.ndarray, window: int
) -> list[tuple[int, Centred]]:
    """Return the list lengths and centered points to try with float32 products, the shortest lists first."""
    attempts: list[tuple[int, Centred]] = []
    for center_points in (lambda: cloud.about_mean(np.float32), lambda: cloud.about_groups):
        if not attempts or attempts[0][0] > lengths[0]:
            centred = center_points()
            sufficient = _length_that_settles(cloud, centred, selection, n_settled, lengths, further, window)
            attempts += [(length, centred) for length in lengths[lengths.index(sufficient) :]] if sufficient else []
    return sorted(attempts, key=lambda attempt: attempt[0])


def _nearest(
    cloud: Cloud,
    centred: Centred,
    selection: np.ndarray,
    n_settled: int,
    n_listed: int,
    further: np.ndarray,
    window: int,
) -> Nearest | None:
    """Return the nearest neighbors from products; None if float32 leaves too many rows to recompute."""
    is_selected = np.zeros(len(cloud.first), dtype=bool)
    is_selected[selection] = True
    gram = beyond_window(centred.gram, window)
    nearest_of_all = cloud.kernels.nearest(gram, centred.squared_norms, is_selected, n_listed, further)
    squares, indices, beyond = (values[selection] for values in nearest_of_all)
    neighbors = Nearest(squares, indices, beyond, centred, window)
    n_zeros = _n_equal(cloud.first, selection, window)
    if n_zeros.any():
        _put_equal_points_first(neighbors, cloud.first, selection, n_zeros)
    neighbors.beyond[further <= n_zeros[:, None]] = 0.0
    norms = centred.guard_norms[selection]
    uncertain = np.flatnonzero(suspects(neighbors.squares, norms, n_zeros, centred.error, cloud.tolerance))
    if not len(uncertain):
        return neighbors
    is_settled, reach = _recompute_lists(cloud, neighbors, uncertain, norms[uncertain], selection, n_settled)
    unsettled = uncertain[~is_settled]
    if not is_wide(centred.gram) and len(unsettled) > SETTLED_BY_ROWS * len(selection):
        return None
    _recompute_rows(cloud, neighbors, unsettled, selection, further, reach[~is_settled])
    neighbors.n_again, neighbors.n_rows = len(uncertain), len(unsettled)
    return neighbors


def beyond_window(product: Any, window: int) -> Any:
    """Return products with those of points within the window set to minus infinity, so that they are no neighbors."""
    if not window:
        return product
    masked, n = array_api_compat.array_namespace(product).asarray(product, copy=True), len(product)
    flat = masked.reshape(-1)
    for offset in range(1, min(window, n - 1) + 1):
        flat[offset :: n + 1][: n - offset] = -np.inf
        flat[offset * n :: n + 1][: n - offset] = -np.inf
    return masked


def _n_equal(first: np.ndarray, selection: np.ndarray, window: int) -> np.ndarray:
    """Return, for each selected point, how many allowed neighbors are equal to it."""
    first_of_selected = first[selection]
    if (np.diff(first_of_selected) > 0).all():
        return np.zeros(len(selection), dtype=int)
    if window:
        is_allowed = np.abs(selection[:, None] - selection) > window
        return np.count_nonzero((first_of_selected[:, None] == first_of_selected) & is_allowed, axis=1)
    _, inverse, n_copies = np.unique(first_of_selected, return_inverse=True, return_counts=True)
    return n_copies[inverse] - 1


def _put_equal_points_first(neighbors: Nearest, first: np.ndarray, selection: np.ndarray, n_zeros: np.ndarray) -> None:
    """Put points equal to a point first in its list, at distance zero, because rounding may have put others first."""
    n_listed, first_of_selected = neighbors.squares.shape[1], first[selection]
    is_other = (first[neighbors.indices] != first_of_selected[:, None]) | (neighbors.indices < 0)
    order = np.argsort(is_other, axis=1, kind="stable")
    neighbors.squares[:] = np.take_along_axis(neighbors.squares, order, axis=1)
    neighbors.indices[:] = np.take_along_axis(neighbors.indices, order, axis=1)
    for row in np.flatnonzero((~is_other).sum(axis=1) < np.minimum(n_zeros, n_listed)):
        is_allowed = np.abs(selection - selection[row]) > neighbors.window
        equals = selection[(first_of_selected == first_of_selected[row]) & is_allowed][:n_listed]
        n_others = n_listed - len(equals)
        kept = np.count_nonzero(~is_other[row]) + np.arange(n_others)
        neighbors.squares[row, len(equals) :] = neighbors.squares[row, kept]
        neighbors.indices[row] = np.append(equals, neighbors.indices[row, kept])
    neighbors.squares[np.arange(n_listed) < n_zeros[:, None]] = 0.0


def _recompute_lists(
    cloud: Cloud, neighbors: Nearest, uncertain: np.ndarray, norms: np.ndarray, selection: np.ndarray, n_settled: int
) -> tuple[np.ndarray, np.ndarray]:
    """Recompute the listed distances of uncertain points.

    Return for which points the first `n_settled` neighbors are certain, and the squared distance by the product above
    which no other point can be among them.
    """
    listed = neighbors.squares[uncertain]
    squares = _squares_from_differences(
        cloud, selection[uncertain], neighbors.indices[uncertain], close_together(listed)
    )
    # By the product, a point outside the list is no nearer than the last in it; its error is like those in the list.
    last, deviation = listed[:, -1], deviations(listed[:, -1], norms, neighbors.centred.error)
    largest_error = np.abs(squares - listed).max(axis=1)
    margin = np.maximum(SIGMAS_OF_A_PAIR * deviation, TIMES_SEEN * largest_error)
    order = np.argsort(squares, axis=1, kind="stable")
    neighbors.squares[uncertain] = np.take_along_axis(squares, order, axis=1)
    neighbors.indices[uncertain] = np.take_along_axis(neighbors.indices[uncertain], order, axis=1)
    last_needed = neighbors.squares[uncertain, n_settled - 1]
    is_all = listed.shape[1] == n_allowed(selection, neighbors.window)[uncertain]
    is_settled = (last_needed <= last - margin) | (last_needed == 0) | is_all
    if neighbors.beyond.shape[1]:
        is_settled &= deviation <= 2 * cloud.tolerance.of_point * last
    return is_settled, last_needed + margin


def _squares_from_differences(cloud: Cloud, points: np.ndarray, others: np.ndarray, is_close: np.ndarray) -> np.ndarray:
    """Return squared distances of points to others, from differences in float32 where `close_together` allows it.

    Points that the product already shows to be close together go straight to float64.
    """
    needs_wide = is_close | cloud.is_wide | (len(cloud.first) < FEW_POINTS)
    squares, narrow = np.empty(others.shape), np.flatnonzero(~needs_wide)
    if len(narrow):
        narrow_squares = cloud.kernels.differences(cloud.points, points[narrow], others[narrow], np.float32)
        squares[narrow] = narrow_squares
        needs_wide[narrow] = close_together(narrow_squares) | (narrow_squares < LEAST_NARROW).any(axis=1)
    if needs_wide.any():
        squares[needs_wide] = cloud.kernels.differences(
            cloud.points, points[needs_wide], others[needs_wide], np.float64
        )
    return squares


def _recompute_rows(
    cloud: Cloud,
    neighbors: Nearest,
    unsettled: np.ndarray,
    selection: np.ndarray,
    further: np.ndarray,
    limits: np.ndarray,
) -> None:
    """Recompute the distances of unsettled points to all candidates: to all points if further ranks are needed."""
    n_listed, norms = neighbors.squares.shape[1], neighbors.centred.squared_norms
    for row, limit in zip(unsettled, limits, strict=True):
        point, candidates = selection[row], selection
        if not len(further):
            products = host(neighbors.centred.gram[int(point)])
            is_excluded = norms[point] + norms[selection] - 2.0 * products[selection] > limit
            candidates = np.union1d(selection[~is_excluded], neighbors.indices[row])
        squares = cloud.kernels.differences(cloud.points, np.array([point]), candidates[None], np.float64)[0]
        squares[np.abs(candidates - point) <= neighbors.window] = np.inf
        order = np.argsort(squares, kind="stable")
        neighbors.squares[row], neighbors.indices[row] = squares[order[:n_listed]], candidates[order[:n_listed]]
        neighbors.beyond[row] = squares[order[further - 1]]


def _length_that_settles(
    cloud: Cloud,
    centred: Centred,
    selection: np.ndarray,
    n_settled: int,
    lengths: list[int],
    further: np.ndarray,
    window: int,
) -> int | None:
    """Return the list length that a float32 product needs, judged from the probes; None if no length is enough."""
    is_probe_selected = np.isin(cloud.probes, selection)
    if lengths[0] == n_allowed(selection, window).max() or not is_probe_selected.any():
        return lengths[0]
    probes, norms = cloud.probes[is_probe_selected], centred.squared_norms
    positions = np.searchsorted(selection, probes)
    products, error = centred.products_of(cloud.probes, is_probe_selected)
    squares = norms[probes, None] + norms[selection] - 2.0 * products[:, selection]
    squares[np.abs(selection - probes[:, None]) <= window] = np.inf
    squares.sort(axis=1)
    has_equal = _n_equal(cloud.first, selection, window)[positions] > 0
    for length in lengths:
        last = squares[:, length - 1]
        deviation = deviations(last, centred.guard_norms[probes], error)
        is_settled = squares[:, n_settled - 1] <= last - PROBE_MARGIN * deviation
        if len(further):
            is_settled &= deviation <= 2 * cloud.tolerance.of_point * last
        if np.mean(is_settled | has_equal) >= 1 - 2 * SETTLED_BY_ROWS:
            return length
    return None
