"""A cloud prepared for the search: its scale, its equal points, and its points centered as one or several clusters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np

from id_scaling.neighbors.clusters import Shifts, largest_in_reach, shifts_between, split
from id_scaling.neighbors.error_bounds import NARROW, WIDE, ProductError, Tolerance, product_error
from id_scaling.neighbors.kernels.dispatch import kernels_of
from id_scaling.neighbors.kernels.survey import Survey

# Number of rows that represent all rows of a cloud.
PROBES = 8
# Squared norms in this range, and squares of differences in the last digit, neither overflow nor underflow in float32.
LEAST_SQUARE, LARGEST_SQUARE = 2.0**-40, 2.0**80


@dataclass
class Centred:
    """Points of a cloud minus their centers; their products are computed on first use.

    Parameters
    ----------
    kernels : module
        Kernels for the points' array library.
    survey : Survey
        Norms, keys, and products of the points about these centers.
    centres : (n_groups, d) array
    labels : (n,) int32
        Cluster of each point.
    """

    kernels: ModuleType
    survey: Survey
    centres: np.ndarray
    labels: np.ndarray

    @cached_property
    def shifts(self) -> Shifts | None:
        """Corrections for products of points in different clusters; None for a single cluster."""
        if len(self.centres) == 1:
            return None
        projections = self.kernels.projections(self.survey.centred, self.centres)
        return shifts_between(self.labels, projections, self.centres)

    @cached_property
    def guard_norms(self) -> np.ndarray:
        """The squared norms that bound the error of each point's distances to its nearest neighbors."""
        if self.shifts is None:
            return self.squared_norms
        return largest_in_reach(self.squared_norms, self.shifts, self.centres)

    @property
    def squared_norms(self) -> np.ndarray:
        """Squared norms of the centered points: |x_i - x_j|² is the sum of two of them minus twice their product."""
        return self.survey.centred_norms

    @cached_property
    def gram(self) -> Any:
        """All products, (n, n); for a single cluster, plain products of the centered points."""
        return self.kernels.gram(self.survey.centred, self.shifts)

    @cached_property
    def error(self) -> ProductError:
        """Error of the products, measured on their diagonal."""
        diagonal = host(array_api_compat.array_namespace(self.gram).linalg.diagonal(self.gram))
        return product_error(diagonal, self.squared_norms)

    def products_of(self, probes: np.ndarray, is_seen: np.ndarray) -> tuple[np.ndarray, ProductError]:
        """Return the products of the selected probes with all points, and the error expected of all products."""
        rows, products = probes[is_seen], self.survey.products[is_seen]
        if self.shifts is not None:
            labels, table = self.shifts
            products = products - table[rows][:, labels] - table[:, labels[rows]].T
        small = host(self.kernels.gram(self.survey.centred[rows]))
        return products, product_error(np.diagonal(small), self.squared_norms[rows])


@dataclass
class Cloud:
    """Properties of a cloud from one pass over its coordinates; centered points are computed on first use.

    Points are divided by `scale`, a power of two, so the division is exact and squares stay in range. For each point,
    `first` is the index of the first point equal to it. `probes` are a few points that represent all.
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
        """Whether the points are float64; then all computations are too."""
        return is_wide(self.points)

    @cached_property
    def is_distinct(self) -> bool:
        """Whether no two rows are equal."""
        return bool((self.first == np.arange(len(self.first))).all())

    @property
    def tolerance(self) -> Tolerance:
        """The accepted errors of an ID from these points."""
        return WIDE if self.is_wide else NARROW

    def about_mean(self, dtype: type) -> Centred:
        """Return the points minus a single center, in the given dtype."""
        if dtype not in self._about_mean:
            existing = next(iter(self._about_mean.values()))
            self._about_mean[dtype] = centred_on(
                self.kernels, self.points, existing.labels, dtype, self.probes, existing.centres
            )
        return self._about_mean[dtype]

    @cached_property
    def about_groups(self) -> Centred:
        """The points minus the centers of their clusters, in float32."""
        labels = split(self.about_mean(np.float32).survey.products.T)
        return centred_on(self.kernels, self.points, labels, np.float32, self.probes)


def prepare_points(points: Any) -> Cloud:
    """Return the cloud of numpy or torch points of any floating dtype."""
    kernels, scale = kernels_of(points), 1.0
    points = kernels.in_order(points)
    probes, labels = _evenly_spaced(len(points), PROBES), np.zeros(len(points), np.int32)
    dtype = np.float64 if is_wide(points) else np.float32
    centred = centred_on(kernels, points, labels, dtype, probes)
    if not LEAST_SQUARE <= centred.survey.squared_norms.max(initial=0) <= LARGEST_SQUARE:
        points, scale = _scaled_into_range(points)
        dtype = np.float64
        centred = centred_on(kernels, points, labels, dtype, probes)
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
    """Return points minus the centers of their clusters, by default the means, in the given dtype."""
    centres = kernels.means(points, labels) if centres is None else centres
    return Centred(kernels, kernels.survey(points, centres, labels, dtype, probes), centres, labels)


def _evenly_spaced(n: int, n_wanted: int) -> np.ndarray:
    """Return `n_wanted` evenly spaced indices below n, or all of them."""
    step = max(1, n // n_wanted)
    return np.arange(step // 2, n, step)[:n_wanted]


def is_wide(points: Any) -> bool:
    """Return whether points are float64."""
    return points.dtype.itemsize > 4


def _scaled_into_range(points: Any) -> tuple[Any, float]:
    """Return points in float64, divided by the power of two below their largest finite coordinate, and that power.

    In a narrower dtype, small coordinates would underflow next to large ones.
    """
    xp = array_api_compat.array_namespace(points)
    wide = xp.astype(points, xp.float64)
    magnitudes = xp.abs(wide)
    largest = float(xp.max(xp.where(xp.isfinite(magnitudes), magnitudes, xp.zeros_like(magnitudes))))
    scale = 2.0 ** np.floor(np.log2(largest)) if largest > 0 else 1.0
    return wide / scale, float(scale)


def first_occurrences(points: Any, keys: np.ndarray) -> np.ndarray:
    """Return, for each point, the index of the first point equal to it; a point with NaN equals no other.

    Points are grouped by a key that is equal for equal rows. Then the values are compared, so the result depends on no
    distance and no tolerance.
    """
    indices = np.arange(len(keys))
    ascending = np.sort(keys)
    if np.isfinite(ascending).all() and (ascending[1:] != ascending[:-1]).all():
        return indices
    keys = np.where(np.isfinite(keys), keys, 0.0)  # overflowed keys become equal: the values decide
    _, index, inverse = np.unique(keys, return_index=True, return_inverse=True, equal_nan=False)
    first = index[inverse]
    repeated = np.flatnonzero(first != indices)
    xp = array_api_compat.array_namespace(points)
    pairs = (xp.take(points, _like(positions, points), axis=0) for positions in (repeated, first[repeated]))
    if not len(repeated) or bool(xp.all(next(pairs) == next(pairs))):
        return first
    # Different points share a key, or points are not finite: compare the values.
    values = host(kernels_of(points).widened(points)) + 0.0
    _, index, inverse = np.unique(values, axis=0, return_index=True, return_inverse=True, equal_nan=False)
    return np.where(np.isfinite(values).all(axis=1), index[inverse.ravel()], indices)


def _like(values: np.ndarray, other: Any) -> Any:
    """Return an index array in the array library and on the device of `other`."""
    xp = array_api_compat.array_namespace(other)
    return xp.asarray(values, device=array_api_compat.device(other))


def host(values: Any) -> np.ndarray:
    """Return the values of an array as numpy, on the host."""
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()
