"""Dimensions of simple distributions that give a mean: against clouds that were not simulated for it."""

from __future__ import annotations

import numpy as np
import pytest

from id_scaling import estimate
from id_scaling.results.equivalent_tables import TABLES
from id_scaling.results.equivalents import DIMENSION, DISTRIBUTIONS, N_POINTS, equivalent
from tests.simulations.tabulate_equivalents import DISTRIBUTIONS as DRAWS

NAMES = list(TABLES)


def mean_of(name: str, n: int, d: int, estimators: list[str], n_clouds: int = 12) -> dict[str, float]:
    """Return the mean estimates of clouds drawn anew."""
    rng = np.random.default_rng([99, n, d])
    found = [estimate(DRAWS[name](rng, n, d), estimators) for _ in range(n_clouds)]
    return {estimator: float(np.mean([one[estimator].value for one in found])) for estimator in estimators}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(("n", "d"), [(64, 5), (200, 12), (700, 7), (700, 45), (1024, 90)])
def test_clouds_of_a_distribution_have_its_own_dimension(n: int, d: int, distribution: str) -> None:
    """At sizes and dimensions between those simulated too."""
    for estimator, mean in mean_of(distribution, n, d, NAMES).items():
        value, status = equivalent(mean, n, estimator, distribution)
        assert status == "ok"
        # Twelve clouds: three times the 3 % at 700 points, and 7 % at 64, that estimators of two neighbors vary by.
        assert value == pytest.approx(d, rel=0.2 if n < 300 else 0.1), estimator


def test_fifty_dimensions_from_a_thousand_points() -> None:
    """Measured apart, with scikit-dimension on clouds of 1024 points of 50 dimensions: TwoNN 30.7, MLE 27.3."""
    assert equivalent(30.7, 1024, "twoNN_f10", "gaussian")[0] == pytest.approx(50, rel=0.06)
    assert equivalent(27.3, 1024, "mle", "gaussian")[0] == pytest.approx(50, rel=0.06)
    assert equivalent(9.5, 1024, "mle", "gaussian")[0] == pytest.approx(10, rel=0.03)


@pytest.mark.parametrize(
    ("mean", "n", "estimator", "status"),
    [
        (0.5, 1024, "mle", "out_of_range"),
        (900.0, 1024, "mle", "out_of_range"),
        (10.0, 63, "mle", "out_of_range"),
        (10.0, 4097, "mle", "out_of_range"),
        (10.0, 1024, "abid", "not_calibrated"),
    ],
)
def test_what_was_not_simulated_has_no_equivalent(mean: float, n: int, estimator: str, status: str) -> None:
    value, found = equivalent(mean, n, estimator, "gaussian")
    assert np.isnan(value)
    assert found == status


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("estimator", NAMES)
def test_tables_rise_with_dimension_but_for_their_noise(estimator: str, distribution: str) -> None:
    table = np.array(TABLES[estimator][distribution])
    assert table.shape == (len(N_POINTS), len(DIMENSION))
    # Steps of a tenth and more in d, errors of a mean of two hundredths at the most.
    assert (np.diff(np.log(table), axis=1) > -0.03).all()
    assert (table[:, -1] > 5 * table[:, 2]).all()


def test_more_points_of_a_large_dimension_tell_more_of_it() -> None:
    values = [equivalent(30.0, n, "mle", "gaussian")[0] for n in (128, 512, 2048)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 1.2 * values[-1]
