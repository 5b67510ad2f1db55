"""Uncertainty with documents as the unit: intervals of means, rank correlations, partial correlations, and their tests.

Contexts of one document resemble each other. So resampling, permutation, and counts treat a document, with all its
contexts, as one unit. Draws depend only on the number of documents, and permutations on the number of contexts of each
document; neither depends on the order of rows or contexts in a table. Rows of the same contexts are computed together.
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
# Elements of one array in memory: 4 MB; about twenty such arrays exist at once.
ELEMENTS = 2**19
# Ranks have variance one; a smaller residual is rounding.
RESOLVED = 1e-9

# Probability below the upper end of a 95 % interval. Quantiles come from scipy.special, which is imported only where an
# interval is computed, because some modules need only the constants above.
UPPER_END = 0.975


class Residuals(NamedTuple):
    """Residuals of each row, scaled to mean square 1; the scale before, and the slope on each covariate."""

    values: np.ndarray
    scale: np.ndarray
    slopes: np.ndarray


class RowStatistics(NamedTuple):
    """Statistics of rows by name, and for each test the largest statistic of each family in each permutation."""

    columns: dict[str, np.ndarray]
    maxima: dict[str, list[np.ndarray]]


class Correlations(NamedTuple):
    """Rank correlations of rows with a score, their intervals, and the input of their test."""

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
    """Return the statistics of each row of a table of contexts; NaN if there are too few documents.

    Parameters
    ----------
    values : numpy.ndarray
        Rows × contexts; NaN if a context does not count. Contexts of one document are next to each other.
    documents : numpy.ndarray
        The document of each context.
    scores : mapping of numpy.ndarray
        Scores of each context, by name; NaN if missing.
    covariates : numpy.ndarray
        Covariates of partial correlations: covariates × contexts, all finite.
    sources : numpy.ndarray
        The source of each context, which partial correlations hold fixed too.
    family_sizes, families : numpy.ndarray, optional
        For each row: the maximal number of rows tested together, and the number of its family, from 0. By default, all
        rows are one family.

    Returns
    -------
    RowStatistics
        `n_documents`, `ci_low`, `ci_high`, and for each score `spearman_…`, `spearman_…_low`, `spearman_…_high`, `p_…`,
        `p_…_floor`, `n_…` (contexts with value and score), and the same for `partial_…`. Partial correlations are NaN
        with fewer than `LEAST_RESAMPLED` documents, plus one for each source after the first.
    """
    family_sizes = np.full(len(values), len(values)) if family_sizes is None else family_sizes
    families = np.zeros(len(values), np.int64) if families is None else families
    names = ["ci_low", "ci_high", *chain.from_iterable(map(_names, scores))]
    statistics = RowStatistics({name: np.full(len(values), np.nan) for name in names}, {})
    statistics.columns["n_documents"] = np.zeros(len(values), np.int64)
    for rows, is_present in _patterns(np.isfinite(values)):
        part, part_documents = values[np.ix_(rows, is_present)], documents[is_present]
        sizes = _sizes(part_documents)
        statistics.columns["n_documents"][rows] = len(sizes)
        if len(sizes) < LEAST_DOCUMENTS:
            continue
        statistics.columns["ci_low"][rows], statistics.columns["ci_high"][rows] = mean_interval(part, sizes)
        part_scores = {name: score[is_present] for name, score in scores.items()}
        family = family_sizes[rows], families[rows]
        _correlate(
            statistics, rows, part, part_documents, part_scores, covariates[:, is_present], sources[is_present], family
        )
    return statistics


def _correlate(
    statistics: RowStatistics,
    rows: np.ndarray,
    values: np.ndarray,
    documents: np.ndarray,
    scores: Mapping[str, np.ndarray],
    covariates: np.ndarray,
    sources: np.ndarray,
    family: tuple[np.ndarray, np.ndarray],
) -> None:
    """Fill in the correlations of rows with the same contexts; tests of the same documents share permutations."""
    pairs_by_kinds: dict[tuple, list[tuple[str, Pair]]] = {}
    for name, score in scores.items():
        has_score = np.isfinite(score)
        scored, sizes = (values[:, has_score], score[has_score]), _sizes(documents[has_score])
        if len(sizes) < LEAST_DOCUMENTS:
            continue
        context_sources, context_covariates = sources[has_score], covariates[:, has_score]
        options: dict[str, tuple[str, np.ndarray | None, np.ndarray | None]] = {f"spearman_{name}": (name, None, None)}
        if len(sizes) - len(np.unique(context_sources)) + 1 >= LEAST_RESAMPLED:
            options[f"partial_{name}"] = (f"partial_{name}", context_covariates, context_sources)
        for statistic, (test, *adjustment) in options.items():
            correlations = correlations_of(*scored, sizes, *adjustment)
            for end, column in zip(("", "_low", "_high"), correlations[:3], strict=True):
                statistics.columns[f"{statistic}{end}"][rows] = column
            statistics.columns[f"n_{test}"][rows] = len(scored[1])
            pairs_by_kinds.setdefault(_kinds(sizes, adjustment[1]), []).append((test, correlations.pair))
    for kinds, named in pairs_by_kinds.items():
        results = tested([pair for _, pair in named], kinds, *family)
        for (test, _), result in zip(named, results, strict=True):
            statistics.columns[f"p_{test}"][rows], statistics.columns[f"p_{test}_floor"][rows] = result.p, result.floor
            statistics.maxima.setdefault(test, []).append(result.maxima)


def mean_interval(values: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % interval of the mean over contexts of each row.

    With `LEAST_RESAMPLED` documents or more, it is the percentile interval of `N_DRAWS` draws of documents with
    replacement, each with all its contexts (Davison and Hinkley 1997, §3.8). With fewer, it is mean ± t √v with G − 1
    degrees of freedom for G documents and v = (G−1)/G Σ(mean without document g − mean)², the jackknife (Efron and
    Stein 1981). With one context per document, this is Student's interval. For documents of unequal size, its coverage
    is closer to 95 % than that of the linearized variance.

    Parameters
    ----------
    values : numpy.ndarray
        Rows × contexts, all finite; contexts of one document are next to each other.
    sizes : numpy.ndarray
        Number of contexts of each document, for at least `LEAST_DOCUMENTS` documents.

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
    """Return Spearman's correlation of each row with a score, its interval, and its p-value, each row a family of one.

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
    """Return Spearman's correlation of each row with a score, its 95 % interval, and the input of its test.

    With covariates or sources, it is the partial correlation: that of the residuals of both ranks, regressed on the
    ranks of the covariates and one constant per source. It is NaN if a residual vanishes.

    The interval is tanh(artanh ρ ± 1.96 s / (1 − ρ²)). Here s is the standard error, between documents, of the
    influence function of ρ (Croux and Dehon 2010), which includes that all ranks are estimated. The interval is NaN
    with fewer than `LEAST_RESAMPLED` documents. Each covariate and source costs s² one degree of freedom.

    A test exchanges the scores of whole documents among documents with equally many contexts. If score and value are
    independent between documents, all exchanges are equally likely, whatever the dependence within a document. With
    covariates or sources, the test exchanges residuals of scores among documents of one source and takes residuals
    again (Freedman and Lane 1983).

    Parameters
    ----------
    values, score : numpy.ndarray
        Rows × contexts, and contexts; all finite; contexts of one document are next to each other.
    sizes : numpy.ndarray
        Number of contexts of each document.
    covariates : numpy.ndarray, optional
        Covariates × contexts, all finite. A constant covariate is ignored.
    sources : numpy.ndarray, optional
        The source of each context, the same for all contexts of a document; far fewer sources than documents.

    Examples
    --------
    >>> score = np.arange(20.0)
    >>> correlations_of(np.array([score**2, -score]), score, sizes=np.ones(20, int)).rho.round(6).tolist()
    [1.0, -1.0]
    """
    sources = np.zeros(len(score)) if sources is None else sources
    covariate_rankings = [ranking_of(row[None]) for row in ([] if covariates is None else covariates) if np.ptp(row)]
    is_source = sources == np.unique(sources)[:, None]
    design = np.vstack([*map(standardized, covariate_rankings), is_source - is_source.mean(axis=1, keepdims=True)])
    basis, weights = _basis(design)
    score_ranking = ranking_of(score[None])
    score_residuals = _residuals(standardized(score_ranking), basis, weights)
    rho, low, high = np.full((3, len(values)), np.nan)
    pair = Pair(np.empty(values.shape), score_residuals.values[0], basis, rho)
    for rows in np.array_split(np.arange(len(values)), -(-values.size // ELEMENTS)):
        value_rankings = ranking_of(values[rows])
        value_residuals = _residuals(standardized(value_rankings), basis, weights)
        rho[rows] = (value_residuals.values @ score_residuals.values[0]) / len(score)
        pair.values[rows] = value_residuals.values
        if len(sizes) >= LEAST_RESAMPLED:
            influence = _influence(
                rho[rows, None], (value_rankings, value_residuals), (score_ranking, score_residuals), covariate_rankings
            )
            low[rows], high[rows] = _interval(rho[rows], influence, sizes, len(basis))
    return Correlations(rho, low, high, pair)


def _influence(
    r: np.ndarray, x: tuple[Ranking, Residuals], y: tuple[Ranking, Residuals], covariate_rankings: list[Ranking]
) -> np.ndarray:
    """Return the influence function of the correlation of each row at each context."""
    (x_ranking, x_residuals), (y_ranking, y_residuals) = x, y
    x_weights = (y_residuals.values - r * x_residuals.values) / x_residuals.scale
    y_weights = (x_residuals.values - r * y_residuals.values) / y_residuals.scale
    influence = x_residuals.values * y_residuals.values - r * (x_residuals.values**2 + y_residuals.values**2) / 2
    influence += influence_of_ranks(x_ranking, x_weights) + influence_of_ranks(y_ranking, y_weights)
    for ranking, x_slopes, y_slopes in zip(
        covariate_rankings, x_residuals.slopes.T, y_residuals.slopes.T, strict=False
    ):
        influence -= influence_of_ranks(ranking, x_slopes[:, None] * x_weights + y_slopes * y_weights)
    return influence


def _interval(rho: np.ndarray, influence: np.ndarray, sizes: np.ndarray, n_fixed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % intervals of correlations from their influence functions."""
    from scipy.special import ndtri

    sums = _sums(influence - influence.mean(axis=1, keepdims=True), sizes)
    error = np.sqrt(len(sizes) / (len(sizes) - n_fixed - 1) * (sums**2).sum(axis=1)) / influence.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        center, half = np.arctanh(rho), ndtri(UPPER_END) * error / (1 - rho**2)
    return np.tanh(center - half), np.tanh(center + half)


def adjusted(p: np.ndarray) -> np.ndarray:
    """Return p-values of one family adjusted for the false discovery rate; NaN values do not count.

    The i-th smallest of m becomes min over j ≥ i of m p_j / j, at most 1 (Benjamini and Hochberg 1995).

    Examples
    --------
    >>> adjusted(np.array([0.01, 0.04, 0.03, np.nan])).round(6).tolist()
    [0.03, 0.04, 0.04, nan]
    """
    order = np.argsort(p)[: np.isfinite(p).sum()]
    scaled_p = p[order] * len(order) / np.arange(1, len(order) + 1)
    q = np.full(len(p), np.nan)
    q[order] = np.minimum(np.minimum.accumulate(scaled_p[::-1])[::-1], 1)
    return q


def _names(score: str) -> list[str]:
    """Return the names of the statistics of a score."""
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
    """Return the size of each document, and the number of its source."""
    if sources is None:
        return tuple(sizes.tolist()), (0,) * len(sizes)
    source_numbers = np.unique(sources, return_inverse=True)[1].ravel()
    return tuple(sizes.tolist()), tuple(source_numbers[np.cumsum(sizes) - 1].tolist())


def _patterns(is_present: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the row numbers of each set of rows with the same contexts, and a mask of these contexts."""
    packed, pattern = np.unique(np.packbits(is_present, axis=1), axis=0, return_inverse=True)
    rows = [np.flatnonzero(pattern.ravel() == number) for number in range(len(packed))]
    return [(pattern_rows, is_present[pattern_rows[0]]) for pattern_rows in rows]


def _sizes(documents: np.ndarray) -> np.ndarray:
    """Return the number of contexts of each document."""
    starts = np.flatnonzero(np.diff(documents, prepend=documents[:1] - 1))
    return np.diff(starts, append=len(documents))


def _sums(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the sum over each document in each row."""
    return np.add.reduceat(values, np.cumsum(sizes) - sizes, axis=1)


def _counts(n_documents: int) -> Iterator[np.ndarray]:
    """Yield, in batches of draws, how often a draw of `n_documents` with replacement contains each document."""
    random, at_once = np.random.default_rng((SEED, n_documents)), max(1, ELEMENTS // n_documents)
    for start in range(0, N_DRAWS, at_once):
        n_draws = min(at_once, N_DRAWS - start)
        yield random.multinomial(n_documents, np.full(n_documents, 1 / n_documents), n_draws).astype(np.float64)


def _basis(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an orthonormal basis of the span of rows, and the matrix from coordinates in it to slopes on the rows."""
    left_vectors, singular_values, basis = np.linalg.svd(rows, full_matrices=False)
    is_kept = singular_values > RESOLVED * np.sqrt(rows.shape[1])
    return basis[is_kept], (left_vectors[:, is_kept] / singular_values[is_kept]).T


def _residuals(rows: np.ndarray, basis: np.ndarray, weights: np.ndarray) -> Residuals:
    """Return the residuals of rows with mean square 1; NaN if they vanish."""
    coordinates = rows @ basis.T
    residuals = rows - coordinates @ basis
    scale = np.sqrt((residuals**2).mean(axis=1, keepdims=True))
    scale = np.where(scale > RESOLVED, scale, np.nan)
    return Residuals(residuals / scale, scale, coordinates @ weights)
