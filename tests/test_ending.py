"""SIGTERM ends a process wherever it is, and once."""

from __future__ import annotations

import os
import signal
import sys
import time
import weakref
from collections.abc import Callable

import pytest

from id_scaling import ending
from id_scaling.ending import endable
from id_scaling.errors import Ended


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


def test_an_end_that_was_dropped_at_the_last_moment_does_not_kill_what_is_done(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ending, "AGAIN", 0.5)  # longer than leaving the context takes on a busy machine
    with endable():
        in_destructor(signal.SIGTERM)
    time.sleep(1)


def test_what_has_still_to_be_done_at_an_end_is_not_cut_short_by_another():
    done = []

    def work() -> None:
        with endable():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
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
    class Broken:
        def __del__(self) -> None:
            raise ValueError("broken")

    said = []
    hook = lambda unraisable: said.append(str(unraisable.exc_value))  # noqa: E731
    monkeypatch.setattr(sys, "unraisablehook", hook)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)]
    with endable():
        Broken()
    assert said == ["broken"]
    assert sys.unraisablehook is hook
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)] == before
