"""SIGTERM ends a process wherever it is, and a second one does not cut short what has still to be done."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import weakref
from collections.abc import Callable

import pytest

from id_scaling.errors import Ended
from id_scaling.runtime import interrupts as ending
from id_scaling.runtime.interrupts import endable


class Asked:
    """Sends this process a signal when it is deleted, which Python then handles in the destructor."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)


def in_destructor(number: signal.Signals) -> None:
    """Send this process a signal while it destroys an object."""
    Asked(number)


def in_callback(number: signal.Signals) -> None:
    """Send this process a signal while it calls back for a weak reference."""
    thing = type("Thing", (), {})()
    reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), number))
    del thing
    assert reference() is None


@pytest.mark.parametrize("ask", [in_destructor, in_callback])
@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, Ended), (signal.SIGINT, KeyboardInterrupt)])
def test_an_end_asked_for_where_python_drops_exceptions_comes_all_the_same(
    ask: Callable, number: signal.Signals, raised: type[BaseException]
):
    def work() -> None:
        with endable():
            ask(number)
            time.sleep(60)

    with pytest.raises(raised):
        work()


class Broken:
    """Raises an error when it is deleted."""

    def __del__(self) -> None:
        raise ValueError("broken")


class Slow:
    """Takes longer to destroy than an exception that was dropped takes to be raised again."""

    def __del__(self) -> None:
        for _ in range(10):
            time.sleep(ending.AGAIN)


def test_an_end_that_is_dropped_twice_comes_all_the_same():
    def work() -> None:
        with endable():
            in_destructor(signal.SIGTERM)
            Slow()
            time.sleep(60)

    with pytest.raises(Ended):
        work()


def test_an_end_that_comes_while_another_error_is_written_down_is_not_lost(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda _: in_time(signal.SIGTERM))

    def work() -> None:
        with endable():
            Broken()
            time.sleep(60)

    with pytest.raises(Ended):
        work()


def in_time(number: signal.Signals) -> None:
    """Send this process a signal and have it handled at once."""
    os.kill(os.getpid(), number)
    time.sleep(60)


def test_an_end_that_was_lost_comes_when_it_is_asked_for_again_later(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ending, "GRACE", 0.1)

    def work() -> None:
        with endable():
            with contextlib.suppress(Ended):  # as a bare `except` of someone else would
                in_time(signal.SIGTERM)
            time.sleep(0.2)
            in_time(signal.SIGTERM)

    with pytest.raises(Ended):
        work()


def test_an_end_that_was_dropped_at_the_last_moment_is_no_alarm_later(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ending, "AGAIN", 0.5)  # longer than leaving the context takes on a busy machine
    alarms = []
    before = signal.signal(signal.SIGALRM, lambda *_: alarms.append(1))
    try:
        own = signal.getsignal(signal.SIGALRM)
        with endable():
            in_destructor(signal.SIGTERM)
        assert signal.getsignal(signal.SIGALRM) is own
        time.sleep(1)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not alarms


def test_what_has_still_to_be_done_at_an_end_is_not_cut_short_by_another():
    done = []

    def work() -> None:
        with endable():
            try:
                in_time(signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.1)
                done.append("cleaned up")

    with pytest.raises(Ended):
        work()
    assert done


def test_other_errors_in_destructors_are_said_as_before_and_all_is_as_before_afterwards(
    monkeypatch: pytest.MonkeyPatch,
):
    said = []
    hook = lambda unraisable: said.append(str(unraisable.exc_value))  # noqa: E731
    monkeypatch.setattr(sys, "unraisablehook", hook)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)]
    with endable():
        Broken()
    assert said == ["broken"]
    assert sys.unraisablehook is hook
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)] == before
