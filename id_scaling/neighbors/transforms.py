"""What a view makes of a cloud's points before neighbors are sought: they are scaled, or replaced by a null.

All is in float64, over the points that count, so a scaled cloud costs a product of its own.
"""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

from id_scaling.neighbors.kernels.dispatch import kernels_of
from id_scaling.neighbors.views import RAW, View, generator, needed

# Of a norm, what sums in float64 may leave.
ROUNDING = 1e-11
# Coordinates a point from which on a null is cheaper in others: 2 n² d operations beside 3 n³, which are slower ones.
FEWER = 3


def transform(view: View, points: Any, selection: np.ndarray, token_ids: np.ndarray | None) -> Any:
    """Return the points (n_points, d) as a view has them, in float64; those that do not count are zero.

    A null of few points of many coordinates is in fewer, see `gaussian`.

    Parameters
    ----------
    points : (n_points, d) array
        numpy, or torch on any device.
    selection : array of int
        The points that count.
    token_ids : (n_points,) array of int, or None
        What a null is drawn by.
    """
    xp, device = array_api_compat.array_namespace(points), array_api_compat.device(points)
    if len(selection) < 2:
        return xp.zeros(tuple(points.shape), dtype=xp.float64, device=device)
    index = xp.asarray(selection, device=device)
    rows = preprocess(view.preprocess, xp.astype(xp.take(points, index, axis=0), xp.float64))
    if view.null_cloud == "gaussian":
        rows = gaussian(rows, xp.asarray(_normals(view.draw, needed(token_ids), len(selection)), device=device))
    found = xp.zeros((points.shape[0], rows.shape[1]), dtype=xp.float64, device=device)
    found[index] = rows
    return found


def preprocess(name: str, rows: Any) -> Any:
    """Return points (n, d) scaled.

    `standardised` divides each coordinate less its mean by its standard deviation, and makes one that is constant zero;
    `unit_norm` divides each point by its norm; `drop_top_C` takes off the mean and the C leading principal components
    (Mu and Viswanath 2018).

    Examples
    --------
    >>> preprocess("unit_norm", np.array([[3.0, 4.0], [0.0, 2.0]])).tolist()
    [[0.6, 0.8], [0.0, 1.0]]
    """
    xp = array_api_compat.array_namespace(rows)
    if name == RAW:
        return rows
    if name == "unit_norm":
        with np.errstate(invalid="ignore"):  # a point without a direction is not finite
            return rows / xp.sqrt(xp.sum(rows * rows, axis=1, keepdims=True))
    centred = _centred(rows)
    if name == "standardised":
        is_constant = xp.max(rows, axis=0) == xp.min(rows, axis=0)
        deviation = xp.sqrt(xp.mean(centred * centred, axis=0))
        return xp.where(is_constant, xp.zeros_like(centred), centred / xp.where(is_constant, 1.0, deviation))
    return _without_leading(centred, int(name.removeprefix("drop_top_")))


def _centred(rows: Any) -> Any:
    """Return points (n, d) less their mean: differences from the first, so that a constant one leaves nothing."""
    xp, shifted = array_api_compat.array_namespace(rows), rows - rows[:1, :]
    return shifted - xp.mean(shifted, axis=0, keepdims=True)


def _without_leading(centred: Any, n_components: int) -> Any:
    """Return centred points less their leading principal components, by the smaller of the two products."""
    xp, (n, d) = array_api_compat.array_namespace(centred), centred.shape
    product = centred @ centred.T if n <= d else centred.T @ centred
    leading = xp.linalg.eigh(product)[1][:, -n_components:]
    left = centred - (leading @ (leading.T @ centred) if n <= d else centred @ leading @ leading.T)
    # Where components hold all of the variance, what rounding leaves is nothing.
    return left if xp.sum(left * left) > ROUNDING**2 * xp.sum(centred * centred) else xp.zeros_like(left)


def gaussian(rows: Any, normals: Any) -> Any:
    """Return a sample of the Gaussian with the mean and the covariance of some points (n, d).

    It is the mean plus Z X / √(n - 1) with X the centred points and Z (n, n) standard normal numbers: its rows have
    covariance Xᵀ X / (n - 1). Where there are many more coordinates than points, the points and their mean are first
    turned into the n coordinates that they need, which changes no distance, angle or norm and spares most of n² d.
    """
    xp, (n, d) = array_api_compat.array_namespace(rows), rows.shape
    centred = _centred(rows)
    mean = rows[:1, :] - centred[:1, :]
    turned = kernels_of(rows).turned(xp.concat([centred[:-1, :], mean])) if d > FEWER * n else None
    if turned is None:
        return mean + normals @ centred / (n - 1) ** 0.5
    # The last centred point is less the sum of the others.
    return turned[-1:, :] + (normals[:, :-1] - normals[:, -1:]) @ turned[:-1, :] / (n - 1) ** 0.5


def _normals(draw: int, token_ids: np.ndarray, n: int) -> np.ndarray:
    """Return the standard normal numbers of a draw, (n, n): the same at all layers of a context."""
    return generator(draw, token_ids).standard_normal((n, n))
