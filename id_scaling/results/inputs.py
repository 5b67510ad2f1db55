"""What a summary is made from: the tables of estimates of its session, by their checksums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from id_scaling.errors import StoreError, made_anew
from id_scaling.runtime.atomic_files import digest
from id_scaling.storage.layout import ids_path, run_folder, runs_of
from id_scaling.storage.records import read_facts, read_footer, read_record


def made_from(session: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return what a summary of these settings is made from now: the checksums of all tables, as one hash."""
    return {"tables": digest([read_footer(path)[1] for path in tables_of(session, settings)])}


def tables_of(session: Path, settings: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the tables of a session, in the order of its runs, modules and estimators."""
    for run in runs_of(settings):
        for module in settings["modules"]:
            for estimator, _ in settings["estimators"]:
                yield ids_path(session, run, module, estimator)


def _are_current(session: Path, settings: Mapping[str, Any]) -> bool:
    """Return whether the tables of a session are of the extractions that are there."""
    for run in runs_of(settings):
        manifest = run_folder(session, run) / "manifest.json"
        if not manifest.is_file():
            return False
        made = read_record(manifest)["digest"]
        for module in settings["modules"]:
            for estimator, _ in settings["estimators"]:
                if read_facts(ids_path(session, run, module, estimator))["manifest"] != made:
                    return False
    return True


def check_current(summary: Path, facts: Mapping[str, Any]) -> None:
    """Raise a StoreError where tables were computed again since a summary was made of them.

    A summary that was copied without any table is taken for current.
    """
    session = summary.parent
    if not any(path.is_file() for path in tables_of(session, facts)):
        return
    if facts["made_from"] != made_from(session, facts) or not _are_current(session, facts):
        raise StoreError(f"{summary}: stale: its tables were computed again since it was made; {made_anew(summary)}")
