"""Uncertainty that respects documents: intervals of means, rank correlations, partial ones too, and tests of these.

Contexts of one document resemble each other, so the document, with all its contexts, is the unit that is resampled,
permuted and counted. Draws depend on how many documents there are, and permutations on how many contexts each has, not
on the order in which rows or contexts stand in a table. Rows of equal contexts are computed together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import NamedTuple

import numpy as np

from id_scaling.results.permutations import Pair, tested
from id_scaling.results.ranks import Ranking, influence_of_ranks, ranking_of, standardized

LEAST_DOCUMENTS, LEAST_RESAMPLED = 5, 20
N_DRAWS, SEED = 2000, 0
# Elements of arrays that are in memory at once: 4 MB, of which some twenty are needed.
ELEMENTS = 2**19
# What is smaller, beside ranks of variance one, is rounding.
RESOLVED = 1e-9

# Of a distribution, what is below the upper end of a 95 % interval. Its quantiles come from scipy.special, which is
# imported where an interval is computed: the constants above are read where none is.
UPPER_END = 0.975


class Residuals(NamedTuple):
    """What covariates leave of each row, with mean square 1; what that was, and the slopes on each, before."""

    values: np.ndarray
    scale: np.ndarray
    slopes: np.ndarray


class RowStatistics(NamedTuple):
    """Statistics of rows by name, and of each test the largest statistic of each family in each permutation."""

    columns: dict[str, np.ndarray]
    maxima: dict[str, list[np.ndarray]]


class Correlations(NamedTuple):
    """Rank correlations of rows with a score, and their intervals; what a test of them takes."""

    rho: np.ndarray
    low: np.ndarray
    high: np.ndarray
    pair: Pair


def of_rows(
    values: np.ndarray,
    documents: np.ndarray,
    scores: Mapping[str, np.ndarray],
    covariates: np.ndarray,
    sources: np.ndarray,
    family_sizes: np.ndarray | None = None,
    families: np.ndarray | None = None,
) -> RowStatistics:
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
    family_sizes, families : numpy.ndarray, optional
        Of each row: how many rows are tested together at most, and the number of its family, from 0; default: all rows
        are one family.

    Returns
    -------
    RowStatistics
        `n_documents`, `ci_low`, `ci_high`, and of each score `spearman_…`, `spearman_…_low`, `spearman_…_high`, `p_…`,
        `p_…_floor`, `n_…` (contexts that have both), and the same of `partial_…`. The partial ones are NaN under
        `LEAST_RESAMPLED` documents, and one more for each source but the first.
    """
    family_sizes = np.full(len(values), len(values)) if family_sizes is None else family_sizes
    families = np.zeros(len(values), np.int64) if families is None else families
    names = ["ci_low", "ci_high", *chain.from_iterable(map(_names, scores))]
    found = RowStatistics({name: np.full(len(values), np.nan) for name in names}, {})
    found.columns["n_documents"] = np.zeros(len(values), np.int64)
    for rows, is_there in _patterns(np.isfinite(values)):
        part, of_part = values[np.ix_(rows, is_there)], documents[is_there]
        sizes = _sizes(of_part)
        found.columns["n_documents"][rows] = len(sizes)
        if len(sizes) < LEAST_DOCUMENTS:
            continue
        found.columns["ci_low"][rows], found.columns["ci_high"][rows] = mean_interval(part, sizes)
        given = {name: score[is_there] for name, score in scores.items()}
        family = family_sizes[rows], families[rows]
        _correlate(found, rows, part, of_part, given, covariates[:, is_there], sources[is_there], family)
    return found


def _correlate(
    found: RowStatistics,
    rows: np.ndarray,
    values: np.ndarray,
    documents: np.ndarray,
    scores: Mapping[str, np.ndarray],
    covariates: np.ndarray,
    sources: np.ndarray,
    family: tuple[np.ndarray, np.ndarray],
) -> None:
    """Fill in the correlations of rows that have the same contexts; tests of one kind share their permutations."""
    of_kinds: dict[tuple, list[tuple[str, Pair]]] = {}
    for name, score in scores.items():
        has_score = np.isfinite(score)
        given, sizes = (values[:, has_score], score[has_score]), _sizes(documents[has_score])
        if len(sizes) < LEAST_DOCUMENTS:
            continue
        of_context, fixed = sources[has_score], covariates[:, has_score]
        options: dict[str, tuple[str, np.ndarray | None, np.ndarray | None]] = {f"spearman_{name}": (name, None, None)}
        if len(sizes) - len(np.unique(of_context)) + 1 >= LEAST_RESAMPLED:
            options[f"partial_{name}"] = (f"partial_{name}", fixed, of_context)
        for statistic, (test, *held) in options.items():
            correlations = correlations_of(*given, sizes, *held)
            for end, column in zip(("", "_low", "_high"), correlations[:3], strict=True):
                found.columns[f"{statistic}{end}"][rows] = column
            found.columns[f"n_{test}"][rows] = len(given[1])
            of_kinds.setdefault(_kinds(sizes, held[1]), []).append((test, correlations.pair))
    for kinds, named in of_kinds.items():
        results = tested([pair for _, pair in named], kinds, *family)
        for (test, _), result in zip(named, results, strict=True):
            found.columns[f"p_{test}"][rows], found.columns[f"p_{test}_floor"][rows] = result.p, result.floor
            found.maxima.setdefault(test, []).append(result.maxima)


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

    Examples
    --------
    >>> values = np.array([[3.0, 4.0, 5.0, 6.0, 7.0]])
    >>> low, high = mean_interval(values, sizes=np.ones(5, int))
    >>> low.round(3).tolist(), high.round(3).tolist()
    ([3.037], [6.963])
    """
    from scipy.special import stdtrit

    sums = _sums(values, sizes)
    if len(sizes) >= LEAST_RESAMPLED:
        means = np.concatenate([sums @ counts.T / (counts @ sizes) for counts in _counts(len(sizes))], axis=1)
        low, high = np.quantile(means, (0.025, 0.975), axis=1, overwrite_input=True)
        return low, high
    total, n = sums.sum(axis=1, keepdims=True), len(sizes)
    means = total[:, 0] / sizes.sum()
    without = (total - sums) / (sizes.sum() - sizes)
    half = stdtrit(n - 1, UPPER_END) * np.sqrt((n - 1) / n * ((without - means[:, None]) ** 2).sum(axis=1))
    return means - half, means + half


def rank_correlation(
    values: np.ndarray,
    score: np.ndarray,
    sizes: np.ndarray,
    covariates: np.ndarray | None = None,
    sources: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return of each row, as if there were no other, Spearman's correlation with a score, its interval and p-value.

    See `correlations_of` and `id_scaling.results.permutations.tested`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> loss = rng.normal(size=40)
    >>> values = (loss + rng.normal(size=40))[None]
    >>> rho, low, high, p = rank_correlation(values, loss, sizes=np.ones(40, int))
    >>> rho.round(3).tolist(), low.round(3).tolist(), high.round(3).tolist(), p.round(4).tolist()
    ([0.362], [0.032], [0.621], [0.0235])
    """
    rho, low, high, pair = correlations_of(values, score, sizes, covariates, sources)
    n_rows = len(values)
    (result,) = tested([pair], _kinds(sizes, sources), np.ones(n_rows, np.int64), np.zeros(n_rows, np.int64))
    return rho, low, high, result.p


def correlations_of(
    values: np.ndarray,
    score: np.ndarray,
    sizes: np.ndarray,
    covariates: np.ndarray | None = None,
    sources: np.ndarray | None = None,
) -> Correlations:
    """Return of each row Spearman's correlation with a score, its 95 % interval, and what a test of it takes.

    Given covariates or sources it is the partial one: of the residuals of both ranks in their regression on the ranks
    of the covariates and a constant of each source; NaN where these leave nothing of one.

    The interval is tanh(artanh ρ ± 1.96 s / (1 − ρ²)) with s the standard error between documents of the influence
    function of ρ (Croux and Dehon 2010), which counts that all ranks are estimated too; NaN under `LEAST_RESAMPLED`
    documents. Given covariates or sources s² is of as many degrees of freedom less as there are of these.

    A test exchanges the scores of whole documents among documents with equally many contexts: what is exchanged then
    has one distribution when score and value are independent between documents, however contexts depend on each other
    within one. Given covariates or sources it exchanges residuals of scores, among documents of one source, and takes
    residuals of them again (Freedman and Lane 1983).

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

    Examples
    --------
    >>> score = np.arange(20.0)
    >>> correlations_of(np.array([score**2, -score]), score, sizes=np.ones(20, int)).rho.round(6).tolist()
    [1.0, -1.0]
    """
    sources = np.zeros(len(score)) if sources is None else sources
    others = [ranking_of(row[None]) for row in ([] if covariates is None else covariates) if np.ptp(row)]
    is_source = sources == np.unique(sources)[:, None]
    design = np.vstack([*map(standardized, others), is_source - is_source.mean(axis=1, keepdims=True)])
    basis, weights = _basis(design)
    theirs = ranking_of(score[None])
    of_y = _residuals(standardized(theirs), basis, weights)
    rho, low, high = np.full((3, len(values)), np.nan)
    pair = Pair(np.empty(values.shape), of_y.values[0], basis, rho)
    for rows in np.array_split(np.arange(len(values)), -(-values.size // ELEMENTS)):
        ours = ranking_of(values[rows])
        of_x = _residuals(standardized(ours), basis, weights)
        rho[rows] = (of_x.values @ of_y.values[0]) / len(score)
        pair.values[rows] = of_x.values
        if len(sizes) >= LEAST_RESAMPLED:
            influence = _influence(rho[rows, None], (ours, of_x), (theirs, of_y), others)
            low[rows], high[rows] = _interval(rho[rows], influence, sizes, len(basis))
    return Correlations(rho, low, high, pair)


def _influence(
    r: np.ndarray, x: tuple[Ranking, Residuals], y: tuple[Ranking, Residuals], others: list[Ranking]
) -> np.ndarray:
    """Return the influence function of rows' correlations at each context."""
    (ours, of_x), (theirs, of_y) = x, y
    of_ours = (of_y.values - r * of_x.values) / of_x.scale
    of_theirs = (of_x.values - r * of_y.values) / of_y.scale
    influence = of_x.values * of_y.values - r * (of_x.values**2 + of_y.values**2) / 2
    influence += influence_of_ranks(ours, of_ours) + influence_of_ranks(theirs, of_theirs)
    for ranking, of_x_on, of_y_on in zip(others, of_x.slopes.T, of_y.slopes.T, strict=False):
        influence -= influence_of_ranks(ranking, of_x_on[:, None] * of_ours + of_y_on * of_theirs)
    return influence


def _interval(rho: np.ndarray, influence: np.ndarray, sizes: np.ndarray, n_fixed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % intervals of rows' correlations from their influence functions."""
    from scipy.special import ndtri

    sums = _sums(influence - influence.mean(axis=1, keepdims=True), sizes)
    error = np.sqrt(len(sizes) / (len(sizes) - n_fixed - 1) * (sums**2).sum(axis=1)) / influence.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        center, half = np.arctanh(rho), ndtri(UPPER_END) * error / (1 - rho**2)
    return np.tanh(center - half), np.tanh(center + half)


def adjusted(p: np.ndarray) -> np.ndarray:
    """Return p-values of one family adjusted for the false discovery rate; NaN is of no family.

    The i-th smallest of m becomes min over j ≥ i of m p_j / j, at most 1 (Benjamini and Hochberg 1995).

    Examples
    --------
    >>> adjusted(np.array([0.01, 0.04, 0.03, np.nan])).round(6).tolist()
    [0.03, 0.04, 0.04, nan]
    """
    order = np.argsort(p)[: np.isfinite(p).sum()]
    steps = p[order] * len(order) / np.arange(1, len(order) + 1)
    found = np.full(len(p), np.nan)
    found[order] = np.minimum(np.minimum.accumulate(steps[::-1])[::-1], 1)
    return found


def _names(score: str) -> list[str]:
    """Return the names of what there is of a score."""
    kinds = {"spearman": score, "partial": f"partial_{score}"}
    return [
        name
        for kind, test in kinds.items()
        for name in (
            *(f"{kind}_{score}{end}" for end in ("", "_low", "_high")),
            f"n_{test}",
            f"p_{test}",
            f"p_{test}_floor",
        )
    ]


def _kinds(sizes: np.ndarray, sources: np.ndarray | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the size and the number of the source of each document."""
    if sources is None:
        return tuple(sizes.tolist()), (0,) * len(sizes)
    of_context = np.unique(sources, return_inverse=True)[1].ravel()
    return tuple(sizes.tolist()), tuple(of_context[np.cumsum(sizes) - 1].tolist())


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


def _counts(n_documents: int) -> Iterator[np.ndarray]:
    """Yield how often each document is in each draw of as many documents with replacement, some draws at a time."""
    random, at_once = np.random.default_rng((SEED, n_documents)), max(1, ELEMENTS // n_documents)
    for start in range(0, N_DRAWS, at_once):
        n_draws = min(at_once, N_DRAWS - start)
        yield random.multinomial(n_documents, np.full(n_documents, 1 / n_documents), n_draws).astype(np.float64)


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
