"""How much wider estimates spread than their asymptotic standard errors say.

An asymptotic formula takes the points of a cloud as independent. They are not: neighbors share
distances, so the true standard deviation over clouds is another, mostly larger one. The ratio of
the two has no closed form. `python -m tests.simulations.tabulate_spread` simulates it over (estimator, d, n) and
says how. It is tabulated in `standard_error_tables`. d is the *estimated* dimension, as the true one is unknown. The
formula of `abid` looks at pairs of points too: its ratios are near one.

The ratio depends on the geometry as well: from d = 10 on a uniformly filled flat torus has ratios up to 25 per cent
above those of a normal distribution. Tables hold a mean of the two; with it 95 per cent intervals around what the
estimator gives on average (not around the true d: bias is no part of it) cover 92 to 98 per cent on either, but those
of `local_pca`, 92 to 100 per cent, and of `abid` on a torus of ten dimensions, 98 to 100.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

N_POINTS = (64, 128, 256, 512, 1024, 2048)
DIMENSION = (1, 2, 3, 5, 8, 12, 20)

# A row for each of N_POINTS, a column for each of DIMENSION.
Table = tuple[tuple[float, ...], ...]


def factor(table: Table, dimension: np.ndarray, n_points: np.ndarray) -> np.ndarray:
    """Return true spread over asymptotic standard error, (n_clouds,).

    Linear in log d and in log n between the entries of the table, the nearest entry beyond its edges.
    """
    values = np.asarray(table)
    row, below = _position(n_points, N_POINTS)
    column, left = _position(dimension, DIMENSION)
    upper = (1 - column) * values[below, left] + column * values[below, left + 1]
    lower = (1 - column) * values[below + 1, left] + column * values[below + 1, left + 1]
    return (1 - row) * upper + row * lower


def table_at(tables: Mapping[int, Table], parameter: int) -> Table:
    """Return the table for a parameter of the estimator, such as k.

    Linear in log(1 + parameter) between the parameters simulated, the nearest beyond them.
    """
    known = sorted(tables)
    where = np.interp(np.log1p(parameter), np.log1p(known), np.arange(len(known)))
    before, after = tables[known[int(np.floor(where))]], tables[known[int(np.ceil(where))]]
    share = where % 1
    return tuple(map(tuple, ((1 - share) * np.array(before) + share * np.array(after)).tolist()))


def _position(values: np.ndarray, axis: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return where values lie between entries of an axis: the share of the step, and the entry before."""
    clamped = np.clip(np.nan_to_num(values, nan=axis[0]), axis[0], axis[-1])
    place = np.interp(np.log(clamped), np.log(axis), np.arange(len(axis)))
    before = np.minimum(place.astype(int), len(axis) - 2)
    return place - before, before
