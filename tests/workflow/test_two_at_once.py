"""Two Snakemakes on one session: the second, from whichever clone, is told so and touches nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import Workflow, study

from id_scaling.runtime.locks import read_holder


@pytest.fixture
def clones(tmp_path: Path, tiny_llama: Path, text_folder: Path) -> list[Workflow]:
    """Three folders that name one session."""
    config = study(tiny_llama, text_folder, session_path=str(tmp_path / "shared"))
    config["cacheing_config"] |= {"save_IDs_list": ["mle"], "module_inblock_keys": ["block"]}
    folders = [tmp_path / name for name in ("first", "second", "third")]
    for folder in folders:
        folder.mkdir()
    return [Workflow(folder, config) for folder in folders]


def start(workflow: Workflow) -> subprocess.Popen:
    """Start Snakemake in a process group of its own."""
    command, environment = workflow.command(), workflow.environment()
    return subprocess.Popen(command, env=environment, stdout=-1, stderr=-2, text=True, start_new_session=True)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Wait until a file exists, while a process runs."""
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_second_is_told_and_the_first_is_not_disturbed(clones: list[Workflow], tmp_path: Path) -> None:
    first, second, third = clones
    lease = tmp_path / "shared" / ".lease"
    running = start(first)
    wait_for(lease, running)
    os.kill(running.pid, signal.SIGSTOP)  # so that it is not done before the others have come
    for other in (second, third):  # a third that comes and goes takes nothing from the first
        found = start(other)
        said, _ = found.communicate(timeout=120)
        assert found.returncode == 1
        assert f"process {running.pid} on " in said
        assert "is at work on this session" in said
        assert "Traceback" not in said
    assert read_holder(lease).pid == running.pid
    os.kill(running.pid, signal.SIGCONT)
    said, _ = running.communicate(timeout=300)
    assert running.returncode == 0, said
    assert not lease.exists()
    assert (tmp_path / "shared" / "summary.parquet").is_file()


def test_a_killed_one_leaves_no_lease_that_binds(clones: list[Workflow], tmp_path: Path) -> None:
    first, second, _ = clones
    lease = tmp_path / "shared" / ".lease"
    running = start(first)
    wait_for(lease, running)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    assert lease.exists()
    shutil.rmtree(first.folder / ".snakemake" / "locks", ignore_errors=True)
    found = start(second)
    said, _ = found.communicate(timeout=300)
    assert found.returncode == 0, said
    assert not lease.exists()
