"""Where a session keeps what, relative to its folder; the rules of the workflow name the same paths."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from id_scaling.runtime.atomic_files import digest

# The version of the files of a run: layer files, parts and records. Raise it by one with each change after which this
# program could not read what was written before, or would take it for other numbers; never for a change of code only.
# Files of another version are refused, and the workflow recomputes them.
LAYOUT_VERSION = 1
# Settings in which the extractions of one model's runs differ; positions are counted from the start of a context.
RUN_KEYS = ("checkpoint", "dataset", "subset", "ctx_len", "control", "positions")
# Says of each layer file as soon as it is assembled what it is to the last bit; undeclared, so Snakemake leaves it.
ASSEMBLED = "assembled.json"
WEIGHTS_RECORD = "weights.json"
MOST_PLAIN = 64  # characters of a name that stands in paths as it is


@dataclass(frozen=True)
class Run:
    """A model at a checkpoint, a shard, a length of contexts and a control, by names that are safe in paths."""

    model: str
    checkpoint: str
    dataset: str
    subset: int
    ctx_len: int
    control: str


def runs_of(settings: Mapping[str, Any]) -> Iterator[Run]:
    """Yield the runs of a session from its axes."""
    for model, dataset in product(settings["models"], settings["datasets"]):
        axes = product(model["checkpoints"], dataset["subsets"], settings["lengths"], settings["controls"])
        for checkpoint, subset, ctx_len, control in axes:
            yield Run(model["name"], checkpoint, dataset["name"], subset, ctx_len, control)


def called(names: Mapping[str, Any], is_length_said: bool) -> str:
    """Return what a run of these names is called: `gpt2 · main · sotu · 0 · none`, with its length if it is said."""
    said = {**names, "ctx_len": f"{names['ctx_len']} tokens"}
    return " · ".join(str(name) for key, name in said.items() if is_length_said or key != "ctx_len")


def run_folder(session: Path, run: Run) -> Path:
    """Return the folder of a run."""
    return session / f"runs/{run.model}/{run.checkpoint}/{run.dataset}/{run.subset}/{run.ctx_len}/{run.control}"


def weights_folder(session: Path, run: Run) -> Path:
    """Return the folder of the weights of a run, of a checkpoint of the hub."""
    return session / f"weights/{run.model}/{run.checkpoint}/{run.dataset}/{run.subset}/{run.ctx_len}/{run.control}"


def ids_path(session: Path, run: Run, module: str, estimator: str) -> Path:
    """Return the table of one module and estimator of a run."""
    return run_folder(session, run) / f"ids/{module}/{estimator}.parquet"


def staging_folder(session: Path, run: Run) -> Path:
    """Return where finished tables of a run wait to be linked to `ids_path`."""
    return run_folder(session, run) / "staged"


def contexts_path(session: Path, run: Run, tokenizer: str) -> Path:
    """Return the contexts of a run, shared by all that have its shard, tokenizer, length and control."""
    return session / f"contexts/{run.dataset}/{run.subset}/{tokenizer}/{run.ctx_len}/{run.control}/contexts.parquet"


def weights_record(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a folder of weights from the hub says in `WEIGHTS_RECORD` that it holds."""
    return {key: identity[key] for key in ("model_name", "commit", "weights_sha256", "config_sha256")}


def identity_path(session: Path, kind: str, *names: str) -> Path:
    """Return the identity of something fetched: a kind of `models`, `tokenizers` or `datasets`, and its names."""
    return session.joinpath(kind, *names, "identity.json")


def figures_manifest_path(session: Path) -> Path:
    """Return the record of the figures and the report of a session: their settings, and the checksum of each."""
    return session / "figures/manifest.json"


def file_of(layer: int | None) -> str:
    """Return the name of the file that holds a layer's sites; None is outside the blocks."""
    return "outblock.h5" if layer is None else f"layer_{layer:02d}.h5"


def extraction_digest(settings: Mapping[str, Any]) -> str:
    """Return what the extractions of one model's runs have in common, as a hash: code and settings, not the run."""
    return digest({key: value for key, value in settings.items() if key not in RUN_KEYS})


def slug(name: str) -> str:
    """Return a name for use in paths: hub names with `--` for `/`, anything else by its end and a hash.

    Different names give different slugs, so a name that looks like the slug of another gets a hash too.
    """
    is_plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?", name)
    # Slurm's plugin makes one folder name of all names of a job, and file systems end at 255 bytes.
    if is_plain and len(name) <= MOST_PLAIN and not re.search(r"--|-[0-9a-f]{8}$", name):
        return name.replace("/", "--")
    tail = re.sub(r"[^A-Za-z0-9_-]+", "-", name.rstrip("/").split("/")[-1]).strip("-")[:40]
    return f"{tail or 'path'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
