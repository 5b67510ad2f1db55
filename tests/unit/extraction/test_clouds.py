"""Clouds of all contexts of a run, and views for some layers alone, against transformers' hidden states."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
import torch
from conftest import save_text, save_tiny_llama, study
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info, threadpool_limits
from transformers import AutoModelForCausalLM
from verbs import Session

from id_scaling import estimate
from id_scaling.cli.main import main
from id_scaling.models.modules import Site
from id_scaling.neighbors.cloud_kinds import view_of_run
from id_scaling.neighbors.find import find_neighbors
from id_scaling.neighbors.views import View
from id_scaling.results.estimates import SCHEMA
from id_scaling.storage.layer_writer import assemble, writing_part
from id_scaling.storage.records import read_record
from id_scaling.study.study import Study

CTX_LEN = 64
POSITIONS = [5, -1]
VIEWS: dict[str, dict[str, Any]] = {
    "default": {},
    "origin": {"skip_first_tokens": 0, "duplicates": "keep"},
    "standardised": {"preprocess": "standardised"},
    "null": {"null_cloud": "gaussian", "draws": 2, "layers": [1]},
    "half": {"decimate": 40},
    "token": {"duplicates": "one_per_token"},
    "window": {"exclude_window": 2},
}
OF_RUN = {"default", "origin", "standardised", "null-0", "null-1"}
# Block, layer, and which of transformers' hidden states it is; the last of a Llama is that after the final norm.
SITES = [("emb", None, 0), ("block", 0, 1), ("unemb", None, 2)]


def config_of(model: Path, text: Path, **changes: Any) -> dict[str, Any]:
    """Return a study of a few sites; `changes` replace keys of `cacheing_config`."""
    config = study(model, text)
    config["cacheing_config"] = {
        "module_inblock_keys": ["block"],
        "save_mean_tensors": True,
        "save_positions": POSITIONS,
        "clouds": ["position", "mean", "context"],
        "views": VIEWS,
        "save_IDs_list": ["mle", "twoNN_f10", "mind_ml", "corrint", "participation_ratio"],
        **changes,
    }
    return config


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of documents that give 59 contexts."""
    return save_text(tmp_path_factory.mktemp("texts") / "many", n_documents=30)


@pytest.fixture(scope="module")
def session(tiny_llama: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """The study, extracted."""
    return Session(tmp_path_factory.mktemp("clouds"), config_of(tiny_llama, text))


@pytest.fixture(scope="module")
def states(session: Session, tiny_llama: Path) -> list[np.ndarray]:
    """The hidden states of transformers, each (contexts, tokens, d)."""
    ids = torch.tensor(pl.read_parquet(session.paths["contexts"])["input_ids"].to_list())
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    with torch.inference_mode():
        return [state.numpy() for state in model(ids, output_hidden_states=True).hidden_states]


def stored(session: Session, module: str, layer: int | None, name: str) -> np.ndarray:
    """Return what is stored of a site."""
    file_name = "outblock.h5" if layer is None else f"layer_{layer:02d}.h5"
    with h5py.File(Path(session.paths["manifest"]).parent / file_name) as file:
        return file[f"{module}/{name}"][:]


def table_of(session: Session, module: str, estimator: str) -> pl.DataFrame:
    """Return the table of one module and estimator."""
    output = session.folder / f"{module}-{estimator}.parquet"
    if not output.is_file():
        assert main(session.estimate(module, estimator, output)) == 0
    return pl.read_parquet(output)


def of_run(session: Session, module: str, estimator: str, layer: int | None, **keys: Any) -> dict[str, Any]:
    """Return one row of a cloud of the run."""
    is_it = [pl.col(key).eq_missing(value) for key, value in {"layer": layer, **keys}.items()]
    (row,) = table_of(session, module, estimator).filter(pl.col("cloud") != "context", *is_it).to_dicts()
    return row


# ---- what is stored --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "layer", "number"), SITES)
def test_vectors_are_those_of_the_hidden_states(module: str, layer, number: int, session: Session, states) -> None:
    for position in (5, CTX_LEN - 1):
        found = stored(session, module, layer, f"positions/{position}")
        assert found.dtype == np.float32
        # Batches of another size may add in another order.
        np.testing.assert_allclose(found, states[number][:, position], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        stored(session, module, layer, "mean"), states[number].mean(axis=1, dtype=np.float64), rtol=1e-4, atol=1e-6
    )


def test_batches_of_another_size_store_the_same_bits(
    session: Session, tiny_llama: Path, text: Path, tmp_path: Path
) -> None:
    """And so do the estimates of clouds of the run by more processes."""
    config = {**config_of(tiny_llama, text), "batch_size": 5}
    other = Session(tmp_path, config)
    for module, layer, _ in SITES:
        for name in ("mean", "positions/5", f"positions/{CTX_LEN - 1}"):
            np.testing.assert_array_equal(stored(other, module, layer, name), stored(session, module, layer, name))
    assert main([*other.estimate("block", "corrint", tmp_path / "ids.parquet"), "--threads", "3"]) == 0
    tables = [table_of(session, "block", "corrint"), pl.read_parquet(tmp_path / "ids.parquet")]
    of_run = [table.filter(pl.col("cloud") != "context") for table in tables]
    assert of_run[0].equals(of_run[1], null_equal=True)


def test_clouds_of_the_run_are_searched_on_one_thread_of_blas(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many there are would change last bits."""
    seen = []

    def spied(*arguments: Any) -> Any:
        seen.extend(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")
        return find_neighbors(*arguments)

    monkeypatch.setattr("id_scaling.results.estimates.find_neighbors", spied)
    with threadpool_limits(2, user_api="blas"):
        assert main(session.estimate("block", "mle", tmp_path / "ids.parquet")) == 0
    assert set(seen) == {1}


def test_a_cloud_that_does_not_fit_in_memory_is_one_error(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("id_scaling.results.estimates.find_neighbors", full)
    assert main(session.estimate("block", "mle", tmp_path / "ids.parquet")) == 1
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "layer_00.h5: all products of 59 contexts (mean) do not fit in memory; give the job more" in said


# ---- which rows ------------------------------------------------------------------------------------------------


def test_a_cloud_of_the_run_has_a_row_for_each_view_that_makes_sense_of_contexts(session: Session) -> None:
    table = table_of(session, "block", "mle")
    assert table.columns == list(SCHEMA)
    n_contexts = table["context"].max() + 1
    assert n_contexts == 59
    rows = table.filter(pl.col("context").is_null()).select("layer", "cloud", "position", "view").rows()
    clouds = [("mean", None), ("position", 5), ("position", CTX_LEN - 1)]
    expected = {
        (layer, *cloud, view) for layer in (0, 1) for cloud in clouds for view in OF_RUN if layer or "null" not in view
    }
    assert len(rows) == len(expected)
    assert set(rows) == expected
    of_contexts = table.filter(cloud="context")
    assert of_contexts["position"].null_count() == len(of_contexts)
    assert (of_contexts.group_by("layer", "view").len()["len"] == n_contexts).all()


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (View(5, "keep", preprocess="unit_norm"), View(0, "keep", preprocess="unit_norm")),
        (View(draw=3, null_cloud="gaussian"), View(0, draw=3, null_cloud="gaussian")),
        (View(duplicates="one_per_token"), None),
        (View(duplicates="matched_subset"), None),
        (View(decimate=9), None),
        (View(exclude_window=1), None),
    ],
    ids=str,
)
def test_view_of_contexts_skips_none_and_is_not_of_tokens(view: View, expected: View | None) -> None:
    assert view_of_run(view) == expected


# ---- numbers ---------------------------------------------------------------------------------------------------

CLOUDS = [("mean", None), ("position", 5), ("position", CTX_LEN - 1)]


def points_of(session: Session, module: str, layer: int | None, cloud: str, position: int | None) -> np.ndarray:
    """Return the stored points of a cloud of the run."""
    return stored(session, module, layer, "mean" if cloud == "mean" else f"positions/{position}")


@pytest.mark.parametrize("estimator", ["mle", "twoNN_f10", "mind_ml", "corrint", "participation_ratio"])
@pytest.mark.parametrize(("module", "layer", "number"), SITES)
def test_estimates_are_those_of_the_stored_points(
    module: str, layer: int | None, number: int, estimator: str, session: Session
) -> None:
    for cloud, position in CLOUDS:
        points = points_of(session, module, layer, cloud, position)
        for view, duplicates in (("default", "distinct"), ("origin", "keep")):
            row = of_run(session, module, estimator, layer, cloud=cloud, position=position, view=view)
            expected = estimate(points, [estimator], duplicates=duplicates)[estimator]
            assert row["status"] == expected.status
            # Of float32 points IDs are right to 1e-6; which pairs are computed again hangs on the ranks asked for.
            found = [np.nan if row[name] is None else row[name] for name in ("value", "stderr")]
            np.testing.assert_allclose(found[0], expected.value, rtol=1e-6)
            np.testing.assert_allclose(found[1], expected.stderr, rtol=1e-5)
            assert (row["n_points"], row["n_distinct"]) == (59, len(np.unique(points, axis=0)))


@pytest.mark.parametrize(("module", "layer", "number"), SITES)
def test_estimates_are_those_of_scikit_dimension_on_the_hidden_states(
    module: str, layer: int | None, number: int, session: Session, states
) -> None:
    with warnings.catch_warnings():
        from skdim.id import MLE, TwoNN

    for cloud, position in CLOUDS:
        state = states[number].astype(np.float64)
        points = state.mean(axis=1) if cloud == "mean" else state[:, position]
        # Points that are equal but for rounding in a batch count once.
        points = points[np.unique(points.round(5), axis=0, return_index=True)[1]]
        for estimator, theirs in (("mle", MLE()), ("twoNN_f10", TwoNN())):
            row = of_run(session, module, estimator, layer, cloud=cloud, position=position, view="default")
            assert (row["status"], row["n_used"]) == ("ok", len(points))
            # Activations agree to some 1e-6, and distances to the nearest are a tenth of their norm and more.
            assert row["value"] == pytest.approx(theirs.fit_transform(points), rel=1e-4)


def test_estimates_of_scaled_points_are_those_of_scikit_learns_scaling(session: Session) -> None:
    points = points_of(session, "block", 1, "mean", None).astype(np.float64)
    row = of_run(session, "block", "mle", 1, cloud="mean", view="standardised")
    expected = estimate(StandardScaler().fit_transform(points), ["mle"])["mle"]
    assert (row["value"], row["status"]) == (pytest.approx(expected.value, rel=1e-9), "ok")


@pytest.mark.parametrize("draw", [0, 1])
@pytest.mark.parametrize(("cloud", "position"), [("mean", None), ("position", CTX_LEN - 1)])
def test_a_null_is_drawn_by_the_tokens_that_its_points_are_of(
    cloud: str, position, draw: int, session: Session
) -> None:
    tokens = np.array(pl.read_parquet(session.paths["contexts"])["input_ids"].to_list(), dtype=np.int64)
    content = hashlib.sha256((tokens if position is None else tokens[:, position]).tobytes()).digest()
    points = points_of(session, "block", 1, cloud, position).astype(np.float64)
    points = points[np.sort(np.unique(points, axis=0, return_index=True)[1])]
    random = np.random.default_rng([draw, *np.frombuffer(content, "<u4").tolist()])
    normals = random.standard_normal((len(points), len(points)))
    null = points.mean(axis=0) + normals @ (points - points.mean(axis=0)) / np.sqrt(len(points) - 1)
    for estimator in ("mle", "twoNN_f10"):
        row = of_run(session, "block", estimator, 1, cloud=cloud, position=position, view=f"null-{draw}")
        assert row["value"] == pytest.approx(estimate(null, [estimator])[estimator].value, rel=1e-9)


def test_companions_that_make_no_sense_of_contexts_are_empty(session: Session) -> None:
    last = CTX_LEN - 1
    row = of_run(session, "block", "mle", 1, cloud="position", position=last, view="origin")
    tokens = np.array(pl.read_parquet(session.paths["contexts"])["input_ids"].to_list())[:, last]
    points = points_of(session, "block", 1, "position", last).astype(np.float64)
    distances = np.linalg.norm(points[:, None] - points, axis=2) + np.diag(np.full(len(points), np.inf))
    assert row["nn_same_token"] == np.mean(tokens == tokens[distances.argmin(axis=1)])
    assert row["median_r1"] == pytest.approx(np.median(distances.min(axis=1)), rel=1e-6)
    assert (row["nn_within_5"], row["nn_overlap"]) == (None, None)
    centres = of_run(session, "block", "mle", 1, cloud="mean", view="origin")
    assert [centres[name] for name in ("nn_same_token", "nn_within_5", "nn_overlap")] == [None] * 3
    assert centres["participation_ratio"] > 1


def alone(session: Session, *estimators: str) -> Session:
    """Return the session with clouds of the run alone, which extracts nothing, and other estimators."""
    changes = {"clouds": ["mean", "position"], "save_IDs_list": list(estimators), "save_local_IDs": True}
    config = study(Path(session.study.config.models[0].model_name), Path(session.study.config.datasets[0].dataset_name))
    made = object.__new__(Session)
    made.__dict__ |= session.__dict__
    cacheing = session.study.config.cacheing_config.model_dump(exclude_unset=True)
    made.study = Study({**config, "cacheing_config": {**cacheing, **changes}})
    assert made.study.extract_settings(made.run) == session.study.extract_settings(session.run)
    return made


@pytest.mark.parametrize("estimator", ["tle", "skdim_lPCA", "mst", "mle_k50"])
def test_any_estimator_and_rank_serves_clouds_of_the_run_alone(estimator: str, session: Session) -> None:
    """Of points too, which are stored, and under a null."""
    made = alone(session, estimator)
    for view in ("default", "null-1"):
        row = of_run(made, "block", estimator, 1, cloud="mean", view=view)
        points = points_of(session, "block", 1, "mean", None)
        if view == "default":
            expected = estimate(points, [estimator])[estimator]
            assert (row["value"], row["status"]) == (pytest.approx(expected.value, rel=1e-12), expected.status)
        assert np.isfinite(row["value"])
    assert set(table_of(made, "block", estimator)["cloud"]) == {"mean", "position"}
    assert np.isfinite(of_run(made, "block", estimator, 1, cloud="mean", view="null-0")["value"])


def test_local_ids_of_a_cloud_of_the_run_are_one_a_context(session: Session) -> None:
    made = alone(session, "mom_k10")
    row = of_run(made, "block", "mom_k10", 1, cloud="mean", view="default")
    assert len(row["local"]) == 59
    assert np.mean(row["local"]) == pytest.approx(row["value"], rel=1e-12)


def test_fewer_contexts_than_an_estimator_needs_are_too_few(session: Session) -> None:
    row = of_run(alone(session, "mle_k90"), "block", "mle_k90", 1, cloud="mean", view="default")
    assert (row["status"], row["value"], row["stderr"]) == ("too_few_points", None, None)


def test_a_context_that_is_no_number_makes_the_cloud_nonfinite(session: Session, tmp_path: Path) -> None:
    from id_scaling.estimators.registry import get_estimator
    from id_scaling.results.estimates import Block, _estimate_block

    points = points_of(session, "block", 1, "mean", None)
    points[7, 3] = np.nan
    path = tmp_path / "layer_01.h5"
    with writing_part(tmp_path / "part", len(points)) as writer:
        writer.write_site(Site("block", 1, ""), 0, {"mean": points})
    block = Block(path, "block", 1, "default", "mean", range(len(points)))
    files = {path.name: assemble([tmp_path / "part"], path.name, path, {})}
    manifest = {"settings": {"views": {"default": vars(View())}}, "files": files}
    row = _estimate_block(get_estimator("mle"), manifest, {"has_local": False}, np.zeros((59, CTX_LEN), int), block)
    assert row.select("status", "n_nonfinite").row(0) == ("nonfinite", 1)


# ---- views for some layers alone -------------------------------------------------------------------------------


def test_a_view_of_some_layers_is_stored_and_estimated_there_alone(session: Session) -> None:
    folder = Path(session.paths["manifest"]).parent
    nulls = {"null-0", "null-1"}
    for name, module, has_null in (
        ("layer_00.h5", "block", False),
        ("layer_01.h5", "block", True),
        ("outblock.h5", "emb", False),
    ):
        with h5py.File(folder / name) as file:
            assert set(file[module]) == set(VIEWS) - {"null"} | {"mean", "positions"} | (nulls if has_null else set())
    tables = pl.concat([table_of(session, module, "mle") for module in ("block", "emb", "unemb")])
    assert tables.filter(pl.col("view").is_in(nulls)).select("module", "layer").unique().rows() == [("block", 1)]
    assert set(tables.filter(module="emb")["view"]) == set(VIEWS) - {"null"}


def test_a_view_of_some_layers_is_what_it_is_at_all_and_leaves_the_others_as_they_are(
    session: Session, tiny_llama: Path, text: Path, tmp_path: Path
) -> None:
    views = {**VIEWS, "null": {**VIEWS["null"], "layers": "all"}}
    other = Session(tmp_path, config_of(tiny_llama, text, views=views))
    overlap = dict(zip(*overlaps_of(other), strict=True))
    for name, here in zip(*overlaps_of(session), strict=True):
        for dataset in ("r1", "log_ratio"):
            found, expected = (stored(one, "block", 1, f"{name}/{dataset}") for one in (session, other))
            np.testing.assert_array_equal(found, expected)
        if name.startswith("null"):  # not made one layer down, so there is nothing to overlap with
            assert np.isnan(here).all()
            assert np.isfinite(overlap[name]).all()
        else:
            np.testing.assert_array_equal(here, overlap[name])


def test_neighbors_overlap_with_those_of_the_layer_before_where_that_is_read(tmp_path: Path, text_folder: Path) -> None:
    """Of layers 0, 2 and 3 two have none before."""
    model = save_tiny_llama(tmp_path / "deep", n_layers=4)
    options = {"layer_idx_list": [0, 2, 3], "module_outblock_keys": [], "views": {"default": {}}}
    options |= {"clouds": ["context"], "save_positions": [], "save_mean_tensors": False}
    gaps = Session(tmp_path, config_of(model, text_folder, **options))
    column = read_record(Path(gaps.paths["manifest"]))["statistics"].index("nn_overlap")
    overlaps = {layer: stored(gaps, "block", layer, "default/statistics")[:, column] for layer in (0, 2, 3)}
    assert np.isnan(overlaps[0]).all()
    assert np.isnan(overlaps[2]).all()
    assert np.isfinite(overlaps[3]).all()


def overlaps_of(session: Session) -> tuple[list[str], list[np.ndarray]]:
    """Return the views of the last block, and of each `nn_overlap`."""
    column = read_record(Path(session.paths["manifest"]))["statistics"].index("nn_overlap")
    names = list(session.study.config.cacheing_config.drawn_views)
    return names, [stored(session, "block", 1, f"{name}/statistics")[:, column] for name in names]
