"""Which files a shard of a dataset is: of a file, a folder, a glob of files, or a repository of the Hugging Face hub.

A `dataset_name` is an embedded dataset, what exists under that name, a glob, or `owner/name` on the hub, which a folder
or a glob in the repository may follow. Shards named by numbers alone are picked by number, others by sorted order.
"""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from id_scaling.errors import InputError
from id_scaling.runtime.atomic_files import digest
from id_scaling.runtime.logging import LOG
from id_scaling.sources import bundled, hub
from id_scaling.sources.file_hashes import FileHashes
from id_scaling.sources.models import RESOURCES, expanded, looks_local
from id_scaling.storage.records import write_record

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt")
# Names that the origin of this project used, and where the same texts are.
ALIASES = {"pile_uncopyrighted_parquet_test": "monology/pile-uncopyrighted/test.jsonl.zst"}
MOST_SHOWN = 10


def fetch_dataset(dataset_name: str, subset: int, output: Path, settings: Mapping[str, Any] | None = None) -> None:
    """Write the identity of one shard of a dataset.

    Raises
    ------
    InputError
        The dataset or the shard is missing.
    """
    files, commit = dataset_shard(dataset_name, subset), None
    if files is None:
        shard, commit = _shard_from_hub(dataset_name, subset)
        files = [shard]
    # Where files are links, as in the hub's cache, the names of the links say of what format they are.
    paths = [path.parent.resolve() / path.name for path in files]
    hashes = shard_hashes(paths, FileHashes.of_session(output))
    identity = {
        "settings": dict(settings or {}),
        "dataset_name": dataset_name,
        "subset": subset,
        "paths": [str(path) for path in paths],
        "commit": commit,
        "files": hashes,
        "sha256": digest(hashes),
    }
    write_record(output, identity)
    LOG.info("%s shard %d: %d file(s), content %s", dataset_name, subset, len(files), digest(hashes))


def shard_hashes(paths: list[Path], hashes: FileHashes) -> dict[str, str]:
    """Return the SHA-256 of the files of a shard, by their names below the folder that holds them all."""
    return {name: hashes.sha256(path) for name, path in zip(_names_of(paths), paths, strict=True)}


def dataset_content(files: list[Path], hashes: FileHashes) -> dict[str, str | None]:
    """Return the fields of a shard's identity that follow from its files on this machine, as they are now.

    There are none for a shard of the hub, and for a bundled one that is yet to be made.
    """
    if not files or not all(path.is_file() for path in files):
        return {}
    paths = [path.parent.resolve() / path.name for path in files]
    return {"sha256": digest(shard_hashes(paths, hashes))}


def shard_paths(identity: Mapping[str, Any]) -> list[Path]:
    """Return where the files of a shard's identity are now: a clone or a folder may have been moved since."""
    files = dataset_shard(identity["dataset_name"], identity["subset"])
    return [Path(path) for path in identity["paths"]] if files is None else files


def dataset_shard(dataset_name: str, subset: int) -> list[Path] | None:
    """Return the files of a local or embedded shard, None for one of the hub.

    Raises
    ------
    InputError
        The name is a path or a glob, and the dataset or the shard is not there.
    """
    files = dataset_files(dataset_name)
    return None if files is None else shard_files(dataset_name, files, subset)


def dataset_files(dataset_name: str) -> list[Path] | None:
    """Return the files of all shards of a local or embedded dataset, sorted; None for one of the hub."""
    if dataset_name in bundled.DATASETS:
        return [RESOURCES / dataset_name / f"{index:04d}.parquet" for index in range(len(bundled.SOTU_SHARDS))]
    if not looks_local(dataset_name) and not _is_local_glob(dataset_name):
        return None
    root = expanded(dataset_name)
    is_file = os.path.isfile(root)  # False for a name too long to be one too
    if is_file and not _suffix(root):
        raise InputError(f"dataset_name: {root} is no shard; expected a file ending in {', '.join(SUFFIXES)}")
    if is_file:
        return [root]
    if not os.path.exists(root) and not glob.has_magic(str(root)):
        raise InputError(
            f"dataset_name: {root} does not exist; expected a file, a folder of shards, a glob or a hub name"
        )
    found = root.iterdir() if os.path.exists(root) else map(Path, glob.iglob(str(root), recursive=True))
    files = sorted(path for path in found if _suffix(path) and not path.is_dir())
    if not files:
        raise InputError(f"dataset_name: {root} holds no shard; expected files ending in {', '.join(SUFFIXES)}")
    return files


def shard_files(dataset_name: str, files: list[Path], subset: int) -> list[Path]:
    """Return those of a dataset's files that are its shard `subset`."""
    shards = [path for path in files if _suffix(path) != ".txt"]
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
    stems = [os.path.basename(name)[: -len(_suffix(name))] for name in names]
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


def _names_of(paths: list[Path]) -> list[str]:
    """Return the names of files below the innermost folder that holds them all."""
    folder = os.path.commonpath([path.parent for path in paths])
    return [os.path.relpath(path, folder) for path in paths]


def _is_local_glob(name: str) -> bool:
    """Return whether a name that is no path is a glob below a folder that is there."""
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), name.split("/")))
    return glob.has_magic(name) and bool(fixed) and os.path.isdir("/".join(fixed))


def _shard_from_hub(dataset_name: str, subset: int) -> tuple[Path, str]:
    """Download one shard of a dataset repository; return it and its commit."""
    parts = ALIASES.get(dataset_name, dataset_name).split("/")
    repository, inside = "/".join(parts[:2]), "/".join(parts[2:])

    def pick(names: list[str]) -> str:
        texts = sorted(name for name in names if _suffix(name) and _is_inside(name, inside))
        if not texts:
            found = ", ".join(sorted({os.path.dirname(name) or "." for name in names if _suffix(name)})) or "none"
            raise InputError(
                f"dataset_name: {dataset_name} holds no shard; expected files ending in {', '.join(SUFFIXES)}; folders "
                f"of {repository} that hold such files: {found}"
            )
        # As in a folder: pages beside shards, a licence say, are none.
        shards = [name for name in texts if _suffix(name) != ".txt"] or texts
        return shards[shard_position(dataset_name, shards, subset)]

    return hub.download_shard(repository, pick)


def _is_inside(name: str, inside: str) -> bool:
    """Return whether a file of a repository is one that is named: all are, a file, those of a folder, or of a glob."""
    if not glob.has_magic(inside):
        return inside.rstrip("/") in ("", name, os.path.dirname(name))
    return _matches(name.split("/"), inside.split("/"))


def _matches(parts: list[str], pattern: list[str]) -> bool:
    """Return whether the parts of a path match those of a glob, in which `**` is any number of folders."""
    if not parts or not pattern:
        return not parts and not pattern
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or _matches(parts[1:], pattern)
    return fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _no_shard(dataset_name: str, subset: int, names: list[str]) -> Any:
    """Raise the error of a shard that is not there."""
    shown = ", ".join(names[:MOST_SHOWN]) + (", …" if len(names) > MOST_SHOWN else "")
    raise InputError(f"dataset_subset: {dataset_name} has no shard {subset}; it has {len(names)}: {shown}")


def _suffix(path: Path | str) -> str:
    """Return the ending that makes a file a shard, or an empty string."""
    return next((suffix for suffix in SUFFIXES if str(path).endswith(suffix)), "")
