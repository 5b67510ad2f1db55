"""What takes long to make of a source file, kept by content: made once, whatever session or command asks for it.

An entry is a folder, named by the hash of its key. It is published whole with the hashes of its files, which are
verified at each use: an entry that is damaged is made again. The whole cache may be removed at any time.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from id_scaling.errors import StoreError
from id_scaling.runtime.atomic_files import digest, sha256, sweep, writing_folder
from id_scaling.runtime.locks import leased
from id_scaling.runtime.logging import LOG
from id_scaling.sources.file_hashes import FileHashes
from id_scaling.storage.records import read_record, write_record

RESOURCES = Path("resources")
CACHE = RESOURCES / "cache"
# Name of the record of an entry, next to its content.
RECORD, CONTENT = "entry.json", "content"


@contextmanager
def cached_folder(kind: str, key: Mapping[str, Any], fill: Callable[[Path], None]) -> Iterator[Path]:
    """Yield a folder that `fill` made for a key, now or earlier; it must not be changed.

    Parameters
    ----------
    kind : str
        What is in the folder, a name of letters and dashes.
    key : mapping
        All that decides what `fill` makes: hashes of sources, versions of libraries, a version of `fill` itself.
    fill : callable
        Writes the content into an empty folder. Of several processes at once, only one does.

    Yields
    ------
    Path
        The folder in the cache; or a temporary one, removed at the end, where the cache may not be written.
    """
    entry = CACHE / kind / digest(dict(key))
    if _is_whole(entry, key):
        yield entry / CONTENT
    elif _is_writable(entry):
        with leased(entry) as lease:
            if not _is_whole(entry, key):
                sweep(entry, CONTENT)
                with writing_folder(entry / CONTENT) as content:
                    fill(content)
                    lease.check()
                write_record(entry / RECORD, {"key": dict(key), "files": _hashes(entry / CONTENT)})
        yield entry / CONTENT
    else:
        LOG.info("%s: may not be written, so what is made here is made again the next time", CACHE)
        with TemporaryDirectory() as temporary:
            fill(Path(temporary))
            yield Path(temporary)


def cached_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, which is read again only when its size or one of its times changed."""
    return FileHashes(CACHE / "hashes").sha256(path)


def _is_whole(entry: Path, key: Mapping[str, Any]) -> bool:
    """Return whether an entry is there, is that of a key, and has the files that were written."""
    try:
        known = read_record(entry / RECORD)
        if known["key"] == dict(key) and known["files"] == _hashes(entry / CONTENT):
            return True
        LOG.warning("%s: damaged or changed, so it is made again", entry)
    except (StoreError, OSError):
        pass
    return False


def _hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, by its name there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def _is_writable(folder: Path) -> bool:
    """Return whether a folder of the cache may be written, once it is there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return False
        raise
    return os.access(folder, os.W_OK)
