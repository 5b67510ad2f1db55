"""`--sdm conda`: jobs run the interpreter of the environment that Snakemake builds, and the package of this workflow.

No conda is installed where the tests run. A stand-in has its commands and builds environments whose `python` is a
script: it writes down that it was started, and with which packages, and goes on as the interpreter of the tests.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from conftest import ROOT, Workflow

CONDA = """#!/usr/bin/env bash
set -euo pipefail
case "$*" in
    "info --json") echo '{{"conda_prefix": "{base}", "platform": "linux-64"}}' ;;
    "clean -y --tarballs") ;;
    "--version") echo "conda 25.1.0" ;;
    "config --get channel_priority --json") echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
    "env create"*)
        while [ "$1" != --prefix ]; do shift; done
        mkdir -p "$2/bin"
        cp {base}/python "$2/bin/python" ;;
    *) echo "stand-in conda: unexpected: $*" >&2; exit 1 ;;
esac
"""
PYTHON = """#!/usr/bin/env bash
echo "$1 $2 $3 $PYTHONPATH" >> {log}
exec {python} "$@"
"""


def install_conda(base: Path, log: Path) -> None:
    """Install the stand-in: `bin/conda`, `bin/activate`, and the `python` that environments get."""
    (base / "bin").mkdir(parents=True)
    programs = {
        "bin/conda": CONDA.format(base=base),
        "bin/activate": 'export PATH="$1/bin:$PATH"\n',
        "python": PYTHON.format(log=log, python=sys.executable),
    }
    for name, text in programs.items():
        (base / name).write_text(text)
        (base / name).chmod(0o755)


def test_jobs_run_the_interpreter_of_the_environment(workflow: Workflow, tmp_path: Path, monkeypatch):
    log = tmp_path / "started.txt"
    install_conda(tmp_path / "conda", log)
    monkeypatch.setenv("PATH", f"{tmp_path / 'conda' / 'bin'}:{os.environ['PATH']}")
    workflow.run(workflow_contexts(workflow), "--sdm", "conda")
    started = [line.split(" ") for line in log.read_text().splitlines()]
    verbs = {verb for flag, module, verb, _ in started if (flag, module) == ("-m", "id_scaling")}
    assert verbs == {"fetch-dataset", "fetch-tokenizer", "chunk"}
    assert all(packages.split(":")[0] == str(ROOT) for *_, packages in started)


def workflow_contexts(workflow: Workflow) -> str:
    """Return the contexts of the study, the cheapest of its outputs that several rules lead to."""
    from id_scaling.study.study import Study

    return Study(workflow.config).contexts()[0]
