"""Statistics that rounding, ties or a coordinate far from zero would make into numbers of something else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import id_scaling
from id_scaling.neighbors.find import find_neighbors
from id_scaling.neighbors.statistics import DEFAULT_GROUPS
from id_scaling.neighbors.transforms import gaussian, preprocess
from id_scaling.neighbors.views import View

NAMES = ["participation_ratio", "participation_ratio_corrected", "effective_rank", "pca_90", "pca_99", "corrint", "mle"]
OF_POINTS = ["tle", "abid_k20", "local_pca_k20_v90", "phd", "mst", "skdim_CorrInt", "skdim_lPCA"]


def cloud(n: int = 200) -> np.ndarray:
    """Return points whose coordinates have different variances."""
    return np.random.default_rng(0).standard_normal((n, 8)) * [3, 2, 1, 1, 1, 0.5, 0.5, 0.1]


# ---- a constant coordinate of any size changes nothing ----


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e3, 1e8, 1e16, 1e22, 1e24, 1e30, -1e24])
@pytest.mark.parametrize("name", NAMES)
def test_a_constant_coordinate_is_no_direction(name: str, size: float, dtype: type) -> None:
    points = cloud().astype(dtype)
    with_constant = np.pad(points, ((0, 0), (0, 1)), constant_values=size)
    found, expected = (id_scaling.estimate(some, name)[name] for some in (with_constant, points))
    assert (found.status, expected.status) == ("ok", "ok")
    assert found.value == pytest.approx(expected.value, rel=1e-6)  # float32 products of another order of sums
    assert found.stderr == pytest.approx(expected.stderr, rel=1e-4, nan_ok=True)


@pytest.mark.parametrize("name", OF_POINTS)
def test_a_constant_coordinate_is_none_of_a_saved_cloud(name: str) -> None:
    with_constant = np.pad(cloud(), ((0, 0), (0, 1)), constant_values=1e24)
    found, expected = (id_scaling.estimate(some, name)[name] for some in (with_constant, cloud()))
    assert found.status == expected.status
    assert found.value == pytest.approx(expected.value, rel=1e-9)


@pytest.mark.parametrize("size", [1e8, 1e22, 1e24])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_a_far_point_that_does_not_count_changes_nothing(kind: Callable, size: float) -> None:
    points = np.pad(cloud(), ((0, 0), (0, 1)), constant_values=size)
    points[0, -1] = 7 * size  # the first token, which the view leaves out
    groups = ("moments", "spectrum")
    found, expected = (
        find_neighbors(some, [View(1)], (1, 2), groups)[0].statistics for some in (kind(points), cloud())
    )
    for name, value in expected.items():
        if name not in ("median_norm",):
            assert found[name] == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize("name", ["standardised", "drop_top_2"])
def test_scalings_do_not_see_a_constant_coordinate(name: str) -> None:
    scaled = preprocess(name, np.pad(cloud(), ((0, 0), (0, 1)), constant_values=1e24))
    np.testing.assert_allclose(scaled[:, :8], preprocess(name, cloud()), atol=1e-12)
    np.testing.assert_array_equal(scaled[:, 8], 0.0)


def test_a_null_does_not_see_a_constant_coordinate() -> None:
    normals = np.random.default_rng(1).standard_normal((200, 200))
    null = gaussian(np.pad(cloud(), ((0, 0), (0, 1)), constant_values=1e24), normals)
    np.testing.assert_allclose(null[:, :8], gaussian(cloud(), normals), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(null[:, 8], 1e24)


# ---- radii that nearly agree ----


@pytest.mark.parametrize(("width", "status"), [(10, "ok"), (4000, "degenerate")])
def test_radii_within_a_hundredth_give_no_correlation_dimension(width: int, status: str) -> None:
    points = np.random.default_rng(0).standard_normal((300, width))
    statistics = find_neighbors(points, [View(0)], (1,), ("correlation",))[0].statistics
    ratio = statistics["correlation_r20"] / statistics["correlation_r10"]
    found = id_scaling.estimate(points, "corrint")["corrint"]
    assert (found.status, ratio < 1.01) == (status, status == "degenerate")
    assert np.isnan(found.value) == (status == "degenerate")


# ---- which of several equal points is the nearest is arbitrary ----


def tied(n_copies: int, kind: Callable, n: int = 60):
    """Return a cloud of which one point stands so many times, and tokens that are equal where points are."""
    points, tokens = np.random.default_rng(0).standard_normal((n, 6)), np.arange(n)
    for place in range(n_copies):
        points[20 * place % 50 + 3], tokens[20 * place % 50 + 3] = points[3], 3
    return kind(points), tokens


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize(("n_copies", "is_arbitrary"), [(1, False), (2, False), (3, True), (5, True)])
def test_shares_are_none_where_the_nearest_is_arbitrary(n_copies: int, is_arbitrary: bool, kind: Callable) -> None:
    points, tokens = tied(n_copies, kind)
    keep, distinct = View(0, "keep"), View(0, "distinct")
    plain = np.random.default_rng(5).standard_normal((60, 6))
    below = [found.nearest for found in find_neighbors(plain, [keep, distinct], range(1, 12), (), tokens)]
    found, dropped = find_neighbors(points, [keep, distinct], (1,), DEFAULT_GROUPS, tokens, below)
    assert np.isnan(found.statistics["nn_within_5"]) == is_arbitrary
    assert np.isnan(found.statistics["nn_overlap"]) == is_arbitrary
    assert found.statistics["nn_same_token"] == pytest.approx((n_copies if n_copies > 1 else 0) / 60)
    assert np.isfinite([dropped.statistics[name] for name in ("nn_within_5", "nn_overlap", "nn_same_token")]).all()
    # One layer up the lists of this one are compared with: they are as arbitrary.
    above = find_neighbors(plain, [keep], (1,), DEFAULT_GROUPS, tokens, [found.nearest])[0]
    assert np.isnan(above.statistics["nn_overlap"]) == is_arbitrary


def test_tokens_are_none_where_equal_points_differ_in_them() -> None:
    points, tokens = tied(4, np.asarray)
    tokens[43] = 99
    found = find_neighbors(points, [View(0, "keep")], (1,), DEFAULT_GROUPS, tokens)[0]
    assert np.isnan(found.statistics["nn_same_token"])
