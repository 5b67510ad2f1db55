"""Neighbors found in other processes are, to the last bit, those found here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from id_scaling.errors import ResourceError
from id_scaling.neighbors import parallel as searchers
from id_scaling.neighbors.find import find_neighbors
from id_scaling.neighbors.parallel import Searchers
from id_scaling.neighbors.statistics import DEFAULT_GROUPS
from id_scaling.neighbors.views import View
from id_scaling.neighbors.worker import find_in_room
from id_scaling.runtime import workers as children
from id_scaling.runtime.workers import ChildError, ask_child

VIEWS = [View(0), View(4)]
# Starting children takes longer than what they compute: the others share theirs.
OWN_CHILDREN = pytest.mark.usefixtures("own_children")


@pytest.fixture
def own_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children that other tests do not meet."""
    monkeypatch.setattr(children, "_OF_THREAD", threading.local())


def clouds_of(n: int, n_points: int, d: int, dtype: torch.dtype) -> torch.Tensor:
    """Return clouds, two points of each equal."""
    points = torch.from_numpy(np.random.default_rng(n_points).standard_normal((n, n_points, d)))
    points[:, 7] = points[:, 3]
    return points.to(dtype)


def questions_of(n: int, n_points: int) -> list[dict]:
    """Return the other arguments of `find_neighbors` for each cloud."""
    lists = np.tile(np.arange(10, dtype=np.int32), (n_points, 1))
    same = {"views": VIEWS, "ranks": (1, 2, 5, 20, 40), "groups": DEFAULT_GROUPS}
    return [{**same, "token_ids": np.arange(n_points) % (3 + i), "below": [lists, lists]} for i in range(n)]


@pytest.mark.parametrize("n_processes", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_neighbors_are_those_found_here(dtype: torch.dtype, n_processes: int) -> None:
    find = Searchers(n_processes).find
    for n, n_points in ((3, 60), (2, 400), (3, 80)):  # memory that grows, and that is larger than needed
        clouds, questions = clouds_of(n, n_points, 24, dtype), questions_of(n, n_points)
        rows = (clouds.float() if dtype == torch.bfloat16 else clouds).numpy()
        for cloud, question, found in zip(rows, questions, find(clouds, questions), strict=True):
            for one, expected in zip(found, find_neighbors(cloud, **question), strict=True):
                np.testing.assert_array_equal(one.r1, expected.r1)
                np.testing.assert_array_equal(one.log_ratio, expected.log_ratio)
                np.testing.assert_array_equal(one.nearest, expected.nearest)
                assert one.ranks == expected.ranks
                np.testing.assert_equal(dict(one.statistics), dict(expected.statistics))


@OWN_CHILDREN
def test_what_goes_wrong_in_a_process_is_said() -> None:
    clouds, questions = clouds_of(2, 60, 4, torch.float32), questions_of(2, 60)
    find = Searchers(2).find
    with pytest.raises(ChildError, match="TypeError") as caught:
        find(clouds, [{**question, "unknown": 1} for question in questions])
    assert "in find_in_room" in caught.value.__notes__[0]  # where it was raised
    assert len(find(clouds, questions)) == 2
    with pytest.raises(ResourceError, match=r"a cloud of \(60, 4\): its process ended with code -9 .* more memory"):
        find(clouds, [{**question, "groups": Deadly()} for question in questions])
    assert len(find(clouds, questions)) == 2


class Deadly:
    """An argument that kills the process that reads it, as the system does one that wants too much memory."""

    def __reduce__(self) -> tuple:
        return signal.raise_signal, (signal.SIGKILL,)


@OWN_CHILDREN
def test_processes_end_with_whoever_started_them(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from id_scaling.runtime.workers import ask_child\n"
        "print(ask_child(os.getpid), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path).stdout
    pid = int(printed)
    deadline = time.monotonic() + 60
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    """Return whether a process exists and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@OWN_CHILDREN
def test_one_child_answers_all_questions_of_a_function() -> None:
    assert ask_child(os.getpid) == ask_child(os.getpid) != os.getpid()


@OWN_CHILDREN
def test_a_file_under_the_number_of_another_is_not_taken_for_it() -> None:
    clouds, questions = clouds_of(2, 60, 4, torch.float32), questions_of(2, 60)
    room = searchers._Room()
    for points in (clouds, 2 * clouds):
        other = os.memfd_create("other")
        os.write(other, points.numpy().tobytes())
        os.dup2(other, room.file)
        os.close(other)
        (found, _), (expected, _) = (
            ask_child(find_in_room, (room.file, "float32", (60, 4), 0), questions[0], files=(room.file,)),
            find_neighbors(points[0].numpy(), **questions[0]),
        )
        np.testing.assert_array_equal(found.r1, expected.r1)


@OWN_CHILDREN
def test_a_busy_process_ends_with_whoever_started_it() -> None:
    code = (
        "import os, threading, time\n"
        "from id_scaling.runtime.workers import ask_child\n"
        "from tests.unit.neighbors.test_parallel import say_and_spin\n"
        "threading.Thread(target=ask_child, args=(say_and_spin,), daemon=True).start()\n"
        "time.sleep(600)\n"
    )
    asker = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    pid = int(asker.stderr.readline())
    assert is_running(pid)
    asker.kill()
    asker.wait()
    deadline = time.monotonic() + 60
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def say_and_spin() -> None:
    """Print this process and never end."""
    print(os.getpid(), file=sys.stderr, flush=True)
    while True:
        pass


@pytest.mark.parametrize("n_processes", [1, 2])
@OWN_CHILDREN
def test_a_search_without_memory_is_one_clear_error(n_processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clouds, questions = clouds_of(2, 60, 4, torch.float32), questions_of(2, 60)
    monkeypatch.setattr(searchers, "find_neighbors", out_of_memory)
    monkeypatch.setattr(searchers, "find_in_room", out_of_memory)
    with pytest.raises(ResourceError, match=r"a cloud of \(60, 4\): .*no room.*; give the job more memory"):
        Searchers(n_processes).find(clouds, questions)


def out_of_memory(*_: object, **__: object) -> None:
    """Fail as an array that is too large does."""
    raise MemoryError("no room")


@OWN_CHILDREN
def test_a_child_computes_in_one_thread() -> None:
    assert ask_child(os.getenv, "OMP_NUM_THREADS") == "1"
