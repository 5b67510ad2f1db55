"""Find the neighbors of several clouds at once on the CPU, with one process per core.

Threads would spend a quarter of the time waiting for the interpreter lock. Processes read clouds from shared memory. A
single cloud, or a single core, is processed in the calling process.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from id_scaling.errors import ResourceError
from id_scaling.neighbors.find import Neighbors, find_neighbors
from id_scaling.neighbors.worker import find_in_room
from id_scaling.runtime.workers import ChildError, ask_child, ending_children

if TYPE_CHECKING:
    import torch


class Searchers:
    """A pool of processes that find neighbors.

    Parameters
    ----------
    n_processes : int
        Number of clouds that are searched at once.
    """

    def __init__(self, n_processes: int) -> None:
        self._is_single, self._room = n_processes == 1, _Room()
        self._threads = ThreadPoolExecutor(n_processes)

    def find(self, clouds: torch.Tensor, questions: Sequence[Mapping[str, Any]]) -> list[list[Neighbors]]:
        """Return the result of `find_neighbors` for each of the clouds (clouds, tokens, d) with its arguments."""
        is_on_cpu = clouds.device.type == "cpu"
        try:
            if is_on_cpu and not self._is_single and len(clouds) > 1:
                with ending_children():
                    return list(self._threads.map(self._ask, self._room.hold(clouds), questions))
            points = on_host(clouds) if is_on_cpu else clouds
            return [find_neighbors(cloud, **question) for cloud, question in zip(points, questions, strict=True)]
        except (ChildError, MemoryError) as error:
            if not getattr(error, "lacks_memory", True):
                raise
            shape = tuple(clouds.shape[1:])
            raise ResourceError(
                f"neighbors of a cloud of {shape}: {error}; give the job more memory, or fewer threads"
            ) from error

    def _ask(self, place: tuple, question: Mapping[str, Any]) -> list[Neighbors]:
        """Return the neighbors of the cloud at a place in shared memory, computed by a worker process."""
        return ask_child(find_in_room, place, question, files=(self._room.file,))


def on_host(clouds: torch.Tensor) -> np.ndarray:
    """Return activations as numpy without rounding: bfloat16, which numpy lacks, becomes float32."""
    import torch

    return (clouds.float() if clouds.dtype == torch.bfloat16 else clouds).cpu().numpy()


class _Room:
    """Memory shared with worker processes: an open file without a name, which disappears with its last process."""

    def __init__(self) -> None:
        is_linux = hasattr(os, "memfd_create")
        self._handle = open(os.memfd_create("clouds"), "r+b") if is_linux else tempfile.TemporaryFile()  # noqa: SIM115
        self.file = self._handle.fileno()
        self._memory: mmap.mmap | None = None

    def hold(self, clouds: torch.Tensor) -> list[tuple]:
        """Copy clouds in, bfloat16 as float32, and return the place of each: file, dtype, shape, and first byte."""
        import torch

        dtype = torch.float32 if clouds.dtype == torch.bfloat16 else clouds.dtype
        n_bytes = clouds.numel() * dtype.itemsize
        if self._memory is None or len(self._memory) < n_bytes:
            os.ftruncate(self.file, n_bytes)
            self._memory = mmap.mmap(self.file, n_bytes)
        held = torch.frombuffer(self._memory, dtype=dtype, count=clouds.numel()).reshape(clouds.shape)
        held.copy_(clouds)
        name, step = str(dtype).removeprefix("torch."), n_bytes // len(clouds)
        return [(self.file, name, tuple(clouds.shape[1:]), step * index) for index in range(len(clouds))]
