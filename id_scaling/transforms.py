"""What a view makes of a cloud's points before neighbors are sought: they are scaled, or replaced by a null.

All is in float64, over the points that count, so a scaled cloud costs a product of its own.
"""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

from id_scaling.views import RAW, View, generator

# Of a norm, what sums in float64 may leave.
ROUNDING = 1e-11


def transform(view: View, points: Any, selection: np.ndarray, token_ids: np.ndarray | None) -> Any:
    """Return the points (n_points, d) as a view has them, in float64; those that do not count are zero.

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
    found = xp.zeros(tuple(points.shape), dtype=xp.float64, device=device)
    if len(selection) < 2:
        return found
    index = xp.asarray(selection, device=device)
    rows = preprocess(view.preprocess, xp.astype(xp.take(points, index, axis=0), xp.float64))
    if view.null_cloud == "gaussian":
        rows = gaussian(rows, xp.asarray(_normals(view.draw, token_ids, len(selection)), device=device))
    found[index] = rows
    return found


def preprocess(name: str, rows: Any) -> Any:
    """Return points (n, d) scaled.

    `standardised` divides each coordinate less its mean by its standard deviation, and makes one that is constant zero;
    `unit_norm` divides each point by its norm; `drop_top_C` takes off the mean and the C leading principal components
    (Mu and Viswanath 2018).
    """
    xp = array_api_compat.array_namespace(rows)
    if name == RAW:
        return rows
    if name == "unit_norm":
        with np.errstate(invalid="ignore"):  # a point without a direction is not finite
            return rows / xp.sqrt(xp.sum(rows * rows, axis=1, keepdims=True))
    centred = rows - xp.mean(rows, axis=0)
    if name == "standardised":
        is_constant = xp.max(rows, axis=0) == xp.min(rows, axis=0)
        deviation = xp.sqrt(xp.mean(centred * centred, axis=0))
        return xp.where(is_constant, xp.zeros_like(centred), centred / xp.where(is_constant, 1.0, deviation))
    return _without_leading(centred, int(name.removeprefix("drop_top_")))


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
    covariance Xᵀ X / (n - 1). Nothing is factorised, so that costs one product, n² d; the Gram matrix of the sample by
    Z (X Xᵀ) Zᵀ would take two of n³ and an X to project on, dearer up to d = 2 n and without the points.
    """
    xp = array_api_compat.array_namespace(rows)
    mean = xp.mean(rows, axis=0)
    return mean + normals @ (rows - mean) / (len(rows) - 1) ** 0.5


def _normals(draw: int, token_ids: np.ndarray, n: int) -> np.ndarray:
    """Return the standard normal numbers of a draw, (n, n): the same at all layers of a context."""
    return generator(draw, token_ids).standard_normal((n, n))
