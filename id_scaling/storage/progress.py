"""How far an extraction is: a small JSON next to its parts, which goes with them.

Written for people who wait, read by `status`. It is in no fingerprint and decides nothing: one that is missing or
damaged says nothing.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from id_scaling.errors import StoreError
from id_scaling.runtime.logging import LOG
from id_scaling.storage.records import read_record, write_record

FILE = "progress.json"


@dataclass(frozen=True)
class ProgressNote:
    """How far an extraction is.

    Parameters
    ----------
    done, total : int
        Contexts, those that were extracted before included.
    pace : float or None
        Contexts a second since the process began; None before the first.
    time : float
        When this was so, in seconds since 1970.
    """

    done: int
    total: int
    pace: float | None
    time: float


def write_progress(folder: Path, total: int, done: int, pace: float | None) -> None:
    """Note how far the extraction is whose parts a folder holds; a disk that takes no note stops no extraction."""
    note = ProgressNote(done, total, pace, time.time())
    try:
        write_record(folder / FILE, asdict(note))
    except OSError as error:
        LOG.warning("%s: not written: %s", folder / FILE, error)


def read_progress(parts: Path, since: float) -> ProgressNote | None:
    """Return how far the extraction is that works in a folder of parts since a time; None where nothing says so."""
    notes = filter(None, map(_read, parts.glob(f"*/{FILE}")))
    return max((note for note in notes if note.time >= since), key=lambda note: note.time, default=None)


def _read(path: Path) -> ProgressNote | None:
    """Return one note, None where it is damaged, of another version, or gone meanwhile."""
    try:
        return ProgressNote(**read_record(path))
    except (StoreError, OSError, TypeError):
        return None
