"""How a process ends when the system asks it to: wherever it is, and without a second request cutting it short."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from id_scaling.errors import Ended

# Seconds after which an exception that Python dropped is raised again.
AGAIN = 0.01
# Seconds in which what has still to be done at an end is not asked to end again; later, the end was lost, or hangs.
GRACE = 20.0


@contextlib.contextmanager
def endable() -> Iterator[None]:
    """Raise `Ended` in the main thread at SIGTERM, so that leases are given back and nothing half written stays.

    Python can only write down, and then drops, what is raised in a destructor or a callback of a weak reference, and
    a forward pass is full of those. So `Ended` there, like Ctrl-C there, is raised again, by SIGALRM and the timer of
    real time, which nothing else may use meanwhile.
    """
    asked, is_over = -GRACE, False

    def end(*_: Any) -> None:
        nonlocal asked
        if not is_over and time.monotonic() - asked >= GRACE:
            asked = time.monotonic()
            raise Ended

    def raise_again(kind: type[BaseException]) -> None:
        def at_alarm(*_: Any) -> None:
            if not is_over:
                raise kind

        signal.signal(signal.SIGALRM, at_alarm)
        signal.setitimer(signal.ITIMER_REAL, AGAIN)

    def written_down(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, Ended | KeyboardInterrupt):
            return raise_again(type(unraisable.exc_value))
        try:
            hook_before(unraisable)
        except (Ended, KeyboardInterrupt) as error:  # what a hook raises is dropped too
            raise_again(type(error))

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    hook_before = sys.unraisablehook
    signal.signal(signal.SIGTERM, end)
    sys.unraisablehook = written_down
    try:
        try:
            yield
        finally:
            is_over = True  # no signal comes between what follows
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = hook_before
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
