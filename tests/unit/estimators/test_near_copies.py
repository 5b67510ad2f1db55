"""Points next to equal, values that are not numbers, and averages that a few points carry."""

from __future__ import annotations

import functools
import time

import numpy as np
import pytest

import id_scaling
from id_scaling.estimators.apply import estimate_from_neighbors
from id_scaling.estimators.base import top_share
from id_scaling.estimators.near_copies import K, has_near_copy, one_of_each, tiny_share
from id_scaling.estimators.registry import get_estimator
from id_scaling.neighbors.find import Neighbors, find_neighbors, stacked
from id_scaling.neighbors.views import View

SENSITIVE = ("twoNN_f10", "twoNN_ml", "mind_ml", "mle_harmonic", "gride_n1")


def cloud(n: int = 400, d: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def with_copies(points: np.ndarray, n_copied: int, size: float = 1e-12, n_times: int = 1) -> np.ndarray:
    """Return points, and some of them again as rounding errors of a size leave them."""
    rng = np.random.default_rng(1)
    copies = [points[:n_copied] + size * rng.standard_normal(points[:n_copied].shape) for _ in range(n_times)]
    return np.concatenate([points, *copies])


# ---- near copies ----


@pytest.mark.parametrize("size", [1e-14, 1e-9, 1e-5])
@pytest.mark.parametrize("n_copied", [40, 150, 400])
@pytest.mark.parametrize("name", SENSITIVE)
def test_copies_a_rounding_error_apart_are_not_ok(name: str, n_copied: int, size: float) -> None:
    points = with_copies(cloud(), n_copied, size)
    found = id_scaling.estimate(points, name)[name]
    assert (found.status, np.isnan(found.value), np.isnan(found.stderr)) == ("near_copies", True, True)
    assert found.n_distinct == len(points)
    # The definition gives a number, and it is not that of the cloud: it is the status that keeps it back.
    neighbors = stacked([find_neighbors(points, [View(0)], range(1, K + 2))[0]])
    value, clean = get_estimator(name).compute(neighbors)[0][0], id_scaling.estimate(cloud(), name)[name]
    assert clean.status == "ok"
    assert value < 0.9 * clean.value


def test_two_nearest_neighbors_of_copies_give_a_tenth() -> None:
    points = with_copies(cloud(), 100)
    neighbors = stacked([find_neighbors(points, [View(0)], (1, 2))[0]])
    assert get_estimator("twoNN_f10").compute(neighbors)[0][0] < 0.3
    row = id_scaling.estimate_batch(points[None], ["twoNN_f10"]).row(0, named=True)
    assert row["status"] == "near_copies"
    assert row["tiny_r1"] == pytest.approx(200 / 500)


def test_groups_of_copies_are_seen_where_most_points_are_in_one() -> None:
    # The median nearest distance is itself a rounding error, so that no point is far below it.
    found = id_scaling.estimate(with_copies(cloud(150), 150, 1e-10, n_times=3), SENSITIVE)
    assert {one.status for one in found.values()} == {"near_copies"}


def test_copies_that_do_not_move_a_value_leave_it() -> None:
    points = with_copies(cloud(1000), 2)
    found, clean = (id_scaling.estimate(some, ["twoNN_f10", "mle"]) for some in (points, cloud(1000)))
    for name in found:
        assert found[name].status == "ok"
        assert found[name].value == pytest.approx(clean[name].value, rel=0.02)
        assert found[name].tiny_r1 == pytest.approx(4 / 1002)


@pytest.mark.parametrize("name", ["mle", "tle"])
def test_means_over_points_are_looked_at_too(name: str) -> None:
    found = id_scaling.estimate(with_copies(cloud(), 300), name)[name]
    assert found.status == "near_copies"


def slowly(name: str) -> object:
    """Return a parameter of the slow tier: scikit-dimension's estimator takes half a minute or more."""
    return pytest.param(name, marks=pytest.mark.slow)


DECIDED = ("skdim_TwoNN", "skdim_MLE", "skdim_GRIDE", "skdim_MiND_ML", slowly("skdim_PH"), "phd", "phd_text", "mst")
UNDECIDED = (
    "skdim_MOM",
    "skdim_MADA",
    "skdim_TLE",
    "skdim_CorrInt",
    slowly("skdim_ESS"),
    slowly("skdim_FisherS"),
    "skdim_lPCA",
)


@pytest.mark.parametrize("name", DECIDED)
def test_estimators_of_points_that_copies_decide_have_the_status(name: str) -> None:
    points = with_copies(cloud(), 200)
    found, clean = (id_scaling.estimate(some, name)[name] for some in (points, cloud()))
    assert (found.status, np.isnan(found.value), clean.status) == ("near_copies", True, "ok")
    assert abs(get_estimator(name).compute(points)[0] - clean.value) > 0.1 * clean.value


@pytest.mark.parametrize("name", UNDECIDED)
def test_estimators_of_points_that_copies_do_not_decide_keep_their_value(name: str) -> None:
    found, clean = (id_scaling.estimate(some, name)[name] for some in (with_copies(cloud(), 200), cloud()))
    # Local PCA finds as many directions as there are coordinates.
    assert found.status == clean.status == ("saturated" if name == "skdim_lPCA" else "ok")
    assert found.value == pytest.approx(clean.value, rel=0.1)
    assert found.tiny_r1 == pytest.approx(400 / 600)


def test_two_copies_do_not_decide_a_tree_of_many_points() -> None:
    found = id_scaling.estimate(with_copies(cloud(1000), 2), ["phd", "skdim_MLE"])
    assert {one.status for one in found.values()} == {"ok"}


@pytest.mark.parametrize("n_times", [1, 3])
def test_the_share_is_true_where_all_points_are_copies(n_times: int) -> None:
    points = with_copies(cloud(150), 150, 1e-10, n_times)
    names = ["twoNN_f10", "participation_ratio", "skdim_lPCA"]
    assert {one.tiny_r1 for one in id_scaling.estimate(points, names).values()} == {1.0}
    assert set(id_scaling.estimate_batch(points[None], names)["tiny_r1"]) == {1.0}


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_one_of_each_group_of_copies_is_kept(scale: float) -> None:
    points = scale * with_copies(cloud(50), 20, 1e-9, n_times=2)
    is_copy = np.isin(np.arange(90) % 50, np.arange(20)) | (np.arange(90) >= 50)
    assert np.flatnonzero(one_of_each(points, is_copy, 1e-3 * scale)).tolist() == list(range(50))


def test_groups_of_copies_in_many_coordinates_are_found_without_comparing_all_of_these() -> None:
    """2000 points of 4096 coordinates: comparing all coordinates of all pairs took half a minute."""
    points = with_copies(cloud(1000, 4096), 1000, 1e-9)
    start = time.process_time()
    assert np.flatnonzero(one_of_each(points, np.ones(2000, bool), 1e-3)).tolist() == list(range(1000))
    assert time.process_time() - start < 10  # 0.3 s on a free core


@pytest.mark.parametrize("d", [20, 64, 65, 200])
def test_copies_that_differ_in_some_coordinates_only_are_kept_or_not_by_all(d: int) -> None:
    points = np.repeat(cloud(30, d), 2, axis=0)
    points[1::2, 0] += np.where(np.arange(30) < 10, 0.5, 1.5)
    kept = one_of_each(points, np.ones(60, bool), 1.0)
    assert kept[::2].all()
    assert kept[1::2].tolist() == [False] * 10 + [True] * 20


def test_estimate_whose_comparison_takes_too_long_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that near copies decide, which is not known."""
    points, answers = with_copies(cloud(), 2), iter([(5.0, 0.1, None), TimeoutError()])

    def estimate_contained(*_: object) -> tuple:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("id_scaling.estimators.apply.estimate_contained", estimate_contained)
    found = id_scaling.estimate(points, "skdim_MLE")["skdim_MLE"]
    assert (found.status, np.isnan(found.value)) == ("timeout", True)
    assert next(answers, None) is None


def cantor(n: int) -> np.ndarray:
    """Return points of Cantor's set, of dimension log 2 / log 3."""
    digits = 2 * np.random.default_rng(0).integers(0, 2, size=(n, 25))
    return np.unique((digits * 3.0 ** -np.arange(1, 26)).sum(axis=1))[:, None]


@pytest.mark.parametrize(
    "points",
    [
        pytest.param(np.random.default_rng(seed).uniform(size=(n, d)), id=f"cube{d}-{n}-{seed}")
        for d, n, seed in [(1, 100, 0), (1, 1000, 0), (1, 1000, 1), (1, 3000, 2), (2, 1000, 0), (3, 1000, 0)]
    ]
    + [
        pytest.param(cantor(1000), id="cantor"),
        pytest.param(np.random.default_rng(0).standard_cauchy((1000, 1)), id="cauchy"),
        pytest.param(np.exp(2 * np.random.default_rng(0).standard_normal((1000, 2))), id="lognormal"),
        pytest.param(np.concatenate([cloud(300), 100 + 1e-4 * cloud(200, seed=1)]), id="two-scales"),
    ],
)
def test_clouds_that_have_close_points_by_their_dimension_or_density_are_ok(points: np.ndarray) -> None:
    found = id_scaling.estimate(points, [*SENSITIVE, "mle"])
    assert {name: one.status for name, one in found.items()} == dict.fromkeys(found, "ok")


def twice_each_and_far(n: int) -> np.ndarray:
    """Return a cloud, and n more pairs: each as near as neighbors usually are, and far from all other points."""
    pairs = np.repeat(1e4 * cloud(n, seed=1), 2, axis=0)
    pairs[1::2, 0] += 0.3
    return np.concatenate([cloud(1000), pairs])


def clusters(n: int) -> np.ndarray:
    """Return tight clusters, the smallest of which has no 20 neighbors for its points."""
    return np.concatenate([1e4 * cloud(5)[label] + cloud(n if label else 15, seed=label) for label in range(5)])


@pytest.mark.parametrize("points", [twice_each_and_far(40), clusters(150)], ids=["pairs", "clusters"])
def test_points_near_some_and_far_from_others_are_no_copies(points: np.ndarray) -> None:
    neighbors = stacked([find_neighbors(points, [View(0)], range(1, K + 2))[0]])
    assert (np.diff(neighbors.log_ratio[0, :, :K]) > np.log(100)).any()
    assert not has_near_copy(neighbors).any()
    found = id_scaling.estimate(points, [*SENSITIVE, "mle"])
    assert {name: one.status for name, one in found.items()} == dict.fromkeys(found, "ok")


@pytest.mark.parametrize(
    "points",
    [
        with_copies(cloud(100), 7),
        with_copies(cloud(100), 100, 1e-9),
        with_copies(cloud(100), 60, 1e-9, n_times=3),
        np.concatenate([with_copies(cloud(100), 7), 1e5 + cloud(10)]),
    ],
    ids=["few", "all", "groups", "few-and-a-group-far-out"],
)
def test_shares_and_points_with_copies_are_those_of_a_plain_search(points: np.ndarray) -> None:
    distances = np.sort(np.linalg.norm(points[:, None] - points[None], axis=2), axis=1)[:, 1 : K + 1]
    usual = []
    for row in distances:
        jumps = [j for j in range(1, K) if row[j] > 100 * row[j - 1]]
        usual.append(row[jumps[-1]] if jumps else row[0])
    neighbors = stacked([find_neighbors(points, [View(0)], range(1, K + 1))[0]])
    expected = distances[:, 0] < np.median(usual) / 100
    assert expected.any()
    assert tiny_share(neighbors)[0] == expected.mean()
    np.testing.assert_array_equal(has_near_copy(neighbors)[0], expected)


# ---- what the top tenth of points holds ----


@pytest.mark.parametrize("n", [1, 9, 10, 11, 95, 100, 101])
def test_the_top_tenth_is_rounded_up(n: int) -> None:
    local = np.random.default_rng(n).pareto(1.5, size=n) + 1
    top = sorted(local, reverse=True)[: int(np.ceil(n / 10))]
    assert top_share(local) == pytest.approx(np.mean(local * np.isin(local, top)) / np.mean(local), rel=1e-14)


@pytest.mark.parametrize("name", ["mle", "mle_k5", "mom_k20", "mada", "tle", "abid_k20", "local_pca_k20_v90"])
def test_top_share_is_that_of_the_local_values(name: str) -> None:
    points = cloud(123)
    estimator = get_estimator(name)
    if estimator.needs == "points":
        local = estimator.local(points)
    else:
        local = estimator.local(stacked([find_neighbors(points, [View(0)], range(1, K + 1))[0]]))[0]
    found = id_scaling.estimate(points, name)[name]
    assert found.value == pytest.approx(local.mean(), rel=1e-12)
    assert found.top_share == pytest.approx(np.sort(local)[-13:].sum() / local.sum(), rel=1e-12)
    assert id_scaling.estimate_batch(points[None], name)["top_share"][0] == found.top_share


def test_only_arithmetic_means_have_a_top_share() -> None:
    names = ["mle_harmonic", "mle_median", "twoNN_f10", "mind_ml", "phd", "corrint"]
    assert {one.top_share for one in id_scaling.estimate(cloud(150), names).values()} == {None}
    assert id_scaling.estimate_batch(cloud(150)[None], names)["top_share"].null_count() == len(names)
    assert np.isnan(id_scaling.estimate(cloud(5), "mle")["mle"].top_share)


# ---- the median of local dimensions ----


def local_dimensions(points: np.ndarray, k: int) -> np.ndarray:
    distances = np.sort(np.linalg.norm(points[:, None] - points[None], axis=-1), axis=1)[:, 1 : k + 1]
    return (k - 1) / np.log(distances[:, -1:] / distances[:, :-1]).sum(axis=1)


@pytest.mark.parametrize("n", [100, 101])
@pytest.mark.parametrize(("name", "k"), [("mle_median", 20), ("mle_median_k5", 5)])
def test_mle_median_is_the_median_of_the_local_dimensions(name: str, k: int, n: int) -> None:
    points = cloud(n)
    found = id_scaling.estimate(points, name)[name]
    assert found.value == pytest.approx(np.median(local_dimensions(points, k)), rel=1e-12)
    assert found.status == "ok"


def test_a_far_point_does_not_move_the_median() -> None:
    points = np.concatenate([cloud(), 1e4 + cloud(1)])
    found, clean = (id_scaling.estimate(some, ["mle", "mle_median"]) for some in (points, cloud()))
    assert found["mle"].value > 2 * clean["mle"].value
    assert found["mle_median"].value == pytest.approx(clean["mle_median"].value, rel=0.02)
    assert found["mle"].top_share > 0.3 > clean["mle"].top_share


def of_model(d: float, n_clouds: int, n: int) -> Neighbors:
    """Return neighbors of independent points with even neighborhoods: r_j^d are cumulated exponentials."""
    volumes = np.cumsum(np.random.default_rng(3).exponential(size=(n_clouds, n, K)), axis=-1)
    log_r = np.log(volumes) / d
    counts = np.full(n_clouds, n)
    statistics = {"n_points": counts, "n_used": counts, "n_nonfinite": np.zeros(n_clouds)}
    return Neighbors(tuple(range(1, K + 1)), np.ones((n_clouds, n)), log_r - log_r[..., :1], statistics)


def test_the_median_and_its_error_are_those_of_the_exact_model() -> None:
    value, stderr = get_estimator("mle_median").compute(of_model(5.0, 300, 400))
    # (k - 1) d over the median of a Gamma variable of shape 19, by scipy.stats.gamma(19).median().
    assert value.mean() == pytest.approx(5 * 19 / 18.668, rel=4 * value.std() / np.sqrt(300) / 5 + 1 / 400)
    # The spread of 300 clouds is known to 4 per cent; errors from order statistics vary by a quarter themselves.
    assert np.sqrt((stderr**2).mean()) == pytest.approx(value.std(ddof=1), rel=0.15)


def test_intervals_of_the_median_cover_what_it_gives_on_average() -> None:
    rng = np.random.default_rng(8)
    found = [id_scaling.estimate(rng.standard_normal((256, 5)), "mle_median")["mle_median"] for _ in range(150)]
    values, errors = np.array([(one.value, one.stderr) for one in found]).T
    covered = np.mean(np.abs(values - values.mean()) < 1.96 * errors)
    assert 0.89 <= covered <= 0.995  # 95 per cent of 150, three standard errors of 1.8 per cent to either side


# ---- what is not a number is a failure ----


@functools.cache
def stored() -> Neighbors:
    return stacked([find_neighbors(cloud(seed=seed), [View(0)], range(1, 33), ("moments",))[0] for seed in range(3)])


def damaged(value: float, rank: int) -> Neighbors:
    """Return stored neighbors of three clouds, in the second of which the distance of one point is some value."""
    neighbors = stored()
    log_ratio = neighbors.log_ratio.copy()
    log_ratio[1, 17, rank - 1] = value
    return Neighbors(neighbors.ranks, neighbors.r1, log_ratio, neighbors.statistics)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("mle", 7),
        ("mle_harmonic", 20),
        ("mle_median", 20),
        ("mle_unbiased", 20),
        ("mind_ml", 21),
        ("twoNN_f10", 2),
        ("twoNN_ml", 2),
        ("gride_n4", 8),
        ("mom_k20", 3),
        ("mada", 10),
    ],
)
def test_a_distance_that_is_not_a_number_fails_its_cloud(name: str, rank: int, value: float) -> None:
    found = estimate_from_neighbors(get_estimator(name), damaged(value, rank), is_local=name.startswith("mle"))
    assert list(found.status) == ["ok", "failed: 1 of 400 points have a distance that is not a number", "ok"]
    assert np.isnan(found.value[1])
    assert np.isfinite(found.value[[0, 2]]).all()


def test_a_nearest_distance_that_is_not_a_number_fails_its_cloud() -> None:
    neighbors = stored()
    r1 = neighbors.r1.copy()
    r1[1, 17] = np.nan
    found = estimate_from_neighbors(
        get_estimator("twoNN_f10"), Neighbors(neighbors.ranks, r1, neighbors.log_ratio, neighbors.statistics)
    )
    assert list(found.status) == ["ok", "failed: 400 points count, of which 399 have a nearest neighbor", "ok"]


def test_a_local_value_that_is_not_a_number_is_not_averaged_away() -> None:
    neighbors = damaged(np.nan, 7)
    for name in ("mle", "mom_k20", "mle_harmonic", "mle_median", "mind_ml", "twoNN_ml"):
        neighbors.log_ratio[1, 17] = np.nan
        value, stderr = get_estimator(name).compute(neighbors)
        assert np.isnan([value[1], stderr[1]]).all()


@pytest.mark.parametrize("copies", [2, 3])
@pytest.mark.parametrize("name", ["twoNN_f10", "twoNN_ml", "mle_harmonic", "mle_k5"])
def test_a_cloud_of_copies_that_differ_by_bfloat16_rounding_has_no_estimate(copies: int, name: str) -> None:
    """Every point has a near copy; their true dimension is 5, and the estimate is of rounding."""
    rng = np.random.default_rng(3)
    points = rng.normal(size=(500, 5))
    rounded = np.vstack([points * (1 + 2**-9 * rng.uniform(-1, 1, size=points.shape)) for _ in range(copies)])
    assert id_scaling.estimate(rounded, [name])[name].status == "near_copies"
