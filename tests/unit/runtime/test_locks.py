"""Leases: one writer at a time, and what becomes of the lease of one that is gone, or only slept."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from id_scaling.errors import LeaseError, StoreError
from id_scaling.runtime import locks as module
from id_scaling.runtime.locks import Lease, hold_session, leased, read_holder

HOLDER_KEYS = ("host", "machine", "pid", "started", "since", "token")
HOLDER = """
import sys
from pathlib import Path
from id_scaling.runtime.locks import leased
folder, name = Path(sys.argv[1]), sys.argv[2]
print("wants", flush=True)
with leased(folder):
    with (folder / "order").open("a") as order:
        order.write(name + "\\n")
    print("has", flush=True)
    sys.stdin.readline()
    with (folder / "order").open("a") as order:
        order.write(name + " ends\\n")
"""


def lines(process: Any, n: int) -> list[str]:
    """Return what a process says next."""
    return [process.stdout.readline().strip() for _ in range(n)]


@pytest.mark.parametrize("is_killed", [False, True], ids=["ends", "is killed"])
def test_a_second_writer_waits_until_the_first(is_killed: bool, tmp_path: Path, python: Any) -> None:
    folder = tmp_path / "run"
    first = python(HOLDER, folder, "first")
    assert lines(first, 2) == ["wants", "has"]
    second = python(HOLDER, folder, "second")
    assert lines(second, 1) == ["wants"]
    # Long enough for a second writer that does not wait to write its name, which it does at once.
    time.sleep(0.5)
    assert (folder / "order").read_text() == "first\n"
    if is_killed:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    else:
        first.communicate("\n")
    assert lines(second, 1) == ["has"]
    second.communicate("\n")
    ends = [] if is_killed else ["first ends"]
    assert (folder / "order").read_text().split("\n")[:-1] == ["first", *ends, "second", "second ends"]
    assert [path.name for path in folder.iterdir()] == ["order"]


def test_many_that_find_a_stale_lease_take_it_one_after_another(tmp_path: Path, python: Any) -> None:
    folder = tmp_path / "run"
    dead = python(HOLDER, folder, "dead")
    assert lines(dead, 2) == ["wants", "has"]
    os.kill(dead.pid, signal.SIGKILL)
    dead.wait()
    others = [python(HOLDER, folder, f"{number}") for number in range(4)]
    for other in others:
        other.stdin.write("\n")
        other.stdin.flush()
    for other in others:
        assert other.wait(60) == 0
    order = (folder / "order").read_text().split("\n")[1:-1]
    assert sorted(order[::2]) == ["0", "1", "2", "3"]
    assert [f"{name} ends" for name in order[::2]] == order[1::2]  # no one began before the one before had ended


def test_a_lease_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), leased(tmp_path / "run"):
        raise ValueError("inside")
    assert Lease(tmp_path / "run" / ".lease").take() is None


def of_another_machine(path: Path, age: float) -> None:
    """Make a lease that of a process that cannot be seen from here, not heard of for so long."""
    holder = replace(read_holder(path), host="elsewhere", machine="elsewhere", token="other")
    path.write_text(json.dumps(asdict(holder)))
    os.utime(path, (time.time() - age, time.time() - age))


def test_a_lease_of_another_machine_is_stale_once_it_is_not_heard_of(tmp_path: Path) -> None:
    held = Lease(tmp_path / ".lease")
    assert held.take() is None
    of_another_machine(held.path, age=module.STALE / 2)
    assert str(Lease(held.path).take()).startswith(f"process {os.getpid()} on elsewhere since ")
    of_another_machine(held.path, age=2 * module.STALE)
    assert Lease(held.path).take() is None


def test_a_stopped_process_of_this_machine_keeps_its_lease_however_long(tmp_path: Path) -> None:
    held = Lease(tmp_path / ".lease")
    held.take()
    os.utime(held.path, (0, 0))
    assert Lease(held.path).take() == read_holder(held.path)


def test_a_process_that_may_be_another_of_the_same_id_has_to_be_heard_of(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_start_of", lambda _: module.ALIVE)  # as where there is no /proc
    held = Lease(tmp_path / ".lease")
    held.take()
    assert Lease(held.path).take() == read_holder(held.path)
    os.utime(held.path, (0, 0))
    assert Lease(held.path).take() is None


def test_a_process_id_that_is_used_again_is_not_the_holder(tmp_path: Path) -> None:
    held = Lease(tmp_path / ".lease")
    held.take()
    assert Lease(held.path).take() == read_holder(held.path)
    held.path.write_text(json.dumps(asdict(replace(read_holder(held.path), started="0"))))
    assert Lease(held.path).take() is None


def test_a_holder_is_heard_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.05)
    held = Lease(tmp_path / ".lease")
    held.take()
    os.utime(held.path, (0, 0))
    deadline = time.monotonic() + 60
    while held.path.stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert held.path.stat().st_mtime > 0
    held.release()
    assert not held.path.exists()


def test_who_slept_through_a_takeover_writes_no_more(tmp_path: Path) -> None:
    sleeper = Lease(tmp_path / ".lease")
    sleeper.take()
    sleeper.check()
    of_another_machine(sleeper.path, age=0)
    with pytest.raises(LeaseError, match=r"not heard of for 120 s, so process \d+ on elsewhere .* took over"):
        sleeper.check()
    sleeper.release()
    assert read_holder(sleeper.path).token == "other"  # and is left to its holder


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), StoreError("gone")])
def test_a_file_that_is_gone_since_another_took_over_is_not_the_error(tmp_path: Path, error: Exception) -> None:
    def write() -> None:
        with leased(tmp_path):
            of_another_machine(tmp_path / ".lease", age=0)
            raise error

    with pytest.raises(LeaseError, match="took over; nothing more is written here"):
        write()


def test_a_file_that_is_gone_with_its_folder_is_the_error(tmp_path: Path) -> None:
    def write() -> None:
        with leased(tmp_path / "run") as lease:
            shutil.rmtree(tmp_path / "run")
            with pytest.raises(LeaseError, match=r"\.lease was removed, so another process may write here"):
                lease.check()
            (tmp_path / "run" / "file").touch()

    with pytest.raises(FileNotFoundError):
        write()


UNREADABLE = {
    "empty": b"",
    "no UTF-8": b"\xff\xfe{}",
    "cut": b'{"host": "a", "machine"',
    "no holder": b"[1, 2]",
    "other types": json.dumps({**dict.fromkeys(HOLDER_KEYS, "x"), "pid": "../self"}).encode(),
    "very deep": b"[" * 100_000,
    "endless number": b"9" * 10_000,
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_a_lease_that_says_nothing_is_somebodys_until_it_is_old(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / ".lease"
    path.write_bytes(content)
    assert str(Lease(path).take()) == "an unknown process"
    with pytest.raises(LeaseError, match=r"an unknown process is at work on this session; .* within 120 s; .* removed"):
        hold_session(tmp_path)
    os.utime(path, (1, 1))
    assert Lease(path).take() is None


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def link_to_a_file(path: Path) -> None:
    path.with_name("elsewhere").write_text("{}")
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("make", [link_to_nothing, link_to_itself, link_to_a_file, Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused_at_once(make: Any, tmp_path: Path) -> None:
    path = tmp_path / ".lease"
    make(path)
    with pytest.raises(LeaseError, match=r"\.lease: found a link, a folder or a device, expected .*; remove it"):
        hold_session(tmp_path)
    with pytest.raises(LeaseError, match="remove it"), leased(tmp_path):
        pass
    assert os.path.lexists(path)


def test_a_time_to_come_is_one_of_long_ago(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A day ahead, after a clock was put right: no holder that lives leaves it so for ten seconds."""
    held = Lease(tmp_path / ".lease")
    held.take()
    of_another_machine(held.path, age=-module.STALE / 2)  # clocks differ a little
    assert str(Lease(held.path).take()).startswith(f"process {os.getpid()} on elsewhere")
    of_another_machine(held.path, age=-86400)
    caplog.set_level("INFO", logger="id_scaling")
    assert Lease(held.path).take() is None
    assert "whose last sign is 86400 s ahead of the clock; its lease is taken over" in caplog.text


def test_a_lease_taken_by_mistake_is_put_back_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    aside, path = tmp_path / "aside", tmp_path / ".lease"
    aside.write_text("first")
    module._put_back(aside, path)
    aside.write_text("second")
    module._put_back(aside, path)
    assert path.read_text() == "first"


def test_a_second_on_a_session_is_told_who_is_there(tmp_path: Path) -> None:
    first = hold_session(tmp_path / "session")
    with pytest.raises(LeaseError, match=rf"session: process {os.getpid()} on .* is at work on this session; wait"):
        hold_session(tmp_path / "session")
    first.release()
    hold_session(tmp_path / "session").release()


def test_a_lease_that_could_not_be_written_binds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.json, "dump", full)
        with pytest.raises(LeaseError, match=r"\.lease: cannot be written: No space left on device"):
            hold_session(tmp_path)
    assert not list(tmp_path.iterdir())
