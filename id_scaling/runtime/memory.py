"""Check available memory before a large allocation, so that work that cannot fit fails early."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

from id_scaling.errors import ResourceError

GROUPS = Path("/sys/fs/cgroup")


def require(n_bytes: float, what: str, advice: str) -> None:
    """Raise an error if a computation needs more memory than is available.

    Parameters
    ----------
    n_bytes : float
        Memory that it needs.
    what, advice : str
        What needs it, and what to do.

    Raises
    ------
    ResourceError
        Less memory is available, as far as this system reports it.
    """
    available = min(_limits(), default=None)
    if available is not None and n_bytes > available:
        raise ResourceError(
            f"{what} needs {n_bytes / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB is free; {advice}"
        )


def _limits() -> Iterator[int]:
    """Yield the bytes left under each limit on this process; Linux reports all limits, other systems few."""
    lines = _lines(Path("/proc/meminfo"))
    yield from (1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    yield from _left(GROUPS / "memory.max", GROUPS / "memory.current")
    yield from _left(GROUPS / "memory/memory.limit_in_bytes", GROUPS / "memory/memory.usage_in_bytes")
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    if allowed != resource.RLIM_INFINITY:
        pages = int((_lines(Path("/proc/self/statm")) or ["0"])[0].split()[0])
        yield allowed - pages * resource.getpagesize()


def _left(limit: Path, used: Path) -> Iterator[int]:
    """Yield the bytes left in a control group with a limit; reclaimable caches, counted as used, are added back."""
    numbers = [line for path in (limit, used) for line in _lines(path)]
    if len(numbers) == 2 and all(number.isdigit() for number in numbers):
        statistics = _lines(limit.with_name("memory.stat"))
        cached = sum(int(line.split()[1]) for line in statistics if line.startswith("inactive_file "))
        yield int(numbers[0]) - int(numbers[1]) + cached


def _lines(path: Path) -> list[str]:
    """Return the lines of a system file; empty if it does not exist."""
    return path.read_text().splitlines() if path.is_file() else []
