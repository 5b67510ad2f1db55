"""What a first look at the coordinates of a cloud gives, whichever kernels look."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Survey(NamedTuple):
    """What one look at each coordinate of n points gives.

    Parameters
    ----------
    squared_norms : (n,) float64
        Not finite where a point is not.
    keys : (n,) float64
        Equal for equal points.
    centred : (n, d) array
        The points less a centre, zero where a point is not finite.
    centred_norms : (n,) float64
        Their squared norms.
    products : (m, n) array
        Inner products of some centred points with all.
    """

    squared_norms: np.ndarray
    keys: np.ndarray
    centred: Any
    centred_norms: np.ndarray
    products: np.ndarray
