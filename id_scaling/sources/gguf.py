"""Sources that are a GGUF file, which is converted to a folder as transformers saves a model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from id_scaling.errors import InputError
from id_scaling.runtime.atomic_files import writing_folder
from id_scaling.sources.base import TOKENIZER_FOLDER, HashFile, MadeModel, TokenizerSource
from id_scaling.sources.gguf_conversion import check_split, gguf_model, gguf_settings
from id_scaling.sources.gguf_header import gguf_n_layers
from id_scaling.sources.local import expanded

SUFFIX = ".gguf"


def gguf_file(name: str, checkpoint: str = "main") -> Path:
    """Return the GGUF file of this name.

    Raises
    ------
    InputError
        There is none, or the checkpoint is not `main`.
    """
    path = expanded(name)
    if not path.is_file():
        raise InputError(f"model_name: {path} is not a file; download it, or name the model that it was made from")
    if checkpoint != "main":
        raise InputError(f"model_checkpoint: {path} is one model, its checkpoint is 'main', found {checkpoint!r}")
    return path


class GgufModel(MadeModel):
    """The model of a GGUF file, whose one checkpoint is `main`."""

    @classmethod
    def has_name(cls, name: str, checkpoint: str) -> bool:
        """Return whether a name is that of a GGUF file."""
        return name.endswith(SUFFIX)

    def folder(self) -> None:
        """Return None: it is converted; raise an InputError where the file is not there."""
        gguf_file(self.name, self.checkpoint)

    def config_folder(self, aside: Path) -> Path:
        """Return `aside` with the config."""
        with gguf_settings(gguf_file(self.name, self.checkpoint)) as settings:
            shutil.copy(settings / "config.json", aside)
        return aside

    def input_files(self, allow_pickle: bool) -> list[Path]:
        """Return the file."""
        return [gguf_file(self.name, self.checkpoint)]

    @cached_property
    def _n_layers(self) -> int:
        """The number of layers; a header holds the whole vocabulary."""
        return gguf_n_layers(gguf_file(self.name))

    def n_layers(self) -> int:
        """Return the number of layers; raise an InputError where the header of the file is damaged."""
        return self._n_layers

    def source_sha256(self, hash_file: HashFile) -> str:
        """Return the hash of the file."""
        return hash_file(gguf_file(self.name, self.checkpoint))

    def make(self, config_folder: Path, folder: Path) -> None:
        """Convert the file."""
        gguf_model(gguf_file(self.name, self.checkpoint), folder)


class GgufTokenizer(TokenizerSource):
    """The tokenizer of a GGUF file."""

    @classmethod
    def has_name(cls, name: str) -> bool:
        """Return whether a name is that of a GGUF file."""
        return name.endswith(SUFFIX)

    def folder(self) -> None:
        """Return None: it is converted; raise an InputError where the file is not there."""
        gguf_file(self.name)

    def input_files(self) -> list[Path]:
        """Return the file, whether or not it is there."""
        return [expanded(self.name)]

    def content(self, hash_file: HashFile) -> dict[str, str | None]:
        """Return the hash of the file."""
        return {"source_sha256": self.source_sha256(hash_file)}

    def source_sha256(self, hash_file: HashFile) -> str:
        """Return the hash of the file."""
        return hash_file(gguf_file(self.name))

    def fetch(self, aside: Path) -> Path:
        """Return `aside` with the tokenizer, once it is known to split text as the file says."""
        with gguf_settings(gguf_file(self.name)) as settings, writing_folder(aside) as whole:
            for path in (path for path in settings.iterdir() if path.name != "config.json"):
                shutil.copyfile(path, whole / path.name)
        check_split(gguf_file(self.name), aside)
        return aside

    def fetched_folder(self, identity: Mapping[str, Any], path: Path) -> Path:
        """Return the folder next to the identity."""
        return path.parent / TOKENIZER_FOLDER
