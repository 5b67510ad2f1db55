"""Uncertainty that respects documents: intervals of means, rank correlations, partial ones too, and tests of these.

Contexts of one document resemble each other, so the document, with all its contexts, is the unit that is resampled,
permuted and counted. Draws depend on how many documents there are, and permutations on how many contexts each has, not
on the order in which rows or contexts stand in a table. Rows of equal contexts are computed together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np

LEAST_DOCUMENTS, LEAST_RESAMPLED = 5, 20
N_DRAWS, N_PERMUTATIONS, SEED = 2000, 999, 0
ROWS_A_BLOCK = 256
# With fewer no p-value could be below 0.05.
LEAST_PERMUTATIONS = 20
# What is smaller, beside ranks of variance one, is rounding.
RESOLVED = 1e-9

# The 0.975 quantiles of Student's t for LEAST_DOCUMENTS documents and up, and of the normal distribution.
T_QUANTILES = [2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139, 2.200985]
T_QUANTILES += [2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922]
NORMAL_QUANTILE = 1.959964


class Residuals(NamedTuple):
    """What covariates leave of each row, with mean square 1; what that was, and the slopes on each, before."""

    values: np.ndarray
    scale: np.ndarray
    slopes: np.ndarray


class Ranking(NamedTuple):
    """The order of each row's values, and of each place in it the first and the last place of an equal value."""

    order: np.ndarray
    first: np.ndarray
    last: np.ndarray


def of_rows(
    values: np.ndarray,
    documents: np.ndarray,
    scores: Mapping[str, np.ndarray],
    covariates: np.ndarray,
    sources: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return the statistics of each row of a table of contexts, NaN where there are too few documents.

    Parameters
    ----------
    values : numpy.ndarray
        Rows × contexts; NaN where a context does not count. Contexts of one document stand together.
    documents : numpy.ndarray
        The document of each context.
    scores : mapping of numpy.ndarray
        Scores of each context, by name; NaN where there is none.
    covariates : numpy.ndarray
        What partial correlations hold fixed: covariates × contexts, all finite.
    sources : numpy.ndarray
        What they hold fixed too: the source of each context.

    Returns
    -------
    dict of numpy.ndarray
        `n_documents`, `ci_low`, `ci_high`, and of each score `spearman_…`, `spearman_…_low`, `spearman_…_high`, `p_…`,
        `partial_…`, `partial_…_low`, `partial_…_high` and `p_partial_…`. The partial ones are NaN under
        `LEAST_RESAMPLED` documents, and one more for each source but the first.
    """
    names = ["ci_low", "ci_high", *chain.from_iterable(map(_names, scores))]
    found = {name: np.full(len(values), np.nan) for name in names}
    found["n_documents"] = np.zeros(len(values), np.int64)
    for rows, is_there in _patterns(np.isfinite(values)):
        part, of_part = values[np.ix_(rows, is_there)], documents[is_there]
        sizes = _sizes(of_part)
        found["n_documents"][rows] = len(sizes)
        if len(sizes) < LEAST_DOCUMENTS:
            continue
        found["ci_low"][rows], found["ci_high"][rows] = mean_interval(part, sizes)
        for name, score in scores.items():
            has_score = np.isfinite(score[is_there])
            given, sizes = (part[:, has_score], score[is_there][has_score]), _sizes(of_part[has_score])
            if len(sizes) < LEAST_DOCUMENTS:
                continue
            results = rank_correlation(*given, sizes)
            of_context = sources[is_there][has_score]
            if len(sizes) - len(np.unique(of_context)) + 1 >= LEAST_RESAMPLED:
                results += rank_correlation(*given, sizes, covariates[:, is_there][:, has_score], of_context)
            for column, result in zip(_names(name), results, strict=False):
                found[column][rows] = result
    return found


def mean_interval(values: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % interval of the mean over contexts of each row.

    From `LEAST_RESAMPLED` documents the percentile interval of `N_DRAWS` draws of documents with replacement, each with
    all its contexts (Davison and Hinkley 1997, §3.8). Below, mean ± t √v with G − 1 degrees of freedom for G
    documents and v = (G−1)/G Σ(mean without document g − mean)², the jackknife (Efron and Stein 1981): with one
    context a document, Student's interval. Of unequal documents it covers more nearly what it should than the
    linearised variance does.

    Parameters
    ----------
    values : numpy.ndarray
        Rows × contexts, all finite, contexts of one document side by side.
    sizes : numpy.ndarray
        How many contexts each document has, `LEAST_DOCUMENTS` documents or more.
    """
    sums = _sums(values, sizes)
    if len(sizes) >= LEAST_RESAMPLED:
        counts = _counts(len(sizes))
        blocks = np.array_split(sums, -(-len(sums) // ROWS_A_BLOCK))
        bounds = [np.quantile(block @ counts.T / (counts @ sizes), (0.025, 0.975), axis=1) for block in blocks]
        low, high = np.concatenate(bounds, axis=1)
        return low, high
    total, n = sums.sum(axis=1, keepdims=True), len(sizes)
    means = total[:, 0] / sizes.sum()
    without = (total - sums) / (sizes.sum() - sizes)
    half = T_QUANTILES[n - LEAST_DOCUMENTS] * np.sqrt((n - 1) / n * ((without - means[:, None]) ** 2).sum(axis=1))
    return means - half, means + half


def rank_correlation(
    values: np.ndarray,
    score: np.ndarray,
    sizes: np.ndarray,
    covariates: np.ndarray | None = None,
    sources: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return of each row Spearman's correlation with a score, its 95 % interval and its p-value.

    Given covariates or sources it is the partial one: of the residuals of both ranks in their regression on the ranks
    of the covariates and a constant of each source; NaN where these leave nothing of one.

    The interval is tanh(artanh ρ ± 1.96 s / (1 − ρ²)) with s the standard error between documents of the influence
    function of ρ (Croux and Dehon 2010), which counts that all ranks are estimated too; NaN under `LEAST_RESAMPLED`
    documents. The p-value is two-sided, (b + 1)/(m + 1) of m permutations (Phipson and Smyth 2010) that exchange the
    scores of whole documents among documents with equally many contexts: what is exchanged then has one distribution
    when score and value are independent between documents, however contexts depend on each other within one. It is NaN
    where there are fewer than `LEAST_PERMUTATIONS` of these. Given
    covariates or sources the residuals of scores are exchanged, among documents of one source, and residuals taken of
    them again (Freedman and Lane 1983); and s² is of as many degrees of freedom less as there are of these.

    Parameters
    ----------
    values, score : numpy.ndarray
        Rows × contexts, and contexts; all finite, contexts of one document side by side.
    sizes : numpy.ndarray
        How many contexts each document has.
    covariates : numpy.ndarray, optional
        Covariates × contexts, all finite. A constant one explains nothing.
    sources : numpy.ndarray, optional
        The source of each context, one for all contexts of a document; far fewer sources than documents.
    """
    sources = np.zeros(len(score)) if sources is None else sources
    others = [_ranking(row[None]) for row in ([] if covariates is None else covariates) if np.ptp(row)]
    is_source = sources == np.unique(sources)[:, None]
    basis, weights = _basis(np.vstack([*map(_standardized, others), is_source - is_source.mean(axis=1, keepdims=True)]))
    ours, theirs = _ranking(values), _ranking(score[None])
    of_x, of_y = (_residuals(_standardized(ranking), basis, weights) for ranking in (ours, theirs))
    x, y = of_x.values, of_y.values
    rho = (x @ y[0]) / len(score)
    kinds = tuple(sizes.tolist()), tuple(is_source.argmax(axis=0)[np.cumsum(sizes) - 1].tolist())
    p = np.full_like(rho, np.nan)
    if _are_many(*kinds):
        p = _p_values(x, y[0], rho, basis, _permutations(*kinds))
    if len(sizes) < LEAST_RESAMPLED:
        return rho, np.full_like(rho, np.nan), np.full_like(rho, np.nan), p
    r = rho[:, None]
    of_ours, of_theirs = (y - r * x) / of_x.scale, (x - r * y) / of_y.scale
    influence = x * y - r * (x**2 + y**2) / 2 + _of_ranks(ours, of_ours) + _of_ranks(theirs, of_theirs)
    for ranking, of_x_on, of_y_on in zip(others, of_x.slopes.T, of_y.slopes.T, strict=False):
        influence -= _of_ranks(ranking, of_x_on[:, None] * of_ours + of_y_on * of_theirs)
    sums = _sums(influence - influence.mean(axis=1, keepdims=True), sizes)
    error = np.sqrt(len(sizes) / (len(sizes) - len(basis) - 1) * (sums**2).sum(axis=1)) / len(score)
    with np.errstate(divide="ignore", invalid="ignore"):
        center, half = np.arctanh(rho), NORMAL_QUANTILE * error / (1 - rho**2)
    return rho, np.tanh(center - half), np.tanh(center + half), p


def adjusted(p: np.ndarray) -> np.ndarray:
    """Return p-values of one family adjusted for the false discovery rate; NaN is of no family.

    The i-th smallest of m becomes min over j ≥ i of m p_j / j, at most 1 (Benjamini and Hochberg 1995).
    """
    order = np.argsort(p)[: np.isfinite(p).sum()]
    steps = p[order] * len(order) / np.arange(1, len(order) + 1)
    found = np.full(len(p), np.nan)
    found[order] = np.minimum(np.minimum.accumulate(steps[::-1])[::-1], 1)
    return found


def _names(score: str) -> list[str]:
    """Return the names of what there is of a score, in the order in which it is computed."""
    kinds = {"spearman": score, "partial": f"partial_{score}"}
    return [
        name
        for kind, of in kinds.items()
        for name in (f"{kind}_{score}", f"{kind}_{score}_low", f"{kind}_{score}_high", f"p_{of}")
    ]


def _patterns(is_there: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the numbers of the rows that have the same contexts, and which contexts these are."""
    packed, which = np.unique(np.packbits(is_there, axis=1), axis=0, return_inverse=True)
    rows = [np.flatnonzero(which.ravel() == number) for number in range(len(packed))]
    return [(of_pattern, is_there[of_pattern[0]]) for of_pattern in rows]


def _sizes(documents: np.ndarray) -> np.ndarray:
    """Return how many contexts each document has."""
    starts = np.flatnonzero(np.diff(documents, prepend=documents[:1] - 1))
    return np.diff(starts, append=len(documents))


def _sums(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the sum of each document in each row."""
    return np.add.reduceat(values, np.cumsum(sizes) - sizes, axis=1)


@lru_cache(maxsize=8)
def _counts(n_documents: int) -> np.ndarray:
    """Return how often each document is in each draw of as many documents, with replacement."""
    random = np.random.default_rng((SEED, n_documents))
    return random.multinomial(n_documents, np.full(n_documents, 1 / n_documents), N_DRAWS).astype(np.float64)


def _are_many(sizes: tuple[int, ...], sources: tuple[int, ...]) -> bool:
    """Return whether documents can be exchanged in so many ways that a p-value says something."""
    n_alike = np.unique([sizes, sources], axis=1, return_counts=True)[1]
    return math.prod(math.factorial(min(n, LEAST_PERMUTATIONS)) for n in n_alike.tolist()) >= LEAST_PERMUTATIONS


@lru_cache(maxsize=8)
def _permutations(sizes: tuple[int, ...], sources: tuple[int, ...]) -> np.ndarray:
    """Return for each permutation which context's score each context takes, of a document of its source and size."""
    random = np.random.default_rng((SEED, *sizes))
    of_document = np.array([sizes, sources])
    starts = np.cumsum(sizes) - sizes
    found = np.empty((N_PERMUTATIONS, sum(sizes)), np.int64)
    for kind in np.unique(of_document, axis=1).T:
        places = starts[(of_document == kind[:, None]).all(axis=0)][:, None] + np.arange(kind[0])
        taken = random.permuted(np.tile(np.arange(len(places)), (N_PERMUTATIONS, 1)), axis=1)
        found[:, places.ravel()] = places[taken].reshape(N_PERMUTATIONS, -1)
    return found


def _basis(given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an orthonormal basis of some rows' span, and what makes slopes on the rows of coordinates in it."""
    left, sizes, basis = np.linalg.svd(given, full_matrices=False)
    is_kept = sizes > RESOLVED * np.sqrt(given.shape[1])
    return basis[is_kept], (left[:, is_kept] / sizes[is_kept]).T


def _residuals(rows: np.ndarray, basis: np.ndarray, weights: np.ndarray) -> Residuals:
    """Return what is left of rows that have mean square 1; NaN where it is nothing."""
    coordinates = rows @ basis.T
    left = rows - coordinates @ basis
    scale = np.sqrt((left**2).mean(axis=1, keepdims=True))
    scale = np.where(scale > RESOLVED, scale, np.nan)
    return Residuals(left / scale, scale, coordinates @ weights)


def _p_values(x: np.ndarray, y: np.ndarray, rho: np.ndarray, basis: np.ndarray, permutations: np.ndarray) -> np.ndarray:
    """Return the share of permutations of residuals that correlate at least as much, this one among them."""
    permuted = y[permutations]
    left = np.maximum(len(y) - ((permuted @ basis.T) ** 2).sum(axis=1), RESOLVED**2)
    found = np.abs(x @ permuted.T) / np.sqrt(len(y) * left)
    # What a sum of other order may change in a tie of two permutations.
    is_beyond = found >= np.abs(rho)[:, None] - 1e-9
    return np.where(np.isnan(rho), np.nan, (is_beyond.sum(axis=1) + 1) / (N_PERMUTATIONS + 1))


def _ranking(values: np.ndarray) -> Ranking:
    """Return the order of each row's values, equal ones together."""
    n = values.shape[1]
    order = np.argsort(values, axis=1, kind="stable")
    is_new = np.diff(np.take_along_axis(values, order, axis=1), axis=1) != 0
    edge = np.ones((len(values), 1), bool)
    first = np.maximum.accumulate(np.where(np.hstack([edge, is_new]), np.arange(n), 0), axis=1)
    last = np.where(np.hstack([is_new, edge]), np.arange(n), n)
    return Ranking(order, first, np.minimum.accumulate(last[:, ::-1], axis=1)[:, ::-1])


def _standardized(ranking: Ranking) -> np.ndarray:
    """Return mid-ranks with mean 0 and mean square 1 in each row; NaN where all values are equal."""
    ranks = np.empty(ranking.order.shape)
    np.put_along_axis(ranks, ranking.order, (ranking.first + ranking.last) / 2, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return ranks / ranks.std(axis=1, keepdims=True)


def _of_ranks(ranking: Ranking, residuals: np.ndarray) -> np.ndarray:
    """Return what each context does to the correlation by its part in the ranks of the others.

    That is Σ_j s(x_i, x_j) e_j / sd(ranks) with s = 1 where x_j > x_i, ½ where they are equal and 0 elsewhere.
    """
    order = np.broadcast_to(ranking.order, residuals.shape)
    cumulative = np.cumsum(np.take_along_axis(residuals, order, axis=1), axis=1)
    before = np.hstack([np.zeros((len(cumulative), 1)), cumulative])
    ends = [np.broadcast_to(places, residuals.shape) for places in (ranking.first, ranking.last + 1)]
    at_most = sum(np.take_along_axis(before, places, axis=1) for places in ends) / 2
    found = np.empty(residuals.shape)
    np.put_along_axis(found, order, cumulative[:, -1:] - at_most, axis=1)
    return found / ((ranking.first + ranking.last) / 2).std(axis=1, keepdims=True)
