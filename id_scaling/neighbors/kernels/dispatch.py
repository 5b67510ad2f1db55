"""What is done to every element of a cloud: one module for each array library, the same functions in each."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import array_api_compat
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


def kernels_of(points: Any) -> ModuleType:
    """Return the kernels for an array: compiled loops for numpy, torch's own functions for torch."""
    if array_api_compat.is_torch_array(points):
        from id_scaling.neighbors.kernels import torch_kernels

        return torch_kernels
    from id_scaling.neighbors.kernels import numba_kernels

    return numba_kernels
