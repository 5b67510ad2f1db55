"""Content hashes of source files, each read again only when its size or one of its times changed.

A source may be replaced by other content under an older time, as `cp -p`, `rsync -a` or a restored backup leave it, so
the size, the time of its content and the time of its inode count together; any difference from what was noted means
that the file is read once. What was noted is kept in the session, one small file for each source.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

from id_scaling.errors import StoreError
from id_scaling.runtime.atomic_files import sha256
from id_scaling.storage.records import read_record, write_record

FOLDER = ".source_hashes"
# Seconds that a file has to be unchanged before its hash is noted: clocks of file systems are coarse.
SETTLED = 2.0
# Of a session, its folders that hold identities.
IDENTITIES = ("models", "tokenizers", "datasets")


class FileHashes:
    """SHA-256 of files, remembered in a folder.

    Parameters
    ----------
    folder : Path
        Where hashes are noted; where it cannot be written, files are read each time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[Path, str] = {}

    @classmethod
    def of_session(cls, identity: Path) -> FileHashes:
        """Return the hashes that the session of an identity remembers; a folder of another layout is its own."""
        root = next((parent.parent for parent in identity.parents if parent.name in IDENTITIES), identity.parent)
        return cls(root / FOLDER)

    def sha256(self, path: Path) -> str:
        """Return the SHA-256 of a file's bytes, in hexadecimal."""
        if path not in self._known:
            self._known[path] = self._noted(path)
        return self._known[path]

    def _noted(self, path: Path) -> str:
        """Return the hash that is noted of a file, or read it and note it."""
        absolute = os.path.abspath(path)
        note = self.folder / f"{hashlib.sha256(absolute.encode()).hexdigest()[:24]}.json"
        # Before it is read: if it changes meanwhile, it is read again.
        signature = [absolute, *_signature(path)]
        with contextlib.suppress(StoreError, OSError, ValueError, KeyError):
            noted = read_record(note)
            if noted["file"] == signature:
                return noted["sha256"]
        digits = sha256(path)
        is_settled = time.time() - max(os.stat(path).st_mtime, os.stat(path).st_ctime) > SETTLED
        # A command that only looks, such as `status`, creates no session.
        if is_settled and self.folder.parent.is_dir():
            with contextlib.suppress(OSError):
                write_record(note, {"file": signature, "sha256": digits})
        return digits


def _signature(path: Path) -> tuple[int, int, int]:
    """Return the size of a file and the times, in nanoseconds, at which its content and its inode changed."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
