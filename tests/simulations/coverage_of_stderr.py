"""Coverage of standard errors: how often an interval of 1.96 of them holds what the estimator gives on average.

`python -m tests.simulations.coverage_of_stderr` draws 2000 clouds of 1024 points, other than those the factors were
made of, on a flat torus and of a normal distribution, d = 2, 5, 10. Each estimator of `tabulate_spread` must cover
its own mean over the clouds (not the true d: bias is no part of a standard error) in 92 to 98 per cent of them, and so
must `corrint`, which has no factor. Estimators of saved clouds have 200 clouds and no upper bound: where all points
agree, as local PCA's on a plane, all clouds are covered.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import numpy as np

from id_scaling.estimators.apply import estimate_from_neighbors, finalize
from id_scaling.estimators.base import OK, Estimates, Estimator
from id_scaling.estimators.registry import get_estimator
from id_scaling.neighbors.find import Neighbors

from .tabulate_spread import GEOMETRIES, METHODS, draw_clouds, draw_neighbors, names_of, of_saved_clouds

NAMES = [*names_of(METHODS), "corrint"]
N_CLOUDS, N_SAVED_CLOUDS, N_POINTS = 2000, 200, 1024
LOWEST, HIGHEST = 0.92, 0.98
# Three standard errors of a coverage of 95 per cent of so few clouds.
CHANCE = 3 * np.sqrt(0.95 * 0.05 / N_SAVED_CLOUDS)
SEED = 1
N_PROCESSES = 2


def estimates(geometry: str, d: int, n: int, n_clouds: int, names: list[str]) -> dict[str, Estimates]:
    """Return the estimates of simulated clouds of n points, by estimator; all read the points themselves, or none."""
    estimators = [get_estimator(name) for name in names]
    clouds = draw_clouds(geometry, d, n, n_clouds, SEED)
    if of_saved_clouds(estimators):
        found = [[from_cloud(estimator, cloud) for estimator in estimators] for cloud in clouds]
    else:
        batches = draw_neighbors(clouds, estimators)
        found = [[estimate_from_neighbors(estimator, batch) for estimator in estimators] for batch in batches]
    fields = ("value", "stderr", "status")
    return {
        name: Estimates(*(np.concatenate([getattr(one, field) for one in parts]) for field in fields))
        for name, *parts in zip(names, *found, strict=True)
    }


def from_cloud(estimator: Estimator, cloud: np.ndarray) -> Estimates:
    """Return the estimate of one cloud from its points, in this process."""
    value, stderr, *local = estimator.compute(cloud)
    if estimator.is_mean and not local:
        local = [estimator.local(cloud)]
    status, locals_of_cloud = np.array([OK], dtype=object), np.array(local) if local else None
    return finalize(estimator, [value], [stderr], status, one_cloud(len(cloud)), locals_of_cloud)


def one_cloud(n: int) -> Neighbors:
    """Return what is known of a cloud whose n points all count."""
    return Neighbors((), np.ones((1, n)), np.empty((1, n, 0)), {"n_used": np.array([n])})


def is_covered(value: np.ndarray, stderr: np.ndarray) -> np.ndarray:
    """Return whether each value's 95 per cent interval holds the mean of the values."""
    return np.abs(value - value.mean()) <= 1.96 * stderr


def coverages(cell: tuple[str, int]) -> dict[str, float]:
    """Return the coverage of each estimator on one geometry and d."""
    estimators, found = [get_estimator(name) for name in NAMES], {}
    for is_saved, n_clouds in ((False, N_CLOUDS), (True, N_SAVED_CLOUDS)):
        names = [estimator.name for estimator in of_saved_clouds(estimators, is_saved)]
        found |= estimates(*cell, N_POINTS, n_clouds, names)
    return {name: float(is_covered(one.value, one.stderr).mean()) for name, one in found.items()}


def is_within_bounds(estimator: Estimator, coverage: float) -> bool:
    """Return whether an estimator covers as often as is asked of it."""
    if estimator.needs != "points":
        return LOWEST <= coverage <= HIGHEST
    return coverage >= LOWEST - CHANCE


def main() -> int:
    """Print the coverages; 1 when one is out of bounds."""
    cells = [(geometry, d) for d in (10, 5, 2) for geometry in GEOMETRIES]
    with ProcessPoolExecutor(N_PROCESSES) as pool:
        found = dict(zip(cells, pool.map(coverages, cells), strict=True))
    outside = 0
    for name in NAMES:
        row = {cell: found[cell][name] for cell in cells}
        outside += sum(not is_within_bounds(get_estimator(name), coverage) for coverage in row.values())
        print(f"{name:17s}", *(f"{geometry} {d}: {100 * coverage:.1f}" for (geometry, d), coverage in row.items()))
    print(f"{outside} out of bounds")
    return int(outside > 0)


if __name__ == "__main__":
    raise SystemExit(main())
