"""One resolver of names: which kind of source a model, a tokenizer or a dataset is, is asked here and nowhere else.

A kind is a class in a module of its own and a line in the table of `sources.kinds`; the first kind of the table that
knows a name takes it. To resolve a name opens no file: the methods of a source say what is missing or damaged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from id_scaling.runtime.atomic_files import digest
from id_scaling.sources.file_hashes import FileHashes
from id_scaling.sources.hub_client import verified_sha256
from id_scaling.sources.model_config import Architecture, config_digest, read_architecture
from id_scaling.sources.safe_files import weight_files
from id_scaling.sources.shards import named_paths, pick_shard, shard_hashes
from id_scaling.sources.weight_headers import Stored, read_headers
from id_scaling.storage.tokenizers import TOKENIZER_FILES, tokenizer_digest

# Next to the identity of a checkpoint that is made on this machine: its weights.
WEIGHTS_FOLDER = "weights"
# Next to the identity of a tokenizer that is made on this machine: its files.
TOKENIZER_FOLDER = "tokenizer"
HashFile = Callable[[Path], str]


def resolve_model(name: str, checkpoint: str) -> ModelSource:
    """Return the source of a checkpoint of a model."""
    from id_scaling.sources.kinds import MODELS  # the kinds derive from the classes below

    return next(kind for kind in MODELS if kind.has_name(name, checkpoint))(name, checkpoint)


def resolve_tokenizer(name: str) -> TokenizerSource:
    """Return the source of the tokenizer of a model."""
    from id_scaling.sources.kinds import TOKENIZERS

    return next(kind for kind in TOKENIZERS if kind.has_name(name))(name)


def resolve_dataset(name: str) -> DatasetSource:
    """Return the source of a dataset."""
    from id_scaling.sources.kinds import DATASETS

    return next(kind for kind in DATASETS if kind.has_name(name))(name)


class ModelSource(ABC):
    """A checkpoint of a model.

    Parameters
    ----------
    name, checkpoint : str
        As the configuration names them.

    Attributes
    ----------
    is_remote : bool
        Whether its weights are downloaded, after its identity is written.
    is_made : bool
        Whether its weights are made on this machine, when its identity is written.
    """

    is_remote = False
    is_made = False

    def __init__(self, name: str, checkpoint: str) -> None:
        self.name, self.checkpoint = name, checkpoint

    @classmethod
    @abstractmethod
    def has_name(cls, name: str, checkpoint: str) -> bool:
        """Return whether a name that no earlier kind of the table takes is of this kind."""

    @property
    def first_checkpoint(self) -> str:
        """The checkpoint whose architecture untrained weights of this model have."""
        return "main"

    @abstractmethod
    def folder(self) -> Path | None:
        """Return the folder of the checkpoint on this machine; None where a job brings or makes it.

        Raises
        ------
        InputError
            The model or the checkpoint is not there.
        """

    @abstractmethod
    def config_folder(self, aside: Path) -> Path:
        """Return a folder with the config of the checkpoint: its own, or `aside` with it where it has none yet."""

    @abstractmethod
    def input_files(self, allow_pickle: bool) -> list[Path]:
        """Return the files on this machine that its identity is made of."""

    def prepared_files(self) -> list[Path]:
        """Return those files that a job of the workflow makes, which untrained weights of the model need too."""
        return []

    def n_to_prepare(self) -> int:
        """Return how many checkpoints have to be prepared on this machine before this one can be used."""
        return 0

    def architecture(self) -> Architecture | None:
        """Return the architecture; None where it is known only once a job has run."""
        folder = self.folder()
        return None if folder is None else read_architecture(folder)

    def n_layers(self) -> int | None:
        """Return the number of layers; None where it is known only once a job has run."""
        architecture = self.architecture()
        return None if architecture is None else architecture.n_layers

    def content(self, allow_pickle: bool, hash_file: HashFile) -> dict[str, str | None]:
        """Return the fields of its identity that depend on files on this machine, as these files are now.

        There are none for a checkpoint of the hub, and for a bundled model that is yet to be made.
        """
        # Tokenizers resolve names too.
        from id_scaling.sources.tokenizers import folder_with_tokenizer

        folder = self.folder()
        if folder is None or not (folder / "config.json").is_file():
            return {}
        weights = {path.name: hash_file(path) for path in weight_files(folder, allow_pickle)}
        with_tokenizer = folder_with_tokenizer(folder, self.name)
        # The tokenizer of a bundled model may be another one's, which is yet to be made.
        tokenizer = tokenizer_digest(with_tokenizer, hash_file) if with_tokenizer.is_dir() else None
        return {
            "weights_sha256": digest(weights),
            "config_sha256": config_digest(folder),
            "tokenizer_sha256": tokenizer,
        }

    def source_sha256(self, hash_file: HashFile) -> str | None:
        """Return the hash of the file on this machine that the checkpoint is made of; None where there is none."""
        return None

    def untrained_sha256(self) -> str | None:
        """Return the hash of the config that untrained weights are made of; None where it is not a user's own."""
        return None

    def fetch(self, folder: Path, check: Callable[[Path], None]) -> Path:
        """Return a folder with the config of the checkpoint and, unless they are remote, its weights.

        Parameters
        ----------
        folder : Path
            Receives weights that are made on this machine.
        check : callable
            Raises an error where a checkpoint with the config in a folder is not worth making.
        """
        return cast("Path", self.folder())  # of one that is neither remote nor made here

    def weight_hashes(self, folder: Path, allow_pickle: bool, hash_file: HashFile) -> dict[str, str]:
        """Return name and SHA-256 of the weight files of the folder that was fetched."""
        return {path.name: verified_sha256(path, hash_file) for path in weight_files(folder, allow_pickle)}

    def weight_headers(self, folder: Path, names: Mapping[str, str]) -> dict[str, Stored]:
        """Return the tensors in the safetensors files of these names, by their headers."""
        return read_headers(folder)

    def weights_folder(self, identity: Path) -> Path | None:
        """Return the folder that holds the weights of an identity now; None where they are remote.

        The name tells it, since a session or a clone may have been moved after the identity was written.
        """
        return self.folder()

    def bytes_to_download(self, allow_pickle: bool) -> int:
        """Return the size of the weights where they are remote."""
        return 0


class MadeModel(ModelSource):
    """A checkpoint whose weights are made on this machine, next to its identity."""

    is_made = True

    @abstractmethod
    def make(self, config_folder: Path, folder: Path) -> None:
        """Write the checkpoint to a folder, as transformers saves a model."""

    def content(self, allow_pickle: bool, hash_file: HashFile) -> dict[str, str | None]:
        """Return the hash of what the checkpoint is made of, where that is on this machine."""
        source = self.source_sha256(hash_file)
        return {} if source is None else {"source_sha256": source}

    def fetch(self, folder: Path, check: Callable[[Path], None]) -> Path:
        """Make the checkpoint in a folder, once its config is checked; return the folder."""
        with TemporaryDirectory() as aside:
            config_folder = self.config_folder(Path(aside))
            check(config_folder)
            self.make(config_folder, folder)
        return folder

    def weights_folder(self, identity: Path) -> Path | None:
        """Return the folder next to the identity."""
        return identity.parent / WEIGHTS_FOLDER


class NamedSource(ABC):
    """What a name is enough for: a tokenizer or a dataset."""

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    @abstractmethod
    def has_name(cls, name: str) -> bool:
        """Return whether a name that no earlier kind of the table takes is of this kind."""


class TokenizerSource(NamedSource):
    """The tokenizer of a model, at its main revision."""

    @abstractmethod
    def folder(self) -> Path | None:
        """Return the folder on this machine that holds the tokenizer; None where a job brings or makes it.

        Raises
        ------
        InputError
            The model is on this machine, and has no tokenizer.
        """

    def input_files(self) -> list[Path]:
        """Return the files that its identity is made of, where its content does not say so."""
        return []

    def content(self, hash_file: HashFile) -> dict[str, str | None]:
        """Return the fields of its identity that depend on files on this machine, as these files are now."""
        folder = self.folder()
        if folder is None or not any((folder / name).is_file() for name in TOKENIZER_FILES):
            return {}
        return {"sha256": tokenizer_digest(folder, hash_file)}

    def source_sha256(self, hash_file: HashFile) -> str | None:
        """Return the hash of the file that the tokenizer is made of; None where it is used as it is."""
        return None

    @abstractmethod
    def fetch(self, aside: Path) -> Path:
        """Return a folder with the tokenizer: its own, one that is downloaded, or `aside` where it is made."""

    def cached_folder(self) -> Path | None:
        """Return a folder that an earlier download left; None where there is none."""
        return None

    def fetched_folder(self, identity: Mapping[str, Any], path: Path) -> Path:
        """Return the folder that holds the tokenizer of an identity now; `path` is where the identity is."""
        return self.folder() or Path(identity["path"])


class DatasetSource(NamedSource):
    """The shards of a dataset.

    Attributes
    ----------
    is_remote : bool
        Whether shards are downloaded.
    """

    is_remote = False

    @abstractmethod
    def files(self) -> list[Path]:
        """Return the files of all shards on this machine, sorted.

        Raises
        ------
        InputError
            The name is a path or a glob, and the dataset is not there.
        """

    @cached_property
    def _files(self) -> list[Path]:
        """The files; a glob may be over many folders."""
        return self.files()

    def shard(self, subset: int) -> list[Path]:
        """Return the files of one shard; none where shards are downloaded.

        Raises
        ------
        InputError
            The dataset or the shard is not there.
        """
        return pick_shard(self.name, self._files, subset) if self._files else []

    def fetch(self, subset: int) -> tuple[list[Path], str | None]:
        """Return the files of one shard, and the commit that they are of; None where there are no commits."""
        return self.shard(subset), None

    def content(self, subset: int, hashes: FileHashes) -> dict[str, str | None]:
        """Return the fields of a shard's identity that depend on its files on this machine, as these are now.

        There are none for a shard of the hub, and for a bundled one that is yet to be made.
        """
        files = self.shard(subset)
        if not files or not all(path.is_file() for path in files):
            return {}
        return {"sha256": digest(shard_hashes(named_paths(files), hashes))}
