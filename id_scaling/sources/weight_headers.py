"""What the headers of weight files say, names, types and shapes of tensors, without reading a tensor and without torch.

The safetensors library checks a header when it opens a file: sizes, types, and that the tensors cover the file with no
gap and no overlap. So a file that is cut short or garbled is known before any job.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from id_scaling.errors import InputError, of_a_disk
from id_scaling.runtime.atomic_files import read_json
from id_scaling.sources.safe_files import SAFE, weight_files

AGAIN = "fetch or save the model again"
LFS_POINTER = b"version https://git-lfs"


class Stored(NamedTuple):
    """The type of a tensor in a file, as safetensors calls it, and its shape."""

    dtype: str
    shape: tuple[int, ...]


def read_headers(folder: Path) -> dict[str, Stored]:
    """Return the tensors in the safetensors files that a checkpoint is loaded from, by name.

    Raises
    ------
    InputError
        A file is not whole, or lacks a tensor that the index says it has.
    """
    of_files = {path.name: read_header(path) for path in weight_files(folder) if path.suffix == ".safetensors"}
    if not (folder / SAFE).is_file():
        check_index(folder / f"{SAFE}.index.json", of_files)
    return {name: stored for header in of_files.values() for name, stored in header.items()}


def read_header(path: Path) -> dict[str, Stored]:
    """Return the tensors in a safetensors file, by name; raises an InputError where the file is not whole."""
    try:
        with safe_open(path, "np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  it is not a mapping
            header = {name: Stored(str(one.get_dtype()), tuple(one.get_shape())) for name, one in slices.items()}
    except SafetensorError as error:
        raise InputError(f"{path}: {_damage(path, error)}") from error
    except OSError as error:
        raise of_a_disk(error) or InputError(f"{path}: cannot be read ({error}); {AGAIN}") from error
    if not header:
        raise InputError(f"{path}: found no tensors, expected the weights of a model; {AGAIN}")
    return header


def check_index(index: Path, of_files: Mapping[str, Mapping[str, Stored]]) -> None:
    """Raise an InputError where an index names a tensor that is not in the file that it names."""
    for name, file in read_json(index)["weight_map"].items():
        if name not in of_files[file]:
            raise InputError(f"{index}: names the tensor {name!r} in {file}, which does not hold it; {AGAIN}")


def modules_of(tensors: Iterable[str]) -> set[str]:
    """Return the paths of modules that hold tensors of these names, and of their parents."""
    found = set()
    for name in tensors:
        parts = name.split(".")[:-1]
        found |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    return found


def _damage(path: Path, error: SafetensorError) -> str:
    """Return what to say of a file that is no whole safetensors file."""
    with open(path, "rb") as file:
        is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    if is_pointer:
        return "found a git-lfs pointer, expected weights; run `git lfs pull` in its folder, or fetch the model again"
    size = path.stat().st_size
    return f"damaged or cut short: found {size} bytes that are not a whole safetensors file ({error}); {AGAIN}"
