"""The options of all commands: how each is spelled, read and explained."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path


def _json(text: str) -> dict:
    return json.loads(text)


def _positive(text: str) -> float:
    """Return a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"found {text}, expected a number above 0")
    return number


def _count(text: str) -> int:
    """Return a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected a number of at least 1")
    return int(text)


# An option of a verb: its flag, and how it is read.
OPTIONS: dict[str, dict] = {
    "--settings": {"type": _json, "required": True, "help": "what can change the output, as JSON"},
    "--execution": {"type": _json, "required": True, "help": "how the job runs, as JSON"},
    "--threads": {"type": int, "default": 1, "help": "cores to use"},
    "--output": {"type": Path, "required": True, "help": "what to write"},
    "--outputs": {"type": Path, "required": True, "nargs": "+", "dest": "output", "help": "what to write"},
    "--texts": {"type": Path, "required": True, "nargs": "+", "help": "parquet files with a column text"},
    "--shard": {"type": Path, "required": True, "help": "identity.json of the shard"},
    "--tokenizer": {"type": Path, "required": True, "help": "identity.json, or tokenizer.json of one trained here"},
    "--weights": {"type": Path, "nargs": "?", "help": "folder of the weights, where the model's identity names none"},
    "--contexts": {"type": Path, "required": True, "help": "contexts.parquet"},
    "--model": {"type": Path, "required": True, "help": "identity.json of the model"},
    "--manifest": {"type": Path, "required": True, "help": "manifest.json of the run"},
    "--logs": {"type": Path, "required": True, "help": "folder of the logs of single tables"},
    "--session": {"type": Path, "required": True, "help": "folder of the session"},
    "--parquet": {"type": Path, "required": True, "help": "table to write"},
    "--csv": {"type": Path, "required": True, "help": "the same as text, to write"},
    "--text": {"type": Path, "required": True, "help": "readable summary to write"},
    "--record": {"type": Path, "required": True, "help": "settings and checksums of what was drawn, to write"},
    "--checkpoint": {"default": "main", "help": "training checkpoint"},
    "--root": {"type": Path, "default": Path("."), "help": "root of the repository"},
    "--tflops": {
        "type": _positive,
        "default": 100.0,
        "help": "10¹² FLOPs a second of a GPU, an assumption",
    },
    "--gpus": {"type": _count, "default": 1, "help": "GPUs that extract beside each other"},
    "--only": {"nargs": "+", "metavar": "MODEL", "help": "models of the file to run, all by default"},
    "--profile": {"default": "profiles/local", "help": "profile of Snakemake, profiles/local by default"},
    "--no-run": {"action": "store_true", "help": "compare what was run before"},
    "config": {"type": Path, "help": "configuration file"},
    "name": {"metavar": "MODEL", "dest": "model", "help": "model folder or name"},
}
