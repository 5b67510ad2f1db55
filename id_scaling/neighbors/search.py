"""The distances from each point of a cloud to its nearest, right to what an ID needs, at little more than one product.

All inner products come from one symmetric product of the centred points: in float32 for points that are no wider, in
float64 for float64. |x_i|² + |x_j|² - 2 x_i·x_j loses digits where a neighbor is much closer than the points' norms;
`neighbors.error_bounds` says for which points that would matter. For them the distances to a list of the nearest, some
longer than what is asked for, are computed again from differences of the coordinates as given. Where the list cannot be
shown to hold all that belongs there, those to all points that the product does not rule out are. Where a few rows show
beforehand that most lists would not do, points are centred in groups (`neighbors.clusters`); where that would not do
either, the product is in float64.
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

# Ranks up to LISTED come with their indices, and some more, among which distances computed again find their order: few
# where the product tells neighbors apart, more where it does less well.
LISTED, SPARES = 32, (4, 8, 16)
# Above this share of points that no list settles, one product in float64 is cheaper than their whole rows.
SETTLED_BY_ROWS = 1 / 16
# The probes speak for all rows, so they are asked for half as much again.
PROBE_MARGIN = 1.5 * SIGMAS_OF_A_PAIR
# Float32 differences do not do where digits of their squares begin to vanish, and for so few points that errors do not
# average out.
LEAST_NARROW, FEW_POINTS = 2.0**-100, 64


@dataclass
class Nearest:
    """Of n selected points, in units of the cloud's points.

    Parameters
    ----------
    squares : (n, m) float64
        Squared distances to the m nearest, ascending.
    indices : (n, m) int
        Which points of the cloud they are.
    beyond : (n, n_further) float64
        Squared distances at further ranks.
    centred : Centred
        What the distances come from where they were not computed again.
    window : int
        Points at most so many positions apart are no neighbors.
    n_again, n_rows : int
        Points whose list, and whose whole row, was computed again.
    """

    squares: np.ndarray
    indices: np.ndarray
    beyond: np.ndarray
    centred: Centred
    window: int = 0
    n_again: int = 0
    n_rows: int = 0


def n_allowed(selection: np.ndarray, window: int) -> np.ndarray:
    """Return how many of the selected points may be neighbors of each.

    Examples
    --------
    >>> n_allowed(np.array([0, 1, 2, 3]), window=1).tolist()
    [2, 1, 1, 2]
    """
    near = np.searchsorted(selection, selection + window, side="right") - np.searchsorted(selection, selection - window)
    return len(selection) - near


def find_nearest(cloud: Cloud, selection: np.ndarray, n_settled: int, further: np.ndarray, window: int = 0) -> Nearest:
    """Return the nearest neighbors among the selected points of a cloud.

    Parameters
    ----------
    cloud : Cloud
        From `prepare_points`.
    selection : (n,) array of int
        The points that count, two at least, all finite.
    n_settled : int
        The first so many ranks are right, no more than each point has that may be neighbors of it.
    further : array of int
        Further ranks, above `n_settled` and no more than that either.
    window : int
        Points at most so many positions apart are no neighbors.
    """
    lengths = [min(n_settled + spare, n_allowed(selection, window).min()) for spare in SPARES]
    for length, centred in () if cloud.is_wide else _narrow(cloud, selection, n_settled, lengths, further, window):
        if found := _nearest(cloud, centred, selection, n_settled, length, further, window):
            return found
    found = _nearest(cloud, cloud.about_mean(np.float64), selection, n_settled, lengths[0], further, window)
    assert found is not None  # float64 never leaves too many rows
    return found


def _narrow(
    cloud: Cloud, selection: np.ndarray, n_settled: int, lengths: list[int], further: np.ndarray, window: int
) -> list[tuple[int, Centred]]:
    """Return how long lists must be for products in float32, and of which centred points, the shortest first."""
    found: list[tuple[int, Centred]] = []
    for about in (lambda: cloud.about_mean(np.float32), lambda: cloud.about_groups):
        if not found or found[0][0] > lengths[0]:
            centred = about()
            least = _length_that_settles(cloud, centred, selection, n_settled, lengths, further, window)
            found += [(length, centred) for length in lengths[lengths.index(least) :]] if least else []
    return sorted(found, key=lambda one: one[0])


def _nearest(
    cloud: Cloud,
    centred: Centred,
    selection: np.ndarray,
    n_settled: int,
    n_listed: int,
    further: np.ndarray,
    window: int,
) -> Nearest | None:
    """Return the nearest by products of centred points; None where float32 would leave too many rows to do again."""
    counts = np.zeros(len(cloud.first), dtype=bool)
    counts[selection] = True
    gram = beyond_window(centred.gram, window)
    of_cloud = cloud.kernels.nearest(gram, centred.squared_norms, counts, n_listed, further)
    squares, indices, beyond = (values[selection] for values in of_cloud)
    found = Nearest(squares, indices, beyond, centred, window)
    n_zeros = _n_equal(cloud.first, selection, window)
    if n_zeros.any():
        _put_equals_first(found, cloud.first, selection, n_zeros)
    found.beyond[further <= n_zeros[:, None]] = 0.0
    norms = centred.guard_norms[selection]
    again = np.flatnonzero(suspects(found.squares, norms, n_zeros, centred.error, cloud.tolerance))
    if not len(again):
        return found
    is_settled, reach = _settle_lists(cloud, found, again, norms[again], selection, n_settled)
    unsettled = again[~is_settled]
    if not is_wide(centred.gram) and len(unsettled) > SETTLED_BY_ROWS * len(selection):
        return None
    _settle_rows(cloud, found, unsettled, selection, further, reach[~is_settled])
    found.n_again, found.n_rows = len(again), len(unsettled)
    return found


def beyond_window(product: Any, window: int) -> Any:
    """Return products with those of points at most so many positions apart at minus infinity, so at no distance."""
    if not window:
        return product
    found, n = array_api_compat.array_namespace(product).asarray(product, copy=True), len(product)
    flat = found.reshape(-1)
    for offset in range(1, min(window, n - 1) + 1):
        flat[offset :: n + 1][: n - offset] = -np.inf
        flat[offset * n :: n + 1][: n - offset] = -np.inf
    return found


def _n_equal(first: np.ndarray, selection: np.ndarray, window: int) -> np.ndarray:
    """Return how many others of the selected points equal each and may be neighbors of it."""
    of_selected = first[selection]
    if (np.diff(of_selected) > 0).all():
        return np.zeros(len(selection), dtype=int)
    if window:
        is_allowed = np.abs(selection[:, None] - selection) > window
        return np.count_nonzero((of_selected[:, None] == of_selected) & is_allowed, axis=1)
    _, inverse, n_copies = np.unique(of_selected, return_inverse=True, return_counts=True)
    return n_copies[inverse] - 1


def _put_equals_first(found: Nearest, first: np.ndarray, selection: np.ndarray, n_zeros: np.ndarray) -> None:
    """Put a point's equals in front of its list, at distance zero, whatever a product took for nearer."""
    n_listed, own = found.squares.shape[1], first[selection]
    is_other = (first[found.indices] != own[:, None]) | (found.indices < 0)
    order = np.argsort(is_other, axis=1, kind="stable")
    found.squares[:] = np.take_along_axis(found.squares, order, axis=1)
    found.indices[:] = np.take_along_axis(found.indices, order, axis=1)
    for row in np.flatnonzero((~is_other).sum(axis=1) < np.minimum(n_zeros, n_listed)):
        is_allowed = np.abs(selection - selection[row]) > found.window
        equals = selection[(own == own[row]) & is_allowed][:n_listed]
        n_others = n_listed - len(equals)
        at = np.count_nonzero(~is_other[row]) + np.arange(n_others)
        found.squares[row, len(equals) :] = found.squares[row, at]
        found.indices[row] = np.append(equals, found.indices[row, at])
    found.squares[np.arange(n_listed) < n_zeros[:, None]] = 0.0


def _settle_lists(
    cloud: Cloud, found: Nearest, again: np.ndarray, norms: np.ndarray, selection: np.ndarray, n_settled: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute listed distances again.

    Return for which points the first `n_settled` are surely the nearest, and the square by the product beyond which
    no other is as near as they.
    """
    listed = found.squares[again]
    squares = _from_differences(cloud, selection[again], found.indices[again], close_together(listed))
    # What is not in the list is no nearer than the last of it, by a product that is off by as much as those seen.
    last, off = listed[:, -1], deviations(listed[:, -1], norms, found.centred.error)
    seen = np.abs(squares - listed).max(axis=1)
    margin = np.maximum(SIGMAS_OF_A_PAIR * off, TIMES_SEEN * seen)
    order = np.argsort(squares, axis=1, kind="stable")
    found.squares[again] = np.take_along_axis(squares, order, axis=1)
    found.indices[again] = np.take_along_axis(found.indices[again], order, axis=1)
    settled = found.squares[again, n_settled - 1]
    is_all = listed.shape[1] == n_allowed(selection, found.window)[again]
    is_settled = (settled <= last - margin) | (settled == 0) | is_all
    if found.beyond.shape[1]:
        is_settled &= off <= 2 * cloud.tolerance.of_point * last
    return is_settled, settled + margin


def _from_differences(cloud: Cloud, some: np.ndarray, others: np.ndarray, is_close: np.ndarray) -> np.ndarray:
    """Return squared distances of some points to others, from differences as narrow as `close_together` allows.

    Of points that are close together by all appearances, narrow ones are not tried.
    """
    needs_wide = is_close | cloud.is_wide | (len(cloud.first) < FEW_POINTS)
    squares, narrow = np.empty(others.shape), np.flatnonzero(~needs_wide)
    if len(narrow):
        found = cloud.kernels.differences(cloud.points, some[narrow], others[narrow], np.float32)
        squares[narrow] = found
        needs_wide[narrow] = close_together(found) | (found < LEAST_NARROW).any(axis=1)
    if needs_wide.any():
        squares[needs_wide] = cloud.kernels.differences(cloud.points, some[needs_wide], others[needs_wide], np.float64)
    return squares


def _settle_rows(
    cloud: Cloud, found: Nearest, some: np.ndarray, selection: np.ndarray, further: np.ndarray, reach: np.ndarray
) -> None:
    """Compute again the distances of some points to all that may be nearest; to all, where further ranks count."""
    n_listed, norms = found.squares.shape[1], found.centred.squared_norms
    for row, limit in zip(some, reach, strict=True):
        point, others = selection[row], selection
        if not len(further):
            products = host(found.centred.gram[int(point)])
            is_out = norms[point] + norms[selection] - 2.0 * products[selection] > limit
            others = np.union1d(selection[~is_out], found.indices[row])
        squares = cloud.kernels.differences(cloud.points, np.array([point]), others[None], np.float64)[0]
        squares[np.abs(others - point) <= found.window] = np.inf
        order = np.argsort(squares, kind="stable")
        found.squares[row], found.indices[row] = squares[order[:n_listed]], others[order[:n_listed]]
        found.beyond[row] = squares[order[further - 1]]


def _length_that_settles(
    cloud: Cloud,
    centred: Centred,
    selection: np.ndarray,
    n_settled: int,
    lengths: list[int],
    further: np.ndarray,
    window: int,
) -> int | None:
    """Return how long lists must be for a float32 product, as a few points show; None where it is of no use."""
    is_seen = np.isin(cloud.probes, selection)
    if lengths[0] == n_allowed(selection, window).max() or not is_seen.any():
        return lengths[0]
    probes, norms = cloud.probes[is_seen], centred.squared_norms
    places = np.searchsorted(selection, probes)
    products, error = centred.products_of(cloud.probes, is_seen)
    squares = norms[probes, None] + norms[selection] - 2.0 * products[:, selection]
    squares[np.abs(selection - probes[:, None]) <= window] = np.inf
    squares.sort(axis=1)
    has_equal = _n_equal(cloud.first, selection, window)[places] > 0
    for length in lengths:
        last = squares[:, length - 1]
        off = deviations(last, centred.guard_norms[probes], error)
        is_settled = squares[:, n_settled - 1] <= last - PROBE_MARGIN * off
        if len(further):
            is_settled &= off <= 2 * cloud.tolerance.of_point * last
        if np.mean(is_settled | has_equal) >= 1 - 2 * SETTLED_BY_ROWS:
            return length
    return None
