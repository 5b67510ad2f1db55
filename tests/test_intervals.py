"""Intervals, rank correlations and tests whose unit is the document, against scipy and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from id_scaling import intervals
from id_scaling.intervals import (
    LEAST_DOCUMENTS,
    LEAST_RESAMPLED,
    N_PERMUTATIONS,
    adjusted,
    mean_interval,
    of_rows,
    partial_correlation,
)
from id_scaling.intervals import rank_correlation as correlate

N_SIMULATED = 4000


def clustered(random: np.random.Generator, sizes: np.ndarray, n_rows: int, share: float = 0.5) -> np.ndarray:
    """Return rows of normal values of variance 1, of which a share is common to the contexts of a document."""
    of_document = np.repeat(random.standard_normal((n_rows, len(sizes))), sizes, axis=1)
    return share**0.5 * of_document + (1 - share) ** 0.5 * random.standard_normal(of_document.shape)


def sizes_of(random: np.random.Generator, n_documents: int) -> np.ndarray:
    """Return one to eight contexts for each document."""
    return random.integers(1, 9, n_documents)


# ---- the mean --------------------------------------------------------------------------------------------------


def test_quantiles_are_those_of_scipy() -> None:
    freedom = np.arange(LEAST_DOCUMENTS, LEAST_RESAMPLED) - 1
    quantiles = [*intervals.T_QUANTILES, intervals.NORMAL_QUANTILE]
    assert quantiles == pytest.approx([*stats.t.ppf(0.975, freedom), stats.norm.ppf(0.975)], abs=1e-6)


@pytest.mark.parametrize("n_documents", range(LEAST_DOCUMENTS, LEAST_RESAMPLED))
def test_one_context_a_document_is_the_interval_of_student(n_documents: int) -> None:
    values = np.random.default_rng(n_documents).gamma(3, size=(4, n_documents))
    expected = stats.ttest_1samp(values, 0, axis=1).confidence_interval(0.95)
    low, high = mean_interval(values, np.ones(n_documents, int))
    assert low == pytest.approx(expected.low, rel=1e-6)
    assert high == pytest.approx(expected.high, rel=1e-6)


def test_t_interval_is_of_the_mean_over_contexts_and_leaves_out_a_document_at_a_time() -> None:
    random = np.random.default_rng(0)
    sizes = np.array([1, 4, 2, 2, 7, 3])
    values = clustered(random, sizes, 1)
    documents = np.repeat(range(6), sizes)
    without = np.array([values[0, documents != left_out].mean() for left_out in range(6)])
    error = (5 / 6 * ((without - values.mean()) ** 2).sum()) ** 0.5
    (low,), (high,) = mean_interval(values, sizes)
    assert (low + high) / 2 == pytest.approx(values.mean(), rel=1e-12)
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 5) * error, rel=1e-6)


def test_bootstrap_of_one_context_a_document_is_that_of_scipy() -> None:
    """An end has a standard deviation of 0.06 standard errors for 2000 draws, and so of 0.01 in a mean over 50 rows."""
    values = np.random.default_rng(0).gamma(3, size=(50, 30))
    of_scipy = stats.bootstrap(
        (values,), np.mean, axis=1, n_resamples=5000, method="percentile", rng=np.random.default_rng(1), batch=500
    )
    found = mean_interval(values, np.ones(30, int))
    for ours, theirs in zip(found, of_scipy.confidence_interval, strict=True):
        assert abs(((ours - theirs) / of_scipy.standard_error).mean()) < 0.04


def test_bootstrap_draws_documents_with_all_their_contexts() -> None:
    random = np.random.default_rng(0)
    sizes = sizes_of(random, 25)
    values = clustered(random, sizes, 1)
    documents = np.split(values[0], np.cumsum(sizes)[:-1])
    means = []
    for counts in intervals._counts(25).astype(int):
        assert counts.sum() == 25
        means.append(np.concatenate([documents[place] for place in np.repeat(range(25), counts)]).mean())
    assert np.ravel(mean_interval(values, sizes)) == pytest.approx(np.quantile(means, (0.025, 0.975)), rel=1e-12)


def test_rows_of_several_blocks_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).standard_normal((7, 40))
    sizes = np.full(20, 2)
    at_once = mean_interval(values, sizes)
    monkeypatch.setattr(intervals, "ROWS_A_BLOCK", 3)
    assert np.allclose(mean_interval(values, sizes), at_once, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("n_documents", "least"),
    # Of 20,000 simulations 93.4, 93.7, 92.1 and 93.8 % cover. Half a point below, for the sizes that are drawn here,
    # and three standard deviations of a share of 4000: 1.2 points.
    [(5, 0.917), (10, 0.920), (20, 0.904), (50, 0.921)],
)
def test_intervals_cover_the_mean_of_unequal_documents_whose_contexts_are_alike(n_documents: int, least: float) -> None:
    random = np.random.default_rng(n_documents)
    n_covered = 0
    for _ in range(N_SIMULATED // 100):
        sizes = sizes_of(random, n_documents)
        low, high = mean_interval(clustered(random, sizes, 100), sizes)
        n_covered += ((low <= 0) & (high >= 0)).sum()
    assert least <= n_covered / N_SIMULATED <= 0.965


def test_interval_that_takes_contexts_for_independent_would_be_seen() -> None:
    """The meta-test of coverage: as many documents as contexts."""
    random = np.random.default_rng(0)
    sizes = np.full(10, 8)
    values = clustered(random, sizes, 1000)
    low, high = mean_interval(values, np.ones(80, int))
    assert ((low <= 0) & (high >= 0)).mean() < 0.75


# ---- rank correlation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_values", [4, 1000])
def test_correlation_is_that_of_scipy(n_values: int) -> None:
    random = np.random.default_rng(0)
    values, score = random.integers(n_values, size=(5, 48)) * 1.0, random.integers(n_values, size=48) * 1.0
    expected = [stats.spearmanr(row, score).statistic for row in values]
    assert correlate(values, score, np.full(12, 4))[0] == pytest.approx(expected, rel=1e-12)


def test_equal_values_have_no_correlation() -> None:
    values = np.stack([np.ones(20), np.arange(20.0)])
    for result in correlate(values, np.arange(20.0) ** 2, np.ones(20, int)):
        assert np.isnan(result[0])
    assert all(np.isnan(result).all() for result in correlate(values, np.ones(20), np.ones(20, int)))


def weighted(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """Return Spearman's correlation of a distribution with some weights, from its definition."""
    ranks = []
    for values in (x, y):
        below, equal = values[None] < values[:, None], values[None] == values[:, None]
        rank = ((below + equal / 2) * weights).sum(axis=1)
        ranks.append(rank - (rank * weights).sum())
    x, y = ranks
    return (x * y * weights).sum() / ((x**2 * weights).sum() * (y**2 * weights).sum()) ** 0.5


@pytest.mark.parametrize("n_values", [6, 1000])
def test_interval_of_a_correlation_is_by_its_derivative_to_the_weight_of_each_context(n_values: int) -> None:
    random = np.random.default_rng(0)
    sizes = random.integers(1, 4, LEAST_RESAMPLED)
    n = sizes.sum()
    x = random.integers(n_values, size=n) * 1.0
    y = x + random.integers(n_values, size=n)
    plain, step = np.full(n, 1 / n), 1e-5
    slopes = [
        (weighted(x, y, plain + move) - weighted(x, y, plain - move)) / (2 * step)
        for move in step * (np.eye(n) - plain)
    ]
    sums = np.array([part.sum() for part in np.split(np.array(slopes), np.cumsum(sizes)[:-1])])
    error = (len(sizes) / (len(sizes) - 1) * (sums**2).sum()) ** 0.5 / n
    rho = stats.spearmanr(x, y).statistic
    half = 1.959964 * error / (1 - rho**2)
    _, (low,), (high,), _ = correlate(x[None], y, sizes)
    assert (low, high) == pytest.approx((np.tanh(np.arctanh(rho) - half), np.tanh(np.arctanh(rho) + half)), rel=1e-6)


def test_interval_of_a_correlation_needs_enough_documents() -> None:
    values, score = np.random.default_rng(0).standard_normal((2, 1, LEAST_RESAMPLED))
    sizes = np.ones(LEAST_RESAMPLED, int)
    _, low, high, _ = correlate(values, score[0], sizes)
    assert np.isfinite([low, high]).all()
    rho, low, high, p = correlate(values[:, 1:], score[0, 1:], sizes[1:])
    assert np.isnan([low, high]).all()
    assert np.isfinite([rho, p]).all()


def test_intervals_of_correlations_cover() -> None:
    """Spearman's ρ of a normal pair of correlation r is 6/π arcsin(r/2); three standard deviations are 2 points."""
    random = np.random.default_rng(0)
    r, n_covered = 0.6, 0
    for number in range(1000):
        if number % 100 == 0:
            sizes = random.integers(1, 5, 50)
        x, rest = clustered(random, sizes, 2)
        _, (low,), (high,), _ = correlate(x[None], r * x + (1 - r**2) ** 0.5 * rest, sizes)
        n_covered += low <= 6 / np.pi * np.arcsin(r / 2) <= high
    assert 0.92 <= n_covered / 1000 <= 0.97


# ---- permutations ----------------------------------------------------------------------------------------------


def test_documents_are_exchanged_whole_among_those_of_as_many_contexts() -> None:
    sizes = (2, 3, 2, 3, 1, 2)
    documents = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    found = intervals._permutations(sizes)
    assert (np.sort(found, axis=1) == np.arange(sum(sizes))).all()
    taken = {tuple(part) for row in found for part in np.split(row, np.cumsum(sizes)[:-1])}
    assert taken == {tuple(document) for document in documents}
    # 3! · 2! orders, each as likely.
    orders, counts = np.unique(found, axis=0, return_counts=True)
    assert len(orders) == 12
    assert stats.chisquare(counts).pvalue > 1e-3


def test_p_value_of_one_context_a_document_is_that_of_all_permutations() -> None:
    """The exact p-value of 6! orders; three standard deviations of a share of 999 are under 0.05."""
    values = np.random.default_rng(0).standard_normal((6, 6))
    score = np.random.default_rng(1).standard_normal(6)
    found = correlate(values, score, np.ones(6, int))[3]
    for row, p in zip(values, found, strict=True):
        exact = stats.permutation_test(
            (row,), lambda x: stats.spearmanr(x, score).statistic, permutation_type="pairings", n_resamples=np.inf
        )
        assert p == pytest.approx(exact.pvalue, abs=0.05)


def test_p_value_counts_the_order_that_was_seen() -> None:
    score = np.arange(30.0)
    rho, _, _, (p, of_opposite) = correlate(np.stack([score, -score]), score, np.ones(30, int))
    assert rho == pytest.approx([1, -1])
    assert p == of_opposite == 1 / (N_PERMUTATIONS + 1)
    # Documents of which no two have equally many contexts cannot be exchanged.
    assert correlate(np.arange(15.0)[None], np.arange(15.0), np.array([1, 2, 3, 4, 5]))[3] == [1]


@pytest.mark.parametrize("n_documents", [8, 30])
def test_independent_documents_are_rejected_as_often_as_is_said(n_documents: int) -> None:
    """At 5 %, with three standard deviations of a share of 2000; a test of contexts rejects three times as often."""
    random = np.random.default_rng(0)
    sizes = np.sort(np.resize([4, 8], n_documents))
    found, naive = [], []
    for _ in range(20):
        values, (score,) = clustered(random, sizes, 100, 0.8), clustered(random, sizes, 1, 0.8)
        found.append(correlate(values, score, sizes)[3])
        naive.append([stats.spearmanr(row, score).pvalue for row in values[:20]])
    # The rows of one score share it: the share of rejections varies more than that of 2000 scores, for which the bound
    # is 6.5 %.
    assert (np.concatenate(found) <= 0.05).mean() < 0.07
    assert (np.concatenate(naive) <= 0.05).mean() > 0.15


# ---- families --------------------------------------------------------------------------------------------------


def test_adjusted_p_values_are_those_of_scipy() -> None:
    p = np.random.default_rng(0).uniform(size=200) ** 3
    p[:20] = p[20:40]
    assert adjusted(p) == pytest.approx(stats.false_discovery_control(p), rel=1e-12)
    with_gaps = np.insert(p, [0, 50, 200], np.nan)
    assert adjusted(with_gaps)[np.isfinite(with_gaps)] == pytest.approx(adjusted(p), rel=1e-12)
    assert np.isnan(adjusted(with_gaps)[np.isnan(with_gaps)]).all()
    assert np.isnan(adjusted(np.full(3, np.nan))).all()


# ---- rows ------------------------------------------------------------------------------------------------------


Table = tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], np.ndarray]


def table(n_rows: int = 6, n_documents: int = 30) -> Table:
    """Return a table some of whose estimates are not there, and of its contexts documents, scores and covariates."""
    random = np.random.default_rng(0)
    sizes = random.integers(1, 4, n_documents)
    values, scores = clustered(random, sizes, n_rows), clustered(random, sizes, 2)
    values[1, ::5] = values[3, ::5] = values[4, 1::2] = np.nan
    scores[0, :3] = np.nan
    covariates = clustered(random, sizes, 2) + scores[1]
    scores = dict(zip(("loss", "entropy"), scores, strict=True))
    return values, np.repeat(range(n_documents), sizes) * 7, scores, covariates


def partial(value: np.ndarray, score: np.ndarray, *covariates: np.ndarray) -> float:
    """Return the partial rank correlation of two, from the inverse of the matrix of scipy's rank correlations."""
    inverse = np.linalg.inv(stats.spearmanr(np.column_stack([value, score, *covariates])).statistic)
    return -inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1])


def test_what_a_covariate_makes_of_both_is_no_partial_correlation() -> None:
    random = np.random.default_rng(0)
    covariate = random.standard_normal(4000)
    value, score = covariate + 0.5 * random.standard_normal((2, 4000))
    assert stats.spearmanr(value, score).statistic > 0.7
    # Of ranks, so nearly: three standard errors of 1 / sqrt(4000).
    assert abs(partial_correlation(value[None], score, covariate[None])[0]) < 3 / 4000**0.5 + 0.03


def test_a_constant_covariate_explains_nothing_and_one_twice_no_more_than_once() -> None:
    random = np.random.default_rng(1)
    value, score, covariate = random.standard_normal((3, 50)) + random.standard_normal(50)
    expected = partial(value, score, covariate)
    for given in ([covariate], [covariate, np.ones(50)], [covariate, 3 * covariate]):
        assert partial_correlation(value[None], score, np.array(given)) == pytest.approx([expected], rel=1e-9)
    plain = stats.spearmanr(value, score).statistic
    assert partial_correlation(value[None], score, np.ones((1, 50))) == pytest.approx([plain], rel=1e-9)


def test_a_value_that_is_a_covariate_has_no_partial_correlation() -> None:
    value, score = np.random.default_rng(2).standard_normal((2, 30))
    assert np.isnan(partial_correlation(value[None], score, np.exp(value)[None]))


def test_row_is_as_if_alone_with_the_contexts_it_has() -> None:
    values, documents, scores, covariates = table()
    found = of_rows(values, documents, scores, covariates)
    for number, row in enumerate(values):
        is_there = np.isfinite(row)
        of_row = {name: score[is_there] for name, score in scores.items()}
        alone = of_rows(row[is_there][None], documents[is_there], of_row, covariates[:, is_there])
        assert {name: column[number] for name, column in found.items()} == pytest.approx(
            {name: column[0] for name, column in alone.items()}, rel=1e-9
        )
        assert found["n_documents"][number] == len(set(documents[is_there]))
        has_loss = is_there & np.isfinite(scores["loss"])
        rho = stats.spearmanr(row[has_loss], scores["loss"][has_loss]).statistic
        assert found["spearman_loss"][number] == pytest.approx(rho, rel=1e-9)
        assert found["partial_loss"][number] == pytest.approx(
            partial(row[has_loss], scores["loss"][has_loss], *covariates[:, has_loss]), rel=1e-9
        )


def test_rows_in_another_order_have_the_same_numbers() -> None:
    values, documents, scores, covariates = table()
    found, turned = of_rows(values, documents, scores, covariates), of_rows(values[::-1], documents, scores, covariates)
    assert all(turned[name][::-1] == pytest.approx(found[name], rel=1e-9, nan_ok=True) for name in found)


@pytest.mark.parametrize("n_documents", [1, LEAST_DOCUMENTS - 1, LEAST_DOCUMENTS])
def test_too_few_documents_have_no_numbers(n_documents: int) -> None:
    values, documents, scores, covariates = table(n_documents=n_documents)
    scores = {"entropy": scores["entropy"]}
    found = of_rows(values[:1], documents, scores, covariates)
    assert found.pop("n_documents") == [n_documents]
    for name in ("ci_low", "ci_high", "spearman_entropy", "p_entropy"):
        assert np.isnan(found[name][0]) == (n_documents < LEAST_DOCUMENTS)
