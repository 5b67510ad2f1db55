"""Weights of the hub, in a folder for one run: downloaded, or linked from that of another run of the same checkpoint.

A folder says in a record of its own which weights it holds, so that those of a commit that a branch has left are never
taken for those of its identity.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from id_scaling.errors import InputError, StoreError
from id_scaling.runtime.atomic_files import digest, sha256
from id_scaling.runtime.locks import leased
from id_scaling.runtime.logging import LOG
from id_scaling.sources import hub_client
from id_scaling.storage.layout import WEIGHTS_RECORD, weights_record
from id_scaling.storage.records import read_record, write_record

# Snakemake's note of when a folder was made.
TIMESTAMP = ".snakemake_timestamp"


def fetch_weights(identity_path: Path, output: Path, keep: bool) -> None:
    """Bring the weights of a checkpoint of the hub into a folder, as its identity says they are.

    Where those of another run are there, they are linked and not downloaded again.

    Parameters
    ----------
    output : Path
        `MODEL/CHECKPOINT/DATASET/SUBSET/CONTROL` in the folder of weights.
    keep : bool
        Whether they are kept in the hub's cache, and the folder holds links to it.

    Raises
    ------
    InputError
        They cannot be downloaded, or are not those of the identity.
    """
    identity, of_checkpoint = read_record(identity_path), output.parents[2]
    wanted = weights_record(identity)
    of_checkpoint.mkdir(parents=True, exist_ok=True)
    with leased(of_checkpoint):
        shutil.rmtree(output, ignore_errors=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        aside = of_checkpoint / f".part-{digest(wanted)}"
        _drop_others(of_checkpoint, aside)
        if keep or not any(_is_linked(other, aside, identity) for other in _held(of_checkpoint)):
            _download(identity, aside, keep)
            write_record(aside / WEIGHTS_RECORD, wanted)
        aside.rename(output)
    LOG.info("%s %s: weights in %s", identity["model_name"], identity["checkpoint"], output)


def _held(of_checkpoint: Path) -> list[Path]:
    """Return the folders that hold weights of a checkpoint, one a run."""
    found = (path for path in of_checkpoint.glob("*/*/*") if path.is_dir())
    return sorted(path for path in found if not any(name.startswith(".") for name in path.parts[-3:]))


def _drop_others(of_checkpoint: Path, aside: Path) -> None:
    """Remove what downloads of other weights of this name left."""
    for path in of_checkpoint.glob(".part-*"):
        if path != aside:
            shutil.rmtree(path)


def _is_linked(source: Path, aside: Path, identity: Mapping[str, Any]) -> bool:
    """Link the files of a folder into another; return whether it holds these weights, of which it may lose some."""
    try:
        if read_record(source / WEIGHTS_RECORD) != weights_record(identity):
            return False
        if aside.is_dir():
            return False  # a download that broke off goes on
        shutil.copytree(source, aside, symlinks=True, copy_function=os.link, ignore=shutil.ignore_patterns(TIMESTAMP))
        if all((aside / name).is_file() for name in (*identity["weights"], "config.json", WEIGHTS_RECORD)):
            return True
    except (StoreError, OSError):  # Snakemake removes the folder meanwhile
        pass
    shutil.rmtree(aside, ignore_errors=True)
    return False


def _download(identity: Mapping[str, Any], aside: Path, keep: bool) -> None:
    """Download weights; what a download that broke off brought stays for the next."""
    repository, weights = identity["model_name"], identity["weights"]
    settings = hub_client.download_settings(repository, identity["commit"])
    hub_client.download_weights(repository, settings, weights, aside, keep)
    for name, expected in weights.items():
        if sha256(aside / name) != expected:
            source = (aside / name).resolve()
            source.unlink()
            raise InputError(f"{source}: damaged: its hash is not the hub's; it is removed, run again")
