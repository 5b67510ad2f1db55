"""Kernels for numpy: loops compiled by numba, and the symmetric product of BLAS, which does half the work of a product.

A cloud is read as it is, float16 too, in few passes over memory, and the nearest are selected by a limit, as a sort
would do more than is asked for. Loops run without the interpreter's lock, so clouds can be shared out over threads.
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

# Column j is compared within lane j mod LANES, not a power of two: twins stand a power of two apart more often.
LANES = 208
# The part of a row that is copied at once: a line of the cache.
TILE = 16
# The range of the minima is halved so often at the most, or until no more than FEW are too many.
HALVINGS, FEW = 24, 2
# Rows that are sorted where a cache holds them.
SORTED_AT_ONCE = 128
# So many squares of differences are summed before the sum is widened.
SUMMED = 256
# Every x86 processor since 2013 widens halves itself; on others numpy does.
HAS_HALVES = machine() not in ("x86_64", "AMD64") or get_host_cpu_features().get("f16c", False)
_loop = njit(nogil=True, cache=True)
# Sums may be formed in any order (so in vectors), nothing else is relaxed.
_sum = njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})


def in_order(points: np.ndarray) -> np.ndarray:
    """Return points with rows contiguous and bytes in this machine's order; wider than float64 they become float64."""
    dtype = np.dtype(np.float64) if points.dtype.itemsize > 8 else points.dtype.newbyteorder("=")
    return np.ascontiguousarray(points, dtype=dtype)


def widened(points: np.ndarray) -> np.ndarray:
    """Return points in the narrowest dtype that is computed in, float32 or float64, rows contiguous."""
    return np.ascontiguousarray(points, dtype=np.float64 if points.dtype.itemsize > 4 else np.float32)


def _readable(points: np.ndarray) -> np.ndarray:
    """Return points as loops read them by `_value`: float32 or float64, or the bits of float16, which numba lacks."""
    if points.dtype == np.float16 and HAS_HALVES:
        return points.view(np.uint16)
    return widened(points)


def _value(number):
    """Return a coordinate as `_readable` gives it as a float; the CPU widens halves in vectors."""
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
    """Return the mean of each group's finite points, in the narrowest dtype that is computed in; zero for none.

    Differences from a point of the group are summed: a coordinate that is constant has itself for a mean, exactly, so
    that nothing is left of it, however large it is.
    """
    points, n_groups = _readable(points), labels.max(initial=0) + 1
    totals = np.zeros((n_groups, points.shape[1]), np.float64 if points.dtype == np.float64 else np.float32)
    numbers, origins = np.zeros((n_groups, 1), totals.dtype), np.zeros_like(totals)
    _add_finite(points, labels, origins, totals, numbers)
    return origins + totals / np.maximum(numbers, 1)


@_sum
def _add_finite(points, labels, origins, totals, numbers):
    """Add the finite points, less the first of them, to the totals of their groups, and count them."""
    for i in range(len(points)):
        size = totals.dtype.type(0)
        for c in range(points.shape[1]):
            size += abs(_value(points[i, c]))
        if size < np.inf:
            total, origin = totals[labels[i]], origins[labels[i]]
            if numbers[labels[i], 0] == 0:
                for c in range(points.shape[1]):
                    origin[c] = _value(points[i, c])
            numbers[labels[i], 0] += 1
            for c in range(points.shape[1]):
                total[c] += _value(points[i, c]) - origin[c]


def survey(points: np.ndarray, centres: np.ndarray, labels: np.ndarray, dtype: type, some: np.ndarray) -> Survey:
    """Return what one look at each coordinate gives, centred points in a dtype."""
    n, d = points.shape
    found = Survey(np.empty(n), np.empty(n), np.empty((n, d), dtype), np.empty(n), np.empty((len(some), n), dtype))
    _survey(_readable(points), _key_weights(d), centres.astype(dtype), labels, some, *found)
    return found


@cache
def _key_weights(d: int) -> np.ndarray:
    """Return the weights of coordinates in a key."""
    return np.random.default_rng(0).standard_normal(d)


@_loop
def _survey(points, weights, centres, labels, some, squared_norms, keys, centred, centred_norms, products):
    for i in some:
        _survey_row(points[i], weights, centres[labels[i]], centred[i])
    for i in range(len(points)):
        row = _survey_row(points[i], weights, centres[labels[i]], centred[i])
        squared_norms[i], keys[i], centred_norms[i] = row
        for p in range(len(some)):
            products[p, i] = _product(centred[some[p]], centred[i])


@_sum
def _survey_row(point, weights, centre, centred):
    """Write a point less the centre; return its squared norm, its key, and its squared norm less the centre."""
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
    """Return the inner products of rows with all centres, in float64."""
    return centred.astype(np.float64) @ centres.astype(np.float64).T


def gram(centred: np.ndarray, shifts: Shifts | None = None) -> np.ndarray:
    """Return all inner products of rows, less what stands between groups."""
    room = np.empty((len(centred), len(centred)), centred.dtype, order="F")  # else it would be filled with zeros
    product = (ssyrk if centred.dtype == np.float32 else dsyrk)(1.0, centred.T, trans=1, c=room, overwrite_c=True).T
    if shifts is not None:
        _shift(product, shifts.labels, shifts.table, np.ascontiguousarray(shifts.table.T))
    _mirror(product)
    return product


@_loop
def _shift(product, labels, table, columns):
    """Take the shifts off the triangle below the diagonal."""
    for i in range(len(product)):
        own, column = table[i], columns[labels[i]]
        for j in range(i):
            product[i, j] -= own[labels[j]] + column[j]


@_loop
def _mirror(matrix):
    """Copy the triangle below the diagonal to the one above, a tile at a time."""
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
    """Return squares (n, n_nearest) and indices of the nearest, ascending, and the squares at some further ranks.

    Rows and columns that do not count are left out; where there are too few, squares are infinite and indices -1.
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


# |x_j - x_i|² = |x_i|² + 2 (|x_j|² / 2 - x_i·x_j): the bracket, here a key, orders a row. Rounding to float32 does not
# change the order.


def _keys_at_ranks(product: np.ndarray, half: np.ndarray, ranks: list[int]) -> np.ndarray:
    """Return each row's keys at some ranks, its own being infinite; numpy sorts in vectors, some rows at a time."""
    n, columns = len(product), np.array(ranks) - 1
    found, room = np.empty((n, len(ranks)), product.dtype), np.empty((SORTED_AT_ONCE, n), product.dtype)
    for start in range(0, n, SORTED_AT_ONCE):
        keys = np.subtract(half, product[start : start + SORTED_AT_ONCE], out=room[: n - start])
        own = np.arange(len(keys))
        keys[own, start + own] = np.inf
        keys.sort(axis=1)
        found[start : start + len(keys)] = keys[:, columns]
    return found


@_loop
def _select(product, squared_norms, half, counts, limits, squares, indices):
    """Write squares and indices of each row's nearest, ascending: those whose keys are below a limit are looked at.

    Where no limit is given it comes from the minima over LANES disjoint sets of columns, as many different keys: what
    m minima are below, m keys are.
    """
    n, n_nearest = indices.shape
    keys = np.full((n + LANES - 1) // LANES * LANES, np.inf, np.float32)
    minima, folded, lanes = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES + 1, np.int32)
    below, found = np.empty(n + 1, np.int32), np.empty(n)
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
        n_found = _indices_below(keys, minima, limit, lanes, below)
        for p in range(n_found):
            found[p] = squared_norms[i] + squared_norms[below[p]] - 2.0 * np.float64(product[i, below[p]])
        _place(found[:n_found], below, squares[i], indices[i])


@_loop
def _place(values, sources, squares, indices):
    """Write the least values, ascending, and their sources, as many as there is room for."""
    if len(values) > 4 * len(squares):  # a limit that ties with many
        for place, p in enumerate(np.argsort(values)[: len(squares)]):
            squares[place], indices[place] = values[p], sources[p]
        return
    for p in range(len(values)):
        place = int(_n_below(values, values[p]))
        while place < len(squares) and indices[place] >= 0:  # taken by an equal one
            place += 1
        if place < len(squares):
            squares[place], indices[place] = values[p], sources[p]


@_loop
def _indices_below(keys, minima, limit, lanes, below):
    """Write which keys are below a limit, without a branch on it, and return how many; unread room is overwritten."""
    n_lanes, n_below = 0, 0
    for lane in range(LANES):
        lanes[n_lanes] = lane
        n_lanes += minima[lane] < limit
    for start in range(0, len(keys), LANES):
        for lane in lanes[:n_lanes]:
            below[n_below] = start + lane
            n_below += keys[start + lane] < limit
    return n_below


@_loop
def _limit(minima, n_least, folded):
    """Return a limit that `n_least` of the minima and few more, or all that are finite, are below."""
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
    """Return the least of LANES values, and overwrite them: half of them at a time are compared in vectors."""
    n = LANES
    while n > 1:
        half = (n + 1) // 2
        for lane in range(n - half):
            values[lane] = min(values[lane + half], values[lane])
        n = half
    return values[0]


@_sum
def _n_below(values, limit):
    """Return how many values are below a limit, counted in their own type: such sums run in vectors."""
    one, none = values.dtype.type(1), values.dtype.type(0)
    n = none
    for place in range(len(values)):
        n += one if values[place] < limit else none
    return n


def differences(points: np.ndarray, some: np.ndarray, others: np.ndarray, dtype: type) -> np.ndarray:
    """Return the squared distances of points `some` (m,) to points `others` (m, k), from differences of coordinates.

    Differences, and the sums of SUMMED of their squares at a time, are in a dtype, the rest in float64: nothing large
    cancels, so each is right to a few units of the dtype's last place.
    """
    squares = np.empty(others.shape)
    others = np.ascontiguousarray(others, np.int32)
    _differences(_readable(points), some.astype(np.int32), others, np.empty(points.shape[1], dtype), squares)
    return squares


@_loop
def _differences(points, some, others, own, squares):
    for p in range(len(some)):
        for c in range(len(own)):
            own[c] = _value(points[some[p], c])
        for q in range(others.shape[1]):
            other, square = points[others[p, q]], 0.0
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
    """Return of each row its sum, the sum of its squares, and its product with all sums, over what counts."""
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
    """Return how many others are nearer to each point than each of some squared distances, (n_squares, n)."""
    half = np.where(counts, squared_norms / 2, np.inf)
    found = np.zeros((len(squares), len(product)), np.int32)
    _n_within(product, half.astype(product.dtype), half, counts, np.asarray(squares), found)
    return found


@_loop
def _n_within(product, narrow_half, half, counts, squares, found):
    for i in range(len(product)):
        if counts[i]:
            for q in range(len(squares)):
                limit = product.dtype.type(squares[q] / 2 - half[i])
                others, n_below = found[q], np.int32(0)
                for j in range(i):
                    is_below = np.int32(narrow_half[j] - product[i, j] < limit)
                    n_below += is_below
                    others[j] += is_below
                others[i] += n_below


def share_in_common(lists: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the share of each list (n, k) whose members stand in the other of its row too."""
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
    """Return the mean of the selected points, in float64; a constant coordinate is its own mean, exactly."""
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
    """Return the sum of points times weights, in float64; a point of weight zero need not be finite."""
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
    """Return the rows and columns that are selected."""
    return matrix[np.ix_(selection, selection)]


def centred_spectrum(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ascending eigenvalues of H G H with H = 1 - 11ᵀ / n, and the eigenvectors, as columns."""
    means = gram.mean(axis=0)
    return np.linalg.eigh(gram - means[:, None] - means[None, :] + means.mean())


def turned(points: np.ndarray) -> np.ndarray | None:
    """Return points (n, d) in n coordinates, with the same products; None where one depends on the others."""
    try:
        return np.linalg.cholesky(points @ points.T)
    except np.linalg.LinAlgError:
        return None


def weighted_squares(matrix: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the sum of each row's squares times the weights of the columns."""
    return np.square(matrix) @ weights


def tree_edges(distances: np.ndarray) -> np.ndarray:
    """Return the edge lengths of the minimum spanning tree of a full matrix of distances, by Prim's algorithm."""
    return _tree_edges(np.ascontiguousarray(distances))


@_loop
def _tree_edges(distances):
    n = len(distances)
    edges = np.empty(n - 1)
    nearest = distances[0].copy()
    nearest[0] = np.inf
    is_open = np.ones(n, np.bool_)
    is_open[0] = False
    for step in range(n - 1):
        following = np.argmin(nearest)
        edges[step] = nearest[following]
        is_open[following] = False
        for j in range(n):
            nearest[j] = min(nearest[j], distances[following, j]) if is_open[j] else np.inf
    return edges
