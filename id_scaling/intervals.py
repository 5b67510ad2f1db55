"""Uncertainty that respects documents: intervals of means, rank correlations with them, and tests of these.

Contexts of one document resemble each other, so the document, with all its contexts, is the unit that is resampled,
permuted and counted. Draws depend on how many documents there are, and permutations on how many contexts each has, not
on the order in which rows or contexts stand in a table. Rows of equal contexts are computed together.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np

LEAST_DOCUMENTS, LEAST_RESAMPLED = 5, 20
N_DRAWS, N_PERMUTATIONS, SEED = 2000, 999, 0
ROWS_A_BLOCK = 256
# What is smaller, beside ranks of variance one, is rounding.
RESOLVED = 1e-9

# The 0.975 quantiles of Student's t for LEAST_DOCUMENTS documents and up, and of the normal distribution.
T_QUANTILES = [2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139, 2.200985]
T_QUANTILES += [2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922]
NORMAL_QUANTILE = 1.959964


class Ranking(NamedTuple):
    """The order of each row's values, and of each place in it the first and the last place of an equal value."""

    order: np.ndarray
    first: np.ndarray
    last: np.ndarray


def of_rows(
    values: np.ndarray, documents: np.ndarray, scores: Mapping[str, np.ndarray], covariates: np.ndarray
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

    Returns
    -------
    dict of numpy.ndarray
        `n_documents`, `ci_low`, `ci_high`, and of each score `spearman_…`, `spearman_…_low`, `spearman_…_high`, `p_…`
        and `partial_…`.
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
            sizes = _sizes(of_part[has_score])
            if len(sizes) < LEAST_DOCUMENTS:
                continue
            given = part[:, has_score], score[is_there][has_score]
            partial = partial_correlation(*given, covariates[:, is_there][:, has_score])
            is_enough = len(sizes) >= LEAST_RESAMPLED
            results = *rank_correlation(*given, sizes), partial if is_enough else np.full(len(part), np.nan)
            for column, result in zip(_names(name), results, strict=True):
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
    values: np.ndarray, score: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return of each row Spearman's correlation with a score, its 95 % interval and its p-value.

    The interval is tanh(artanh ρ ± 1.96 s / (1 − ρ²)) with s the standard error between documents of the influence
    function of ρ (Croux and Dehon 2010), which counts that the ranks are estimated too; NaN under `LEAST_RESAMPLED`
    documents. The p-value is two-sided, (b + 1)/(m + 1) of m permutations (Phipson and Smyth 2010) that exchange the
    scores of whole documents among documents with equally many contexts: what is exchanged then has one distribution
    when score and value are independent between documents, however contexts depend on each other within one.

    Parameters
    ----------
    values, score : numpy.ndarray
        Rows × contexts, and contexts; all finite, contexts of one document side by side.
    sizes : numpy.ndarray
        How many contexts each document has.
    """
    ours, theirs = _ranking(values), _ranking(score[None])
    x, y = _standardized(ours), _standardized(theirs)
    rho = (x @ y[0]) / len(score)
    # What a sum of other order may change in a tie of two permutations.
    is_beyond = np.abs(x @ y[0][_permutations(tuple(sizes.tolist()))].T) / len(score) >= np.abs(rho)[:, None] - 1e-9
    p = np.where(np.isnan(rho), np.nan, (is_beyond.sum(axis=1) + 1) / (N_PERMUTATIONS + 1))
    if len(sizes) < LEAST_RESAMPLED:
        return rho, np.full_like(rho, np.nan), np.full_like(rho, np.nan), p
    r = rho[:, None]
    influence = x * y - r * (x**2 + y**2) / 2 + _of_ranks(ours, y - r * x) + _of_ranks(theirs, x - r * y)
    sums = _sums(influence - influence.mean(axis=1, keepdims=True), sizes)
    error = np.sqrt(len(sizes) / (len(sizes) - 1) * (sums**2).sum(axis=1)) / len(score)
    with np.errstate(divide="ignore", invalid="ignore"):
        center, half = np.arctanh(rho), NORMAL_QUANTILE * error / (1 - rho**2)
    return rho, np.tanh(center - half), np.tanh(center + half), p


def partial_correlation(values: np.ndarray, score: np.ndarray, covariates: np.ndarray) -> np.ndarray:
    """Return of each row Spearman's partial correlation with a score: that of what ranks of covariates leave of both.

    It is the correlation of the residuals of the ranks, regressed on those of the covariates; NaN where these leave
    nothing of one.

    Parameters
    ----------
    values, score, covariates : numpy.ndarray
        Rows × contexts, contexts, and covariates × contexts; all finite. A constant covariate explains nothing.
    """
    given = _standardized(_ranking(covariates))
    given = given[np.isfinite(given).all(axis=1)]
    _, sizes, directions = np.linalg.svd(given, full_matrices=False)
    basis = directions[sizes > RESOLVED * sizes.max(initial=0)]
    x, y = (_standardized(_ranking(of)) for of in (values, score[None]))
    x, y = (of - of @ basis.T @ basis for of in (x, y))
    norms = [np.where(norm > RESOLVED * np.sqrt(len(score)), norm, np.nan) for norm in map(_norms, (x, y))]
    return (x @ y[0]) / (norms[0] * norms[1])


def _norms(rows: np.ndarray) -> np.ndarray:
    """Return the norm of each row."""
    return np.sqrt((rows**2).sum(axis=1))


def adjusted(p: np.ndarray) -> np.ndarray:
    """Return p-values of one family adjusted for the false discovery rate; NaN is of no family.

    The i-th smallest of m becomes min over j ≥ i of m p_j / j, at most 1 (Benjamini and Hochberg 1995).
    """
    order = np.argsort(p)[: np.isfinite(p).sum()]
    steps = p[order] * len(order) / np.arange(1, len(order) + 1)
    found = np.full(len(p), np.nan)
    found[order] = np.minimum(np.minimum.accumulate(steps[::-1])[::-1], 1)
    return found


def _names(score: str) -> tuple[str, ...]:
    """Return the names of what there is of a score, in the order in which it is computed."""
    return f"spearman_{score}", f"spearman_{score}_low", f"spearman_{score}_high", f"p_{score}", f"partial_{score}"


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


@lru_cache(maxsize=8)
def _permutations(sizes: tuple[int, ...]) -> np.ndarray:
    """Return for each permutation which context's score each context takes."""
    random = np.random.default_rng((SEED, *sizes))
    of_document = np.array(sizes)
    starts = np.cumsum(of_document) - of_document
    found = np.empty((N_PERMUTATIONS, of_document.sum()), np.int64)
    for size in np.unique(of_document):
        places = starts[of_document == size][:, None] + np.arange(size)
        taken = random.permuted(np.tile(np.arange(len(places)), (N_PERMUTATIONS, 1)), axis=1)
        found[:, places.ravel()] = places[taken].reshape(N_PERMUTATIONS, -1)
    return found


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
