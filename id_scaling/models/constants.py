"""Constants that some checkpoints store among their weights, and that a model computes itself.

Older versions of transformers saved buffers, such as causal masks and rotary frequencies, with the weights. A tensor
in a file that is not a weight of the model is one of them if the model has a buffer of that name, or if its name is
that of a kind of buffer of earlier versions; and if it has the shape and the values of one. Any other is a weight that
the model lacks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch

# Constants may have been saved in half precision: a bfloat16 has 8 bits, and float16 ends at 6e-8.
RELATIVE, ABSOLUTE = 1e-2, 1e-6
# Sines and cosines of large angles have lost more.
ABSOLUTE_OF_SINES = 1e-2
# Of a score that a mask leaves out: -1e4 in the oldest checkpoints, -1e9 or -inf in others.
MASKED = -1e3

Buffers = Mapping[str, torch.Tensor]


def is_constant(name: str, stored: torch.Tensor, buffers: Buffers) -> bool:
    """Return whether a stored tensor is a constant that a model with these buffers computes itself.

    Parameters
    ----------
    name : str
        Of the tensor in the file.
    stored : Tensor
        On the `meta` device its shape decides.
    buffers : mapping of str to Tensor
        Those of the model.
    """
    if name in buffers:
        return _is_mask(stored) or _is_near(buffers[name], stored)
    kind = name.rpartition(".")[2]
    return kind in KINDS and KINDS[kind](stored, _frequencies(buffers))


def _frequencies(buffers: Buffers) -> list[torch.Tensor]:
    """Return the rotary frequencies of a model."""
    return [buffer for name, buffer in buffers.items() if name.endswith("inv_freq")]


def _is_mask(stored: torch.Tensor, _frequencies: object = None) -> bool:
    """Return whether a tensor is a mask of pairs of positions: (1, 1, positions, positions), of zeros and ones."""
    is_square = stored.ndim == 4 and stored.shape[:2] == (1, 1) and stored.shape[2] == stored.shape[3]
    return is_square and (stored.is_meta or bool(((stored == 0) | (stored == 1)).all()))


def _is_masked_score(stored: torch.Tensor, _frequencies: object) -> bool:
    """Return whether a tensor is the score that a mask gives to what it leaves out."""
    return stored.numel() == 1 and (stored.is_meta or stored.item() <= MASKED)


def _are_positions(stored: torch.Tensor, _frequencies: object) -> bool:
    """Return whether a tensor counts positions from 0: (1, positions)."""
    is_row = stored.ndim == 2 and len(stored) == 1
    return is_row and (stored.is_meta or torch.equal(stored[0].long(), torch.arange(stored.shape[1])))


def _are_frequencies(stored: torch.Tensor, frequencies: Collection[torch.Tensor]) -> bool:
    """Return whether a tensor has the rotary frequencies of the model."""
    return any(_is_near(own, stored) for own in frequencies)


def _are_angles(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., bool]:
    """Return what tells whether a tensor is a table of a function of each position's rotary angles, given twice."""

    def are(stored: torch.Tensor, frequencies: Collection[torch.Tensor]) -> bool:
        fitting = [own for own in frequencies if 2 * own.numel() == stored.shape[-1]] if stored.ndim in (2, 4) else []
        if stored.is_meta or not fitting:
            return bool(fitting)
        table = stored.reshape(-1, stored.shape[-1])
        positions = torch.arange(len(table))
        return any(_is_near(function(torch.outer(positions, own.cpu().float()).repeat(1, 2)), table) for own in fitting)

    return are


# Names of buffers of earlier versions.
KINDS: dict[str, Callable[[torch.Tensor, Collection[torch.Tensor]], bool]] = {
    "bias": _is_mask,
    "causal_mask": _is_mask,
    "masked_bias": _is_masked_score,
    "position_ids": _are_positions,
    "inv_freq": _are_frequencies,
    "cos_cached": _are_angles(torch.cos),
    "sin_cached": _are_angles(torch.sin),
}


def _is_near(own: torch.Tensor, stored: torch.Tensor) -> bool:
    """Return whether two tensors are equal up to rounding in half precision."""
    if own.shape != stored.shape:
        return False
    if stored.is_meta or own.is_meta:
        return True
    allowed = ABSOLUTE if own.ndim == 1 else ABSOLUTE_OF_SINES
    return torch.allclose(stored.double(), own.cpu().double(), rtol=RELATIVE, atol=allowed)


def key_in_file(name: str, keys: Collection[str]) -> str | None:
    """Return how a file calls a tensor: as the model does, or without its prefix; None where it has no such tensor."""
    return name if name in keys else next((key for key in keys if name.endswith(f".{key}")), None)


def read_tensors(folder: Path, is_pickled: bool, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Return tensors of a checkpoint, named as the model names them, by how its files call them."""
    found: dict[str, torch.Tensor] = {}
    for path in _files(folder, "pytorch_model.bin" if is_pickled else "model.safetensors"):
        found |= _read(path, is_pickled, names)
    return found


def _read(path: Path, is_pickled: bool, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Return the tensors of these names in one file."""
    from safetensors import safe_open

    if is_pickled:
        held = torch.load(path, map_location="cpu", weights_only=True)
        return {key: held[key] for name in names if (key := key_in_file(name, held)) is not None}
    with safe_open(path, "pt") as file:
        keys = set(file.keys())
        return {key: file.get_tensor(key) for name in names if (key := key_in_file(name, keys)) is not None}


def _files(folder: Path, whole: str) -> list[Path]:
    """Return the files that a checkpoint is saved in: one of this name, or the shards that its index names."""
    if (folder / whole).is_file():
        return [folder / whole]
    index = json.loads((folder / f"{whole}.index.json").read_text())
    return [folder / name for name in sorted(set(index["weight_map"].values()))]
