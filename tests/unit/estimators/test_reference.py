"""Estimators against the third-party numbers that scikit-dimension ships, and against exact models."""

from __future__ import annotations

import json
from importlib.resources import files

import numpy as np
import pytest
import skdim

import id_scaling
from id_scaling.errors import ConfigError
from id_scaling.estimators.registry import get_estimator
from id_scaling.neighbors.find import Neighbors, find_neighbors, stacked
from id_scaling.neighbors.views import View

FIXTURES = json.loads(files("skdim.tests.reference").joinpath("fixtures.json").read_text())
CLOUDS = {
    "ball5_in10": np.hstack([skdim.datasets.hyperBall(300, 5, random_state=0), np.zeros((300, 5))]),
    "sphere4_in5": skdim.datasets.hyperSphere(300, 4, random_state=1),
}
# (our name, the program, its key, relative difference): DADApy finds GRIDE's root to 1e-8, R that of MiND_ML too.
REFERENCES = [
    ("mle", "intrinsicDimension", "mle_k20_mean", 1e-13),
    ("mle_harmonic", "intrinsicDimension", "mle_k20", 1e-13),
    ("mle_unbiased", "intrinsicDimension", "mle_k20_unbiased", 1e-13),
    ("mle_harmonic_k5", "intrinsicDimension", "mle_k5", 1e-13),
    ("mind_ml", "intrinsicDimension", "mind_mli_k20_D10", 2e-8),
    ("twoNN_f10", "dadapy", "twonn_base_mu0.9", 1e-11),
    ("twoNN_ml", "dadapy", "twonn_ml", 1e-13),
    *((f"gride_n{2**i}", "dadapy", ("gride_range64_ids", i), 2e-8) for i in range(6)),
    ("corrint", "ider", "corint_k10_k20", 1e-12),
]


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize(("name", "program", "key", "rel"), REFERENCES, ids=lambda value: str(value))
def test_values_are_those_of_third_parties(cloud: str, name: str, program: str, key: str | tuple, rel: float) -> None:
    reference = FIXTURES[program][cloud]
    expected = reference[key] if isinstance(key, str) else reference[key[0]][key[1]]
    assert id_scaling.estimate(CLOUDS[cloud], [name])[name].value == pytest.approx(expected, rel=rel)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_method_of_moments_is_that_of_octave(cloud: str) -> None:
    reference = FIXTURES["matlab"][cloud]
    assert reference["n_neighbors"] == 20
    found = id_scaling.estimate(CLOUDS[cloud], ["mom_k20"])["mom_k20"]
    assert found.value == pytest.approx(np.mean(reference["mom_pw"]), rel=1e-12)


def of_model(d: float, n_clouds: int, n_points: int, ranks: tuple[int, ...], seed: int = 0) -> Neighbors:
    """Return neighbors drawn from the model itself, r_j^d being a Poisson process: no geometry, no shared points."""
    rng = np.random.default_rng(seed)
    powers = np.cumsum(rng.exponential(size=(n_clouds, n_points, max(ranks))), axis=-1)
    logs = np.log(powers)[..., np.array(ranks) - 1] / d
    counts = {"n_points": n_points, "n_used": n_points, "n_nonfinite": 0}
    statistics = {name: np.full(n_clouds, count) for name, count in counts.items()}
    return Neighbors(ranks, np.exp(logs[..., 0]), logs - logs[..., :1], statistics)


@pytest.mark.parametrize("d", [0.7, 2.0, 10.0, 60.0])
@pytest.mark.parametrize(
    ("name", "bias"),
    [
        # E 1 / Gamma(k - 1) = 1 / (k - 2): the mean of Hill's estimates is (k - 1) / (k - 2) too large.
        ("mle", 19 / 18),
        ("mle_k10", 9 / 8),
        ("mle_harmonic", 1.0),
        ("mle_unbiased", 18 / 19),
        ("twoNN_ml", 1.0),
        ("gride_n1", 1.0),
        ("gride_n4", 1.0),
        ("gride_n16", 1.0),
    ],
)
def test_the_exact_model_gives_back_its_dimension(name: str, bias: float, d: float) -> None:
    estimator = get_estimator(name)
    value, stderr = estimator.compute(of_model(d, 200, 500, tuple(sorted({1, *estimator.ranks}))))
    # Five standard errors of the mean of 200, and the bias of a ratio of means, below 1 / n_points.
    assert np.mean(value) == pytest.approx(bias * d, abs=5 * np.std(value) / np.sqrt(200) + bias * d / 500)
    # The points are independent here, so the spread is what the formula says; of 200 values it is known to 5 %.
    assert np.std(value) == pytest.approx(np.mean(stderr), rel=0.2)


def test_gride_looks_at_its_own_scale_alone() -> None:
    # A plane with noise of a fiftieth of its unit spacing: thick to near neighbors, thin to far ones.
    rng = np.random.default_rng(1)
    plane = np.hstack([rng.uniform(0, 30, (1000, 2)), 0.5 * rng.standard_normal((1000, 8))])
    found = id_scaling.estimate(plane, ["gride_n1", "gride_n4", "gride_n64"])
    assert found["gride_n1"].value > found["gride_n4"].value > found["gride_n64"].value
    assert found["gride_n64"].value == pytest.approx(2, abs=0.5)


@pytest.mark.parametrize(
    ("name", "n_points", "status"),
    [
        ("gride_n1", 3, "ok"),
        ("gride_n256", 1023, "ok"),  # to half of a context, less its first token
        ("gride_n333", 1000, "ok"),
        ("gride_n334", 1000, "too_few_points"),
        ("gride_n499", 1000, "too_few_points"),
    ],
)
def test_gride_looks_no_further_than_two_thirds_of_the_points(name: str, n_points: int, status: str) -> None:
    points = np.random.default_rng(0).uniform(size=(n_points, 2))
    assert id_scaling.estimate(points, [name])[name].status == status


def test_gride_keeps_the_ratios_that_scikit_dimension_leaves_out() -> None:
    rng = np.random.default_rng(2)
    points = rng.standard_normal((300, 4))
    points[:3] = points[3:6] + 1e-9 * rng.standard_normal((3, 4))  # three near twins: ratios of 1e8
    neighbors = stacked([find_neighbors(points, [View(0)], (1, 2))[0]])
    ours = get_estimator("gride_n1").compute(neighbors)[0][0]
    assert id_scaling.estimate(points, ["gride_n1"])["gride_n1"].status == "near_copies"
    theirs = skdim.id.GRIDE(n1=1, n2=2).fit(points).dimension_
    without = id_scaling.estimate(points[6:], ["gride_n1"])["gride_n1"].value
    assert ours < 0.9 * without  # six log-ratios near 18 among 300 that sum to about 75
    assert theirs == pytest.approx(without, rel=0.1)


@pytest.mark.parametrize("name", ["mle", "mle_k10", "mle_harmonic", "mom_k20"])
def test_local_values_average_to_the_estimate(name: str) -> None:
    estimator = get_estimator(name)
    neighbors = of_model(5.0, 3, 100, estimator.ranks)
    neighbors.r1[:, :4] = np.nan
    neighbors.log_ratio[:, :4] = np.nan
    local = estimator.local(neighbors)
    assert local.shape == neighbors.r1.shape
    assert np.isnan(local[:, :4]).all()
    mean = 1 / np.nanmean(1 / local, axis=1) if "harmonic" in name else np.nanmean(local, axis=1)
    np.testing.assert_allclose(estimator.compute(neighbors)[0], mean, rtol=1e-12)


@pytest.mark.parametrize("name", ["mle_k1", "mom", "gride", "gride_n0"])
def test_a_definition_has_one_name(name: str) -> None:
    with pytest.raises(ConfigError, match="is not an estimator"):
        get_estimator(name)
