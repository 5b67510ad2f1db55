"""The layer files of a run, read by what estimates and what draws once they are known to be its manifest's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from id_scaling.errors import StoreError, made_anew
from id_scaling.neighbors.find import Neighbors
from id_scaling.storage.checksums import LayerFile, open_hdf5
from id_scaling.storage.layout import LAYOUT_VERSION, file_of


def neighbors_at(
    folder: Path, manifest: Mapping[str, Any], layer: int | None, module: str, view: str, rows: range, ranks: tuple
) -> Neighbors:
    """Return the stored neighbors of some contexts of a run at one site under one view, as `read_neighbors` does.

    Raises
    ------
    StoreError
        The layer file is missing, is not the one the manifest names, or fails its checksums.
    """
    with reading(verified(folder, manifest, layer), manifest) as file:
        return read_neighbors(file, f"{module}/{view}", manifest, rows, ranks)


def verified(folder: Path, manifest: Mapping[str, Any], layer: int | None) -> Path:
    """Return a layer file, once it is known to be the one the manifest names."""
    name = file_of(layer)
    path = folder / name
    mend = made_anew(folder / "manifest.json")
    if manifest.get("layout") != LAYOUT_VERSION:
        layout = manifest.get("layout", "none")
        raise StoreError(
            f"{folder / 'manifest.json'}: found storage layout {layout}, expected {LAYOUT_VERSION}: written by another "
            f"version of id_scaling; {mend}"
        )
    if not path.is_file():
        raise StoreError(f"{path}: missing, though the manifest names it; {mend}")
    found, expected = path.stat().st_size, manifest["files"][name]["bytes"]
    if found != expected:
        raise StoreError(f"{path}: found {found} bytes, the manifest says {expected}; {mend}")
    with _opened(path) as file:
        if file.attrs.get("digest") != manifest["digest"] or file.attrs.get("layout") != str(LAYOUT_VERSION):
            raise StoreError(f"{path}: made by another extraction than its manifest; {mend}")
        foreign = next(_foreign(file), None)
        if foreign:
            raise StoreError(f"{path}: {foreign} stands in another file, which no extraction writes; {mend}")
    return path


def _foreign(group: h5py.Group) -> Iterator[str]:
    """Yield the names in a group whose values HDF5 would take from another file."""
    for name in group:
        item = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
        if isinstance(item, h5py.Group):
            yield from _foreign(item)
        elif not isinstance(item, h5py.Dataset) or item.external or item.is_virtual:
            yield f"{group.name}/{name}"


@contextmanager
def reading(path: Path, manifest: Mapping[str, Any]) -> Iterator[LayerFile]:
    """Open a layer file whose values are verified as they are read; whatever damage is in it is one error."""
    with _opened(path) as file:
        yield LayerFile(file, manifest["files"][path.name]["checksums"])


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open a layer file; whatever damage HDF5 finds in it is one error."""
    try:
        with open_hdf5(path) as file:
            yield file
    except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise StoreError(f"{path}: damaged ({error}); {made_anew(path.parent / 'manifest.json')}") from error


def read_neighbors(
    file: LayerFile, group: str, manifest: Mapping[str, Any], rows: range, ranks: tuple[int, ...]
) -> Neighbors:
    """Return the stored neighbors of some contexts under one view, from the first to the last rank asked."""
    stored = list(manifest["ranks"])
    columns = slice(stored.index(min(ranks)), stored.index(max(ranks)) + 1) if ranks else slice(0)
    values = file.read(f"{group}/statistics", rows).T
    statistics = dict(zip(manifest["statistics"], values, strict=True))
    r1, log_ratio = file.read(f"{group}/r1", rows), file.read(f"{group}/log_ratio", rows, columns)
    return Neighbors(tuple(stored[columns]), r1, log_ratio, statistics)
