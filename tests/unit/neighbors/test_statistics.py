"""Cloud statistics: against direct formulas on the coordinates, and other programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files

import numpy as np
import pytest
import skdim
import torch

import id_scaling
from id_scaling.neighbors.find import find_neighbors
from id_scaling.neighbors.statistics import (
    DEFAULT_GROUPS,
    GROUPS,
    group_of,
    log_ratio_error,
    names_of,
    participation_ratio_corrected,
    participation_ratio_slope,
)
from id_scaling.neighbors.views import View

ALL = (*DEFAULT_GROUPS, "spectrum")
VIEWS = [View(0, "keep"), View(1, "distinct")]


def cloud(n: int = 150, d: int = 12) -> np.ndarray:
    """Return points of unequal variances, off the origin, the last equal to the tenth."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((n, d)) * np.linspace(1, 3, d) + 1
    points[-1] = points[9]
    return points


def whitened(points: np.ndarray) -> np.ndarray:
    """Return points of equal variances, the last equal to the tenth as in `cloud`."""
    left, _, _ = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
    left[-1] = left[9]
    return left


def selected(points: np.ndarray, view: View) -> np.ndarray:
    """Return the points of `cloud` that count under a view."""
    points = points[view.skip_first_tokens :]
    return points[:-1] if view.duplicates == "distinct" else points


def of(points, view: View, **given) -> dict[str, float]:
    """Return all statistics of a cloud under a view."""
    return dict(find_neighbors(points, [view], (1, 2), ALL, **given)[0].statistics)


def test_names_come_in_one_order_whatever_the_order_of_groups() -> None:
    assert names_of(("shares", "moments")) == names_of(("moments", "shares"))
    assert names_of(())[:4] == ("n_points", "n_distinct", "n_nonfinite", "n_used")
    assert all(group_of(name) == group for group, rows in GROUPS.items() for name, _ in rows)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(("dtype", "rel"), [(np.float64, 1e-10), (np.float32, 1e-5)])
def test_statistics_equal_direct_formulas(view: View, dtype: type, rel: float) -> None:
    points = cloud().astype(dtype)
    x = selected(points.astype(np.float64), view)
    n = len(x)
    centred = x - x.mean(axis=0)
    units = x / np.linalg.norm(x, axis=1)[:, None]
    distances = np.linalg.norm(x[:, None] - x[None], axis=2)
    ascending = np.sort(distances + np.diag(np.full(n, np.inf)), axis=1)
    spectrum = np.linalg.eigvalsh(centred.T @ centred)[::-1]
    shares = spectrum / spectrum.sum()
    expected = {
        "gram_trace": (centred**2).sum(),
        "gram_frobenius": np.linalg.norm(centred @ centred.T),
        "mean_cosine": ((units @ units.T).sum() - n) / (n * (n - 1)),
        "correlation_r10": np.median(ascending[:, 9]),
        "correlation_r20": np.median(ascending[:, 19]),
        "effective_rank": np.exp(-(shares * np.log(shares)).sum()),
        "pca_90": 1 + np.searchsorted(shares.cumsum(), 0.90),
        "pca_99": 1 + np.searchsorted(shares.cumsum(), 0.99),
        "median_norm": np.median(np.linalg.norm(x, axis=1)),
    }
    found = of(points, view)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=rel)
    for rank in (10, 20):
        pairs = np.count_nonzero(distances[np.triu_indices(n, 1)] < expected[f"correlation_r{rank}"])
        # The median of an odd number of distances is one of them: whether that pair counts is a matter of rounding.
        assert abs(found[f"correlation_pairs_r{rank}"] - pairs) <= 1


def participation_ratio(covariance: np.ndarray) -> float:
    """Return the participation ratio of a covariance."""
    return np.trace(covariance) ** 2 / (covariance**2).sum()


def effective_rank(covariance: np.ndarray) -> float:
    """Return the exponential of the entropy of a covariance's spectrum."""
    shares = np.linalg.eigvalsh(covariance) / np.trace(covariance)
    return np.exp(-(shares * np.log(shares)).sum())


def jackknife(function: Callable[[np.ndarray], float], points: np.ndarray) -> float:
    """Return the infinitesimal jackknife of a function of the covariance, from small changes of each point's weight."""

    def at(weights: np.ndarray) -> float:
        return function(np.cov(points.T, aweights=weights, ddof=0))

    steps = 1e-4 * np.eye(len(points))
    return np.linalg.norm([(at(1 + step) - at(1 - step)) / 2e-4 for step in steps])


def less_noise(function: Callable[[np.ndarray], float], points: np.ndarray, noise_of_one: float) -> float:
    """Return the jackknife, its square less the noise of equal variances: PR's is `noise_of_one` / n² far below n."""
    value, n = function(np.cov(points.T)), len(points) - 1
    noise = noise_of_one * (value - 1) * (value + 2) * (1 / n - value / n**2) ** 2
    square = jackknife(function, points) ** 2
    return np.sqrt(max(square - noise, noise / 2))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("is_equal", [False, True])
@pytest.mark.parametrize(("dtype", "rel"), [(np.float64, 1e-7), (np.float32, 1e-5)])  # 1e-7: the differences' error
def test_standard_errors_are_what_small_changes_of_weights_say(
    view: View, is_equal: bool, dtype: type, rel: float
) -> None:
    points = (whitened(cloud()) if is_equal else cloud()).astype(dtype)
    x, found = selected(points.astype(np.float64), view), of(points, view)
    assert found["participation_ratio_stderr"] == pytest.approx(less_noise(participation_ratio, x, 4.0), rel=rel)
    assert found["effective_rank_stderr"] == pytest.approx(less_noise(effective_rank, x, 1.0), rel=rel)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_the_error_of_a_view_is_that_of_its_points_however_far_off_the_centre_is(kind: Callable) -> None:
    points = cloud()
    points[0] = 300 * points.std()  # left out, but it moves the centre
    found = of(kind(points), View(1, "keep"))["participation_ratio_stderr"]
    assert found == pytest.approx(less_noise(participation_ratio, points[1:], 4.0), rel=1e-7)


def test_the_corrected_participation_ratio_has_the_error_of_the_plain_one_times_its_slope() -> None:
    points = cloud()[:-1]
    found = id_scaling.estimate(points, ["participation_ratio", "participation_ratio_corrected"])
    ratio, step = found["participation_ratio"].value, 1e-6
    above, below = (participation_ratio_corrected(np.sqrt(ratio + by), 1.0, len(points)) for by in (step, -step))
    slope = participation_ratio_slope(ratio, len(points))
    assert slope == pytest.approx((above - below) / (2 * step), rel=1e-8)
    expected = slope * found["participation_ratio"].stderr
    assert found["participation_ratio_corrected"].stderr == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("view", VIEWS)
def test_the_error_of_corrint_is_that_of_leaving_out_points_less_what_pairs_count_twice(view: View) -> None:
    points = cloud(600, 5)
    x, found = selected(points, view), of(points, view)
    distances = np.linalg.norm(x[:, None] - x[None], axis=2) + np.diag(np.full(len(x), np.inf))
    of_point = [(distances < found[f"correlation_r{rank}"]).sum(axis=1) for rank in (10, 20)]
    pairs = [counts.sum() / 2 for counts in of_point]
    without = np.log((pairs[1] - of_point[1]) / (pairs[0] - of_point[0]))
    variance = ((without - without.mean()) ** 2).sum() - (1 / pairs[0] - 1 / pairs[1])
    expected = np.sqrt(variance) / np.log(found["correlation_r20"] / found["correlation_r10"])
    assert found["corrint_stderr"] == pytest.approx(expected, rel=0.02)  # leaving out a point is no small change


def test_pairs_that_share_no_point_have_the_error_of_independent_ones() -> None:
    n_pairs, n_near = 1000, 400
    within = np.array([np.repeat([1, 0], [2 * n_near, 2 * (n_pairs - n_near)]), np.ones(2 * n_pairs, int)])
    expected = np.sqrt(1 / n_near - 1 / n_pairs)
    assert log_ratio_error(within, np.array([n_near, n_pairs])) == pytest.approx(expected, rel=1e-12)


def test_a_count_of_components_has_no_standard_error() -> None:
    found = id_scaling.estimate(cloud(), ["pca_90", "effective_rank"])
    assert np.isnan(found["pca_90"].stderr)
    assert found["effective_rank"].stderr > 0


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_torch_equals_numpy(view: View, dtype: torch.dtype) -> None:
    points = torch.from_numpy(cloud()).to(dtype)
    tokens = np.random.default_rng(1).integers(0, 9, len(points))
    host = points.numpy() if dtype == torch.float64 else points.float().numpy()
    expected, found = of(host, view, token_ids=tokens), of(points, view, token_ids=tokens)
    for name in ("correlation_pairs_r10", "correlation_pairs_r20"):
        assert abs(expected.pop(name) - found.pop(name)) <= 1  # as above
    assert found == pytest.approx(expected, rel=1e-10 if dtype == torch.float64 else 1e-5, nan_ok=True)


@pytest.mark.parametrize("name", ["participation_ratio", "participation_ratio_corrected"])
@pytest.mark.parametrize(
    ("exponent", "status"),
    [(0, "ok"), (150, "ok"), (-150, "ok"), (200, "degenerate"), (-200, "degenerate"), (-161, "degenerate")],
)
def test_the_participation_ratio_is_right_or_no_number_at_any_scale(name: str, exponent: int, status: str) -> None:
    points = np.random.default_rng(0).standard_normal((200, 5))
    found, expected = (id_scaling.estimate(one, [name])[name] for one in (points * 10.0**exponent, points))
    assert found.status == status
    assert found.value == pytest.approx(expected.value if status == "ok" else np.nan, rel=1e-12, nan_ok=True)


def test_the_participation_ratio_is_that_of_scikit_dimension() -> None:
    points = cloud()[:-1]
    found = id_scaling.estimate(points, ["participation_ratio"])["participation_ratio"]
    expected = skdim.id.lPCA(ver="participation_ratio").fit_transform(points)
    assert found.value == pytest.approx(expected, rel=1e-10)
    assert found.status == "ok"


def test_the_corrected_participation_ratio_has_no_bias_from_few_points() -> None:
    scales = np.linspace(1, 2, 60)
    truth = (scales**2).sum() ** 2 / (scales**4).sum()
    rng = np.random.default_rng(2)
    clouds = rng.standard_normal((300, 40, 60)) * scales
    means = {
        name: np.mean(id_scaling.estimate_batch(clouds, [name])["value"].to_numpy())
        for name in ("participation_ratio", "participation_ratio_corrected")
    }
    # The ratio of two unbiased estimates is itself right to first order: 2 % leaves room for the second.
    assert means["participation_ratio_corrected"] == pytest.approx(truth, rel=0.02)
    assert means["participation_ratio"] < 0.6 * truth  # what is corrected


@pytest.mark.parametrize("name", ["A", "B"])
def test_the_correlation_dimension_is_that_of_ider(name: str) -> None:
    points = {
        "A": np.hstack([skdim.datasets.hyperBall(300, 5, random_state=0), np.zeros((300, 5))]),
        "B": skdim.datasets.hyperSphere(300, 4, random_state=1),
    }[name]
    # R's ider 0.1.1, from the fixtures that scikit-dimension ships.
    expected = {"A": 4.35505695940733, "B": 3.7469009177724}[name]
    assert str(expected)[:12] in json.dumps(
        json.loads(files("skdim.tests.reference").joinpath("fixtures.json").read_text())
    )
    assert id_scaling.estimate(points, ["corrint"])["corrint"].value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(400, 3), (1024, 10)])
def test_the_correlation_dimension_is_that_of_scikit_dimension(n: int, d: int) -> None:
    points = np.random.default_rng(3).uniform(size=(n, d))
    expected = skdim.id.CorrInt().fit_transform(points)
    # One pair more or less in some thousands, at the radius itself.
    assert id_scaling.estimate(points, ["corrint"])["corrint"].value == pytest.approx(expected, rel=1e-3)


def test_linear_dimensions_of_a_flat_cloud() -> None:
    rng = np.random.default_rng(4)
    points = rng.standard_normal((2000, 5)) @ np.linalg.qr(rng.standard_normal((40, 40)))[0][:5]
    found = id_scaling.estimate(points, ["pca_90", "pca_95", "pca_99", "effective_rank"])
    assert [found[f"pca_{percent}"].value for percent in (90, 95, 99)] == [5, 5, 5]
    assert found["effective_rank"].value == pytest.approx(5, rel=0.01)  # sampling spread of 2000 points


def test_the_overlap_is_the_share_of_common_neighbors() -> None:
    rng = np.random.default_rng(5)
    points, other = rng.standard_normal((60, 4)), rng.standard_normal((60, 4))
    view = View(1, "distinct")
    below = find_neighbors(other, [view], (1,), ("overlap",))[0].nearest
    lists = [np.argsort(np.linalg.norm(x[1:] - row, axis=1))[1:11] for x in (points, other) for row in x[1:]]
    expected = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(lists[:59], lists[59:], strict=True)])
    assert of(points, view, below=[below])["nn_overlap"] == pytest.approx(expected, rel=1e-12)
    itself = find_neighbors(points, [view], (1,), ("overlap",))[0].nearest
    assert of(points, view, below=[itself])["nn_overlap"] == 1
    assert np.isnan(of(points, view)["nn_overlap"])  # nothing below


@pytest.mark.parametrize("points", [np.ones((30, 3)), np.zeros((30, 3)), np.full((30, 3), np.nan), np.ones((1, 3))])
@pytest.mark.parametrize("view", VIEWS)
def test_a_cloud_without_an_answer_gives_nan_in_silence(points: np.ndarray, view: View) -> None:
    found = of(points, view)
    assert set(found) == set(names_of(ALL))
    assert np.isnan(found["effective_rank"])


def test_statistics_serve_kept_repetitions_too() -> None:
    points = np.repeat(np.random.default_rng(6).standard_normal((50, 4)), 2, axis=0)
    found = id_scaling.estimate(points, ["participation_ratio", "mle"], duplicates="keep")
    assert found["participation_ratio"].status == "ok"
    assert found["mle"].status == "degenerate"


def test_pairs_and_sums_are_those_of_float64_where_float32_would_not_do() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(rng.standard_normal((40, 64)), 25, axis=0) + 1e-4 * rng.standard_normal((1000, 64))
    narrow = clusters.astype(np.float32)
    found, expected = (id_scaling.estimate(points, ["corrint"])["corrint"] for points in (narrow, narrow.astype(float)))
    assert found.value == pytest.approx(expected.value, rel=1e-6)  # counts are equal, radii right to 3e-8
    sink = rng.standard_normal((100, 64)).astype(np.float32)
    sink[0] = 1e6
    names = names_of(("moments",))
    narrow, wide = (find_neighbors(points, [View(1)], (1, 2), ("moments",))[0] for points in (sink, sink.astype(float)))
    for name in names:
        assert narrow.statistics[name] == pytest.approx(wide.statistics[name], rel=1e-6)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("far", [1e2, 1e6, 1e12])
def test_a_point_left_out_moves_no_moment_however_far_off(kind: Callable, dtype: type, far: float) -> None:
    points = np.random.default_rng(0).standard_normal((100, 64)).astype(dtype)
    points[0] = far
    found = find_neighbors(kind(points), [View(1)], (1, 2), ("moments",))[0].statistics
    centred = points[1:].astype(float) - points[1:].mean(axis=0, dtype=float)
    gram = centred @ centred.T
    assert found["gram_trace"] == pytest.approx(np.trace(gram), rel=1e-5)
    assert found["gram_frobenius"] == pytest.approx(np.linalg.norm(gram), rel=1e-5)
    assert found["participation_ratio_stderr"] == pytest.approx(
        less_noise(participation_ratio, points[1:].astype(float), 4.0), rel=1e-5
    )


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("far", [1e2, 1e6, 1e12])
def test_a_point_left_out_moves_neither_pairs_nor_spectrum(kind: Callable, dtype: type, far: float) -> None:
    points = (
        np.random.default_rng(0).standard_normal((101, 64)).astype(dtype)
    )  # of 100, no pair is at a median distance
    points[0] = far
    found, expected = (
        find_neighbors(kind(some), [View(skipped)], (1, 2), ("correlation", "spectrum"))[0].statistics
        for some, skipped in ((points, 1), (points[1:].astype(np.float64), 0))
    )
    for name in names_of(("correlation", "spectrum")):
        assert found[name] == pytest.approx(expected[name], rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_points_have_no_moments_whatever_is_rounded(dtype: type) -> None:
    rng = np.random.default_rng(0)
    for n in range(30, 330):
        points = np.repeat(rng.standard_normal((1, n % 38 + 2)), n, axis=0).astype(dtype)
        points[0] *= 5
        found = find_neighbors(points, [View(1, "keep")], (1, 2), ("moments",))[0].statistics
        assert (found["gram_trace"], found["gram_frobenius"]) == (0, 0)
        assert np.isnan(found["participation_ratio_stderr"])


# ---- where rounding would decide ----


def lattice(side: int, d: int) -> np.ndarray:
    """Return the points of a lattice of even steps."""
    return np.stack(np.meshgrid(*[np.arange(float(side))] * d), axis=-1).reshape(-1, d)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("scale", [1, 3, 4])
@pytest.mark.parametrize("points", [lattice(15, 2), lattice(6, 3)], ids=["plane", "space"])
def test_pairs_at_the_very_radius_are_not_within_it(points, scale: int, dtype: type) -> None:
    found = id_scaling.estimate((scale * points).astype(dtype), ["corrint"])["corrint"]
    assert found.value == pytest.approx(skdim.id.CorrInt().fit_transform(points), rel=1e-9)


@pytest.mark.parametrize("width", [1e-6, 1e-8])
def test_pairs_that_float64_does_not_tell_apart_are_not_counted(width: float) -> None:
    rng = np.random.default_rng(0)
    points = rng.standard_normal((6, 8))[np.arange(300) % 6] + width * rng.standard_normal((300, 8))
    assert id_scaling.estimate(points, ["corrint"])["corrint"].status == "degenerate"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_ties_are_no_ratios_in_any_dtype(dtype: type, seed: int) -> None:
    points = np.random.default_rng(seed).integers(0, 4, (300, 4))
    names = ["twoNN_f10", "twoNN_f50", "gride_n2"]
    narrow, wide = (id_scaling.estimate(points.astype(kind), names) for kind in (dtype, np.float64))
    assert [narrow[name].status for name in names] == [wide[name].status for name in names]
    assert wide["twoNN_f10"].status == "degenerate"


def test_distances_whose_squares_lose_digits_are_degenerate() -> None:
    points = 1e-161 * np.random.default_rng(0).standard_normal((300, 8))
    points[0] = 1
    found = id_scaling.estimate(points, ["mle_harmonic", "twoNN_f10", "local_pca_k20_v90"])
    assert {one.status for one in found.values()} == {"degenerate"}


def test_equal_shares_of_variance_are_counted_alike() -> None:
    points = np.vstack([np.eye(10), -np.eye(10)])  # ten equal variances: nine of them hold 90 % of it
    assert id_scaling.estimate(points, ["pca_90"])["pca_90"].value == 9


def test_points_without_neighbors_below_are_no_part_of_the_overlap() -> None:
    points = np.random.default_rng(0).standard_normal((60, 5))
    (found,) = find_neighbors(points, [View(0)], [1], ["overlap"])
    below = found.nearest.copy()
    below[:20] = -1
    (other,) = find_neighbors(points, [View(0)], [1], ["overlap"], below=[below])
    assert other.statistics["nn_overlap"] == 1


def test_half_of_what_points_say_is_left_where_pairs_count_for_more() -> None:
    within = np.array([[4, 4, 4, 5], [8, 8, 8, 9]])
    pairs = np.array([9, 17])
    square = sum((b / 17 - a / 9) ** 2 for a, b in within.T.tolist())
    assert square - (1 / 9 - 1 / 17) < square / 2
    assert log_ratio_error(within, pairs) == pytest.approx((square / 2) ** 0.5)
