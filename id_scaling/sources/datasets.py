"""Fetching a shard of a dataset: its files on this machine, and the identity that is written of them.

A `dataset_name` is an embedded dataset, what exists under that name, a glob, or `owner/name` on the hub, which a folder
or a glob in the repository may follow (`sources.kinds`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from id_scaling.runtime.atomic_files import digest
from id_scaling.runtime.logging import LOG
from id_scaling.sources.base import resolve_dataset
from id_scaling.sources.file_hashes import FileHashes
from id_scaling.sources.shards import named_paths, shard_hashes
from id_scaling.storage.records import write_record


def fetch_dataset(dataset_name: str, subset: int, output: Path, settings: Mapping[str, Any] | None = None) -> None:
    """Write the identity of one shard of a dataset.

    Raises
    ------
    InputError
        The dataset or the shard is missing.
    """
    files, commit = resolve_dataset(dataset_name).fetch(subset)
    paths = named_paths(files)
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


def shard_paths(identity: Mapping[str, Any]) -> list[Path]:
    """Return where the files of a shard's identity are now: a clone or a folder may have been moved since."""
    source = resolve_dataset(identity["dataset_name"])
    return [Path(path) for path in identity["paths"]] if source.is_remote else source.shard(identity["subset"])
