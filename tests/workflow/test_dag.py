"""What a dry run plans, for whom, and with what resources; and that the workflow's files are clean."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Workflow, save_text, save_tiny_llama, study

from id_scaling.cli.costs import count_jobs
from id_scaling.study.jobs import RULES, jobs_of
from id_scaling.study.study import Study

WHOLE = {
    "fetch_dataset": 1,
    "fetch_model": 1,
    "fetch_tokenizer": 1,
    "chunk_dataset": 1,
    "extract_activations": 1,
    "estimate_dimension": 20,
    "summarize": 1,
    "plot": 1,
}


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is also this process's, in which no bundled model is prepared."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_dry_run_of_the_embedded_default_shows_every_job(in_folder: Path):
    """Nothing is fetched yet, so the embedded model and texts are prepared too."""
    workflow = Workflow(in_folder, yaml.safe_load((ROOT / "config" / "config.yaml").read_text()))
    planned = workflow.planned()
    assert planned == {**WHOLE, "prepare_model": 1, "prepare_dataset": 1}
    assert count_jobs(Study(workflow.config)) == planned


def test_the_documented_example_dry_runs_without_network_or_weights(in_folder: Path):
    """Llama-2-7B, 4 modules x 4 estimators."""
    workflow = Workflow(in_folder, yaml.safe_load((ROOT / "config" / "llama2-7b.yaml").read_text()))
    planned = workflow.planned()
    assert planned == {**WHOLE, "fetch_weights": 1, "estimate_dimension": 16}
    assert count_jobs(Study(workflow.config)) == planned


@pytest.mark.parametrize("n_checkpoints", [2, pytest.param(154, marks=pytest.mark.workflow)])
def test_the_sweep_over_size_and_training_dry_runs_without_network_or_weights(in_folder: Path, n_checkpoints: int):
    """Pythia: 8 sizes x 154 checkpoints x 4 modules x 4 estimators; and some of its checkpoints."""
    workflow = Workflow(in_folder, yaml.safe_load((ROOT / "config" / "pythia.yaml").read_text()))
    for model in workflow.config["model_config"]:
        assert len(model["model_checkpoint"]) == 154
        model["model_checkpoint"] = model["model_checkpoint"][:n_checkpoints]
    workflow.write()
    n_runs = 8 * n_checkpoints
    planned = workflow.planned()
    assert count_jobs(Study(workflow.config)) == planned
    assert planned == {
        **WHOLE,
        "fetch_model": n_runs,
        "fetch_weights": n_runs,
        "fetch_tokenizer": 8,
        "chunk_dataset": 8,
        "extract_activations": n_runs,
        "estimate_dimension": n_runs * 16,
    }


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, text_folder: Path) -> str:
    """What a dry run of a small study prints, with the command of each job."""
    workflow = Workflow(tmp_path_factory.mktemp("dry-run"), study(tiny_llama, text_folder))
    return workflow.run("--dry-run", "--printshellcmds")


def modules_loaded(folder: Path, command: list[str]) -> set[str]:
    """Return the top-level modules that Snakemake has loaded once it has run with these arguments."""
    code = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=open('modules', 'w')))"
    code += "; from snakemake.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {name.split(".")[0] for name in (folder / "modules").read_text().split()}


def test_the_workflow_loads_nothing_heavy_beside_snakemake(workflow: Workflow):
    (workflow.folder / "Snakefile").write_text('rule all:\n    shell: "true"\n')
    bare = modules_loaded(workflow.folder, ["--cores", "1", "--dry-run"])
    ours = modules_loaded(workflow.folder, workflow.command("--dry-run")[1:])
    heavy = {"torch", "transformers", "polars", "pyarrow", "h5py", "numba", "scipy", "sklearn", "altair"}
    assert (ours - bare) & heavy == set()
    assert {"id_scaling", "pydantic"} <= ours


def test_lists_multiply_into_runs(tmp_path: Path, text_folder: Path):
    """2 checkpoints of one model x 2 shards: contexts are shared by checkpoints."""
    for seed, checkpoint in enumerate(("step0", "step1")):
        save_tiny_llama(tmp_path / "model" / checkpoint, seed)
    config = study(tmp_path / "model", text_folder, dataset_config__dataset_subset=[0, 1])
    config["model_config"]["model_checkpoint"] = ["step0", "step1"]
    assert Workflow(tmp_path, config).planned() == {
        "fetch_dataset": 2,
        "fetch_model": 2,
        "fetch_tokenizer": 1,
        "chunk_dataset": 2,
        "extract_activations": 4,
        "estimate_dimension": 60,
        "summarize": 1,
        "plot": 1,
    }


def test_stage_targets_stop_at_their_stage(workflow: Workflow):
    assert "estimate_dimension" not in workflow.planned("extract_all")
    planned = workflow.planned("estimate_all")
    assert planned["estimate_dimension"] == 15
    assert "summarize" not in planned


def test_a_configuration_of_ones_own_is_not_merged_into_the_default(dry_run: str):
    """The default names 12 documents and 1024 tokens; a key left out takes the documented default instead."""
    assert '"max_documents":null' in dry_run
    assert '"max_documents":12' not in dry_run


def rule_blocks(output: str) -> dict[str, str]:
    """Return the text of one job of each rule of a dry run."""
    blocks = re.split(r"^\s*(?:local)?rule (\w+):$", output, flags=re.MULTILINE)[1:]
    return dict(zip(blocks[::2], blocks[1::2], strict=True))


def test_the_slurm_profile_puts_a_gpu_on_extraction_alone(workflow: Workflow):
    """Without any Slurm installed; every submitted rule states memory, time and partition."""
    workflow.profile, workflow.options = "slurm", ()
    blocks = rule_blocks(workflow.run("--dry-run"))
    submitted = ("chunk_dataset", "extract_activations", "estimate_batch", "summarize", "plot")
    for rule in submitted:
        resources = re.search(r"resources: (.*)", blocks[rule]).group(1)
        assert re.search(r"\bmem_mb=\d+", resources), rule
        assert re.search(r"\bruntime=\d+", resources), rule
        partition = re.search(r"slurm_partition=(\w+)", resources).group(1)
        has_gpu = re.search(r"\bgpu=1\b", resources) is not None
        expected = ("gpu", True) if rule == "extract_activations" else ("cpu", False)
        assert (partition, has_gpu) == expected, rule


def test_the_estimates_of_a_run_are_one_submission_that_asks_for_what_its_tables_need(workflow: Workflow):
    """15 tables on the 8 cores of a submission are two rounds; one estimator of five modules is one, on five cores."""
    workflow.config["dataset_config"]["dataset_subset"] = [0, 1]
    for estimators, (n_cores, n_rounds) in ((["mle", "mind_ml", "twoNN_f10"], (8, 2)), (["mle"], (5, 1))):
        workflow.config["cacheing_config"]["save_IDs_list"] = estimators
        workflow.write()
        workflow.profile, workflow.options = "slurm", ()
        output = workflow.run("--dry-run")
        assert len(re.findall(r"^rule estimate_batch:$", output, flags=re.MULTILINE)) == 2
        assert len(re.findall(r"^rule estimate_dimension:$", output, flags=re.MULTILINE)) == 10 * len(estimators)
        batch = rule_blocks(output)["estimate_batch"]
        assert f"threads: {n_cores}\n" in batch
        assert f"mem_mb={2000 * n_cores}," in batch
        assert re.search(rf"\bruntime={30 * n_rounds}\b", batch)


def planned_jobs(output: str) -> Counter:
    """Return every job of a dry run: its rule, its wildcards, its outputs and its log."""
    blocks = re.split(r"^(?:local)?rule (\w+):$", output, flags=re.MULTILINE)[1:]
    jobs: Counter = Counter()
    for rule, block in zip(blocks[::2], blocks[1::2], strict=True):
        said = dict(re.findall(r"^    (output|log|wildcards): (.+)$", block.split("\n\n")[0], flags=re.MULTILINE))
        outputs = re.sub(r" \(\w+\)", "", said.get("output", "")).split(", ")
        wildcards = said["wildcards"].split(", ") if "wildcards" in said else []
        jobs[rule, frozenset(wildcards), frozenset(outputs), said.get("log")] += rule != "all"
    return +jobs


def every_rule(folder: Path, text: Path) -> dict[str, Any]:
    """Return a study that has jobs of every rule: models of all sources, two texts, lengths, and a control."""
    config = study(save_tiny_llama(folder / "model"), text, ctx_len=[48, 64], controls=["none", "shuffle-1"])
    local, texts = config["model_config"], config["dataset_config"]
    others = ("sotu-neox-64", "smollm2-135m-instruct", "EleutherAI/pythia-70m")
    config["model_config"] = [local, *({"model_name": name} for name in others)]
    config["model_config"][1]["model_checkpoint"] = ["step0", "step4"]
    config["dataset_config"] = [{**texts, "dataset_subset": [0, 1]}, {**texts, "dataset_name": "sotu"}]
    config["cacheing_config"] |= {"module_inblock_keys": ["mlp"], "save_IDs_list": ["mle"]}
    return config


@pytest.mark.parametrize("has_estimates", [True, False])
def test_the_table_of_jobs_is_what_snakemake_plans(
    has_estimates: bool, tmp_path: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Rules, wildcards, outputs and logs of all jobs."""
    config = every_rule(tmp_path, text_folder)
    config["cacheing_config"]["save_IDs"] = has_estimates
    monkeypatch.chdir(tmp_path)
    table = list(jobs_of(Study(config)))
    in_table = Counter(
        (
            job.rule,
            frozenset(f"{name}={value}" for name, value in job.wildcards.items()),
            frozenset(map(str, job.outputs)),
            str(job.log),
        )
        for job in table
    )
    assert set(in_table.values()) == {1}
    assert in_table == planned_jobs(Workflow(tmp_path, config).run("--dry-run"))
    of_estimates = {"estimate_batch", "estimate_dimension", "summarize", "plot"}
    assert {job.rule for job in table} == RULES.keys() - (set() if has_estimates else of_estimates)


@pytest.mark.parametrize("argument", ["--dag", "--rulegraph"])
def test_the_graph_is_drawn_of_rules_that_name_what_they_do(workflow: Workflow, argument: str):
    command = workflow.command(argument)
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=workflow.environment())
    for rule in WHOLE:
        assert rule in done.stdout


def test_snakemake_finds_nothing_to_lint():
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--lint"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflow_is_formatted():
    files = [ROOT / "Snakefile", ROOT / "workflow" / "Snakefile", *sorted((ROOT / "workflow" / "rules").glob("*.smk"))]
    command = [str(Path(sys.executable).parent / "snakefmt"), "--check", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_commands_are_the_same_text_on_every_machine():
    """Snakemake compares a rule's command text, so nothing of this machine may stand in it."""
    for file in (ROOT / "workflow" / "rules").glob("*.smk"):
        for command in re.findall(r'r"""(.*?)"""', file.read_text(), flags=re.DOTALL):
            assert re.search(r"\bid_scaling [a-z-]+ \\\n", command), command
            assert not re.search(r"/(home|usr|root|work|tmp)/", command)


def test_a_workflow_runs_from_any_folder_without_an_activated_environment(tmp_path: Path, tiny_llama: Path):
    """The jobs take the interpreter that runs Snakemake: none is on the path here."""
    workflow = Workflow(tmp_path, study(tiny_llama, save_text(tmp_path / "text")))
    environment = {**workflow.environment(), "PATH": "/usr/bin:/bin"}
    assert shutil.which("snakemake", path=environment["PATH"]) is None
    command = workflow.command("--until", "fetch_tokenizer")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def test_extractions_queue_for_the_one_gpu_of_a_local_machine(dry_run: str):
    """The local profile counts one, and every extraction takes it."""
    profile = yaml.safe_load((ROOT / "profiles" / "local" / "profile.yaml").read_text())
    assert "gpu=1" in profile["resources"]
    blocks = rule_blocks(dry_run)
    taking = [rule for rule, block in blocks.items() if re.search(r"\bgpu=1\b", block)]
    assert taking == ["extract_activations"]
