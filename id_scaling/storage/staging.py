"""Staged tables of a run: finished estimates that the workflow has not yet linked to their declared outputs.

Snakemake deletes the declared outputs of a failed job. So a batch of estimates writes each table, as soon as it is
finished, into a folder that no rule declares. The name of a staged table holds a digest of its settings, and a copy of
the manifest in the folder identifies the extraction. So a table with the right name next to the right manifest is the
right table.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from id_scaling.errors import StoreError
from id_scaling.runtime.atomic_files import digest, sweep, writing
from id_scaling.storage.records import check_seal, read_table

MANIFEST = "manifest.json"


def staged_table(folder: Path, settings: Mapping[str, Any]) -> Path:
    """Return the path of the table with given settings in the staging folder of its run."""
    return folder / settings["module"] / f"{settings['estimator']}-{digest(settings)}.parquet"


def open_staging(folder: Path, manifest: Path) -> None:
    """Create a staging folder, or remove the tables of another manifest from it."""
    copy = folder / MANIFEST
    if not copy.is_file() or copy.read_bytes() != manifest.read_bytes():
        for entry in folder.iterdir() if folder.is_dir() else ():
            if entry.is_dir():
                shutil.rmtree(entry)
        with writing(copy) as temporary:
            temporary.write_bytes(manifest.read_bytes())
    for module_folder in filter(Path.is_dir, folder.iterdir()):
        sweep(module_folder)


def is_staged(table: Path) -> bool:
    """Return whether a staged table exists and is as it was written; a damaged table is removed."""
    if not table.is_file():
        return False
    try:
        check_seal(table)
    except StoreError:
        table.unlink()
        return False
    return True


def adopt(table: Path, declared: Path, settings: Mapping[str, Any], extraction: str) -> bool:
    """Stage a declared table, which Snakemake may delete, if it is current; return whether it was staged."""
    try:
        _, facts = read_table(declared)
    except StoreError:
        return False
    if facts["settings"] != settings or facts.get("manifest") != extraction:
        return False
    with writing(table) as temporary:
        shutil.copyfile(declared, temporary)
    return True


def publish(table: Path, declared: Path, manifest: Path) -> bool:
    """Move a staged table, which an ended run did not link, to its declared path; return whether it was moved."""
    copy = table.parent.parent / MANIFEST
    is_current = copy.is_file() and manifest.is_file() and copy.read_bytes() == manifest.read_bytes()
    if not is_current or not is_staged(table):
        return False
    declared.parent.mkdir(parents=True, exist_ok=True)
    os.replace(table, declared)
    return True


def clear_staging(folder: Path) -> None:
    """Remove a staging folder that has no tables."""
    if folder.is_dir() and not any(folder.glob("*/*.parquet")):
        shutil.rmtree(folder)
