"""Permutation tests of the correlations of many rows: p-values, and the largest statistic of each family.

Matrix products test all rows with the same permutations. After `n_first` permutations, only rows with few exceedances
continue, until there are enough permutations for a single effect in its family to be significant.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

SEED = 0
# A single effect among F rows has q = F p. With (20 F) / 0.05 permutations, q can be as small as a twentieth of 0.05,
# so that chance in the permutations does not decide its significance.
PER_ROW = 400
# A p-value from 20 or more exceedances has a relative standard error of at most a fifth, which is enough.
FEW_BEYOND = 20
# Permutations that all rows have; the largest statistics come from these. A p-value of 0.05 has a standard error of
# 0.002, or 0.005 with more than MANY_CONTEXTS contexts, where 10,000 permutations would take minutes.
N_FIRST, N_FIRST_OF_MANY, MANY_CONTEXTS = 9_999, 1_999, 5_000
# Limit on products of a value and a score for rows that continue, per test: about two seconds of one core.
MAX_PRODUCTS = 3 * 10**10
# With fewer permutations in total, no p-value can be below 0.05.
LEAST_ORDERS = 20
# Elements of one array in memory: 8 MB.
ELEMENTS = 2**20
# Elements of permutations that are cached for other rows and runs of the same documents: 32 MB.
MAX_KEPT = 2**22
# Tolerance for ties: the order of a sum changes its last digits.
TIE = 1e-9
# Ranks have variance one; a residual variance below this is rounding.
RESOLVED = 1e-18

# For each document: its number of contexts, and the number of its source.
Kinds = tuple[tuple[int, ...], tuple[int, ...]]


class Pair(NamedTuple):
    """Rows and a score to test for correlation: residuals with mean square 1, (rows, contexts) and (contexts).

    The orthonormal rows of `basis` span the regressors that both are residuals of.
    """

    values: np.ndarray
    score: np.ndarray
    basis: np.ndarray
    rho: np.ndarray


class Tested(NamedTuple):
    """p-values of rows, the smallest possible p-value of each, and the largest statistic of each family.

    `maxima` has the largest |ρ| √(contexts − 1) in each of the first permutations, (families, permutations); −1 for a
    family without rows.
    """

    p: np.ndarray
    floor: np.ndarray
    maxima: np.ndarray


def n_first(n_contexts: int) -> int:
    """Return the number of permutations that all rows have."""
    return N_FIRST if n_contexts <= MANY_CONTEXTS else N_FIRST_OF_MANY


def n_orders(kinds: Kinds) -> int:
    """Return the number of ways to exchange documents of the same kind, at most 10^18."""
    kind_counts = np.unique(kinds, axis=1, return_counts=True)[1]
    return min(math.prod(math.factorial(min(n, 20)) for n in kind_counts.tolist()), 10**18)


def tested(pairs: Sequence[Pair], kinds: Kinds, family_sizes: np.ndarray, families: np.ndarray) -> list[Tested]:
    """Return the tests of pairs of the same rows, with the same permutations.

    A p-value is two-sided: (b + 1)/(m + 1), where b of m permutations correlate at least as much (Phipson and Smyth
    2010). A row starts with `n_first` permutations. It gets more, in batches, until b ≥ FEW_BEYOND or m reaches PER_ROW
    times the size of its family; it gets fewer only if all rows together would need more than MAX_PRODUCTS. This
    stopping rule keeps P(p ≤ α) ≤ α, like that of Besag and Clifford (1991): let m be the first number of permutations
    at which rows can stop and (FEW_BEYOND + 1)/(m + 1) ≤ α. A row that stopped earlier has p > α; a row that ends with
    p ≤ α had p ≤ α at m.

    Parameters
    ----------
    pairs : sequence of Pair
        Rows and scores to test.
    kinds : tuple
        Kind of each document; permutations exchange documents of the same kind.
    family_sizes, families : numpy.ndarray
        For each row: the maximal number of rows tested together, and the number of its family, from 0.
    """
    if n_orders(kinds) < LEAST_ORDERS:
        return [_untested(len(families), families) for _ in pairs]
    first = n_first(pairs[0].score.size)
    counts = [_Count(pair, families, first) for pair in pairs]
    for orders in _first_orders(kinds, first):
        for count in counts:
            count.add_first(orders)
    targets = [count.choose_targets(family_sizes) for count in counts]
    stops = np.unique(np.concatenate(targets))
    for orders, stop in _more_orders(kinds, first, stops.tolist()):
        continuing = [count.going(target >= stop) for count, target in zip(counts, targets, strict=True)]
        if not any(map(len, continuing)):
            break
        for count, rows in zip(counts, continuing, strict=True):
            count.add(orders, rows)
    max_permutations = np.maximum(first, PER_ROW * family_sizes)
    floor = np.maximum(1 / (max_permutations + 1), 1 / n_orders(kinds))
    return [count.result(floor) for count in counts]


def p_of_maximum(rho: float, n_contexts: int, maxima: np.ndarray) -> float:
    """Return the p-value of a row, adjusted for its family: the share of maxima at least as large as its statistic.

    This is single-step max-T (Westfall and Young 1993) with the statistic |ρ| √(contexts − 1), whose variance under
    independence is 1 for any number of contexts. Rows of the same documents share permutations, which preserves the
    dependence between them. Rows of other documents count as independent, which can only make a p-value too large
    (Royen 2014).

    Parameters
    ----------
    rho, n_contexts : float, int
        Correlation of the row, and its number of contexts.
    maxima : numpy.ndarray
        Largest statistic of the family in each permutation, ascending.

    Examples
    --------
    >>> p_of_maximum(0.5, 101, np.arange(99, dtype=np.float32) / 10)
    0.5
    """
    # Maxima are float32, with a relative precision of 6e-8.
    statistic = np.float32((abs(rho) - TIE) * np.sqrt(n_contexts - 1) * (1 - 1e-7))
    n_beyond = len(maxima) - np.searchsorted(maxima, statistic)
    return float((n_beyond + 1) / (len(maxima) + 1))


def _untested(n_rows: int, families: np.ndarray) -> Tested:
    """Return the missing result of rows whose documents have too few permutations."""
    return Tested(np.full(n_rows, np.nan), np.full(n_rows, np.nan), np.full((families.max() + 1, 0), -1, np.float32))


class _Count:
    """Count of the permutations that exceed each row."""

    def __init__(self, pair: Pair, families: np.ndarray, first: int) -> None:
        self.pair, self.families = pair, families
        self.rows = np.flatnonzero(np.isfinite(pair.rho))
        self.n_beyond, self.n_done = np.zeros(len(pair.rho), np.int64), np.zeros(len(pair.rho), np.int64)
        self.maxima, self.n_maxima = np.full((families.max() + 1, first), -1, np.float32), 0

    def add_first(self, orders: np.ndarray) -> None:
        """Count a batch of the first permutations for all rows, and keep the largest statistic of each family."""
        largest = self.maxima[:, self.n_maxima : self.n_maxima + len(orders)]
        for rows, correlations in self._permuted(orders, self.rows):
            self.n_beyond[rows] += self._n_beyond(rows, correlations)
            for family in np.unique(self.families[rows]):
                family_maxima = correlations[self.families[rows] == family].max(axis=0)
                np.maximum(largest[family], family_maxima, out=largest[family])
        self.n_done[self.rows] += len(orders)
        self.n_maxima += len(orders)

    def add(self, orders: np.ndarray, rows: np.ndarray) -> None:
        """Count a batch of permutations for the given rows."""
        for part, correlations in self._permuted(orders, rows):
            self.n_beyond[part] += self._n_beyond(part, correlations)
        self.n_done[rows] += len(orders)

    def _permuted(self, orders: np.ndarray, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the rows in parts, with |ρ| of each row and the residuals of each permuted score."""
        if not len(rows):
            return
        permuted = self.pair.score[orders]
        residual_squares = np.maximum(permuted.shape[1] - ((permuted @ self.pair.basis.T) ** 2).sum(axis=1), RESOLVED)
        scale = 1 / np.sqrt(permuted.shape[1] * residual_squares)
        for part in np.array_split(rows, -(-len(rows) * len(orders) // ELEMENTS)):
            yield part, np.abs(self.pair.values[part] @ permuted.T) * scale

    def _n_beyond(self, rows: np.ndarray, correlations: np.ndarray) -> np.ndarray:
        """Return the number of permutations that correlate at least as much as each row itself."""
        return (correlations >= np.abs(self.pair.rho[rows, None]) - TIE).sum(axis=1)

    def going(self, is_asked: np.ndarray) -> np.ndarray:
        """Return the requested rows that have too few exceedances to stop."""
        return np.flatnonzero(is_asked & (self.n_beyond < FEW_BEYOND))

    def choose_targets(self, family_sizes: np.ndarray) -> np.ndarray:
        """Return the target number of permutations of each row; rows that stop have reached it."""
        continuing = self.going(np.isfinite(self.pair.rho))
        wanted = PER_ROW * family_sizes[continuing]
        affordable = MAX_PRODUCTS // (self.pair.score.size * max(len(continuing), 1))
        targets = self.n_done.copy()
        least = -(-wanted // max(len(continuing), 1))
        targets[continuing] = np.maximum(targets[continuing], np.minimum(wanted, np.maximum(least, affordable)))
        return targets

    def result(self, floor: np.ndarray) -> Tested:
        """Return the p-values that follow from the counts."""
        p = np.full(len(self.n_done), np.nan)
        p[self.rows] = (self.n_beyond[self.rows] + 1) / (self.n_done[self.rows] + 1)
        return Tested(p, floor, self.maxima * np.float32(np.sqrt(self.pair.score.size - 1)))


def _first_orders(kinds: Kinds, first: int) -> Iterator[np.ndarray]:
    """Yield the first permutations, which many runs share, in batches."""
    if first * sum(kinds[0]) <= MAX_KEPT:
        yield from np.array_split(_kept_orders(kinds, first), -(-first * sum(kinds[0]) // ELEMENTS))
    else:
        yield from _orders(kinds, np.random.default_rng((SEED, *kinds[0])), first)


@lru_cache(maxsize=2)
def _kept_orders(kinds: Kinds, first: int) -> np.ndarray:
    """Return the first permutations as one cached array."""
    return np.concatenate(list(_orders(kinds, np.random.default_rng((SEED, *kinds[0])), first)))


def _more_orders(kinds: Kinds, first: int, stops: list[int]) -> Iterator[tuple[np.ndarray, int]]:
    """Yield batches of later permutations with the stop they count toward; `stops` increase."""
    random = np.random.default_rng((SEED + 1, *kinds[0]))
    for start, stop in pairwise([first, *(stop for stop in stops if stop > first)]):
        for orders in _orders(kinds, random, stop - start):
            yield orders, stop


def _orders(kinds: Kinds, random: np.random.Generator, n: int) -> Iterator[np.ndarray]:
    """Yield n permutations in batches: the context whose score each context gets, (permutations, contexts).

    A permutation exchanges whole documents of the same kind; the contexts of a document keep their order.
    """
    sizes, document_kinds = kinds[0], np.array(kinds)
    starts, n_contexts = np.cumsum(sizes) - sizes, sum(sizes)
    places = [
        starts[(document_kinds == kind[:, None]).all(axis=0)][:, None] + np.arange(kind[0])
        for kind in np.unique(document_kinds, axis=1).T
    ]
    batch_size = max(1, ELEMENTS // n_contexts)
    for start in range(0, n, batch_size):
        orders = np.empty((min(batch_size, n - start), n_contexts), np.int64)
        for kind_places in places:
            shuffled = random.permuted(np.tile(np.arange(len(kind_places)), (len(orders), 1)), axis=1)
            orders[:, kind_places.ravel()] = kind_places[shuffled].reshape(len(orders), -1)
        yield orders
