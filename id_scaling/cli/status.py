"""How far a session is, read off what is there: outputs, logs and leases, while its jobs run or after.

A job is done where its outputs are there and their records say that they are what the study would make now; `check`
reads what is in them.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

from id_scaling.cli.plan import duration
from id_scaling.runtime.locks import STALE, Holder, read_holder
from id_scaling.runtime.logging import plain
from id_scaling.sources import bundled
from id_scaling.sources.cache import RESOURCES
from id_scaling.storage.layer_writer import CONTEXTS_A_PART
from id_scaling.storage.layout import (
    Run,
    called,
    contexts_path,
    figures_manifest_path,
    identity_path,
    ids_path,
    run_folder,
    staging_folder,
    weights_folder,
)
from id_scaling.study.staleness import Staleness
from id_scaling.study.study import Study
from id_scaling.text.shuffling import NONE

STAGES = ("prepare", "fetch", "chunk", "extract", "estimate", "summarize", "plot")
STATES = ("done", "stale", "running", "failed", "to do")
MOST_ERRORS, MOST_RUNNING = 5, 20
# With these widths a line has 80 characters, its pace included.
BAR, WIDTHS = 9, tuple(max(7, len(state) + 1) for state in STATES)
DAY = 86_400
# Bytes at the end of a log that are read: its last error, or its last word of progress, is there.
TAIL = 16_384

_ERROR = re.compile(r"^(?:error|ended): .*$", re.MULTILINE)
# Of a job that Ctrl-C ended, in its own words, or in Python's where that was before it could say so.
_INTERRUPTED = re.compile(r"^ended: interrupted |^error: KeyboardInterrupt")
_TRACEBACK = re.compile(r"^Traceback \(most recent call last\):$", re.MULTILINE)
_WROTE = re.compile(r"^\d\d:\d\d:\d\d wrote ")
_CLOCK = re.compile(r"^(\d\d):(\d\d):(\d\d) ", re.MULTILINE)
_CONTEXTS = re.compile(r" (?P<total>\d+) contexts of \d+ tokens, ")
_PROGRESS = re.compile(r" extracted context (?P<done>\d+) of (?P<total>\d+), (?P<pace>.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Job:
    """One job of a session.

    Parameters
    ----------
    stage : str
        One of `STAGES`.
    outputs : tuple of Path
        What is there once it is done.
    log : Path
        Its log.
    run : Run or None
        What it extracts, if it does.
    is_timed : bool
        Whether its outputs say when it ended.
    leased : Path or None
        The folder whose lease its process holds, if it does: that of a batch for all estimates of a run.
    """

    stage: str
    outputs: tuple[Path, ...]
    log: Path
    run: Run | None = None
    is_timed: bool = True
    leased: Path | None = None


@dataclass(frozen=True)
class Failure:
    """A job that failed: when, its log, and what that says of it."""

    when: float
    log: Path
    words: str


@dataclass(frozen=True)
class Status:
    """How far a session is.

    Parameters
    ----------
    counts : Counter of (str, str)
        How many jobs of a stage are in a state.
    rates : dict of float
        How many jobs a second a stage has had since the session was taken, of those of which it is known.
    extracting : list of str
        How far each extraction is that runs.
    failures : list of Failure
        Newest first.
    holder : Holder or None
        Who works on the session.
    """

    counts: Counter[tuple[str, str]]
    rates: dict[str, float]
    extracting: list[str]
    failures: list[Failure]
    holder: Holder | None


def jobs_of(study: Study) -> Iterator[Job]:
    """Yield every job of a study, with the paths that the rules of the workflow name."""
    session = Path(study.session)
    yield from _prepared(study)
    yield from _fetched(study, session)
    for names, run in _texts(study).items():
        rule = "chunk_dataset" if run.control == NONE else "shuffle_contexts"
        contexts = contexts_path(session, run, study.tokenizer_of(run.model))
        yield Job("chunk", (contexts,), _log(session, rule, *names))
    for run in study.runs:
        folder, log = run_folder(session, run), _log(session, "extract_activations", *_names(run))
        yield Job("extract", (folder / "manifest.json",), log, run, leased=folder)
    for run in study.runs:
        for module in study.modules:
            for estimator in study.estimators:
                log = _log(session, "estimate_dimension", *_names(run), module, estimator)
                table = ids_path(session, run, module, estimator)
                yield Job("estimate", (table,), log, leased=staging_folder(session, run))
    if study.estimators:
        yield Job("summarize", tuple(map(Path, study.summaries())), _log(session, "summarize"))
        drawn = map(Path, [*study.figures(), study.report()])
        yield Job("plot", (*drawn, figures_manifest_path(session)), _log(session, "plot"))


def status_of(study: Study) -> Status:
    """Return how far the session of a study is."""
    session = Path(study.session)
    holder, holder_of = _holder(session), cache(_holder)
    counts, ends, extracting, failures = Counter(), defaultdict(list), [], []
    has_lengths = len(study.config.ctx_len) > 1
    stale = Staleness(study).stale
    for job in jobs_of(study):
        end = _end(job)
        by_outputs = "stale" if end and not stale.keys().isdisjoint(map(str, job.outputs)) else "done" if end else ""
        state, words = _state(job, by_outputs, end, holder, job.leased and holder_of(job.leased))
        counts[job.stage, state] += 1
        if state == "done" and job.is_timed:
            ends[job.stage].append((end, job.log))
        if state == "failed":
            failures.append(Failure(job.log.stat().st_mtime, job.log, words))
        if state == "running" and job.run:
            name = called(vars(job.run), has_lengths)
            extracting.append(f"{name}: {_progress(run_folder(session, job.run), job.log)}")
    since = _seconds(holder.since) if holder else 0.0
    rates = {stage: rate for stage, of in ends.items() if since and (rate := _rate(of, since))}
    return Status(counts, rates, extracting, sorted(failures, key=lambda one: -one.when), holder)


def report(study: Study, status: Status) -> str:
    """Return how far a session is, as text."""
    lines = [f"{study.config.session_name}: {study.session}", *_table(status)]
    if status.extracting:
        lines += ["", "extracting", *_first(status.extracting, MOST_RUNNING)]
    if status.failures:
        errors = [f"{one.words}\n    {_clock(one.when)} {one.log}" for one in status.failures]
        lines += ["", "errors, newest first", *_first(errors, MOST_ERRORS)]
    return "\n".join(
        [
            *lines,
            "",
            f"held by    {status.holder or 'nobody: no Snakemake works on this session'}",
            f"logs       {study.session}/logs/RULE/…, one a job; Snakemake's own: .snakemake/log where it was started",
            "A job is done where its output is what the study would make now, by its record; `check` reads every byte.",
        ]
    )


# ---- which jobs there are --------------------------------------------------------------------------------------


def _prepared(study: Study) -> Iterator[Job]:
    """Yield what is made of embedded models and texts, once for all sessions."""
    named = {*study.tokenizers.values(), *(model.model_name for model in study.config.models)}
    trained = sorted(named & set(bundled.TRAINED))
    if bundled.SMOLLM2 in named:
        folder = RESOURCES / bundled.SMOLLM2
        outputs = (folder / "model.safetensors", folder / "tokenizer.json")
        yield Job("prepare", outputs, _log(RESOURCES, "prepare_model"))
    for name in sorted(
        {*(data.dataset_name for data in study.config.datasets), *(bundled.DATASETS if trained else ())}
    ):
        if name in bundled.DATASETS:
            outputs = tuple(RESOURCES / name / f"{shard:04d}.parquet" for shard in range(len(bundled.SOTU_SHARDS)))
            yield Job("prepare", outputs, _log(RESOURCES, "prepare_dataset"))
    if trained or bundled.TRAINED_TOKENIZER in named:
        outputs = (RESOURCES / bundled.TRAINED_TOKENIZER / "tokenizer.json",)
        yield Job("prepare", outputs, _log(RESOURCES, "train_tokenizer"))
    for name in trained:
        outputs = tuple(RESOURCES / name / f"step{step}/model.safetensors" for step in bundled.TRAINED_STEPS)
        yield Job("prepare", outputs, _log(RESOURCES, "train_model", name), leased=RESOURCES / name)


def _fetched(study: Study, session: Path) -> Iterator[Job]:
    """Yield what is fetched; weights of a run that is extracted may be gone again."""
    for dataset, subset in dict.fromkeys((run.dataset, str(run.subset)) for run in study.runs):
        output = identity_path(session, "datasets", dataset, subset)
        yield Job("fetch", (output,), _log(session, "fetch_dataset", dataset, subset))
    for tokenizer in study.tokenizers:
        output = identity_path(session, "tokenizers", tokenizer)
        yield Job("fetch", (output,), _log(session, "fetch_tokenizer", tokenizer))
    for names in dict.fromkeys((run.model, run.checkpoint) for run in study.runs):
        yield Job("fetch", (identity_path(session, "models", *names),), _log(session, "fetch_model", *names))
    for run in study.runs:
        if study.is_on_hub(run.model, run.checkpoint):
            manifest = run_folder(session, run) / "manifest.json"
            is_there = not manifest.is_file()
            output = weights_folder(session, run) if is_there else manifest
            yield Job("fetch", (output,), _log(session, "fetch_weights", *_names(run)), is_timed=is_there)


def _texts(study: Study) -> dict[tuple[str, ...], Run]:
    """Return what contexts are made from, and a run that reads them; those of a control are made of the plain ones."""
    runs = [replace(run, control=control) for control in (NONE, *study.config.controls) for run in study.runs]
    names = [(run.dataset, run.subset, study.tokenizer_of(run.model), run.ctx_len, run.control) for run in runs]
    return dict(zip((tuple(map(str, one)) for one in names), runs, strict=True))


def _names(run: Run) -> tuple[str, ...]:
    """Return the names of a run in paths."""
    return tuple(map(str, vars(run).values()))


def _log(folder: Path, rule: str, *names: str) -> Path:
    """Return the log of a job, as its rule names it."""
    return folder.joinpath("logs", rule, *names[:-1], f"{names[-1]}.log") if names else folder / f"logs/{rule}.log"


# ---- how far they are ------------------------------------------------------------------------------------------


def _end(job: Job) -> float:
    """Return when the last output of a job was written; 0 where one is not there."""
    try:
        return max(os.stat(output).st_mtime for output in job.outputs)
    except OSError:
        return 0.0


def _rate(ends: list[tuple[float, Path]], since: float) -> float | None:
    """Return how many jobs a second have ended since a time, counted from when the first of them began.

    None where there are fewer than two. Where none has ended for longer than it took on average, the time goes on.
    """
    ends = sorted(end for end in ends if end[0] >= since)
    if len(ends) < 2:
        return None
    (first, log), (last, _) = ends[0], ends[-1]
    begun = max(since, first - _lasted(log))
    each = (last - begun) / len(ends)
    return len(ends) / max(last - begun, time.time() - begun - each, 1.0)


def _lasted(log: Path) -> float:
    """Return the seconds from the first to the last line of a log, by their clocks; infinite where it has none."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    clocks = [3600 * int(hour) + 60 * int(minute) + int(second) for hour, minute, second in _CLOCK.findall(text)]
    return sum((later - earlier) % DAY for earlier, later in pairwise(clocks)) if clocks else math.inf


def _state(job: Job, by_outputs: str, end: float, holder: Holder | None, worker: Holder | None) -> tuple[str, str]:
    """Return the state of a job, and what its log says of a failure.

    Parameters
    ----------
    job : Job
    by_outputs : str
        `done` or `stale` where all outputs are there, else empty. A job may be making them again: estimates, the
        summary and figures are kept until they are replaced.
    end : float
        When the last output was written.
    holder, worker : Holder or None
        Who holds the session, and the folder that the job writes.
    """
    if worker and job.stage != "estimate":
        return "running", ""  # also where no Snakemake is left that waits for it
    state, words = _state_by_log(job, end, holder or worker, worker)
    is_kept = (by_outputs == "done" and state != "running") or (by_outputs == "stale" and state == "to do")
    return (by_outputs, "") if is_kept else (state, words)


def _state_by_log(job: Job, end: float, holder: Holder | None, worker: Holder | None) -> tuple[str, str]:
    """Return the state of a job by its log, and what that says of a failure."""
    if not job.log.is_file():
        return "to do", ""
    written, tail = job.log.stat().st_mtime, _tail(job.log)
    words, is_written = _failure(tail), _WROTE.match(_last(tail)) is not None
    if _INTERRUPTED.match(words):
        return "to do", ""
    if holder is None:
        # An output that was written is there, or was removed.
        return ("to do", "") if is_written and not words else ("failed", words or _cut_short(tail))
    since = _seconds(holder.since)
    if written < since:  # the log of a session before: the job's turn in this one is to come
        return "to do", ""
    if words or _is_left(job, written, worker):
        return "failed", words or _cut_short(tail)
    if is_written and job.stage == "estimate" and end < since:
        return "done", ""  # a finished table waits for the others of its run, before its own job links it
    is_over = end > 0 and (is_written or written <= end)
    return ("to do" if is_over else "running"), ""


def _is_left(job: Job, written: float, worker: Holder | None) -> bool:
    """Return whether an extraction was killed: its log is quiet for long, and nobody holds its run."""
    return job.run is not None and worker is None and time.time() - written >= STALE


def _holder(folder: Path) -> Holder | None:
    """Return who holds the lease of a folder, unless it is stale."""
    path = folder / ".lease"
    holder = read_holder(path)
    try:
        age = time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return None
    return None if holder is None or holder.is_gone(age) else holder


def _seconds(since: str) -> float:
    """Return when a lease was taken, as files' times are counted; 0 where that is not known."""
    try:
        return time.mktime(time.strptime(since, "%Y-%m-%d %H:%M:%S"))
    except ValueError:
        return 0.0


def _tail(log: Path) -> str:
    """Return the end of a log."""
    with open(log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
        return file.read().decode(errors="replace")


def _last(tail: str) -> str:
    """Return the last line that says something."""
    return next((line.strip() for line in reversed(tail.splitlines()) if line.strip()), "")


def _failure(tail: str) -> str:
    """Return the line in which a log says that its job failed; empty where it does not."""
    if errors := _ERROR.findall(tail):
        return plain(errors[-1])
    return f"error: {plain(_last(tail))}" if _TRACEBACK.search(tail) else ""


def _cut_short(tail: str) -> str:
    """Return what is to be said of a log that neither an error nor an output ends."""
    return f"error: no output, and no error in the log; its last line: {plain(_last(tail)) or '(empty)'}"


def _progress(folder: Path, log: Path) -> str:
    """Return how many contexts of a run are extracted: by its log, and in the parts that a kill would leave."""
    tail = _tail(log) if log.is_file() else ""
    n_kept = CONTEXTS_A_PART * sum(1 for _ in folder.glob("parts/*/contexts_*"))
    said, begun = list(_PROGRESS.finditer(tail)), _CONTEXTS.search(tail)
    if said:
        n_total, done = int(said[-1]["total"]), max(int(said[-1]["done"]), min(n_kept, int(said[-1]["total"])))
        return f"{done} of {n_total} contexts, {min(n_kept, n_total)} of them kept in parts, {plain(said[-1]['pace'])}"
    if begun:
        return f"{min(n_kept, int(begun['total']))} of {begun['total']} contexts, time left unknown"
    return f"{n_kept} contexts in parts, starting" if n_kept else "starting"


# ---- words -----------------------------------------------------------------------------------------------------


def _table(status: Status) -> list[str]:
    """Return the lines of the table of stages and states, with how fast a stage is that goes on, and its time left."""
    lines = [" " * (10 + BAR + 2) + "".join(map(str.rjust, STATES, WIDTHS))]
    for stage in STAGES:
        numbers = [status.counts[stage, state] for state in STATES]
        if n_total := sum(numbers):
            done, stale, running, _, to_do = numbers
            n_left = stale + running + to_do
            bar = "#" * (BAR * done // n_total)
            cells = "".join(f" {number:,}".rjust(width) for number, width in zip(numbers, WIDTHS, strict=True))
            pace = _pace(status.rates[stage], n_left) if stage in status.rates and n_left else ""
            lines.append(f"{stage.ljust(10)}[{bar.ljust(BAR, '-')}]{cells}{pace}")
    return lines


def _pace(rate: float, n_left: int) -> str:
    """Return a rate of jobs a second, and the time that some more take at it."""
    unit, seconds = ("min", 60) if 60 * rate >= 0.1 else ("h", 3600)
    number = seconds * rate
    said = f"{number:,.{0 if number >= 9.95 else 1}f}/{unit}"
    return said.rjust(10) + f"{duration(n_left / rate)} left".rjust(13)


def _first(lines: list[str], n: int) -> list[str]:
    """Return the first lines of a list, indented, and how many more there are."""
    more = [f"  … {len(lines) - n} more"] if len(lines) > n else []
    return [f"  {line}" for line in lines[:n]] + more


def _clock(when: float) -> str:
    """Return a time as users read it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
