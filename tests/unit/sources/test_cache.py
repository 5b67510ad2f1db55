"""What takes long to make of a source is kept by content: made once, verified, and never a reason to fail."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from id_scaling.sources import cache

KEY = {"source": "abc", "version": 1}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache, in an empty folder."""
    monkeypatch.setattr(cache, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


class Fill:
    """Writes one file, and counts how often."""

    def __init__(self, text: str = "content") -> None:
        self.n_calls, self.text = 0, text

    def __call__(self, folder: Path) -> None:
        """Write the file."""
        self.n_calls += 1
        (folder / "file.txt").write_text(self.text)


def content(fill: Any, key: Any = KEY) -> str:
    """Return what is in the entry of a key."""
    with cache.cached_folder("kind", key, fill) as folder:
        return (folder / "file.txt").read_text()


def test_an_entry_is_made_once_for_each_key() -> None:
    first, other = Fill(), Fill("other")
    assert [content(first) for _ in range(3)] == ["content"] * 3
    assert content(other, {**KEY, "version": 2}) == "other"
    assert (first.n_calls, other.n_calls) == (1, 1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_text("changed"),
        lambda file: file.unlink(),
        lambda file: (file.parent / "more.txt").write_text("one more"),
        lambda file: file.parents[1].joinpath("entry.json").write_text("{}"),
        lambda file: file.parents[1].joinpath("entry.json").unlink(),
        lambda file: shutil.rmtree(file.parent),
    ],
)
def test_a_damaged_entry_is_made_again(damage: Any, place: Path) -> None:
    fill = Fill()
    content(fill)
    (file,) = place.rglob("file.txt")
    damage(file)
    assert content(fill) == "content"
    assert fill.n_calls == 2
    assert sorted(path.name for path in file.parent.iterdir()) == ["file.txt"]


def test_an_entry_that_cannot_be_made_leaves_nothing(place: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "file.txt").write_text("half")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"), cache.cached_folder("kind", KEY, fill):
        pass
    assert [path for path in place.rglob("*") if path.is_file()] == []
    assert content(Fill()) == "content"


def test_where_the_cache_may_not_be_written_an_entry_is_made_for_the_moment(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = Fill()
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root, who may write anywhere
    assert [content(fill), content(fill)] == ["content"] * 2
    assert fill.n_calls == 2
    assert [path for path in place.rglob("*") if path.is_file()] == []
    monkeypatch.undo()
    monkeypatch.setattr(cache, "CACHE", place)
    content(fill)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert (content(fill), fill.n_calls) == ("content", 3)  # what is there is read


FILLING = """
import sys, time
from pathlib import Path
from id_scaling.sources import cache
cache.CACHE = Path(sys.argv[1])
def fill(folder):
    (folder / "file.txt").write_text(sys.argv[2])
    print("filling", flush=True)
    time.sleep(float(sys.argv[3]))
with cache.cached_folder("kind", {"source": "abc", "version": 1}, fill) as folder:
    print((folder / "file.txt").read_text())
"""


def test_of_two_processes_one_makes_an_entry(python: Any, place: Path) -> None:
    first = python(FILLING, place, "first", 1)
    assert first.stdout.readline() == "filling\n"
    second = python(FILLING, place, "second", 0)
    assert (first.communicate()[0], second.communicate()[0]) == ("first\n", "first\n")


def test_what_a_killed_process_left_is_removed(python: Any, place: Path) -> None:
    killed = python(FILLING, place, "killed", 60)
    assert killed.stdout.readline() == "filling\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert content(Fill()) == "content"
    assert [path.read_text() for path in place.rglob("file.txt")] == ["content"]
    assert list(place.rglob("*.tmp-*")) == []
