"""Transform the points of a cloud under a view, before the neighbor search: scale them, or replace them by a null.

Everything is in float64 and uses the selected points only, so each transformed cloud needs its own product.
"""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

from id_scaling.neighbors.kernels.dispatch import kernels_of
from id_scaling.neighbors.views import RAW, View, generator, needed

# Rounding error of float64 sums, relative to a norm.
ROUNDING = 1e-11
# If d exceeds n by this factor, a null is cheaper after a rotation into n coordinates: 3 n³ slow operations instead of
# 2 n² d fast ones.
FEWER = 3


def transform(view: View, points: Any, selection: np.ndarray, token_ids: np.ndarray | None) -> Any:
    """Return the points (n_points, d) under a view, in float64; points that are not selected are zero.

    A null with few points of many coordinates has fewer coordinates, see `gaussian`.

    Parameters
    ----------
    points : (n_points, d) array
        numpy, or torch on any device.
    selection : array of int
        Indices of the selected points.
    token_ids : (n_points,) array of int, or None
        Token IDs that seed the random numbers of a null.
    """
    xp, device = array_api_compat.array_namespace(points), array_api_compat.device(points)
    if len(selection) < 2:
        return xp.zeros(tuple(points.shape), dtype=xp.float64, device=device)
    index = xp.asarray(selection, device=device)
    rows = preprocess(view.preprocess, xp.astype(xp.take(points, index, axis=0), xp.float64))
    if view.null_cloud == "gaussian":
        rows = gaussian(rows, xp.asarray(_normals(view.draw, needed(token_ids), len(selection)), device=device))
    transformed = xp.zeros((points.shape[0], rows.shape[1]), dtype=xp.float64, device=device)
    transformed[index] = rows
    return transformed


def preprocess(name: str, rows: Any) -> Any:
    """Return scaled points (n, d).

    `standardised` subtracts the mean of each coordinate and divides by its standard deviation; a constant coordinate
    becomes zero. `unit_norm` divides each point by its norm. `drop_top_C` removes the mean and the C leading principal
    components (Mu and Viswanath 2018).

    Examples
    --------
    >>> preprocess("unit_norm", np.array([[3.0, 4.0], [0.0, 2.0]])).tolist()
    [[0.6, 0.8], [0.0, 1.0]]
    """
    xp = array_api_compat.array_namespace(rows)
    if name == RAW:
        return rows
    if name == "unit_norm":
        with np.errstate(invalid="ignore"):  # a point at zero has no direction and becomes not finite
            return rows / xp.sqrt(xp.sum(rows * rows, axis=1, keepdims=True))
    centred = _centred(rows)
    if name == "standardised":
        is_constant = xp.max(rows, axis=0) == xp.min(rows, axis=0)
        deviation = xp.sqrt(xp.mean(centred * centred, axis=0))
        return xp.where(is_constant, xp.zeros_like(centred), centred / xp.where(is_constant, 1.0, deviation))
    return _without_leading(centred, int(name.removeprefix("drop_top_")))


def _centred(rows: Any) -> Any:
    """Return points (n, d) minus their mean, from differences to the first point: a constant coordinate becomes 0."""
    xp, shifted = array_api_compat.array_namespace(rows), rows - rows[:1, :]
    return shifted - xp.mean(shifted, axis=0, keepdims=True)


def _without_leading(centred: Any, n_components: int) -> Any:
    """Return centered points without their leading principal components, from the smaller of the two products."""
    xp, (n, d) = array_api_compat.array_namespace(centred), centred.shape
    product = centred @ centred.T if n <= d else centred.T @ centred
    leading = xp.linalg.eigh(product)[1][:, -n_components:]
    rest = centred - (leading @ (leading.T @ centred) if n <= d else centred @ leading @ leading.T)
    # If the components hold all of the variance, the rest is rounding error.
    return rest if xp.sum(rest * rest) > ROUNDING**2 * xp.sum(centred * centred) else xp.zeros_like(rest)


def gaussian(rows: Any, normals: Any) -> Any:
    """Return a sample of the Gaussian with the mean and covariance of the points (n, d).

    The sample is the mean plus Z X / √(n - 1), with X the centered points and Z (n, n) standard normal numbers, so its
    rows have covariance Xᵀ X / (n - 1). With many more coordinates than points, the points and their mean are first
    rotated into n coordinates. This changes no distance, angle, or norm, and saves most of the n² d operations.
    """
    xp, (n, d) = array_api_compat.array_namespace(rows), rows.shape
    centred = _centred(rows)
    mean = rows[:1, :] - centred[:1, :]
    rotated = kernels_of(rows).turned(xp.concat([centred[:-1, :], mean])) if d > FEWER * n else None
    if rotated is None:
        return mean + normals @ centred / (n - 1) ** 0.5
    # The last centered point is minus the sum of the others.
    return rotated[-1:, :] + (normals[:, :-1] - normals[:, -1:]) @ rotated[:-1, :] / (n - 1) ** 0.5


def _normals(draw: int, token_ids: np.ndarray, n: int) -> np.ndarray:
    """Return the standard normal numbers of a draw, (n, n), which are the same at all layers of a context."""
    return generator(draw, token_ids).standard_normal((n, n))
