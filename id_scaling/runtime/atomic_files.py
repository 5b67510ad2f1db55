"""Atomic files: write to a temporary name, flush to disk, rename; and content hashes.

A process killed at any moment leaves the old file, no file, or the complete new file under the final name. The name of
a leftover temporary file has `.tmp-` and the process id, until `sweep` removes it. Files that belong together are
replaced as one set: if a process is killed during the renames, the next writer finishes them.
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

# Suffix of the file that lists the renames of a set of files.
RENAMES = ".renames"

# Read once, because reading the umask requires setting it.
_UMASK = os.umask(0o077)
os.umask(_UMASK)
FILE_MODE = 0o666 & ~_UMASK


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it becomes `path` in one step, on error it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with _naming(path):
            yield temporary
            _follow_umask(temporary)
            sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


# Errors of a disk about the file being written, often without its name.
_WRITE_ERRORS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the path to errors of the disk that lack one."""
    try:
        yield
    except OSError as error:
        if error.errno in _WRITE_ERRORS and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def writing_all(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield a temporary path for each of `paths`; on success they replace `paths` as one set, on error none does.

    Every file must be written. Before the first rename, a list of all renames is on disk, next to the first of `paths`.
    If the process is killed after that, `finish_renames` does the rest. Each later `writing_all` with the same first
    path, and each `sweep` of its folder, calls it.
    """
    paths = [Path(path) for path in paths]
    folder = paths[0].parent
    finish_renames(folder, paths[0].name)
    for parent in {path.parent for path in paths}:
        parent.mkdir(parents=True, exist_ok=True)
    temporaries = [path.with_name(f".{path.name}.tmp-{os.getpid()}") for path in paths]
    with ExitStack() as leftovers:
        for temporary in temporaries:
            leftovers.callback(temporary.unlink, missing_ok=True)
        with _naming(paths[0]):
            yield temporaries
        for temporary in temporaries:
            _follow_umask(temporary)
            sync(temporary)
        pairs = zip(temporaries, paths, strict=True)
        renames = [[os.path.relpath(path, folder) for path in pair] for pair in pairs]
        with writing(folder / f".{paths[0].name}{RENAMES}") as rename_list:
            rename_list.write_text(canonical_json(renames))
        leftovers.pop_all()  # the set is complete: only renames remain
        finish_renames(folder, paths[0].name)


def finish_renames(folder: Path, name: str | None = None) -> None:
    """Finish the renames of each set of files in `folder`, or only of the set whose first file is `name`.

    Raises
    ------
    StoreError
        A list of renames is damaged.
    """
    for rename_list in sorted(Path(folder).glob(f".{'*' if name is None else glob.escape(name)}{RENAMES}")):
        try:
            renames = [
                (rename_list.parent / temporary, rename_list.parent / path)
                for temporary, path in json.loads(rename_list.read_text())
            ]
        except FileNotFoundError:  # another process was quicker
            continue
        except (TypeError, ValueError) as error:
            raise StoreError(
                f"{rename_list}: damaged ({error}); remove it and the files it should replace: {name or 'see its name'}"
            ) from error
        for temporary, path in renames:
            if temporary.exists():  # otherwise the killed process renamed it already
                os.replace(temporary, path)
        for parent in {path.parent for _, path in renames}:
            sync(parent)
        rename_list.unlink(missing_ok=True)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; on success it replaces the folder `path` in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with _naming(path):
            yield temporary
        for file in temporary.iterdir():
            _follow_umask(file)
            sync(file)
        sync(temporary)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _follow_umask(path: Path) -> None:
    """Give a file the permissions that the umask allows; some libraries create files for the owner only."""
    mode = path.stat().st_mode
    if path.is_file() and not path.is_symlink() and mode | FILE_MODE != mode:
        path.chmod(mode | FILE_MODE)


def require_room(path: Path, n_bytes: int, kept: str) -> None:
    """Check that a file system has room for a file before writing begins.

    Raises
    ------
    ResourceError
        There is too little room; `kept` says what is not lost.
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
    """Remove temporary files of killed writers in `folder`; only those of `name` if others may be writing there."""
    finish_renames(folder, name)
    for leftover in Path(folder).glob(f".{'*' if name is None else glob.escape(name)}.tmp-*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def canonical_json(value: Any) -> str:
    """Return the canonical JSON text of a value: sorted keys, no spaces, no NaN."""
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
    """Return a short hash of a JSON value: the first 12 hexadecimal digits of the SHA-256 of its canonical text."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:12]
