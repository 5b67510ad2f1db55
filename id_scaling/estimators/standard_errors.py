"""Factors that correct asymptotic standard errors of estimates.

An asymptotic formula assumes that the points of a cloud are independent. They are not: neighbors share distances, so
the true standard deviation over clouds differs, and is usually larger. The ratio of the two has no closed form.
`python -m tests.simulations.tabulate_spread` simulates it over (estimator, d, n), and `standard_error_tables` has the
results. d is the *estimated* dimension, because the true one is unknown. The formula of `abid` includes pairs of
points, so its ratios are near one.

The ratio also depends on the geometry: from d = 10 on, a uniformly filled flat torus has ratios up to 25 percent above
those of a normal distribution. The tables hold a mean of the two. With these factors, 95 percent intervals around the
average estimate (not around the true d, because bias is not included) cover 92 to 98 percent on both geometries;
`local_pca` covers 92 to 100 percent, and `abid` on a torus of ten dimensions 98 to 100.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

N_POINTS = (64, 128, 256, 512, 1024, 2048)
DIMENSION = (1, 2, 3, 5, 8, 12, 20)

# One row for each of N_POINTS, one column for each of DIMENSION.
Table = tuple[tuple[float, ...], ...]


def factor(table: Table, dimension: np.ndarray, n_points: np.ndarray) -> np.ndarray:
    """Return the ratio of true standard deviation to asymptotic standard error, (n_clouds,).

    Interpolates linearly in log d and log n; beyond the edges of the table, the nearest entry is used.
    """
    values = np.asarray(table)
    row, row_before = _position(n_points, N_POINTS)
    column, column_before = _position(dimension, DIMENSION)
    upper = (1 - column) * values[row_before, column_before] + column * values[row_before, column_before + 1]
    lower = (1 - column) * values[row_before + 1, column_before] + column * values[row_before + 1, column_before + 1]
    return (1 - row) * upper + row * lower


def table_at(tables: Mapping[int, Table], parameter: int) -> Table:
    """Return the table for a parameter of the estimator, such as k.

    Interpolates linearly in log(1 + parameter); beyond the simulated parameters, the nearest table is used.
    """
    simulated = sorted(tables)
    position = np.interp(np.log1p(parameter), np.log1p(simulated), np.arange(len(simulated)))
    before, after = tables[simulated[int(np.floor(position))]], tables[simulated[int(np.ceil(position))]]
    weight = position % 1
    return tuple(map(tuple, ((1 - weight) * np.array(before) + weight * np.array(after)).tolist()))


def _position(values: np.ndarray, axis: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the position of values on an axis: the fraction of the step, and the index of the entry before."""
    clamped = np.clip(np.nan_to_num(values, nan=axis[0]), axis[0], axis[-1])
    position = np.interp(np.log(clamped), np.log(axis), np.arange(len(axis)))
    before = np.minimum(position.astype(int), len(axis) - 2)
    return position - before, before
