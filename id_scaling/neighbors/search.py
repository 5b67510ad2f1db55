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
from functools import cached_property
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np

from id_scaling.neighbors.clusters import Shifts, largest_in_reach, shifts_between, split
from id_scaling.neighbors.error_bounds import (
    NARROW,
    SIGMAS_OF_A_PAIR,
    TIMES_SEEN,
    WIDE,
    ProductError,
    Tolerance,
    close_together,
    deviations,
    product_error,
    suspects,
)
from id_scaling.neighbors.kernels.dispatch import kernels_of
from id_scaling.neighbors.kernels.survey import Survey

# Ranks up to LISTED come with their indices, and some more, among which distances computed again find their order: few
# where the product tells neighbors apart, more where it does less well.
LISTED, SPARES = 32, (4, 8, 16)
# Above this share of points that no list settles, one product in float64 is cheaper than their whole rows.
SETTLED_BY_ROWS = 1 / 16
# So many rows speak for all, so they are asked for half as much again.
PROBES = 8
PROBE_MARGIN = 1.5 * SIGMAS_OF_A_PAIR
# Squared norms within these neither overflow nor vanish in float32, nor do squares of differences in the last digit.
LEAST_SQUARE, LARGEST_SQUARE = 2.0**-40, 2.0**80
# Float32 differences do not do where digits of their squares begin to vanish, and for so few points that errors do not
# average out.
LEAST_NARROW, FEW_POINTS = 2.0**-100, 64


@dataclass
class Centred:
    """Points of a cloud less their centres, and their products once they are asked for.

    Parameters
    ----------
    kernels : module
        Those of the points' library.
    survey : Survey
        About the centres.
    centres : (n_groups, d) array
    labels : (n,) int32
        The group of each point.
    """

    kernels: ModuleType
    survey: Survey
    centres: np.ndarray
    labels: np.ndarray

    @cached_property
    def shifts(self) -> Shifts | None:
        """What is taken off products of different groups; None for one group."""
        if len(self.centres) == 1:
            return None
        projections = self.kernels.projections(self.survey.centred, self.centres)
        return shifts_between(self.labels, projections, self.centres)

    @cached_property
    def guard_norms(self) -> np.ndarray:
        """The squared norms that say how far distances of each point to its nearest may be off."""
        if self.shifts is None:
            return self.squared_norms
        return largest_in_reach(self.squared_norms, self.shifts, self.centres)

    @property
    def squared_norms(self) -> np.ndarray:
        """Of the centred points: |x_i - x_j|² is that of two less twice their product."""
        return self.survey.centred_norms

    @cached_property
    def gram(self) -> Any:
        """All products, (n, n); those of centred points where there is one group."""
        return self.kernels.gram(self.survey.centred, self.shifts)

    @cached_property
    def error(self) -> ProductError:
        """How far products are off."""
        diagonal = host(array_api_compat.array_namespace(self.gram).linalg.diagonal(self.gram))
        return product_error(diagonal, self.squared_norms)

    def products_of(self, probes: np.ndarray, is_seen: np.ndarray) -> tuple[np.ndarray, ProductError]:
        """Return some probes' products with all points, and how far products will be off, before all are formed."""
        rows, products = probes[is_seen], self.survey.products[is_seen]
        if self.shifts is not None:
            labels, table = self.shifts
            products = products - table[rows][:, labels] - table[:, labels[rows]].T
        small = host(self.kernels.gram(self.survey.centred[rows]))
        return products, product_error(np.diagonal(small), self.squared_norms[rows])


@dataclass
class Cloud:
    """What one look at each coordinate tells of a cloud, and its centred points once they are asked for.

    Points are divided by `scale`, a power of two (so exactly) that keeps squares in range; `first` is, for
    each point, the index of the first point equal to it; `probes` are some points that stand for all.
    """

    kernels: ModuleType
    points: Any
    scale: float
    squared_norms: np.ndarray
    is_finite: np.ndarray
    first: np.ndarray
    probes: np.ndarray
    _about_mean: dict[type, Centred]

    @property
    def is_wide(self) -> bool:
        """Whether the points are float64, so that everything is."""
        return _is_wide(self.points)

    @cached_property
    def is_distinct(self) -> bool:
        """Whether no two rows are equal."""
        return bool((self.first == np.arange(len(self.first))).all())

    @property
    def tolerance(self) -> Tolerance:
        """How far an ID may be off."""
        return WIDE if self.is_wide else NARROW

    def about_mean(self, dtype: type) -> Centred:
        """Return the points less one centre, in a dtype."""
        if dtype not in self._about_mean:
            one = next(iter(self._about_mean.values()))
            self._about_mean[dtype] = centred_on(self.kernels, self.points, one.labels, dtype, self.probes, one.centres)
        return self._about_mean[dtype]

    @cached_property
    def about_groups(self) -> Centred:
        """The points less the centres of groups, in float32."""
        labels = split(self.about_mean(np.float32).survey.products.T)
        return centred_on(self.kernels, self.points, labels, np.float32, self.probes)


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


def survey(points: Any) -> Cloud:
    """Return a cloud; numpy or torch points, of any floating dtype."""
    kernels, scale = kernels_of(points), 1.0
    points = kernels.in_order(points)
    probes, one_group = _spread_out(len(points), PROBES), np.zeros(len(points), np.int32)
    dtype = np.float64 if _is_wide(points) else np.float32
    centred = centred_on(kernels, points, one_group, dtype, probes)
    if not LEAST_SQUARE <= centred.survey.squared_norms.max(initial=0) <= LARGEST_SQUARE:
        points, scale = _in_range(points)
        dtype = np.float64
        centred = centred_on(kernels, points, one_group, dtype, probes)
    squared_norms = centred.survey.squared_norms
    first = first_occurrences(points, centred.survey.keys)
    return Cloud(kernels, points, scale, squared_norms, np.isfinite(squared_norms), first, probes, {dtype: centred})


def centred_on(
    kernels: ModuleType,
    points: Any,
    labels: np.ndarray,
    dtype: type,
    probes: np.ndarray,
    centres: np.ndarray | None = None,
) -> Centred:
    """Return points less the centres of their groups, by default their means, in a dtype."""
    centres = kernels.means(points, labels) if centres is None else centres
    return Centred(kernels, kernels.survey(points, centres, labels, dtype, probes), centres, labels)


def _spread_out(n: int, n_wanted: int) -> np.ndarray:
    """Return so many indices below n in even steps, or all."""
    step = max(1, n // n_wanted)
    return np.arange(step // 2, n, step)[:n_wanted]


def _is_wide(points: Any) -> bool:
    """Return whether points are float64."""
    return points.dtype.itemsize > 4


def _in_range(points: Any) -> tuple[Any, float]:
    """Return points in float64, divided by the power of two of their largest finite coordinate, and that power.

    Narrower, the small beside the large would vanish.
    """
    xp = array_api_compat.array_namespace(points)
    rows = xp.astype(points, xp.float64)
    sizes = xp.abs(rows)
    largest = float(xp.max(xp.where(xp.isfinite(sizes), sizes, xp.zeros_like(sizes))))
    scale = 2.0 ** np.floor(np.log2(largest)) if largest > 0 else 1.0
    return rows / scale, float(scale)


def first_occurrences(points: Any, keys: np.ndarray) -> np.ndarray:
    """Return, for each point, the index of the first equal to it; NaN equals nothing.

    Points are grouped by a key that is equal for equal rows, and the grouping is then checked value by
    value, so no distance and no tolerance enters.
    """
    own = np.arange(len(keys))
    ascending = np.sort(keys)
    if np.isfinite(ascending).all() and (ascending[1:] != ascending[:-1]).all():
        return own
    keys = np.where(np.isfinite(keys), keys, 0.0)  # keys that overflow share a group, to be told apart below
    _, index, inverse = np.unique(keys, return_index=True, return_inverse=True, equal_nan=False)
    first = index[inverse]
    repeated = np.flatnonzero(first != own)
    xp = array_api_compat.array_namespace(points)
    twins = (xp.take(points, _like(some, points), axis=0) for some in (repeated, first[repeated]))
    if not len(repeated) or bool(xp.all(next(twins) == next(twins))):
        return first
    # Different points with one key, or some that are not finite: compare the values themselves.
    values = host(kernels_of(points).widened(points)) + 0.0
    _, index, inverse = np.unique(values, axis=0, return_index=True, return_inverse=True, equal_nan=False)
    return np.where(np.isfinite(values).all(axis=1), index[inverse.ravel()], own)


def n_allowed(selection: np.ndarray, window: int) -> np.ndarray:
    """Return how many of the selected points may be neighbors of each."""
    near = np.searchsorted(selection, selection + window, side="right") - np.searchsorted(selection, selection - window)
    return len(selection) - near


def find_nearest(cloud: Cloud, selection: np.ndarray, n_settled: int, further: np.ndarray, window: int = 0) -> Nearest:
    """Return the nearest neighbors among the selected points of a cloud.

    Parameters
    ----------
    cloud : Cloud
        From `survey`.
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
    return _nearest(cloud, cloud.about_mean(np.float64), selection, n_settled, lengths[0], further, window)


def _narrow(cloud, selection, n_settled, lengths, further, window) -> list[tuple[int, Centred]]:
    """Return how long lists must be for products in float32, and of which centred points, the shortest first."""
    found = []
    for about in (lambda: cloud.about_mean(np.float32), lambda: cloud.about_groups):
        if not found or found[0][0] > lengths[0]:
            centred = about()
            least = _length_that_settles(cloud, centred, selection, n_settled, lengths, further, window)
            found += [(length, centred) for length in lengths[lengths.index(least) :]] if least else []
    return sorted(found, key=lambda one: one[0])


def _nearest(cloud: Cloud, centred: Centred, selection, n_settled, n_listed, further, window) -> Nearest | None:
    """Return the nearest by products of centred points; None where float32 would leave too many rows to do again."""
    counts = np.zeros(len(cloud.first), dtype=bool)
    counts[selection] = True
    found = cloud.kernels.nearest(beyond_window(centred.gram, window), centred.squared_norms, counts, n_listed, further)
    found = Nearest(*(values[selection] for values in found), centred, window)
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
    if not _is_wide(centred.gram) and len(unsettled) > SETTLED_BY_ROWS * len(selection):
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


def _settle_lists(cloud, found, again, norms, selection, n_settled) -> tuple[np.ndarray, np.ndarray]:
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


def _settle_rows(cloud, found, some, selection, further, reach) -> None:
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
    cloud: Cloud, centred: Centred, selection: np.ndarray, n_settled: int, lengths: list[int], further, window: int
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


def _like(values: np.ndarray, other: Any) -> Any:
    """Return an index array on the device and in the library of `other`."""
    xp = array_api_compat.array_namespace(other)
    return xp.asarray(values, device=array_api_compat.device(other))


def host(values: Any) -> np.ndarray:
    """Return an array's values as numpy, on the host."""
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()
