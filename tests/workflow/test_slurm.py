"""The Slurm profile on a real Slurm, by Slurm's own records: what ran where, in how many submissions, after what."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
import yaml
from conftest import ROOT, Workflow, save_text, save_tiny_llama, study
from sessions import assert_same, contents
from slurm_cluster import SlurmCluster, missing_programs, slurm_cluster

pytestmark = pytest.mark.slurm

CHECKPOINTS, SUBSETS = ["step0", "step1"], [0, 1]
INBLOCK, OUTBLOCK, ESTIMATORS = ["block", "attn", "mlp"], ["unemb"], ["mle", "mind_ml", "twoNN_f10"]
N_RUNS, N_ESTIMATES = 4, 4 * 3
COLUMNS = ("JobIDRaw", "State", "Partition", "NodeList", "ReqCPUS", "ReqMem", "TimelimitRaw", "AllocTRES", "SubmitLine")


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A running Slurm. Without its programs tests are skipped; they fail where CI is true."""
    if missing := missing_programs():
        reason = f"no Slurm to test with: {', '.join(missing)} not installed"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    # A socket's path must be short, and those of pytest's folders are not.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, slurm_cluster(Path(folder)) as cluster:
        yield cluster


class SlurmWorkflow(Workflow):
    """A study run under the Slurm profile; its options are what a small quick cluster needs beyond that."""

    profile = "slurm"
    # Two threads as in a local run on two cores, so that sums are made in the same order.
    options = ("--set-threads", "extract_activations=2", "--slurm-init-seconds-before-status-checks", "1")
    options = (*options, "--latency-wait", "10")
    slurm: SlurmCluster

    def environment(self) -> dict[str, str]:
        """Return the environment, with the way to this Slurm."""
        return {**super().environment(), **self.slurm.environment}


@dataclass(frozen=True)
class Submission:
    """One job as Slurm's accounting has it; `targets` are the workflow's jobs in it, as (rule, wildcards)."""

    job: str
    state: str
    partition: str
    node: str
    n_cores: int
    memory: str
    minutes: int
    allocated: str
    targets: tuple[tuple[str, str], ...]

    @property
    def rules(self) -> set[str]:
        return {rule for rule, _ in self.targets}


def submissions_of(workflow: SlurmWorkflow) -> list[Submission]:
    """Return all that a workflow submitted, once accounting has caught up with the controller."""
    arguments = ["sacct", "-X", "-P", "-n", f"--format={','.join(COLUMNS)}"]
    for _ in range(60):
        rows = [line.split("|", len(COLUMNS) - 1) for line in workflow.slurm.run(*arguments).splitlines()]
        ended = {row[0] for row in rows if not row[1].startswith(("PENDING", "RUNNING"))}
        if ended >= set(workflow.slurm.run("squeue", "-h", "-t", "all", "-o", "%A").split()):
            break
        time.sleep(0.5)
    return [_submission(row) for row in rows if f"-D {workflow.folder} " in row[-1]]


def _submission(row: list[str]) -> Submission:
    job, state, partition, node, n_cores, memory, minutes, allocated, line = row
    named = re.search(r"--target-jobs (.*?) --allowed-rules", line).group(1)
    targets = tuple(tuple(target.split(":", 1)) for target in re.findall(r"'([^']*)'", named))
    return Submission(job, state, partition, node, int(n_cores), memory, int(minutes), allocated, targets)


def run_of(wildcards: str) -> str:
    """Return the part of a job's wildcards that names its run."""
    return re.sub(r",(module|estimator)=[^,]*", "", wildcards)


def start(workflow: Workflow, *arguments: str) -> subprocess.Popen:
    """Start Snakemake, its output in a file."""
    with open(workflow.folder / "output.txt", "w") as log:
        command = workflow.command(*arguments)
        return subprocess.Popen(command, stdout=log, stderr=log, env=workflow.environment())


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The configuration of a study of four runs, four modules and three estimators."""
    folder = tmp_path_factory.mktemp("inputs")
    for seed, checkpoint in enumerate(CHECKPOINTS):
        save_tiny_llama(folder / "model" / checkpoint, seed)
    text = save_text(folder / "text", n_shards=len(SUBSETS))
    config = study(folder / "model", text, dataset_config__dataset_subset=SUBSETS)
    config["model_config"]["model_checkpoint"] = CHECKPOINTS
    config["cacheing_config"] |= {"module_inblock_keys": INBLOCK, "module_outblock_keys": OUTBLOCK}
    config["cacheing_config"]["save_IDs_list"] = ESTIMATORS
    return config


def with_checkpoints(config: dict, checkpoints: list[str]) -> dict:
    """Return the configuration with these checkpoints alone."""
    return {**config, "model_config": {**config["model_config"], "model_checkpoint": checkpoints}}


@pytest.fixture(scope="module")
def both(slurm: SlurmCluster, config: dict, tmp_path_factory: pytest.TempPathFactory) -> tuple[SlurmWorkflow, Workflow]:
    """The study run to its end on Slurm, and its runs of one checkpoint run locally while Slurm is polled."""
    local = Workflow(tmp_path_factory.mktemp("local"), with_checkpoints(config, CHECKPOINTS[:1]))
    workflow = SlurmWorkflow(tmp_path_factory.mktemp("on-slurm"), config)
    workflow.slurm = slurm
    beside = start(local)
    workflow.run()
    assert beside.wait() == 0, (local.folder / "output.txt").read_text()
    return workflow, local


@pytest.fixture(scope="module")
def done(both: tuple[SlurmWorkflow, Workflow]) -> SlurmWorkflow:
    """The study, run to its end on Slurm."""
    return both[0]


@pytest.fixture(scope="module")
def submissions(done: SlurmWorkflow) -> list[Submission]:
    """What the study submitted."""
    return submissions_of(done)


def test_extractions_alone_run_where_gpus_are_with_one_each(done: SlurmWorkflow, submissions: list[Submission]):
    assert {one.state for one in submissions} == {"COMPLETED"}
    for one in submissions:
        is_extraction = one.rules == {"extract_activations"}
        assert one.partition == ("gpu" if is_extraction else "cpu"), one
        assert re.findall(r"gres/gpu=(\d+)", one.allocated) == (["1"] if is_extraction else []), one
    logs = [path.read_text() for path in done.session.glob("logs/extract_activations/*/*/*/*/*.log")]
    assert len(logs) == N_RUNS
    for log in logs:
        assert "device cpu, CUDA_VISIBLE_DEVICES=0\n" in log


def test_estimates_of_a_run_are_one_submission(submissions: list[Submission]):
    groups = [one for one in submissions if "estimate_dimension" in one.rules]
    assert [one.rules for one in groups] == [{"estimate_dimension"}] * N_RUNS
    assert [len(set(one.targets)) for one in groups] == [N_ESTIMATES] * N_RUNS
    runs = [{run_of(wildcards) for _, wildcards in one.targets} for one in groups]
    assert [len(of_group) for of_group in runs] == [1] * N_RUNS
    assert len(set.union(*runs)) == N_RUNS
    assert len(submissions) <= 4 * 3 + 4


def test_no_submission_asks_for_more_than_the_profile_says(submissions: list[Submission]):
    """Twelve estimates of 1 core, 2000 MB and 30 minutes: on 8 cores one half an hour after the other."""
    limit = yaml.safe_load((ROOT / "profiles" / "slurm" / "profile.yaml").read_text())["cores"]
    assert max(one.n_cores for one in submissions) <= limit < N_ESTIMATES
    groups = [one for one in submissions if "estimate_dimension" in one.rules]
    n_after_another = -(-N_ESTIMATES // limit)
    for one in groups:
        assert (one.n_cores, one.memory, one.minutes) == (limit, f"{2000 * limit}M", 30 * n_after_another)


def test_numbers_are_those_of_a_local_run(both: tuple[SlurmWorkflow, Workflow]):
    """Every layer file and table of the runs done in both ways, and their rows of the summary."""
    on_slurm, local = (contents(workflow.session) for workflow in both)
    summary, expected = on_slurm.pop("summary.parquet"), local.pop("summary.parquet")
    assert summary.filter(pl.col("checkpoint") == CHECKPOINTS[0]).equals(expected, null_equal=True)
    kinds = ("contexts.parquet", "tokens.parquet", "twoNN_f10.parquet", "layer_00.h5:block/default/log_ratio")
    assert all(any(name.endswith(kind) for name in local) for kind in kinds), list(local)
    assert_same({name: on_slurm[name] for name in local}, local)


def wait_for(condition: Callable[[], object], seconds: float = 120) -> object:
    """Return what `condition()` gives as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def disturbed(slurm: SlurmCluster, config: dict, tmp_path_factory: pytest.TempPathFactory) -> SlurmWorkflow:
    """One run of the study, done up to its contexts, to be disturbed on its way."""
    one_run = {"module_inblock_keys": ["mlp"], "module_outblock_keys": [], "save_IDs_list": ESTIMATORS}
    config = {**config, "cacheing_config": {**config["cacheing_config"], **one_run}}
    config = with_checkpoints(config, CHECKPOINTS[:1])
    config["dataset_config"] = {**config["dataset_config"], "dataset_subset": SUBSETS[:1]}
    local = Workflow(tmp_path_factory.mktemp("disturbed"), config)
    local.run("--until", "chunk_dataset", "fetch_model")
    workflow = SlurmWorkflow(local.folder, config)
    workflow.slurm = slurm
    return workflow


def states(workflow: SlurmWorkflow, rule: str) -> list[tuple[str, str]]:
    """Return the state and the node of each submission of a rule, the first first."""
    submitted = [one for one in submissions_of(workflow) if one.rules == {rule}]
    return [(one.state.split()[0], one.node) for one in sorted(submitted, key=lambda one: int(one.job))]


def running(workflow: SlurmWorkflow, pattern: str) -> tuple[str, str] | None:
    """Return the Slurm job and the node of what is running and has begun a log."""
    rows = workflow.slurm.run("squeue", "-h", "-t", "R", "-o", "%A %N").split()
    return tuple(rows) if rows and list(workflow.session.glob(pattern)) else None


def test_a_cancelled_extraction_is_submitted_again(disturbed: SlurmWorkflow):
    snakemake = start(disturbed, "extract_all")
    job, _ = wait_for(lambda: running(disturbed, "logs/extract_activations/*/*/*/*/*.log"))
    disturbed.slurm.run("scancel", job)
    assert snakemake.wait() == 0, (disturbed.folder / "output.txt").read_text()
    assert states(disturbed, "extract_activations") == [("CANCELLED", "gpu1"), ("COMPLETED", "gpu1")]


def test_jobs_of_a_node_that_dies_are_submitted_again_elsewhere(disturbed: SlurmWorkflow):
    disturbed.run("extract_all")
    snakemake = start(disturbed, "estimate_all")
    _, node = wait_for(lambda: running(disturbed, "logs/estimate_dimension/*/*/*/*/*/*/*.log"))
    disturbed.slurm.kill_node(node)
    assert snakemake.wait() == 0, (disturbed.folder / "output.txt").read_text()
    other = {"cpu1": "cpu2", "cpu2": "cpu1"}[node]
    assert states(disturbed, "estimate_dimension") == [("NODE_FAIL", node), ("COMPLETED", other)]
    assert disturbed.planned("estimate_all") == {}
