"""Which files a shard is, of files, folders and globs; what is said of one that is not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import touch

from id_scaling.errors import InputError
from id_scaling.runtime.atomic_files import sha256
from id_scaling.sources.base import resolve_dataset
from id_scaling.sources.datasets import fetch_dataset
from id_scaling.sources.shards import shard_position
from id_scaling.storage.records import read_record


def folder_of(folder: Path, *names: str) -> str:
    """Make a folder of empty files; return its name."""
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return str(folder)


@pytest.mark.parametrize(
    ("names", "subset", "expected"),
    [
        (("00.jsonl", "01.jsonl", "02.jsonl"), 1, "01.jsonl"),
        (("00.jsonl", "02.jsonl"), 2, "02.jsonl"),
        (("9.parquet", "10.parquet"), 10, "10.parquet"),
        (("0000.jsonl.zst", "0007.jsonl.zst"), 7, "0007.jsonl.zst"),
        (("train-b.parquet", "train-a.parquet", "train-c.parquet"), 1, "train-b.parquet"),
        (("part-2.jsonl.gz", "part-10.jsonl.gz"), 0, "part-10.jsonl.gz"),
        (("00.jsonl", "README.md", "LICENSE"), 0, "00.jsonl"),
        # A page beside numbered shards is no reason to count them in another way.
        (("00.jsonl", "02.jsonl", "README.txt"), 2, "02.jsonl"),
    ],
)
def test_shard_is_found_by_its_number_or_else_by_order(
    names: tuple, subset: int, expected: str, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "shards", *names)
    assert resolve_dataset(folder).shard(subset) == [tmp_path / "shards" / expected]


def test_folder_of_text_files_is_one_shard(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "texts", "b.txt", "a.txt", "notes.md")
    assert [path.name for path in resolve_dataset(folder).shard(0)] == ["a.txt", "b.txt"]
    with pytest.raises(InputError, match=r"no shard 1; it has 1: all \.txt files"):
        resolve_dataset(folder).shard(1)


TREE = (
    "a/0000.parquet",
    "a/0001.parquet",
    "a/0002.txt",
    "b/x-01.jsonl",
    "b/deep/x-00.jsonl",
    "b/deep/y.jsonl",
    "c/n.md",
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with shards in folders of it, and a folder that is named like one."""
    for name in TREE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "0003.parquet").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "subset", "expected"),
    [
        ("a/*", 1, ["a/0001.parquet"]),
        ("a/*1.parquet", 1, ["a/0001.parquet"]),
        ("*/x-*.jsonl", 0, ["b/x-01.jsonl"]),
        # Sorted by their whole paths.
        ("b/**/x-*.jsonl", 0, ["b/deep/x-00.jsonl"]),
        ("b/**/x-*.jsonl", 1, ["b/x-01.jsonl"]),
        ("**/*.txt", 0, ["a/0002.txt"]),
        ("[bc]/*", 0, ["b/x-01.jsonl"]),
    ],
)
def test_glob_names_the_files_that_are_shards(
    pattern: str, subset: int, expected: list[str], tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_dataset(f"{tree}/{pattern}").shard(subset) == [tree / name for name in expected]
    monkeypatch.chdir(tree)
    relative = resolve_dataset(f"./{pattern}").shard(subset)
    assert relative == [Path(name) for name in expected]
    # Without `./` it is one of the hub's, unless the folder that it begins with is here.
    is_here = not pattern.startswith(("*", "["))
    assert resolve_dataset(pattern).shard(subset) == (relative if is_here else [])


@pytest.mark.parametrize(
    ("pattern", "subset", "words"),
    [
        ("a/*.jsonl", 0, ["a/*.jsonl holds no shard", ".parquet, .jsonl"]),
        ("n*", 0, ["holds no shard"]),
        ("a/*", 3, ["no shard 3; it has 2: 0000.parquet, 0001.parquet"]),
        ("nothing/*.jsonl", 0, ["holds no shard"]),
        ("b/**/x-*.jsonl", 2, ["no shard 2; it has 2: deep/x-00.jsonl, x-01.jsonl"]),
    ],
)
def test_glob_without_the_shard_says_so(pattern: str, subset: int, words: list[str], tree: Path) -> None:
    with pytest.raises(InputError) as caught:
        resolve_dataset(f"{tree}/{pattern}").shard(subset)
    assert [word for word in words if word not in str(caught.value)] == []


def test_folder_whose_name_is_a_glob_is_itself(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "set[1]", "a.jsonl")
    assert resolve_dataset(folder).shard(0) == [tmp_path / "set[1]" / "a.jsonl"]


def test_files_of_one_name_in_several_folders_are_all_of_the_identity(tmp_path: Path) -> None:
    for name in "ab":
        folder_of(tmp_path / name, "x.txt")
        (tmp_path / name / "x.txt").write_text(name)
    fetch_dataset(f"{tmp_path}/*/x.txt", 0, tmp_path / "identity.json")
    found = read_record(tmp_path / "identity.json")
    assert found["files"] == {f"{name}/x.txt": sha256(tmp_path / name / "x.txt") for name in "ab"}
    assert found["paths"] == [str(tmp_path.resolve() / name / "x.txt") for name in "ab"]


@pytest.mark.parametrize("name", ["words.jsonl", "2024.parquet"])
def test_file_is_a_dataset_of_one_shard(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert resolve_dataset(str(tmp_path / name)).shard(0) == [tmp_path / name]


@pytest.mark.parametrize(
    ("names", "subset", "words"),
    [
        (("00.jsonl", "02.jsonl"), 1, ["dataset_subset", "no shard 1", "it has 2: 00.jsonl, 02.jsonl"]),
        (("a.jsonl", "b.jsonl"), 2, ["no shard 2", "it has 2: a.jsonl, b.jsonl"]),
        (("data.csv",), 0, ["holds no shard", ".parquet, .jsonl, .jsonl.gz, .jsonl.zst, .txt"]),
        # Two shards of one number: which of them is meant, nobody knows.
        (("0.jsonl", "00.parquet"), 0, ["0.jsonl", "00.parquet"]),
    ],
)
def test_missing_shard_is_said(names: tuple, subset: int, words: list[str], tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "shards", *names)
    with pytest.raises(InputError) as caught:
        resolve_dataset(folder).shard(subset)
    assert [word for word in [*words, folder] if word not in str(caught.value)] == []


def test_missing_dataset_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing does not exist; expected a file, a folder of shards, a glob or"):
        resolve_dataset(str(tmp_path / "nothing")).shard(0)
    with pytest.raises(InputError, match=r"sotu has no shard 3; it has 3: 0000\.parquet"):
        resolve_dataset("sotu").shard(3)


def test_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("text\nthe of\n")
    with pytest.raises(InputError, match=r"data\.csv.*\.parquet, \.jsonl"):
        resolve_dataset(str(tmp_path / "data.csv")).shard(0)


def test_only_some_of_many_shards_are_shown() -> None:
    with pytest.raises(InputError, match=r"it has 30: 000\.txt, .*, 009\.txt, …$"):
        shard_position("words", [f"{number:03d}.txt" for number in range(30)], 30)


def test_dataset_identity_changes_with_content_alone(text_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(text_folder, tmp_path / "words")
    outputs = [tmp_path / f"{number}.json" for number in range(3)]
    fetch_dataset(str(folder), 1, outputs[0])
    touch(folder)
    fetch_dataset(str(folder), 1, outputs[1])
    (folder / "00.jsonl").write_text("{}")
    with (folder / "01.jsonl").open("a") as shard:
        shard.write(" ")
    fetch_dataset(str(folder), 1, outputs[2])
    first, touched, changed = map(read_record, outputs)
    assert first["paths"] == [str((folder / "01.jsonl").resolve())]
    assert (first["dataset_name"], first["subset"]) == (str(folder), 1)
    assert touched == first
    assert changed["files"] == {"01.jsonl": sha256(folder / "01.jsonl")}
    assert changed["sha256"] != first["sha256"]


def test_name_too_long_for_a_path_is_no_path() -> None:
    assert resolve_dataset("owner/" + "x" * 290).is_remote  # file systems end at 255 bytes a name


def test_hub_out_of_reach_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no-owner/no-name at main: not in the local cache.*network, or name a local"):
        fetch_dataset("no-owner/no-name", 0, tmp_path / "identity.json")
    assert not (tmp_path / "identity.json").exists()
