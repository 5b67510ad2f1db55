"""The HDF5 store of one run: its layout, and how it grows part by part into whole layer files.

`layer_00.h5`, … and `outblock.h5` hold a group per module key, in it

- `<view>/r1` (contexts, tokens) float64, `<view>/log_ratio` (contexts, tokens, ranks) float32 and
  `<view>/statistics` (contexts, names) float64, as `id_scaling.neighbors.find` defines them;
- `mean` and `positions/<position>` (contexts, d) float32, and `activations` (contexts, tokens, d), when they are saved.

Every dataset is chunked by context, `log_ratio` by some ranks too (an estimator reads few), and carries Fletcher-32
checksums, which HDF5 verifies on reading. Contexts are computed in parts of a fixed number, one folder a part, complete
once it has its final name; each layer file is then put together from all parts. A kill loses the part in hand and
nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from id_scaling.models.modules import Site
from id_scaling.runtime.atomic_files import canonical_json, require_room, writing, writing_folder
from id_scaling.storage.layout import file_of

CONTEXTS_A_PART = 8
# Bytes of free room beyond what values take: a file that meets the end of the disk can take HDF5 with it.
MARGIN = 2**20
RANKS_A_CHUNK = 12
TOKENS_FILE = "tokens.h5"


def plan_parts(n_contexts: int) -> list[range]:
    """Return the contexts of each part."""
    return [range(start, min(start + CONTEXTS_A_PART, n_contexts)) for start in range(0, n_contexts, CONTEXTS_A_PART)]


class PartWriter:
    """Writes one part: use as a context manager; the part exists once the block ends without error.

    Parameters
    ----------
    folder : Path
        The part's final name.
    n_contexts : int
        Contexts in the part.
    """

    def __init__(self, folder: Path, n_contexts: int) -> None:
        self._folder, self._n_contexts = writing_folder(folder), n_contexts
        self._files: dict[str, h5py.File] = {}
        self._n_bytes_to_come = 0  # of datasets that are begun

    def __enter__(self) -> PartWriter:
        self._aside = self._folder.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for file in self._files.values():
            file.close()
        self._folder.__exit__(*error)

    def write_site(self, site: Site, first: int, arrays: dict[str, np.ndarray]) -> None:
        """Write the arrays of a site for the contexts from `first` on, each with contexts in front."""
        for name, values in arrays.items():
            self._write(file_of(site.layer), f"{site.module}/{name}", first, values)

    def write_tokens(self, first: int, arrays: dict[str, np.ndarray]) -> None:
        """Write per-token arrays for the contexts from `first` on."""
        for name, values in arrays.items():
            self._write(TOKENS_FILE, name, first, values)

    def _write(self, file_name: str, path: str, first: int, values: np.ndarray) -> None:
        if file_name not in self._files:
            self._files[file_name] = h5py.File(self._aside / file_name, "w")
        file = self._files[file_name]
        if path not in file:
            self._n_bytes_to_come += self._n_contexts * values[0].nbytes
            require_room(self._aside / file_name, self._n_bytes_to_come + MARGIN, "finished parts are kept")
            _create(file, path, (self._n_contexts, *values.shape[1:]), values.dtype)
        elif np.promote_types(file[path].dtype, values.dtype) != file[path].dtype:
            _widen(file, path, values.dtype)
        file[path][first : first + len(values)] = values
        self._n_bytes_to_come -= values.nbytes


def assemble(parts: list[Path], name: str, output: Path, attributes: dict[str, Any]) -> None:
    """Put the parts' files of one name together as `output`, then drop them from the parts.

    A finished `output` with the same attributes is kept, so that an interrupted assembly goes on.
    """
    if not is_made_with(output, attributes):
        n_bytes = sum((part / name).stat().st_size for part in parts)
        require_room(output, n_bytes + MARGIN, "what was extracted is kept")
        # The format of HDF5 1.10 and later checks its structure too, not the data alone.
        with writing(output) as aside, h5py.File(aside, "w", libver="latest") as target:
            _concatenate([part / name for part in parts], target)
            for key, value in attributes.items():
                target.attrs[key] = _attribute(value)
    for part in parts:
        (part / name).unlink(missing_ok=True)


def is_made_with(path: Path, attributes: dict[str, Any]) -> bool:
    """Return whether a layer file exists and carries these attributes."""
    try:
        with h5py.File(path, "r") as file:
            return all(file.attrs.get(key) == _attribute(value) for key, value in attributes.items())
    except (OSError, KeyError, ValueError, RuntimeError):
        return False


def is_whole(path: Path) -> bool:
    """Return whether every dataset of a file can be read, checksums and all, a chunk in memory at a time."""

    def read(_: str, item: h5py.Dataset | h5py.Group) -> None:
        for row in range(len(item)) if isinstance(item, h5py.Dataset) else ():
            item[row]

    try:
        with h5py.File(path, "r") as file:
            file.visititems(read)
    except (OSError, KeyError, ValueError, RuntimeError):
        return False
    return True


def attribute(path: Path, name: str) -> Any:
    """Return one attribute of a layer file, read as JSON."""
    with h5py.File(path, "r") as file:
        return json.loads(file.attrs[name])


def drop_parts(folder: Path) -> None:
    """Remove the parts of a run: out of sight in one step, then one by one."""
    if folder.is_dir():
        aside = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
        os.replace(folder, aside)
        shutil.rmtree(aside)


def _concatenate(sources: list[Path], target: h5py.File) -> None:
    """Write the datasets of several files one after another along contexts, one chunk in memory."""
    opened = [h5py.File(path, "r") for path in sources]
    try:
        paths: list[str] = []
        opened[0].visititems(lambda path, item: paths.append(path) if isinstance(item, h5py.Dataset) else None)
        for path in paths:
            pieces = [file[path] for file in opened]
            dtype = np.result_type(*(piece.dtype for piece in pieces))
            n_contexts = sum(len(piece) for piece in pieces)
            whole = _create(target, path, (n_contexts, *pieces[0].shape[1:]), dtype)
            rows = (piece[row] for piece in pieces for row in range(len(piece)))
            for row, values in enumerate(rows):
                whole[row] = values
    finally:
        for file in opened:
            file.close()


def _create(file: h5py.File, path: str, shape: tuple[int, ...], dtype: np.dtype) -> h5py.Dataset:
    """Create a dataset chunked by context, with checksums."""
    *cloud, last = shape[1:]
    chunks = (1, *cloud, min(last, RANKS_A_CHUNK) if path.endswith("/log_ratio") else last)
    return file.create_dataset(path, shape, dtype, chunks=chunks, fletcher32=True)


def _widen(file: h5py.File, path: str, dtype: np.dtype) -> None:
    """Replace a dataset by one of a wider type with the same values."""
    values = file[path][:]
    del file[path]
    _create(file, path, values.shape, np.promote_types(values.dtype, dtype))[:] = values


def _attribute(value: Any) -> str:
    """Return how a value stands in an attribute: text as it is, the rest as canonical JSON."""
    return value if isinstance(value, str) else canonical_json(value)
