"""Every key of the documented configuration does what its description says: each test fails when its key is ignored."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import h5py
import polars as pl
import pytest
import yaml
from conftest import ROOT, Workflow, save_text, save_tiny_llama, study


@pytest.fixture(scope="module")
def example(resources: Path, tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """The documented example, with only its model, dataset and path swapped for small real ones; run to its end."""
    folder = tmp_path_factory.mktemp("example")
    addresses = pl.concat([pl.read_parquet(path) for path in sorted((resources / "sotu").glob("*.parquet"))])
    long = addresses.sort(pl.col("text").str.len_chars(), descending=True).head(2)
    short = addresses.sort(pl.col("text").str.len_chars()).head(1)
    (folder / "addresses").mkdir()
    pl.concat([short, long]).write_parquet(folder / "addresses" / "0000.parquet")
    config = yaml.safe_load((ROOT / "config" / "llama2-7b.yaml").read_text())
    config["model_config"]["model_name"] = str(resources / "smollm2-135m-instruct")
    config["dataset_config"]["dataset_name"] = "./addresses"
    config["session_path"] = "somewhere/else"
    workflow = Workflow(folder, config)
    workflow.run()
    return workflow


def run_folder(session: Path) -> Path:
    return next(session.glob("runs/*/*/*/*/*/*"))


def test_the_documented_example_runs_to_its_end_where_session_path_says(example: Workflow):
    session = example.folder / "somewhere" / "else"
    summary = pl.read_parquet(session / "summary.parquet")
    assert set(summary["layer"].unique()) == {0, 1, 2, 5, None}
    assert set(summary["module"].unique()) == {"mlp", "attn", "block", "unemb"}
    assert set(summary["estimator"].unique()) == {"mle_harmonic", "mle", "mind_ml", "twoNN_f10"}
    assert summary.filter(pl.col("view") == "default")["n_failed"].sum() == 0
    # The short address is left out; of each of the two long ones, five chunks are taken.
    assert summary["n_contexts"].unique().to_list() == [10]
    assert not (example.folder / "results").exists()


def test_the_documented_example_saves_all_three(example: Workflow):
    run = run_folder(example.folder / "somewhere" / "else")
    assert sorted(path.name for path in run.glob("layer_*.h5")) == [f"layer_0{n}.h5" for n in (0, 1, 2, 5)]
    assert (run / "outblock.h5").is_file()
    with h5py.File(run / "layer_05.h5", "r") as file:
        assert set(file) == {"mlp", "attn", "block"}
        assert file["block/activations"].shape == (10, 1024, 576)
        assert file["block/activations"].dtype == "float16"
        assert file["block/mean"].shape == (10, 576)
    assert len(list(run.glob("ids/*/*.parquet"))) == 4 * 4


@pytest.mark.parametrize("use_accelerator", [True, False])
def test_use_accelerator_reaches_the_extraction(base: Workflow, tmp_path: Path, use_accelerator: bool):
    """On a machine with one device the placement is the same; what is asked of transformers is tested beside it."""
    workflow = changed(base, tmp_path, "model_config", use_accelerator=use_accelerator)
    output = workflow.run("--dry-run", "--printshellcmds", "extract_all")
    assert f'"use_accelerator":{str(use_accelerator).lower()}' in output


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """A small study with two checkpoints, extracted; its parts are compared with what one changed key gives."""
    folder = tmp_path_factory.mktemp("keys")
    for seed, name in enumerate(("early", "late")):
        save_tiny_llama(folder / "model" / name, seed)
    save_text(folder / "text", n_documents=12)
    workflow = Workflow(folder, base_config())
    workflow.run("extract_all")
    return workflow


def base_config() -> dict:
    config = study(Path("model"), Path("text"))
    config["model_config"] = {"model_name": "./model", "model_checkpoint": ["early"]}
    config["dataset_config"]["dataset_name"] = "./text"
    config["cacheing_config"] |= {"module_inblock_keys": ["mlp"], "module_outblock_keys": []}
    return config


def changed(base: Workflow, tmp_path: Path, section: str, **keys) -> Workflow:
    """Return the study with some keys of a section changed, not yet run."""
    for name in ("model", "text"):
        shutil.copytree(base.folder / name, tmp_path / name)
    config = base_config()
    target = config
    for part in section.split(".") if section else ():
        target = target.setdefault(part, {})
    target |= keys
    return Workflow(tmp_path, config)


def contexts_of(workflow: Workflow) -> pl.DataFrame:
    return pl.read_parquet(next(workflow.session.rglob("contexts.parquet")))


def test_session_name_is_where_results_are(base: Workflow, tmp_path: Path):
    workflow = changed(base, tmp_path, "", session_name="named")
    workflow.run("--until", "fetch_dataset")
    assert (tmp_path / "results" / "named" / "datasets").is_dir()


def test_model_checkpoint_is_a_folder_of_the_model_and_a_list_of_them_sweeps(base: Workflow, tmp_path: Path):
    workflow = changed(base, tmp_path, "model_config", model_checkpoint=["early", "late"])
    workflow.run("--until", "fetch_model")
    weights = [json.loads(path.read_text())["weights_sha256"] for path in workflow.session.glob("models/*/*/*.json")]
    assert len(set(weights)) == 2


def test_module_name_mapping_says_where_a_key_is_read(base: Workflow, tmp_path: Path):
    mapping = {"mlp": "model.layers.{layer}.mlp.down_proj"}
    workflow = changed(base, tmp_path, "model_config", module_name_mapping=mapping)
    workflow.run("extract_all")
    manifest = json.loads((run_folder(workflow.session) / "manifest.json").read_text())
    assert [path for _, _, path in manifest["sites"]] == [f"model.layers.{n}.mlp.down_proj" for n in (0, 1)]


@pytest.mark.parametrize(
    ("section", "keys", "n_contexts"),
    [
        ("dataset_config", {"max_dataset_size": 3}, 5),
        ("dataset_config", {"max_contexts": 7}, 7),
        ("dataset_config.filter_and_chunk_config", {"max_chunks_from_a_document": 1}, 12),
        ("dataset_config.filter_and_chunk_config", {"min_chunks_from_a_document": 2}, 22),
        ("", {"ctx_len": 96}, 21),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_documents_and_chunks_are_taken_as_asked(base: Workflow, tmp_path: Path, section: str, keys, n_contexts: int):
    """Documents have 100, 140, 180, … words, a token each; of the chunks of 64 or 96 at most two are taken."""
    assert len(contexts_of(base)) == 23
    workflow = changed(base, tmp_path, section, **keys)
    workflow.run("--until", "chunk_dataset")
    contexts = contexts_of(workflow)
    assert len(contexts) == n_contexts
    assert contexts["input_ids"].list.len().unique().to_list() == [keys.get("ctx_len", 64)]


def test_dataset_name_and_subset_say_what_is_read(base: Workflow, tmp_path: Path):
    workflow = changed(base, tmp_path, "dataset_config", dataset_name="./other", dataset_subset=[1])
    save_text(tmp_path / "other", n_shards=2)
    workflow.run("--until", "fetch_dataset")
    identity = json.loads(next(workflow.session.glob("datasets/*/1/identity.json")).read_text())
    assert list(identity["files"]) == ["01.jsonl"]


@pytest.mark.parametrize(("batch_size", "passes"), [(1, ["0 to 0", "1 to 1"]), (4, ["0 to 3", "4 to 7"])])
def test_batch_size_and_verbose(base: Workflow, tmp_path: Path, batch_size: int, passes: list[str]):
    workflow = changed(base, tmp_path, "", batch_size=batch_size, verbose=True)
    workflow.run("extract_all")
    log = next(workflow.session.glob("logs/extract_activations/*/*/*/*/*/*.log")).read_text()
    for contexts in passes:
        assert f"forward pass over contexts {contexts}\n" in log
    quiet = next(base.session.glob("logs/extract_activations/*/*/*/*/*/*.log")).read_text()
    assert "forward pass" not in quiet


def test_layers_and_modules_that_are_listed_are_read(base: Workflow, tmp_path: Path):
    keys = {"layer_idx_list": [1], "module_inblock_keys": ["attn"], "module_outblock_keys": ["emb"]}
    workflow = changed(base, tmp_path, "cacheing_config", **keys)
    workflow.run("extract_all")
    manifest = json.loads((run_folder(workflow.session) / "manifest.json").read_text())
    assert [site[:2] for site in manifest["sites"]] == [["attn", 1], ["emb", None]]


@pytest.mark.parametrize("precision", ["float16", "torch.float32"])
def test_clouds_and_centres_are_saved_when_asked_in_the_precision_asked(base: Workflow, tmp_path: Path, precision: str):
    keys = {"save_cache_tensors": True, "save_mean_tensors": True, "save_fp": precision}
    workflow = changed(base, tmp_path, "cacheing_config", **keys)
    workflow.run("extract_all")
    with h5py.File(run_folder(workflow.session) / "layer_00.h5", "r") as file:
        assert file["mlp/activations"].dtype.name == precision.removeprefix("torch.")
        assert file["mlp/activations"].shape == (23, 64, 32)
        assert file["mlp/mean"].shape == (23, 32)
    with h5py.File(run_folder(base.session) / "layer_00.h5", "r") as file:
        assert set(file["mlp"]) == {"default", "one_per_token", "origin"}


def test_ids_are_not_saved_when_not_asked(base: Workflow, tmp_path: Path):
    planned = changed(base, tmp_path, "cacheing_config", save_IDs=False).planned()
    assert "extract_activations" in planned
    assert not {"estimate_dimension", "summarize", "plot"} & planned.keys()


def test_the_estimators_that_are_listed_are_made(base: Workflow, tmp_path: Path):
    """One of them scikit-dimension's own, from saved clouds."""
    keys = {"save_IDs_list": ["mle_harmonic", "skdim_CorrInt"], "save_cache_tensors": True}
    workflow = changed(base, tmp_path, "cacheing_config", **keys)
    workflow.run("results/tiny/summary.parquet")
    summary = pl.read_parquet(workflow.session / "summary.parquet").filter(pl.col("view") == "default")
    assert set(summary["estimator"]) == {"mle_harmonic", "skdim_CorrInt"}
    assert summary["mean"].is_finite().all()


@pytest.mark.parametrize(
    ("keys", "threads"),
    [
        ({"multiprocessing": True, "multiprocessing_num_cpus": 2}, 2),
        ({"multiprocessing": False, "multiprocessing_num_cpus": 2}, 1),
    ],
)
def test_multiprocessing_says_on_how_many_cores_an_estimate_runs(base: Workflow, tmp_path: Path, keys, threads: int):
    output = changed(base, tmp_path, "", **keys).run(
        "--dry-run", "--printshellcmds", "--forcerun", "estimate_dimension"
    )
    batches = re.findall(r"""--execution '\{"is_forced":false,"n_each":(\d+),"n_threads":2\}'""", output)
    assert batches == [str(threads)]
