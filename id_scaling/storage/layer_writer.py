"""Writes the HDF5 files of a run: part by part, and then assembled into layer files.

`layer_00.h5`, … and `outblock.h5` hold an HDF5 group per module key, with the datasets

- `<view>/r1` (contexts, tokens) float64, `<view>/log_ratio` (contexts, tokens, ranks) float32 and
  `<view>/statistics` (contexts, names) float64, as `id_scaling.neighbors.find` defines them;
- `mean` and `positions/<position>` (contexts, d) float32, and `activations` (contexts, tokens, d), if they are saved.

Every dataset is chunked by context, and `log_ratio` also by ranks, since an estimator reads few of them. It has
Fletcher-32 checksums, which HDF5 verifies on reading, and the stronger ones of `id_scaling.storage.checksums`. Contexts
are computed in parts of a fixed number. A part is a folder, which is complete if it has its final name. Layer files are
then assembled from all parts. A kill loses only the current part. A part holds a sealed record with the SHA-256 of each
of its files: a part that is not as it was written is never assembled.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from id_scaling.errors import StoreError
from id_scaling.models.modules import Site
from id_scaling.runtime.atomic_files import canonical_json, require_room, sha256, writing, writing_folder
from id_scaling.storage.checksums import CHECKSUMS, open_hdf5, row_checksums, write_index
from id_scaling.storage.layout import file_of
from id_scaling.storage.records import read_record, write_record

CONTEXTS_A_PART = 8
# Bytes of free room in addition to the values: HDF5 can crash if the disk becomes full while it writes.
MARGIN = 2**20
RANKS_A_CHUNK = 12
TOKENS_FILE = "tokens.h5"
PART_RECORD = "part.json"


class DamagedPartError(StoreError):
    """A part that is not as it was written."""

    def __init__(self, part: Path, damage: str) -> None:
        super().__init__(f"{part}: damaged ({damage})")
        self.part = part


def plan_parts(n_contexts: int) -> list[range]:
    """Return the contexts of each part."""
    return [range(start, min(start + CONTEXTS_A_PART, n_contexts)) for start in range(0, n_contexts, CONTEXTS_A_PART)]


@contextmanager
def writing_part(folder: Path, n_contexts: int) -> Iterator[PartWriter]:
    """Yield the writer of a part; the part and its record exist once the block ends without an error.

    Parameters
    ----------
    folder : Path
        The part's final name.
    n_contexts : int
        Contexts in the part.
    """
    with writing_folder(folder) as temporary:
        writer = PartWriter(temporary, n_contexts)
        try:
            yield writer
        finally:
            writer.close()
        files = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
        write_record(temporary / PART_RECORD, {"part": folder.name, "files": files})


class PartWriter:
    """Writes the files of one part into a folder."""

    def __init__(self, folder: Path, n_contexts: int) -> None:
        self._folder, self._n_contexts = folder, n_contexts
        self._files: dict[str, h5py.File] = {}
        self._n_bytes_pending = 0  # of datasets that are created but not complete

    def close(self) -> None:
        """Close all files, even if closing one of them fails."""
        with ExitStack() as files:
            for file in self._files.values():
                files.callback(file.close)

    def write_site(self, site: Site, first: int, arrays: dict[str, np.ndarray]) -> None:
        """Write the arrays of a site for the contexts from `first` on; contexts are their first axis."""
        for name, values in arrays.items():
            self._write(file_of(site.layer), f"{site.module}/{name}", first, values)

    def write_tokens(self, first: int, arrays: dict[str, np.ndarray]) -> None:
        """Write per-token arrays for the contexts from `first` on."""
        for name, values in arrays.items():
            self._write(TOKENS_FILE, name, first, values)

    def _write(self, file_name: str, path: str, first: int, values: np.ndarray) -> None:
        if file_name not in self._files:
            self._files[file_name] = open_hdf5(self._folder / file_name, "w")
        file = self._files[file_name]
        if path not in file:
            self._n_bytes_pending += self._n_contexts * values[0].nbytes
            require_room(self._folder / file_name, self._n_bytes_pending + MARGIN, "finished parts are kept")
            _create(file, path, (self._n_contexts, *values.shape[1:]), values.dtype)
        elif np.promote_types(file[path].dtype, values.dtype) != file[path].dtype:
            _widen(file, path, values.dtype)
        file[path][first : first + len(values)] = values
        self._n_bytes_pending -= values.nbytes


def find_damage(part: Path, without: Collection[str] = (), only: str | None = None) -> str | None:
    """Return a description of the damage of a part; None if it is as it was written.

    Parameters
    ----------
    part : Path
        Folder of the part.
    without : collection of str
        Names of files that are no longer needed.
    only : str, optional
        The only file to check.
    """
    try:
        record = read_record(part / PART_RECORD)
    except StoreError as error:
        return str(error).removeprefix(f"{part}/").partition("; ")[0]
    if record["part"] != part.name:
        return f"its record is that of {record['part']}"
    names = (record["files"].keys() if only is None else {only}) - set(without)
    return next(filter(None, (_find_damage_of_file(part / name, record["files"].get(name)) for name in names)), None)


def _find_damage_of_file(path: Path, expected: str | None) -> str | None:
    """Return a description of the damage of a file of a part; None if it is as it was written."""
    if expected is None or not path.is_file():
        return f"{path.name} is not there"
    return None if sha256(path) == expected else f"{path.name} is not as it was written"


def assemble(parts: list[Path], name: str, output: Path, attributes: dict[str, Any]) -> dict[str, Any]:
    """Assemble the files with one name in all parts as `output`; return the manifest's entry for it.

    Raises
    ------
    DamagedPartError
        A file of a part is not as it was written.
    """
    for part in parts:
        if damage := find_damage(part, only=name):
            raise DamagedPartError(part, damage)
    n_bytes = sum((part / name).stat().st_size for part in parts)
    require_room(output, n_bytes + MARGIN, "what was extracted is kept")
    with writing(output) as temporary:
        # The format of HDF5 1.10 and later has checksums of its structure, and not only of the data.
        with open_hdf5(temporary, "w", libver="latest") as target:
            _concatenate([part / name for part in parts], target)
            for key, value in attributes.items():
                target.attrs[key] = _attribute_text(value)
            checksums = write_index(target)
        return {"bytes": temporary.stat().st_size, "sha256": sha256(temporary), "checksums": checksums}


def drop_pieces(parts: list[Path], name: str) -> None:
    """Remove the files with one name from all parts after they are assembled."""
    for part in parts:
        (part / name).unlink(missing_ok=True)


def is_as_recorded(path: Path, record: Mapping[str, Any]) -> bool:
    """Return whether an assembled file exists and equals its manifest entry to the last bit."""
    return path.is_file() and path.stat().st_size == record["bytes"] and sha256(path) == record["sha256"]


def read_tokens(path: Path) -> dict[str, np.ndarray]:
    """Return the per-token arrays of an assembled file, each (contexts, tokens)."""
    with open_hdf5(path) as file:
        return {name: file[name][:] for name in file}


def drop_parts(folder: Path) -> None:
    """Remove the parts of a run; first rename their folder, so that an interruption leaves no part of it visible."""
    if folder.is_dir():
        hidden = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
        os.replace(folder, hidden)
        shutil.rmtree(hidden)


def _concatenate(sources: list[Path], target: h5py.File) -> None:
    """Concatenate the datasets of files along contexts, with checksums and with one context in memory at a time."""
    with ExitStack() as stack:
        files = [stack.enter_context(open_hdf5(path)) for path in sources]
        dataset_paths: list[str] = []
        files[0].visititems(lambda path, item: dataset_paths.append(path) if isinstance(item, h5py.Dataset) else None)
        for path in dataset_paths:
            pieces = [file[path] for file in files]
            dtype = np.result_type(*(piece.dtype for piece in pieces))
            n_contexts = sum(len(piece) for piece in pieces)
            dataset = _create(target, path, (n_contexts, *pieces[0].shape[1:]), dtype)
            checksums = []
            for row, values in enumerate(piece[row] for piece in pieces for row in range(len(piece))):
                widened = values.astype(dtype, copy=False)
                dataset[row] = widened
                checksums.append(row_checksums(widened[None], dataset.chunks[-1]))
            dataset.attrs[CHECKSUMS] = np.concatenate(checksums)


def _create(file: h5py.File, path: str, shape: tuple[int, ...], dtype: np.dtype) -> h5py.Dataset:
    """Return a new dataset, chunked by context, with Fletcher-32 checksums."""
    *cloud, last = shape[1:]
    chunks = (1, *cloud, min(last, RANKS_A_CHUNK) if path.endswith("/log_ratio") else last)
    return file.create_dataset(path, shape, dtype, chunks=chunks, fletcher32=True)


def _widen(file: h5py.File, path: str, dtype: np.dtype) -> None:
    """Replace a dataset with one that has the same values in a wider type."""
    values = file[path][:]
    del file[path]
    _create(file, path, values.shape, np.promote_types(values.dtype, dtype))[:] = values


def _attribute_text(value: Any) -> str:
    """Return the text of an attribute: a string unchanged, any other value as canonical JSON."""
    return value if isinstance(value, str) else canonical_json(value)
