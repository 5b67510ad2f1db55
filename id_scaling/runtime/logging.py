"""One log for every verb: to standard error, one line an event; rules keep it with `tee`."""

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

# Variables of the environment that hold tokens of the hub; how a token looks; what stands before a host in an address.
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SECRET = re.compile(r"hf_[A-Za-z0-9]{20,}|(?<=//)[^/\s]+(?=@)")
# A shorter one is none, and may stand in any word.
SHORTEST = 8
# What terminals obey; lines and tabs are left.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """Return text as it may be shown: without tokens and passwords, and with control characters spelled out."""
    for token in (os.environ.get(name, "") for name in _TOKENS):
        if len(token) >= SHORTEST:
            text = text.replace(token, "***")
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], _SECRET.sub("***", text))


class _Plain(logging.Formatter):
    """Formats records that may hold what someone else wrote."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


def start_logging(is_verbose: bool) -> None:
    """Send the package's log to standard error, with details when `is_verbose`; and what ends the process, as plain."""
    handler = logging.StreamHandler(sys.stderr)
    for earlier in [each for each in LOG.handlers if isinstance(each.formatter, _Plain)]:
        LOG.removeHandler(earlier)  # of a command before in this process: each line is said once
    handler.setFormatter(_Plain("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.DEBUG if is_verbose else logging.INFO)
    LOG.propagate = False
    sys.excepthook = _say


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an exception that nobody caught."""
    print(plain("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


class Progress:
    """Say how far a loop has come, its rate and the time left, every few seconds.

    Parameters
    ----------
    what : str
        What a step does.
    n_total : int or None
        How many steps there are; where that is not known, each step may say which share of the whole is done.
    n_done : int
        How many were done before.
    note : callable, optional
        Is told as often how many steps are done, and how many a second.
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
        """Count `n` finished steps, and say so when it is time or the loop is done."""
        self.n_done += n
        now = time.monotonic()
        if now - self.said < self.SECONDS_BETWEEN and self.n_done != self.n_total:
            return
        self.said, elapsed = now, now - self.start
        n_here = self.n_done - self.n_start
        if self.n_total is None:
            far, done = f"{self.n_done} ({share:.0%} of the whole)", share
        else:
            far, done = f"{self.n_done} of {self.n_total}", n_here / max(self.n_total - self.n_start, 1)
        rate = n_here / max(elapsed, 1e-9) if n_here else None
        LOG.info("%s %s, %s", self.what, far, pace(rate, elapsed * (1 - done) / done if done else None))
        self.note(self.n_done, rate)


def pace(rate: float | None, seconds_left: float | None) -> str:
    """Return in words how many steps a second there are, and how long those that are left take."""
    left = "time left unknown" if seconds_left is None else f"{seconds_left:.0f} s left"
    if rate is None:
        return f"none yet, {left}"
    return f"{rate:.0f} a second, {left}" if rate >= 1 else f"{1 / rate:.2f} s each, {left}"
