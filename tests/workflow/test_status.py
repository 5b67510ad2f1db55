"""How far a session is: what `status` says before, during and after it, and that every log says what was done."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import Workflow, save_text, save_tiny_llama, study

from id_scaling.cli.main import main
from id_scaling.cli.status import BAR, MOST_ERRORS, Status, report, status_of
from id_scaling.runtime.locks import STALE, Lease
from id_scaling.runtime.logging import LOG
from id_scaling.storage.layout import ids_path, run_folder
from id_scaling.storage.records import read_table, write_record, write_table
from id_scaling.study.jobs import Job, jobs_of
from id_scaling.study.staleness import Staleness
from id_scaling.study.study import Study

LINE = r"\d\d:\d\d:\d\d "


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """A session of one run, at its end; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    config = study(save_tiny_llama(folder / "model"), save_text(folder / "text"))
    config["cacheing_config"] |= {"module_inblock_keys": ["mlp"], "module_outblock_keys": ["unemb"]}
    config["cacheing_config"]["save_IDs_list"] = ["mle"]
    workflow = Workflow(folder, config)
    workflow.run()
    return workflow


@pytest.fixture
def session(whole: Workflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workflow:
    """A copy of that session, in the current directory, to be changed."""
    shutil.copytree(whole.folder, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return Workflow(tmp_path / "copy", json.loads(json.dumps(whole.config)))


@pytest.fixture
def hold() -> Any:
    """Take leases, as if some seconds ago; they are given back at the end."""
    leases = []

    def take(folder: Path, seconds_ago: float = 0) -> None:
        leases.append(Lease(folder / ".lease"))
        assert leases[-1].take() is None
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - seconds_ago))
        written = json.loads(leases[-1].path.read_text())
        leases[-1].path.write_text(json.dumps({**written, "since": since}))

    yield take
    for lease in leases:
        lease.release()


def said(session: Workflow, capsys: pytest.CaptureFixture) -> str:
    """Return what the verb prints; it must succeed and log nothing."""
    LOG.handlers.clear()
    capsys.readouterr()
    assert main(["status", str(session.folder / "study.yaml")]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    return found.out


def counts(text: str) -> dict[str, list[int]]:
    """Return the numbers of the table: done, stale, running, failed, to do, by stage."""
    numbers = r" +([\d,]+)" * 5
    rows = re.findall(rf"^(\w+) +\[#*-*\]{numbers}(?: .* left)?$", text, flags=re.MULTILINE)
    return {stage: [int(number.replace(",", "")) for number in numbers] for stage, *numbers in rows}


def job(session: Workflow, stage: str) -> Job:
    """Return the first job of a stage."""
    return next(one for one in jobs_of(Study(session.config)) if one.stage == stage)


def leave(job: Job, log: str, seconds_ago: float = 0) -> None:
    """Have a job without outputs, and with a log that was last written some seconds ago."""
    for output in job.outputs:
        output.unlink(missing_ok=True)
    job.log.parent.mkdir(parents=True, exist_ok=True)
    job.log.write_text(log)
    os.utime(job.log, (time.time() - seconds_ago,) * 2)


def state_of(session: Workflow, stage: str) -> str:
    """Return the one state of the first job of a stage, of which there is no other without outputs."""
    found = status_of(Study(session.config)).counts
    (state,) = {state for (of, state), number in found.items() if of == stage and number and state != "done"}
    return state


# ---- a whole session -------------------------------------------------------------------------------------------


def test_before_anything_all_is_to_do(tmp_path: Path, workflow: Workflow, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    text = said(workflow, capsys)
    assert counts(text) == {
        "fetch": [0, 0, 0, 0, 3],
        "chunk": [0, 0, 0, 0, 1],
        "extract": [0, 0, 0, 0, 1],
        "estimate": [0, 0, 0, 0, 15],
        "summarize": [0, 0, 0, 0, 1],
        "plot": [0, 0, 0, 0, 1],
    }
    assert "held by    nobody" in text
    assert "errors" not in text
    assert not (tmp_path / "results").exists()


def test_after_a_run_all_is_done(session: Workflow, capsys: pytest.CaptureFixture) -> None:
    text = said(session, capsys)
    rows = counts(text)
    assert {stage: numbers[0] for stage, numbers in rows.items()} == {
        **dict.fromkeys(("chunk", "extract", "summarize", "plot"), 1),
        "fetch": 3,
        "estimate": 2,
    }
    assert all(numbers[1:] == [0, 0, 0, 0] for numbers in rows.values())
    assert "held by    nobody" in text
    assert "results/tiny/logs/" in text
    assert "`check` reads every byte" in text


def test_each_log_begins_with_the_settings_and_ends_with_what_was_written(session: Workflow) -> None:
    logs = {path: path.read_text().splitlines() for path in Path("results/tiny/logs").rglob("*.log")}
    # Of three fetches, the cut, the extraction, its batch of two tables, and of the summary and the figures.
    assert len(logs) == 10
    for log, (first, *_, last) in logs.items():
        assert re.match(rf"{LINE}[a-z-]+ \S+=\S", first), (log, first)
        assert re.match(rf"{LINE}wrote \S+ \(\d+ (rows|contexts|bytes)\)", last), (log, last)
    (extracted,) = (lines for log, lines in logs.items() if "extract_activations" in log.parts)
    run = Study(session.config).runs[0]
    for word in ("extract", f"model={run.model}", "subset=0", "dtype=auto", "batch_size=2"):
        assert word in extracted[0].split()
    assert extracted[-1].endswith("/manifest.json (11 contexts)")
    (estimated,) = (lines for log, lines in logs.items() if log.parts[-2:] == ("mlp", "mle.log"))
    assert {"estimate", "module=mlp", "estimator=mle"} <= set(estimated[0].split())
    assert estimated[-1].endswith("/ids/mlp/mle.parquet (66 rows)")  # 11 contexts, two layers, three views


# ---- how fast it is --------------------------------------------------------------------------------------------

LASTED_100 = "23:59:20 estimate\n23:59:50 in between\n00:01:00 wrote it (44 rows)\n"
LASTED_300 = "12:00:00 estimate\n12:05:00 wrote it (44 rows)\n"


def pace_of(session: Workflow, capsys: pytest.CaptureFixture, ends: list[float], log: str) -> str:
    """Return what is said of the pace of 20 estimates, two of which ended before, and some so many seconds ago."""
    session.config["cacheing_config"]["save_IDs_list"] = ["mle", *(f"mle_k{number}" for number in range(5, 14))]
    session.write()
    for path in session.session.glob("runs/*/*/*/*/*/*/ids/*/*.parquet"):
        os.utime(path, (time.time() - 10_000,) * 2)
    made = Study(session.config)
    _, facts = read_table(ids_path(Path(made.session), made.runs[0], "mlp", "mle"))
    to_do = [one for one in jobs_of(made) if one.stage == "estimate" and not one.outputs[0].exists()]
    assert len(to_do) == 18
    for one, ago in zip(to_do, ends, strict=False):
        leave(one, log, seconds_ago=ago)
        (output,) = one.outputs
        settings = made.estimate_settings(made.runs[0], output.parent.name, output.stem)
        write_table(output, pl.DataFrame(), {**facts, "settings": json.loads(settings)})
        os.utime(one.outputs[0], (time.time() - ago,) * 2)
    text = said(session, capsys)
    assert counts(text)["estimate"] == [2 + len(ends), 0, 0, 0, 18 - len(ends)]
    assert all(len(line) <= 80 for line in text.splitlines() if "[" in line)
    (pace,) = re.findall(rf"^estimate  \[[#-]{{{BAR}}}\](?: +\d+){{5}}(.*)$", text, flags=re.MULTILINE)
    return " ".join(pace.split())


@pytest.mark.parametrize(
    ("ends", "log", "words"),
    [
        # One each 100 s, the first of which took as long; 14 are left.
        ([400, 300, 200, 100], LASTED_100, "0.6/min 23 min left"),
        # The same, until 590 s ago; the next would have ended 490 s ago: 4 in 890 s.
        ([890, 790, 690, 590], LASTED_100, "0.3/min 52 min left"),
        # Four at once, of 300 s: one each 75 s, and for 25 s longer none: 4 in 325 s.
        ([100, 100, 100, 100], LASTED_300, "0.7/min 19 min left"),
        # No clock says when they began, so it was with the session, 2000 s ago: 2 in 1600 s, and 16 are left.
        ([1200, 400], "", "4.5/h 3.6 h left"),
        # They began before the session was taken: 17 in 2000 s, and one is left.
        ([10.0] * 17, "12:00:00 estimate\n13:00:00 wrote it (44 rows)\n", "0.5/min 2.0 min left"),
    ],
    ids=["steady", "stalled", "at once", "no clock", "before"],
)
def test_pace_is_of_what_ended_since_the_session_was_taken(
    session: Workflow, hold: Callable, capsys: pytest.CaptureFixture, ends: list[float], log: str, words: str
) -> None:
    hold(session.session, seconds_ago=2000)
    assert pace_of(session, capsys, ends, log) == words


@pytest.mark.parametrize("ends", [[], [100], [3000, 2500, 100]], ids=["none", "one", "one since"])
def test_fewer_than_two_ends_say_nothing_of_a_pace(
    session: Workflow, hold: Callable, capsys: pytest.CaptureFixture, ends: list[float]
) -> None:
    hold(session.session, seconds_ago=2000)
    assert pace_of(session, capsys, ends, LASTED_100) == ""


def test_nothing_has_a_pace_where_nobody_works(session: Workflow, capsys: pytest.CaptureFixture) -> None:
    assert pace_of(session, capsys, [300, 200, 100], LASTED_100) == ""


def test_bar_is_full_once_all_is_done(session: Workflow, hold: Callable, capsys: pytest.CaptureFixture) -> None:
    hold(session.session, seconds_ago=2000)
    bars = dict(re.findall(r"^(\w+) +\[(.*)\].* 0$", said(session, capsys), flags=re.MULTILINE))
    assert bars.keys() == {"fetch", "chunk", "extract", "estimate", "summarize", "plot"}
    assert set(bars.values()) == {"#" * BAR}


# ---- a session that failed -------------------------------------------------------------------------------------


def test_broken_estimate_is_shown_with_its_error_and_log(session: Workflow, capsys: pytest.CaptureFixture) -> None:
    # As long as before: one that is missing or cut would be extracted again.
    layer = next(session.session.glob("runs/*/*/*/*/*/*/layer_00.h5"))
    layer.write_bytes(bytes(layer.stat().st_size))
    failed = [one for one in jobs_of(Study(session.config)) if one.stage == "estimate" and "mlp" in one.log.parts]
    failed[0].outputs[0].unlink()
    session.run("all", str(failed[0].outputs[0]), is_ok=False)
    text = said(session, capsys)
    assert counts(text)["estimate"] == [1, 0, 0, 1, 0]
    words = re.search(r"^  error: (.*)\n    \S+ \S+ (\S+)$", text, flags=re.MULTILINE)
    assert "layer_00.h5: damaged (" in words[1]
    assert words[2] == str(failed[0].log)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("12:00:00 chunk\nerror: no text\n  in it\n", "error: no text"),
        ("12:00:00 chunk\nended: the system asked for it\n", "ended: the system asked for it"),
        ("Traceback (most recent call last):\n  File …\nValueError: odd\n", "error: ValueError: odd"),
        (
            "12:00:00 cut context 3\n",
            "error: no output, and no error in the log; its last line: 12:00:00 cut context 3",
        ),
        ("", "error: no output, and no error in the log; its last line: (empty)"),
        ("error: \x1b[2Jhttps://me:secret@host\n", "error: \\x1b[2Jhttps://***@host"),
    ],
    ids=["error", "ended", "traceback", "killed", "empty", "secret"],
)
def test_log_without_an_output_says_why(session: Workflow, log: str, words: str) -> None:
    leave(job(session, "chunk"), log)
    (failure,) = status_of(Study(session.config)).failures
    assert failure.words == words


@pytest.mark.parametrize(
    "log",
    [
        "12:00:00 chunk\nended: interrupted (SIGINT), as by Ctrl-C\n",
        "Traceback (most recent call last):\n  File …\nKeyboardInterrupt\n",
    ],
    ids=["said by the job", "said by Python"],
)
def test_job_that_was_interrupted_is_to_do(session: Workflow, log: str) -> None:
    leave(job(session, "chunk"), log)
    assert state_of(session, "chunk") == "to do"


def test_after_ctrl_c_nothing_has_failed_and_nothing_runs(
    session: Workflow, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal sends SIGINT to Snakemake, its shells, their programs and `tee` at once."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    shutil.rmtree(session.session)
    process = subprocess.Popen(
        session.command(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=session.environment(),
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        while not any(path.stat().st_size for path in session.session.glob("logs/*/**/*.log")):
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=120) != 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    found = status_of(Study(session.config))
    assert [one.words for one in found.failures] == []
    assert sum(number for (_, state), number in found.counts.items() if state in ("running", "failed")) == 0
    assert found.holder is None


def test_error_is_found_at_the_end_of_a_long_log(session: Workflow) -> None:
    leave(job(session, "chunk"), "12:00:00 cut context\n" * 100_000 + "error: no more\n")
    assert [one.words for one in status_of(Study(session.config)).failures] == ["error: no more"]


def test_estimate_that_waits_to_be_linked_is_done(session: Workflow, hold: Callable) -> None:
    hold(session.session, seconds_ago=100)
    estimate = job(session, "estimate")
    for log, state in (
        ("12:00:00 estimate\n", "running"),
        ("12:00:00 estimate\n12:00:01 wrote it (44 rows)\n", "done"),
    ):
        leave(estimate, log)
        found = status_of(Study(session.config)).counts
        assert (found["estimate", "running"], found["estimate", "done"]) == {"running": (1, 1), "done": (0, 2)}[state]


KEPT = ["estimate", "summarize", "plot"]


def make_stale(session: Workflow, stage: str, monkeypatch: pytest.MonkeyPatch, log: str, ago: float) -> Job:
    """Have stale outputs of a stage, and a log of a job that makes them again; return the first job of it."""
    chosen = job(session, stage)
    monkeypatch.setattr(Staleness, "stale", property(lambda _: {str(path): "edited" for path in chosen.outputs}))
    for path in chosen.outputs:
        os.utime(path, (time.time() - 10_000,) * 2)
    chosen.log.write_text(log)
    os.utime(chosen.log, (time.time() - ago,) * 2)
    return chosen


@pytest.mark.parametrize("stage", KEPT)
@pytest.mark.parametrize(
    ("log", "ago", "state"),
    [
        ("12:00:00 begun\n", 5, "running"),
        ("", 5, "running"),
        ("12:00:00 begun\nerror: no room\n", 5, "failed"),
        ("12:00:00 begun\n12:00:01 wrote it (44 rows)\n", 500, "stale"),  # of the session before
        ("12:00:00 begun\n", 500, "stale"),
    ],
)
def test_stale_outputs_that_are_being_made_again(
    session: Workflow, hold: Callable, monkeypatch: pytest.MonkeyPatch, stage: str, log: str, ago: float, state: str
) -> None:
    hold(session.session, seconds_ago=100)
    make_stale(session, stage, monkeypatch, log, ago)
    assert state_of(session, stage) == state


@pytest.mark.parametrize(("stage", "state"), [("estimate", "done"), ("summarize", "stale")])
def test_stale_outputs_of_a_job_that_has_just_ended(
    session: Workflow, hold: Callable, monkeypatch: pytest.MonkeyPatch, stage: str, state: str
) -> None:
    """A new table waits to be linked; a summary was stale again since it was written."""
    hold(session.session, seconds_ago=100)
    make_stale(session, stage, monkeypatch, "12:00:00 begun\n12:00:01 wrote it (44 rows)\n", 5)
    found = status_of(Study(session.config)).counts
    assert found[stage, state] == {"estimate": 2, "summarize": 1}[stage]


def test_fresh_outputs_that_are_being_made_again_as_forced_are_running(session: Workflow, hold: Callable) -> None:
    hold(session.session, seconds_ago=100)
    job(session, "summarize").log.write_text("12:00:00 begun\n")
    assert state_of(session, "summarize") == "running"


@pytest.mark.parametrize("with_log", [True, False])
def test_what_holds_its_folder_runs_though_no_snakemake_is_left(
    session: Workflow, hold: Callable, with_log: bool
) -> None:
    """As on a cluster, whose jobs outlive the process that submitted them."""
    extract, estimate = job(session, "extract"), job(session, "estimate")
    leave(estimate, "12:00:00 begun\n")
    assert state_of(session, "estimate") == "failed"
    hold(estimate.leased, seconds_ago=10)
    assert state_of(session, "estimate") == "running"
    hold(extract.leased)
    if not with_log:
        extract.log.unlink()
    assert state_of(session, "extract") == "running"  # its manifest is there


def test_output_that_was_removed_is_to_do(session: Workflow) -> None:
    job(session, "chunk").outputs[0].unlink()
    assert state_of(session, "chunk") == "to do"


def test_newest_errors_are_shown_and_the_others_counted(tmp_path: Path, workflow: Workflow, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = [one for one in jobs_of(Study(workflow.config)) if one.stage == "estimate"][: MOST_ERRORS + 2]
    for number, one in enumerate(jobs):
        leave(one, f"error: number {number}\n", seconds_ago=100 - number)
    text = report(Study(workflow.config), status_of(Study(workflow.config)))
    assert re.findall(r"error: number (\d)", text) == ["6", "5", "4", "3", "2"]
    assert "… 2 more" in text


# ---- a session that runs ---------------------------------------------------------------------------------------


def extracting(session: Workflow, n_parts: int = 0, note: dict[str, Any] | None = None, seconds_ago: float = 0) -> Path:
    """Leave an extraction without its manifest, with some parts and its note; return the folder of its run."""
    leave(job(session, "extract"), "12:00:00 extract model=m\n", seconds_ago)
    folder = run_folder(Path("results/tiny"), Study(session.config).runs[0])
    parts = folder / "parts/0123456789ab"
    for part in range(n_parts):
        (parts / f"contexts_{8 * part:07d}").mkdir(parents=True)
    (parts / ".contexts_0000999.tmp-1").mkdir(parents=True)  # half a part
    if note:
        write_record(parts / "progress.json", note)
    return folder


BEGUN = {"done": 0, "total": 200, "pace": None, "time": 4e9}
GOING = {"done": 9, "total": 200, "pace": 0.8, "time": 4e9}


@pytest.mark.parametrize(
    ("n_parts", "note", "words"),
    [
        (0, None, "starting"),
        (1, None, "8 contexts in parts, starting"),
        (0, BEGUN, "0 of 200 contexts, time left unknown"),
        (25, BEGUN, "200 of 200 contexts, time left unknown"),
        (1, GOING, "9 of 200 contexts, 8 of them kept in parts, 1.25 s each, 239 s left"),
        (2, {**GOING, "total": 9}, "9 of 9 contexts, 9 of them kept in parts, 1.25 s each, 0 s left"),
        # Of the process before, as its time says.
        (1, {**GOING, "time": 1e9}, "8 contexts in parts, starting"),
        (1, {**GOING, "x": 1}, "8 contexts in parts, starting"),
    ],
)
def test_extraction_that_runs_says_how_far_it_is(
    session: Workflow, hold: Callable, capsys: pytest.CaptureFixture, n_parts: int, note: dict | None, words: str
) -> None:
    hold(session.session)
    hold(extracting(session, n_parts, note))
    text = said(session, capsys)
    assert counts(text)["extract"] == [0, 0, 1, 0, 0]
    (line,) = re.findall(r"^extracting\n  .* · main · .* · 0 · none: (.*)$", text, flags=re.MULTILINE)
    assert line == words
    assert re.search(rf"^held by    process {os.getpid()} on \S+ since 20", text, flags=re.MULTILINE)


@pytest.mark.parametrize("damage", ["", '{"done":9', "[]", "null", "\x00", json.dumps(GOING)])
def test_damaged_progress_is_no_error(
    session: Workflow, hold: Callable, capsys: pytest.CaptureFixture, damage: str
) -> None:
    hold(session.session)
    folder = extracting(session, n_parts=1, note=GOING)
    hold(folder)
    assert "9 of 200 contexts" in said(session, capsys)
    next(folder.glob("parts/*/progress.json")).write_text(damage)
    assert "8 contexts in parts, starting" in said(session, capsys)


def test_extraction_whose_process_is_gone_has_failed(session: Workflow, hold: Callable) -> None:
    hold(session.session, seconds_ago=10 * STALE)
    folder = extracting(session, note=GOING, seconds_ago=2 * STALE)
    assert state_of(session, "extract") == "failed"
    hold(folder)
    assert state_of(session, "extract") == "running"


def test_extraction_that_has_no_lease_yet_starts(session: Workflow, hold: Callable) -> None:
    hold(session.session)
    extracting(session)
    assert state_of(session, "extract") == "running"


@pytest.mark.parametrize(("log", "state"), [("12:00:00 chunk\n", "running"), ("error: no text\n", "failed")])
def test_job_of_a_session_that_is_held(session: Workflow, hold: Callable, log: str, state: str) -> None:
    hold(session.session, seconds_ago=100)
    leave(job(session, "chunk"), log, seconds_ago=50)
    assert state_of(session, "chunk") == state


def test_log_of_the_session_before_is_of_a_job_to_do(session: Workflow, hold: Callable) -> None:
    hold(session.session, seconds_ago=100)
    leave(job(session, "chunk"), "error: no text\n", seconds_ago=150)
    assert state_of(session, "chunk") == "to do"


def test_session_whose_process_is_gone_is_held_by_nobody(session: Workflow, python: Callable) -> None:
    code = (
        "import sys; from pathlib import Path; from id_scaling.runtime.locks import Lease; "
        "Lease(Path(sys.argv[1])).take()"
    )
    python(code, session.session / ".lease").wait()
    assert (session.session / ".lease").is_file()
    leave(job(session, "chunk"), "12:00:00 chunk\n")
    assert status_of(Study(session.config)).holder is None
    assert state_of(session, "chunk") == "failed"


def test_lease_of_another_machine_that_is_not_touched_is_held_by_nobody(session: Workflow, hold: Callable) -> None:
    hold(session.session)
    lease = session.session / ".lease"
    lease.write_text(json.dumps({**json.loads(lease.read_text()), "machine": "another", "host": "node7"}))
    assert str(status_of(Study(session.config)).holder).startswith(f"process {os.getpid()} on node7 since ")
    os.utime(lease, (time.time() - 2 * STALE,) * 2)
    assert status_of(Study(session.config)).holder is None


def test_weights_that_went_after_their_use_are_done(tmp_path: Path, text_folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = Study(study(Path("EleutherAI/pythia-70m"), text_folder))

    def states() -> Status:
        return status_of(jobs)

    assert states().counts["fetch", "done"] == 0
    manifest = run_folder(Path(jobs.session), jobs.runs[0]) / "manifest.json"
    manifest.parent.mkdir(parents=True)
    write_table(manifest.parent / "tokens.parquet", pl.DataFrame({"token": [0]}), {"digest": "made"})
    settings = json.loads(jobs.extract_settings(jobs.runs[0]))
    write_record(manifest, {"settings": settings, "made_from": {}, "files": {}, "digest": "made"})
    assert states().counts["fetch", "done"] == 1
    # An extraction that has to run again needs them again.
    write_record(manifest, {"settings": {**settings, "ctx_len": 1}, "made_from": {}, "files": {}, "digest": "made"})
    assert (states().counts["fetch", "done"], states().counts["fetch", "stale"]) == (0, 1)


# ---- the command -----------------------------------------------------------------------------------------------


def test_wrong_configuration_is_one_message_and_exit_status_1(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("session_name: [\n")
    assert main(["status", str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {path}: ")
