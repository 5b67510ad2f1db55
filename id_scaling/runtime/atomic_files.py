"""Files that are whole or absent: write aside, flush to disk, rename; and content hashes.

A process killed at any moment leaves either the old file, or none, or the complete new one under
the final name. What it leaves aside carries `.tmp-` in its name and its process's number, until `sweep` removes it.
Files that belong together are replaced as one set: a kill in the midst of the renames is made good by the next writer.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from id_scaling.errors import ResourceError, StoreError

# Ends the name of the file that lists the renames of a set of files.
RENAMES = ".renames"

# Read once, as it can only be read by setting it.
_UMASK = os.umask(0o077)
os.umask(_UMASK)
FILE_MODE = 0o666 & ~_UMASK


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a path to write to; on success it becomes `path` in one step, on error it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with _naming(path):
            yield aside
            _follow_umask(aside)
            sync(aside)
        os.replace(aside, path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


# What a disk says of the file that is written, often without its name.
_OF_WRITING = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the name of what is written to what the disk says of it."""
    try:
        yield
    except OSError as error:
        if error.errno in _OF_WRITING and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def writing_all(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield one path to write to for each of `paths`; on success they replace `paths` as one set, on error none does.

    Every file must be written. Before the first rename a list of all of them is on disk, next to the first of `paths`:
    a process killed from then on leaves the rest to `finish_renames`, which each later `writing_all` with the same
    first path, and each `sweep` of its folder, calls.
    """
    paths = [Path(path) for path in paths]
    folder = paths[0].parent
    finish_renames(folder, paths[0].name)
    for parent in {path.parent for path in paths}:
        parent.mkdir(parents=True, exist_ok=True)
    asides = [path.with_name(f".{path.name}.tmp-{os.getpid()}") for path in paths]
    with ExitStack() as leftovers:
        for aside in asides:
            leftovers.callback(aside.unlink, missing_ok=True)
        with _naming(paths[0]):
            yield asides
        for aside in asides:
            _follow_umask(aside)
            sync(aside)
        pairs = zip(asides, paths, strict=True)
        renames = [[os.path.relpath(path, folder) for path in pair] for pair in pairs]
        with writing(folder / f".{paths[0].name}{RENAMES}") as listed:
            listed.write_text(canonical_json(renames))
        leftovers.pop_all()  # the set is complete: from here on it is only renamed
        finish_renames(folder, paths[0].name)


def finish_renames(folder: Path, name: str | None = None) -> None:
    """Finish the renames of each set of files in `folder`, or of the one whose first file is `name`.

    Raises
    ------
    StoreError
        A list of renames is damaged.
    """
    for listed in sorted(Path(folder).glob(f".{'*' if name is None else glob.escape(name)}{RENAMES}")):
        try:
            renames = [(listed.parent / aside, listed.parent / path) for aside, path in json.loads(listed.read_text())]
        except FileNotFoundError:  # another process was quicker
            continue
        except (TypeError, ValueError) as error:
            raise StoreError(
                f"{listed}: damaged ({error}); remove it, and what it was to replace: {name or 'see its name'}"
            ) from error
        for aside, path in renames:
            if aside.exists():  # else it was renamed before the kill
                os.replace(aside, path)
        for parent in {path.parent for _, path in renames}:
            sync(parent)
        listed.unlink(missing_ok=True)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill; on success it becomes `path` in one step, replacing what was there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        with _naming(path):
            yield aside
        for file in aside.iterdir():
            _follow_umask(file)
            sync(file)
        sync(aside)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(aside, path)
        sync(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _follow_umask(path: Path) -> None:
    """Let those read or write a file who may by this process's umask: some libraries write for the owner only."""
    mode = path.stat().st_mode
    if path.is_file() and not path.is_symlink() and mode | FILE_MODE != mode:
        path.chmod(mode | FILE_MODE)


def require_room(path: Path, n_bytes: int, kept: str) -> None:
    """Check that a file system has room, before a file is begun that could not be ended.

    Raises
    ------
    ResourceError
        It has not; `kept` says what is not lost by that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < n_bytes:
        raise ResourceError(
            f"{path}: needs {n_bytes / 1e6:.1f} MB, but {free / 1e6:.1f} MB are free on its file system; make room and "
            f"run again: {kept}"
        )


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what killed writers left aside in `folder`, all or that of one name: others may be at work there."""
    finish_renames(folder, name)
    for leftover in Path(folder).glob(f".{'*' if name is None else glob.escape(name)}.tmp-*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN."""
    return _CANONICAL.encode(value)


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text())


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Return a short hash of a JSON-able value: 12 hexadecimal digits of its canonical SHA-256."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:12]
