"""The one family of errors that users meet: where, what was found, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class IdScalingError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(IdScalingError):
    """A configuration, or an argument, that cannot be used."""


class InputError(IdScalingError):
    """A model, a dataset or a text that is missing or cannot be used."""


class StoreError(IdScalingError):
    """A stored file that is missing, damaged, or made under other settings."""


class ResourceError(IdScalingError):
    """A machine that has too little memory."""


class LeaseError(IdScalingError):
    """A folder that another process writes."""


def nearest(name: str, allowed: Iterable[str], n: int = 3) -> str:
    """Return a sentence part that names the values closest to `name`, whatever their case, or all of a short list."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(name.lower(), [word.lower() for word in allowed], n=n, cutoff=0.5)
    if close:
        words = sorted((word for word in allowed if word.lower() in close), key=lambda word: close.index(word.lower()))
        return "did you mean " + " or ".join(map(repr, words)) + "?"
    shown = ", ".join(allowed[:20]) + (", …" if len(allowed) > 20 else "")
    return f"allowed: {shown}"
