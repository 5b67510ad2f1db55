"""The Slurm profile on a real Slurm, by Slurm's own records: what ran where, in how many submissions, after what."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import polars as pl
import pytest
import yaml
from conftest import ROOT, Workflow, save_text, save_tiny_llama, study
from disturbances import (
    SECONDS_OF_AN_ESTIMATE,
    cancelled,
    controller_killed,
    controller_restarted,
    estimates_node_lost,
    estimates_out_of_time,
    estimates_side_by_side,
    log_of,
    node_lost,
    out_of_memory,
    out_of_time,
    warned,
)
from sessions import assert_same, assert_same_contents, contents
from slurm_cluster import SlurmCluster, missing_programs, slurm_cluster
from slurm_workflow import (
    EstimatesOnSlurm,
    LocalWorkflow,
    SlurmWorkflow,
    Submission,
    output_of,
    running,
    submissions_of,
)

from id_scaling.storage.layer_writer import CONTEXTS_A_PART

pytestmark = pytest.mark.slurm

CHECKPOINTS, SUBSETS = ["step0", "step1"], [0, 1]
INBLOCK, OUTBLOCK, ESTIMATORS = ["block", "attn", "mlp"], ["unemb"], ["mle", "mind_ml", "twoNN_f10"]
N_RUNS, N_ESTIMATES = 4, 4 * 3


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A running Slurm. Without its programs tests are skipped; they fail where CI is true."""
    if missing := missing_programs():
        reason = f"no Slurm to test with: {', '.join(missing)} not installed"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    # A socket's path must be short, and those of pytest's folders are not.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, slurm_cluster(Path(folder)) as cluster:
        yield cluster


def run_of(wildcards: str) -> str:
    """Return the part of a job's wildcards that names its run."""
    return re.sub(r",(module|estimator)=[^,]*", "", wildcards)


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


def with_first(config: dict, **keys: str) -> dict:
    """Return the configuration with the first alone of what keys of these sections list."""
    return {**config, **{part: {**config[part], key: config[part][key][:1]} for part, key in keys.items()}}


Pair = tuple[SlurmWorkflow, Workflow]


@pytest.fixture(scope="module")
def pairs(slurm: SlurmCluster, config: dict, resources: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    """On Slurm and locally, side by side: the study, locally its first checkpoint alone, and the embedded default."""
    default = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    default["dataset_config"] |= {"max_dataset_size": 1, "filter_and_chunk_config": {"max_chunks_from_a_document": 1}}
    default["ctx_len"] = 128
    default["cacheing_config"]["layer_idx_list"] = [0, 29]
    configs = [(config, with_first(config, model_config="model_checkpoint")), (default, default)]
    made = []
    for on_slurm, locally in configs:
        workflow = SlurmWorkflow(tmp_path_factory.mktemp("on-slurm"), on_slurm)
        workflow.slurm = slurm
        made.append((workflow, LocalWorkflow(tmp_path_factory.mktemp("local"), locally)))
    with ExitStack() as stack:
        for workflow in chain(*made):
            (workflow.folder / "resources").symlink_to(resources)
            stack.enter_context(running(workflow))
    return made


@pytest.fixture(scope="module")
def both(pairs: list[Pair]) -> Pair:
    """The study, run to its end on Slurm, and locally."""
    return pairs[0]


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
    logs = [path.read_text() for path in done.session.glob("logs/extract_activations/*/*/*/*/*/*.log")]
    assert len(logs) == N_RUNS
    for log in logs:
        assert "device cpu, CUDA_VISIBLE_DEVICES=0\n" in log


def test_estimates_of_a_run_are_one_submission(done: SlurmWorkflow, submissions: list[Submission]):
    batches = [one for one in submissions if "estimate_batch" in one.rules]
    assert [len(one.targets) for one in batches] == [1] * N_RUNS
    assert len({one.targets for one in batches}) == N_RUNS
    assert len(submissions) <= 4 * 3 + 4
    # Each table has a job of its own all the same, which only links it, here.
    tables = list(done.session.glob("runs/*/*/*/*/*/*/ids/*/*.parquet"))
    assert len(tables) == len(list(done.session.glob("logs/estimate_dimension/*/*/*/*/*/*/*/*.log")))
    assert len(tables) == N_RUNS * N_ESTIMATES
    assert not list(done.session.glob("runs/*/*/*/*/*/*/staged"))


def test_no_submission_asks_for_more_than_the_profile_says(submissions: list[Submission]):
    """Twelve estimates of 1 core, 2000 MB and 30 minutes: on 8 cores one half an hour after the other."""
    limit = yaml.safe_load((ROOT / "profiles" / "slurm" / "profile.yaml").read_text())["cores"]
    assert max(one.n_cores for one in submissions) <= limit < N_ESTIMATES
    n_after_another = -(-N_ESTIMATES // limit)
    for one in (one for one in submissions if "estimate_batch" in one.rules):
        assert (one.n_cores, one.memory, one.minutes) == (limit, f"{2000 * limit}M", 30 * n_after_another)


def test_numbers_are_those_of_a_local_run(both: tuple[SlurmWorkflow, Workflow]):
    """Every layer file and table of the runs done in both ways, and their rows of the summary."""
    on_slurm, local = (contents(workflow.session) for workflow in both)
    # All but p-values adjusted for the number of tests, which is that of the whole study.
    both_ways = (of.pop("summary.parquet").drop("q_loss", "q_entropy") for of in (on_slurm, local))
    summary, expected = both_ways
    assert summary.filter(pl.col("checkpoint") == CHECKPOINTS[0]).equals(expected, null_equal=True)
    kinds = ("contexts.parquet", "tokens.parquet", "twoNN_f10.parquet", "layer_00.h5:block/default/log_ratio")
    assert all(any(name.endswith(kind) for name in local) for kind in kinds), list(local)
    assert_same({name: on_slurm[name] for name in local}, local)


def test_the_embedded_default_runs_to_its_end_with_the_numbers_of_a_local_run(pairs: list[Pair]):
    """A real model on real text, cut to one context and two layers."""
    workflow, local = pairs[1]
    rules = [("chunk_dataset",), ("extract_activations",), ("estimate_batch",), ("summarize",), ("plot",)]
    submitted = {tuple(one.rules): (one.state, one.partition) for one in submissions_of(workflow)}
    assert submitted == {rule: ("COMPLETED", "gpu" if rule == ("extract_activations",) else "cpu") for rule in rules}
    assert (workflow.session / "figures" / "id_by_layer.png").stat().st_size > 0
    assert_same_contents(workflow.session, local.session)


DISTURBANCES = (warned, out_of_time, cancelled, node_lost, controller_killed, out_of_memory)


@pytest.fixture(scope="module")
def undisturbed(config: dict, tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """One run of many contexts, extracted locally: before and after in a folder each."""
    config = with_first(config, model_config="model_checkpoint", dataset_config="dataset_subset")
    config["dataset_config"]["dataset_name"] = str(save_text(tmp_path_factory.mktemp("many") / "text", n_documents=40))
    config["dataset_config"]["filter_and_chunk_config"] = {"max_chunks_from_a_document": 4}
    config["cacheing_config"] = {**config["cacheing_config"], "save_IDs_list": ESTIMATORS[:1]}
    workflow = LocalWorkflow(tmp_path_factory.mktemp("undisturbed"), config)
    workflow.run("--until", "chunk_dataset", "fetch_model")
    shutil.copytree(workflow.folder, workflow.folder.with_name("prepared"))
    workflow.run("extract_all")
    return workflow


@pytest.fixture(scope="module")
def disturbed(slurm: SlurmCluster, undisturbed: Workflow) -> Iterator[dict[Callable, Future[SlurmWorkflow]]]:
    """The same run in a workflow for each disturbance, all side by side: most of their time is spent waiting."""

    def run(disturb: Callable[[SlurmWorkflow], None]) -> SlurmWorkflow:
        folder = undisturbed.folder.with_name(disturb.__name__)
        workflow = SlurmWorkflow(shutil.copytree(folder.with_name("prepared"), folder), undisturbed.config)
        workflow.slurm = slurm
        disturb(workflow)
        return workflow

    with ThreadPoolExecutor(len(DISTURBANCES)) as threads:
        yield {disturb: threads.submit(run, disturb) for disturb in DISTURBANCES}


def n_contexts_of(workflow: Workflow) -> int:
    """Return how many contexts the one run of a session has."""
    return pl.read_parquet(next(workflow.session.rglob("contexts.parquet"))).height


def n_kept(workflow: SlurmWorkflow) -> int:
    """Return how many contexts the last extraction found done; all, where the one before came to its end in time.

    Slurm lets a stopped process go on before it asks it to end, on a busy machine long before.
    """
    return int(re.search(r"(\d+)(?: contexts)? already extracted", log_of(workflow))[1])


def test_a_cancelled_extraction_is_submitted_again(disturbed: dict, undisturbed: Workflow):
    workflow = disturbed[cancelled].result()
    submitted = submissions_of(workflow, "extract_activations")
    assert [one.state for one in submitted] == ["CANCELLED", "COMPLETED"]
    assert n_kept(workflow) >= CONTEXTS_A_PART
    assert_same_contents(workflow.session, undisturbed.session)


def test_an_extraction_says_how_far_it_came_before_its_time_is_up(disturbed: dict, undisturbed: Workflow):
    workflow = disturbed[warned].result()
    submitted = submissions_of(workflow, "extract_activations")
    # By itself, so before Slurm would have said TIMEOUT.
    assert [one.state for one in submitted] == ["FAILED", "COMPLETED"]
    kept = re.search(rf"ended with (\d+) of {n_contexts_of(workflow)} contexts extracted", output_of(workflow))
    assert kept
    assert "ended: the system asked for it (SIGTERM), as at the end of a job's time" in output_of(workflow)
    assert n_kept(workflow) == int(kept[1]) >= CONTEXTS_A_PART
    assert_same_contents(workflow.session, undisturbed.session)


def test_an_extraction_out_of_time_gets_more_and_goes_on(disturbed: dict, undisturbed: Workflow):
    workflow = disturbed[out_of_time].result()
    first, second = submissions_of(workflow, "extract_activations")
    assert (first.state, first.minutes, first.memory) == ("TIMEOUT", 720, "16000M")
    assert (second.state, second.minutes, second.memory) == ("COMPLETED", 1440, "32000M")
    assert f"SLURM-job '{first.job}' failed, SLURM status is: 'TIMEOUT'" in output_of(workflow)
    assert "DUE TO TIME LIMIT" in output_of(workflow)
    assert n_kept(workflow) >= CONTEXTS_A_PART
    assert_same_contents(workflow.session, undisturbed.session)


def test_an_extraction_out_of_memory_is_said_to_be_and_gets_more(disturbed: dict, undisturbed: Workflow):
    workflow = disturbed[out_of_memory].result()
    submitted = submissions_of(workflow, "extract_activations")
    assert [(one.state, one.memory) for one in submitted] == [("FAILED", "300M"), ("COMPLETED", "2400M")]
    assert re.search(rf"StepId={submitted[0].job}\.0 exceeded memory limit", output_of(workflow))
    assert_same_contents(workflow.session, undisturbed.session)


def test_an_extraction_whose_node_dies_goes_on_elsewhere(disturbed: dict, undisturbed: Workflow):
    workflow = disturbed[node_lost].result()
    first, second = submissions_of(workflow, "extract_activations")
    assert (first.state, second.state) == ("NODE_FAIL", "COMPLETED")
    assert first.node != second.node
    assert n_kept(workflow) >= CONTEXTS_A_PART
    assert_same_contents(workflow.session, undisturbed.session)


def test_an_extraction_that_outlives_snakemake_is_waited_for(disturbed: dict, undisturbed: Workflow):
    workflow = disturbed[controller_killed].result()
    assert [one.state for one in submissions_of(workflow, "extract_activations")] == ["COMPLETED"] * 2
    assert f"all {n_contexts_of(workflow)} contexts already extracted" in log_of(workflow)
    assert_same_contents(workflow.session, undisturbed.session)


@pytest.fixture(scope="module")
def estimated(slurm: SlurmCluster, undisturbed: Workflow) -> Iterator[dict[Callable, Future[EstimatesOnSlurm]]]:
    """Sixteen estimates of the extracted run in a workflow for each disturbance, side by side."""
    estimators = [*ESTIMATORS, "mle_harmonic"]
    config = {**undisturbed.config, "cacheing_config": {**undisturbed.config["cacheing_config"]}}
    config["cacheing_config"]["save_IDs_list"] = estimators

    def run(disturb: Callable[[EstimatesOnSlurm], None]) -> EstimatesOnSlurm:
        folder = undisturbed.folder.with_name(disturb.__name__)
        with ExitStack() as stack:
            cluster = slurm
            if disturb is controller_restarted:  # of a Slurm of its own
                place = stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-"))
                cluster = stack.enter_context(slurm_cluster(Path(place), has_accounting=False))
            workflow = EstimatesOnSlurm(shutil.copytree(undisturbed.folder, folder), config, cluster)
            if disturb in (estimates_side_by_side, controller_restarted):
                workflow.mended.touch()
            disturb(workflow)
        return workflow

    with ThreadPoolExecutor(3) as threads:
        others = (estimates_side_by_side, estimates_out_of_time, controller_restarted)
        futures = {disturb: threads.submit(run, disturb) for disturb in others}
        # A node that dies takes the jobs of the other workflows with it.
        wait([futures[disturb] for disturb in others[:2]])
        yield {**futures, estimates_node_lost: threads.submit(run, estimates_node_lost)}


def assert_computed_once(workflow: EstimatesOnSlurm) -> None:
    """Check that no table was computed to its end twice, that all are declared, and that none is planned."""
    names = [name for name, _, _ in workflow.computed()]
    assert len(names) == len(set(names)) == workflow.n_tables
    assert len(list(workflow.session.glob("runs/*/*/*/*/*/*/ids/*/*.parquet"))) == workflow.n_tables
    assert workflow.planned("estimate_all") == {}


def test_estimates_of_a_run_are_side_by_side(estimated: dict):
    """Sixteen on eight cores: from the first start to the last at least four at once, and a second each on top."""
    workflow = estimated[estimates_side_by_side].result()
    (submitted,) = submissions_of(workflow)
    assert (submitted.state, submitted.n_cores) == ("COMPLETED", 8)
    rows = workflow.computed()
    first, last = rows[0][1], rows[-1][1]
    # At each start and each end, once the fourth of the first eight has had the moment that it takes to begin.
    moments = [moment for _, *ends in rows for moment in ends if rows[3][1] <= moment <= last]
    assert min(sum(start <= moment <= end for _, start, end in rows) for moment in moments) >= 4
    assert rows[3][1] - first < SECONDS_OF_AN_ESTIMATE
    n_after_another = workflow.n_tables / submitted.n_cores
    took = max(end for _, _, end in rows) - first
    assert took - n_after_another * SECONDS_OF_AN_ESTIMATE <= workflow.n_tables
    assert_computed_once(workflow)


def test_estimates_out_of_time_are_kept_and_the_rest_gets_more(estimated: dict):
    workflow = estimated[estimates_out_of_time].result()
    first, second = submissions_of(workflow)
    assert (first.state, first.minutes, first.memory) == ("TIMEOUT", 60, "16000M")
    assert (second.state, second.minutes, second.memory) == ("COMPLETED", 120, "32000M")
    assert_computed_once(workflow)


def test_estimates_whose_node_dies_are_kept_and_the_rest_goes_on_elsewhere(estimated: dict):
    workflow = estimated[estimates_node_lost].result()
    first, second = submissions_of(workflow)
    assert (first.state, second.state) == ("NODE_FAIL", "COMPLETED")
    assert {first.node, second.node} == {"cpu1", "cpu2"}
    assert_computed_once(workflow)


def test_a_restart_of_the_controller_is_outlasted_without_accounting(estimated: dict):
    workflow = estimated[controller_restarted].result()
    assert "Falling back to 'sacct'" not in output_of(workflow)
    assert len(workflow.computed()) == workflow.n_tables
