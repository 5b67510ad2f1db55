"""Bad input through the whole workflow: one clear error, before any job where it can be known then, nothing lost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import ROOT, Workflow, save_text, save_tiny_llama, study

from id_scaling.cli.main import main

BEFORE_ANY_JOB = {
    "an unknown key": ({"cacheing_config__save_ID": True}, ["cacheing_config.save_ID", "save_IDs"]),
    "a wrong type": ({"ctx_len": "long"}, ["ctx_len", "'long'", "integer"]),
    "an unknown estimator": ({"cacheing_config__save_IDs_list": ["mlee"]}, ["save_IDs_list", "'mlee'", "'mle'"]),
    "clouds that are not saved": (
        {"cacheing_config__save_IDs_list": ["skdim_TLE"]},
        ["save_IDs_list", "skdim_TLE", "save_cache_tensors: true"],
    ),
    "a layer beyond the model": ({"cacheing_config__layer_idx_list": [0, 2]}, ["layer_idx_list", "layer 2", "0 to 1"]),
    "an unknown module path": (
        {"model_config__module_name_mapping": {"block": "model.layer.{layer}"}},
        ["module_name_mapping.block", "model.layer.0", "model.layers.{layer}"],
    ),
    "a context longer than the positions": ({"ctx_len": 256}, ["ctx_len", "256", "128"]),
    "a missing model": ({"model_config__model_name": "./nowhere"}, ["model_name", "nowhere", "not a folder"]),
    "a missing checkpoint": ({"model_config__model_checkpoint": "step9"}, ["model_checkpoint", "step9"]),
    "a missing dataset": ({"dataset_config__dataset_name": "./nowhere"}, ["dataset_name", "nowhere", "does not exist"]),
    "a layer beyond the model, from its end": (
        {"cacheing_config__layer_idx_list": [-3]},
        ["layer_idx_list", "layer -3", "-2 to -1"],
    ),
    "a range of more layers than there are": (
        {"cacheing_config__layer_idx_list": {"last": 3}},
        ["layer_idx_list.last", "found 3", "2 layers"],
    ),
    "a field that no document has": (
        {"dataset_config__group_by": ["kindd"]},
        ["dataset_config.group_by", "no document of", "'kindd'"],
    ),
    "a column that no record has": (
        {"dataset_config__text_column": "txt", "dataset_config__group_by": ["kind"]},
        ["found columns id, text, expected 'txt'", "dataset_config.text_column", "did you mean 'text'"],
    ),
    "a token before contexts that the tokenizer lacks": (
        {"add_bos": "always"},
        ["no beginning-of-sequence token", "set add_bos: auto"],
    ),
    "a missing shard": ({"dataset_config__dataset_subset": [0, 7]}, ["dataset_subset", "no shard 7", "00.jsonl"]),
}


@pytest.mark.parametrize("case", BEFORE_ANY_JOB)
def test_before_any_job_starts(tmp_path: Path, tiny_llama: Path, text_folder: Path, case: str):
    changes, words = BEFORE_ANY_JOB[case]
    config = study(tiny_llama, text_folder)
    config["cacheing_config"] |= {"module_inblock_keys": ["block"], "module_outblock_keys": []}
    for dotted, value in changes.items():
        *sections, key = dotted.split("__")
        section = config
        for name in sections:
            section = section[name]
        section[key] = value
    output = Workflow(tmp_path, config).run(is_ok=False)
    for word in words:
        assert word in output, output
    assert "Traceback" not in output
    assert "rule " not in output
    assert not (tmp_path / "results").exists()


def test_a_key_twice_in_a_file_that_snakemake_reads_is_an_error(workflow: Workflow):
    """Snakemake itself takes the last of them."""
    path = workflow.folder / "study.yaml"
    path.write_text(f"{path.read_text()}ctx_len: 32\n")
    output = workflow.run("--dry-run", is_ok=False)
    assert re.search(r"study\.yaml, line \d+: the key 'ctx_len' is there already, in line \d+", output)
    assert "Traceback" not in output
    assert "rule " not in output


HARD = {
    "a number of 6000 digits": ("ctx_len: " + "9" * 6000, "found a whole number of more than 19 digits|cannot be read"),
    "3000 levels": ("ctx_len: " + "[" * 3000 + "]" * 3000, "found values more than 20 levels deep"),
}


@pytest.mark.parametrize("case", HARD)
def test_a_file_that_yaml_cannot_read_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture, case: str):
    """From `validate`, and from Snakemake where the file is the default; one of `--configfile` it parses by itself."""
    line, words = HARD[case]
    path = tmp_path / "config" / "config.yaml"
    path.parent.mkdir()
    path.write_text(f"session_name: x\n{line}\n")
    assert main(["validate", str(path)]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert re.search(rf"config\.yaml, line 2: .*({words})", error)
    command = [str(Path(sys.executable).parent / "snakemake"), "--snakefile", str(ROOT / "Snakefile"), "--dry-run"]
    done = subprocess.run(
        [*command, "--directory", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert re.search(rf"config/config\.yaml, line 2: .*({words})", said)
    assert "Traceback" not in said
    assert len(said) < 1000


def test_a_field_that_is_known_to_lack_only_once_contexts_are_cut_fails_before_the_extraction(
    tmp_path: Path, tiny_llama: Path
):
    """Only a document that is too short for a context has it; a summary that was made before stays."""
    text = save_text(tmp_path / "text")
    rows = [json.loads(line) for line in (text / "00.jsonl").read_text().splitlines()]
    rows.append({"id": "short", "text": "the of", "meta": {"kind": "x"}})
    (text / "00.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    workflow = Workflow(tmp_path, study(tiny_llama, text, dataset_config__group_by=["meta.kind"]))
    output = workflow.run(is_ok=False)
    assert "chunk_dataset" in output
    assert "dataset_config.group_by: no document of" in output
    assert not any(tmp_path.glob("results/tiny/logs/extract_activations/**/*.log"))
    del workflow.config["dataset_config"]["group_by"]
    workflow.write()
    workflow.run("--until", "chunk_dataset")
    # The contexts are there now, so it is known before any job.
    workflow.config["dataset_config"]["group_by"] = ["meta.kind"]
    workflow.write()
    output = workflow.run(is_ok=False)
    assert "dataset_config.group_by: no document of" in output
    assert "rule " not in output


def test_a_model_that_is_nowhere_fails_in_the_fetch(tmp_path: Path, text_folder: Path):
    """A hub name cannot be judged without the hub; offline says so and what to do."""
    output = Workflow(tmp_path, study(Path("owner/model"), text_folder)).run("--until", "fetch_model", is_ok=False)
    assert "owner/model at main" in output
    assert "name a local folder" in output
    assert "Traceback" not in output


def test_a_shard_with_broken_rows_names_them(tmp_path: Path, tiny_llama: Path):
    text = save_text(tmp_path / "text")
    with open(text / "00.jsonl", "ab") as file:
        file.write(b'{"id": "cut", "text": "the of\n{"id": "none", "text": null}\n\xff\xfe\n')
    workflow = Workflow(tmp_path, study(tiny_llama, text))
    output = workflow.run("--until", "chunk_dataset", is_ok=False)
    assert "3 of 9 records are broken" in output
    assert "00.jsonl line 7" in output
    assert "Traceback" not in output
    workflow.config["dataset_config"]["max_broken_share"] = 0.5
    workflow.write()
    workflow.run("--until", "chunk_dataset")


def test_no_document_long_enough_says_how_long_they_are(tmp_path: Path, tiny_llama: Path):
    text = save_text(tmp_path / "text", n_documents=1)
    workflow = Workflow(tmp_path, study(tiny_llama, text))
    workflow.config["dataset_config"]["filter_and_chunk_config"] = {"min_chunks_from_a_document": 3}
    workflow.write()
    output = workflow.run("--until", "chunk_dataset", is_ok=False)
    assert "needs 192 tokens, the longest of 1 has 100" in output


def test_activations_that_are_not_finite_are_a_status_and_not_an_exception(tmp_path: Path, text_folder: Path):
    """Weights so large that the second block overflows float32; the first stays finite."""
    import torch
    from transformers import LlamaForCausalLM

    folder = save_tiny_llama(tmp_path / "model")
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1e6)
        model.model.layers[1].mlp.down_proj.weight.fill_(3e38)
    model.save_pretrained(folder)
    config = study(folder, text_folder, cacheing_config__module_inblock_keys=["mlp"])
    config["cacheing_config"] |= {"module_outblock_keys": [], "save_cache_tensors": True}
    workflow = Workflow(tmp_path, config)
    workflow.run()
    summary = pl.read_parquet(workflow.session / "summary.parquet")
    first, second = (summary.filter(pl.col("layer") == layer) for layer in (0, 1))
    # In the view of all points the first place of a token, which sees only itself, may be a near copy of another.
    all_points = first.filter(view="origin")
    assert all_points["statuses"].str.contains("^(near_copies: [1-3])?$").all()
    assert first.filter(pl.col("view") != "origin")["n_failed"].unique().to_list() == [0]
    assert (first["n_contexts"] - first["n_failed"]).min() >= 8  # of 11
    assert first["mean"].is_finite().all()
    assert (second["n_failed"] == second["n_contexts"]).all()
    assert second["statuses"].str.starts_with("nonfinite").all()
    assert second["mean"].is_null().all()


def test_a_checkpoint_with_another_tokenizer_is_refused(tmp_path: Path, text_folder: Path):
    for seed, checkpoint in enumerate(("step0", "step1")):
        save_tiny_llama(tmp_path / "model" / checkpoint, seed)
    tokenizer = tmp_path / "model" / "step1" / "tokenizer.json"
    tokens = json.loads(tokenizer.read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["the"], vocabulary["of"] = vocabulary["of"], vocabulary["the"]
    tokenizer.write_text(json.dumps(tokens))
    config = study(tmp_path / "model", text_folder, model_config__model_checkpoint=["step0", "step1"])
    workflow = Workflow(tmp_path, config)
    output = workflow.run("extract_all", is_ok=False)
    assert re.search(r"at step1: its tokenizer, in \S+/step1, is not the one in \S+/step0, which cuts the text", output)
    assert not workflow.session.exists()  # said before any job


def test_values_beyond_half_precision_are_saved_in_single(tmp_path: Path, text_folder: Path):
    """float16 ends at 65,504; a saved cloud never turns a finite value infinite."""
    import h5py
    import torch
    from transformers import LlamaForCausalLM

    folder = save_tiny_llama(tmp_path / "model")
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1e9)
    model.save_pretrained(folder)
    config = study(folder, text_folder, cacheing_config__module_inblock_keys=["mlp"])
    config["cacheing_config"] |= {"module_outblock_keys": [], "save_cache_tensors": True, "save_fp": "float16"}
    workflow = Workflow(tmp_path, config)
    workflow.run("extract_all")
    run = next(workflow.session.glob("runs/*/*/*/*/*/*"))
    dtypes = []
    for layer in (0, 1):
        with h5py.File(run / f"layer_{layer:02d}.h5", "r") as file:
            saved = file["mlp"]["activations"][:]
        dtypes.append(saved.dtype.name)
        assert np.isfinite(saved).all()
    assert dtypes == ["float16", "float32"]
