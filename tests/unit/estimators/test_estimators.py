"""Estimators: against other programs' numbers, scikit-dimension, independent optima and exact models."""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import brentq

with warnings.catch_warnings():  # importing skdim.id silences every warning of the process
    import skdim.datasets
    import skdim.id

from id_scaling import estimate
from id_scaling.errors import ConfigError
from id_scaling.estimators.apply import estimate_from_neighbors
from id_scaling.estimators.base import Estimate, Estimates
from id_scaling.estimators.grammar import Rule
from id_scaling.estimators.registry import GRAMMAR, definition_of, get_estimator
from id_scaling.estimators.standard_errors import factor
from id_scaling.estimators.twonn import n_kept
from id_scaling.neighbors.find import Neighbors, find_neighbors, stacked
from id_scaling.neighbors.views import View

K = 20


def value_of(points: np.ndarray, name: str) -> float:
    """Return one estimator's value, which must be ok."""
    found = estimate(points, [name])[name]
    assert found.status == "ok"
    return found.value


def asymptotic_stderr(name: str, found: Estimate | Estimates, n: int) -> float | np.ndarray:
    """Return standard errors as of n independent points: without the factor of their true spread."""
    return found.stderr / factor(get_estimator(name).spread, found.value, n)


def theirs(estimator: object, points: np.ndarray) -> float:
    """Return what an estimator of scikit-dimension gives, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(estimator.fit_transform(points))


def ball(d: int, n: int, seed: int = 0) -> np.ndarray:
    """Return n points uniform in a ball of d dimensions."""
    return skdim.datasets.hyperBall(n, d, random_state=seed)


def gaussian(d: int, n: int, width: int) -> np.ndarray:
    """Return n points of a d-dimensional normal distribution, rotated into `width` coordinates."""
    rng = np.random.default_rng(d)
    frame = np.linalg.qr(rng.standard_normal((width, width)))[0][:d]
    return rng.standard_normal((n, d)) @ frame


# ---- numbers made by other programs ----


def reference_cloud(name: str) -> np.ndarray:
    """Return the cloud on which scikit-dimension's reference numbers were made."""
    if name == "ball5_in10":
        return np.pad(ball(5, 300), ((0, 0), (0, 5)))
    return skdim.datasets.hyperSphere(300, 4, random_state=1)


def reference_numbers() -> dict[str, dict[str, dict[str, float]]]:
    """Return scikit-dimension's reference numbers: program -> cloud -> quantity."""
    return json.loads((importlib.resources.files("skdim") / "tests/reference/fixtures.json").read_text())


@pytest.mark.parametrize("cloud", ["ball5_in10", "sphere4_in5"])
@pytest.mark.parametrize(
    ("name", "program", "quantity", "tolerance"),
    [
        # Closed forms printed with 15 digits.
        ("mle", "intrinsicDimension", "mle_k20_mean", 1e-13),
        ("mle_harmonic", "intrinsicDimension", "mle_k20", 1e-13),
        # R stops its optimiser early.
        ("mind_ml", "intrinsicDimension", "mind_mli_k20_D10", 1e-6),
        # A curve fit where ours is a closed form.
        ("twoNN_f10", "dadapy", "twonn_base_mu0.9", 1e-9),
    ],
)
def test_values_equal_those_of_other_programs(
    name: str, program: str, quantity: str, tolerance: float, cloud: str
) -> None:
    expected = reference_numbers()[program][cloud][quantity]
    assert value_of(reference_cloud(cloud), name) == pytest.approx(expected, rel=tolerance)


def test_the_reference_numbers_tell_variants_apart() -> None:
    # The quantities above differ from one another by far more than any tolerance there.
    for cloud in ("ball5_in10", "sphere4_in5"):
        reference = reference_numbers()["intrinsicDimension"][cloud]
        values = sorted(reference[name] for name in ("mle_k20_mean", "mle_k20", "mle_k20_unbiased", "mle_k5"))
        assert np.diff(np.log(values)).min() > 1e-3


# ---- scikit-dimension, run beside ours ----

CLOUDS = {
    f"{name}-{n}": make(n)
    for n in (300, 1024)
    for name, make in {
        "ball2": lambda n: ball(2, n),
        "ball5": lambda n: ball(5, n),
        "ball10": lambda n: ball(10, n),
        "gaussian20in64": lambda n: gaussian(20, n, 64),
    }.items()
}


@pytest.mark.parametrize("cloud", CLOUDS)
def test_mle_equals_scikit_dimension(cloud: str) -> None:
    points = CLOUDS[cloud]
    # Both are closed forms in float64; what differs is how distances are rounded.
    assert value_of(points, "mle") == pytest.approx(theirs(skdim.id.MLE(), points), rel=1e-9)
    assert value_of(points, "mle_harmonic") == pytest.approx(skdim.id.MLE().fit(points).dimension_, rel=1e-9)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_twonn_equals_scikit_dimension(cloud: str) -> None:
    points = CLOUDS[cloud]
    # As for mle.
    assert value_of(points, "twoNN_f10") == pytest.approx(theirs(skdim.id.TwoNN(), points), rel=1e-9)


@pytest.mark.parametrize("percent", [5, 20, 50])
@pytest.mark.parametrize("cloud", ["ball5-300", "gaussian20in64-300", "ball10-1024"])
def test_twonn_equals_scikit_dimension_at_other_shares(cloud: str, percent: int) -> None:
    points = CLOUDS[cloud]
    expected = theirs(skdim.id.TwoNN(discard_fraction=percent / 100), points)
    assert value_of(points, f"twoNN_f{percent}") == pytest.approx(expected, rel=1e-9)  # as for mle


@pytest.mark.parametrize("cloud", [name for name in CLOUDS if not name.startswith("ball2")])
def test_mind_ml_equals_scikit_dimension_from_four_dimensions_up(cloud: str) -> None:
    points = CLOUDS[cloud]
    value = value_of(points, "mind_ml")
    assert value >= 4  # below, the other optimiser is not always at the maximum
    # The other optimiser stops within 7e-7 of the maximum.
    assert value == pytest.approx(theirs(skdim.id.MiND_ML(D=100), points), rel=1e-6)


@pytest.mark.parametrize("class_name", ["TLE", "CorrInt", "TwoNN", "MOM"])
def test_skdim_estimators_equal_scikit_dimension_exactly(class_name: str) -> None:
    points = ball(5, 300)
    found = estimate(points, [f"skdim_{class_name}"])[f"skdim_{class_name}"]
    assert found.value == theirs(getattr(skdim.id, class_name)(), points)
    assert np.isnan(found.stderr)
    assert found.status == "ok"


def test_skdim_estimators_see_the_points_that_count() -> None:
    points = ball(5, 100)
    repeated = np.concatenate([points, points[:30]]).astype(np.float32)
    expected = theirs(skdim.id.TLE(), repeated[:100].astype(np.float64))
    found = estimate(repeated, ["skdim_TLE"])["skdim_TLE"]
    assert (found.value, found.n_points, found.n_distinct) == (expected, 130, 100)


def test_a_failure_in_scikit_dimension_is_a_status() -> None:
    line = np.random.default_rng(0).uniform(size=(40, 1))
    found = estimate(line, ["skdim_TLE", "mle"])
    assert found["skdim_TLE"].status.startswith("failed: ValueError: ")
    assert np.isnan(found["skdim_TLE"].value)
    assert found["mle"].status == "ok"


# ---- the maximum of mind_ml ----


def from_log_ratios(log_ratio: np.ndarray, ranks: tuple[int, ...]) -> Neighbors:
    """Return neighbors of clouds whose log(r_j / r_1) is given, (n_clouds, n_points, n_ranks)."""
    n_clouds, n = log_ratio.shape[:2]
    counts = np.full(n_clouds, n)
    statistics = {"n_points": counts, "n_used": counts, "n_nonfinite": np.zeros(n_clouds)}
    return Neighbors(ranks, np.ones((n_clouds, n)), log_ratio, statistics)


def of_neighbors(name: str, neighbors: Neighbors) -> Estimates:
    """Return one estimator's values on stored neighbors."""
    return estimate_from_neighbors(get_estimator(name), neighbors)


def model_rho(d: float, n: int, seed: int = 0) -> np.ndarray:
    """Return n draws of r_1 / r_21 in d dimensions: the least of twenty uniform radii, to the power 1 / d."""
    return np.random.default_rng(seed).uniform(size=(n, K)).min(axis=1) ** (1 / d)


def mind_log_likelihood(d: float, rho: np.ndarray) -> float:
    return len(rho) * np.log(K * d) + (d - 1) * np.log(rho).sum() + (K - 1) * np.log1p(-(rho**d)).sum()


def mind_score(d: float, rho: np.ndarray) -> float:
    """Return the derivative of the log-likelihood, in powers of rho."""
    return len(rho) / d + (np.log(rho) * (1 - (K - 1) * rho**d / -np.expm1(d * np.log(rho)))).sum()


@pytest.mark.parametrize("n", [22, 1000])
@pytest.mark.parametrize("d", [0.5, 0.8, 1.5, 1.9, 3, 10, 60])
def test_mind_ml_is_the_root_of_the_score(d: float, n: int) -> None:
    rho = model_rho(d, n)
    found = of_neighbors("mind_ml", from_log_ratios(-np.log(rho)[None, :, None], (K + 1,)))
    root = brentq(mind_score, d / 4, 4 * d, args=(rho,), xtol=1e-300, rtol=1e-15)
    # The score is a sum of a thousand terms at 1e-16 each, and brentq stops at 1e-15.
    assert found.value[0] == pytest.approx(root, rel=1e-9)
    assert found.status[0] == "ok"


@pytest.mark.parametrize("d", [0.5, 3, 60])
def test_mind_ml_gives_the_observed_information_as_standard_error(d: float) -> None:
    rho = model_rho(d, 1000)
    found = of_neighbors("mind_ml", from_log_ratios(-np.log(rho)[None, :, None], (K + 1,)))
    value, step = found.value[0], 1e-5 * found.value[0]
    slope = (mind_score(value + step, rho) - mind_score(value - step, rho)) / (2 * step)
    stderr = asymptotic_stderr("mind_ml", found, 1000)[0]
    assert stderr == pytest.approx(1 / np.sqrt(-slope), rel=1e-6)  # a central difference's error


def neighbor_rho(points: np.ndarray) -> np.ndarray:
    """Return r_1 / r_21 of each point, from coordinate differences."""
    distances = np.sort(np.linalg.norm(points[:, None] - points[None], axis=-1), axis=1)
    return distances[:, 1] / distances[:, K + 1]


@pytest.mark.parametrize(
    ("points", "integer"),
    [
        pytest.param(np.random.default_rng(0).random((300, 2)), 2, id="square-300"),
        pytest.param(np.random.default_rng(1).random((1024, 2)), 2, id="square-1024"),
        pytest.param(np.pad(np.random.default_rng(3).random((600, 1)), ((0, 0), (0, 1))), 1, id="segment-600"),
    ],
)
def test_mind_ml_finds_the_maximum_where_scikit_dimension_stays_at_an_integer(points, integer: int) -> None:
    value, stuck = value_of(points, "mind_ml"), theirs(skdim.id.MiND_ML(D=100), points)
    print(f"mind_ml {value:.6f}, scikit-dimension {stuck:.6f}")
    assert stuck == integer  # its starting point, not moved
    assert value < integer - 0.01  # a difference that shows: 0.02 and more on such clouds
    rho = neighbor_rho(points)
    at_value = mind_log_likelihood(value, rho)
    # Ours is the maximum: the likelihood is less at the integer, and to both sides.
    assert at_value > mind_log_likelihood(stuck, rho)
    assert at_value > mind_log_likelihood(value * 1.001, rho)
    assert at_value > mind_log_likelihood(value * 0.999, rho)


# ---- the ceiling of mind_ml_dNN ----


@pytest.mark.parametrize("cap", [2, 5, 7])
def test_a_ceiling_that_binds_gives_itself_and_says_saturated(cap: int) -> None:
    points = ball(10, 300)
    assert value_of(points, "mind_ml") > cap
    found = estimate(points, [f"mind_ml_d{cap}"])[f"mind_ml_d{cap}"]
    assert (found.value, found.status) == (cap, "saturated")
    assert np.isnan(found.stderr)


@pytest.mark.parametrize("cap", [10, 20, 9999])
def test_a_ceiling_that_does_not_bind_changes_nothing(cap: int) -> None:
    points = ball(10, 300)
    found = estimate(points, ["mind_ml", f"mind_ml_d{cap}"])
    assert found["mind_ml"].value < cap
    assert found["mind_ml"] == found[f"mind_ml_d{cap}"]


# ---- exact models: the answer is known ----

N_CLOUDS, N_POINTS = 100, 1000


@functools.cache
def poisson_neighbors(d: float) -> Neighbors:
    """Return neighbors whose r_j^d are cumulated exponentials, as around a point of a uniform density."""
    rng = np.random.default_rng(20)
    volumes = np.cumsum(rng.exponential(size=(N_CLOUDS, N_POINTS, K + 1)), axis=-1)
    log_r = np.log(volumes) / d
    return from_log_ratios(log_r - log_r[..., :1], tuple(range(1, K + 2)))


@pytest.mark.parametrize("d", [0.7, 5, 50])
@pytest.mark.parametrize(
    ("name", "factor"),
    [
        # The mean of k - 1 = 19 exponentials is in the denominator of each d_i, and E[1 / mean] = 19 / 18.
        ("mle", 19 / 18),
        # The same over all points: 19,000 / 18,999.
        ("mle_harmonic", 1.0),
        ("mind_ml", 1.0),
        ("mind_ml_d200", 1.0),
        ("twoNN_f5", 1.0),
        ("twoNN_f10", 1.0),
        ("twoNN_f20", 1.0),
        ("twoNN_f50", 1.0),
    ],
)
def test_the_exact_model_gives_back_its_dimension(name: str, factor: float, d: float) -> None:
    found = of_neighbors(name, poisson_neighbors(d))
    assert set(found.status) == {"ok"}
    ratio = found.value / d
    standard_error = ratio.std(ddof=1) / np.sqrt(N_CLOUDS)
    # Four standard errors for chance, and 1 / n for what is left of the bias at n points.
    assert abs(ratio.mean() - factor) < 4 * standard_error + 1 / N_POINTS
    assert standard_error < 0.005  # five per cent in a cloud would be a poor test: 4 standard errors are 2 %


def test_the_exact_model_sees_the_bias_of_the_arithmetic_mean() -> None:
    value = of_neighbors("mle", poisson_neighbors(5)).value
    # 5.6 per cent of bias is some seventy standard errors: the test above can fail.
    assert abs(value.mean() / 5 - 1) > 20 * value.std(ddof=1) / 5 / np.sqrt(N_CLOUDS)


@pytest.mark.parametrize("name", ["mle", "mle_harmonic", "mind_ml", "twoNN_f10", "twoNN_f50"])
def test_asymptotic_standard_errors_are_the_spread_of_independent_points(name: str) -> None:
    with np.errstate(divide="ignore"):
        value, stderr = get_estimator(name).compute(poisson_neighbors(5))
    # The spread of 100 clouds is itself known to 7 per cent: four times that.
    assert stderr.mean() == pytest.approx(value.std(ddof=1), rel=0.28)
    # And it varies little from cloud to cloud, being an average over 1000 points.
    assert stderr.std() < 0.1 * stderr.mean()


# ---- definitions, term by term ----


def test_mle_is_the_mean_of_pointwise_estimates_and_harmonic_their_harmonic_mean() -> None:
    points = ball(5, 120)
    distances = np.sort(np.linalg.norm(points[:, None] - points[None], axis=-1), axis=1)[:, 1 : K + 1]
    pointwise = (K - 1) / np.log(distances[:, -1:] / distances[:, :-1]).sum(axis=1)
    found = estimate(points, ["mle", "mle_harmonic"])
    assert found["mle"].value == pytest.approx(pointwise.mean(), rel=1e-12)  # rounding of a hundred terms
    stderr = {name: asymptotic_stderr(name, one, 120) for name, one in found.items()}
    assert stderr["mle"] == pytest.approx(pointwise.std(ddof=1) / np.sqrt(120), rel=1e-12)
    harmonic = 1 / (1 / pointwise).mean()
    assert found["mle_harmonic"].value == pytest.approx(harmonic, rel=1e-12)
    assert stderr["mle_harmonic"] == pytest.approx(harmonic / np.sqrt(120 * (K - 1)), rel=1e-12)


@pytest.mark.parametrize("n", [3, 7, 20, 90, 100])
@pytest.mark.parametrize("percent", [0, 1, 10, 30, 33])
def test_twonn_is_the_slope_over_the_ratios_kept(percent: int, n: int) -> None:
    points = ball(5, n)
    distances = np.sort(np.linalg.norm(points[:, None] - points[None], axis=-1), axis=1)
    log_mu = np.sort(np.log(distances[:, 2] / distances[:, 1]))
    # In integers, as 90 x 0.7 is 62.99… in floats; the last ratio has F = 1 and is never kept.
    kept = min(n * (100 - percent) // 100, n - 1)
    name = f"twoNN_f{percent}"
    found = estimate(points, [name])[name]
    if kept < 2:
        assert found.status == "too_few_points"
        return
    x, y = log_mu[:kept], -np.log(1 - np.arange(1, kept + 1) / n)
    slope = np.linalg.lstsq(x[:, None], y, rcond=None)[0][0]
    assert found.value == pytest.approx(slope, rel=1e-11)  # log mu of the closest pairs loses some digits
    assert asymptotic_stderr(name, found, n) == pytest.approx(slope / np.sqrt(kept), rel=1e-11)


def test_the_share_of_ratios_kept_is_counted_in_integers() -> None:
    assert n_kept(90, 30) == 63
    assert int(90 * (1 - 0.3)) == 62  # what floats make of it


@pytest.mark.parametrize(
    ("name", "min_points"),
    [
        ("mle", 21),
        ("mle_harmonic", 21),
        ("mind_ml", 22),
        ("mind_ml_d20", 22),
        ("twoNN_f0", 3),
        ("twoNN_f10", 3),
        ("twoNN_f50", 4),
        ("twoNN_f90", 20),
        ("twoNN_f99", 200),
        ("skdim_TLE", 22),
    ],
)
def test_one_point_fewer_than_needed_is_too_few(name: str, min_points: int) -> None:
    points = ball(5, min_points)
    assert get_estimator(name).min_points == min_points
    assert estimate(points, [name])[name].status == "ok"
    found = estimate(points[:-1], [name])[name]
    assert (found.status, np.isnan(found.value), np.isnan(found.stderr)) == ("too_few_points", True, True)


# ---- names ----


@pytest.mark.parametrize(
    ("name", "module", "parameters"),
    [
        ("mle", "mle", {}),
        ("mle_harmonic", "mle", {"mean": "harmonic"}),
        ("twoNN_f10", "twonn", {"discard_percent": "10"}),
        ("twoNN_f5", "twonn", {"discard_percent": "5"}),
        ("mind_ml", "mind_ml", {}),
        ("mind_ml_d20", "mind_ml", {"cap": "20"}),
        ("skdim_TLE", "skdim", {"class_name": "TLE"}),
    ],
)
def test_a_name_is_the_whole_definition(name: str, module: str, parameters: dict[str, str]) -> None:
    definition = definition_of(name)
    assert definition.module == f"id_scaling.estimators.{module}"
    assert definition.parameters == parameters
    assert get_estimator(name).name == name


@pytest.mark.parametrize("rule", GRAMMAR, ids=lambda rule: rule.form)
def test_every_rule_has_an_example(rule: Rule) -> None:
    assert get_estimator(rule.example).name == rule.example
    assert [other for other in GRAMMAR if other.parameters(rule.example) is not None] == [rule]


@pytest.mark.parametrize("class_name", [name for name in dir(skdim.id) if hasattr(getattr(skdim.id, name), "fit")])
def test_every_estimator_of_scikit_dimension_has_a_name(class_name: str) -> None:
    estimator = get_estimator(f"skdim_{class_name}")
    assert (estimator.name, estimator.needs) == (f"skdim_{class_name}", "points")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("MLE", "did you mean 'mle'?"),
        (" mle", "did you mean 'mle'?"),
        ("mle\n", "did you mean 'mle'?"),
        ("mle_50", "did you mean 'mle_k50'?"),
        ("mle50", "did you mean 'mle_k50'?"),
        ("mle_k", "did you mean 'mle_k10'?"),
        ("mle_k0", "found k 0, expected 4 to 9999"),
        ("unbiased_k10", "did you mean 'mle_unbiased_k10'?"),
        ("TwoNN", "did you mean 'twoNN_f10'?"),
        ("twonn_f10", "did you mean 'twoNN_f10'?"),
        ("twoNN_f05", "did you mean 'twoNN_f5'?"),
        ("twoNN_f", "did you mean 'twoNN_f10'?"),
        ("twoNN_f-1", "did you mean 'twoNN_f1'?"),
        ("twoNN_f1.5", "did you mean 'twoNN_f10'?"),
        ("twoNN", "did you mean 'twoNN_f10'?"),
        ("mle_mean", "did you mean 'mle_median'?"),
        ("mind_ml_d0", "found d 0, expected 1 to 9999"),
        ("mind_ml_d", "did you mean 'mind_ml_d20'?"),
        ("mind_ml_d20.5", "did you mean 'mind_ml_d20'?"),
        ("twoNN_f100", "found f 100, expected 0 to 99"),
        ("gride", "did you mean 'gride_n8'?"),
        ("gride_8", "did you mean 'gride_n8'?"),
        ("gride_n0", "found n 0, expected 1 to 9999"),
        ("mind_ml_d020", "did you mean 'mind_ml_d20'?"),
        ("mind_ml_d10000", "found d 10000, expected 1 to 9999"),
        ("pca_80", "found NN 80, expected 90, 95 or 99"),
        ("local_pca_50_90", "did you mean 'local_pca_k50_v90'?"),
        ("local_pca_k50_v9", "found v 9, expected 10 to 99"),
        ("skdim_", "did you mean 'skdim_TLE'?"),
        ("danco", "did you mean 'skdim_DANCo'?"),
        ("DANCo", "did you mean 'skdim_DANCo'?"),
        ("ess", "did you mean 'skdim_ESS'?"),
        ("2NN", "did you mean 'twoNN_f10'?"),
        ("2-nn", "did you mean 'twoNN_f10'?"),
        ("mle_med", "did you mean 'mle_median'?"),
        ("phd_txt", "did you mean 'phd_text'?"),
        (f"mle_k{'9' * 5000}", f"found k {'9' * 5000}, expected 4 to 9999"),
    ],
)
def test_a_misspelt_name_is_answered_by_the_nearest_and_its_method(name: str, advice: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get_estimator(name)
    found, _, listed = str(caught.value).partition(" (names of this method: ")
    assert found == f"{name!r} is not an estimator: {advice}"
    (module,) = {rule.module for rule in GRAMMAR if f"{rule}; " in listed}  # of one method, and all of its names
    assert listed == "; ".join(
        [*(str(rule) for rule in GRAMMAR if rule.module == module), "all names: docs/estimators.md)"]
    )


@pytest.mark.parametrize("name", ["", "3", "None", "euclid"])
def test_a_name_near_none_is_answered_by_all(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name!r} is not an estimator: the names are ") as caught:
        get_estimator(name)
    assert all(str(rule) in str(caught.value) for rule in GRAMMAR)


def message_about(name: str) -> str:
    """Return what the package says of a name; nothing of a valid one."""
    try:
        get_estimator(name)
    except ConfigError as error:
        return str(error)
    return ""


def misspelt(name: str) -> set[str]:
    """Return what one wrong, missing or added character makes of a name."""
    places, letters = range(len(name)), "aN_0 5.X-é"
    return {
        *(name[:place] + name[place + 1 :] for place in places),
        *(name[:place] + name[place].swapcase() + name[place + 1 :] for place in places),
        *(
            name[:place] + letter + name[place + is_replaced :]
            for place in places
            for letter in letters
            for is_replaced in (0, 1)
        ),
        *(name + letter for letter in letters),
    }


@pytest.mark.parametrize("rule", GRAMMAR, ids=lambda rule: rule.form)
def test_a_misspelling_raises_nothing_but_one_pointed_error(rule: Rule) -> None:
    for name in misspelt(rule.example):
        message = message_about(name)
        suggested = re.search(r"did you mean '(\w+)'", message)
        assert not message or suggested or ", expected " in message, message
        if suggested and "skdim.id has no" not in message:
            assert message_about(suggested[1]) == ""


@pytest.mark.parametrize("spell", [str.lower, str.upper, str.title, str.swapcase])
@pytest.mark.parametrize("name", [rule.example for rule in GRAMMAR])
def test_a_name_in_another_case_is_answered_by_itself(name: str, spell: Callable[[str], str]) -> None:
    if spell(name) != name:
        with pytest.raises(ConfigError, match=rf"did you mean '({name}|{name.removeprefix('skdim_')})'"):
            get_estimator(spell(name))


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("skdim_DANCoo", "did you mean 'DANCo'?"),
        ("skdim_Nope", "allowed: CorrInt, DANCo, ESS, "),
        ("skdim_BaseEstimator", "allowed: CorrInt, DANCo, ESS, "),
    ],
)
def test_an_unknown_estimator_of_scikit_dimension_is_answered_by_those_it_has(name: str, suggestion: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get_estimator(name)
    class_name = name.removeprefix("skdim_")
    expected = f"{name!r} is not an estimator: skdim.id has no {class_name!r}; {suggestion}"
    assert str(caught.value).startswith(expected)


# ---- warnings of the process ----

FILTERS = """
import importlib
import sys
import warnings
import numpy as np
import id_scaling.estimators.arrays
before = list(warnings.filters)
import id_scaling.estimators.skdim
points = np.random.default_rng(0).standard_normal((60, 5))
found = id_scaling.estimators.arrays.estimate(points, ["skdim_TLE", "skdim_CorrInt"])
assert all(one.value > 0 for one in found.values()), found
print(warnings.filters == before)
importlib.reload(sys.modules["skdim.id._FisherS"])
print(warnings.filters == before)
"""


def test_skdim_estimators_leave_the_warning_filters() -> None:
    done = subprocess.run([sys.executable, "-c", FILTERS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # The second is scikit-dimension by itself: the comparison can fail.
    assert done.stdout.split() == ["True", "False"]


# ---- where scikit-dimension says something else on purpose: both values ----


def test_mind_ml_has_no_ceiling_but_the_one_in_its_name() -> None:
    points = skdim.datasets.hyperBall(300, 20, random_state=0)
    found = estimate(points, ["mind_ml", "mind_ml_d10"])
    assert skdim.id.MiND_ML().fit_transform(points) == 10
    assert found["mind_ml"].value > 13
    assert (found["mind_ml_d10"].value, found["mind_ml_d10"].status) == (10, "saturated")


def test_a_cloud_of_equal_distances_is_no_ceiling() -> None:
    found = estimate(np.eye(64), ["mind_ml", "mind_ml_d20"])
    assert {one.status for one in found.values()} == {"degenerate"}
    assert all(np.isnan(one.value) for one in found.values())


def test_a_kept_repetition_gives_no_number() -> None:
    points = skdim.datasets.hyperBall(300, 5, random_state=0)
    points[7] = points[3]
    found = estimate(points, ["mle"], duplicates="keep")["mle"]
    assert (found.status, np.isnan(found.value)) == ("degenerate", True)
    assert np.isfinite(skdim.id.MLE().fit_transform(points))


def test_too_few_points_are_not_given_fewer_neighbors() -> None:
    points = skdim.datasets.hyperBall(10, 5, random_state=0)
    assert estimate(points, ["mle"])["mle"].status == "too_few_points"
    assert np.isfinite(skdim.id.MLE().fit_transform(points))


def test_a_share_of_ratios_is_not_that_of_a_rounded_product() -> None:
    # 100 * 0.7 is 70 - 1e-14 in floating point: scikit-dimension keeps 69, or as many as its rounding gives.
    points = skdim.datasets.hyperBall(90, 5, random_state=0)
    ours, theirs = estimate(points, ["twoNN_f30"])["twoNN_f30"].value, skdim.id.TwoNN(0.3)
    assert ours != pytest.approx(theirs.fit_transform(points), rel=1e-6)


def test_twonn_ml_is_unbiased_over_all_ratios() -> None:
    points = skdim.datasets.hyperBall(300, 5, random_state=0)
    log_mu = np.log(np.divide(*skdim._commonfuncs.get_nn(points, 2)[0].T[::-1]))
    assert estimate(points, ["twoNN_ml"])["twoNN_ml"].value == pytest.approx(299 / log_mu.sum(), rel=1e-9)


def test_local_values_of_the_unbiased_form_average_to_it() -> None:
    points = skdim.datasets.hyperBall(300, 5, random_state=0)
    neighbors = stacked([find_neighbors(points, [View(0)], range(1, 21))[0]])
    estimator = get_estimator("mle_unbiased")
    local = estimate_from_neighbors(estimator, neighbors, is_local=True)
    assert len(local.local[0]) / np.sum(1 / local.local[0]) == pytest.approx(local.value[0], rel=1e-12)


@pytest.mark.parametrize("name", ["mle_k2", "mle_k3", "mom_k3", "mle_unbiased_k2", "mle_harmonic_k1"])
def test_a_name_without_a_value_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"found k [123], expected [234] to 9999.*its spread is infinite below"):
        get_estimator(name)
