"""Checkpoints of untrained weights, by their names."""

from __future__ import annotations

import re

UNTRAINED = re.compile(r"random-init(?:-([0-9]{1,9}))?")


def seed_of(checkpoint: str) -> int | None:
    """Return the seed of a checkpoint of untrained weights, `random-init` or `random-init-SEED`; None of any other."""
    match = UNTRAINED.fullmatch(checkpoint)
    return match and int(match[1] or 0)
