"""What a summary is made from: the tables of estimates of its session, and the documents of its contexts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from id_scaling.errors import StoreError, made_anew
from id_scaling.runtime.atomic_files import digest
from id_scaling.storage.layout import contexts_path, ids_path, run_folder, runs_of
from id_scaling.storage.records import read_facts, read_footer, read_record


def made_from(session: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return what a summary of these settings is made from now: checksums of tables and of documents, a hash each."""
    facts = {path: read_facts(path) for path in _contexts_of(session, settings)}
    return {"tables": _tables(session, settings), "documents": documents_digest(session, facts)}


def seals_digest(seals: Iterable[str]) -> str:
    """Return the checksums of tables as one hash, whatever their order: each says inside of which run it is."""
    return digest(sorted(seals))


def documents_digest(session: Path, facts: Mapping[Path, Mapping[str, Any]]) -> str:
    """Return what is known of the documents of contexts as one hash, from the facts of their tables."""
    return digest(
        {str(path.relative_to(session)): of_table.get("documents_sha256") for path, of_table in facts.items()}
    )


def _tables(session: Path, settings: Mapping[str, Any]) -> str:
    """Return the checksums of all tables, as one hash."""
    return seals_digest(read_footer(path)[1] for path in tables_of(session, settings))


def _contexts_of(session: Path, settings: Mapping[str, Any]) -> set[Path]:
    """Return the contexts of a session."""
    return {contexts_path(session, run, settings["tokenizers"][run.model]) for run in runs_of(settings)}


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
    """Raise a StoreError where tables were computed again, or contexts cut again, since a summary was made of them.

    A summary that was copied without any table is taken for current, and so are documents of contexts that are gone.
    """
    session = summary.parent
    if not any(path.is_file() for path in tables_of(session, facts)):
        return
    if facts["made_from"]["tables"] != _tables(session, facts) or not _are_current(session, facts):
        raise StoreError(f"{summary}: stale: its tables were computed again since it was made; {made_anew(summary)}")
    is_there = all(path.is_file() for path in _contexts_of(session, facts))
    if is_there and facts["made_from"] != made_from(session, facts):
        raise StoreError(f"{summary}: stale: its contexts were cut again since it was made; {made_anew(summary)}")
