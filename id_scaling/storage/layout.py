"""Where a session keeps what: the axes of a run and every path template, told once for package and workflow.

A template is relative to the folder of the session and names its parts as the wildcards of the rules do.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_type_hints

from id_scaling.runtime.atomic_files import digest

# The version of the files of a run: layer files, parts and records. Raise it by one with each change after which this
# program could not read what was written before, or would take it for other numbers; never for a change of code only.
# Files of another version are refused, and the workflow recomputes them.
LAYOUT_VERSION = 1
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


_KINDS = get_type_hints(Run)
AXES = tuple(_KINDS)
# Settings in which the extractions of one model's runs differ; positions are counted from the start of a context.
RUN_KEYS = (*AXES[1:], "positions")


def _wildcards(*names: str) -> str:
    """Return a template of folders, one for each name."""
    return "/".join(f"{{{name}}}" for name in names)


# What tells runs apart, and contexts: those of one shard, tokenizer, length and control serve many checkpoints.
TEXT_AXES = ("dataset", "subset", "tokenizer", "ctx_len", "control")
RUN_NAMES, TEXT_NAMES = _wildcards(*AXES), _wildcards(*TEXT_AXES)
TABLE_NAMES = f"{RUN_NAMES}/{_wildcards('module', 'estimator')}"

# What is fetched, by kind, with the names of one of it.
FETCHED = {"models": ("model", "checkpoint"), "tokenizers": ("tokenizer",), "datasets": ("dataset", "subset")}
IDENTITIES = {kind: f"{kind}/{_wildcards(*names)}/identity.json" for kind, names in FETCHED.items()}
WEIGHTS = f"weights/{RUN_NAMES}"
CONTEXTS = f"contexts/{TEXT_NAMES}/contexts.parquet"
RUN = f"runs/{RUN_NAMES}"
MANIFEST = f"{RUN}/manifest.json"
TOKENS = f"{RUN}/tokens.parquet"
# A pattern of the folders of all runs.
EVERY_RUN = RUN.format(**dict.fromkeys(AXES, "*"))
TABLE = f"{RUN}/ids/{{module}}/{{estimator}}.parquet"
# Where finished tables of a run wait to be linked to TABLE, and what says that all are there.
STAGING = f"{RUN}/staged"
BATCH = f"{STAGING}/done"
SUMMARIES = tuple(f"summary.{kind}" for kind in ("parquet", "csv", "txt"))
FIGURES_MANIFEST = "figures/manifest.json"
FIGURE = "figures/{figure}.{kind}"
REPORT = "report.html"

# The names that the logs of each rule are called by, and its benchmarks.
LOG_NAMES = {
    "prepare_model": "",
    "prepare_dataset": "",
    "train_tokenizer": "",
    "train_model": "{model}",
    **{f"fetch_{kind.removesuffix('s')}": _wildcards(*names) for kind, names in FETCHED.items()},
    "fetch_weights": RUN_NAMES,
    "chunk_dataset": TEXT_NAMES,
    "shuffle_contexts": TEXT_NAMES,
    "extract_activations": RUN_NAMES,
    "estimate_batch": RUN_NAMES,
    "estimate_dimension": TABLE_NAMES,
    "summarize": "",
    "plot": "",
}


def log_of(rule: str) -> str:
    """Return the template of the logs of a rule; of bundled models and texts relative to their folder."""
    return "/".join(filter(None, ("logs", rule, LOG_NAMES[rule]))) + ".log"


def benchmark_of(rule: str) -> str:
    """Return the template of the benchmarks of a rule, named as its logs are."""
    return "/".join(filter(None, ("benchmarks", rule, LOG_NAMES[rule]))) + ".tsv"


def run_of(names: Mapping[str, Any]) -> Run:
    """Return the run of these names, as wildcards are."""
    return Run(**{axis: kind(names[axis]) for axis, kind in _KINDS.items()})


def runs_of(settings: Mapping[str, Any]) -> Iterator[Run]:
    """Yield the runs of a session from its axes."""
    for model, dataset in product(settings["models"], settings["datasets"]):
        axes = product(model["checkpoints"], dataset["subsets"], settings["lengths"], settings["controls"])
        for checkpoint, subset, ctx_len, control in axes:
            yield Run(model["name"], checkpoint, dataset["name"], subset, ctx_len, control)


def names_of(run: Run, settings: Mapping[str, Any]) -> dict[str, str | int]:
    """Return what the configuration of a session, and so its summary, calls a run."""
    return {axis: settings["names"].get(axis, {}).get(value, value) for axis, value in vars(run).items()}


def called(names: Mapping[str, Any], is_length_said: bool) -> str:
    """Return what a run of these names is called: `gpt2 · main · sotu · 0 · none`, with its length if it is said."""
    said = {**names, "ctx_len": f"{names['ctx_len']} tokens"}
    return " · ".join(str(name) for key, name in said.items() if is_length_said or key != "ctx_len")


def run_folder(session: Path, run: Run) -> Path:
    """Return the folder of a run."""
    return session / RUN.format(**vars(run))


def weights_folder(session: Path, run: Run) -> Path:
    """Return the folder of the weights of a run, of a checkpoint of the hub."""
    return session / WEIGHTS.format(**vars(run))


def ids_path(session: Path, run: Run, module: str, estimator: str) -> Path:
    """Return the table of one module and estimator of a run."""
    return session / TABLE.format(**vars(run), module=module, estimator=estimator)


def staging_folder(session: Path, run: Run) -> Path:
    """Return where finished tables of a run wait to be linked to `ids_path`."""
    return session / STAGING.format(**vars(run))


def contexts_path(session: Path, run: Run, tokenizer: str) -> Path:
    """Return the contexts of a run, shared by all that have its shard, tokenizer, length and control."""
    return session / CONTEXTS.format(**vars(run), tokenizer=tokenizer)


def weights_record(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a folder of weights from the hub says in `WEIGHTS_RECORD` that it holds."""
    return {key: identity[key] for key in ("model_name", "commit", "weights_sha256", "config_sha256")}


def identity_path(session: Path, kind: str, *names: str) -> Path:
    """Return the identity of something fetched: a kind of `models`, `tokenizers` or `datasets`, and its names."""
    return session / IDENTITIES[kind].format(**dict(zip(FETCHED[kind], names, strict=True)))


def figures_manifest_path(session: Path) -> Path:
    """Return the record of the figures and the report of a session: their settings, and the checksum of each."""
    return session / FIGURES_MANIFEST


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
