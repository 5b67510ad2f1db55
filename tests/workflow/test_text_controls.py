"""Controls in the workflow: each adds its own jobs and its own rows, and leaves what is there as it is."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from conftest import Workflow, save_text, save_tiny_llama, study

from id_scaling.cli.check import check_session, is_whole
from id_scaling.storage.records import read_table
from id_scaling.study.study import Study

CHAIN = {"extract_activations": 2, "estimate_dimension": 2, "summarize": 1, "plot": 1}


def controlled(folder: Path, **changes: object) -> Workflow:
    """Return a study of one module and one estimator in a folder."""
    config = study(folder / "model", folder / "text", **changes)
    config["cacheing_config"] |= {"module_inblock_keys": ["mlp"], "module_outblock_keys": [], "save_IDs_list": ["mle"]}
    return Workflow(folder, config)


def contents(session: Path) -> dict[Path, tuple[bytes, int]]:
    """Return what is in the files of the plain text's runs and contexts, and when they were written."""
    paths = [*session.glob("runs/*/*/*/*/*/none/**/*"), *session.glob("contexts/*/*/*/*/none/*")]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of two checkpoints, and a text."""
    folder = tmp_path_factory.mktemp("controlled")
    for seed, checkpoint in enumerate(("step0", "step1")):
        save_tiny_llama(folder / "model" / checkpoint, seed)
    save_text(folder / "text", n_documents=3)
    return folder


def test_a_control_adds_its_own_jobs_and_rows_and_touches_nothing_else(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Two checkpoints share the shuffled contexts as they share the plain ones."""
    monkeypatch.chdir(folder)
    checkpoints = {"model_config__model_checkpoint": ["step0", "step1"]}
    plain = controlled(folder, **checkpoints)
    plain.run()
    before, rows = contents(plain.session), pl.read_parquet(plain.session / "summary.parquet")

    both = controlled(folder, controls=["none", "shuffle-2"], **checkpoints)
    assert both.planned() == {"shuffle_contexts": 1, **CHAIN}
    both.run()
    assert both.planned() == {}
    assert contents(both.session) == before
    summary = pl.read_parquet(both.session / "summary.parquet")
    assert summary.filter(pl.col("control") == "none").equals(rows)
    added = summary.filter(pl.col("control") == "shuffle-2")
    same = ["checkpoint", "view", "layer", "module", "estimator", "n_contexts"]
    assert added.select(same).sort(same).equals(rows.select(same).sort(same))
    assert not added["mean_loss"].is_in(rows["mean_loss"].to_list()).any()

    findings = check_session(Study(both.config))
    assert is_whole(findings), findings

    text = sorted((folder / "text").iterdir())[0]
    text.write_text(text.read_text().replace("the", "of"))
    planned = both.planned()
    assert {rule: planned[rule] for rule in ("chunk_dataset", "shuffle_contexts", "extract_activations")} == {
        "chunk_dataset": 1,
        "shuffle_contexts": 1,
        "extract_activations": 4,
    }


def test_a_control_alone_takes_the_plain_contexts_and_no_plain_run(tmp_path: Path):
    save_tiny_llama(tmp_path / "model")
    save_text(tmp_path / "text", n_documents=2)
    workflow = controlled(tmp_path, controls="shuffle-5")
    planned = workflow.planned()
    assert {rule: planned[rule] for rule in ("chunk_dataset", "shuffle_contexts", "extract_activations")} == {
        "chunk_dataset": 1,
        "shuffle_contexts": 1,
        "extract_activations": 1,
    }


def test_files_of_a_control_that_is_not_in_the_study_have_no_rule(tmp_path: Path):
    save_tiny_llama(tmp_path / "model")
    save_text(tmp_path / "text", n_documents=2)
    workflow = controlled(tmp_path)
    run = Study(workflow.config).runs[0]
    path = f"results/tiny/runs/{run.model}/{run.checkpoint}/{run.dataset}/{run.subset}/64/shuffle-1/manifest.json"
    assert "MissingRuleException" in workflow.run("--dry-run", path, is_ok=False)


def test_check_finds_shuffled_contexts_stale_that_are_of_other_plain_ones(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_tiny_llama(tmp_path / "model")
    save_text(tmp_path / "text", n_documents=3)
    monkeypatch.chdir(tmp_path)
    workflow = controlled(tmp_path, controls=["none", "shuffle-1"], cacheing_config__save_IDs=False)
    workflow.run("--until", "shuffle_contexts")
    shuffled = Path(next(Path("results/tiny").glob("contexts/*/*/*/*/shuffle-1/*")))
    assert read_table(shuffled)[1]["settings"]["control"] == "shuffle-1"
    kept = shuffled.read_bytes()
    workflow.config["dataset_config"]["max_dataset_size"] = 2
    workflow.write()
    workflow.run("--until", "shuffle_contexts")
    assert shuffled.read_bytes() != kept
    shuffled.write_bytes(kept)
    found = {str(one.path): one.words for one in check_session(Study(workflow.config)) if one.kind == "stale"}
    assert found == {str(shuffled): "made from other contexts"}
