"""The factors by which estimates spread more than asymptotic standard errors say, by simulation.

`python -m tests.simulations.tabulate_spread [method …]` writes `estimators/standard_error_tables/<method>.py`; all
methods take forty minutes of two cores. For each geometry, d and n it draws clouds, estimates each, and divides the
standard deviation of the estimates over clouds by the root mean square of the asymptotic standard errors. Geometries:

torus     d angles, uniform, each as (cos, sin): flat, without a boundary, of one density;
gaussian  the standard normal distribution: its density changes from point to point.

In a row of a table (one n) the factors of a geometry stand at the mean estimates they were found at, are
interpolated in log d to the columns, and averaged over the geometries, the larger with twice the weight. Left out are
estimates no larger than those of fewer dimensions, and those that spread by less than half of their standard error,
as counts do that are nearly always the same. Clouds too
small for an estimator have the row of the next larger ones. A factor of one geometry is known to 1 / sqrt(2 n_clouds):
2.5 per cent at n = 1024. Estimators of saved clouds are dearer: they have fewer clouds of fewer n, as their tables
say, rows between two simulated are interpolated in log n, and their factors are known to 7 per cent.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

import id_scaling.estimators.standard_error_tables
from id_scaling.estimators.base import Estimator
from id_scaling.estimators.registry import get_estimator
from id_scaling.estimators.standard_errors import DIMENSION, N_POINTS
from id_scaling.neighbors.find import Neighbors, find_neighbors, stacked
from id_scaling.neighbors.statistics import group_of
from id_scaling.neighbors.views import View

FOLDER = Path(id_scaling.estimators.standard_error_tables.__file__).parent

# method -> name of the table -> parameter -> estimator
METHODS = {
    "mle": {
        "ARITHMETIC": {k: "mle" if k == 20 else f"mle_k{k}" for k in (5, 10, 20, 50, 100)},
        "HARMONIC": {k: "mle_harmonic" if k == 20 else f"mle_harmonic_k{k}" for k in (5, 10, 20, 50, 100, 200)},
        "MEDIAN": {k: "mle_median" if k == 20 else f"mle_median_k{k}" for k in (5, 20)},
    },
    "mind_ml": {"RATIO": {20: "mind_ml"}},
    "twonn": {
        "REGRESSION": {percent: f"twoNN_f{percent}" for percent in (0, 1, 2, 5, 10, 20, 50, 80)},
        "LIKELIHOOD": {0: "twoNN_ml"},
    },
    "gride": {"RATIO": {n1: f"gride_n{n1}" for n1 in (1, 2, 4, 8, 16, 32, 64, 128, 256)}},
    "mom": {"MOMENTS": {k: f"mom_k{k}" for k in (5, 10, 20, 50, 100, 200)}},
    "mada": {"RATIO": {20: "mada"}},
    "tle": {"MEAN": {20: "tle"}},
    "abid": {"MEAN": {k: f"abid_k{k}" for k in (20, 100)}},
    "local_pca": {"MEAN": {k: f"local_pca_k{k}_v90" for k in (20, 50)}},
}

TRUE_DIMENSIONS = (1, 2, 3, 5, 8, 12, 20, 40)
N_CLOUDS = {64: 2000, 128: 2000, 256: 2000, 512: 1000, 1024: 800, 2048: 300}
LEAST_SPREAD = 0.5
N_SAVED_CLOUDS = {256: 200, 1024: 100}
CLOUDS_AT_ONCE = 20
# Of the smaller and the larger factor: intervals too narrow by a tenth lose more coverage than too wide ones gain.
WEIGHTS = (1, 2)
# Errors below it, relative to the value, are rounding.
ROUNDING = 1e-12


def torus(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Return n points, uniform on a flat torus of d dimensions, (n, 2 d)."""
    angles = rng.uniform(0, 2 * np.pi, (n, d))
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def gaussian(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Return n points of the standard normal distribution in d dimensions, (n, d)."""
    return rng.standard_normal((n, d))


GEOMETRIES = {"torus": torus, "gaussian": gaussian}


def draw_clouds(geometry: str, d: int, n: int, n_clouds: int, *seed: int) -> Iterator[np.ndarray]:
    """Yield simulated clouds; another `seed` gives others."""
    rng = np.random.default_rng([list(GEOMETRIES).index(geometry), d, n, *seed])
    return (GEOMETRIES[geometry](rng, n, d) for _ in range(n_clouds))


def draw_neighbors(clouds: Iterator[np.ndarray], estimators: list[Estimator]) -> Iterator[Neighbors]:
    """Yield what some estimators read of clouds, some clouds at a time."""
    view = View(skip_first_tokens=0, duplicates="keep")
    ranks = sorted({1}.union(*(estimator.ranks for estimator in estimators)))
    groups = sorted({group_of(name) for estimator in estimators for name in estimator.statistics})
    while some := list(islice(clouds, CLOUDS_AT_ONCE)):
        yield stacked([find_neighbors(cloud, [view], ranks, groups)[0] for cloud in some])


def of_saved_clouds(estimators: list[Estimator], is_wanted: bool = True) -> list[Estimator]:
    """Return those estimators that read the points themselves, or those that do not."""
    return [estimator for estimator in estimators if (estimator.needs == "points") == is_wanted]


def n_clouds_of(estimator: Estimator) -> dict[int, int]:
    """Return how many clouds of each n are drawn for an estimator: of those that are large enough."""
    n_clouds = N_SAVED_CLOUDS if estimator.needs == "points" else N_CLOUDS
    return {n: count for n, count in n_clouds.items() if n >= estimator.min_points}


def simulate(cell: tuple[str, int, int], names: list[str]) -> dict[str, tuple[float, float]]:
    """Return, for each estimator simulated at this n, its mean and its spread over its standard error."""
    n = cell[-1]
    estimators = [estimator for estimator in map(get_estimator, names) if n in n_clouds_of(estimator)]
    found = {}
    with np.errstate(all="ignore"):
        if others := of_saved_clouds(estimators, False):
            batches = draw_neighbors(draw_clouds(*cell, N_CLOUDS[n]), others)
            found |= computed(others, ([estimator.compute(batch) for estimator in others] for batch in batches))
        if saved := of_saved_clouds(estimators):
            clouds = draw_clouds(*cell, N_SAVED_CLOUDS[n])
            found |= computed(saved, ([estimator.compute(cloud)[:2] for estimator in saved] for cloud in clouds))
    return {name: ratio(*found[name]) for name in found}


def computed(estimators: list[Estimator], found: Iterable[list[tuple]]) -> dict[str, np.ndarray]:
    """Return values and asymptotic standard errors over all clouds, (2, n_clouds), by estimator."""
    stacks = {estimator.name: batches for estimator, *batches in zip(estimators, *found, strict=True)}
    return {name: np.hstack([np.reshape(batch, (2, -1)) for batch in batches]) for name, batches in stacks.items()}


def ratio(value: np.ndarray, stderr: np.ndarray) -> tuple[float, float]:
    """Return the mean of the values, and their standard deviation over the root mean square of the errors, if any."""
    error = np.sqrt((stderr**2).mean())
    spread = value.std(ddof=1) / error if error > ROUNDING * value.mean() else np.nan
    return round(float(value.mean()), 3), round(float(spread), 3)


def table_of(estimator: Estimator, cells: dict[tuple[str, int, int], dict]) -> list[list[float]]:
    """Return the factors of an estimator, a row for each of N_POINTS, a column for each of DIMENSION."""
    simulated = list(n_clouds_of(estimator))
    columns = np.transpose([row_of(estimator.name, n, cells) for n in simulated])
    return np.transpose([np.interp(np.log(N_POINTS), np.log(simulated), column) for column in columns]).tolist()


def row_of(name: str, n: int, cells: dict[tuple[str, int, int], dict]) -> list[float]:
    """Return the factors of an estimator for one n: over the geometries at the same estimate, mostly the larger."""
    curves = [rising([cells[geometry, d, n][name] for d in TRUE_DIMENSIONS]) for geometry in GEOMETRIES]
    factors = np.sort([np.interp(np.log(DIMENSION), np.log(d), factor) for d, factor in curves], axis=0)
    return np.average(factors, axis=0, weights=WEIGHTS).tolist()


def rising(cells: list[tuple[float, float]]) -> np.ndarray:
    """Return estimates and factors, (2, m), of the cells that spread enough and whose estimate is above all before."""
    largest = np.maximum.accumulate([0.0, *(d for d, _ in cells)])
    return np.transpose(
        [
            (d, spread)
            for (d, spread), before in zip(cells, largest[:-1], strict=True)
            if d > before and spread > LEAST_SPREAD
        ]
    )


def source_of(method: str, cells: dict[tuple[str, int, int], dict]) -> str:
    """Return the module that holds the tables of a method."""
    lines = docstring_of(method)
    for constant, names in METHODS[method].items():
        lines += ["", f"{constant} = {{"]
        for parameter, name in names.items():
            rows = table_of(get_estimator(name), cells)
            lines += [f"    {parameter}: ("]
            lines += [f"        ({', '.join(f'{value:.3f}' for value in row)})," for row in rows]
            lines += ["    ),"]
        lines += ["}"]
    return "\n".join(lines) + "\n"


def docstring_of(method: str) -> list[str]:
    """Return the docstring of the module that holds the tables of a method, by lines."""
    first = f'"""Factors for the standard errors of `{method}.py`, made by `tests.simulations.tabulate_spread`.'
    if not of_saved_clouds([get_estimator(name) for name in names_of([method])]):
        return [f'{first}"""']
    drawn = ", ".join(f"{count} clouds of {n} points" for n, count in N_SAVED_CLOUDS.items())
    return [first, "", f"For each geometry and dimension: {drawn}.", '"""']


def names_of(methods: Iterable[str]) -> list[str]:
    """Return the estimators simulated for some methods."""
    return [name for method in methods for table in METHODS[method].values() for name in table.values()]


def main() -> None:
    """Simulate every cell and write the tables of the methods asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", default="all", choices=[*METHODS, "all"])
    parser.add_argument("--processes", type=int, default=2, help="how many run beside each other; default: 2")
    given = parser.parse_args()
    methods = list(METHODS) if "all" in given.methods else given.methods
    # The long ones first, so that both processes end together.
    keys = [(geometry, d, n) for n in N_POINTS[::-1] for d in TRUE_DIMENSIONS for geometry in GEOMETRIES]
    cells = {}
    with ProcessPoolExecutor(given.processes) as pool:
        for key, found in zip(keys, pool.map(partial(simulate, names=names_of(methods)), keys), strict=True):
            cells[key] = found
            print(*key, found, flush=True)
    for method in methods:
        (FOLDER / f"{method}.py").write_text(source_of(method, cells))


if __name__ == "__main__":
    main()
