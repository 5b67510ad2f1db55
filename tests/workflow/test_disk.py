"""A full disk, or one that may not be written: one clear error, nothing lost, and on it goes once there is room."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import Workflow, save_text, save_tiny_llama, study

from id_scaling.errors import ResourceError, of_a_disk
from id_scaling.runtime.atomic_files import require_room

CAN_MOUNT = subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode == 0


def test_room_is_looked_for_before_a_file_is_begun(tmp_path: Path) -> None:
    require_room(tmp_path / "small", 1, "")
    with pytest.raises(ResourceError, match=r"large: needs 1000000000000\.0 MB, but .* MB are free .*: parts are kept"):
        require_room(tmp_path / "large", 10**18, "parts are kept")


@pytest.mark.parametrize(
    ("raised", "shown"),
    [
        (OSError(28, "No space left on device", "/a/b"), "/a/b: No space left on device; make room"),
        (OSError(122, "Disk quota exceeded", "/a/b"), "/a/b: Disk quota exceeded; make room within your quota"),
        (PermissionError(13, "Permission denied", "/a/b"), "/a/b: Permission denied; choose a folder that you may"),
        (
            RuntimeError(
                "Can't close (file write failed: filename = '/a/c.h5', error message = 'No space left on device'"
            ),
            "/a/c.h5: No space left on device; make room",
        ),
    ],
)
def test_what_a_system_says_of_a_disk_is_said_with_the_file_and_the_way_out(raised: Exception, shown: str) -> None:
    assert str(of_a_disk(raised)).startswith(shown)


def test_other_errors_are_not_of_a_disk() -> None:
    assert of_a_disk(ValueError("no")) is None
    assert of_a_disk(FileNotFoundError(2, "No such file or directory", "/a")) is None


@pytest.mark.skipif(not CAN_MOUNT, reason="a small disk can be mounted by root alone")
def test_an_extraction_goes_on_once_there_is_room(tmp_path: Path) -> None:
    disk, model, text = (tmp_path / name for name in ("disk", "model", "text"))
    disk.mkdir()
    save_tiny_llama(model, n_layers=6)
    save_text(text, n_documents=30)
    config = study(model, text, session_path=str(disk / "session"))
    config["cacheing_config"] |= {"save_cache_tensors": True, "save_fp": "float32", "save_IDs_list": ["mle"]}
    workflow = Workflow(tmp_path, config)
    command = shlex.join(workflow.command())
    # What is mounted is seen in there alone, and gone at the end.
    script = (
        f"mount -t tmpfs -o size=9m tmpfs {disk} || exit 9\n"
        f"{command} && exit 8\n"
        f"echo AGAIN; find {disk} -name 'contexts_*' | wc -l; mount -o remount,size=200m {disk}\n"
        f"{command}\n"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, **workflow.environment()},
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "error: " in said
    assert " MB are free on its file system; make room and run again: " in said
    assert "Traceback" not in said
    n_parts = int(done.stdout.split("AGAIN\n")[1].split("\n")[0])
    assert n_parts > 0
    assert f"{8 * n_parts} already extracted" in said
