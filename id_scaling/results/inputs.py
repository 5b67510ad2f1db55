"""The inputs of a summary: the tables of estimates of its session, and the documents of its contexts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from id_scaling.errors import StoreError, made_anew
from id_scaling.runtime.atomic_files import digest
from id_scaling.storage.layout import contexts_path, ids_path, run_folder, runs_of
from id_scaling.storage.records import read_facts, read_footer, read_record


def made_from(session: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the current inputs of a summary as two hashes: one of the tables, one of the documents."""
    facts = {path: read_facts(path) for path in _contexts_of(session, settings)}
    return {"tables": _tables(session, settings), "documents": documents_digest(session, facts)}


def seals_digest(seals: Iterable[str]) -> str:
    """Return the checksums of tables as one hash that does not depend on their order; each table names its run."""
    return digest(sorted(seals))


def documents_digest(session: Path, facts: Mapping[Path, Mapping[str, Any]]) -> str:
    """Return the checksums of the documents of contexts as one hash, from the facts of their tables."""
    return digest(
        {str(path.relative_to(session)): table_facts.get("documents_sha256") for path, table_facts in facts.items()}
    )


def _tables(session: Path, settings: Mapping[str, Any]) -> str:
    """Return the checksums of all tables, as one hash."""
    return seals_digest(read_footer(path)[1] for path in tables_of(session, settings))


def _contexts_of(session: Path, settings: Mapping[str, Any]) -> set[Path]:
    """Return the paths of the context tables of a session."""
    return {contexts_path(session, run, settings["tokenizers"][run.model]) for run in runs_of(settings)}


def tables_of(session: Path, settings: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the paths of the tables of estimates of a session, ordered by run, module, and estimator."""
    for run in runs_of(settings):
        for module in settings["modules"]:
            for estimator, _ in settings["estimators"]:
                yield ids_path(session, run, module, estimator)


def _are_current(session: Path, settings: Mapping[str, Any]) -> bool:
    """Return whether the tables of a session were computed from its current extractions."""
    for run in runs_of(settings):
        manifest = run_folder(session, run) / "manifest.json"
        if not manifest.is_file():
            return False
        extraction = read_record(manifest)["digest"]
        for module in settings["modules"]:
            for estimator, _ in settings["estimators"]:
                if read_facts(ids_path(session, run, module, estimator))["manifest"] != extraction:
                    return False
    return True


def check_current(summary: Path, facts: Mapping[str, Any]) -> None:
    """Raise a StoreError if the inputs of a summary changed: its tables were recomputed, or its contexts cut again.

    A summary that was copied without any table counts as current. If a table of contexts is missing, documents are not
    compared.
    """
    session = summary.parent
    if not any(path.is_file() for path in tables_of(session, facts)):
        return
    if facts["made_from"]["tables"] != _tables(session, facts) or not _are_current(session, facts):
        raise StoreError(f"{summary}: stale: its tables were recomputed after it was written; {made_anew(summary)}")
    has_all_contexts = all(path.is_file() for path in _contexts_of(session, facts))
    if has_all_contexts and facts["made_from"] != made_from(session, facts):
        raise StoreError(f"{summary}: stale: its contexts were cut again after it was written; {made_anew(summary)}")
