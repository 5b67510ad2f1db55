"""The search for nearest neighbors: its kernels one by one, and IDs against direct float64 differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from id_scaling.estimators.apply import estimate_from_neighbors
from id_scaling.estimators.base import NEAR_COPIES, Estimator
from id_scaling.estimators.registry import get_estimator
from id_scaling.neighbors import search
from id_scaling.neighbors.error_bounds import NARROW, ProductError, Tolerance, _sensitivities, product_error, suspects
from id_scaling.neighbors.find import Neighbors, find_neighbors, stacked
from id_scaling.neighbors.kernels import numba_kernels, torch_kernels
from id_scaling.neighbors.points import prepare_points
from id_scaling.neighbors.search import find_nearest
from id_scaling.neighbors.views import View
from tests.stress import STRESSES, smooth, stressed, tight_clusters

NAMES = ("mle", "mle_harmonic", "twoNN_f10", "twoNN_f0", "twoNN_ml", "mind_ml", "gride_n2", "gride_n64")
RANKS = (*range(1, 33), 64, 128)
DISTINCT = View(0, "distinct")


def ids_of(neighbors: Neighbors) -> np.ndarray:
    """Return the IDs of one cloud by every estimator of `NAMES`, also where near copies decide them."""
    return np.array([id_of(get_estimator(name), stacked([neighbors])) for name in NAMES])


def id_of(estimator: Estimator, neighbors: Neighbors) -> float:
    """Return the ID of one cloud; where near copies decide it, the number that is withheld for them."""
    found = estimate_from_neighbors(estimator, neighbors)
    with np.errstate(all="ignore"):
        return (estimator.compute(neighbors)[0] if found.status[0] == NEAR_COPIES else found.value)[0]


def direct_ids(points: np.ndarray) -> np.ndarray:
    """Return the IDs from float64 differences of the coordinates of the different points."""
    rows = np.unique(np.asarray(points, dtype=np.float64) + 0.0, axis=0)
    squares = np.array([((rows - row) ** 2).sum(axis=1) for row in rows])
    np.fill_diagonal(squares, np.inf)
    ascending = np.sort(squares, axis=1)[:, np.array(RANKS) - 1]
    n = np.array(float(len(rows)))
    statistics = {"n_points": n, "n_used": n, "n_nonfinite": np.array(0.0)}
    return ids_of(Neighbors(RANKS, np.sqrt(ascending[:, 0]), 0.5 * np.log(ascending / ascending[:, :1]), statistics))


def worst_error(points, direct: np.ndarray) -> float:
    """Return the largest relative difference of an ID to the direct one."""
    return float(np.max(np.abs(ids_of(find_neighbors(points, [DISTINCT], RANKS)[0]) / direct - 1)))


@pytest.fixture(scope="module", params=[smooth, *STRESSES], ids=lambda stress: stress.__name__)
def hard(request: pytest.FixtureRequest) -> tuple[str, np.ndarray, np.ndarray]:
    """The name of a stress, a cloud under it in float16, and its IDs from direct differences."""
    stress = request.param
    points = (smooth(512, 576) if stress is smooth else stressed(stress, 512, 576)).astype(np.float16)
    return stress.__name__, points, direct_ids(points)


@pytest.mark.parametrize("kind", ["float16", "float32", "torch float16", "torch float32"])
def test_ids_are_those_of_direct_differences_to_a_millionth(hard, kind: str) -> None:
    _, points, direct = hard
    values = points.astype(kind.removeprefix("torch "))
    assert worst_error(torch.from_numpy(values) if "torch" in kind else values, direct) <= 1e-6  # what is promised


def test_ids_from_float64_are_those_of_direct_differences_to_a_billionth(hard) -> None:
    _, points, direct = hard
    assert worst_error(points.astype(np.float64), direct) <= 1e-9  # what is promised


def test_ids_would_be_off_without_the_guard(hard, monkeypatch: pytest.MonkeyPatch) -> None:
    name, points, direct = hard
    monkeypatch.setattr(search, "suspects", lambda squares, *_: np.zeros(len(squares), dtype=bool))
    monkeypatch.setattr(search, "_length_that_settles", lambda *_: 36)
    error = worst_error(points, direct)
    # A smooth cloud needs no guard, nor one off the origin or along one coordinate: centring serves.
    easy = {"smooth", "constant_coordinate", "common_mean", "massive_first_token"}
    assert (error > 1e-6) == (name not in easy)


def test_a_neighbor_that_a_product_put_outside_its_list_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    points = stressed(tight_clusters, 1024, 576).astype(np.float16)
    monkeypatch.setattr(
        search, "_length_that_settles", lambda _, __, ___, n_settled, *____: n_settled + search.SPARES[0]
    )
    monkeypatch.setattr(search, "SETTLED_BY_ROWS", 1.0)
    cloud = prepare_points(points)
    found = find_nearest(cloud, np.arange(1024), 21, np.empty(0, dtype=int))
    assert found.centred.gram.dtype == np.float32
    assert found.n_rows > 0
    wide = find_nearest(prepare_points(points.astype(np.float64)), np.arange(1024), 21, np.empty(0, dtype=int))
    np.testing.assert_allclose(found.squares[:, :21], wide.squares[:, :21], rtol=1e-6)  # float32 differences: 1e-7


@pytest.mark.parametrize("n_equal", [3, 40])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_points_stand_before_near_ones(n_equal: int, dtype: type) -> None:
    points = np.random.default_rng(0).standard_normal((200, 64)).astype(dtype)
    points[1 : n_equal + 1] = points[1]
    points[n_equal + 1] = points[1] * (1 + 2 * np.finfo(dtype).eps)  # nearer than a product can tell
    found = find_nearest(prepare_points(points), np.arange(200), 21, np.empty(0, dtype=int))
    n_twins = min(n_equal - 1, 21)
    twins = np.arange(1, n_equal + 1)
    for point in twins:
        assert np.isin(found.indices[point, :n_twins], np.setdiff1d(twins, point)).all()
    assert (found.squares[twins, :n_twins] == 0).all()
    if n_equal < 21:
        assert (found.indices[twins, n_equal - 1] == n_equal + 1).all()
        assert (found.squares[twins, n_equal - 1] > 0).all()


def test_the_guard_takes_few_points_of_a_smooth_cloud() -> None:
    cloud = prepare_points(smooth(1024, 576).astype(np.float16))
    found = find_nearest(cloud, np.arange(1024), 21, np.empty(0, dtype=int))
    assert found.centred.gram.dtype == np.float32
    assert found.n_again < 0.1 * 1024  # what is left is speed, not right or wrong: some hundredths at this width


def test_the_guard_takes_more_points_the_less_may_be_off() -> None:
    rng = np.random.default_rng(0)
    squares = np.sort(rng.uniform(1, 2, (500, 25)), axis=1)
    norms, zeros = rng.lognormal(0, 2, 500), np.zeros(500, dtype=int)
    counts = [
        np.count_nonzero(suspects(squares, norms, zeros, ProductError(1e-7, 1e-9), Tolerance(of_id, 1.0)))
        for of_id in (1e-8, 1e-7, 1e-6, 1e-5)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 400
    assert counts[-1] == 0


def test_the_guard_takes_more_points_where_all_products_err_alike() -> None:
    squares = np.sort(np.random.default_rng(0).uniform(1, 2, (500, 25)), axis=1)
    norms, zeros = np.random.default_rng(1).lognormal(0, 2, 500), np.zeros(500, dtype=int)
    counts = [
        np.count_nonzero(suspects(squares, norms, zeros, ProductError(1e-7, bias), Tolerance(1e-6, 1.0)))
        for bias in (0.0, 5e-8, 1e-7)
    ]
    assert counts == sorted(set(counts))


def test_sensitivities_are_how_much_ids_change_with_a_point() -> None:
    squares = np.sort(np.random.default_rng(0).lognormal(0, 0.5, (200, 25)), axis=1)

    def log_ids(values: np.ndarray) -> np.ndarray:
        logs = 0.5 * np.log(values)
        means = (logs[:, 19:20] - logs[:, :19]).mean(axis=1)
        return np.log([1 / means.mean(), (1 / means).mean()])

    x = 0.5 * np.log(squares[:, 1] / squares[:, 0])
    found, step = _sensitivities(squares, np.zeros(200, dtype=int), np.zeros(200, dtype=bool)), 1e-6
    for point in range(200):
        moved = squares.copy()
        moved[point, 19] *= np.exp(2 * step)  # its log-ratios to the 20th neighbor grow by `step`
        harmonic, arithmetic = np.abs(log_ids(moved) - log_ids(squares)) / step
        assert found[point] == pytest.approx(max(harmonic, arithmetic, x[point] / (x @ x)), rel=1e-4)  # of the step


def test_the_guard_takes_a_point_with_a_distance_of_noise() -> None:
    squares = np.sort(np.random.default_rng(0).uniform(1, 2, (500, 25)), axis=1)
    squares[7, 0] = -1e-9
    found = suspects(squares, np.ones(500), np.zeros(500, dtype=int), ProductError(1e-9, 0.0), NARROW)
    assert np.flatnonzero(found).tolist() == [7]


def test_the_error_of_a_product_is_seen_on_its_diagonal() -> None:
    norms = np.random.default_rng(0).uniform(1, 2, 1000)
    found = product_error((norms * (1 + 1e-5)).astype(np.float32), norms)
    assert found.spread == pytest.approx(1e-5, rel=0.01)
    assert found.bias == pytest.approx(1e-5, rel=0.01)
    assert product_error(norms, norms).spread == np.finfo(float).eps / 2  # exact sums say nothing of the others


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("case", ["tiny rows", "wide range", "high dimension", "few points"])
def test_no_digit_is_lost_where_float32_differences_would_lose_it(case: str, library: str) -> None:
    rng = np.random.default_rng(14)
    points = rng.standard_normal({"high dimension": (300, 2000), "few points": (200, 1000)}.get(case, (300, 5)))
    if case == "tiny rows":
        points[:23] *= 1e-24  # squares of their differences are below float32
    elif case == "wide range":
        points[0], points[1:] = 1e30, 1e-18 * points[1:]
    elif case == "few points":
        points = points[:140]
    narrow = points.astype(np.float32)
    found = find_neighbors(torch.from_numpy(narrow) if library == "torch" else narrow, [DISTINCT], RANKS)[0]
    # A point as far out as these has no ID by `mle`, here as there.
    np.testing.assert_allclose(ids_of(found), direct_ids(narrow), rtol=1e-6)  # what is promised


def test_bytes_in_another_order_and_wider_floats_are_float64() -> None:
    points = np.random.default_rng(0).standard_normal((200, 5)) + 1e6
    expected = find_neighbors(points, [DISTINCT], RANKS)[0]
    for dtype in (">f8", np.longdouble):
        found = find_neighbors(points.astype(dtype), [DISTINCT], RANKS)[0]
        np.testing.assert_array_equal(found.log_ratio, expected.log_ratio)


def test_a_limit_that_ties_with_all_is_a_sort() -> None:
    points = np.random.default_rng(0).standard_normal((800, 20))
    points[0] = 1e9  # beside it all keys are one, rounded to float32
    found = find_neighbors(points, [DISTINCT], RANKS)[0]
    is_mean = [name != "mle" for name in NAMES]  # of `mle` the point far out is all, and that is rounding
    np.testing.assert_allclose(ids_of(found)[is_mean], direct_ids(points)[is_mean], rtol=1e-9)  # what is promised


# ---- kernels ----


def test_every_half_is_read_exactly() -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)[:, None]
    one_group, expected = np.zeros(2**16, np.int32), halves.astype(np.float32)
    found = numba_kernels.survey(halves, np.zeros((1, 1)), one_group, np.float32, np.empty(0, int))
    is_finite = np.isfinite(expected[:, 0])
    np.testing.assert_array_equal(found.centred[is_finite], expected[is_finite])
    np.testing.assert_array_equal(np.isfinite(found.squared_norms), is_finite)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 63, 64, 65, 200])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_product_is_symmetric_and_right(n: int, dtype: type) -> None:
    rows = np.random.default_rng(n).standard_normal((n, 30)).astype(dtype)
    product = numba_kernels.gram(rows)
    np.testing.assert_array_equal(product, product.T)
    np.testing.assert_allclose(product, rows.astype(float) @ rows.T.astype(float), atol=30 * np.finfo(dtype).eps * 9)


@pytest.mark.parametrize("kernels", [numba_kernels, torch_kernels])
@pytest.mark.parametrize("n_nearest", [1, 5, 29, 64, 70])
@pytest.mark.parametrize("n", [2, 30, 64, 65, 300])
def test_the_nearest_are_those_of_a_sort(kernels, n: int, n_nearest: int) -> None:
    rng = np.random.default_rng(n)
    rows = np.round(rng.standard_normal((n, 4)), 1)  # with ties
    counts = rng.random(n) < 0.8
    counts[:2] = True
    norms = (rows**2).sum(axis=1)
    direct = np.where(counts & ~np.eye(n, dtype=bool), ((rows[:, None] - rows[None]) ** 2).sum(axis=2), np.inf)
    ascending = np.sort(direct, axis=1)[counts]
    gram = rows @ rows.T
    further = np.array([rank for rank in (n_nearest + 1, n_nearest + 3) if rank < np.count_nonzero(counts)], dtype=int)
    given = torch.from_numpy(gram) if kernels is torch_kernels else gram
    squares, indices, beyond = (values[counts] for values in kernels.nearest(given, norms, counts, n_nearest, further))
    expected = np.full((len(ascending), n_nearest), np.inf)
    expected[:, : min(n, n_nearest)] = ascending[:, :n_nearest]
    np.testing.assert_allclose(squares, expected, atol=1e-13)
    np.testing.assert_allclose(beyond, ascending[:, further - 1], atol=1e-13)
    assert ((indices == -1) == np.isinf(expected)).all()
    own = np.flatnonzero(counts)[:, None]
    is_there = indices >= 0
    found = direct[np.broadcast_to(own, indices.shape)[is_there], indices[is_there]]
    np.testing.assert_allclose(found, squares[is_there], atol=1e-13)
    assert [len(set(row[row >= 0])) for row in indices] == is_there.sum(axis=1).tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [130, 1000])
@pytest.mark.parametrize("shape", ["normal", "massive", "half equal", "on a line of integers", "many left out"])
def test_further_ranks_are_right_whatever_the_distances(shape: str, n: int, dtype: type) -> None:
    rng = np.random.default_rng(n)
    rows, counts = rng.standard_normal((n, 6)), np.ones(n, dtype=bool)
    if shape == "massive":
        rows[::50] *= 1e4
    elif shape == "half equal":
        rows[: n // 2] = rows[0]
    elif shape == "on a line of integers":
        rows = np.round(5 * rows[:, :1])
    elif shape == "many left out":
        counts[n // 5 :] = rng.random(n - n // 5) < 0.3
    rows = rows.astype(dtype)
    norms, gram = (rows.astype(np.float64) ** 2).sum(axis=1), rows @ rows.T
    keys = (norms / 2).astype(dtype) - gram  # what a row is ordered by, rounded as it is there
    keys[:, ~counts] = np.inf
    np.fill_diagonal(keys, np.inf)
    further = np.array([rank for rank in (5, 30, 64, 128, 500) if rank < np.count_nonzero(counts)])
    beyond = numba_kernels.nearest(gram, norms, counts, 4, further)[2][counts]
    expected = 2.0 * np.sort(keys, axis=1)[counts][:, further - 1].astype(np.float64) + norms[counts, None]
    np.testing.assert_allclose(beyond, expected, rtol=0, atol=1e-15 * norms.max())


@pytest.mark.parametrize("kernels", [numba_kernels, torch_kernels])
def test_the_other_kernels_equal_plain_formulas(kernels) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((90, 17)).astype(np.float32)
    counts = rng.random(90) < 0.7
    given = torch.from_numpy(rows) if kernels is torch_kernels else rows
    wide = rows.astype(np.float64)
    rows[20, 3], wide[20] = np.nan, 0
    labels = (np.arange(90) % 3).astype(np.int32)
    sums = [wide[group::3].sum(axis=0) for group in range(3)]
    means = np.array(sums) / np.array([30, 30, 29])[:, None]
    np.testing.assert_allclose(kernels.means(given, labels), means, atol=1e-6)  # any centre will do
    norms = (wide**2).sum(axis=1)
    centres, some = rng.standard_normal((3, 17)), np.array([0, 5])
    found = kernels.survey(given, centres, labels, np.float64, some)
    assert np.isnan(found.squared_norms[20])
    np.testing.assert_allclose(np.delete(found.squared_norms, 20), np.delete(norms, 20), rtol=1e-14)
    assert len(np.unique(found.keys)) == 90
    expected = np.where(np.arange(90)[:, None] == 20, 0, wide - centres[labels])
    np.testing.assert_allclose(np.asarray(found.centred), expected, atol=1e-14)
    np.testing.assert_allclose(found.centred_norms, (expected**2).sum(axis=1), rtol=1e-13)
    np.testing.assert_allclose(found.products, expected[some] @ expected.T, atol=1e-13)
    np.testing.assert_allclose(kernels.projections(found.centred, centres), expected @ centres.T, atol=1e-13)
    gram = wide @ wide.T
    product = torch.from_numpy(gram) if kernels is torch_kernels else gram
    sums, squares, products = (found[counts] for found in kernels.gram_sums(product, counts))
    part = gram[counts][:, counts]
    np.testing.assert_allclose(sums, part.sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(squares, (part**2).sum(axis=1), rtol=1e-13)
    np.testing.assert_allclose(products, part @ part.sum(axis=1), rtol=1e-12)
    weights = rng.standard_normal(90)
    np.testing.assert_allclose(kernels.weighted_squares(product, weights), gram**2 @ weights, rtol=1e-10)
    direct = ((wide[:, None] - wide[None]) ** 2).sum(axis=2)[counts][:, counts][np.triu_indices(counts.sum(), 1)]
    limits = np.array([20.0, 30.0])
    within = kernels.n_within(product, norms, counts, limits)
    np.testing.assert_array_equal(within.sum(axis=1), 2 * (direct[:, None] < limits).sum(axis=0))
    rows = ((wide[counts][:, None] - wide[counts]) ** 2).sum(axis=2) + np.diag(np.full(counts.sum(), np.inf))
    np.testing.assert_array_equal(within[:, counts], (rows < limits[:, None, None]).sum(axis=2))
    assert not within[:, ~counts].any()
    some, others = np.array([3, 80]), np.array([[0, 1, 2], [5, 80, 7]])
    squares = ((wide[some][:, None] - wide[others]) ** 2).sum(axis=2)
    for dtype, rtol in ((np.float64, 1e-14), (np.float32, 2e-7)):  # some units of the last place
        np.testing.assert_allclose(kernels.differences(given, some, others, dtype), squares, rtol=rtol)
