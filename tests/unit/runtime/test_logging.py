"""What a loop says of how far it has come."""

from __future__ import annotations

import logging

import pytest

from id_scaling.runtime.logging import LOG, Progress, start_logging


class Clock:
    """A clock that goes on when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Clock:
    """The clock of the log, and the log open for what is said."""
    clock = Clock()
    monkeypatch.setattr("id_scaling.runtime.logging.time.monotonic", clock)
    monkeypatch.setattr(LOG, "propagate", True)
    caplog.set_level(logging.INFO, LOG.name)
    return clock


def test_loop_of_known_length_says_rate_and_time_left(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress("extracted context", 10, n_done=2)
    for seconds in (4, 4, 24, 1):
        clock.now += seconds
        progress.step(2)
    assert caplog.messages == [
        # Two more after 4 s are not said, four after 8 s are, and the last ones whenever they are done.
        "extracted context 6 of 10, 2.00 s each, 8 s left",
        "extracted context 8 of 10, 5.33 s each, 11 s left",
        "extracted context 10 of 10, 4.12 s each, 0 s left",
    ]


def test_loop_of_unknown_length_says_how_much_of_the_whole_is_done(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    progress = Progress("cut context")
    for n, share in ((0, 0.0), (600, 0.1), (3400, 0.75)):
        clock.now += 10
        progress.step(n, share)
    assert caplog.messages == [
        "cut context 0 (0% of the whole), none yet, time left unknown",
        "cut context 600 (10% of the whole), 30 a second, 180 s left",
        "cut context 4000 (75% of the whole), 133 a second, 10 s left",
    ]


def test_a_line_is_said_once_however_many_commands_ran_in_this_process(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.excepthook", None)
    for _ in range(3):
        start_logging(is_verbose=False)
    LOG.info("a line")
    assert capsys.readouterr().err.count("a line") == 1
