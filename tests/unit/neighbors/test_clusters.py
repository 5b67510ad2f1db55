"""Points in groups: what stands between them, against direct differences, and clouds that one centre serves badly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from id_scaling.neighbors.clusters import MOST, largest_in_reach, shifts_between, split
from id_scaling.neighbors.kernels import numba_kernels, torch_kernels
from id_scaling.neighbors.points import prepare_points
from id_scaling.neighbors.search import find_nearest
from tests.stress import STRESSES, smooth, stressed, tight_clusters, two_modes

NO_FURTHER = np.empty(0, dtype=int)


def assert_as_near(found, wide) -> None:
    """Check that nearest neighbors are as near as those by float64."""
    tolerated = 1e-4  # five times 2 `of_point`, a standard deviation of a square
    np.testing.assert_allclose(found.squares[:, :21], wide.squares[:, :21], rtol=tolerated)


def in_clusters(n: int, d: int, n_clusters: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Return points in clusters, and the cluster of each."""
    rng = np.random.default_rng(n_clusters)
    cluster = rng.permutation(np.arange(n) % n_clusters)
    return rng.standard_normal((n_clusters, d))[cluster] + spread * rng.standard_normal((n, d)), cluster


@pytest.mark.parametrize("n_clusters", [2, 5, MOST])
def test_each_cluster_is_a_group(n_clusters: int) -> None:
    points, cluster = in_clusters(200, 30, n_clusters, 1e-3)
    labels = split(points)
    pairs = set(zip(labels.tolist(), cluster.tolist(), strict=True))
    assert len(pairs) == n_clusters == labels.max() + 1


def test_equal_points_are_one_group_and_groups_are_not_many() -> None:
    assert not split(np.ones((50, 3))).any()
    assert split(np.random.default_rng(0).standard_normal((500, 8))).max() + 1 == MOST


@pytest.mark.parametrize("kernels", [numba_kernels, torch_kernels])
@pytest.mark.parametrize("n_groups", [1, 2, 7])
def test_distances_of_points_in_groups_are_direct_ones(kernels, n_groups: int) -> None:
    rng = np.random.default_rng(n_groups)
    points, centres = rng.standard_normal((60, 9)), 5 * rng.standard_normal((n_groups, 9))
    labels = (np.arange(60) % n_groups).astype(np.int32)
    given = torch.from_numpy(points) if kernels is torch_kernels else points
    found = kernels.survey(given, centres, labels, np.float64, np.arange(3))
    shifts = shifts_between(labels, kernels.projections(found.centred, centres), centres)
    norms, product = found.centred_norms, np.asarray(kernels.gram(found.centred, shifts))
    direct = ((points[:, None] - points) ** 2).sum(axis=2)
    np.testing.assert_allclose(norms[:, None] + norms - 2 * product, direct, atol=1e-12)
    np.testing.assert_array_equal(product, product.T)


def test_a_group_in_reach_lends_its_radius() -> None:
    centres, labels = np.array([[0.0], [10.0], [1000.0]]), np.array([0, 0, 1, 1, 2], dtype=np.int32)
    points = np.array([[0.1], [4.0], [3.0], [17.0], [1000.0]])  # the third stands among the first group's
    centred = points - centres[labels]
    found = largest_in_reach((centred**2)[:, 0], shifts_between(labels, centred @ centres.T, centres), centres)
    assert found.tolist() == [49.0, 49.0, 49.0, 49.0, 0.0]


@pytest.mark.parametrize("stress", [two_modes, tight_clusters])
def test_clouds_in_groups_need_no_float64_product(stress) -> None:
    found = find_nearest(
        prepare_points(stressed(stress, 1024, 576).astype(np.float16)), np.arange(1024), 21, NO_FURTHER
    )
    assert found.centred.gram.dtype == np.float32
    assert len(found.centred.centres) > 1


@pytest.mark.parametrize("n_clusters", [2, 9, MOST, MOST + 4])
@pytest.mark.parametrize("spread", [1e-3, 1e-2, 0.1, 0.5])
def test_neighbors_in_groups_are_those_of_float64(n_clusters: int, spread: float) -> None:
    points = in_clusters(600, 64, n_clusters, spread)[0].astype(np.float32)
    points[:5] *= 300  # far points, each alone
    found = find_nearest(prepare_points(points), np.arange(600), 21, NO_FURTHER)
    wide = find_nearest(prepare_points(points.astype(np.float64)), np.arange(600), 21, NO_FURTHER)
    assert_as_near(found, wide)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("stress", [smooth, *STRESSES], ids=lambda stress: stress.__name__)
def test_neighbors_are_those_of_float64_though_all_clouds_are_put_in_groups(stress, library, monkeypatch) -> None:
    points = (smooth(700, 48) if stress is smooth else stressed(stress, 700, 48)).astype(np.float32)
    monkeypatch.setattr("id_scaling.neighbors.search._narrow", lambda cloud, *_: [(40, cloud.about_groups)])
    given = torch.from_numpy(points) if library == "torch" else points
    found = find_nearest(prepare_points(given), np.arange(700), 21, NO_FURTHER)
    assert "float32" in str(found.centred.gram.dtype)
    wide = find_nearest(prepare_points(points.astype(np.float64)), np.arange(700), 21, NO_FURTHER)
    assert_as_near(found, wide)
