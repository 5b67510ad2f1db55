"""The task of a worker process: find neighbors of a cloud in shared memory. Imports no torch, so workers start fast."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import Any

import numpy as np

from id_scaling.neighbors.find import Neighbors, find_neighbors

# The mapped memory of each file that the worker received.
_MEMORIES: dict[int, mmap.mmap] = {}


def find_in_room(place: tuple[int, str, tuple[int, ...], int], question: Mapping[str, Any]) -> list[Neighbors]:
    """Return the result of `find_neighbors` for the cloud at a place in shared memory."""
    file, name, shape, start = place
    count = int(np.prod(shape))
    if file not in _MEMORIES or len(_MEMORIES[file]) < start + count * np.dtype(name).itemsize:
        _MEMORIES[file] = mmap.mmap(file, 0, prot=mmap.PROT_READ)
    cloud = np.frombuffer(_MEMORIES[file], name, count, start).reshape(shape)
    return find_neighbors(cloud, **question)
