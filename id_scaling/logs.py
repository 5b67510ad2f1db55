"""One log for every verb: to standard error, one line an event; rules keep it with `tee`."""

from __future__ import annotations

import logging
import sys
import time

LOG = logging.getLogger("id_scaling")


def start_logging(is_verbose: bool) -> None:
    """Send the package's log to standard error, with details when `is_verbose`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.DEBUG if is_verbose else logging.INFO)
    LOG.propagate = False


class Progress:
    """Say how far a loop of `n_total` equal steps has come, its rate and the time left, every few seconds."""

    SECONDS_BETWEEN = 5.0

    def __init__(self, what: str, n_total: int, n_done: int = 0) -> None:
        self.what, self.n_total, self.n_done, self.n_start = what, n_total, n_done, n_done
        self.start = self.said = time.monotonic()

    def step(self, n: int = 1) -> None:
        """Count `n` finished steps, and say so when it is time or the loop is done."""
        self.n_done += n
        now = time.monotonic()
        if now - self.said < self.SECONDS_BETWEEN and self.n_done < self.n_total:
            return
        self.said = now
        each = (now - self.start) / (self.n_done - self.n_start)
        left = each * (self.n_total - self.n_done)
        LOG.info("%s %d of %d, %.2f s each, %.0f s left", self.what, self.n_done, self.n_total, each, left)
