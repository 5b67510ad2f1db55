"""Constants that some checkpoints store together with their weights although the model computes them itself.

Older versions of transformers saved buffers, such as causal masks and rotary frequencies, with the weights. A stored
tensor that is not a weight of the model is a constant if the model, or an earlier version of transformers, has a buffer
of that name, and if its shape and values are those of such a buffer. Any other tensor is a weight that the model lacks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch

# Constants may have been saved in half precision: bfloat16 has 8 bits, and the smallest float16 is 6e-8.
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-2, 1e-6
# Sines and cosines of large angles lose more digits.
SINE_TOLERANCE = 1e-2
# Scores of masked positions are -1e4 in the oldest checkpoints, and -1e9 or -inf in later ones.
MAX_MASKED_SCORE = -1e3

Buffers = Mapping[str, torch.Tensor]


def is_constant(name: str, stored: torch.Tensor, buffers: Buffers) -> bool:
    """Return whether a stored tensor is a constant that a model with these buffers computes itself.

    Parameters
    ----------
    name : str
        Name of the tensor in the file.
    stored : Tensor
        The tensor; on the `meta` device only its shape is compared.
    buffers : mapping of str to Tensor
        Buffers of the model, by name.
    """
    if name in buffers:
        return _is_mask(stored) or _is_near(buffers[name], stored)
    suffix = name.rpartition(".")[2]
    return suffix in CHECKS and CHECKS[suffix](stored, _frequencies(buffers))


def _frequencies(buffers: Buffers) -> list[torch.Tensor]:
    """Return the rotary frequencies of a model."""
    return [buffer for name, buffer in buffers.items() if name.endswith("inv_freq")]


def _is_mask(stored: torch.Tensor, _frequencies: object = None) -> bool:
    """Return whether a tensor is a mask of zeros and ones of shape (1, 1, positions, positions)."""
    is_square = stored.ndim == 4 and stored.shape[:2] == (1, 1) and stored.shape[2] == stored.shape[3]
    return is_square and (stored.is_meta or bool(((stored == 0) | (stored == 1)).all()))


def _is_masked_score(stored: torch.Tensor, _frequencies: object) -> bool:
    """Return whether a tensor is the score of masked positions."""
    return stored.numel() == 1 and (stored.is_meta or stored.item() <= MAX_MASKED_SCORE)


def _are_positions(stored: torch.Tensor, _frequencies: object) -> bool:
    """Return whether a tensor holds the positions 0, 1, … in the shape (1, positions)."""
    is_row = stored.ndim == 2 and len(stored) == 1
    return is_row and (stored.is_meta or torch.equal(stored[0].long(), torch.arange(stored.shape[1])))


def _are_frequencies(stored: torch.Tensor, frequencies: Collection[torch.Tensor]) -> bool:
    """Return whether a tensor holds rotary frequencies of the model."""
    return any(_is_near(buffer, stored) for buffer in frequencies)


def _are_angles_under(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., bool]:
    """Return a check for tables of a function of the rotary angles of each position, repeated twice."""

    def are_angles(stored: torch.Tensor, frequencies: Collection[torch.Tensor]) -> bool:
        matching = (
            [inv_freq for inv_freq in frequencies if 2 * inv_freq.numel() == stored.shape[-1]]
            if stored.ndim in (2, 4)
            else []
        )
        if stored.is_meta or not matching:
            return bool(matching)
        table = stored.reshape(-1, stored.shape[-1])
        positions = torch.arange(len(table))
        return any(
            _is_near(function(torch.outer(positions, inv_freq.cpu().float()).repeat(1, 2)), table)
            for inv_freq in matching
        )

    return are_angles


# The check of each buffer that earlier versions of transformers saved, by the last part of its name.
CHECKS: dict[str, Callable[[torch.Tensor, Collection[torch.Tensor]], bool]] = {
    "bias": _is_mask,
    "causal_mask": _is_mask,
    "masked_bias": _is_masked_score,
    "position_ids": _are_positions,
    "inv_freq": _are_frequencies,
    "cos_cached": _are_angles_under(torch.cos),
    "sin_cached": _are_angles_under(torch.sin),
}


def _is_near(buffer: torch.Tensor, stored: torch.Tensor) -> bool:
    """Return whether two tensors are equal up to rounding in half precision."""
    if buffer.shape != stored.shape:
        return False
    if stored.is_meta or buffer.is_meta:
        return True
    absolute_tolerance = ABSOLUTE_TOLERANCE if buffer.ndim == 1 else SINE_TOLERANCE
    return torch.allclose(stored.double(), buffer.cpu().double(), rtol=RELATIVE_TOLERANCE, atol=absolute_tolerance)


def key_in_file(name: str, keys: Collection[str]) -> str | None:
    """Return the name of a tensor in a file: equal to its name in the model, or with a prefix; None if it is absent."""
    return name if name in keys else next((key for key in keys if name.endswith(f".{key}")), None)


def read_tensors(folder: Path, is_pickled: bool, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint with these names in the model, by their names in its files."""
    tensors: dict[str, torch.Tensor] = {}
    for path in _weight_files(folder, "pytorch_model.bin" if is_pickled else "model.safetensors"):
        tensors |= _read_file(path, is_pickled, names)
    return tensors


def _read_file(path: Path, is_pickled: bool, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Return the tensors of one file with these names in the model, by their names in the file."""
    from safetensors import safe_open

    if is_pickled:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        return {key: tensors[key] for name in names if (key := key_in_file(name, tensors)) is not None}
    with safe_open(path, "pt") as file:
        keys = set(file.keys())
        return {key: file.get_tensor(key) for name in names if (key := key_in_file(name, keys)) is not None}


def _weight_files(folder: Path, single_file: str) -> list[Path]:
    """Return the weight files of a checkpoint: a single file of this name, or the shards that its index names."""
    if (folder / single_file).is_file():
        return [folder / single_file]
    index = json.loads((folder / f"{single_file}.index.json").read_text())
    return [folder / name for name in sorted(set(index["weight_map"].values()))]
