"""Kernels for numpy: loops compiled by numba, and the symmetric product of BLAS, half the work of a general product.

Points are read in their own dtype, including float16, in few passes over memory. The nearest neighbors are selected by
a limit, which is cheaper than a sort. Loops release the interpreter lock, so several threads can process clouds.
"""

from __future__ import annotations

from functools import cache
from platform import machine

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import njit, types
from numba.extending import intrinsic, overload
from scipy.linalg.blas import dsyrk, ssyrk

from id_scaling.neighbors.clusters import Shifts
from id_scaling.neighbors.kernels.survey import Survey

# Column j is in lane j mod LANES. Not a power of two, because equal points are often a power of two apart.
LANES = 208
# Number of entries of a row that are copied at once: one cache line.
TILE = 16
# The range of the minima is halved at most this often, or until at most FEW minima too many are below the limit.
HALVINGS, FEW = 24, 2
# Number of rows that are sorted at once, so that they fit in a cache.
SORTED_AT_ONCE = 128
# Number of squares of differences that are summed before the sum becomes float64.
SUMMED = 256
# x86 processors since 2013 convert float16 in hardware; on older ones numpy converts.
HAS_HALVES = machine() not in ("x86_64", "AMD64") or get_host_cpu_features().get("f16c", False)
_loop = njit(nogil=True, cache=True)
# Sums may be reordered, so that they use vector instructions; nothing else is relaxed.
_sum = njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})


def in_order(points: np.ndarray) -> np.ndarray:
    """Return points with contiguous rows in native byte order; a dtype wider than float64 becomes float64."""
    dtype = np.dtype(np.float64) if points.dtype.itemsize > 8 else points.dtype.newbyteorder("=")
    return np.ascontiguousarray(points, dtype=dtype)


def widened(points: np.ndarray) -> np.ndarray:
    """Return points in float64 if they are float64, else in float32, with contiguous rows."""
    return np.ascontiguousarray(points, dtype=np.float64 if points.dtype.itemsize > 4 else np.float32)


def _readable(points: np.ndarray) -> np.ndarray:
    """Return points as `_value` reads them in loops: float32, float64, or the bits of float16, which numba lacks."""
    if points.dtype == np.float16 and HAS_HALVES:
        return points.view(np.uint16)
    return widened(points)


def _value(number):
    """Return a coordinate of `_readable` points as a float; the CPU converts float16 with vector instructions."""
    raise NotImplementedError


@overload(_value)
def _value_of_type(number):
    return (lambda number: _widened_half(number)) if number == types.uint16 else (lambda number: number)


@intrinsic
def _widened_half(typing_context, bits):
    def generate(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


def means(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mean of the finite points of each cluster, in float64 or float32; zero for no points.

    Sums differences from a point of the cluster, so the mean of a constant coordinate is exactly its value, and
    centering leaves zero, however large the value is.
    """
    points, n_groups = _readable(points), labels.max(initial=0) + 1
    totals = np.zeros((n_groups, points.shape[1]), np.float64 if points.dtype == np.float64 else np.float32)
    n_members, origins = np.zeros((n_groups, 1), totals.dtype), np.zeros_like(totals)
    _add_finite(points, labels, origins, totals, n_members)
    return origins + totals / np.maximum(n_members, 1)


@_sum
def _add_finite(points, labels, origins, totals, n_members):
    """Add the finite points, minus the first of each cluster, to the totals of their clusters, and count them."""
    for i in range(len(points)):
        absolute_sum = totals.dtype.type(0)
        for c in range(points.shape[1]):
            absolute_sum += abs(_value(points[i, c]))
        if absolute_sum < np.inf:
            total, origin = totals[labels[i]], origins[labels[i]]
            if n_members[labels[i], 0] == 0:
                for c in range(points.shape[1]):
                    origin[c] = _value(points[i, c])
            n_members[labels[i], 0] += 1
            for c in range(points.shape[1]):
                total[c] += _value(points[i, c]) - origin[c]


def survey(points: np.ndarray, centres: np.ndarray, labels: np.ndarray, dtype: type, probes: np.ndarray) -> Survey:
    """Return the results of one pass over the coordinates, with centered points in the given dtype."""
    n, d = points.shape
    result = Survey(np.empty(n), np.empty(n), np.empty((n, d), dtype), np.empty(n), np.empty((len(probes), n), dtype))
    _survey(_readable(points), _key_weights(d), centres.astype(dtype), labels, probes, *result)
    return result


@cache
def _key_weights(d: int) -> np.ndarray:
    """Return the weight of each coordinate in a key."""
    return np.random.default_rng(0).standard_normal(d)


@_loop
def _survey(points, weights, centres, labels, probes, squared_norms, keys, centred, centred_norms, products):
    for i in probes:
        _survey_row(points[i], weights, centres[labels[i]], centred[i])
    for i in range(len(points)):
        row = _survey_row(points[i], weights, centres[labels[i]], centred[i])
        squared_norms[i], keys[i], centred_norms[i] = row
        for p in range(len(probes)):
            products[p, i] = _product(centred[probes[p]], centred[i])


@_sum
def _survey_row(point, weights, centre, centred):
    """Write the centered point; return the squared norm and key of the point, and the centered squared norm."""
    square, key, centred_square = 0.0, 0.0, 0.0
    for c in range(len(point)):
        value = _value(point[c])
        difference = centred.dtype.type(value) - centre[c]
        square += np.float64(value) * np.float64(value)
        key += np.float64(value) * weights[c]
        centred[c] = difference
        centred_square += np.float64(difference) * np.float64(difference)
    if not square < np.inf:
        centred[:] = 0
        centred_square = 0.0
    return square, key, centred_square


@_sum
def _product(x, y):
    total = x.dtype.type(0)
    for c in range(len(x)):
        total += x[c] * y[c]
    return total


def projections(centred: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return the inner products of rows with all centers, in float64."""
    return centred.astype(np.float64) @ centres.astype(np.float64).T


def gram(centred: np.ndarray, shifts: Shifts | None = None) -> np.ndarray:
    """Return all inner products of rows, minus the corrections between clusters."""
    # Without an output array, BLAS would fill one with zeros.
    out = np.empty((len(centred), len(centred)), centred.dtype, order="F")
    product = (ssyrk if centred.dtype == np.float32 else dsyrk)(1.0, centred.T, trans=1, c=out, overwrite_c=True).T
    if shifts is not None:
        _shift(product, shifts.labels, shifts.table, np.ascontiguousarray(shifts.table.T))
    _mirror(product)
    return product


@_loop
def _shift(product, labels, table, transposed):
    """Subtract the shifts from the triangle below the diagonal."""
    for i in range(len(product)):
        row, column = table[i], transposed[labels[i]]
        for j in range(i):
            product[i, j] -= row[labels[j]] + column[j]


@_loop
def _mirror(matrix):
    """Copy the triangle below the diagonal to the one above, one tile at a time."""
    n = matrix.shape[0]
    for top in range(0, n, TILE):
        bottom = min(top + TILE, n)
        for left in range(0, top, TILE):
            for i in range(left, left + TILE):
                for j in range(top, bottom):
                    matrix[i, j] = matrix[j, i]
        for i in range(top, bottom):
            for j in range(i + 1, bottom):
                matrix[i, j] = matrix[j, i]


def nearest(
    product: np.ndarray, squared_norms: np.ndarray, counts: np.ndarray, n_nearest: int, further: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return squares (n, n_nearest) and indices of the nearest, ascending, and the squares at further ranks.

    Only rows and columns in `counts` are used. Where there are too few, squares are infinite and indices -1.
    """
    n = len(product)
    squares, indices = np.full((n, n_nearest), np.inf), np.full((n, n_nearest), -1, np.int32)
    half = np.where(counts, squared_norms / 2, np.inf).astype(product.dtype)
    limits, beyond = np.full(n, np.nan, np.float32), np.empty((n, len(further)))
    if len(further):
        keys = _keys_at_ranks(product, half, [min(n_nearest, n), *further])
        limits = np.nextafter(keys[:, 0].astype(np.float32), np.float32(np.inf))
        beyond = squared_norms[:, None] + 2.0 * keys[:, 1:].astype(np.float64)
    _select(product, squared_norms, half, counts, limits, squares, indices)
    return squares, indices, beyond


# |x_j - x_i|² = |x_i|² + 2 (|x_j|² / 2 - x_i·x_j): the bracket, called the key, orders a row. Rounding to float32 does
# not change the order.


def _keys_at_ranks(product: np.ndarray, half: np.ndarray, ranks: list[int]) -> np.ndarray:
    """Return the keys of each row at the given ranks; numpy sorts several rows at a time with vector instructions.

    The key of a point with itself is infinite.
    """
    n, columns = len(product), np.array(ranks) - 1
    at_ranks, buffer = np.empty((n, len(ranks)), product.dtype), np.empty((SORTED_AT_ONCE, n), product.dtype)
    for start in range(0, n, SORTED_AT_ONCE):
        keys = np.subtract(half, product[start : start + SORTED_AT_ONCE], out=buffer[: n - start])
        own = np.arange(len(keys))
        keys[own, start + own] = np.inf
        keys.sort(axis=1)
        at_ranks[start : start + len(keys)] = keys[:, columns]
    return at_ranks


@_loop
def _select(product, squared_norms, half, counts, limits, squares, indices):
    """Write squares and indices of each row's nearest, ascending. Only keys below a limit are candidates.

    If no limit is given, it comes from the minima over LANES disjoint sets of columns. The minima are different keys,
    so a limit above m minima is above at least m keys.
    """
    n, n_nearest = indices.shape
    keys = np.full((n + LANES - 1) // LANES * LANES, np.inf, np.float32)
    minima, folded, lanes = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES + 1, np.int32)
    candidates, candidate_squares = np.empty(n + 1, np.int32), np.empty(n)
    for i in range(n):
        if not counts[i]:
            continue
        for j in range(n):
            keys[j] = np.float32(half[j] - product[i, j])
        keys[i] = np.inf
        for lane in range(LANES):
            minima[lane] = keys[lane]
        for start in range(LANES, len(keys), LANES):
            for lane in range(LANES):
                minima[lane] = min(keys[start + lane], minima[lane])
        limit = _limit(minima, n_nearest, folded) if np.isnan(limits[i]) else limits[i]
        n_candidates = _indices_below(keys, minima, limit, lanes, candidates)
        for p in range(n_candidates):
            candidate_squares[p] = (
                squared_norms[i] + squared_norms[candidates[p]] - 2.0 * np.float64(product[i, candidates[p]])
            )
        _place(candidate_squares[:n_candidates], candidates, squares[i], indices[i])


@_loop
def _place(values, points, squares, indices):
    """Write the smallest values, ascending, and their points, as many as fit into the output."""
    if len(values) > 4 * len(squares):  # many values tie at the limit
        for rank, p in enumerate(np.argsort(values)[: len(squares)]):
            squares[rank], indices[rank] = values[p], points[p]
        return
    for p in range(len(values)):
        rank = int(_n_below(values, values[p]))
        while rank < len(squares) and indices[rank] >= 0:  # an equal value has this rank
            rank += 1
        if rank < len(squares):
            squares[rank], indices[rank] = values[p], points[p]


@_loop
def _indices_below(keys, minima, limit, open_lanes, below):
    """Write the indices of the keys below a limit, without a branch per key, and return their number.

    Entries of the output past that number are arbitrary.
    """
    n_lanes, n_below = 0, 0
    for lane in range(LANES):
        open_lanes[n_lanes] = lane
        n_lanes += minima[lane] < limit
    for start in range(0, len(keys), LANES):
        for lane in open_lanes[:n_lanes]:
            below[n_below] = start + lane
            n_below += keys[start + lane] < limit
    return n_below


@_loop
def _limit(minima, n_least, folded):
    """Return a limit above `n_least` minima and a few more, or above all finite minima."""
    limit = np.float32(np.inf)
    if _n_below(minima, limit) <= n_least:
        return limit
    for lane in range(LANES):
        folded[lane] = minima[lane]
    low = _least(folded)
    for lane in range(LANES):
        folded[lane] = -minima[lane] if minima[lane] < np.inf else -low
    high = -_least(folded)
    for _ in range(HALVINGS):
        middle = low / 2 + high / 2
        n_below = _n_below(minima, middle)
        if n_below < n_least:
            low = middle
        else:
            limit = high = middle
            if n_below <= n_least + FEW:
                break
    return limit


@_loop
def _least(values):
    """Return the smallest of LANES values, and overwrite them: each step compares two halves in vectors."""
    n = LANES
    while n > 1:
        half = (n + 1) // 2
        for lane in range(n - half):
            values[lane] = min(values[lane + half], values[lane])
        n = half
    return values[0]


@_sum
def _n_below(values, limit):
    """Return how many values are below a limit, counted in their own dtype, so that vector instructions apply."""
    one, zero = values.dtype.type(1), values.dtype.type(0)
    n = zero
    for index in range(len(values)):
        n += one if values[index] < limit else zero
    return n


def differences(points: np.ndarray, sources: np.ndarray, targets: np.ndarray, dtype: type) -> np.ndarray:
    """Return squared distances of points `sources` (m,) to points `targets` (m, k), from differences of coordinates.

    Differences, and sums of SUMMED squares at a time, are in the given dtype; the rest is float64. No large terms
    cancel, so each distance is accurate to a few units in the last place of the dtype.
    """
    squares = np.empty(targets.shape)
    targets = np.ascontiguousarray(targets, np.int32)
    _differences(_readable(points), sources.astype(np.int32), targets, np.empty(points.shape[1], dtype), squares)
    return squares


@_loop
def _differences(points, sources, targets, own, squares):
    for p in range(len(sources)):
        for c in range(len(own)):
            own[c] = _value(points[sources[p], c])
        for q in range(targets.shape[1]):
            other, square = points[targets[p, q]], 0.0
            for start in range(0, len(own), SUMMED):
                square += np.float64(_square_of_difference(own[start : start + SUMMED], other[start : start + SUMMED]))
            squares[p, q] = square


@_sum
def _square_of_difference(x, other):
    square = x.dtype.type(0)
    for c in range(len(x)):
        difference = x[c] - x.dtype.type(_value(other[c]))
        square += difference * difference
    return square


def gram_sums(product: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the sum of each row, its sum of squares, and its product with all sums, over rows and columns in use."""
    sums, squares, products = np.zeros((3, len(product)))
    _gram_sums(product, counts.astype(product.dtype), sums, squares)
    _row_products(product, sums, counts, products)
    return sums, squares, products


@_sum
def _gram_sums(product, weights, sums, squares):
    for i in range(len(product)):
        if weights[i] > 0:
            row_sum, square = 0.0, 0.0
            for j in range(len(product)):
                value = np.float64(product[i, j] * weights[j])
                row_sum += value
                square += value * value
            sums[i], squares[i] = row_sum, square


@_sum
def _row_products(product, values, counts, products):
    for i in range(len(product)):
        if counts[i]:
            total = 0.0
            for j in range(len(product)):
                total += np.float64(product[i, j]) * values[j]
            products[i] = total


def n_within(product: np.ndarray, squared_norms: np.ndarray, counts: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Return how many other points are nearer to each point than each of the squared distances, (n_squares, n)."""
    half = np.where(counts, squared_norms / 2, np.inf)
    n_near = np.zeros((len(squares), len(product)), np.int32)
    _n_within(product, half.astype(product.dtype), half, counts, np.asarray(squares), n_near)
    return n_near


@_loop
def _n_within(product, narrow_half, half, counts, squares, n_near):
    for i in range(len(product)):
        if counts[i]:
            for q in range(len(squares)):
                limit = product.dtype.type(squares[q] / 2 - half[i])
                n_near_within, n_below = n_near[q], np.int32(0)
                for j in range(i):
                    is_below = np.int32(narrow_half[j] - product[i, j] < limit)
                    n_below += is_below
                    n_near_within[j] += is_below
                n_near_within[i] += n_below


def share_in_common(lists: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the share of members of each list (n, k) that are also in the other list of the same row."""
    shares = np.empty(len(lists))
    _share_in_common(lists, others, shares)
    return shares


@_loop
def _share_in_common(lists, others, shares):
    k = lists.shape[1]
    for i in range(len(lists)):
        n_common = 0
        for p in range(k):
            for q in range(k):
                n_common += lists[i, p] == others[i, q]
        shares[i] = n_common / k


def mean_of(points: np.ndarray, selection: np.ndarray) -> np.ndarray:
    """Return the mean of the selected points, in float64; exact for a constant coordinate."""
    total = np.zeros(points.shape[1])
    origin = points[selection[0]].astype(np.float64)
    _add_differences(_readable(points), selection, origin, total)
    return origin + total / len(selection)


@_sum
def _add_differences(points, selection, origin, total):
    for i in selection:
        for c in range(points.shape[1]):
            total[c] += _value(points[i, c]) - origin[c]


def weighted_sum(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted sum of points, in float64; a point of weight zero need not be finite."""
    total = np.zeros(points.shape[1])
    _weighted_sum(_readable(points), weights, total)
    return total


@_sum
def _weighted_sum(points, weights, total):
    for i in range(len(points)):
        if weights[i] != 0:
            for c in range(points.shape[1]):
                total[c] += weights[i] * _value(points[i, c])


def submatrix(matrix: np.ndarray, selection: np.ndarray) -> np.ndarray:
    """Return the selected rows and columns."""
    return matrix[np.ix_(selection, selection)]


def centred_spectrum(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ascending eigenvalues of H G H with H = 1 - 11ᵀ / n, and the eigenvectors, as columns."""
    means = gram.mean(axis=0)
    return np.linalg.eigh(gram - means[:, None] - means[None, :] + means.mean())


def turned(points: np.ndarray) -> np.ndarray | None:
    """Return points (n, d) rotated into n coordinates, with the same products; None if they are linearly dependent."""
    try:
        return np.linalg.cholesky(points @ points.T)
    except np.linalg.LinAlgError:
        return None


def weighted_squares(matrix: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the sum of squares of each row, weighted by column."""
    return np.square(matrix) @ weights


def tree_edges(distances: np.ndarray) -> np.ndarray:
    """Return the edge lengths of the minimum spanning tree of a distance matrix, by Prim's algorithm."""
    return _tree_edges(np.ascontiguousarray(distances))


@_loop
def _tree_edges(distances):
    n = len(distances)
    edges = np.empty(n - 1)
    distance_to_tree = distances[0].copy()
    distance_to_tree[0] = np.inf
    is_outside = np.ones(n, np.bool_)
    is_outside[0] = False
    for step in range(n - 1):
        next_point = np.argmin(distance_to_tree)
        edges[step] = distance_to_tree[next_point]
        is_outside[next_point] = False
        for j in range(n):
            distance_to_tree[j] = min(distance_to_tree[j], distances[next_point, j]) if is_outside[j] else np.inf
    return edges
