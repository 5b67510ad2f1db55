"""Kernels for numpy: loops compiled by numba, and the symmetric product of BLAS, which does half the work of a product.

numpy widens float16 one value at a time, copies the triangle of a symmetric product column by column and sorts where a
threshold serves; here each is one pass over memory. Loops run without the interpreter's lock, so clouds
can be shared out over threads.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit
from scipy.linalg.blas import dsyrk, ssyrk

# Column j is compared within lane j mod LANES: a whole number of vectors on every CPU.
LANES = 64
# Columns a power of two apart share a few places in a cache: no more than eight of them at once.
TILE = 8
# Keys of a row are put into so many bins, of a width not below TINY.
BINS, TINY = 256, 1e-30
# Halvings of the range of the minima: the threshold then stands within a hundredth of it.
HALVINGS = 8
_loop = njit(nogil=True, cache=True)
# Sums may be formed in any order (so in vectors), nothing else is relaxed.
_sum = njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})


def widened(points: np.ndarray) -> np.ndarray:
    """Return points in the narrowest dtype that is computed in, float32 or float64, rows contiguous."""
    if points.dtype != np.float16:
        return np.ascontiguousarray(points, dtype=np.float64 if points.dtype.itemsize > 4 else np.float32)
    bits = np.ascontiguousarray(points).view(np.uint16)
    rows = np.empty(points.shape, np.float32)
    _widen(bits, rows.view(np.uint32), rows)
    return rows


@_loop
def _widen(bits, words, rows):
    """Move sign, exponent and fraction to their places in float32, then multiply by the difference of the biases."""
    for i in range(bits.shape[0]):
        for c in range(bits.shape[1]):
            half = np.uint32(bits[i, c])
            words[i, c] = ((half & np.uint32(0x7FFF)) << np.uint32(13)) | ((half & np.uint32(0x8000)) << np.uint32(16))
        for c in range(bits.shape[1]):
            rows[i, c] *= np.float32(2.0**112)
        for c in range(bits.shape[1]):
            if bits[i, c] & np.uint16(0x7C00) == np.uint16(0x7C00):
                rows[i, c] = np.nan


def survey(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return squared norms of rows, the sum of the finite rows, and a key of each that is equal for equal rows."""
    squared_norms, keys = np.empty(len(rows)), np.empty(len(rows))
    total = np.zeros(rows.shape[1])
    _survey(rows, _key_weights(rows.shape[1]), squared_norms, keys, total)
    return squared_norms, total, keys


@cache
def _key_weights(d: int) -> np.ndarray:
    """Return the weights of coordinates in a key."""
    return np.random.default_rng(0).standard_normal(d)


@_sum
def _survey(rows, weights, squared_norms, keys, total):
    for i in range(rows.shape[0]):
        square, key = 0.0, 0.0
        for c in range(rows.shape[1]):
            value = np.float64(rows[i, c])
            square += value * value
            key += value * weights[c]
        squared_norms[i], keys[i] = square, key
        if square < np.inf:
            for c in range(rows.shape[1]):
                total[c] += rows[i, c]


def centred(rows: np.ndarray, centre: np.ndarray, dtype: type, is_finite: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows less a centre in a dtype, zero where a row is not finite, and their squared norms in float64."""
    result = np.empty(rows.shape, dtype)
    squared_norms = np.empty(len(rows))
    _centre(rows, centre.astype(dtype), is_finite, result, squared_norms)
    return result, squared_norms


@_sum
def _centre(rows, centre, is_finite, result, squared_norms):
    for i in range(rows.shape[0]):
        if not is_finite[i]:
            result[i] = 0
            squared_norms[i] = 0.0
            continue
        square = 0.0
        for c in range(rows.shape[1]):
            value = result.dtype.type(rows[i, c]) - centre[c]
            result[i, c] = value
            square += np.float64(value) * np.float64(value)
        squared_norms[i] = square


def gram(centred: np.ndarray) -> np.ndarray:
    """Return all inner products of rows."""
    product = (ssyrk if centred.dtype == np.float32 else dsyrk)(1.0, centred.T, trans=1).T
    _mirror(product)
    return product


def some_products(centred: np.ndarray, some: np.ndarray) -> np.ndarray:
    """Return the inner products of some rows with all."""
    return (centred @ centred[some].T).T


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
    beyond = np.full((n, len(further)), np.inf)
    half = np.where(counts, squared_norms / 2, np.inf).astype(product.dtype)
    _select(product, squared_norms, half, counts, np.asarray(further), squares, indices, beyond)
    return squares, indices, beyond


@_loop
def _select(product, squared_norms, half, counts, further, squares, indices, beyond):
    """Keep each row's nearest, of those under a threshold that at least so many are under.

    |x_j - x_i|² = |x_i|² + 2 (|x_j|² / 2 - x_i·x_j): the bracket, here a key, orders a row. Its minima over LANES
    disjoint sets of columns are as many different keys, so a threshold that m minima are under has m columns under it.
    Rounding to float32 keeps the order, so no column above the threshold belongs to the nearest.
    """
    n, n_nearest = indices.shape
    minima, maxima = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    keys = np.full((n + LANES - 1) // LANES * LANES, np.inf, np.float32)
    under, kept, order = np.empty(n + 1, np.int32), np.empty(n), np.empty(n, np.int64)
    wide_keys, grouped = np.empty(n, product.dtype), np.empty(n, product.dtype)
    bins, ends, places = np.empty(n, np.uint16), np.empty(BINS + 1, np.uint32), np.empty(BINS, np.uint32)
    for i in range(n):
        if not counts[i]:
            continue
        for j in range(n):
            keys[j] = np.float32(half[j] - product[i, j])
        keys[i] = np.inf
        minima[:] = np.inf
        for start in range(0, len(keys), LANES):
            for lane in range(LANES):
                minima[lane] = min(minima[lane], keys[start + lane])
        threshold = _threshold(minima, n_nearest)
        n_under = 0
        for lane in range(LANES):
            if minima[lane] <= threshold:
                for j in range(lane, n, LANES):
                    under[n_under] = j
                    n_under += keys[j] <= threshold
        for p in range(n_under):
            kept[p] = squared_norms[i] + squared_norms[under[p]] - 2.0 * np.float64(product[i, under[p]])
        _order(kept[:n_under], under, order, squares[i], indices[i])
        if len(further):
            for j in range(n):
                wide_keys[j] = half[j] - product[i, j]
            wide_keys[i] = np.inf
            _at_ranks(
                wide_keys, minima.min(), _common_limit(keys, maxima), further, bins, ends, places, grouped, beyond[i]
            )
            for q in range(len(further)):
                beyond[i, q] = 2.0 * beyond[i, q] + squared_norms[i]


@_loop
def _common_limit(keys, maxima):
    """Return a key that most lanes exceed somewhere: the least of their largest finite ones."""
    maxima[:] = -np.inf
    for start in range(0, len(keys), LANES):
        for lane in range(LANES):
            maxima[lane] = max(maxima[lane], keys[start + lane] if keys[start + lane] < np.inf else -np.inf)
    return maxima.min()


@_loop
def _at_ranks(keys, low, high, ranks, bins, ends, places, grouped, values):
    """Write the keys at some ranks: keys are grouped by bins, and those of a rank's bin sorted.

    Any bins do; few keys share one where `low` and `high` hold most of them.
    """
    number = keys.dtype.type
    scale, last = number(BINS - 1) / number(max(high - low, TINY)), number(BINS - 1)
    for j in range(len(keys)):
        bins[j] = np.uint16(min(max((keys[j] - number(low)) * scale, number(0)), last))
    ends[:] = 0
    for place in bins:
        ends[place + 1] += 1
    for place in range(BINS):
        ends[place + 1] += ends[place]
        places[place] = ends[place]
    for j in range(len(keys)):
        grouped[places[bins[j]]] = keys[j]
        places[bins[j]] += 1
    place, is_sorted = 0, False
    for q in range(len(ranks)):
        while ends[place + 1] < ranks[q]:
            place, is_sorted = place + 1, False
        if not is_sorted:
            grouped[ends[place] : ends[place + 1]].sort()
            is_sorted = True
        values[q] = grouped[ranks[q] - 1]


@_loop
def _threshold(minima, n_least):
    """Return a finite number that at least `n_least` of the minima, or all that are finite, are not above."""
    largest = np.finfo(minima.dtype).max
    low, high, n_finite = largest, -largest, 0
    for value in minima:
        if value <= largest:
            n_finite += 1
            low, high = min(low, value), max(high, value)
    if n_finite <= n_least:
        return largest
    for _ in range(HALVINGS):
        middle = low / 2 + high / 2
        n_under = 0
        for value in minima:
            n_under += value <= middle
        if n_under >= n_least:
            high = middle
        else:
            low = middle
    return high


@_loop
def _order(values, indices, places, squares, nearest):
    """Put each value where the number of smaller ones says: no branch depends on a comparison."""
    n = len(values)
    places[:n] = 0
    for q in range(n):
        value = values[q]
        for p in range(q):
            places[p] += value < values[p]
        for p in range(q + 1, n):
            places[p] += value <= values[p]
    for p in range(n):
        if places[p] < len(squares):
            squares[places[p]], nearest[places[p]] = values[p], indices[p]


def differences(rows: np.ndarray, some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the squared distances of rows `some` (m,) to rows `others` (m, k), from differences in float64."""
    squares = np.empty(others.shape)
    _differences(rows, some.astype(np.int32), np.ascontiguousarray(others, np.int32), squares)
    return squares


@_sum
def _differences(rows, some, others, squares):
    for p in range(len(some)):
        for q in range(others.shape[1]):
            square = 0.0
            for c in range(rows.shape[1]):
                difference = np.float64(rows[some[p], c]) - np.float64(rows[others[p, q], c])
                square += difference * difference
            squares[p, q] = square


def gram_sums(product: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the sum of each row, and of all squares, over rows and columns that count."""
    row_sums = np.zeros(len(product))
    return row_sums, _gram_sums(product, counts.astype(product.dtype), row_sums)


@_sum
def _gram_sums(product, weights, row_sums):
    total = 0.0
    for i in range(len(product)):
        if weights[i] > 0:
            row_sum, square = 0.0, 0.0
            for j in range(len(product)):
                value = np.float64(product[i, j] * weights[j])
                row_sum += value
                square += value * value
            row_sums[i] = row_sum
            total += square
    return total


def pairs_within(
    product: np.ndarray, squared_norms: np.ndarray, counts: np.ndarray, squares: np.ndarray
) -> tuple[int, ...]:
    """Return how many pairs of points that count have squared distances below each of some."""
    half = np.where(counts, squared_norms / 2, np.inf)
    n_pairs = np.zeros(len(squares), np.int64)
    _pairs_within(product, half.astype(product.dtype), half, counts, np.asarray(squares), n_pairs)
    return tuple(n_pairs.tolist())


@_loop
def _pairs_within(product, narrow_half, half, counts, squares, n_pairs):
    for i in range(len(product)):
        if counts[i]:
            for q in range(len(squares)):
                limit = product.dtype.type(squares[q] / 2 - half[i])
                n_below = 0
                for j in range(i):
                    n_below += narrow_half[j] - product[i, j] < limit
                n_pairs[q] += n_below


def weighted_sum(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the sum of rows times weights, in float64; a row of weight zero need not be finite."""
    total = np.zeros(rows.shape[1])
    _weighted_sum(rows, weights, total)
    return total


@_sum
def _weighted_sum(rows, weights, total):
    for i in range(len(rows)):
        if weights[i] != 0:
            for c in range(rows.shape[1]):
                total[c] += weights[i] * rows[i, c]


def submatrix(matrix: np.ndarray, selection: np.ndarray) -> np.ndarray:
    """Return the rows and columns that are selected."""
    return matrix[np.ix_(selection, selection)]


def centred_spectrum(gram: np.ndarray) -> np.ndarray:
    """Return the ascending eigenvalues of H G H with H = 1 - 11ᵀ / n."""
    means = gram.mean(axis=0)
    return np.linalg.eigvalsh(gram - means[:, None] - means[None, :] + means.mean())


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
