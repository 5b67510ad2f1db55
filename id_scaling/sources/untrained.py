"""Checkpoints of untrained weights: an architecture, which is that of another checkpoint, and a seed."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import cast

from id_scaling.runtime.atomic_files import writing_folder
from id_scaling.runtime.logging import LOG
from id_scaling.sources.base import HashFile, MadeModel, ModelSource, resolve_model
from id_scaling.sources.build import built
from id_scaling.sources.model_config import Architecture

UNTRAINED = re.compile(r"random-init(?:-([0-9]{1,9}))?")


def seed_of(checkpoint: str) -> int | None:
    """Return the seed of a checkpoint of untrained weights, `random-init` or `random-init-SEED`; None of any other."""
    match = UNTRAINED.fullmatch(checkpoint)
    return match and int(match[1] or 0)


class UntrainedModel(MadeModel):
    """The weights that an architecture begins with."""

    @classmethod
    def has_name(cls, name: str, checkpoint: str) -> bool:
        """Return whether a checkpoint is one of untrained weights."""
        return seed_of(checkpoint) is not None

    @cached_property
    def origin(self) -> ModelSource:
        """The checkpoint whose architecture it is: the model's own, or the first one."""
        return resolve_model(self.name, resolve_model(self.name, "main").first_checkpoint)

    def folder(self) -> Path | None:
        """Return the folder whose architecture it is."""
        return self.origin.folder()

    def config_folder(self, aside: Path) -> Path:
        """Return a folder with the config of the architecture."""
        return self.origin.config_folder(aside)

    def input_files(self, allow_pickle: bool) -> list[Path]:
        """Return files only of a bundled model.

        Others are known by the content of their config, since another checkpoint may become the first that has one.
        """
        self.folder()  # raises where there is none
        return self.origin.prepared_files()

    def n_to_prepare(self) -> int:
        """Return how many checkpoints have to be prepared before the architecture can be read."""
        return self.origin.n_to_prepare()

    def architecture(self) -> Architecture | None:
        """Return the architecture; None where it is known only once a job has run."""
        return self.origin.architecture()

    def source_sha256(self, hash_file: HashFile) -> str | None:
        """Return the hash of the config; None where it is the hub's or a bundled model's."""
        return self.origin.untrained_sha256()

    def make(self, config_folder: Path, folder: Path) -> None:
        """Draw the weights."""
        draw_weights(config_folder, cast("int", seed_of(self.checkpoint)), folder)


def draw_weights(settings: Path, seed: int, folder: Path) -> None:
    """Write the model of the config in `settings` with the weights that its architecture begins with.

    Raises
    ------
    InputError
        transformers cannot build it without code that comes with it.
    """
    import torch

    LOG.info("drawing untrained weights of %s with seed %d", settings, seed)
    torch.manual_seed(seed)
    with writing_folder(folder) as whole:
        built(settings, "cpu", dtype=torch.float32).save_pretrained(whole)
