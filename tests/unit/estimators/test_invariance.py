"""What must not change an ID, on clouds that hypothesis draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import id_scaling

NAMES = ("mle", "mle_harmonic", "twoNN_f10", "twoNN_ml", "mind_ml", "gride_n4", "mom_k10", "corrint")
# (dtype, what is promised of an ID from such points)
DTYPES = st.sampled_from([(np.float16, 1e-6), (np.float32, 1e-6), (np.float64, 1e-9)])
few = settings(max_examples=25, deadline=None, derandomize=True)


@st.composite
def clouds(draw: st.DrawFn) -> np.ndarray:
    """Draw a cloud of 30 to 200 points: an image of a few Gaussian coordinates, curved, off the origin."""
    seed, n = draw(st.integers(0, 2**32 - 1)), draw(st.integers(30, 200))
    latent, d = draw(st.integers(1, 8)), draw(st.integers(8, 40))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, latent)) @ rng.standard_normal((latent, d))
    return x + 0.3 * np.sin(x) + draw(st.sampled_from([0.0, 3.0]))


# A line of few points, drawn at random, may have some so near each other that they decide an estimate.
STATUSES = {"ok", "near_copies"}


def ids(points: np.ndarray, **given) -> dict[str, tuple[str, float]]:
    """Return the status and the ID of a cloud by each estimator; there is no ID where near copies decide it."""
    found = {name: (one.status, one.value) for name, one in id_scaling.estimate(points, NAMES, **given).items()}
    assert {status for status, _ in found.values()} <= STATUSES
    assert all(np.isnan(value) == (status == "near_copies") for status, value in found.values())
    return found


def assert_same(found: dict[str, tuple[str, float]], expected: dict[str, tuple[str, float]], rel: float) -> None:
    """Assert that statuses are the same, and IDs next to the same; of the pairs within a radius one more may count.

    Without a tolerance every bit is the same.
    """
    if not rel:
        np.testing.assert_equal(found, expected)  # NaN is NaN
    assert {name: status for name, (status, _) in found.items()} == {
        name: status for name, (status, _) in expected.items()
    }
    for name, (_, value) in expected.items():
        assert found[name][1] == pytest.approx(value, rel=1e-2 if name == "corrint" else rel, nan_ok=True)


@few
@given(clouds(), DTYPES, st.integers(-8, 5))
def test_scaling_by_a_power_of_two_changes_no_bit(points: np.ndarray, dtype: tuple, power: int) -> None:
    points = points.astype(dtype[0])
    if dtype[0] is np.float16:
        points = (points.astype(float).round(2) + 0.0).astype(np.float16)
        power = max(power, 0)  # small halves lose digits
    scaled = (points * dtype[0](2.0**power)).astype(dtype[0])
    assert_same(ids(scaled), ids(points), 0.0)


@few
@given(clouds(), st.sampled_from([-900, -200, 200, 400]))
def test_scaling_far_changes_no_bit_of_what_float64_holds(points: np.ndarray, power: int) -> None:
    assert_same(ids(points * 2.0**power), ids(points), 1e-12)


@few
@given(clouds(), DTYPES, st.integers(0, 2**32 - 1))
def test_a_permutation_of_the_points_changes_nothing(points: np.ndarray, dtype: tuple, seed: int) -> None:
    points = points.astype(dtype[0])
    order = np.random.default_rng(seed).permutation(len(points))
    assert_same(ids(points[order]), ids(points), 2 * dtype[1])


@few
@given(clouds(), st.integers(0, 2**32 - 1))
def test_a_rotation_and_a_translation_change_nothing(points: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((points.shape[1],) * 2))[0]
    # The motion itself rounds coordinates of some tens to 1e-15 of them, the nearest being some hundredths apart.
    assert_same(ids(points @ rotation + rng.uniform(-10, 10, points.shape[1])), ids(points), 1e-8)


@few
@given(clouds(), DTYPES, st.integers(0, 2**32 - 1))
def test_repeated_points_change_nothing_where_distinct_points_count(
    points: np.ndarray, dtype: tuple, seed: int
) -> None:
    points = points.astype(dtype[0])
    again = np.random.default_rng(seed).integers(0, len(points), 20)
    assert_same(ids(np.concatenate([points, points[again]])), ids(points), 2 * dtype[1])


@few
@given(clouds(), DTYPES)
def test_repeated_points_that_are_kept_give_no_number(points: np.ndarray, dtype: tuple) -> None:
    points = np.concatenate([points, points[:1]]).astype(dtype[0])
    found = id_scaling.estimate(points, [name for name in NAMES if name != "corrint"], duplicates="keep")
    assert {one.status for one in found.values()} == {"degenerate"}
    assert np.isnan([one.value for one in found.values()]).all()


@few
@given(clouds(), DTYPES)
def test_a_wider_dtype_with_the_same_values_changes_nothing(points: np.ndarray, dtype: tuple) -> None:
    points = points.astype(dtype[0])
    assert_same(ids(points), ids(points.astype(np.float64)), dtype[1])


@pytest.mark.parametrize("change", ["scaled", "permuted", "rotated", "narrow"])
def test_the_status_of_clouds_that_copies_decide_is_as_invariant(change: str) -> None:
    """Half of the points have a copy, from some rounding errors to half of the distance below which they are copies."""
    rng = np.random.default_rng(0)
    for size in (1e-9, 1e-6, 1e-3):
        points = rng.standard_normal((200, 5)).astype(np.float32).astype(float)
        points = np.concatenate([points, points[:100] + size * rng.standard_normal((100, 5))])
        if change == "narrow" and size > 1e-7:  # below it copies are equal in float32
            points = points.astype(np.float32).astype(float)
        rotation = np.linalg.qr(rng.standard_normal((5, 5)))[0]
        changed = {
            "scaled": 2.0**40 * points,
            "permuted": points[rng.permutation(300)],
            "rotated": points @ rotation + 1.0,
            "narrow": points.astype(np.float32) if size > 1e-7 else points,
        }
        found, expected = ids(changed[change]), ids(points)
        assert {status for status, _ in expected.values()} == STATUSES
        # Rotated coordinates are rounded to 1e-16 of them, next to distances of 1e-9: to 1e-6 of log-ratios at most.
        assert_same(found, expected, 1e-4)
