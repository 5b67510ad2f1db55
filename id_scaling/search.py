"""The distances from each point of a cloud to its nearest, right to what an ID needs, at little more than one product.

All inner products come from one symmetric product of the centred points: in float32 for points that are no wider, in
float64 for float64. |x_i|² + |x_j|² - 2 x_i·x_j loses digits where a neighbor is much closer than the points' norms;
`id_scaling.guard` says for which points that would matter. For them the distances to a list of the nearest, some
longer than what is asked for, are computed again from float64 differences of the coordinates as given. Where the
list cannot be shown to hold all that belongs there, the whole row is. A cloud for which a few rows show
beforehand that most lists would not do goes through a float64 product at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np

from id_scaling.guard import (
    NARROW,
    SIGMAS_OF_A_PAIR,
    TIMES_SEEN,
    WIDE,
    ProductError,
    Tolerance,
    deviations,
    product_error,
    suspects,
)
from id_scaling.kernels import kernels_of

# Ranks up to LISTED come with their indices, and some more, among which distances computed again find their order: few
# where the product tells neighbors apart, more where it does less well.
LISTED, SPARES = 32, (4, 8, 16)
# Above this share of points that no list settles, one product in float64 is cheaper than their whole rows.
SETTLED_BY_ROWS = 1 / 16
# So many rows speak for all, so they are asked for twice as much.
PROBES, PROBE_MARGIN = 8, 2 * SIGMAS_OF_A_PAIR
# Squared norms within these neither overflow nor vanish in float32, nor do products of differences that matter.
LEAST_SQUARE, LARGEST_SQUARE = 2.0**-80, 2.0**80


@dataclass(frozen=True)
class Product:
    """All inner products of a cloud's centred points, their squared norms, and how far the products are off."""

    gram: Any
    squared_norms: np.ndarray
    error: ProductError


@dataclass
class Cloud:
    """What one look at each coordinate tells of a cloud, and its products once they are asked for.

    Rows are the points divided by `scale`, a power of two (so exactly) that keeps squares in range; `first` is, for
    each row, the index of the first row equal to it.
    """

    kernels: ModuleType
    rows: Any
    scale: float
    squared_norms: np.ndarray
    centre: np.ndarray
    is_finite: np.ndarray
    first: np.ndarray
    _centred: dict[type, tuple[Any, np.ndarray]] = field(default_factory=dict)
    _products: dict[type, Product] = field(default_factory=dict)

    @cached_property
    def is_wide(self) -> bool:
        """Whether the points are float64, so that everything is."""
        return "float64" in str(self.rows.dtype)

    @cached_property
    def is_distinct(self) -> bool:
        """Whether no two rows are equal."""
        return bool((self.first == np.arange(len(self.first))).all())

    @property
    def tolerance(self) -> Tolerance:
        """How far an ID may be off."""
        return WIDE if self.is_wide else NARROW

    def centred(self, dtype: type) -> tuple[Any, np.ndarray]:
        """Return the centred rows in a dtype, and their squared norms in float64."""
        if dtype not in self._centred:
            self._centred[dtype] = self.kernels.centred(self.rows, self.centre, dtype, self.is_finite)
        return self._centred[dtype]

    def product(self, dtype: type) -> Product:
        """Return the product in a dtype."""
        if dtype not in self._products:
            centred, squared_norms = self.centred(dtype)
            gram = self.kernels.gram(centred)
            diagonal = host(array_api_compat.array_namespace(gram).linalg.diagonal(gram))
            self._products[dtype] = Product(gram, squared_norms, product_error(diagonal, squared_norms))
        return self._products[dtype]


@dataclass
class Nearest:
    """Of n selected points, in units of the cloud's rows.

    Parameters
    ----------
    squares : (n, m) float64
        Squared distances to the m nearest, ascending.
    indices : (n, m) int
        Which points of the cloud they are.
    beyond : (n, n_further) float64
        Squared distances at further ranks.
    product : Product
        What the distances come from where they were not computed again.
    n_again, n_rows : int
        Points whose list, and whose whole row, was computed again.
    """

    squares: np.ndarray
    indices: np.ndarray
    beyond: np.ndarray
    product: Product
    n_again: int = 0
    n_rows: int = 0


def survey(points: Any) -> Cloud:
    """Return a cloud; numpy or torch points, of any floating dtype."""
    kernels = kernels_of(points)
    rows, scale = kernels.widened(points), 1.0
    squared_norms, total, keys = kernels.survey(rows)
    if not LEAST_SQUARE <= squared_norms.max(initial=0) <= LARGEST_SQUARE:
        rows, scale = _in_range(rows)
        squared_norms, total, keys = kernels.survey(rows)
    is_finite = np.isfinite(squared_norms)
    centre = total / max(np.count_nonzero(is_finite), 1)
    return Cloud(kernels, rows, scale, squared_norms, centre, is_finite, first_occurrences(rows, keys))


def _in_range(rows: Any) -> tuple[Any, float]:
    """Return rows divided by the power of two of their largest finite coordinate, and that power."""
    xp = array_api_compat.array_namespace(rows)
    sizes = xp.abs(rows)
    largest = float(xp.max(xp.where(xp.isfinite(sizes), sizes, xp.zeros_like(sizes))))
    scale = 2.0 ** np.floor(np.log2(largest)) if largest > 0 else 1.0
    return rows / scale, float(scale)


def first_occurrences(rows: Any, keys: np.ndarray) -> np.ndarray:
    """Return, for each row, the index of the first row equal to it; NaN equals nothing.

    Rows are grouped by a key that is equal for equal rows, and the grouping is then checked value by
    value, so no distance and no tolerance enters.
    """
    xp = array_api_compat.array_namespace(rows)
    keys = np.where(np.isfinite(keys), keys, 0.0)  # keys that overflow share a group, to be told apart below
    _, index, inverse = np.unique(keys, return_index=True, return_inverse=True, equal_nan=False)
    first = index[inverse]
    own = np.arange(len(first))
    repeated = np.flatnonzero(first != own)
    twins = (xp.take(rows, _like(some, rows), axis=0) for some in (repeated, first[repeated]))
    if not len(repeated) or bool(xp.all(next(twins) == next(twins))):
        return first
    # Different rows with one key, or non-finite rows: compare the values themselves.
    values = host(rows) + 0.0
    _, index, inverse = np.unique(values, axis=0, return_index=True, return_inverse=True, equal_nan=False)
    return np.where(np.isfinite(values).all(axis=1), index[inverse.ravel()], own)


def find_nearest(cloud: Cloud, selection: np.ndarray, n_settled: int, further: np.ndarray) -> Nearest:
    """Return the nearest neighbors among the selected points of a cloud.

    Parameters
    ----------
    cloud : Cloud
        From `survey`.
    selection : (n,) array of int
        The points that count, two at least, all finite.
    n_settled : int
        The first so many ranks are right, below n.
    further : array of int
        Further ranks, above `n_settled` and below n.
    """
    lengths = [min(n_settled + spare, len(selection) - 1) for spare in SPARES]
    length = None if cloud.is_wide else _length_that_settles(cloud, selection, n_settled, lengths, further)
    found = None if length is None else _nearest(cloud, selection, n_settled, length, further, np.float32)
    return found or _nearest(cloud, selection, n_settled, lengths[0], further, np.float64)


def _nearest(cloud: Cloud, selection, n_settled, n_listed, further, dtype) -> Nearest | None:
    """Return the nearest by a product in a dtype; None where float32 would leave too many rows to be done again."""
    n, product = len(selection), cloud.product(dtype)
    counts = np.zeros(len(cloud.first), dtype=bool)
    counts[selection] = True
    found = cloud.kernels.nearest(product.gram, product.squared_norms, counts, n_listed, further)
    found = Nearest(*(values[selection] for values in found), product)
    n_zeros = _n_equal(cloud.first[selection])
    found.squares[np.arange(n_listed) < n_zeros[:, None]] = 0.0
    found.beyond[further <= n_zeros[:, None]] = 0.0
    squared_norms = product.squared_norms[selection]
    again = np.flatnonzero(suspects(found.squares, squared_norms, n_zeros, product.error, cloud.tolerance))
    if not len(again):
        return found
    unsettled = again[~_settle_lists(cloud, found, again, squared_norms[again], selection, n_settled)]
    if dtype is np.float32 and len(unsettled) > SETTLED_BY_ROWS * n:
        return None
    _settle_rows(cloud, found, unsettled, selection, further)
    found.n_again, found.n_rows = len(again), len(unsettled)
    return found


def _n_equal(first: np.ndarray) -> np.ndarray:
    """Return how many others of the selected points equal each."""
    if (np.diff(first) > 0).all():
        return np.zeros(len(first), dtype=int)
    _, inverse, n_copies = np.unique(first, return_inverse=True, return_counts=True)
    return n_copies[inverse] - 1


def _settle_lists(cloud, found, again, squared_norms, selection, n_settled) -> np.ndarray:
    """Compute listed distances again; return for which points the first `n_settled` are surely the nearest."""
    listed = found.squares[again]
    squares = cloud.kernels.differences(cloud.rows, selection[again], found.indices[again])
    # What is not in the list is no nearer than the last of it, by a product that is off by as much as those seen.
    last, off = listed[:, -1], deviations(listed[:, -1], squared_norms, found.product.error)
    seen = np.abs(squares - listed).max(axis=1)
    margin = np.maximum(SIGMAS_OF_A_PAIR * off, TIMES_SEEN * seen)
    order = np.argsort(squares, axis=1, kind="stable")
    found.squares[again] = np.take_along_axis(squares, order, axis=1)
    found.indices[again] = np.take_along_axis(found.indices[again], order, axis=1)
    settled = found.squares[again, n_settled - 1]
    is_settled = (settled <= last - margin) | (settled == 0) | (listed.shape[1] == len(selection) - 1)
    if found.beyond.shape[1]:
        is_settled &= off <= 2 * cloud.tolerance.of_point * last
    return is_settled


def _settle_rows(cloud, found, some, selection, further) -> None:
    """Compute all distances of some points again."""
    n_listed = found.squares.shape[1]
    for row in some:
        squares = cloud.kernels.differences(cloud.rows, selection[[row]], selection[None])[0]
        squares[row] = np.inf
        order = np.argsort(squares, kind="stable")
        found.squares[row], found.indices[row] = squares[order[:n_listed]], selection[order[:n_listed]]
        found.beyond[row] = squares[order[further - 1]]


def _length_that_settles(
    cloud: Cloud, selection: np.ndarray, n_settled: int, lengths: list[int], further: np.ndarray
) -> int | None:
    """Return how long lists must be for a float32 product, as a few points show; None where it is of no use."""
    n = len(selection)
    if lengths[0] == n - 1:
        return lengths[0]
    centred, squared_norms = cloud.centred(np.float32)
    places = np.arange(0, n, max(1, n // PROBES))
    some, probe = selection[places], np.arange(len(places))
    products = host(cloud.kernels.some_products(centred, some))
    error = product_error(products[probe, some], squared_norms[some])
    squares = squared_norms[some, None] + squared_norms[selection] - 2.0 * products[:, selection]
    squares[probe, places] = np.inf
    squares.partition([n_settled - 1, *(length - 1 for length in lengths)], axis=1)
    has_equal = _n_equal(cloud.first[selection])[places] > 0
    for length in lengths:
        last = squares[:, length - 1]
        off = deviations(last, squared_norms[some], error)
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
