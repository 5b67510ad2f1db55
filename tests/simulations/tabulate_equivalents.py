"""The mean estimates of clouds of known dimension, by simulation.

`python -m tests.simulations.tabulate_equivalents` writes `id_scaling/results/equivalent_tables.py`, in three minutes of
two cores: for each distribution, d and n the mean over N_CLOUDS clouds of what each estimator gives. The distributions:

gaussian  the standard normal distribution in d dimensions;
ball      uniform in a ball of d dimensions;
sphere    uniform on a sphere of d dimensions, in d + 1.

A mean is known to the spread of estimates over sqrt(N_CLOUDS): a hundredth or two of it at n = 64, a few thousandths at
n = 1024.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

import id_scaling
from id_scaling.estimators.apply import estimate_from_neighbors
from id_scaling.estimators.registry import get_estimator
from id_scaling.neighbors.find import find_neighbors, stacked
from id_scaling.neighbors.views import View
from id_scaling.results.equivalents import DIMENSION, N_POINTS

OUTPUT = Path(id_scaling.__file__).with_name("results") / "equivalent_tables.py"
ESTIMATORS = ("mle", "mle_harmonic", "mind_ml", "twoNN_f0", "twoNN_f10", "twoNN_ml", "gride_n2", "gride_n4", "gride_n8")
N_CLOUDS = {64: 200, 128: 100, 256: 60, 512: 40, 1024: 24, 2048: 20, 4096: 20}
VIEW = View(skip_first_tokens=0)


def gaussian(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Return n points of the standard normal distribution in d dimensions."""
    return rng.standard_normal((n, d))


def sphere(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Return n points, uniform on the unit sphere of d dimensions, (n, d + 1)."""
    points = rng.standard_normal((n, d + 1))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def ball(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Return n points, uniform in the unit ball of d dimensions."""
    return sphere(rng, n, d - 1) * rng.uniform(size=(n, 1)) ** (1 / d)


DISTRIBUTIONS = {"gaussian": gaussian, "ball": ball, "sphere": sphere}


def means(case: tuple[str, int, int]) -> list[float]:
    """Return the mean estimate of each estimator over clouds of one distribution, n and d."""
    name, n, d = case
    rng = np.random.default_rng([list(DISTRIBUTIONS).index(name), n, d])
    made = [get_estimator(estimator) for estimator in ESTIMATORS]
    ranks = sorted({1}.union(*(one.ranks for one in made)))
    with threadpool_limits(1):
        clouds = (DISTRIBUTIONS[name](rng, n, d) for _ in range(N_CLOUDS[n]))
        neighbors = stacked([find_neighbors(cloud, [VIEW], ranks)[0] for cloud in clouds])
        found = [estimate_from_neighbors(one, neighbors) for one in made]
    assert all((one.status == "ok").all() for one in found), case
    return [float(one.value.mean()) for one in found]


def main() -> None:
    """Simulate all and write the module."""
    cases = list(product(DISTRIBUTIONS, N_POINTS, DIMENSION))
    with ProcessPoolExecutor() as processes:
        found = dict(zip(cases, processes.map(means, cases, chunksize=4), strict=True))
    lines = [
        '"""Mean estimates of clouds of known dimension, made by `tests.simulations.tabulate_equivalents`."""',
        "",
    ]
    lines += ["# fmt: off", "TABLES = {"]
    for number, estimator in enumerate(ESTIMATORS):
        lines.append(f'    "{estimator}": {{')
        for name in DISTRIBUTIONS:
            lines.append(f'        "{name}": (')
            for n in N_POINTS:
                row = [f"{found[name, n, d][number]:.4g}" for d in DIMENSION]
                half = len(row) // 2
                lines += [f"            ({', '.join(row[:half])},", f"             {', '.join(row[half:])}),"]
            lines.append("        ),")
        lines.append("    },")
    OUTPUT.write_text("\n".join([*lines, "}", ""]))


if __name__ == "__main__":
    main()
