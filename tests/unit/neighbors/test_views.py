"""Views against brute force: which points count, how they are scaled, and which of them may be neighbors."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest
import torch
from conftest import study
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler, normalize
from verbs import Session

from id_scaling import estimate
from id_scaling.cli.main import main
from id_scaling.estimators.apply import estimate_from_neighbors
from id_scaling.estimators.registry import get_estimator
from id_scaling.neighbors.find import Neighbors, find_neighbors, stacked
from id_scaling.neighbors.statistics import DEFAULT_GROUPS
from id_scaling.neighbors.transforms import gaussian, preprocess, transform
from id_scaling.neighbors.views import View, generator, select
from id_scaling.results.columns import COLUMNS
from id_scaling.results.summary import _views
from id_scaling.storage.records import read_record

N, D = 300, 24
RANKS = (1, 2, 3, 10, 21, 40, 64, 128)
KEEP = View(skip_first_tokens=0, duplicates="keep")
KINDS = [np.float64, np.float32, np.float16, torch.float64, torch.float32, torch.bfloat16]


def cloud(seed: int = 0) -> np.ndarray:
    """Return a walk: points near in position are near in space, as are those of one token."""
    rng = np.random.default_rng(seed)
    walk = np.cumsum(rng.standard_normal((N, D)), axis=0) / 6
    return np.float16(walk + 3 * rng.standard_normal((40, D))[tokens(seed)]).astype(np.float64)


def tokens(seed: int = 0) -> np.ndarray:
    """Return tokens of which some are frequent."""
    return np.random.default_rng(seed + 1).integers(0, 40, N) % np.random.default_rng(seed + 2).integers(5, 41, N)


def of(points, view: View, ranks=RANKS, groups=DEFAULT_GROUPS) -> Neighbors:
    """Return the neighbors of one cloud under one view."""
    return find_neighbors(points, [view], ranks, groups, tokens())[0]


def direct(points: np.ndarray, positions: np.ndarray, window: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return r_1, log(r_j / r_1) and the nearest of points more than a window apart, from differences."""
    ascending, nearest = np.full((len(points), N), np.nan), np.empty(len(points), int)
    for row, point in enumerate(points):
        is_other = np.abs(positions - positions[row]) > window
        distances = np.sqrt(((points[is_other] - point) ** 2).sum(axis=1))
        nearest[row] = positions[is_other][np.argmin(distances)]
        ascending[row, : len(distances)] = np.sort(distances)
    return ascending[:, 0], np.log(ascending[:, np.array(RANKS) - 1] / ascending[:, :1]), nearest


def cast(points: np.ndarray, kind):
    """Return points in a dtype of numpy or torch."""
    return torch.from_numpy(points).to(kind) if isinstance(kind, torch.dtype) else points.astype(kind)


def wide(points) -> np.ndarray:
    """Return points in float64, as numpy."""
    return np.asarray(points.double()) if isinstance(points, torch.Tensor) else points.astype(np.float64)


def counted(found: Neighbors) -> np.ndarray:
    """Return which points count."""
    return np.flatnonzero(np.isfinite(found.r1))


# ---- which points count ----


def test_one_per_token_counts_the_first_of_each_token() -> None:
    found = counted(of(cloud(), View(skip_first_tokens=3, duplicates="one_per_token")))
    of_skipped = tokens()[3:].tolist()
    assert found.tolist() == sorted(3 + of_skipped.index(token) for token in set(of_skipped))


def test_one_per_token_counts_equal_points_of_two_tokens_once() -> None:
    points, ids = cloud(), np.arange(N)
    points[50] = points[20]
    (found,) = find_neighbors(points, [View(0, "one_per_token")], (1, 2), (), ids)
    assert counted(found).tolist() == [*range(50), *range(51, N)]


def test_a_matched_subset_has_as_many_points_as_there_are_tokens_at_random() -> None:
    one, matched, other = (
        counted(of(cloud(), View(1, kind, draw=draw)))
        for kind, draw in (("one_per_token", 0), ("matched_subset", 0), ("matched_subset", 1))
    )
    assert len(one) == len(matched) == len(other) == len(set(tokens()[1:]))
    assert not np.array_equal(matched, one)
    assert not np.array_equal(matched, other)
    # First occurrences stand early; of a random subset half lies in each half, give or take 3 sigma of a binomial.
    assert np.mean(one < N / 2) > 0.9
    assert abs(np.mean(matched < N / 2) - 0.5) < 3 * 0.5 / np.sqrt(len(matched))


def test_decimation_draws_so_many_evenly_and_the_same_at_every_layer() -> None:
    views = [View(1, "distinct", decimate=60, draw=draw) for draw in range(200)]
    drawn = [select(view, np.arange(N), np.ones(N, bool), tokens()) for view in views]
    assert {len(index) for index in drawn} == {60}
    counts = np.bincount(np.concatenate(drawn), minlength=N)
    assert counts[0] == 0
    # 200 draws of 60 of 299: each point 40.1 times, and 5 sigma of a binomial.
    assert np.abs(counts[1:] - 200 * 60 / 299).max() < 5 * np.sqrt(200 * 60 / 299 * (1 - 60 / 299))
    np.testing.assert_array_equal(counted(of(cloud(), views[0])), counted(of(cloud(7), views[0])))


def test_a_draw_is_that_of_the_tokens() -> None:
    first, again, other = (generator(0, ids).random(4) for ids in (tokens(), tokens().astype(np.int32), tokens(1)))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, generator(1, tokens()).random(4))


def test_fewer_points_than_are_to_be_drawn_have_no_neighbors() -> None:
    points = cloud()
    points[100:] = points[0]
    assert of(points, View(0, "distinct", decimate=100)).statistic("n_used") == 100
    assert of(points, View(0, "distinct", decimate=101)).statistic("n_used") == 0


SUBSETS = [View(2, "one_per_token"), View(1, "matched_subset"), View(1, "distinct", decimate=90, draw=3)]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("view", SUBSETS, ids=str)
def test_a_subset_has_the_neighbors_of_its_points_alone(view: View, kind) -> None:
    points = cast(cloud(), kind)
    found = of(points, view)
    index = counted(found)
    r1, log_ratio, _ = direct(wide(points)[index], index)
    assert np.isnan(found.log_ratio[index]).any(axis=0).tolist() == [rank >= len(index) for rank in RANKS]
    np.testing.assert_allclose(found.r1[index], r1, rtol=3e-5)  # three deviations of what is left at a point
    np.testing.assert_allclose(found.log_ratio[index], log_ratio, rtol=0, atol=4e-5)


# ---- which may be neighbors ----


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("window", [1, 5, 70])
def test_points_within_a_window_are_no_neighbors(window: int, kind) -> None:
    points = cast(cloud(), kind)
    found = of(points, View(0, "keep", exclude_window=window))
    r1, log_ratio, nearest = direct(wide(points), np.arange(N), window)
    n_others = N - 1 - 2 * window  # at the least, in the midst
    is_there = np.array(RANKS) <= n_others
    np.testing.assert_allclose(found.r1, r1, rtol=3e-5)
    np.testing.assert_allclose(found.log_ratio[:, is_there], log_ratio[:, is_there], rtol=0, atol=4e-5)
    assert np.isnan(found.log_ratio[:, ~is_there]).all()
    same = np.mean(tokens() == tokens()[nearest])
    assert found.statistic("nn_same_token") == same
    assert found.statistic("nn_within_5") == np.mean(np.abs(nearest - np.arange(N)) <= 5)


@pytest.mark.parametrize("torch_too", [False, True])
def test_a_window_counts_positions_not_points(torch_too: bool) -> None:
    """Of a decimated cloud too."""
    view = View(0, "distinct", decimate=120, exclude_window=9)
    found = of(torch.from_numpy(cloud()) if torch_too else cloud(), view)
    index = counted(found)
    r1, log_ratio, _ = direct(cloud()[index], index, 9)
    np.testing.assert_allclose(found.r1[index], r1, rtol=1e-10)
    is_there = np.isfinite(found.log_ratio[index]).all(axis=0)
    assert is_there.sum() >= 7
    np.testing.assert_allclose(found.log_ratio[index][:, is_there], log_ratio[:, is_there], rtol=0, atol=1e-10)


def test_pairs_within_a_window_are_not_counted() -> None:
    points = cloud()
    found = of(points, View(0, "keep", exclude_window=5))
    gaps = np.abs(np.subtract.outer(np.arange(N), np.arange(N)))
    distances = np.sqrt(((points[:, None] - points) ** 2).sum(axis=2))
    for rank in (10, 20):
        radius = np.median(np.sort(np.where(gaps > 5, distances, np.inf), axis=1)[:, rank - 1])
        assert found.statistic(f"correlation_r{rank}") == pytest.approx(radius, rel=1e-9)
        expected = np.count_nonzero((distances < radius * (1 - 1e-9)) & (gaps > 5)) // 2
        assert found.statistic(f"correlation_pairs_r{rank}") == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_points_within_a_window_are_no_neighbors_and_others_are_at_zero(dtype: type) -> None:
    points = cloud().astype(dtype)
    points[10], points[12], points[200] = points[13], points[13], points[13]
    found = of(points, View(0, "keep", exclude_window=5))
    zeros = np.flatnonzero(found.r1 == 0)
    assert zeros.tolist() == [10, 12, 13, 200]
    three = found.log_ratio[200, RANKS.index(3)], found.log_ratio[13, RANKS.index(2)]
    assert three == (0, np.inf)  # 200 has three equals beyond the window, 13 has one


@pytest.mark.parametrize(("gap", "is_equal_neighbor"), [(5, False), (6, True)])
def test_an_equal_point_at_the_edge_of_the_window_is_no_neighbor(gap: int, is_equal_neighbor: bool) -> None:
    points = cloud()
    points[100 + gap] = points[100]
    r1 = of(points, View(0, "keep", exclude_window=5)).r1
    with np.errstate(divide="ignore", invalid="ignore"):  # of ratios to distances of zero
        expected = direct(points, np.arange(N), 5)[0]
    np.testing.assert_allclose(r1, expected, rtol=1e-10)
    assert (r1[100] == 0) == (r1[100 + gap] == 0) == is_equal_neighbor


def test_ranks_end_where_the_first_point_has_no_more_neighbors() -> None:
    """Of 40 points those in the midst have 40 - 1 - 2 x 5 neighbors."""
    ranks = tuple(range(1, 40))
    found = of(cloud()[:40], View(0, "keep", exclude_window=5), ranks)
    assert [rank for rank, values in zip(ranks, found.log_ratio.T, strict=True) if np.isfinite(values).all()] == [
        *range(1, 30)
    ]
    assert np.isnan(found.log_ratio[:, 29:]).all()


def test_a_window_over_all_leaves_no_neighbors() -> None:
    found = of(cloud(), View(0, "keep", exclude_window=N // 2))
    assert np.isnan(found.r1).all()
    assert found.statistic("n_used") == N


def test_rows_computed_again_leave_the_window_out() -> None:
    """Far from the origin, in float32, where no product tells neighbors apart."""
    points = (cloud() / 50 + 4000 * np.sign(cloud(3))).astype(np.float32)
    found = of(points, View(0, "keep", exclude_window=4))
    r1, log_ratio, _ = direct(points.astype(float), np.arange(N), 4)
    np.testing.assert_allclose(found.r1, r1, rtol=3e-5)
    np.testing.assert_allclose(found.log_ratio, log_ratio, rtol=0, atol=4e-5)


# ---- how points are scaled ----


def without_leading(n_components: int):
    """Return what takes off the mean and the leading principal components as scikit-learn has them."""

    def scale(rows: np.ndarray) -> np.ndarray:
        found = PCA(n_components, svd_solver="full").fit(rows)
        return rows - found.inverse_transform(found.transform(rows))

    return scale


SCALERS = {
    "standardised": StandardScaler().fit_transform,
    "unit_norm": normalize,
    "drop_top_1": without_leading(1),
    "drop_top_7": without_leading(7),
}


@pytest.mark.parametrize("kind", [np.float64, np.float16, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SCALERS)
def test_scaled_points_have_the_neighbors_that_scikit_learns_scaling_gives(name: str, kind) -> None:
    points = cast(cloud(), kind)
    found = of(points, View(3, "distinct", preprocess=name))
    index = counted(found)
    scaled = SCALERS[name](wide(points)[index])
    r1, log_ratio, _ = direct(scaled, index)
    np.testing.assert_allclose(found.r1[index], r1, rtol=1e-9)
    np.testing.assert_allclose(found.log_ratio[index], log_ratio, rtol=0, atol=1e-9)
    assert found.statistic("median_norm") == pytest.approx(np.median(np.linalg.norm(scaled, axis=1)), rel=1e-9)
    assert found.statistic("gram_trace") == pytest.approx(((scaled - scaled.mean(axis=0)) ** 2).sum(), rel=1e-9)


@pytest.mark.parametrize("shape", [(30, 200), (200, 30)])
def test_leading_components_go_whichever_product_is_smaller(shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(0).standard_normal(shape) * np.linspace(3, 1, shape[1])
    left = preprocess("drop_top_4", rows)
    singular = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)
    found = np.linalg.svd(left, compute_uv=False)
    np.testing.assert_allclose(found[:20], singular[4:24], rtol=1e-9)
    assert (found[-4:] < 1e-9 * singular[0]).all()


@pytest.mark.parametrize(("shape", "n_dropped"), [((200, 64), 64), ((200, 64), 100), ((100, 300), 99)])
def test_a_cloud_of_which_nothing_is_left_is_degenerate(shape: tuple[int, int], n_dropped: int) -> None:
    """Not an ID of rounding."""
    points = np.random.default_rng(0).standard_normal(shape)
    view = View(0, "keep", preprocess=f"drop_top_{n_dropped}")
    neighbors = stacked(find_neighbors(points, [view], range(1, 33)))
    found = estimate_from_neighbors(get_estimator("mle"), neighbors)
    assert found.status.tolist() == ["degenerate"]
    assert np.isnan(found.value).all()


def test_a_window_that_leaves_too_few_neighbors_says_so() -> None:
    points = cloud()
    points[40:] = points[np.arange(N - 40) % 40]  # forty points, and what may be neighbors of them
    neighbors = stacked([of(points, View(0, "distinct", exclude_window=12), tuple(range(1, 33)))])
    assert neighbors.statistic("n_used") == 40
    assert estimate_from_neighbors(get_estimator("mle"), neighbors).status.tolist() == ["too_few_points"]


def test_a_cloud_of_which_nothing_counts_is_scaled_to_nothing() -> None:
    for name in ("standardised", "unit_norm", "drop_top_2"):
        assert (transform(View(preprocess=name), cloud(), np.empty(0, int), None) == 0).all()


def test_a_constant_coordinate_is_zero_standardised() -> None:
    points = cloud()
    points[:, 5] = 0.1
    scaled = preprocess("standardised", points)
    assert (scaled[:, 5] == 0).all()
    np.testing.assert_allclose(np.delete(scaled, 5, axis=1).std(axis=0), 1, rtol=1e-12)


def test_a_point_without_a_direction_is_not_finite() -> None:
    points = cloud()
    points[7] = 0
    found = of(points, View(0, "keep", preprocess="unit_norm"))
    assert found.statistic("n_nonfinite") == 1
    assert np.isnan(found.r1).all()


def test_points_of_one_direction_are_equal_as_unit_vectors() -> None:
    points = cloud()
    points[9] = 2 * points[5]
    assert 9 not in counted(of(points, View(0, "distinct", preprocess="unit_norm")))
    assert of(points, View(0, "keep", preprocess="unit_norm")).r1[9] == 0


def test_counts_are_of_the_points_as_made() -> None:
    points = cloud()
    points[9] = points[5]
    found = of(points, View(2, "distinct", preprocess="standardised")).statistics
    assert [found[name] for name in ("n_points", "n_distinct", "n_nonfinite", "n_used")] == [N - 2, N - 3, 0, N - 3]


# ---- nulls ----


def test_a_null_has_mean_and_covariance_of_the_cloud_and_is_gaussian() -> None:
    """Of 200 draws, within what such numbers of Gaussian points vary by."""
    points = cloud()
    means, covariances, fourth = [], [], []
    for draw in range(200):
        sample = transform(View(0, "keep", null_cloud="gaussian", draw=draw), points, np.arange(N), tokens())
        means.append(sample.mean(axis=0))
        covariances.append(np.cov(sample.T))
        fourth.append(np.mean(((sample - points.mean(axis=0)) / points.std(axis=0, ddof=1)) ** 4))
    covariance = np.cov(points.T)
    deviation = np.sqrt(np.diag(covariance) / N / 200)
    assert np.abs((np.mean(means, axis=0) - points.mean(axis=0)) / deviation).max() < 4  # of 24 numbers, in sigmas
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)) / N / 200)
    assert np.abs((np.mean(covariances, axis=0) - covariance) / scale).max() < 6  # of 300, variance at most twice that
    assert np.mean(fourth) == pytest.approx(3, rel=0.01)  # the fourth moment of a normal distribution


def test_a_null_of_torch_points_is_that_of_numpy_points() -> None:
    view = View(1, "distinct", null_cloud="gaussian", draw=2)
    found, expected = of(torch.from_numpy(cloud()), view), of(cloud(), view)
    np.testing.assert_allclose(found.r1, expected.r1, rtol=1e-9)
    assert counted(found).tolist() == counted(expected).tolist()


def test_a_null_of_a_flat_cloud_stays_in_its_plane() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(size=(N, 3)) @ rng.standard_normal((3, D))
    found = of(points, View(0, "keep", null_cloud="gaussian"))
    trace, frobenius = found.statistic("gram_trace"), found.statistic("gram_frobenius")
    assert 2 < (trace / frobenius) ** 2 <= 3 + 1e-9


@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray])
def test_a_null_of_many_coordinates_is_the_same_in_fewer(kind) -> None:
    """Distances, norms and angles are those of Z X / √(n - 1) in all coordinates."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((60, 400)) * np.arange(1, 401) ** -0.7 + 3 * rng.standard_normal(400)
    points[0] *= 100
    normals, mean = rng.standard_normal((60, 60)), points.mean(axis=0)
    expected = mean + normals @ (points - mean) / np.sqrt(59)
    found = np.asarray(gaussian(kind(points), kind(normals)))
    assert found.shape == (60, 60)
    assert np.abs(found @ found.T / (expected @ expected.T) - 1).max() < 1e-9  # rounding beside a norm of 100
    np.testing.assert_allclose(pdist(found), pdist(expected), rtol=1e-9)


@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray])
def test_a_null_of_points_that_depend_on_each_other_is_in_all_coordinates(kind) -> None:
    points = np.random.default_rng(0).standard_normal((20, 400))
    points[7] = points[3]
    found = np.asarray(gaussian(kind(points), kind(np.eye(20))))
    expected = points.mean(axis=0) + (points - points.mean(axis=0)) / np.sqrt(19)
    np.testing.assert_allclose(pdist(found), pdist(expected), rtol=1e-7, atol=1e-6)


def test_views_together_are_views_apart() -> None:
    views = [KEEP, *SUBSETS, View(exclude_window=3), View(preprocess="standardised"), View(null_cloud="gaussian")]
    together = find_neighbors(cloud(), views, RANKS, DEFAULT_GROUPS, tokens())
    for view, found in zip(views, together, strict=True):
        np.testing.assert_array_equal(found.log_ratio, of(cloud(), view).log_ratio)


# ---- through the pipeline ----


VIEWS = {
    "default": {},
    "one": {"duplicates": "one_per_token"},
    "half": {"decimate": 30, "draws": 2},
    "standardised": {"preprocess": "standardised"},
}


@pytest.fixture(scope="module")
def session(tiny_llama: Path, text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A study under several views, its clouds saved, extracted."""
    config = study(tiny_llama, text_folder, cacheing_config__views=VIEWS)
    config["cacheing_config"] |= {"save_cache_tensors": True, "save_fp": "float32", "save_IDs_list": ["mle", "tle"]}
    return Session(tmp_path_factory.mktemp("views"), config)


def test_every_draw_is_a_view_of_all_that_is_stored(session: Session) -> None:
    folder = Path(session.paths["manifest"]).parent
    ids = np.array(pl.read_parquet(session.paths["contexts"])["input_ids"].to_list())
    with h5py.File(folder / "layer_01.h5") as file:
        assert set(file["block"]) == {"activations", "default", "one", "half-0", "half-1", "standardised"}
        clouds = file["block/activations"][:]
        for name, view in session.study.config.cacheing_config.drawn_views.items():
            ranks = read_record(Path(session.paths["manifest"]))["ranks"]
            found = [find_neighbors(cloud, [view], ranks, (), of) for cloud, of in zip(clouds, ids, strict=True)]
            np.testing.assert_allclose(file[f"block/{name}/r1"][:], [one.r1 for (one,) in found], rtol=1e-6)
    n_counted = {name: np.isfinite(r1).sum(axis=1) for name, r1 in stored(folder).items()}
    assert n_counted["one"].tolist() == [len(set(of[1:])) for of in ids.tolist()]
    assert set(n_counted["half-0"]) == set(n_counted["half-1"]) == {30}


def stored(folder: Path) -> dict[str, np.ndarray]:
    """Return r_1 of the last block under each view."""
    with h5py.File(folder / "layer_01.h5") as file:
        return {name: file[f"block/{name}/r1"][:] for name in file["block"] if name != "activations"}


@pytest.mark.parametrize("estimator", ["mle", "tle"])
def test_estimates_of_a_scaled_cloud_are_those_of_its_scaled_points(
    estimator: str, session: Session, tmp_path: Path
) -> None:
    """Of neighbors, and of saved points."""
    assert main(session.estimate("block", estimator, tmp_path / "ids.parquet")) == 0
    table = pl.read_parquet(tmp_path / "ids.parquet").filter(view="standardised", layer=1)
    folder = Path(session.paths["manifest"]).parent
    with h5py.File(folder / "layer_01.h5") as file:
        clouds = file["block/activations"][:].astype(np.float64)
    selections = np.isfinite(stored(folder)["standardised"])
    for row, cloud, counts in zip(table.iter_rows(named=True), clouds, selections, strict=True):
        expected = estimate(StandardScaler().fit_transform(cloud[counts]), [estimator])[estimator]
        assert (row["value"], row["status"]) == (pytest.approx(expected.value, rel=1e-6), expected.status)


def test_what_a_view_does_is_in_its_rows_of_the_summary(session: Session, tmp_path: Path) -> None:
    assert main(session.estimate("block", "mle", tmp_path / "ids.parquet")) == 0
    settings = _views(read_record(Path(session.paths["manifest"])))
    rows = {row.pop("view"): row for row in settings.iter_rows(named=True)}
    assert rows["half-1"] == {**vars(View()), "decimate": 30, "draw": 1}
    assert set(rows["one"]) <= {name for name, _, _ in COLUMNS}


@pytest.mark.parametrize(
    "changes", [{"duplicates": "one_per_token"}, {"duplicates": "matched_subset"}, {"decimate": 4}], ids=str
)
def test_a_view_that_needs_tokens_says_so_where_none_are_given(changes: dict) -> None:
    with pytest.raises(ValueError, match="needs the tokens of the points; none are given"):
        select(View(skip_first_tokens=0, **changes), np.arange(N), np.ones(N, bool), None)


def test_a_null_without_tokens_to_draw_it_by_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the tokens of the points; none are given"):
        transform(View(null_cloud="gaussian"), np.eye(4), np.arange(4), None)


def test_local_values_of_an_estimator_without_any_are_refused() -> None:
    neighbors = stacked(find_neighbors(np.random.default_rng(0).normal(size=(50, 3)), [View()], range(1, 21)))
    with pytest.raises(ValueError, match="twoNN_f10 has no estimate at a point"):
        estimate_from_neighbors(get_estimator("twoNN_f10"), neighbors, is_local=True)
