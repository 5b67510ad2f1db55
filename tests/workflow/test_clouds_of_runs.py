"""A study of clouds of all contexts beside those of each, and a null at one layer, run to its end."""

from __future__ import annotations

from pathlib import Path

import h5py
import polars as pl
import pytest
from conftest import Workflow, save_text, study

from id_scaling import estimate, load_contexts, load_summary
from id_scaling.cli.check import check_session
from id_scaling.study.study import Study

VIEWS = {
    "default": {},
    "origin": {"skip_first_tokens": 0, "duplicates": "keep"},
    "null": {"null_cloud": "gaussian", "layers": [1]},
}


@pytest.fixture(scope="module")
def workflow(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Workflow:
    """A study that stores the vectors of all clouds, run of contexts alone, and then of all."""
    folder = tmp_path_factory.mktemp("clouds")
    config = study(tiny_llama, save_text(folder / "text", n_documents=20))
    config["cacheing_config"] |= {
        "module_inblock_keys": ["block"],
        "module_outblock_keys": ["unemb"],
        "save_IDs_list": ["mle"],
        "save_mean_tensors": True,
        "save_positions": [-1],
        "views": VIEWS,
    }
    made = Workflow(folder, config)
    made.run()
    made.before = load_summary(made.session)
    made.config["cacheing_config"]["clouds"] = ["context", "mean", "position"]
    made.write()
    made.to_come = made.planned()
    made.run()
    return made


def test_a_cloud_whose_vectors_are_stored_is_estimated_and_extracts_nothing(workflow: Workflow) -> None:
    assert workflow.to_come == {"estimate_dimension": 2, "summarize": 1, "plot": 1}
    assert workflow.planned() == {}


def test_rows_of_contexts_are_as_they_were_and_those_of_the_run_are_added(workflow: Workflow) -> None:
    summary = load_summary(workflow.session)
    of_contexts, of_run = (summary.filter(level=level) for level in ("context", "run"))
    assert of_contexts.equals(workflow.before, null_equal=True)
    sites = [
        ("default", 0),
        ("origin", 0),
        ("default", 1),
        ("origin", 1),
        ("null", 1),
        ("default", None),
        ("origin", None),
    ]
    assert set(of_contexts.select("view", "layer").rows()) == set(sites)
    for cloud, position in (("mean", None), ("position", 63)):
        rows = of_run.filter(pl.col("position").eq_missing(position), cloud=cloud)
        assert len(rows) == len(sites)
        assert set(rows.select("view", "layer").rows()) == set(sites)
    assert of_run["interval"].unique().to_list() == ["one_cloud"]
    folder = next(workflow.session.glob("runs/*/*/*/*/*/*"))
    with h5py.File(folder / "layer_01.h5") as file:
        vectors = {"mean": file["block/mean"][:], "position": file["block/positions/63"][:]}
    for cloud, points in vectors.items():
        (row,) = of_run.filter(cloud=cloud, layer=1, view="default").to_dicts()
        expected = estimate(points, ["mle"])["mle"]
        assert row["mean"] == row["median"] == pytest.approx(expected.value, rel=1e-6)
        assert row["stderr"] == pytest.approx(expected.stderr, rel=1e-5)
        assert row["n_points"] == len(points) == of_contexts["n_contexts"][0]


def test_rows_of_contexts_are_read_without_those_of_the_run(workflow: Workflow) -> None:
    contexts = load_contexts(workflow.session)
    assert contexts["cloud"].unique().to_list() == ["context"]
    assert contexts["context"].null_count() == contexts["document"].null_count() == 0
    assert len(contexts) == load_summary(workflow.session).filter(level="context")["n_contexts"].sum()


def test_session_is_whole(workflow: Workflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workflow.folder)
    found = check_session(Study(workflow.config))
    assert [finding for finding in found if finding.kind != "suspicious"] == []


def test_a_view_at_a_layer_that_the_model_lacks_is_an_error_before_any_job(workflow: Workflow) -> None:
    views = {**VIEWS, "null": {"null_cloud": "gaussian", "layers": [2]}}
    other = Workflow(workflow.folder, {**workflow.config, "session_name": "other"})
    other.config["cacheing_config"] = {**other.config["cacheing_config"], "views": views}
    other.write()
    try:
        said = other.run("--dry-run", is_ok=False)
    finally:
        workflow.write()
    assert "cacheing_config.views.null.layers: found layer 2, but the model has 2 layers" in said
