"""The neighbors of several clouds at once on the CPU, in a process for each core.

Threads would do, but for a quarter of the time they wait for one another to leave the interpreter. Clouds are handed
over in memory that all processes share; a single cloud, or a single core, is dealt with in place.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from id_scaling.children import ask_child
from id_scaling.neighbors import Neighbors, find_neighbors


class Searchers:
    """Processes that find neighbors.

    Parameters
    ----------
    n_processes : int
        How many clouds are searched at once.
    """

    def __init__(self, n_processes: int) -> None:
        self._is_alone, self._room = n_processes == 1, _Room()
        self._askers = ThreadPoolExecutor(n_processes)

    def find(self, clouds: torch.Tensor, questions: Sequence[Mapping[str, Any]]) -> list[list[Neighbors]]:
        """Return what `find_neighbors` returns for each cloud (clouds, tokens, d) and its other arguments."""
        if clouds.device.type != "cpu":
            return [find_neighbors(cloud, **question) for cloud, question in zip(clouds, questions, strict=True)]
        if self._is_alone or len(clouds) == 1:
            rows = (clouds.float() if clouds.dtype == torch.bfloat16 else clouds).numpy()
            return [find_neighbors(cloud, **question) for cloud, question in zip(rows, questions, strict=True)]
        places = self._room.hold(clouds)
        return list(self._askers.map(self._ask, places, questions))

    def _ask(self, place: tuple, question: Mapping[str, Any]) -> list[Neighbors]:
        return ask_child(find_in_room, place, question, files=(self._room.file,))


class _Room:
    """Memory that child processes read, as an open file without a name: it is gone with the last of them."""

    def __init__(self) -> None:
        is_linux = hasattr(os, "memfd_create")
        self._opened = open(os.memfd_create("clouds"), "r+b") if is_linux else tempfile.TemporaryFile()  # noqa: SIM115
        self.file = self._opened.fileno()
        self._memory: mmap.mmap | None = None

    def hold(self, clouds: torch.Tensor) -> list[tuple]:
        """Copy clouds in, bfloat16, which numpy lacks, as float32, and return the place of each."""
        dtype = torch.float32 if clouds.dtype == torch.bfloat16 else clouds.dtype
        n_bytes = clouds.numel() * dtype.itemsize
        if self._memory is None or len(self._memory) < n_bytes:
            os.ftruncate(self.file, n_bytes)
            self._memory = mmap.mmap(self.file, n_bytes)
        held = torch.frombuffer(self._memory, dtype=dtype, count=clouds.numel()).reshape(clouds.shape)
        held.copy_(clouds)
        name, step = str(dtype).removeprefix("torch."), n_bytes // len(clouds)
        return [(self.file, name, tuple(clouds.shape[1:]), step * index) for index in range(len(clouds))]


_memories: dict[int, mmap.mmap] = {}


def find_in_room(place: tuple[int, str, tuple[int, ...], int], question: Mapping[str, Any]) -> list[Neighbors]:
    """Return what `find_neighbors` returns for the cloud at a place of shared memory."""
    file, name, shape, start = place
    count = int(np.prod(shape))
    if file not in _memories or len(_memories[file]) < start + count * np.dtype(name).itemsize:
        _memories[file] = mmap.mmap(file, 0, prot=mmap.PROT_READ)
    cloud = np.frombuffer(_memories[file], name, count, start).reshape(shape)
    return find_neighbors(cloud, **question)
