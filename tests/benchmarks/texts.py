"""The embedded model and a context of the embedded text, prepared where the workflow keeps them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl

RESOURCES = Path(__file__).parents[2] / "resources"


def prepare() -> None:
    """Prepare model and text, so that processes that follow find them."""
    model_folder()
    _text_folder()


def model_folder() -> Path:
    """Return the folder of SmolLM2-135M-Instruct, prepared when it is not there yet."""
    return _prepared("prepare-model", "smollm2-135m-instruct")


def _text_folder() -> Path:
    """Return the folder of the embedded text, prepared when it is not there yet."""
    return _prepared("prepare-dataset", "sotu")


def context(model: Path, n_tokens: int) -> np.ndarray:
    """Return the first tokens of the first document of the embedded text."""
    from transformers import AutoTokenizer

    text = pl.read_parquet(_text_folder() / "0000.parquet")["text"][0]
    return np.array(AutoTokenizer.from_pretrained(model)(text)["input_ids"][:n_tokens])


def _prepared(verb: str, name: str) -> Path:
    """Return a folder of the resources, made when it is not there."""
    folder = RESOURCES / name
    if not folder.is_dir():
        subprocess.run([sys.executable, "-m", "id_scaling", verb, "--output", str(folder)], check=True)
    return folder
