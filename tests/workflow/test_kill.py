"""A killed extraction loses at most one part, leaves no half file, and ends in the numbers of an undisturbed one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest
from conftest import Workflow, save_text, save_tiny_llama, study
from sessions import assert_same_contents

N_DOCUMENTS = 40


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a text of many contexts, so that an extraction has several parts."""
    folder = tmp_path_factory.mktemp("kill")
    save_tiny_llama(folder / "model", n_layers=6)
    save_text(folder / "text", n_documents=N_DOCUMENTS)
    return folder


def prepared(inputs: Path, folder: Path) -> Workflow:
    """Return the study in `folder`, done up to its contexts."""
    folder.mkdir(exist_ok=True)
    config = study(inputs / "model", inputs / "text", cacheing_config__save_cache_tensors=True)
    config["cacheing_config"] |= {"save_mean_tensors": True, "save_fp": "float32"}
    config["cacheing_config"] |= {"module_inblock_keys": ["block"], "module_outblock_keys": ["unemb"]}
    workflow = Workflow(folder, config)
    workflow.run("--until", "chunk_dataset", "fetch_model")
    return workflow


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """The study, run to its end without a disturbance."""
    workflow = prepared(inputs, tmp_path_factory.mktemp("undisturbed"))
    workflow.run()
    return workflow


def processes_of(session: Path, verb: str) -> list[int]:
    """Return the ids of the package's processes at work in a session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        is_verb = b"id_scaling" in command and verb.encode() in command
        if is_verb and any(
            b"tiny" in part and str(session.parent.parent).encode() in os.readlink(entry / "cwd").encode()
            for part in command
        ):
            found.append(int(entry.name))
    return found


def run_folder(session: Path) -> Path:
    """Return the folder of the one run of a session."""
    return next(session.glob("runs/*/*/*/*/*/*"))


def parts_done(session: Path) -> set[str]:
    """Return the parts that are complete."""
    return {path.name for path in session.glob("runs/*/*/*/*/*/*/parts/*/contexts_*")}


def assert_whole(session: Path) -> None:
    """Every file under a final name can be read to its end."""
    for path in session.rglob("*"):
        if any(".tmp-" in part for part in path.parts):
            continue
        if path.suffix == ".h5":
            with h5py.File(path, "r") as file:
                file.visititems(lambda _, item: item[:] if isinstance(item, h5py.Dataset) else None)
        elif path.suffix == ".parquet":
            pl.read_parquet(path)


def start(workflow: Workflow) -> subprocess.Popen:
    """Start Snakemake in a process group of its own."""
    with open(workflow.folder / "output.txt", "a") as log:
        return subprocess.Popen(
            workflow.command(), stdout=log, stderr=log, env=workflow.environment(), start_new_session=True
        )


def wait_for(condition, seconds: float = 120) -> None:
    """Wait until `condition()` is true; the machine may be slow, so long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def moments() -> list[float]:
    """Return the shares of the parts that are there when the kill comes: few here, many in the long run."""
    n = int(os.environ.get("ID_SCALING_KILLS", "3"))
    return [float(share) for share in np.random.default_rng(0).uniform(0, 1, n)]


@pytest.mark.parametrize("share", moments())
def test_kill_9_of_the_extraction_loses_at_most_one_part(
    inputs: Path, undisturbed: Workflow, tmp_path: Path, share: float
):
    workflow = prepared(inputs, tmp_path / "work")
    n_parts = -(-pl.read_parquet(next(undisturbed.session.rglob("contexts.parquet"))).height // 8)
    snakemake = start(workflow)
    wait_for(lambda: len(parts_done(workflow.session)) >= int(share * n_parts))
    wait_for(lambda: processes_of(workflow.session, "extract"))
    time.sleep(share * 0.1)
    for process in processes_of(workflow.session, "extract"):
        os.kill(process, signal.SIGKILL)
    assert snakemake.wait() != 0
    assert_whole(workflow.session)
    before = parts_done(workflow.session)
    assert not list(workflow.session.rglob("manifest.json"))
    workflow.run()
    log = next(workflow.session.glob("logs/extract_activations/*/*/*/*/*/*.log")).read_text()
    n_contexts = pl.read_parquet(next(workflow.session.rglob("contexts.parquet"))).height
    kept = int(log.split(" tokens, ")[1].split(" already")[0]) if " tokens, " in log else n_contexts
    assert kept >= min(8 * len(before), n_contexts)
    assert_same_contents(workflow.session, undisturbed.session)


def test_sigterm_drops_the_part_in_hand_and_says_how_far_the_extraction_got(
    inputs: Path, undisturbed: Workflow, tmp_path: Path
):
    workflow = prepared(inputs, tmp_path / "work")
    snakemake = start(workflow)
    wait_for(lambda: len(parts_done(workflow.session)) >= 2)
    (process,) = processes_of(workflow.session, "extract")
    os.kill(process, signal.SIGTERM)
    assert snakemake.wait() != 0
    kept = 8 * len(parts_done(workflow.session))
    n_contexts = pl.read_parquet(next(workflow.session.rglob("contexts.parquet"))).height
    assert f"ended with {kept} of {n_contexts} contexts extracted" in output_of(workflow)
    folder = run_folder(workflow.session)
    assert not (folder / ".lease").exists()
    assert not list(folder.rglob(".*.tmp-*"))
    assert f"{kept} already extracted" in workflow.run()
    assert_same_contents(workflow.session, undisturbed.session)


def output_of(workflow: Workflow) -> str:
    """Return what the Snakemake that was started says, failed jobs' logs included."""
    return (workflow.folder / "output.txt").read_text()


def test_kill_9_of_snakemake_then_unlock_and_the_same_command(inputs: Path, undisturbed: Workflow, tmp_path: Path):
    """The extraction outlives Snakemake: the next one waits for it and takes what it made."""
    workflow = prepared(inputs, tmp_path / "work")
    snakemake = start(workflow)
    wait_for(lambda: len(parts_done(workflow.session)) >= 1)
    os.kill(snakemake.pid, signal.SIGKILL)
    snakemake.wait()
    workflow.run("--unlock")
    workflow.run()
    wait_for(lambda: not processes_of(workflow.session, "extract"))
    assert_whole(workflow.session)
    assert_same_contents(workflow.session, undisturbed.session)
    assert workflow.planned() == {}


def test_an_extraction_that_ended_after_snakemake_was_killed_is_not_computed_again(
    inputs: Path, undisturbed: Workflow, tmp_path: Path
):
    """Snakemake then takes its declared outputs for incomplete and removes them: they are published anew."""
    workflow = prepared(inputs, tmp_path / "work")
    snakemake = start(workflow)
    wait_for(lambda: processes_of(workflow.session, "extract"))
    os.kill(snakemake.pid, signal.SIGKILL)
    snakemake.wait()
    wait_for(lambda: not processes_of(workflow.session, "extract"))
    assert list(workflow.session.rglob("manifest.json"))
    (log,) = workflow.session.rglob("logs/extract_activations/**/*.log")
    before = log.read_text()
    workflow.run("--unlock")
    workflow.run()
    # Either it is not run again, or it finds all parts.
    assert "extracted context" in before
    assert log.read_text() == before or "extracted context" not in log.read_text()
    assert_same_contents(workflow.session, undisturbed.session)


def test_parts_of_other_settings_are_left_behind(inputs: Path, tmp_path: Path):
    """A killed extraction's parts never enter one of another configuration."""
    workflow = prepared(inputs, tmp_path / "work")
    snakemake = start(workflow)
    wait_for(lambda: len(parts_done(workflow.session)) >= 1)
    for process in processes_of(workflow.session, "extract"):
        os.kill(process, signal.SIGKILL)
    snakemake.wait()
    workflow.config["cacheing_config"]["module_inblock_keys"] = ["mlp"]
    workflow.write()
    workflow.run()
    assert not (run_folder(workflow.session) / "parts").exists()
    with h5py.File(run_folder(workflow.session) / "layer_00.h5", "r") as file:
        assert list(file) == ["mlp"]
