"""Results of the first pass over the coordinates of a cloud, for all kernels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Survey(NamedTuple):
    """Results of one pass over the coordinates of n points.

    Parameters
    ----------
    squared_norms : (n,) float64
        Not finite where the point is not finite.
    keys : (n,) float64
        A hash of the coordinates: equal points have equal keys.
    centred : (n, d) array
        The points minus a center; zero where the point is not finite.
    centred_norms : (n,) float64
        Squared norms of the centered points.
    products : (m, n) array
        Inner products of m centered points, the probes, with all.
    """

    squared_norms: np.ndarray
    keys: np.ndarray
    centred: Any
    centred_norms: np.ndarray
    products: np.ndarray
