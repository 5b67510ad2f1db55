"""End a process on SIGTERM at any point, and let its cleanup finish although the signal repeats."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from id_scaling.errors import Ended

# Seconds until an exception that Python dropped is raised again.
AGAIN = 0.01
# Seconds for cleanup, in which another SIGTERM is ignored; later, the exception was lost, or the cleanup hangs.
GRACE = 20.0


@contextlib.contextmanager
def endable() -> Iterator[None]:
    """Raise `Ended` in the main thread on SIGTERM, so that leases are released and temporary files are removed.

    Python only reports, and then drops, an exception raised in a destructor or in a callback of a weak reference, and a
    forward pass has many of those. So this function raises `Ended`, or KeyboardInterrupt, again, with SIGALRM and the
    real-time timer. Nothing else may use these in the meantime.
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
        except (Ended, KeyboardInterrupt) as error:  # Python drops exceptions of a hook too
            raise_again(type(error))

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    hook_before = sys.unraisablehook
    signal.signal(signal.SIGTERM, end)
    sys.unraisablehook = written_down
    try:
        try:
            yield
        finally:
            is_over = True  # from here on, handlers do nothing, so no signal interrupts the lines below
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = hook_before
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
