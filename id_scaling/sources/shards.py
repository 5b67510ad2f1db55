"""Which of the files of a dataset are one shard: by the number that it is named with, or else by sorted order."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from id_scaling.errors import InputError
from id_scaling.sources.file_hashes import FileHashes

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt")
MOST_SHOWN = 10


def pick_shard(dataset_name: str, files: list[Path], subset: int) -> list[Path]:
    """Return those of a dataset's files that are its shard `subset`."""
    shards = [path for path in files if suffix_of(path) != ".txt"]
    if shards:
        return [shards[shard_position(dataset_name, _names_of(shards), subset)]]
    # One document a file: all files are the one shard.
    if subset > 0:
        _no_shard(dataset_name, subset, ["all .txt files, index 0"])
    return files


def shard_position(dataset_name: str, names: list[str], subset: int) -> int:
    """Return which of the sorted shard names is `subset`: by the number it is named with, else by order.

    Raises
    ------
    InputError
        There is no such shard, or two have its number.
    """
    stems = [os.path.basename(name)[: -len(suffix_of(name))] for name in names]
    is_named_itself = len(names) == 1 and os.path.basename(dataset_name) == os.path.basename(names[0])
    if is_named_itself or not all(stem.isdecimal() for stem in stems):
        return subset if subset < len(names) else _no_shard(dataset_name, subset, names)
    found = [position for position, stem in enumerate(stems) if int(stem) == subset]
    if len(found) > 1:
        same = ", ".join(names[position] for position in found)
        raise InputError(
            f"dataset_subset: {dataset_name} has the shard {subset} twice: {same}; keep one of them, or name the "
            "folder or a glob of those that are meant"
        )
    return found[0] if found else _no_shard(dataset_name, subset, names)


def named_paths(files: list[Path]) -> list[Path]:
    """Return absolute paths of the files of a shard, whose links to other folders are followed.

    Where files are links themselves, as in the hub's cache, the names of the links say of what format they are.
    """
    return [path.parent.resolve() / path.name for path in files]


def shard_hashes(paths: list[Path], hashes: FileHashes) -> dict[str, str]:
    """Return the SHA-256 of the files of a shard, by their names below the folder that holds them all."""
    return {name: hashes.sha256(path) for name, path in zip(_names_of(paths), paths, strict=True)}


def suffix_of(path: Path | str) -> str:
    """Return the ending that makes a file a shard, or an empty string."""
    return next((suffix for suffix in SUFFIXES if str(path).endswith(suffix)), "")


def _names_of(paths: list[Path]) -> list[str]:
    """Return the names of files below the innermost folder that holds them all."""
    folder = os.path.commonpath([path.parent for path in paths])
    return [os.path.relpath(path, folder) for path in paths]


def _no_shard(dataset_name: str, subset: int, names: list[str]) -> NoReturn:
    """Raise the error of a shard that is not there."""
    shown = ", ".join(names[:MOST_SHOWN]) + (", …" if len(names) > MOST_SHOWN else "")
    raise InputError(f"dataset_subset: {dataset_name} has no shard {subset}; it has {len(names)}: {shown}")
