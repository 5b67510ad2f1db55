"""Permutation tests of correlations, of many rows at once: p-values, and the largest statistic of each family.

All rows are tested by the same permutations, as products of matrices. After `n_first` of them only rows that few
exceeded go on, to as many as let a single effect among all of its family be significant.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

SEED = 0
# A single effect among F rows has q = F p: with (20 F) / 0.05 permutations q can be a twentieth of 0.05, so that chance
# in the permutations does not decide about it.
PER_ROW = 400
# A p-value of 20 exceedances or more has a standard error of a fifth of itself at most: it is known well enough.
FEW_BEYOND = 20
# All rows have so many permutations, and the largest statistics are of these: a p-value of 0.05 has a standard error of
# 0.002, or of 0.005 of more than MANY_CONTEXTS, where 10,000 would take minutes.
N_FIRST, N_FIRST_OF_MANY, MANY_CONTEXTS = 9_999, 1_999, 5_000
# Products of a value and a score that rows of one test may take to go on: some two seconds of one core.
MAX_PRODUCTS = 3 * 10**10
# With fewer orders no p-value could be below 0.05.
LEAST_ORDERS = 20
# Elements of arrays that are in memory at once: 8 MB.
ELEMENTS = 2**20
# Elements of permutations that are kept for other rows and runs of the same documents: 32 MB.
MAX_KEPT = 2**22
# What a sum of other order may change in a tie of two permutations.
TIE = 1e-9
# Variance, beside ranks of variance one, below which what is left of a regression is rounding.
RESOLVED = 1e-18

# Of each document: how many contexts it has, and the number of its source.
Kinds = tuple[tuple[int, ...], tuple[int, ...]]


class Pair(NamedTuple):
    """Rows and a score whose correlations are tested: residuals with mean square 1, (rows, contexts) and (contexts).

    `basis` spans, in orthonormal rows, what both are residuals of.
    """

    values: np.ndarray
    score: np.ndarray
    basis: np.ndarray
    rho: np.ndarray


class Tested(NamedTuple):
    """p-values of rows, the smallest that each could have had, and the largest statistic of each family.

    The latter is |ρ| √(contexts − 1) for each of the first permutations, (families, permutations), −1 for a family
    without a row.
    """

    p: np.ndarray
    floor: np.ndarray
    maxima: np.ndarray


def n_first(n_contexts: int) -> int:
    """Return how many permutations all rows have."""
    return N_FIRST if n_contexts <= MANY_CONTEXTS else N_FIRST_OF_MANY


def n_orders(kinds: Kinds) -> int:
    """Return in how many ways documents of one kind can be exchanged, at most 10^18."""
    n_alike = np.unique(kinds, axis=1, return_counts=True)[1]
    return min(math.prod(math.factorial(min(n, 20)) for n in n_alike.tolist()), 10**18)


def tested(pairs: Sequence[Pair], kinds: Kinds, family_sizes: np.ndarray, families: np.ndarray) -> list[Tested]:
    """Return the tests of some pairs of the same rows, by the same permutations.

    A p-value is two-sided, (b + 1)/(m + 1) of m permutations of which b correlate at least as much (Phipson and Smyth
    2010). A row has `n_first` of them, and then more, some at a time, until b ≥ FEW_BEYOND or there are PER_ROW times
    the size of its family, fewer only where rows together would take more than MAX_PRODUCTS. This stopping rule keeps
    P(p ≤ α) ≤ α (as that of Besag and Clifford 1991): let m be the first number of permutations at which rows may stop
    and (FEW_BEYOND + 1)/(m + 1) ≤ α. A row that stopped before has p > α; one that ends with p ≤ α had p ≤ α at m.

    Parameters
    ----------
    pairs : sequence of Pair
        What is tested.
    kinds : tuple
        Documents of one kind are exchanged.
    family_sizes, families : numpy.ndarray
        Of each row: how many rows are tested together at most, and the number of its family, from 0.
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
        going = [count.going(target >= stop) for count, target in zip(counts, targets, strict=True)]
        if not any(map(len, going)):
            break
        for count, rows in zip(counts, going, strict=True):
            count.add(orders, rows)
    most = np.maximum(first, PER_ROW * family_sizes)
    floor = np.maximum(1 / (most + 1), 1 / n_orders(kinds))
    return [count.result(floor) for count in counts]


def p_of_maximum(rho: float, n_contexts: int, maxima: np.ndarray) -> float:
    """Return the p-value of a row adjusted for all of its family: the share of permutations with a larger statistic.

    Single-step max-T (Westfall and Young 1993), of |ρ| √(contexts − 1), whose variance is 1 when nothing depends on
    anything, whatever the number of contexts. Rows of equal documents have permutations in common, which keeps how rows
    depend on each other; as if others were independent of them, a p-value can only be too large (Royen 2014).

    Parameters
    ----------
    rho, n_contexts : float, int
        The row's correlation, and of how many contexts.
    maxima : numpy.ndarray
        The largest statistic of the family in each permutation, ascending.

    Examples
    --------
    >>> p_of_maximum(0.5, 101, np.arange(99, dtype=np.float32) / 10)
    0.5
    """
    # Maxima are float32, of a relative precision of 6e-8.
    statistic = np.float32((abs(rho) - TIE) * np.sqrt(n_contexts - 1) * (1 - 1e-7))
    n_beyond = len(maxima) - np.searchsorted(maxima, statistic)
    return float((n_beyond + 1) / (len(maxima) + 1))


def _untested(n_rows: int, families: np.ndarray) -> Tested:
    """Return tests of rows whose documents cannot be exchanged."""
    return Tested(np.full(n_rows, np.nan), np.full(n_rows, np.nan), np.full((families.max() + 1, 0), -1, np.float32))


class _Count:
    """How many permutations exceeded each row so far."""

    def __init__(self, pair: Pair, families: np.ndarray, first: int) -> None:
        self.pair, self.families = pair, families
        self.rows = np.flatnonzero(np.isfinite(pair.rho))
        self.n_beyond, self.n_done = np.zeros(len(pair.rho), np.int64), np.zeros(len(pair.rho), np.int64)
        self.maxima, self.n_maxima = np.full((families.max() + 1, first), -1, np.float32), 0

    def add_first(self, orders: np.ndarray) -> None:
        """Count some of the first permutations of all rows, and keep the largest statistic of each family."""
        largest = self.maxima[:, self.n_maxima : self.n_maxima + len(orders)]
        for rows, correlations in self._permuted(orders, self.rows):
            self.n_beyond[rows] += self._n_beyond(rows, correlations)
            for family in np.unique(self.families[rows]):
                of_family = correlations[self.families[rows] == family].max(axis=0)
                np.maximum(largest[family], of_family, out=largest[family])
        self.n_done[self.rows] += len(orders)
        self.n_maxima += len(orders)

    def add(self, orders: np.ndarray, rows: np.ndarray) -> None:
        """Count some permutations of some rows."""
        for part, correlations in self._permuted(orders, rows):
            self.n_beyond[part] += self._n_beyond(part, correlations)
        self.n_done[rows] += len(orders)

    def _permuted(self, orders: np.ndarray, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield some rows at a time, and |ρ| of each with the residuals of each permutation."""
        if not len(rows):
            return
        permuted = self.pair.score[orders]
        left = np.maximum(permuted.shape[1] - ((permuted @ self.pair.basis.T) ** 2).sum(axis=1), RESOLVED)
        scale = 1 / np.sqrt(permuted.shape[1] * left)
        for part in np.array_split(rows, -(-len(rows) * len(orders) // ELEMENTS)):
            yield part, np.abs(self.pair.values[part] @ permuted.T) * scale

    def _n_beyond(self, rows: np.ndarray, correlations: np.ndarray) -> np.ndarray:
        """Return how many permutations correlate at least as much as each row itself."""
        return (correlations >= np.abs(self.pair.rho[rows, None]) - TIE).sum(axis=1)

    def going(self, is_asked: np.ndarray) -> np.ndarray:
        """Return which of some rows have too few exceedances to stop."""
        return np.flatnonzero(is_asked & (self.n_beyond < FEW_BEYOND))

    def choose_targets(self, family_sizes: np.ndarray) -> np.ndarray:
        """Return how many permutations each row is to have; those of rows that do not go on are done."""
        goes_on = self.going(np.isfinite(self.pair.rho))
        wanted = PER_ROW * family_sizes[goes_on]
        affordable = MAX_PRODUCTS // (self.pair.score.size * max(len(goes_on), 1))
        targets = self.n_done.copy()
        least = -(-wanted // max(len(goes_on), 1))
        targets[goes_on] = np.maximum(targets[goes_on], np.minimum(wanted, np.maximum(least, affordable)))
        return targets

    def result(self, floor: np.ndarray) -> Tested:
        """Return the p-values of what was counted."""
        p = np.full(len(self.n_done), np.nan)
        p[self.rows] = (self.n_beyond[self.rows] + 1) / (self.n_done[self.rows] + 1)
        return Tested(p, floor, self.maxima * np.float32(np.sqrt(self.pair.score.size - 1)))


def _first_orders(kinds: Kinds, first: int) -> Iterator[np.ndarray]:
    """Yield the first permutations, which many runs share."""
    if first * sum(kinds[0]) <= MAX_KEPT:
        yield from np.array_split(_kept_orders(kinds, first), -(-first * sum(kinds[0]) // ELEMENTS))
    else:
        yield from _orders(kinds, np.random.default_rng((SEED, *kinds[0])), first)


@lru_cache(maxsize=2)
def _kept_orders(kinds: Kinds, first: int) -> np.ndarray:
    """Return the first permutations at once."""
    return np.concatenate(list(_orders(kinds, np.random.default_rng((SEED, *kinds[0])), first)))


def _more_orders(kinds: Kinds, first: int, stops: list[int]) -> Iterator[tuple[np.ndarray, int]]:
    """Yield permutations after the first, some at a time, up to each of some increasing numbers, and that number."""
    random = np.random.default_rng((SEED + 1, *kinds[0]))
    for start, stop in pairwise([first, *(stop for stop in stops if stop > first)]):
        for orders in _orders(kinds, random, stop - start):
            yield orders, stop


def _orders(kinds: Kinds, random: np.random.Generator, n: int) -> Iterator[np.ndarray]:
    """Yield n permutations, some at a time: which context's score each context takes, (permutations, contexts).

    Documents are exchanged, with all their contexts in order, among those of their kind.
    """
    sizes, of_document = kinds[0], np.array(kinds)
    starts, n_contexts = np.cumsum(sizes) - sizes, sum(sizes)
    places = [
        starts[(of_document == kind[:, None]).all(axis=0)][:, None] + np.arange(kind[0])
        for kind in np.unique(of_document, axis=1).T
    ]
    at_once = max(1, ELEMENTS // n_contexts)
    for start in range(0, n, at_once):
        orders = np.empty((min(at_once, n - start), n_contexts), np.int64)
        for of_kind in places:
            taken = random.permuted(np.tile(np.arange(len(of_kind)), (len(orders), 1)), axis=1)
            orders[:, of_kind.ravel()] = of_kind[taken].reshape(len(orders), -1)
        yield orders
