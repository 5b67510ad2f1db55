"""The log of every command: one line per event on standard error; rules save it with `tee`."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType

LOG = logging.getLogger("id_scaling")

# Environment variables with tokens of the hub; the form of a token, and of credentials before the host in an address.
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SECRET = re.compile(r"hf_[A-Za-z0-9]{20,}|(?<=//)[^/\s]+(?=@)")
# A shorter value is not a token, and could be part of any word.
SHORTEST = 8
# Control characters of terminals, except newlines and tabs.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """Return text that is safe to show: without tokens and passwords, and with control characters escaped."""
    for token in (os.environ.get(name, "") for name in _TOKENS):
        if len(token) >= SHORTEST:
            text = text.replace(token, "***")
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], _SECRET.sub("***", text))


class _Plain(logging.Formatter):
    """Formatter for messages that may include text from outside."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


def start_logging(is_verbose: bool) -> None:
    """Send the log of the package to standard error, with details if `is_verbose`; print uncaught exceptions too."""
    handler = logging.StreamHandler(sys.stderr)
    for earlier in [other for other in LOG.handlers if isinstance(other.formatter, _Plain)]:
        LOG.removeHandler(earlier)  # of an earlier command in this process; else each line would appear twice
    handler.setFormatter(_Plain("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.DEBUG if is_verbose else logging.INFO)
    LOG.propagate = False
    sys.excepthook = _say


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an uncaught exception."""
    print(plain("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


class Progress:
    """Log the progress of a loop, its rate, and the time left, every few seconds.

    Parameters
    ----------
    what : str
        Name of a finished step.
    n_total : int or None
        Number of steps; if it is not known, each call of `step` can give the share of the work that is done.
    n_done : int
        Number of steps done before the loop.
    note : callable, optional
        Called with each log line: number of steps done, and steps per second.
    """

    SECONDS_BETWEEN = 5.0

    def __init__(
        self,
        what: str,
        n_total: int | None = None,
        n_done: int = 0,
        note: Callable[[int, float | None], None] = lambda n_done, rate: None,
    ) -> None:
        self.what, self.n_total, self.n_done, self.n_start, self.note = what, n_total, n_done, n_done, note
        self.start = self.said = time.monotonic()

    def step(self, n: int = 1, share: float = 0.0) -> None:
        """Count `n` finished steps; log progress if it is time, or if the loop is done."""
        self.n_done += n
        now = time.monotonic()
        if now - self.said < self.SECONDS_BETWEEN and self.n_done != self.n_total:
            return
        self.said, elapsed = now, now - self.start
        n_here = self.n_done - self.n_start
        if self.n_total is None:
            progress, done_share = f"{self.n_done} ({share:.0%} of the whole)", share
        else:
            progress, done_share = f"{self.n_done} of {self.n_total}", n_here / max(self.n_total - self.n_start, 1)
        rate = n_here / max(elapsed, 1e-9) if n_here else None
        LOG.info(
            "%s %s, %s",
            self.what,
            progress,
            pace(rate, elapsed * (1 - done_share) / done_share if done_share else None),
        )
        self.note(self.n_done, rate)


def pace(rate: float | None, seconds_left: float | None) -> str:
    """Return the rate and the time left in words."""
    left = "time left unknown" if seconds_left is None else f"{seconds_left:.0f} s left"
    if rate is None:
        return f"none yet, {left}"
    return f"{rate:.0f} a second, {left}" if rate >= 1 else f"{1 / rate:.2f} s each, {left}"
