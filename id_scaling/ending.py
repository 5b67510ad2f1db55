"""How a process ends when the system asks it to: wherever it is, and once."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from id_scaling.errors import Ended

# Seconds after which an exception that Python dropped is raised again.
AGAIN = 0.01


@contextlib.contextmanager
def endable() -> Iterator[None]:
    """Raise `Ended` in the main thread at SIGTERM, so that leases are given back and nothing half written stays.

    Python can only write down, and then drops, what is raised in a destructor or a callback of a weak reference, and
    a forward pass is full of those. So `Ended` there, like Ctrl-C there, is raised again. A second SIGTERM changes
    nothing: it would come between the first and what it has still to do.
    """

    def end(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Ended

    def written_down(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, Ended | KeyboardInterrupt):
            return hook_before(unraisable)
        signal.signal(signal.SIGALRM, partial(_raise, type(unraisable.exc_value)))
        signal.setitimer(signal.ITIMER_REAL, AGAIN)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    hook_before = sys.unraisablehook
    signal.signal(signal.SIGTERM, end)
    sys.unraisablehook = written_down
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # too late: what was to be ended is done
        sys.unraisablehook = hook_before
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(kind: type[BaseException], *_: Any) -> None:
    raise kind
