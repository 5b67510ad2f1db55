"""What a terminal gets of the lines of a job: errors and warnings whole, long lists cut, progress now and then."""

from __future__ import annotations

import subprocess

import pytest
from conftest import ROOT

LONG = "x" * 300


def shown(*lines: str) -> list[str]:
    """Return what the shell function of the rules prints of lines."""
    names: dict[str, str] = {}
    exec((ROOT / "workflow" / "rules" / "terminal.smk").read_text(), names)
    script = f"set -euo pipefail\n{names['TO_TERMINAL']}\nto_terminal"
    text = "".join(f"{line}\n" for line in lines)
    return subprocess.run(
        ["bash", "-c", script], input=text, capture_output=True, text=True, check=True
    ).stdout.splitlines()


@pytest.mark.parametrize(
    "line",
    [
        f"error: results/a: another process wrote b: {LONG}",
        f"error: --settings=a: {LONG} left",
        f"12:00:00 {LONG}: damaged, it is computed again",
        "ended: the system asked for it (SIGTERM)",
        "  two spaces and a back\\\\slash",
    ],
)
def test_errors_and_warnings_come_whole(line: str) -> None:
    assert shown(line, line) == [line, line]


@pytest.mark.parametrize("words", ["chunk settings=a --output=", "wrote ", "drew "])
def test_long_lists_are_cut(words: str) -> None:
    line = f"12:00:00 {words}{LONG}"
    assert shown(line) == [line[:160]]


def test_progress_is_said_now_and_then() -> None:
    lines = [f"12:00:00 extracted context {number} of 9, 1 a second, 3 s left" for number in range(9)]
    assert shown(*lines, "12:00:09 wrote it") == [lines[0], "12:00:09 wrote it"]
