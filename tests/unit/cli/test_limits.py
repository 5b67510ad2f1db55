"""Limits on the size of files and on memory: one clear error from every verb, and what was there stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, save_text, save_tiny_llama, study

# One process makes a study and then, for each of its verbs, forks one that does the verb again under a limit.
RUNNER = """
import json, os, resource, sys, traceback
from pathlib import Path
import verbs
from id_scaling.cli.main import main
import polars, pyarrow.parquet, sklearn.neighbors, torch, transformers  # not under a limit

folder, config = Path(sys.argv[1]), json.loads(sys.argv[2])
calls = {}

def forked(job, log):
    number = os.fork()
    if number:
        return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    code = 70
    try:
        code = job()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)

def remember(argv):
    calls.setdefault(argv[0], list(argv))
    return main(argv)

def make():
    verbs.main = remember
    verbs.run_study(config)
    (folder / "calls.json").write_text(json.dumps(calls))
    return 0

with open(folder / "made.txt", "w") as log:
    assert forked(make, log) == 0, (folder / "made.txt").read_text()
calls = json.loads((folder / "calls.json").read_text())
calls |= {verb: [verb, str(folder / "study.yaml")] for verb in ("validate", "check", "status", "plan")}
calls["describe"] = ["describe", str(folder / "model")]

def limited(argv, kind):
    def job():
        if kind == "files":
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        else:
            n_pages = int(Path("/proc/self/statm").read_text().split()[0])
            # With 4 MB more than it has, the process can still say what is the matter.
            resource.setrlimit(resource.RLIMIT_AS, (n_pages * resource.getpagesize() + 2**22,) * 2)
        return main(argv)
    return job

outcomes = {}
for kind in ("files", "memory"):
    for verb, argv in calls.items():
        reader, writer = os.pipe()  # which no limit on files concerns
        with os.fdopen(writer, "wb", buffering=0) as log, os.fdopen(reader, "rb") as words:
            code = forked(limited(argv, kind), log)
            log.close()
            outcomes[f"{kind} {verb}"] = code, words.read().decode()
(folder / "outcomes.json").write_text(json.dumps(outcomes))
"""
WRITERS = ("fetch-model", "fetch-tokenizer", "fetch-dataset", "chunk", "shuffle", "extract", "estimate", "summarize")
# The last words of Rust's and C++'s allocators.
OF_ABORTS = ("memory allocation of", "bad_alloc", "out of memory")  # of Rust, of C++, of the C library
READERS = ("validate", "check", "status", "plan", "describe")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Exit status and words of each verb under each limit."""
    folder = tmp_path_factory.mktemp("limits")
    save_tiny_llama(folder / "model", n_layers=1)
    save_text(folder / "text")
    config = study(folder / "model", folder / "text", session_path=str(folder / "session"), controls=["shuffle-1"])
    config["cacheing_config"] |= {
        "save_IDs_list": ["mle"],
        "module_inblock_keys": ["block"],
        "module_outblock_keys": [],
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, "-c", RUNNER, folder, json.dumps(config)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return {name: tuple(outcome) for name, outcome in json.loads((folder / "outcomes.json").read_text()).items()}


@pytest.mark.parametrize("verb", [*WRITERS, "plot"])
def test_a_limit_on_files_is_one_clear_error(verb: str, outcomes: dict[str, tuple[int, str]]) -> None:
    code, words = outcomes[f"files {verb}"]
    (error,) = [line for line in words.splitlines() if line.startswith("error: ")]
    assert code == 1
    assert "File too large; raise the limit on the size of files (ulimit -f) and run again" in error
    assert "Traceback" not in words


@pytest.mark.parametrize("verb", READERS)
def test_a_limit_on_files_does_not_stop_what_writes_none(verb: str, outcomes: dict[str, tuple[int, str]]) -> None:
    code, words = outcomes[f"files {verb}"]
    assert code == 0, words


@pytest.mark.parametrize("verb", [*WRITERS, "plot", *READERS])
def test_a_limit_on_memory_is_one_clear_error(verb: str, outcomes: dict[str, tuple[int, str]]) -> None:
    """Most verbs end in ours; a library in Rust or C++ may abort the process in its own, which were announced."""
    code, words = outcomes[f"memory {verb}"]
    announced, _, rest = words.partition("\n")
    assert "memory is limited to" in announced
    assert "Traceback" not in words, words
    if code > 0:
        assert code == 1
        errors = [line for line in words.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, words
        (error,) = errors
        assert "error: too little memory (" in error
        assert "raise the limit of the shell (ulimit -v)" in error
    else:
        # Some need no more than the process has. An abort says that memory is why; a refused access (11) says nothing.
        assert code in (0, -6, -11), words
        assert code != -6 or any(said in rest for said in OF_ABORTS), words
