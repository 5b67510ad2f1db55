"""The estimates of a run that are not finished, side by side, each in a process of its own with a log of its own.

A table is staged as soon as it is finished, so it survives whatever happens to the others. An estimate that fails, or
whose process is killed, stops no other: the job fails at its end and names it, and the next attempt computes what is
missing only. Computes nothing itself and imports nothing heavy: each process loads what its estimates need.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from argparse import Namespace
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from id_scaling.errors import EstimateError
from id_scaling.runtime.locks import leased
from id_scaling.runtime.logging import LOG, start_logging
from id_scaling.runtime.workers import ChildError, ask_child, ending_children
from id_scaling.storage.records import read_record
from id_scaling.storage.staging import adopt, is_staged, open_staging, staged_table

MAX_SHOWN = 5  # failed tables that the error of a batch names


@dataclass(frozen=True)
class Table:
    """One table that a batch is to make: its settings, where it is staged and where declared, and its log."""

    settings: Mapping[str, Any]
    staged: Path
    declared: Path
    log: Path

    def __str__(self) -> str:
        return f"{self.settings['module']}/{self.settings['estimator']}"


@dataclass(frozen=True)
class Execution:
    """How a batch runs: on how many cores in all, and at most how many of one estimate.

    Where tables are forced, declared ones are not used again; what an attempt before staged is.
    """

    n_threads: int
    n_each: int = 1
    is_forced: bool = False
    is_verbose: bool = False


Failure = tuple[Table, str]


def estimate_batch(settings: Mapping[str, Any], manifest: Path, logs: Path, execution: Execution, output: Path) -> None:
    """Stage every table of a batch next to `output`, which is written once all of them are there.

    Parameters
    ----------
    settings : mapping
        `run`, the settings that all tables share; `estimators`, those of each estimator; `tables`, the estimators of
        each module.
    manifest : Path
        Of the run, next to whose folder `ids` the declared tables are.
    logs : Path
        Folder of the tables' logs.
    execution : Execution
    output : Path
        The marker.

    Raises
    ------
    EstimateError
        Tables failed; the others are staged.
    """
    staging, extraction = output.parent, read_record(manifest)["digest"]
    tables = list(_tables(settings, staging, manifest.parent / "ids", logs))
    with leased(staging):
        open_staging(staging, manifest)
        adopted = None if execution.is_forced else extraction
        missing = [table for table in tables if not _is_finished(table, adopted)]
        LOG.info("%d tables: %d finished before, %d to compute", len(tables), len(tables) - len(missing), len(missing))
        failures = _compute(missing, manifest, execution)
    if failures:
        raise EstimateError(_failed(failures, len(tables)))
    output.write_text(f"{len(tables)} tables\n")


def _tables(settings: Mapping[str, Any], staging: Path, declared: Path, logs: Path) -> Iterator[Table]:
    """Yield the tables of a batch, those of estimators that read points first: they take longest."""
    names = [(module, name) for module, estimators in settings["tables"].items() for name in estimators]
    for module, name in sorted(names, key=lambda names: settings["estimators"][names[1]]["max_seconds"] is None):
        of_table = {**settings["run"], "module": module, **settings["estimators"][name]}
        log = logs / module / f"{name}.log"
        yield Table(of_table, staged_table(staging, of_table), declared / module / f"{name}.parquet", log)


def _is_finished(table: Table, extraction: str | None) -> bool:
    """Return whether a table is staged, or declared, made from this extraction, and can be."""
    if is_staged(table.staged):
        return True
    if extraction is None or not adopt(table.staged, table.declared, table.settings, extraction):
        return False
    if table.log.is_file():
        _stage_log(table)
    return True


def _stage_log(table: Table) -> None:
    """Keep a table's log, which Snakemake deletes with the outputs before both are linked."""
    text = table.log.read_text(errors="replace").replace(str(table.staged), str(table.declared))
    table.staged.with_suffix(".log").write_text(text)


def _compute(tables: list[Table], manifest: Path, execution: Execution) -> list[Failure]:
    """Compute tables in as many processes as there are cores for; return those that failed, and what was wrong."""
    n_workers = max(1, min(len(tables), execution.n_threads // execution.n_each))
    is_over, failures = threading.Event(), []
    pool = ThreadPoolExecutor(n_workers)
    try:
        with ending_children():
            try:
                futures = {pool.submit(_compute_one, table, manifest, execution, is_over): table for table in tables}
                for number, future in enumerate(as_completed(futures), 1):
                    table, failure = futures[future], future.result()
                    failures += [(table, failure)] if failure else []
                    LOG.info("%d of %d: %s %s", number, len(tables), table, failure or "finished")
            except BaseException:
                is_over.set()  # before the processes are killed: no other is to take the place of one that was
                raise
    finally:
        pool.shutdown(cancel_futures=True)
    return failures


def _compute_one(table: Table, manifest: Path, execution: Execution, is_over: threading.Event) -> str:
    """Compute a table in the process of this thread; return what went wrong, if anything did."""
    if is_over.is_set():
        return "not begun"
    table.log.parent.mkdir(parents=True, exist_ok=True)
    arguments = {
        "verb": "estimate",
        "verbose": execution.is_verbose,
        "settings": dict(table.settings),
        "threads": min(execution.n_each, execution.n_threads),
        "manifest": manifest,
        "output": table.staged,
    }
    try:
        failure = ask_child(answer_estimate, arguments, table.log)
    except ChildError as error:
        failure = f"error: {error}"
        with open(table.log, "a") as log:
            log.write(f"{failure}\n")
    if not failure:
        _stage_log(table)
    return failure


def answer_estimate(arguments: Mapping[str, Any], log: Path) -> str:
    """Compute one table, in a process for that, all of whose output goes to the log; return its last line if it failed.

    Parameters
    ----------
    arguments : mapping
        Of the verb `estimate`.
    log : Path
        Replaced.
    """
    from id_scaling.cli.main import run_job

    with _output_to(log):
        LOG.handlers.clear()
        start_logging(arguments["verbose"])
        try:
            code = run_job(Namespace(**arguments))
        except Exception:  # noqa: BLE001  whatever an estimator raises fails its table only
            traceback.print_exc()
            code = 1
    return _last_line(log) if code else ""


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send standard output and error, those of this process's children too, to a file."""
    streams = [os.dup(1), os.dup(2)]
    try:
        with open(path, "wb") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, stream in enumerate(streams, 1):
            os.dup2(stream, number)
            os.close(stream)


def _last_line(log: Path) -> str:
    """Return the last line of a log that says something."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no word in its log"


def _failed(failures: list[Failure], n_tables: int) -> str:
    """Return the error of a batch: which tables failed, why, and what becomes of the others."""
    lines = [f"{table}: {failure} ({table.log})" for table, failure in failures[:MAX_SHOWN]]
    more = f"; and {len(failures) - MAX_SHOWN} more" if len(failures) > MAX_SHOWN else ""
    return (
        f"{len(failures)} of {n_tables} tables failed: {'; '.join(lines)}{more}. The other "
        f"{n_tables - len(failures)} are finished and kept: the next attempt, or run, computes only what failed"
    )
