"""The sweep over training: models that are trained first, once each, and measured at each of their checkpoints."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest
import yaml
from conftest import ROOT, Workflow
from test_dag import rule_blocks
from test_staleness import copy_sources

import id_scaling
from id_scaling.errors import ConfigError, IdScalingError, InputError
from id_scaling.study.study import Study

SUMMARY = "results/training/summary.parquet"
STEPS = ("step0", "step1", "step4", "step16", "step64", "step256")


def sweep() -> dict:
    """Return the configuration of the sweep."""
    return yaml.safe_load((ROOT / "config" / "training.yaml").read_text())


# ---- before anything is trained --------------------------------------------------------------------------------


def test_dry_run_trains_each_width_once_and_cuts_the_text_once(tmp_path: Path):
    """3 widths x 6 checkpoints x 5 modules x 4 estimators."""
    assert Workflow(tmp_path, sweep()).planned() == {
        "prepare_dataset": 1,
        "train_tokenizer": 1,
        "train_model": 3,
        "fetch_dataset": 1,
        "fetch_tokenizer": 1,
        "fetch_model": 18,
        "chunk_dataset": 1,
        "extract_activations": 18,
        "estimate_dimension": 360,
        "summarize": 1,
        "plot": 1,
    }


def test_training_is_a_job_of_a_cluster_on_text_that_is_not_measured(tmp_path: Path):
    workflow = Workflow(tmp_path, sweep())
    workflow.profile, workflow.options = "slurm", ()
    blocks = rule_blocks(workflow.run("--dry-run", "--until", "train_model", "fetch_dataset"))
    rules = "\n\n".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    local = {
        block.split(":")[0] for block in re.split(r"^rule ", rules, flags=re.MULTILINE) if "localrule: True" in block
    }
    assert "fetch_model" in local
    assert not {"train_tokenizer", "train_model"} & local
    for rule in ("train_tokenizer", "train_model"):
        resources = re.search(r"resources: (.*)", blocks[rule]).group(1)
        assert re.search(r"\bmem_mb=\d+.*\bruntime=\d+", resources), rule
        assert "slurm_partition=cpu" in resources
        assert not re.search(r"\bgpu=", resources)
        texts = re.findall(r"sotu/(\d{4}).parquet", re.search(r"input: (.*)", blocks[rule]).group(1))
        assert texts == ["0001", "0002"]
    assert "sotu/0000.parquet" in re.search(r"input: (.*)", blocks["fetch_dataset"]).group(1)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        pytest.param(
            {"model_config": {"model_name": "sotu-neox-64", "model_checkpoint": ["step0", "step32"]}},
            InputError,
            ["model_checkpoint", ", ".join(map(repr, STEPS)), "found 'step32'"],
            id="a checkpoint that it has not",
        ),
        pytest.param(
            {"model_config": {"model_name": "sotu-neox-64"}}, InputError, ["found 'main'"], id="no checkpoint named"
        ),
        pytest.param(
            {"ctx_len": 512}, ConfigError, ["sotu-neox-64 at step0", "ctx_len: found 512", "256"], id="positions"
        ),
        pytest.param(
            {"cacheing_config": {"layer_idx_list": [6]}}, ConfigError, ["sotu-neox-64 at step0", "6"], id="layers"
        ),
        pytest.param(
            {"model_config": {"model_name": "sotu-neox"}},
            InputError,
            ["is a tokenizer", "sotu-neox-160"],
            id="a tokenizer",
        ),
    ],
)
def test_what_a_model_has_not_is_said_before_it_is_trained(
    change: dict, error: type[IdScalingError], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as caught:
        Study({**sweep(), **change}).check()
    assert [word for word in words if word not in str(caught.value)] == []


# ---- trained ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(resources: Path, tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """The sweep with one block of width 32 in place of its models, 32 updates, a few texts, one module; summarized."""
    folder = tmp_path_factory.mktemp("trained")
    clone = copy_sources(folder / "clone")
    text = (clone / "id_scaling" / "sources" / "bundled.py").read_text()
    for whole, cut in (("(64, 96, 160)", "(32,)"), ("(0, 1, 4, 16, 64, 256)", "(0, 32)"), ('layers": 6', 'layers": 1')):
        assert text.count(whole) == 1
        text = text.replace(whole, cut)
    (clone / "id_scaling" / "sources" / "bundled.py").write_text(text)
    texts = folder / "work" / "resources" / "sotu"
    texts.mkdir(parents=True)
    for shard in (resources / "sotu").glob("*.parquet"):
        pl.read_parquet(shard).head(10).write_parquet(texts / shard.name)
    config = sweep()
    config["model_config"] = {"model_name": "sotu-neox-32", "model_checkpoint": ["step32"]}
    config["dataset_config"]["max_dataset_size"] = 2
    modules = {"module_inblock_keys": ["block"], "module_outblock_keys": [], "save_IDs_list": ["mle"]}
    config["cacheing_config"] |= modules
    workflow = Workflow(folder / "work", config, root=clone)
    workflow.run(SUMMARY)
    return workflow


def test_a_checkpoint_is_measured_where_it_has_learned(trained: Workflow):
    """Untrained, a model guesses among all tokens alike: ln 2048 = 7.62 nats."""
    summary = id_scaling.load_summary(trained.session).filter(pl.col("view") == "default")
    assert summary.select("model", "checkpoint", "n_contexts", "n_failed").rows() == [("sotu-neox-32", "step32", 4, 0)]
    assert 5 < summary["mean_loss"].item() < 7.3


def test_training_is_made_again_when_its_code_changes_and_only_then(trained: Workflow):
    assert trained.planned(SUMMARY) == {}
    path = trained.root / "id_scaling" / "sources" / "bundled_training.py"
    before = path.read_text()
    path.write_text(before.replace('"""A small', '"""A very small', 1) + "\n# A comment.\n")
    assert trained.planned(SUMMARY) == {}
    path.write_text(before.replace("PEAK, WARM_UP, DECAY, LONGEST = 3e-3", "PEAK, WARM_UP, DECAY, LONGEST = 2e-3"))
    assert path.read_text() != before
    planned = trained.planned("--until", "train_model")
    path.write_text(before)
    assert planned == {"train_tokenizer": 1, "train_model": 1}
