"""Ceilings: no value that an estimator of scikit-dimension cannot exceed passes for a measurement."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest

import id_scaling
from id_scaling.estimators.registry import get_estimator
from id_scaling.estimators.skdim import CEILINGS, LPCA_VERSIONS, OF_VERSIONS

with warnings.catch_warnings():  # importing skdim.id silences every warning of the process
    import skdim.id


def ball(d: int, n: int, width: int) -> np.ndarray:
    """Return n points uniform in a ball of d dimensions, in `width` coordinates."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((n, d))
    radii = rng.uniform(size=(n, 1)) ** (1 / d)
    points = directions / np.linalg.norm(directions, axis=1, keepdims=True) * radii
    return np.pad(points, ((0, 0), (0, width - d)))


def normal(n: int, d: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, d))


def theirs(points: np.ndarray, class_name: str, **given: object) -> float:
    """Return what an estimator of scikit-dimension gives, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(getattr(skdim.id, class_name)(**given).fit_transform(points))


def test_the_ceiling_of_every_estimator_and_version_is_known() -> None:
    classes = {name for name in dir(skdim.id) if hasattr(getattr(skdim.id, name), "fit_transform")}
    assert set(CEILINGS) == classes
    assert set(OF_VERSIONS) < set(LPCA_VERSIONS)


@pytest.mark.parametrize(
    ("name", "points", "value"),
    [
        pytest.param("skdim_MiND_ML", ball(50, 256, 300), 10.0, id="MiND_ML-50"),
        pytest.param("skdim_MiND_ML", ball(20, 256, 64), 10.0, id="MiND_ML-20"),
        pytest.param("skdim_DANCo", ball(6, 80, 6), 6.0, id="DANCo"),
        pytest.param("skdim_KNN", ball(30, 100, 40), None, id="KNN"),
        pytest.param("skdim_lPCA", normal(60, 300), 59.0, id="lPCA-by-points"),
        pytest.param("skdim_lPCA", normal(300, 8), 8.0, id="lPCA-by-coordinates"),
        pytest.param("skdim_lPCA_maxgap", normal(60, 300), 59.0, id="lPCA_maxgap"),
        pytest.param("skdim_lPCA_ratio", np.eye(60), 3.0, id="lPCA_ratio"),
        pytest.param("skdim_ESS", np.eye(40), 38.0**2, id="ESS"),
        pytest.param("local_pca_k20_v99", normal(60, 300), 19.0, id="local_pca"),
    ],
)
def test_a_value_at_a_ceiling_is_saturated(name: str, points: np.ndarray, value: float | None) -> None:
    found = id_scaling.estimate(points, name)[name]
    ceiling = get_estimator(name).ceiling(*points.shape)
    if name == "skdim_KNN":  # its draws differ: the largest value is the number of coordinates
        assert (found.status == "saturated") == (found.value == points.shape[1] == ceiling)
        return
    assert found.status == "saturated"
    assert found.value == pytest.approx(value, rel=1e-3)  # ESS and DANCo stop a little beside
    assert found.value >= ceiling * (1 - 1e-6)
    assert np.isnan(found.stderr)


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("skdim_MiND_ML", ball(5, 256, 64)),
        ("skdim_DANCo", ball(2, 80, 6)),
        ("skdim_lPCA", ball(5, 256, 64)),
        ("skdim_lPCA_maxgap", ball(5, 256, 64)),
        ("skdim_lPCA_Kaiser", ball(5, 256, 64)),
        ("skdim_lPCA_participation_ratio", ball(5, 256, 64)),
        ("skdim_FisherS", ball(5, 256, 64)),
        ("local_pca_k20_v90", ball(5, 256, 64)),
    ],
)
def test_a_value_below_a_ceiling_is_ok(name: str, points: np.ndarray) -> None:
    assert id_scaling.estimate(points, name)[name].status == "ok"


def test_knn_returns_no_more_than_the_coordinates() -> None:
    values = [theirs(normal(60, 7), "KNN", random_state=seed) for seed in range(60)]
    assert max(values) == CEILINGS["KNN"](60, 7) == 7


def test_a_single_inseparable_pair_is_the_ceiling_of_fishers() -> None:
    n, found = 120, skdim.id.FisherS()
    found._alphas = np.arange(0.6, 1, 0.02)[None]
    share = np.where(found._alphas[0] < 0.61, 2 / (n * (n - 1)), 0.0)  # each of the two, at the least margin only
    assert found._dimension_uniform_sphere(share)[1][0] == pytest.approx(CEILINGS["FisherS"](n, 60), rel=1e-12)


@pytest.mark.parametrize("class_name", [name for name, ceiling in CEILINGS.items() if ceiling is None])
def test_those_without_a_ceiling_go_beyond_what_bounds_the_others(class_name: str) -> None:
    # A simplex has equal distances, so these diverge; nearly so, they exceed coordinates and points.
    points = np.eye(40) + 1e-4 * normal(40, 40)
    with np.errstate(all="ignore"):
        value = theirs(points, class_name)
    assert not value <= 40 or value < 0 or class_name == "PH"


@pytest.mark.parametrize(("version", "make"), [("maxgap", normal), ("ratio", normal), ("Kaiser", normal)])
def test_versions_of_lpca_stay_below_their_ceilings(version: str, make: Callable) -> None:
    for n, d in ((30, 5), (30, 29), (30, 60)):
        assert theirs(make(n, d), "lPCA", ver=version) <= OF_VERSIONS[version](n, d)
