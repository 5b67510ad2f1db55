"""Sources that are files and folders on this machine: a name that is a path, or exists as one.

A checkpoint is `main`, the model's folder itself, or a folder inside it.
"""

from __future__ import annotations

import glob
import itertools
import os
from pathlib import Path

from id_scaling.errors import InputError, nearest
from id_scaling.sources.base import DatasetSource, ModelSource, TokenizerSource
from id_scaling.sources.model_config import config_digest
from id_scaling.sources.safe_files import weight_files
from id_scaling.sources.shards import SUFFIXES, suffix_of
from id_scaling.storage.tokenizers import TOKENIZER_FILES, tokenizer_files


def looks_local(name: str) -> bool:
    """Return whether a name can only be a path."""
    return name.startswith((".", "/", "~")) or os.path.exists(name)


def expanded(name: str) -> Path:
    """Return a path with `~` replaced by the home folder it means."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise InputError(f"{name}: there is no such user; expected a path") from error


class LocalModel(ModelSource):
    """A checkpoint in a folder."""

    @classmethod
    def has_name(cls, name: str, checkpoint: str) -> bool:
        """Return whether a name can only be a path."""
        return looks_local(name)

    @property
    def first_checkpoint(self) -> str:
        """`main` where the model's folder has a config, or else the first checkpoint that has one."""
        root = expanded(self.name)
        has_own = os.path.isfile(root / "config.json") or not os.path.isdir(root)
        return "main" if has_own else next(iter(_checkpoints(root)), "main")

    def folder(self) -> Path:
        """Return the folder of the checkpoint; raise an InputError where it has no config."""
        root = expanded(self.name)
        folder = root if self.checkpoint == "main" else root / self.checkpoint
        if not os.path.isfile(folder / "config.json"):  # False for a name too long to be one too
            raise InputError(_missing_checkpoint(root, self.checkpoint))
        return folder

    def config_folder(self, aside: Path) -> Path:
        """Return the folder of the checkpoint."""
        return self.folder()

    def input_files(self, allow_pickle: bool) -> list[Path]:
        """Return the config, the weights and the files of the tokenizer."""
        folder = self.folder()
        return [folder / "config.json", *weight_files(folder, allow_pickle), *tokenizer_files(folder)]

    def untrained_sha256(self) -> str:
        """Return the hash of the config."""
        return config_digest(self.folder())


class LocalTokenizer(TokenizerSource):
    """The tokenizer in a model's folder, or else that of its first checkpoint."""

    @classmethod
    def has_name(cls, name: str) -> bool:
        """Return whether a name can only be a path."""
        return looks_local(name)

    def folder(self) -> Path:
        """Return the folder; raise an InputError where there is no tokenizer."""
        root = expanded(self.name)
        for folder in (root, *(root / checkpoint for checkpoint in _checkpoints(root))):
            if any(os.path.isfile(folder / name) for name in TOKENIZER_FILES):
                return folder
        raise InputError(
            f"{root}: found no tokenizer, expected one of {', '.join(TOKENIZER_FILES)} in it or in a checkpoint; or "
            "name a model that has one in model_config.tokenizer"
        )

    def fetch(self, aside: Path) -> Path:
        """Return the folder."""
        return self.folder()


class LocalDataset(DatasetSource):
    """Shards that are a file, the files of a folder, or those of a glob."""

    @classmethod
    def has_name(cls, name: str) -> bool:
        """Return whether a name can only be a path, or is a glob below a folder that is there."""
        return looks_local(name) or _is_local_glob(name)

    def files(self) -> list[Path]:
        """Return the files of all shards, sorted."""
        root = expanded(self.name)
        is_file = os.path.isfile(root)  # False for a name too long to be one too
        if is_file and not suffix_of(root):
            raise InputError(f"dataset_name: {root} is no shard; expected a file ending in {', '.join(SUFFIXES)}")
        if is_file:
            return [root]
        if not os.path.exists(root) and not glob.has_magic(str(root)):
            raise InputError(
                f"dataset_name: {root} does not exist; expected a file, a folder of shards, a glob or a hub name"
            )
        paths = root.iterdir() if os.path.exists(root) else map(Path, glob.iglob(str(root), recursive=True))
        files = sorted(path for path in paths if suffix_of(path) and not path.is_dir())
        if not files:
            raise InputError(f"dataset_name: {root} holds no shard; expected files ending in {', '.join(SUFFIXES)}")
        return files


def _checkpoints(root: Path) -> list[str]:
    """Return the names of the folders of checkpoints in a model's folder, sorted."""
    return [path.parent.name for path in sorted(root.glob("*/config.json"))] if os.path.isdir(root) else []


def _missing_checkpoint(root: Path, checkpoint: str) -> str:
    """Return what to say of a model or a checkpoint that is not there."""
    if not os.path.isdir(root):
        return f"model_name: {root} is not a folder; expected a model folder or a hub name like 'owner/model'"
    checkpoints = _checkpoints(root)
    if checkpoint == "main" and checkpoints:
        return f"model_checkpoint: {root} holds checkpoints, not a model; choose from {', '.join(checkpoints[:20])}"
    hint = nearest(checkpoint, checkpoints) if checkpoints else "it has no checkpoint folders"
    where = root if checkpoint == "main" else root / checkpoint
    return f"model_checkpoint: found no config.json in {where}, expected a checkpoint folder; {hint}"


def _is_local_glob(name: str) -> bool:
    """Return whether a name that is no path is a glob below a folder that is there."""
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), name.split("/")))
    return glob.has_magic(name) and bool(fixed) and os.path.isdir("/".join(fixed))
