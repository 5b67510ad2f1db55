"""Lengths of contexts in the workflow: each adds its own jobs and rows, which are those of a study of it alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import Workflow, random_text, save_text, save_tiny_llama, study

from id_scaling.cli.check import check_session, is_whole
from id_scaling.results.load import load_contexts, load_summary, load_tokens
from id_scaling.study.study import Study

CHAIN = {"chunk_dataset": 1, "extract_activations": 2, "estimate_dimension": 2, "summarize": 1, "plot": 1}
SHORT = "a document of 50 tokens"


def measured(folder: Path, ctx_len: int | list[int]) -> dict[str, Any]:
    """Return the configuration of a study of two checkpoints, one module and one estimator."""
    checkpoints = {"model_config__model_checkpoint": ["step0", "step1"]}
    config = study(folder / "model", folder / "text", ctx_len=ctx_len, **checkpoints)
    config["cacheing_config"] |= {"module_inblock_keys": ["mlp"], "module_outblock_keys": [], "save_IDs_list": ["mle"]}
    return config


def contents(session: Path, ctx_len: int) -> dict[Path, tuple[bytes, int]]:
    """Return what is in the files of the runs and contexts of a length, and of models, and when they were written."""
    patterns = (f"runs/*/*/*/*/{ctx_len}/**/*", f"contexts/*/*/*/{ctx_len}/**/*", "models/**/*")
    paths = [path for pattern in patterns for path in session.glob(pattern)]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of two checkpoints, and a text with a document that is short."""
    folder = tmp_path_factory.mktemp("lengths")
    for seed, checkpoint in enumerate(("step0", "step1")):
        save_tiny_llama(folder / "model" / checkpoint, seed)
    (shard,) = save_text(folder / "text", n_documents=3).iterdir()
    with open(shard, "a") as file:
        file.write(json.dumps({"id": SHORT, "text": random_text(50, seed=7)}) + "\n")
    return folder


@pytest.fixture(scope="module")
def of_both(folder: Path) -> Workflow:
    """A study of one length that was run, and then that of two."""
    one = Workflow(folder, measured(folder, 64))
    one.run()
    before, rows = contents(one.session, 64), load_summary(one.session)
    assert {path.name for path in before} >= {"manifest.json", "layer_00.h5", "contexts.parquet", "identity.json"}
    both = Workflow(folder, measured(folder, [64, 48]))
    assert both.planned() == CHAIN
    both.run()
    assert both.planned() == {}
    assert contents(both.session, 64) == before
    assert load_summary(both.session).filter(ctx_len=64).equals(rows)
    return both


def test_a_length_adds_its_own_jobs_and_rows_and_touches_nothing_else(
    of_both: Workflow, monkeypatch: pytest.MonkeyPatch
):
    """No model is fetched again: see also what the fixture asserts."""
    monkeypatch.chdir(of_both.folder)
    findings = check_session(Study(of_both.config))
    assert is_whole(findings), findings


def test_rows_of_a_length_are_those_of_a_study_of_it_alone_to_the_last_bit(of_both: Workflow, tmp_path: Path):
    alone = Workflow(tmp_path, measured(of_both.folder, 48))
    alone.run("results/tiny/summary.parquet")
    assert load_summary(of_both.session).filter(ctx_len=48).equals(load_summary(alone.session))
    assert load_contexts(of_both.session, ctx_len=48).equals(load_contexts(alone.session))
    assert load_tokens(of_both.session, ctx_len=48).equals(load_tokens(alone.session))
    assert set(load_contexts(of_both.session)["ctx_len"]) == {48, 64}


def test_each_length_cuts_the_documents_anew_from_their_first_token(of_both: Workflow):
    tokens = {
        n: load_tokens(of_both.session, ctx_len=n, checkpoint="step0").group_by("context", maintain_order=True)
        for n in (48, 64)
    }
    assert {n: of.len()["len"].unique().to_list() for n, of in tokens.items()} == {48: [48], 64: [64]}
    of_first = {n: of.agg("token")["token"][0].to_list() for n, of in tokens.items()}
    assert of_first[64][:48] == of_first[48]
    documents = {n: set(load_contexts(of_both.session, ctx_len=n)["document_id"]) for n in (48, 64)}
    assert documents[48] - documents[64] == {SHORT}
    assert documents[64] < documents[48]


def test_what_is_printed_of_several_lengths_names_them(of_both: Workflow):
    said = re.findall(r" · 0 · (.*): 2 layers, loss", (of_both.session / "summary.txt").read_text())
    assert said == ["64 tokens · none", "48 tokens · none"] * 2
    assert (of_both.session / "figures" / "id_by_length.svg").is_file()


def test_estimates_of_each_run_are_one_submission(of_both: Workflow, tmp_path: Path):
    """Two checkpoints of two lengths under two controls."""
    config = {**measured(of_both.folder, [64, 48]), "controls": ["none", "shuffle-1"]}
    config["cacheing_config"]["save_IDs_list"] = ["mle", "twoNN_f10"]
    workflow = Workflow(tmp_path, config)
    workflow.profile, workflow.options = "slurm", ()
    logs = re.findall(r"^    log: (\S+/estimate_batch/\S+)$", workflow.run("--dry-run"), flags=re.MULTILINE)
    assert len(logs) == len(set(logs)) == 8
