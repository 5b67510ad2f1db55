"""Choose the kernels for an array: one module per array library, with the same functions in each."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import array_api_compat


def kernels_of(points: Any) -> ModuleType:
    """Return the kernels for an array: compiled loops for numpy, torch functions for torch."""
    if array_api_compat.is_torch_array(points):
        from id_scaling.neighbors.kernels import torch_kernels

        return torch_kernels
    from id_scaling.neighbors.kernels import numba_kernels

    return numba_kernels
