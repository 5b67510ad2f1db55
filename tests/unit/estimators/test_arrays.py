"""The library: what `estimate` and `estimate_batch` take and give, and what they leave alone."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
import torch

import id_scaling
from id_scaling.errors import ConfigError, ResourceError
from id_scaling.estimators.arrays import DEFAULT_ESTIMATORS
from id_scaling.estimators.base import Estimate

NAMES = ["mle", "mle_harmonic", "mind_ml", "mind_ml_d20", "mind_ml_d2", "twoNN_f10", "twoNN_f50"]


def cloud(n: int = 100, d: int = 12, seed: int = 0) -> np.ndarray:
    """Return n points of a bent four-dimensional sheet in d coordinates."""
    rng = np.random.default_rng(seed)
    latent = rng.uniform(-1, 1, (n, 4))
    return np.concatenate([latent, np.sin(3 * latent)], axis=1) @ rng.standard_normal((8, d))


def same(one: Estimate, other: Estimate) -> bool:
    """Return whether two estimates are equal to the last bit, NaN being equal to NaN."""
    pairs = zip(dataclasses.astuple(one), dataclasses.astuple(other), strict=True)
    return all(a == b or (a != a and b != b) for a, b in pairs)


def rows(table: pl.DataFrame) -> list[tuple[int, str, Estimate]]:
    """Return (cloud, estimator, estimate) of each row."""
    fields = [field.name for field in dataclasses.fields(Estimate)]
    return [
        (row["cloud"], row["estimator"], Estimate(**{field: row[field] for field in fields}))
        for row in table.iter_rows(named=True)
    ]


# ---- what comes back ----


def test_estimate_gives_an_estimate_for_each_name_in_their_order() -> None:
    names = NAMES[::-1]
    found = id_scaling.estimate(cloud(), names)
    assert list(found) == names
    for one in found.values():
        assert isinstance(one, id_scaling.Estimate)
        assert [type(value) for value in dataclasses.astuple(one)[:7]] == [float, float, int, int, int, str, float]
        assert (one.n_points, one.n_distinct) == (100, 100)
    # The sheet has four dimensions; a hundred points and its bends leave a third of that either way.
    assert 2.7 < found["mle"].value < 5.3
    assert 0 < found["mle"].stderr < 1


def test_the_default_estimators_are_those_of_a_study() -> None:
    found = id_scaling.estimate(cloud())
    assert list(found) == list(DEFAULT_ESTIMATORS) == ["mle", "mind_ml", "twoNN_f10"]
    assert all(same(one, id_scaling.estimate(cloud(), [name])[name]) for name, one in found.items())


def test_an_estimate_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        id_scaling.estimate(cloud())["mle"].value = 0.0


def test_estimate_batch_gives_a_row_for_each_cloud_and_name_in_their_order() -> None:
    table = id_scaling.estimate_batch(np.stack([cloud(seed=seed) for seed in range(3)]), NAMES)
    assert table.schema == {
        "cloud": pl.Int64,
        "estimator": pl.String,
        "value": pl.Float64,
        "stderr": pl.Float64,
        "n_points": pl.Int64,
        "n_distinct": pl.Int64,
        "n_nonfinite": pl.Int64,
        "status": pl.String,
        "tiny_r1": pl.Float64,
        "top_share": pl.Float64,
    }
    assert [(row[0], row[1]) for row in table.rows()] == [(index, name) for index in range(3) for name in NAMES]


def varied_clouds(n_clouds: int) -> np.ndarray:
    """Return clouds of different dimensions; among them repeated, constant and non-finite points."""
    clouds = np.stack([cloud(64, seed=seed) for seed in range(n_clouds)])
    clouds[1::3, :, 5:] *= 1e-3
    clouds[2::3] = np.random.default_rng(1).standard_normal(clouds[2::3].shape)
    clouds[4, 30:40] = clouds[4, 10:20]
    clouds[5] = clouds[5, 0]
    clouds[6, 7, 1] = np.nan
    return clouds


@pytest.mark.parametrize("duplicates", ["distinct", "keep"])
def test_a_batch_equals_its_clouds_one_at_a_time_to_the_last_bit(duplicates: str) -> None:
    clouds, names = varied_clouds(40), [*NAMES, "skdim_CorrInt"]
    alone = [id_scaling.estimate(points, names, duplicates) for points in clouds]
    table = rows(id_scaling.estimate_batch(clouds, names, duplicates))
    assert [(index, name) for index, name, found in table if not same(found, alone[index][name])] == []


def test_a_batch_does_not_let_one_cloud_spoil_another() -> None:
    table = id_scaling.estimate_batch(varied_clouds(9), ["mle"], "distinct")
    words = ["ok"] * 9
    words[5], words[6] = "too_few_points", "nonfinite"
    assert table["status"].to_list() == words
    assert table["n_distinct"].to_list() == [64, 64, 64, 64, 54, 1, 64, 64, 64]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", np.longdouble])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_points_are_left_as_they_were_whatever_their_layout(dtype: object, order: str) -> None:
    points = np.array(cloud(), dtype=dtype, order=order)
    before = points.copy()
    points.flags.writeable = False
    found = id_scaling.estimate(points, NAMES)
    np.testing.assert_array_equal(points, before)
    # float64 holds every value given (a long double only what was a float64 before).
    expected = id_scaling.estimate(np.ascontiguousarray(points.astype(np.float64)), NAMES)
    for name, one in found.items():
        # What is promised of points narrower than float64, and of float64.
        promised = 1e-6 if np.dtype(dtype).itemsize <= 4 else 1e-9
        assert one.value == pytest.approx(expected[name].value, rel=promised)


def test_nested_lists_are_points_too() -> None:
    points = cloud()
    assert same(id_scaling.estimate(points.tolist())["mle"], id_scaling.estimate(points)["mle"])


# ---- clouds without an answer ----


def generic(n: int) -> Callable[[], np.ndarray]:
    return lambda: cloud(n)


def constant() -> np.ndarray:
    return np.full((30, 5), 0.1)


def with_value(value: float, n: int = 100) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        points = cloud(n)
        points[n // 2, 3] = value
        return points

    return make


def overflown() -> np.ndarray:
    points = cloud()
    points[17, 4] = 1e5  # beyond the largest float16, 65504
    with np.errstate(over="ignore"):
        return points.astype(np.float16)


def twice_each() -> np.ndarray:
    return np.concatenate([cloud(40), cloud(40)])


def one_pair() -> np.ndarray:
    return np.concatenate([cloud(60), cloud(60)[:1]])


def thirty_copies() -> np.ndarray:
    return np.concatenate([cloud(60), np.tile(cloud(60)[7], (30, 1))])


def massive() -> np.ndarray:
    points = cloud().astype(np.float16)
    points[0, 2], points[0, 5] = 1000, -1500
    return points


def lattice() -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(4.0)] * 3), axis=-1).reshape(-1, 3)


ALL = ("mle", "mle_harmonic", "mind_ml", "twoNN_f10")


def statuses(*words: str) -> dict[str, str]:
    """Return the status expected of each of `ALL`; one word stands for all four."""
    return dict(zip(ALL, words * 4 if len(words) == 1 else words, strict=False))


OK, FEW, NONE, BAD = "ok", "too_few_points", "degenerate", "nonfinite"
# cloud, policy, n_distinct, the status of each estimator
CASES = [
    pytest.param(generic(100), "distinct", 100, statuses(OK), id="generic"),
    pytest.param(generic(100), "keep", 100, statuses(OK), id="generic-keep"),
    pytest.param(constant, "distinct", 1, statuses(FEW), id="constant"),
    pytest.param(constant, "keep", 1, statuses(NONE), id="constant-keep"),
    *(
        pytest.param(generic(n), policy, n, statuses(*words), id=f"{n}-points-{policy}")
        for policy in ("distinct", "keep")
        for n, words in {
            1: (FEW, FEW, FEW, FEW),
            2: (FEW, FEW, FEW, FEW),
            3: (FEW, FEW, FEW, OK),
            10: (FEW, FEW, FEW, OK),
            20: (FEW, FEW, FEW, OK),
            21: (OK, OK, FEW, OK),
            22: (OK, OK, OK, OK),
        }.items()
    ),
    *(
        pytest.param(with_value(value, n), policy, n, statuses(BAD), id=f"{value}-{n}-{policy}")
        for policy in ("distinct", "keep")
        for value in (np.nan, np.inf, -np.inf)
        for n in (3, 100)
    ),
    pytest.param(overflown, "distinct", 100, statuses(BAD), id="float16-overflow"),
    pytest.param(overflown, "keep", 100, statuses(BAD), id="float16-overflow-keep"),
    pytest.param(twice_each, "distinct", 40, statuses(OK), id="twice-each"),
    pytest.param(twice_each, "keep", 40, statuses(NONE), id="twice-each-keep"),
    pytest.param(one_pair, "distinct", 60, statuses(OK), id="one-pair"),
    pytest.param(one_pair, "keep", 60, statuses(NONE), id="one-pair-keep"),
    pytest.param(thirty_copies, "distinct", 60, statuses(OK), id="thirty-copies"),
    pytest.param(thirty_copies, "keep", 60, statuses(NONE), id="thirty-copies-keep"),
    pytest.param(massive, "distinct", 100, statuses(OK), id="massive-point"),
    pytest.param(massive, "keep", 100, statuses(OK), id="massive-point-keep"),
    # The two nearest are equally far from every point: log mu is zero throughout, and no line has a slope.
    pytest.param(lattice, "distinct", 64, statuses(OK, OK, OK, NONE), id="lattice"),
    # Fewer different points than an estimator needs.
    pytest.param(lambda: np.tile(cloud(21), (5, 1)), "distinct", 21, statuses(OK, OK, FEW, OK), id="21-five-times"),
    pytest.param(lambda: np.tile(cloud(2), (50, 1)), "distinct", 2, statuses(FEW), id="2-fifty-times"),
]


@pytest.mark.parametrize(("make", "duplicates", "n_distinct", "expected"), CASES)
def test_a_cloud_without_an_answer_says_why_in_silence(
    make: Callable[[], np.ndarray], duplicates: str, n_distinct: int, expected: dict[str, str]
) -> None:
    points = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = id_scaling.estimate(points, ALL, duplicates)
        table = id_scaling.estimate_batch(points[None], ALL, duplicates)
    assert {name: one.status for name, one in found.items()} == expected
    for one in found.values():
        assert math.isnan(one.value) == (one.status != "ok")
        assert math.isnan(one.stderr) == (one.status != "ok")
        assert one.status != "ok" or (one.value > 0 and one.stderr > 0)
        assert (one.n_points, one.n_distinct) == (len(points), n_distinct)
    assert all(same(one, found[name]) for _, name, one in rows(table))


def test_repetitions_do_not_change_the_answer_of_the_distinct_points() -> None:
    found, expected = id_scaling.estimate(thirty_copies(), ALL), id_scaling.estimate(cloud(60), ALL)
    for name in ALL:
        # Centred on another mean: rounding alone.
        assert found[name].value == pytest.approx(expected[name].value, rel=1e-12)
        assert found[name].stderr == pytest.approx(expected[name].stderr, rel=1e-12)


def test_a_saturated_value_is_a_number_without_a_standard_error() -> None:
    found = id_scaling.estimate(cloud(), ["mind_ml_d2", "mind_ml"])
    assert found["mind_ml"].value > 2
    assert (found["mind_ml_d2"].value, found["mind_ml_d2"].status) == (2.0, "saturated")
    assert math.isnan(found["mind_ml_d2"].stderr)


@pytest.mark.parametrize("size", [1e-200, 1e-5, 1e5, 1e200])
def test_coordinates_of_any_size_are_estimated_in_silence(size: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = id_scaling.estimate(cloud() * size, ALL)
    expected = id_scaling.estimate(cloud(), ALL)
    for name in ALL:
        assert found[name].value == pytest.approx(expected[name].value, rel=1e-10)  # as for scaling, below


# ---- names ----


@pytest.mark.parametrize(
    ("alias", "name"),
    [("mle_k20", "mle"), *((f"mle_{mean}_k20", f"mle_{mean}") for mean in ("harmonic", "unbiased", "median"))],
)
def test_a_name_with_the_default_k_is_the_plain_one(alias: str, name: str) -> None:
    found = id_scaling.estimate(cloud(), [alias, name])
    assert list(found) == [name]
    assert found[alias] is found[name]
    assert same(found[name], id_scaling.estimate(cloud(), name)[name])
    assert id_scaling.estimate_batch(cloud()[None], alias)["estimator"].to_list() == [name]
    with pytest.raises(KeyError):
        found["mom_k20"]


@pytest.mark.parametrize("name", ["mom_k20", "abid_k20", "gride_n20"])
def test_a_k_without_a_plain_name_stays(name: str) -> None:
    assert list(id_scaling.estimate(cloud(), name)) == [name]


# ---- more points than fit ----


def test_more_points_than_fit_in_memory_are_one_error_before_anything_is_allocated() -> None:
    points = np.zeros((3_000_000, 1), dtype=np.float32)
    start = time.perf_counter()
    with pytest.raises(ResourceError, match=r"a cloud of 3,000,000 points needs 36000\.0 GB of memory, .* GB is free"):
        id_scaling.estimate(points, "mle")
    assert time.perf_counter() - start < 5


LIMITED = """
import resource, sys
import numpy as np
import id_scaling
points = np.random.default_rng(0).standard_normal((12_000, 4))
id_scaling.estimate(points[:100], "mle")
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 800_000_000, resource.RLIM_INFINITY))
try:
    id_scaling.estimate(points, "mle")
except id_scaling.errors.ResourceError as error:
    print(error)
"""


def test_a_limit_on_the_process_is_a_limit() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("a cloud of 12,000 points needs 1.2 GB of memory, 0.")


# ---- arguments that cannot be used ----


@pytest.mark.parametrize(
    ("points", "telling"),
    [
        (np.ones(5), r"points: found shape \(5,\), expected a non-empty \(n_points, d\) array"),
        (np.ones((2, 5, 3)), r"points: found shape \(2, 5, 3\), expected a non-empty \(n_points, d\) array"),
        (np.ones((0, 3)), r"found shape \(0, 3\), expected a non-empty"),
        (np.ones((3, 0)), r"found shape \(3, 0\), expected a non-empty"),
        (1.0, r"found shape \(\), expected a non-empty"),
        (None, r"found shape \(\), expected a non-empty"),
        (np.ones((5, 3), dtype=int), r"found dtype int64, expected floats; convert with points.astype\(float\)"),
        (np.ones((5, 3), dtype=np.uint8), "found dtype uint8, expected floats"),
        (np.ones((5, 3), dtype=bool), "found dtype bool, expected floats"),
        (np.ones((5, 3), dtype=complex), "found dtype complex128, expected floats"),
        (np.ones((5, 3), dtype=object), "found dtype object, expected floats"),
        (np.array([["a", "b"]]), "found dtype <U1, expected floats"),
        ([[1.0, 2.0], [3.0]], "points: "),
        (torch.ones((5, 3), dtype=torch.bfloat16), r"found a Tensor .*points.detach\(\).float\(\).cpu\(\).numpy\(\)"),
        (torch.ones((5, 3), requires_grad=True), "found a Tensor that does not become a numpy array"),
        (np.ma.masked_equal(np.eye(5), 1.0), "found a masked array; leave the masked points out"),
    ],
)
def test_points_that_are_no_cloud_are_refused(points: object, telling: str) -> None:
    with pytest.raises(ConfigError, match=telling):
        id_scaling.estimate(points)


@pytest.mark.parametrize(
    ("clouds", "telling"),
    [
        (np.ones((5, 3)), r"points: found shape \(5, 3\), expected a non-empty \(n_clouds, n_points, d\) array"),
        (np.ones((0, 5, 3)), r"found shape \(0, 5, 3\), expected a non-empty"),
        (np.ones((2, 5, 3), dtype=int), "found dtype int64, expected floats"),
    ],
)
def test_clouds_that_are_no_batch_are_refused(clouds: np.ndarray, telling: str) -> None:
    with pytest.raises(ConfigError, match=telling):
        id_scaling.estimate_batch(clouds)


@pytest.mark.parametrize(
    ("arguments", "telling"),
    [
        ({"duplicates": "drop"}, "duplicates: found 'drop', expected 'distinct' or 'keep'"),
        ({"duplicates": None}, "duplicates: found None, expected 'distinct' or 'keep'"),
        ({"duplicates": np.array(["keep", "distinct"])}, "duplicates: found array"),
        ({"max_seconds": 0}, "max_seconds: found 0, expected a number above 0"),
        ({"max_seconds": "60"}, "max_seconds: found '60', expected a number above 0"),
        ({"estimators": 5}, "estimators: found 5, expected a name or a list of names"),
        ({"estimators": b"mle"}, "estimators: found b'mle', expected a name or a list of names"),
        ({"duplicates": True}, "duplicates: found True, expected 'distinct' or 'keep'"),
        ({"estimators": "mle_k"}, r"'mle_k' is not an estimator: did you mean 'mle"),
        ({"estimators": []}, r"estimators: found \[\], expected a name or a list of names"),
        ({"estimators": ()}, r"estimators: found \(\), expected a name or a list of names"),
        ({"estimators": None}, "estimators: found None, expected a name or a list of names"),
        ({"estimators": ["mle", "mle_k"]}, r"'mle_k' is not an estimator: did you mean 'mle"),
        ({"estimators": ["mle", 3]}, "3'? is not an estimator"),
        ({"estimators": ["mle", None]}, "None'? is not an estimator"),
        ({"estimators": [["mle"]]}, r"\['mle'\]\W? is not an estimator"),
        ({"estimators": ["skdim_Nope"]}, "skdim.id has no 'Nope'"),
    ],
)
def test_other_arguments_that_cannot_be_used_are_refused(arguments: dict, telling: str) -> None:
    with pytest.raises(ConfigError, match=telling):
        id_scaling.estimate(cloud(), **arguments)
    with pytest.raises(ConfigError, match=telling):
        id_scaling.estimate_batch(cloud()[None], **arguments)


# ---- invariances ----


def rotated(points: np.ndarray) -> np.ndarray:
    d = points.shape[1]
    return points @ np.linalg.qr(np.random.default_rng(3).standard_normal((d, d)))[0]


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        pytest.param(lambda points: points * 2.0**-30, 0.0, id="scaled-by-a-power-of-two"),
        # Else: coordinates are rounded at 1e-16 of them, and the closest pairs are a hundredth of the norm apart.
        pytest.param(lambda points: points * 1234.5, 1e-10, id="scaled"),
        pytest.param(rotated, 1e-10, id="rotated"),
        pytest.param(lambda points: points[np.random.default_rng(4).permutation(len(points))], 1e-10, id="permuted"),
        pytest.param(lambda points: points + 10.0, 1e-10, id="translated"),
        pytest.param(lambda points: points[:, ::-1], 1e-10, id="coordinates-permuted"),
        pytest.param(lambda points: np.pad(points, ((0, 0), (0, 50))), 1e-10, id="padded-with-zeros"),
    ],
)
def test_values_are_invariant(change: Callable[[np.ndarray], np.ndarray], tolerance: float) -> None:
    points = cloud(300)
    found, expected = id_scaling.estimate(change(points), NAMES), id_scaling.estimate(points, NAMES)
    for name in NAMES:
        assert found[name].value == pytest.approx(expected[name].value, rel=tolerance, abs=0)
        assert found[name].status == expected[name].status


def test_values_are_not_invariant_to_a_change_of_shape() -> None:
    points = cloud(300)
    stretched = points * np.r_[100, np.ones(11)]
    # Stretched a hundred times one way, the sheet looks one-dimensional: the tolerance above can fail.
    assert id_scaling.estimate(stretched)["mle"].value < 0.8 * id_scaling.estimate(points)["mle"].value


def test_float32_points_agree_with_float64() -> None:
    points = cloud(300)
    found, expected = id_scaling.estimate(points.astype(np.float32), ALL), id_scaling.estimate(points, ALL)
    for name in ALL:
        # Rounding at 6e-8 of coordinates, some tens of times that of the closest distances.
        assert found[name].value == pytest.approx(expected[name].value, rel=1e-5)
        assert found[name].value != expected[name].value  # it is the rounded points that were read


# ---- the package itself ----


def imported_by(script: str, *modules: str) -> list[str]:
    """Return which of the modules a fresh Python has imported after a script."""
    script += f"\nimport json, sys\nprint(json.dumps([name for name in {modules!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


HEAVY = ("torch", "snakemake", "transformers", "skdim", "sklearn", "h5py", "altair", "pydantic")
ESTIMATING = """
import numpy as np
import id_scaling
points = np.random.default_rng(0).standard_normal((50, 4))
names = ["mle", "mle_harmonic", "mind_ml", "mind_ml_d20", "twoNN_f10"]
assert all(one.status == "ok" for one in id_scaling.estimate(points, names).values())
"""


@pytest.mark.parametrize(
    ("script", "modules"),
    [
        pytest.param("import id_scaling\ndir(id_scaling)", ("numpy", "polars", *HEAVY), id="import"),
        pytest.param(ESTIMATING, ("polars", *HEAVY), id="estimate"),
        pytest.param(ESTIMATING + "id_scaling.estimate_batch(points[None], names)", HEAVY, id="estimate_batch"),
    ],
)
def test_the_library_imports_nothing_heavy(script: str, modules: tuple[str, ...]) -> None:
    assert imported_by(script, *modules) == []


def test_a_heavy_import_would_be_seen() -> None:
    assert imported_by("import id_scaling\nimport polars, h5py", "polars", "h5py", "torch") == ["polars", "h5py"]


def test_the_package_lists_its_public_names() -> None:
    assert id_scaling.__all__ == [
        "Estimate",
        "estimate",
        "estimate_batch",
        "load_contexts",
        "load_summary",
        "load_tokens",
    ]
    assert set(id_scaling.__all__) <= set(dir(id_scaling))
    assert "__version__" in dir(id_scaling)
    for name in id_scaling.__all__:
        assert getattr(id_scaling, name).__name__ == name


def test_an_unknown_name_of_the_package_is_answered_by_those_it_has() -> None:
    names = "Estimate, estimate, estimate_batch, load_contexts, load_summary, load_tokens"
    with pytest.raises(AttributeError, match=f"module 'id_scaling' has no attribute 'estimates'; it has {names}"):
        _ = id_scaling.estimates
    assert not hasattr(id_scaling, "nothing_of_the_kind")
