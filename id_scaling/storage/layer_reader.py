"""Reads the layer files of a run for estimates and figures, after checking them against the manifest."""

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
    """Return the stored neighbors of contexts of a run at one site under one view, as `read_neighbors` does.

    Raises
    ------
    StoreError
        The layer file is missing, is not the one in the manifest, or does not match its checksums.
    """
    with reading(verified(folder, manifest, layer), manifest) as file:
        return read_neighbors(file, f"{module}/{view}", manifest, rows, ranks)


def verified(folder: Path, manifest: Mapping[str, Any], layer: int | None) -> Path:
    """Return the path of a layer file after checking that it is the one in the manifest."""
    name = file_of(layer)
    path = folder / name
    remedy = made_anew(folder / "manifest.json")
    if manifest.get("layout") != LAYOUT_VERSION:
        layout = manifest.get("layout", "none")
        raise StoreError(
            f"{folder / 'manifest.json'}: found storage layout {layout}, expected {LAYOUT_VERSION}: written by another "
            f"version of id_scaling; {remedy}"
        )
    if not path.is_file():
        raise StoreError(f"{path}: missing, though the manifest names it; {remedy}")
    n_bytes, n_bytes_expected = path.stat().st_size, manifest["files"][name]["bytes"]
    if n_bytes != n_bytes_expected:
        raise StoreError(f"{path}: found {n_bytes} bytes, the manifest says {n_bytes_expected}; {remedy}")
    with _opened(path) as file:
        if file.attrs.get("digest") != manifest["digest"] or file.attrs.get("layout") != str(LAYOUT_VERSION):
            raise StoreError(f"{path}: made by another extraction than its manifest; {remedy}")
        external_name = next(_external_names(file), None)
        if external_name:
            raise StoreError(
                f"{path}: {external_name} is a link, or its data is in another file; no extraction writes such a file; "
                f"{remedy}"
            )
    return path


def _external_names(group: h5py.Group) -> Iterator[str]:
    """Yield the names in a group whose values HDF5 would read through a link or from another file."""
    for name in group:
        item = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
        if isinstance(item, h5py.Group):
            yield from _external_names(item)
        elif not isinstance(item, h5py.Dataset) or item.external or item.is_virtual:
            yield f"{group.name}/{name}"


@contextmanager
def reading(path: Path, manifest: Mapping[str, Any]) -> Iterator[LayerFile]:
    """Yield a layer file whose values are verified when they are read; any damage raises a StoreError."""
    with _opened(path) as file:
        yield LayerFile(file, manifest["files"][path.name]["checksums"])


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Yield an open layer file; any damage that HDF5 detects raises a StoreError."""
    try:
        with open_hdf5(path) as file:
            yield file
    except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise StoreError(f"{path}: damaged ({error}); {made_anew(path.parent / 'manifest.json')}") from error


def read_neighbors(
    file: LayerFile, group: str, manifest: Mapping[str, Any], rows: range, ranks: tuple[int, ...]
) -> Neighbors:
    """Return the stored neighbors of contexts under one view, from the smallest to the largest requested rank."""
    stored = list(manifest["ranks"])
    columns = slice(stored.index(min(ranks)), stored.index(max(ranks)) + 1) if ranks else slice(0)
    values = file.read(f"{group}/statistics", rows).T
    statistics = dict(zip(manifest["statistics"], values, strict=True))
    r1, log_ratio = file.read(f"{group}/r1", rows), file.read(f"{group}/log_ratio", rows, columns)
    return Neighbors(tuple(stored[columns]), r1, log_ratio, statistics)
