"""Nearest-neighbor distances: against direct float64 differences, under every view, at every scale."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from stress import STRESSES

from id_scaling.neighbors import search
from id_scaling.neighbors.find import Neighbors, find_neighbors
from id_scaling.neighbors.points import prepare_points
from id_scaling.neighbors.statistics import DEFAULT_GROUPS
from id_scaling.neighbors.views import DEFAULT_VIEWS, View, default_ranks

KEEP = View(skip_first_tokens=0, duplicates="keep")
DISTINCT = View(skip_first_tokens=0, duplicates="distinct")
RANKS = (1, 2, 3, 5, 10, 21, 40)


def direct(points: np.ndarray, ranks: tuple[int, ...] = RANKS) -> tuple[np.ndarray, np.ndarray]:
    """Return r_1 and log(r_j / r_1) from float64 coordinate differences, one point at a time."""
    points = np.asarray(points, dtype=np.float64)
    ascending = np.empty((len(points), len(points) - 1))
    for row, point in enumerate(points):
        distances = np.sqrt(((np.delete(points, row, axis=0) - point) ** 2).sum(axis=1))
        ascending[row] = np.sort(distances)
    r1 = ascending[:, 0]
    return r1, np.log(ascending[:, np.array(ranks) - 1] / r1[:, None])


def manifold(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Return n points of a curved ten-dimensional sheet in d coordinates, with a little noise."""
    rng = np.random.default_rng(seed)
    latent = rng.uniform(-1, 1, (n, 10))
    features = np.concatenate([np.sin(latent @ rng.standard_normal((10, 40))), latent], axis=1)
    return features @ rng.standard_normal((50, d)) / 7 + 1e-3 * rng.standard_normal((n, d))


def label(value: object) -> str | None:
    """Return how a view is called among the tests."""
    return f"skip{value.skip_first_tokens}-{value.duplicates}" if isinstance(value, View) else None


def of(points: np.ndarray, view: View = KEEP, ranks: tuple[int, ...] = RANKS, **given) -> Neighbors:
    """Return the neighbors of one cloud under one view."""
    return find_neighbors(points, [view], ranks, DEFAULT_GROUPS, **given)[0]


def worst_error(points: np.ndarray) -> float:
    """Return the largest difference to the direct log(r_j / r_1); infinite where there is no number."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = of(points).log_ratio - direct(points)[1]
    return float(np.nan_to_num(np.abs(found), nan=np.inf).max())


def statistics_of(found: Neighbors) -> dict[str, float]:
    """Return the statistics by name."""
    values = {name: float(value) for name, value in found.statistics.items()}
    # The median of an odd number of distances is one of them: whether that pair counts is a matter of rounding.
    decimals = {"correlation_pairs_r10": -1, "correlation_pairs_r20": -1, "corrint_stderr": 1}
    return values | {name: np.round(values[name], places) for name, places in decimals.items() if name in values}


# ---- distances ----


def uneven_line(n: int) -> np.ndarray:
    """Return n points on a line, at least half a unit apart."""
    return np.cumsum(np.random.default_rng(n).uniform(0.5, 1.5, (n, 1)), axis=0)


@pytest.mark.parametrize(
    "points",
    [
        pytest.param(uneven_line(41), id="line"),
        pytest.param(np.random.default_rng(50).standard_normal((50, 3)), id="50x3"),
        pytest.param(np.random.default_rng(300).standard_normal((300, 10)) + 0.5, id="300x10"),
        pytest.param(np.random.default_rng(257).standard_normal((257, 576)), id="257x576"),
        pytest.param(manifold(300, 40), id="manifold"),
    ],
)
def test_distances_of_a_generic_cloud_equal_direct_differences(points: np.ndarray) -> None:
    found, (r1, log_ratio) = of(points), direct(points)
    # Neighbors here are some hundredths of the norms apart or more: squared, four of sixteen digits go.
    np.testing.assert_allclose(found.r1, r1, rtol=1e-12)
    np.testing.assert_allclose(found.log_ratio, log_ratio, rtol=0, atol=1e-12)
    assert found.ranks == RANKS
    np.testing.assert_array_equal(found.at(10), found.log_ratio[:, RANKS.index(10)])


@pytest.mark.parametrize("stress", STRESSES)
def test_stressed_clouds_equal_direct_differences(stress) -> None:
    points = manifold(256, 512)
    stress(points, np.random.default_rng(1))
    # What an estimate made of these logarithms may be off by; the product alone keeps it down to 1e-3 of the norm.
    assert worst_error(points) < 1e-9


@pytest.mark.parametrize("stress", STRESSES)
def test_stressed_clouds_would_fail_in_single_precision(stress) -> None:
    points = manifold(256, 512)
    stress(points, np.random.default_rng(1))
    centred = (points - points.mean(axis=0)).astype(np.float32)
    gram = centred @ centred.T
    squares = gram.diagonal()[:, None] + gram.diagonal()[None, :] - 2 * gram
    np.fill_diagonal(squares, np.inf)
    ascending = np.sort(squares, axis=1)[:, np.array(RANKS) - 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        errors = np.abs(0.5 * np.log(ascending / ascending[:, :1]) - direct(points)[1])
    assert np.nan_to_num(errors, nan=np.inf).max() > 1e-9  # the tolerance above: it can fail


def close_pairs(distance: float) -> np.ndarray:
    """Return a cloud in pairs about `distance` of the norm apart."""
    rng = np.random.default_rng(2)
    points = rng.standard_normal((100, 64))
    return np.concatenate([points, points + distance * rng.standard_normal(points.shape)])


@pytest.mark.parametrize("distance", [1e-4, 1e-5, 1e-7])
def test_pairs_too_close_for_the_product_equal_direct_differences(distance: float) -> None:
    assert worst_error(close_pairs(distance)) < 1e-9  # as for the stressed clouds


@pytest.mark.parametrize("distance", [1e-4, 1e-5, 1e-7])
def test_close_pairs_would_fail_without_recomputation(distance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "suspects", lambda squares, *_: np.zeros(len(squares), dtype=bool))
    assert worst_error(close_pairs(distance)) > 1e-9  # the tolerance above: it can fail


@pytest.mark.parametrize("distance", [1e-9, 1e-11, 1e-13])
def test_pairs_however_close_equal_direct_differences(distance: float) -> None:
    # The difference of two close floats is exact: no closeness costs digits, if nothing is subtracted before.
    assert worst_error(close_pairs(distance)) < 1e-9


def test_different_points_are_never_at_distance_zero() -> None:
    points = np.random.default_rng(3).standard_normal((40, 3))
    points[0] = 1e6  # moves the mean far from the two below, which differ in their last bit
    points[1], points[2] = (1, 1, 1), (1, 1, np.nextafter(1, 2))
    found = of(points, ranks=(1, 2))
    np.testing.assert_allclose(found.r1[1:3], np.nextafter(1, 2) - 1, rtol=1e-9)  # as for the stressed clouds


def test_the_input_is_left_as_it_was() -> None:
    points = np.random.default_rng(4).standard_normal((30, 4))
    before = points.copy()
    find_neighbors(points, list(DEFAULT_VIEWS.values()), (1, 2), token_ids=np.arange(30) % 20)
    np.testing.assert_array_equal(points, before)


# ---- libraries and dtypes ----

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("view", [KEEP, DISTINCT, View(), View(skip_first_tokens=2, duplicates="keep")], ids=label)
def test_torch_equals_numpy(view: View, device: str) -> None:
    points = manifold(200, 65, seed=5)
    points[150:170] = points[:20]  # some equal points
    points[170:180] = points[20:30] * (1 + 1e-6)  # some that are computed again
    tokens = np.random.default_rng(5).integers(0, 20, len(points))
    expected = of(points, view, token_ids=tokens)
    found = of(torch.from_numpy(points).to(device), view, token_ids=tokens)
    # The two products round differently; the rows computed again bound what comes of it.
    np.testing.assert_allclose(found.r1, expected.r1, rtol=1e-10)
    np.testing.assert_allclose(found.log_ratio, expected.log_ratio, rtol=0, atol=1e-10)
    assert statistics_of(found) == pytest.approx(statistics_of(expected), rel=1e-10, nan_ok=True)
    assert isinstance(found.r1, np.ndarray)
    assert isinstance(found.log_ratio, np.ndarray)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_narrow_dtype_equals_its_conversion(dtype) -> None:
    points = manifold(120, 64, seed=6)
    if isinstance(dtype, torch.dtype):
        narrow = torch.from_numpy(points).to(dtype)
        wide = narrow.to(torch.float64)
    else:
        narrow = points.astype(dtype)
        wide = narrow.astype(np.float64)
    found, expected = of(narrow), of(wide)
    # What a single point's distances may be off by; estimates, which average them, are held to 1e-6 elsewhere.
    np.testing.assert_allclose(found.r1, expected.r1, rtol=1e-5)
    np.testing.assert_allclose(found.log_ratio, expected.log_ratio, rtol=0, atol=2e-5)
    values, others = statistics_of(found), statistics_of(expected)
    # A radius is the mean of two distances: which points the pairs at its edge belong to is a matter of rounding.
    assert values.pop("corrint_stderr") == pytest.approx(others.pop("corrint_stderr"), rel=0.02)
    assert values == pytest.approx(others, rel=1e-5, nan_ok=True)


# ---- equal points ----

NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1, 2], [3, 4], [1, 2], [1, 2]], [0, 1, 0, 0]),
        ([[0.0, 1], [-0.0, 1], [0.0, -1]], [0, 0, 2]),
        ([[0.0, 0.0], [-0.0, -0.0], [-0.0, 0.0]], [0, 0, 0]),
        ([[NAN, 1], [NAN, 1], [2, 3], [2, 3]], [0, 1, 2, 2]),
        ([[NAN, NAN], [2, 3], [NAN, NAN]], [0, 1, 2]),
        ([[1, 2], [1, np.nextafter(2, 3)]], [0, 1]),
        ([[1, 2], [2, 1]], [0, 1]),
        ([[5e-324, 0], [0, 0], [0, 0]], [0, 1, 1]),
        # The large coordinate swallows the small one in any sum: only the values tell these apart.
        ([[1e300, 1], [1e300, 2], [1e300, 1], [1e300, 2]], [0, 1, 0, 1]),
        ([[1e300, 0.0], [1e300, 1], [1e300, -0.0]], [0, 1, 0]),
        ([[1e300, 1], [1e300, 2], [NAN, 1], [NAN, 1]], [0, 1, 2, 3]),
        # Sums over these overflow.
        ([[1.7e308] * 16, [3.0] * 16, [1.7e308] * 16], [0, 1, 0]),
    ],
)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_equal_points_are_found_by_value(rows: list, expected: list, library: str) -> None:
    points = np.array(rows, dtype=np.float64)
    with np.errstate(all="ignore"):
        found = prepare_points(torch.from_numpy(points) if library == "torch" else points).first
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("n", "d"), [(61, 7), (301, 33), (1023, 577)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_equal_points_are_found_at_every_position_and_memory_order(n: int, d: int, order: str, device: str) -> None:
    # Odd sizes: rows then fall into full and left-over lanes of a vectorized sum, at every alignment.
    rng = np.random.default_rng(7)
    which = rng.integers(0, n // 2, n)
    points = rng.standard_normal((n // 2, d))[which]
    _, index, inverse = np.unique(which, return_index=True, return_inverse=True)
    tensor = torch.from_numpy(np.ascontiguousarray(points.T)).to(device).T
    tensor = tensor if order == "F" else tensor.contiguous()
    np.testing.assert_array_equal(prepare_points(np.array(points, order=order)).first, index[inverse])
    np.testing.assert_array_equal(prepare_points(tensor).first, index[inverse])


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_kept_equal_points_are_at_distance_exactly_zero(library: str) -> None:
    points = manifold(100, 64, seed=8)
    points[:, 3] += 1000
    points[60:80] = points[:20]
    points[80:83] = points[0]
    found = of(torch.from_numpy(points) if library == "torch" else points, ranks=(1, 2, 4, 5))
    n_twins = np.zeros(100, dtype=int)
    n_twins[:20] = n_twins[60:80] = 1
    n_twins[[0, 60, 80, 81, 82]] = 4
    np.testing.assert_array_equal(found.r1 == 0, n_twins > 0)
    for column, rank in enumerate(found.ranks):
        is_repeated = n_twins > 0
        np.testing.assert_array_equal(found.log_ratio[is_repeated, column] == 0, n_twins[is_repeated] >= rank)
        np.testing.assert_array_equal(np.isinf(found.log_ratio[is_repeated, column]), n_twins[is_repeated] < rank)
    assert np.isfinite(found.log_ratio[n_twins == 0]).all()
    # The rest are as direct differences have them: 1e-9 as for the stressed clouds.
    with np.errstate(all="ignore"):
        expected = direct(points, found.ranks)[1][n_twins == 0]
    np.testing.assert_allclose(found.log_ratio[n_twins == 0], expected, rtol=0, atol=1e-9)


# ---- views ----


def with_repeats() -> np.ndarray:
    """Return 90 points of which 30 repeat earlier ones, one of them the very first."""
    points = manifold(90, 20, seed=9)
    points[60:90] = points[np.r_[0, 0, 1:29]]
    return points


VIEWS = [
    (KEEP, np.arange(90)),
    (DISTINCT, np.arange(60)),
    (View(skip_first_tokens=1, duplicates="keep"), np.arange(1, 90)),
    (View(skip_first_tokens=5, duplicates="keep"), np.arange(5, 90)),
    # Point 60 repeats the first, which is left out: it counts in its place. So do 62, 63, … for 1, 2, ….
    (View(skip_first_tokens=1, duplicates="distinct"), np.r_[1:60, 60]),
    (View(skip_first_tokens=3, duplicates="distinct"), np.r_[3:60, 60, 62, 63]),
]


@pytest.mark.parametrize(("view", "expected"), VIEWS, ids=label)
def test_points_that_a_view_leaves_out_are_nan_and_nothing_else(view: View, expected: np.ndarray) -> None:
    found = of(with_repeats(), view)
    np.testing.assert_array_equal(np.flatnonzero(~np.isnan(found.r1)), expected)
    np.testing.assert_array_equal(np.flatnonzero(~np.isnan(found.log_ratio).any(axis=1)), expected)
    np.testing.assert_array_equal(np.flatnonzero(~np.isnan(found.log_ratio).all(axis=1)), expected)
    assert found.statistic("n_used") == len(expected)


@pytest.mark.parametrize(("view", "expected"), VIEWS, ids=label)
def test_a_view_equals_its_points_alone(view: View, expected: np.ndarray) -> None:
    points = with_repeats()
    found, alone = of(points, view), of(points[expected])
    # The two are centred on different means: they round differently, about 1e-14 here.
    np.testing.assert_allclose(found.r1[expected], alone.r1, rtol=1e-12)
    np.testing.assert_allclose(found.log_ratio[expected], alone.log_ratio, rtol=0, atol=1e-12)
    for name in ("n_used", "median_norm", "gram_trace", "gram_frobenius"):
        np.testing.assert_allclose(found.statistic(name), alone.statistic(name), rtol=1e-12)


def test_views_together_equal_views_apart_to_the_last_bit() -> None:
    points, views = with_repeats(), [view for view, _ in VIEWS]
    tokens = np.random.default_rng(10).integers(0, 9, len(points))
    for view, found in zip(views, find_neighbors(points, views, RANKS, DEFAULT_GROUPS, tokens), strict=True):
        expected = of(points, view, token_ids=tokens)
        np.testing.assert_array_equal(found.r1, expected.r1)
        np.testing.assert_array_equal(found.log_ratio, expected.log_ratio)
        assert statistics_of(found) == pytest.approx(statistics_of(expected), rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e12])
def test_a_massive_point_that_a_view_leaves_out_does_not_show(size: float) -> None:
    points = manifold(100, 20, seed=11)
    points[0] *= size
    found, alone = of(points, View(skip_first_tokens=1)), of(points[1:])
    np.testing.assert_allclose(found.log_ratio[1:], alone.log_ratio, rtol=0, atol=1e-9)  # as for stressed clouds


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_nonfinite_point_that_a_view_leaves_out_does_not_show(value: float) -> None:
    points = manifold(100, 20, seed=12)
    points[0, 3] = value
    found, alone = of(points, View(skip_first_tokens=1)), of(points[1:])
    np.testing.assert_allclose(found.r1[1:], alone.r1, rtol=1e-12)  # centred alike: rounding alone
    np.testing.assert_allclose(found.log_ratio[1:], alone.log_ratio, rtol=0, atol=1e-12)
    assert np.isnan(found.r1[0])
    assert found.statistic("n_nonfinite") == 0


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("view", [KEEP, DISTINCT])
def test_a_nonfinite_point_that_counts_leaves_nothing(value: float, view: View) -> None:
    points = manifold(100, 20, seed=12)
    points[7, 3] = value
    found = of(points, view)
    assert np.isnan(found.r1).all()
    assert np.isnan(found.log_ratio).all()
    counts = statistics_of(found)
    assert (counts["n_points"], counts["n_distinct"], counts["n_nonfinite"], counts["n_used"]) == (100, 100, 1, 0)
    assert np.isnan([value for name, value in counts.items() if not name.startswith("n_") or "nn_" in name]).all()


# ---- sizes ----


@pytest.mark.parametrize("n", [2, 3, 6])
def test_ranks_beyond_the_cloud_are_nan_and_only_they(n: int) -> None:
    found = of(np.random.default_rng(n).standard_normal((n, 3)), ranks=(1, 2, 4, 5, 9))
    np.testing.assert_array_equal(np.isnan(found.log_ratio), np.tile(np.array(found.ranks) >= n, (n, 1)))
    assert np.isfinite(found.r1).all()


def test_one_point_has_no_neighbors() -> None:
    found = of(np.ones((1, 3)), ranks=(1, 2))
    assert np.isnan(found.r1).all()
    assert np.isnan(found.log_ratio).all()
    assert (found.r1.shape, found.log_ratio.shape) == ((1,), (1, 2))
    assert statistics_of(found)["n_used"] == 1


@pytest.mark.parametrize(
    ("n_points", "expected"),
    [
        (2, (1,)),
        (10, tuple(range(1, 10))),
        (33, tuple(range(1, 33))),
        (127, tuple(range(1, 33))),
        (128, (*range(1, 33), 64)),
        (1024, (*range(1, 33), 64, 128, 256, 512)),
    ],
)
def test_the_default_ranks_fit_the_cloud(n_points: int, expected: tuple[int, ...]) -> None:
    assert default_ranks(n_points) == expected


# ---- statistics ----


@pytest.mark.parametrize(
    ("view", "counts"),
    [
        (KEEP, (90, 60, 0, 90)),
        (DISTINCT, (90, 60, 0, 60)),
        (View(skip_first_tokens=1, duplicates="keep"), (89, 60, 0, 89)),
        (View(skip_first_tokens=5, duplicates="distinct"), (85, 60, 0, 60)),
        # Points 30 to 34 have no twin among those left.
        (View(skip_first_tokens=35, duplicates="keep"), (55, 54, 0, 55)),
        (View(skip_first_tokens=35, duplicates="distinct"), (55, 54, 0, 54)),
    ],
    ids=label,
)
def test_the_counts_are_those_of_the_view(view: View, counts: tuple[int, ...]) -> None:
    found = statistics_of(of(with_repeats(), view))
    assert tuple(found[name] for name in ("n_points", "n_distinct", "n_nonfinite", "n_used")) == counts


@pytest.mark.parametrize(("view", "selected"), VIEWS, ids=label)
def test_norms_and_gram_moments_equal_the_gram_matrix(view: View, selected: np.ndarray) -> None:
    points = with_repeats() * 3 + 5
    found = statistics_of(of(points, view))
    centred = points[selected] - points[selected].mean(axis=0)
    gram = centred @ centred.T
    # One sums distances, the other products of coordinates: they agree to rounding of sums over 8,100 pairs.
    assert found["gram_trace"] == pytest.approx(np.trace(gram), rel=1e-12)
    assert found["gram_frobenius"] == pytest.approx(np.linalg.norm(gram), rel=1e-10)
    assert found["median_norm"] == pytest.approx(np.median(np.linalg.norm(points[selected], axis=1)), rel=1e-12)


def paired_line() -> tuple[np.ndarray, np.ndarray]:
    """Return twelve points in pairs on a line, the pairs 1, 9, 5, 6, 2 and 3 positions apart; and tokens."""
    points, tokens = np.empty((12, 1)), np.arange(12)
    for place, (one, other) in enumerate([(0, 1), (2, 11), (3, 8), (4, 10), (5, 7), (6, 9)]):
        points[one], points[other] = 100 * place, 100 * place + 1
    tokens[1], tokens[11] = tokens[0], tokens[2]
    return points, tokens


@pytest.mark.parametrize(
    ("view", "same_token", "within_5"),
    [
        (KEEP, 4 / 12, 8 / 12),
        # Without point 0, the nearest to 1 is 2: one position off, of another token.
        (View(skip_first_tokens=1), 2 / 11, 7 / 11),
        # Without 0, 1 and 2, the nearest to 11 is 3: eight positions off, of another token.
        (View(skip_first_tokens=3), 0 / 9, 6 / 9),
    ],
    ids=label,
)
def test_neighbor_shares_of_a_handmade_cloud(view: View, same_token: float, within_5: float) -> None:
    points, tokens = paired_line()
    found = statistics_of(of(points, view, ranks=(1,), token_ids=tokens))
    assert found["nn_same_token"] == pytest.approx(same_token, abs=1e-15)
    assert found["nn_within_5"] == pytest.approx(within_5, abs=1e-15)
    assert np.isnan(of(points, view, ranks=(1,)).statistic("nn_same_token"))


# ---- invariances ----


@pytest.mark.parametrize("power", [-60, -14, -1, 3, 40])
def test_scaling_by_a_power_of_two_is_exact(power: int) -> None:
    points = manifold(150, 30, seed=13)
    points[100:110] = points[:10] * (1 + 1e-7)
    found, expected = of(points * 2.0**power), of(points)
    np.testing.assert_array_equal(found.r1, expected.r1 * 2.0**power)
    np.testing.assert_array_equal(found.log_ratio, expected.log_ratio)


@pytest.mark.parametrize("size", [1e200, 1e100, 1e-100, 1e-200])
def test_huge_and_tiny_coordinates_neither_overflow_nor_vanish(size: float) -> None:
    points = manifold(150, 30, seed=14)
    found, expected = of(points * size), of(points)
    # Not a power of two: each coordinate is rounded once, by 1e-16 of it, and neighbors are half a norm away.
    np.testing.assert_allclose(found.r1 / size, expected.r1, rtol=1e-12)
    np.testing.assert_allclose(found.log_ratio, expected.log_ratio, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1e200, 1e100, 1e-100, 1e-200])
def test_huge_and_tiny_coordinates_give_no_warning(size: float) -> None:
    points = manifold(50, 30, seed=14) * size
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of(points)


def rotated(points: np.ndarray) -> np.ndarray:
    d = points.shape[1]
    return points @ np.linalg.qr(np.random.default_rng(15).standard_normal((d, d)))[0]


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        pytest.param(lambda points: points + 3.0, 1e-12, id="translated"),
        # The shift itself rounds the coordinates by up to 7e-12, and neighbors are two units or more apart.
        pytest.param(lambda points: points + 1e5, 1e-10, id="translated-far"),
        pytest.param(rotated, 1e-12, id="rotated"),
        pytest.param(lambda points: -points, 0.0, id="mirrored"),
        pytest.param(lambda points: np.pad(points, ((0, 0), (0, 10))), 1e-12, id="padded-with-zeros"),
    ],
)
def test_motions_of_the_space_leave_the_neighbors(change, tolerance: float) -> None:
    # 1e-12: a motion rounds coordinates at 1e-16 of them, and neighbors are half a norm away.
    points = manifold(150, 30, seed=16)
    found, expected = of(change(points)), of(points)
    np.testing.assert_allclose(found.r1, expected.r1, rtol=tolerance)
    np.testing.assert_allclose(found.log_ratio, expected.log_ratio, rtol=0, atol=tolerance)


def test_a_permutation_of_the_points_permutes_the_neighbors() -> None:
    points = manifold(150, 30, seed=17)
    order = np.random.default_rng(17).permutation(len(points))
    found, expected = of(points[order]), of(points)
    # The mean is summed in another order: rounding alone.
    np.testing.assert_allclose(found.r1, expected.r1[order], rtol=1e-12)
    np.testing.assert_allclose(found.log_ratio, expected.log_ratio[order], rtol=0, atol=1e-12)
