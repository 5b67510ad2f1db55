"""Coverage of standard errors: how often an interval of 1.96 of them holds what the estimator gives on average.

`python -m tests.full.coverage_of_stderr` draws 2000 clouds of 1024 points, other than those the factors were
made of, on a flat torus and of a normal distribution, d = 2, 5, 10. Each estimator of `tabulate_spread` must cover
its own mean over the clouds (not the true d: bias is no part of a standard error) in 92 to 98 per cent of them.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import numpy as np

from id_scaling.estimators import get_estimator
from id_scaling.estimators.base import Estimates, estimate_from_neighbors

from .tabulate_spread import GEOMETRIES, METHODS, N_PROCESSES, draw_neighbors, names_of, ranks_of

N_CLOUDS, N_POINTS = 2000, 1024
LOWEST, HIGHEST = 0.92, 0.98
SEED = 1


def estimates(geometry: str, d: int, n_clouds: int, names: list[str]) -> dict[str, Estimates]:
    """Return the estimates of simulated clouds, by estimator."""
    estimators = [get_estimator(name) for name in names]
    batches = draw_neighbors(geometry, d, N_POINTS, n_clouds, ranks_of(estimators), SEED)
    found = [[estimate_from_neighbors(estimator, neighbors) for estimator in estimators] for neighbors in batches]
    fields = ("value", "stderr", "status")
    return {
        name: Estimates(*(np.concatenate([getattr(one, field) for one in parts]) for field in fields))
        for name, *parts in zip(names, *found, strict=True)
    }


def is_covered(value: np.ndarray, stderr: np.ndarray) -> np.ndarray:
    """Return whether each value's 95 per cent interval holds the mean of the values."""
    return np.abs(value - value.mean()) <= 1.96 * stderr


def coverages(cell: tuple[str, int]) -> dict[str, float]:
    """Return the coverage of each estimator on one geometry and d."""
    found = estimates(*cell, N_CLOUDS, names_of(METHODS))
    return {name: float(is_covered(one.value, one.stderr).mean()) for name, one in found.items()}


def main() -> int:
    """Print the coverages; 1 when one is out of bounds."""
    cells = [(geometry, d) for d in (10, 5, 2) for geometry in GEOMETRIES]
    with ProcessPoolExecutor(N_PROCESSES) as pool:
        found = dict(zip(cells, pool.map(coverages, cells), strict=True))
    outside = 0
    for name in names_of(METHODS):
        row = {cell: found[cell][name] for cell in cells}
        outside += sum(not LOWEST <= coverage <= HIGHEST for coverage in row.values())
        print(f"{name:14s}", *(f"{geometry} {d}: {100 * coverage:.1f}" for (geometry, d), coverage in row.items()))
    print(f"{outside} outside {LOWEST:.0%} to {HIGHEST:.0%}")
    return int(outside > 0)


if __name__ == "__main__":
    raise SystemExit(main())
