"""What the header of a GGUF file says, held against the size of the file, before any other code reads it.

A length that is garbled makes readers ask for memory until there is none. Layout: the specification of GGUF, versions
2 and 3, in little-endian order (github.com/ggml-org/ggml, docs/gguf.md, 2024).
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from id_scaling.errors import InputError
from id_scaling.sources.config_checks import LIMITS

MAGIC, VERSIONS = b"GGUF", (2, 3)
AGAIN = "fetch it again, or name the model that it was made from"
STRING, ARRAY = 8, 9
# Type of a value -> its format; strings and arrays have lengths of their own.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
MAX_DIMENSIONS, MAX_NESTING = 4, 4
# Ends of keys whose value has to be a whole number of at least 1, and the pattern of `LIMITS` that bounds it.
SIZES = {
    ".block_count": r"layers?$",
    ".embedding_length": r"^(hidden_size|n_embd|d_model|head_dim)$",
    ".feed_forward_length": r"(_size|_dim|_rank|^n_inner|^d_\w+)$",
    ".attention.head_count": r"heads?$",
    ".attention.head_count_kv": r"heads?$",
    ".context_length": r"(positions|position_embeddings|n_ctx|context_length)$",
}


def gguf_n_layers(path: Path) -> int:
    """Return how many layers the model of a GGUF file has; raises as `check_gguf` does, and where it does not say."""
    for name, value in check_gguf(path).items():
        if name.endswith(".block_count"):
            return value
    raise InputError(f"{path}: does not say how many layers its model has (block_count); {AGAIN}")


def check_gguf(path: Path) -> dict[str, Any]:
    """Return the values of a header; raise an InputError when a file is not whole, or says impossible sizes.

    The tensors are not read; that the last ends within the file is known from their sizes.
    """
    values, n_tensors = read_header(path)
    for name, value in values.items():
        pattern = next((pattern for end, pattern in SIZES.items() if name.endswith(end)), None)
        is_size = isinstance(value, int) and not isinstance(value, bool)
        if pattern and not isinstance(value, list) and not (is_size and 1 <= value <= LIMITS[pattern]):
            raise InputError(f"{path}: {name}: found {value}, expected a number from 1 to {LIMITS[pattern]}; {AGAIN}")
        if name.endswith(".block_count") and value > n_tensors:
            raise InputError(f"{path}: {name}: found {value} layers, but the file holds {n_tensors} tensors; {AGAIN}")
    return values


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the values that stand alone in the header of a GGUF file, by their keys, and the number of tensors.

    Raises
    ------
    InputError
        It is not a whole GGUF file.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Header(content).read()
    except (ValueError, struct.error, OSError, OverflowError) as error:
        raise InputError(f"{path}: damaged or cut short: not a whole GGUF file ({error}); {AGAIN}") from error


class _Header:
    """A place in the header of a GGUF file."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.place = content, 0

    def read(self) -> tuple[dict[str, Any], int]:
        """Return the values that stand alone by their keys, and the number of tensors."""
        if self.take(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        (version,) = self.scalars("I")
        if version not in VERSIONS:
            raise ValueError(f"found version {version}, expected {' or '.join(map(str, VERSIONS))}")
        n_tensors, n_values = self.scalars("QQ")
        values = {}
        for _ in range(n_values):
            name = self.string()
            values[name] = self.value(*self.scalars("I"))
        ends = [self.tensor() for _ in range(n_tensors)]
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment: found {alignment}, expected a power of two")
        data = -(-self.place // alignment) * alignment
        if ends and data + max(ends) > len(self.content):
            raise ValueError(f"its tensors end at byte {data + max(ends)}, the file at {len(self.content)}")
        return values, n_tensors

    def tensor(self) -> int:
        """Return where a tensor ends, from the beginning of all."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self.string()
        (n_dimensions,) = self.scalars("I")
        if n_dimensions > MAX_DIMENSIONS:
            raise ValueError(f"tensor {name!r}: found {n_dimensions} dimensions")
        *shape, kind, start = self.scalars(f"{n_dimensions}QIQ")
        if kind not in {one.value for one in GGMLQuantizationType}:
            raise ValueError(f"tensor {name!r}: found the unknown type {kind}")
        block, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        n_elements = 1
        for size in shape:
            n_elements *= size
        if not n_elements or n_elements % block:
            raise ValueError(f"tensor {name!r}: found the shape {shape}")
        return start + n_elements // block * n_bytes

    def value(self, kind: int, depth: int = 0) -> Any:
        """Return a value, None for an array."""
        if kind in SCALARS:
            return self.scalars(SCALARS[kind])[0]
        if kind == STRING:
            return self.string()
        if kind != ARRAY or depth == MAX_NESTING:
            raise ValueError(f"found the unknown type {kind} of a value")
        of_each, length = self.scalars("IQ")
        if of_each in SCALARS:
            self.take(length * struct.calcsize(f"<{SCALARS[of_each]}"))
            return None
        if of_each == STRING:
            self.skip_strings(length)
        else:
            for _ in range(length):
                self.value(of_each, depth + 1)
        return None

    def string(self) -> str:
        """Return a string."""
        return self.take(*self.scalars("Q")).decode()

    def skip_strings(self, n_strings: int) -> None:
        """Go past so many strings; a vocabulary has some hundred thousand."""
        place, content, length_at = self.place, self.content, struct.Struct("<Q").unpack_from
        for _ in range(n_strings):
            place += 8 + length_at(content, place)[0]
        self.place = min(place, len(content) + 1)

    def scalars(self, format_: str) -> tuple:
        """Return numbers."""
        return struct.unpack(f"<{format_}", self.take(struct.calcsize(f"<{format_}")))

    def take(self, n_bytes: int) -> bytes:
        """Return so many bytes."""
        if not 0 <= n_bytes <= len(self.content) - self.place:
            raise ValueError(f"it ends at byte {len(self.content)}, within its header")
        self.place += n_bytes
        return self.content[self.place - n_bytes : self.place]
