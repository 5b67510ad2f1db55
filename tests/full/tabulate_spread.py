"""The factors by which estimates spread more than asymptotic standard errors say, by simulation.

`python -m tests.full.tabulate_spread [method …]` writes `id_scaling/estimators/spread_tables/<method>.py`; all methods
take half an hour of two cores. For each geometry, d and n it draws clouds, estimates each, and divides the standard
deviation of the estimates over clouds by the root mean square of the asymptotic standard errors. The geometries:

torus     d angles, uniform, each as (cos, sin): flat, without a boundary, of one density;
gaussian  the standard normal distribution: its density changes from point to point.

In a row of a table (one n) the factors of a geometry stand at the mean estimates they were found at, are
interpolated in log d to the columns, and averaged over the geometries, the larger with twice the weight. Clouds too
small for an estimator have the row of the next larger ones. A factor of one geometry is known to 1 / sqrt(2 n_clouds):
2.5 per cent at n = 1024.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

import id_scaling.estimators.spread_tables
from id_scaling.estimators import get_estimator
from id_scaling.estimators.base import Estimator
from id_scaling.estimators.spread import DIMENSION, N_POINTS
from id_scaling.neighbors import Neighbors, find_neighbors, stacked
from id_scaling.views import View

FOLDER = Path(id_scaling.estimators.spread_tables.__file__).parent

# method -> name of the table -> parameter -> estimator
METHODS = {
    "mle": {
        "ARITHMETIC": {k: "mle" if k == 20 else f"mle_k{k}" for k in (5, 10, 20, 50, 100)},
        "HARMONIC": {k: "mle_harmonic" if k == 20 else f"mle_harmonic_k{k}" for k in (5, 10, 20, 50, 100, 200)},
    },
    "mind_ml": {"RATIO": {20: "mind_ml"}},
    "twonn": {
        "REGRESSION": {percent: f"twoNN_f{percent}" for percent in (0, 1, 2, 5, 10, 20, 50, 80)},
        "LIKELIHOOD": {0: "twoNN_ml"},
    },
    "gride": {"RATIO": {n1: f"gride_n{n1}" for n1 in (1, 2, 4, 8, 16, 32, 64, 128, 256)}},
    "mom": {"MOMENTS": {k: f"mom_k{k}" for k in (5, 10, 20, 50, 100, 200)}},
    "mada": {"RATIO": {20: "mada"}},
}

TRUE_DIMENSIONS = (1, 2, 3, 5, 8, 12, 20, 40)
N_CLOUDS = {64: 2000, 128: 2000, 256: 2000, 512: 1000, 1024: 800, 2048: 300}
CLOUDS_AT_ONCE = 20
# Of the smaller and the larger factor: intervals too narrow by a tenth lose more coverage than too wide ones gain.
WEIGHTS = (1, 2)
N_PROCESSES = 2


def torus(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Return n points, uniform on a flat torus of d dimensions, (n, 2 d)."""
    angles = rng.uniform(0, 2 * np.pi, (n, d))
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def gaussian(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Return n points of the standard normal distribution in d dimensions, (n, d)."""
    return rng.standard_normal((n, d))


GEOMETRIES = {"torus": torus, "gaussian": gaussian}


def draw_neighbors(
    geometry: str, d: int, n: int, n_clouds: int, ranks: tuple[int, ...], *seed: int
) -> Iterator[Neighbors]:
    """Yield the neighbors of simulated clouds, some clouds at a time; another `seed` gives other clouds."""
    rng = np.random.default_rng([list(GEOMETRIES).index(geometry), d, n, *seed])
    view = View(skip_first_tokens=0, duplicates="keep")
    for start in range(0, n_clouds, CLOUDS_AT_ONCE):
        clouds = (GEOMETRIES[geometry](rng, n, d) for _ in range(min(CLOUDS_AT_ONCE, n_clouds - start)))
        yield stacked([find_neighbors(cloud, [view], ranks)[0] for cloud in clouds])


def ranks_of(estimators: list[Estimator]) -> tuple[int, ...]:
    """Return the ranks that some estimators read."""
    return tuple(sorted({1}.union(*(estimator.ranks for estimator in estimators))))


def simulate(cell: tuple[str, int, int], names: list[str]) -> dict[str, tuple[float, float]]:
    """Return, for each estimator that has enough points, its mean and its spread over its standard error."""
    geometry, d, n = cell
    estimators = [estimator for estimator in map(get_estimator, names) if n >= estimator.min_points]
    ranks = ranks_of(estimators)
    with np.errstate(all="ignore"):
        found = [
            [estimator.compute(neighbors) for estimator in estimators]
            for neighbors in draw_neighbors(geometry, d, n, N_CLOUDS[n], ranks)
        ]
    return {estimator.name: ratio(*np.hstack(batches)) for estimator, *batches in zip(estimators, *found, strict=True)}


def ratio(value: np.ndarray, stderr: np.ndarray) -> tuple[float, float]:
    """Return the mean of the values, and their standard deviation over the root mean square of the errors."""
    return round(float(value.mean()), 3), round(float(value.std(ddof=1) / np.sqrt((stderr**2).mean())), 3)


def table_of(estimator: Estimator, cells: dict[tuple[str, int, int], dict]) -> list[list[float]]:
    """Return the factors of an estimator, a row for each of N_POINTS, a column for each of DIMENSION."""
    large_enough = [n for n in N_POINTS if n >= estimator.min_points]
    rows = [row_of(estimator.name, n, cells) for n in large_enough]
    return [rows[0]] * (len(N_POINTS) - len(rows)) + rows


def row_of(name: str, n: int, cells: dict[tuple[str, int, int], dict]) -> list[float]:
    """Return the factors of an estimator for one n: over the geometries at the same estimate, mostly the larger."""
    curves = [np.transpose([cells[geometry, d, n][name] for d in TRUE_DIMENSIONS]) for geometry in GEOMETRIES]
    factors = np.sort([np.interp(np.log(DIMENSION), np.log(d), factor) for d, factor in curves], axis=0)
    return np.average(factors, axis=0, weights=WEIGHTS).tolist()


def source_of(method: str, cells: dict[tuple[str, int, int], dict]) -> str:
    """Return the module that holds the tables of a method."""
    lines = [f'"""Factors for the standard errors of `{method}.py`, made by `python -m tests.full.tabulate_spread`."""']
    for constant, names in METHODS[method].items():
        lines += ["", f"{constant} = {{"]
        for parameter, name in names.items():
            rows = table_of(get_estimator(name), cells)
            lines += [f"    {parameter}: ("]
            lines += [f"        ({', '.join(f'{value:.3f}' for value in row)})," for row in rows]
            lines += ["    ),"]
        lines += ["}"]
    return "\n".join(lines) + "\n"


def names_of(methods: Iterable[str]) -> list[str]:
    """Return the estimators simulated for some methods."""
    return [name for method in methods for table in METHODS[method].values() for name in table.values()]


def main() -> None:
    """Simulate every cell and write the tables of the methods asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", default="all", choices=[*METHODS, "all"])
    given = parser.parse_args().methods
    methods = list(METHODS) if "all" in given else given
    # The long ones first, so that both processes end together.
    keys = [(geometry, d, n) for n in N_POINTS[::-1] for d in TRUE_DIMENSIONS for geometry in GEOMETRIES]
    cells = {}
    with ProcessPoolExecutor(N_PROCESSES) as pool:
        for key, found in zip(keys, pool.map(partial(simulate, names=names_of(methods)), keys), strict=True):
            cells[key] = found
            print(*key, found, flush=True)
    for method in methods:
        (FOLDER / f"{method}.py").write_text(source_of(method, cells))


if __name__ == "__main__":
    main()
