"""A cloud prepared for the search: its scale, its equal points, and the points centred in one group or in several."""

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

# Rows that stand for all of a cloud.
PROBES = 8
# Squared norms within these neither overflow nor vanish in float32, nor do squares of differences in the last digit.
LEAST_SQUARE, LARGEST_SQUARE = 2.0**-40, 2.0**80


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
        return is_wide(self.points)

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


def prepare_points(points: Any) -> Cloud:
    """Return a cloud; numpy or torch points, of any floating dtype."""
    kernels, scale = kernels_of(points), 1.0
    points = kernels.in_order(points)
    probes, one_group = _spread_out(len(points), PROBES), np.zeros(len(points), np.int32)
    dtype = np.float64 if is_wide(points) else np.float32
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


def is_wide(points: Any) -> bool:
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


def _like(values: np.ndarray, other: Any) -> Any:
    """Return an index array on the device and in the library of `other`."""
    xp = array_api_compat.array_namespace(other)
    return xp.asarray(values, device=array_api_compat.device(other))


def host(values: Any) -> np.ndarray:
    """Return an array's values as numpy, on the host."""
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()
