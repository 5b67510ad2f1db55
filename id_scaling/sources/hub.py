"""Sources that are repositories of the Hugging Face hub: every name that is of no other kind.

A checkpoint is a revision of the repository.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from id_scaling.errors import InputError
from id_scaling.sources import hub_client
from id_scaling.sources.base import DatasetSource, HashFile, ModelSource, TokenizerSource
from id_scaling.sources.shards import SUFFIXES, shard_position, suffix_of
from id_scaling.sources.weight_headers import Stored

# Names that the origin of this project used, and where the same texts are.
ALIASES = {"pile_uncopyrighted_parquet_test": "monology/pile-uncopyrighted/test.jsonl.zst"}


class HubModel(ModelSource):
    """A revision of a repository of a model."""

    is_remote = True

    @classmethod
    def has_name(cls, name: str, checkpoint: str) -> bool:
        """Return True."""
        return True

    def folder(self) -> None:
        """Return None: its files are downloaded."""

    def config_folder(self, aside: Path) -> Path:
        """Return the folder of the revision in the hub's cache, with everything but the weights."""
        return hub_client.download_settings(self.name, self.checkpoint)

    def input_files(self, allow_pickle: bool) -> list[Path]:
        """Return none."""
        return []

    def fetch(self, folder: Path, check: Callable[[Path], None]) -> Path:
        """Return the folder of the revision in the hub's cache."""
        return hub_client.download_settings(self.name, self.checkpoint)

    def weight_hashes(self, folder: Path, allow_pickle: bool, hash_file: HashFile) -> dict[str, str]:
        """Return name and SHA-256 of the weight files.

        The hub knows the hashes of large files; only where it does not say one, the files are downloaded for theirs.
        """
        weights = hub_client.weight_hashes(self.name, folder, allow_pickle)
        if not all(weights.values()):
            hub_client.download_to_cache(self.name, folder, weights)
        return {name: known or hub_client.verified_sha256(folder / name) for name, known in weights.items()}

    def weight_headers(self, folder: Path, names: Mapping[str, str]) -> dict[str, Stored]:
        """Return the tensors in its safetensors; of files not in the cache only the headers are downloaded."""
        return hub_client.weight_headers(self.name, folder, names)

    def bytes_to_download(self, allow_pickle: bool) -> int:
        """Return the size of the weights, as the hub says it."""
        return hub_client.weight_bytes(self.name, self.config_folder(Path()), allow_pickle)


class HubTokenizer(TokenizerSource):
    """The tokenizer of a repository, at `main`."""

    @classmethod
    def has_name(cls, name: str) -> bool:
        """Return True."""
        return True

    def folder(self) -> None:
        """Return None: its files are downloaded."""

    def fetch(self, aside: Path) -> Path:
        """Return the folder of `main` in the hub's cache."""
        return hub_client.download_settings(self.name, "main")

    def cached_folder(self) -> Path | None:
        """Return that folder where an earlier download left it; the hub is not asked."""
        return hub_client.cached_settings(self.name, "main")


class HubDataset(DatasetSource):
    """Shards of a repository: `owner/name`, which a folder or a glob in the repository may follow."""

    is_remote = True

    @classmethod
    def has_name(cls, name: str) -> bool:
        """Return True."""
        return True

    def files(self) -> list[Path]:
        """Return none: they are downloaded."""
        return []

    def fetch(self, subset: int) -> tuple[list[Path], str]:
        """Download one shard; return its file and its commit."""
        parts = ALIASES.get(self.name, self.name).split("/")
        repository, inside = "/".join(parts[:2]), "/".join(parts[2:])

        def pick(names: list[str]) -> str:
            texts = sorted(name for name in names if suffix_of(name) and _is_inside(name, inside))
            if not texts:
                folders = sorted({os.path.dirname(name) or "." for name in names if suffix_of(name)})
                raise InputError(
                    f"dataset_name: {self.name} holds no shard; expected files ending in {', '.join(SUFFIXES)}; "
                    f"folders of {repository} that hold such files: {', '.join(folders) or 'none'}"
                )
            # As in a folder: pages beside shards, a licence say, are none.
            shards = [name for name in texts if suffix_of(name) != ".txt"] or texts
            return shards[shard_position(self.name, shards, subset)]

        file, commit = hub_client.download_shard(repository, pick)
        return [file], commit


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
