"""Estimators of saved clouds: against third parties and plain formulas, and in a process of their own."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import skdim
from scipy.cluster.hierarchy import single
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import pdist

import id_scaling
from id_scaling.errors import ConfigError
from id_scaling.estimators import abid, apply, local_pca, mst, phd, spanning_trees, tle
from id_scaling.estimators.registry import get_estimator
from id_scaling.estimators.sandbox import estimate_contained
from id_scaling.estimators.standard_errors import factor
from id_scaling.neighbors.find import find_neighbors, stacked
from id_scaling.neighbors.kernels import numba_kernels
from id_scaling.neighbors.views import View
from id_scaling.runtime import workers as children
from id_scaling.runtime.workers import ChildError

FIXTURES = json.loads(files("skdim.tests.reference").joinpath("fixtures.json").read_text())
CLOUDS = {
    "ball5_in10": np.hstack([skdim.datasets.hyperBall(300, 5, random_state=0), np.zeros((300, 5))]),
    "sphere4_in5": skdim.datasets.hyperSphere(300, 4, random_state=1),
}
NAMES = ("tle", "abid_k20", "local_pca_k20_v90", "phd", "phd_text", "mst")


def cube(d: int, n: int = 1024, seed: int = 0) -> np.ndarray:
    """Return points of a d-dimensional unit cube in d + 3 coordinates."""
    return np.pad(np.random.default_rng(seed).uniform(size=(n, d)), ((0, 0), (0, 3)))


# ---- values ----


@pytest.mark.parametrize("cloud", CLOUDS)
def test_tle_is_that_of_octave_at_every_point(cloud: str) -> None:
    np.testing.assert_allclose(tle.pointwise(CLOUDS[cloud]), FIXTURES["matlab"][cloud]["tle_pw"], rtol=1e-9)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_mada_is_that_of_ider(cloud: str) -> None:
    expected = np.mean(FIXTURES["ider"][cloud]["mada_local_k20"])
    assert id_scaling.estimate(CLOUDS[cloud], ["mada"])["mada"].value == pytest.approx(expected, rel=1e-12)


def test_abid_is_its_formula() -> None:
    points, k = CLOUDS["ball5_in10"][:60], 12
    expected = []
    for point in points:
        order = np.argsort(np.linalg.norm(points - point, axis=1))[1 : k + 1]
        units = (points[order] - point) / np.linalg.norm(points[order] - point, axis=1)[:, None]
        expected.append(k**2 / sum((a @ b) ** 2 for a in units for b in units))
    np.testing.assert_allclose(abid.pointwise(points, k), expected, rtol=1e-12)


@pytest.mark.parametrize(("n", "k"), [(60, 12), (300, 5)])
def test_the_error_of_abid_is_what_changes_of_weights_say_less_what_pairs_count_twice(n: int, k: int) -> None:
    points = CLOUDS["ball5_in10"][:n]
    nearest = [np.argsort(np.linalg.norm(points - point, axis=1))[1 : k + 1] for point in points]
    units = [points[near] - point for near, point in zip(nearest, points, strict=True)]
    units = [unit / np.linalg.norm(unit, axis=1)[:, None] for unit in units]
    squared_cosines = [(unit @ unit.T) ** 2 for unit in units]

    def dimensions(weights: np.ndarray) -> np.ndarray:
        """Return the estimate at each point when points have weights."""
        given = [weights[near] for near in nearest]
        return np.array([w.sum() ** 2 / (w @ cos2 @ w) for w, cos2 in zip(given, squared_cosines, strict=True)])

    d, steps = dimensions(np.ones(n)), 1e-4 * np.eye(n)
    influences = [np.sum(dimensions(1 + step) - dimensions(1 - step)) / 2e-4 for step in steps] + d - d.mean()
    pairs = np.zeros((n, n))
    for near, cos2, d_i in zip(nearest, squared_cosines, d, strict=True):
        for j, row in zip(near, cos2, strict=True):
            pairs[j, near] += 2 * d_i / k**2 * (1 - d_i * row)
    of_pairs = sum(pairs[j, i] ** 2 for i in range(n) for j in range(i))
    expected = np.sqrt(max(influences @ influences - of_pairs, influences @ influences / 3)) / n
    assert abid.mean(points, k)[1] == pytest.approx(expected, rel=1e-6)  # the differences' error


def test_local_pca_counts_the_directions_of_each_neighborhood() -> None:
    points, k = CLOUDS["sphere4_in5"][:80], 15
    for percent in (50, 90):
        expected = []
        for point in points:
            order = np.argsort(np.linalg.norm(points - point, axis=1))[1 : k + 1]
            variances = np.linalg.svd(points[order] - points[order].mean(axis=0), compute_uv=False) ** 2
            expected.append(1 + np.searchsorted(variances.cumsum() / variances.sum(), percent / 100))
        np.testing.assert_array_equal(local_pca.pointwise(points, k, percent), expected)


def published_sizes(name: str, n: int) -> list[int]:
    """Return the sizes of subsets in the authors' code: by default, and in its example for the n tokens of a text."""
    if name == "phd":
        return [size for size in range(50, 513, 40) if size <= n]
    step = (n - 40) // 7
    return list(range(40, n - step, step))


def published(name: str, points: np.ndarray, seed: int) -> float:
    """Return 1 / (1 - m), m the slope of the log median length of spanning trees over log size, three times.

    The heights of scipy's single linkage are the lengths of the edges of the minimum spanning tree.
    """
    rng, n, slopes = np.random.default_rng(seed), len(points), []
    sizes, n_draws = published_sizes(name, n), 7 if name == "phd" else 9
    for _ in range(3):
        lengths = []
        for size in sizes:
            draws = [points[rng.permutation(n)[:size]] for _ in range(3 if n <= 2 * size else n_draws)]
            lengths.append(np.median([single(pdist(some))[:, 2].sum() for some in draws]))
        x, y = np.log(sizes), np.log(lengths)
        slopes.append((len(x) * (x * y).sum() - x.sum() * y.sum()) / (len(x) * (x**2).sum() - x.sum() ** 2))
    return 1 / (1 - np.mean(slopes))


@pytest.mark.parametrize("d", [3, 8])
@pytest.mark.parametrize("n", [200, 511])
@pytest.mark.parametrize("name", ["phd", "phd_text"])
def test_persistent_homology_is_that_of_the_published_protocol(name: str, n: int, d: int) -> None:
    points = np.random.default_rng(d).standard_normal((n, d))
    expected = np.array([published(name, points, seed) for seed in range(6)])
    found = id_scaling.estimate(points, name)[name]
    assert found.status == "ok"
    # The draws differ: ours is one more of theirs.
    assert abs(found.value - expected.mean()) < 4.5 * expected.std(ddof=1) * np.sqrt(1 + 1 / 6)
    assert expected.std(ddof=1) < 0.1 * expected.mean()


@pytest.mark.parametrize("n", [89, 90, 96, 103, 200, 511, 1023])
def test_sizes_of_subsets_are_the_published_ones(n: int) -> None:
    assert phd.sizes_of_text(n).tolist() == published_sizes("phd_text", n)
    assert phd.sizes_of_class(n).tolist() == published_sizes("phd", n)
    assert len(phd.sizes_of_text(n)) == (6 if (n - 40) % 7 == 0 else 7)


def test_a_text_is_long_enough_where_its_largest_subset_is_twice_the_smallest() -> None:
    assert get_estimator("phd_text").min_points == 89
    assert phd.sizes_of_text(89)[-1] >= 2 * phd.sizes_of_text(89)[0] - 7
    assert id_scaling.estimate(cube(2, 88), "phd_text")["phd_text"].status == "too_few_points"


@pytest.mark.parametrize("name", ["phd", "phd_text", "mst"])
@pytest.mark.parametrize(("d", "low", "high"), [(2, 1.7, 2.2), (5, 4.2, 5.2), (10, 6.5, 10)])
def test_spanning_trees_grow_with_the_dimension(name: str, d: int, low: float, high: float) -> None:
    # The edge of a cube is nearer the larger d is: the growth of its trees is slower than the limit says.
    found = id_scaling.estimate(cube(d), [name])[name]
    assert low < found.value < high
    assert 0 < found.stderr < 0.3 * d


@pytest.mark.parametrize("name", ["phd", "phd_text", "mst"])
def test_spanning_trees_are_drawn_alike_every_time(name: str) -> None:
    first, second = (id_scaling.estimate(cube(3), [name])[name] for _ in range(2))
    assert (first.value, first.stderr) == (second.value, second.stderr)


@pytest.mark.parametrize("n", [2, 3, 50, 200])
def test_the_tree_is_that_of_scipy(n: int) -> None:
    points = np.random.default_rng(n).standard_normal((n, 4))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    expected = np.sort(minimum_spanning_tree(distances).data)
    np.testing.assert_allclose(np.sort(numba_kernels.tree_edges(distances)), expected, rtol=1e-15)


def test_local_pca_has_an_error_where_all_points_agree() -> None:
    found = id_scaling.estimate(cube(2, 500), ["local_pca_k50_v90"])["local_pca_k50_v90"]
    assert (found.value, found.status) == (2.0, "ok")
    one_more_or_less = 1 / 500  # times the table's factor for this method
    assert found.stderr == pytest.approx(one_more_or_less * factor(get_estimator("local_pca_k50_v90").spread, 2.0, 500))


@pytest.mark.parametrize("name", ["tle", "abid_k20", "local_pca_k20_v90"])
def test_local_values_average_to_the_estimate(name: str) -> None:
    points, estimator = cube(4, 200), get_estimator(name)
    assert estimator.compute(points)[0] == pytest.approx(estimator.local(points).mean(), rel=1e-14)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("points", "status"),
    [
        (cube(3, 10), "too_few_points"),
        (np.ones((300, 4)), "too_few_points"),
        (np.where(np.arange(300)[:, None] == 7, np.nan, cube(3, 300)), "nonfinite"),
        (np.concatenate([cube(3, 300), 1e6 * np.ones((1, 6))]), "ok"),
        (np.concatenate([cube(3, 300), cube(3, 300)[:40]]), "ok"),
    ],
    ids=["few", "constant", "nan", "massive", "repeated"],
)
def test_a_cloud_without_an_answer_says_why_in_silence(name: str, points: np.ndarray, status: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = id_scaling.estimate(points, [name])[name]
    if np.nanmax(points) == 1e6 and name in ("phd", "phd_text", "mst"):
        status = "boundary"  # one edge is longer than all others: the tree does not grow with the points drawn
    assert found.status == status
    assert np.isnan(found.value) == (status != "ok")


# ---- containment ----


@pytest.fixture
def misbehaving(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An estimator of points that does as the first coordinate says: hang, die, raise, print or estimate."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time, sys\n"
        "def compute(points):\n"
        "    wish = int(points[0, 0])\n"
        "    if wish == 1: time.sleep(1e6)\n"
        "    while wish == 5: pass\n"
        "    if wish == 2: os.kill(os.getpid(), 9)\n"
        "    if wish == 3: raise ValueError('no')\n"
        "    if wish == 4: print('noise'); os.write(1, b'more noise')\n"
        "    return float(os.getpid()), 0.0\n"
        "import id_scaling.estimators.registry as package\n"
        "from id_scaling.estimators.base import Estimator\n"
        "package.get_estimator = lambda name: Estimator(name, 'points', 2, compute)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    # A child of its own, that later tests do not meet.
    monkeypatch.setattr(children, "_OF_THREAD", threading.local())


def wish(number: int) -> np.ndarray:
    """Return a cloud that tells the estimator what to do."""
    return np.full((4, 2), float(number))


def test_what_an_estimator_does_costs_its_cloud_alone(misbehaving: None) -> None:
    ask = lambda number: estimate_contained("any", wish(number), 0.5 if number in (1, 5) else 60.0)[0]  # noqa: E731
    first = ask(0)
    assert ask(4) == first  # what is printed is no answer, and one child serves many clouds
    with pytest.raises(ChildError, match="ValueError: no"):
        ask(3)
    assert ask(0) == first
    with pytest.raises(TimeoutError, match=r"no answer after 5 s$"):  # ten times the processor time, by the clock
        ask(1)
    second = ask(0)
    assert second != first
    with pytest.raises(TimeoutError, match=r"no answer after 0\.5 s of processor time"):
        ask(5)
    second = ask(0)
    with pytest.raises(ChildError, match="its process ended with code -9"):
        ask(2)
    assert ask(0) not in (first, second)


def spend(seconds: float) -> float:
    """Return how much processor time a process has spent once it has spent so much."""
    start = time.process_time()
    while time.process_time() < start + seconds:
        pass
    return time.process_time() - start


def test_a_limit_is_of_processor_time_whoever_else_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "WALL_TIMES", 1000)  # this machine may be busy already
    # Three busy processes on the one core that the child has: it takes several times as long by the clock.
    core = {min(os.sched_getaffinity(0))}
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    kept = os.sched_getaffinity(0)
    try:
        for process in busy:
            os.sched_setaffinity(process.pid, core)
        os.sched_setaffinity(0, core)
        children.ask_child(spend, 0.0)
        start = time.perf_counter()
        assert children.ask_child(spend, 0.3, max_seconds=0.6) >= 0.3
        assert time.perf_counter() - start > 0.6  # the comparison can fail: it was slowed
        with pytest.raises(TimeoutError, match=r"no answer after 0\.3 s of processor time"):
            children.ask_child(spend, 5.0, max_seconds=0.3)
    finally:
        os.sched_setaffinity(0, kept)
        for process in busy:
            process.kill()
            process.wait()


def test_the_time_of_one_answer_is_not_counted_to_the_next() -> None:
    for _ in range(4):
        assert children.ask_child(spend, 0.2, max_seconds=0.5) >= 0.2


def test_each_failure_is_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([TimeoutError("late"), ChildError("ValueError: no"), (3.0, 0.1, None)])

    def answer(*_):
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(apply, "estimate_contained", answer)
    found = id_scaling.estimate_batch(np.stack([cube(3, 50, seed) for seed in range(3)]), ["skdim_TLE"])
    assert found["status"].to_list() == ["timeout", "failed: ValueError: no", "ok"]


def test_scikit_dimension_stays_in_its_process() -> None:
    code = (
        "import warnings, sys, numpy as np, id_scaling\n"
        "before = list(warnings.filters)\n"
        "points = np.random.default_rng(0).uniform(size=(200, 3))\n"
        "assert id_scaling.estimate(points, ['skdim_TLE'])['skdim_TLE'].status == 'ok'\n"
        "assert warnings.filters == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Interruption(BaseException):
    """As Ctrl-C raises, between a question and its answer."""


def test_an_interrupted_question_is_not_answered_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = cube(6, 1024, 1), cube(2, 200, 2)
    expected = id_scaling.estimate(second, ["tle"])["tle"]

    def interrupt(*_: object) -> None:
        raise Interruption

    monkeypatch.setattr(children.select, "poll", interrupt)
    with pytest.raises(Interruption):
        id_scaling.estimate(first, ["mst"])
    monkeypatch.undo()
    assert id_scaling.estimate(second, ["tle"])["tle"] == expected


def test_forked_processes_do_not_share_a_child() -> None:
    clouds = [cube(2 + index % 4, 120, index) for index in range(8)]
    expected = [id_scaling.estimate(cloud, ["tle"])["tle"].value for cloud in clouds]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(tle_of, clouds, chunksize=1) == expected
    assert tle_of(clouds[0]) == expected[0]


def tle_of(points: np.ndarray) -> float:
    """Return the estimate that the test of forked processes compares."""
    return id_scaling.estimate(points, ["tle"])["tle"].value


def test_a_child_that_does_not_start_is_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "_OF_THREAD", threading.local())
    monkeypatch.setattr(sys, "executable", "/bin/false")
    found = id_scaling.estimate(cube(3, 100), ["mle", "tle"])
    assert found["mle"].status == "ok"
    assert found["tle"].status.startswith("failed: /bin/false could not be started")


@pytest.mark.parametrize("name", [*NAMES, "skdim_TLE"])
def test_points_rounded_together_when_saved_give_no_number(name: str) -> None:
    points = (1000 + 0.3 * np.random.default_rng(0).standard_normal((300, 3))).astype(np.float32)
    neighbors = stacked([find_neighbors(points, [View(0)], range(1, 33))[0]])
    found = apply.estimate_from_points(get_estimator(name), points[None].astype(np.float16), neighbors)
    assert found.status[0].startswith("failed: 300 different points are")
    assert np.isnan(found.value[0])


@pytest.mark.parametrize("exponent", [-540, -300, 300, 500])
@pytest.mark.parametrize("name", NAMES)
def test_a_power_of_two_changes_nothing(name: str, exponent: int) -> None:
    points = cube(4, 256)
    found, expected = (id_scaling.estimate(one, [name])[name] for one in (np.ldexp(points, exponent), points))
    assert found.status == "ok"
    assert (found.value, found.stderr) == (expected.value, expected.stderr)


def test_trees_of_equal_edges_grow_as_in_infinitely_many_dimensions() -> None:
    found = id_scaling.estimate(np.eye(200), ["phd"])["phd"]
    assert found.status == "boundary"
    assert np.isnan(found.value)


def lattice(d: int, side: int) -> np.ndarray:
    """Return the points of a cubic lattice in d dimensions."""
    return np.stack(np.meshgrid(*[0.1 * np.arange(side)] * d, indexing="ij"), axis=-1).reshape(-1, d)


@pytest.mark.parametrize(("d", "side"), [(2, 7), (2, 32), (3, 5), (3, 10), (4, 6)])
def test_a_slope_that_rests_on_ties_is_no_number(d: int, side: int) -> None:
    found = id_scaling.estimate(lattice(d, side), ["mst"])["mst"]
    assert (found.status, np.isnan(found.value)) == ("boundary", True)


@pytest.mark.parametrize(
    ("name", "points", "d"),
    [
        *(("mst", lattice(1, n), 1) for n in (40, 60, 1000)),
        *(("phd", lattice(d, side), d) for d, side in ((1, 1000), (2, 32), (3, 10))),
    ],
)
def test_ties_that_leave_the_slope_right_leave_the_number(name: str, points: np.ndarray, d: int) -> None:
    assert id_scaling.estimate(points, [name])[name].value == pytest.approx(d, rel=0.25)


def test_tle_does_not_depend_on_the_unit_as_scikit_dimensions_does() -> None:
    # In a unit in which many measurements are below 1e-4 scikit-dimension drops them.
    points = np.random.default_rng(0).standard_normal((60, 3))
    found = id_scaling.estimate(points, "tle")["tle"].value
    assert id_scaling.estimate(2e-4 * points, "tle")["tle"].value == pytest.approx(found, rel=1e-9)
    assert skdim.id.TLE().fit_transform(points) == pytest.approx(found, rel=1e-3)
    assert abs(skdim.id.TLE().fit_transform(2e-4 * points) / found - 1) > 0.02


@pytest.mark.parametrize("method", [mst, phd])
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("d", [1, 3, 200])
def test_the_look_for_ties_leaves_other_clouds_as_they_were(method, dtype, d: int, monkeypatch) -> None:
    points = np.unique(cube(d, 300).astype(dtype), axis=0).astype(float)
    found = method.dimension(points)
    monkeypatch.setattr(spanning_trees, "_tied_share", lambda *_: 0.0)
    np.testing.assert_array_equal(found, method.dimension(points))


@pytest.mark.parametrize("name", ["skdim_KNN", "skdim_PH"])
def test_what_scikit_dimension_draws_is_seeded(name: str) -> None:
    points = cube(3, 120)
    assert len({id_scaling.estimate(points, [name])[name].value for _ in range(3)}) == 1


def test_a_version_of_local_pca_is_that_of_scikit_dimension() -> None:
    points = cube(5, 300)
    found = id_scaling.estimate(points, ["skdim_lPCA_Fan", "skdim_lPCA_ratio"])
    assert found["skdim_lPCA_Fan"].value == skdim.id.lPCA(ver="Fan").fit_transform(points)
    assert found["skdim_lPCA_ratio"].value == skdim.id.lPCA(ver="ratio").fit_transform(points)
    with pytest.raises(ConfigError, match="lPCA_Fam"):
        get_estimator("skdim_lPCA_Fam")


def test_ctrl_c_ends_the_asker_alone_in_silence() -> None:
    code = (
        "import numpy as np, id_scaling\n"
        "points = np.random.default_rng(0).uniform(size=(4000, 40))\n"
        "try:\n"
        "    print('asking', flush=True), id_scaling.estimate(points, ['abid_k300'])\n"
        "except KeyboardInterrupt:\n"
        "    print(id_scaling.estimate(points[:200, :2], ['tle'])['tle'].status)\n"
    )
    asker = subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True, start_new_session=True)
    assert asker.stdout.readline() == "asking\n"
    time.sleep(3)
    os.killpg(asker.pid, signal.SIGINT)  # as a terminal does: to all of them
    said, errors = asker.communicate(timeout=60)
    assert (said, errors) == ("ok\n", "")


@pytest.mark.parametrize(("sent", "raised"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "Ended")])
def test_children_that_threads_wait_for_end_with_who_is_asked_to(sent: signal.Signals, raised: str) -> None:
    code = (
        "import time\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from id_scaling.runtime.workers import ask_child, ending_children\n"
        "from id_scaling.runtime.interrupts import endable\n"
        "with endable(), ThreadPoolExecutor(2) as threads, ending_children():\n"
        "    print('asking', flush=True), list(threads.map(lambda s: ask_child(time.sleep, s), [600, 600]))\n"
    )
    asker = subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True, start_new_session=True)
    assert asker.stdout.readline() == "asking\n"
    time.sleep(2)
    os.killpg(asker.pid, sent)  # as a terminal and a cluster do: to all of them
    _, errors = asker.communicate(timeout=60)  # and not the ten minutes that were asked for
    assert errors.rstrip().endswith(raised)
    assert "ChildError" not in errors


def test_a_child_that_ends_by_itself_is_not_taken_for_killed() -> None:
    with pytest.raises(ChildError, match=r"^its process ended with code 3$") as caught:
        children.ask_child(sys.exit, 3)
    assert not caught.value.lacks_memory


def test_an_answer_that_cannot_be_sent_is_an_error_in_words() -> None:
    with pytest.raises(ChildError, match=r"cannot pickle|Can't pickle"):
        children.ask_child(threading.Lock)


def test_files_in_the_current_directory_and_many_open_ones_are_no_matter(tmp_path: Path) -> None:
    for name in ("select.py", "numba.py", "pickle.py"):
        (tmp_path / name).write_text("raise SystemExit('shadowed')\n")
    (tmp_path / "elsewhere").mkdir()
    script = tmp_path / "elsewhere" / "script.py"
    script.write_text(
        "import os, resource, numpy as np, id_scaling\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (2000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]\n"
        "points = np.random.default_rng(0).standard_normal((200, 3))\n"
        "print(id_scaling.estimate(points, ['tle'])['tle'].status)\n"
    )
    found = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("ok\n", "")


def test_distances_of_trees_are_right_beside_a_point_far_out() -> None:
    points = np.vstack([cube(3, 300), np.full((1, 6), 1e12)])
    direct = np.linalg.norm(points[:, None] - points, axis=2)
    np.testing.assert_allclose(spanning_trees._distances(points), direct, rtol=1e-9)  # ten digits are kept
