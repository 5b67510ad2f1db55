"""How many layers the model of a GGUF file has, from the first bytes of the file.

Reading the whole header takes seconds, most of them for the tokenizer, which stands after what is read here.
Layout: github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO, Any

_STRING = 8
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_N_LAYERS = ".block_count"
# A key is shorter, and so is each text before the tokenizer; what is longer is damage, or the tokenizer.
_MOST_BYTES = 1_000_000


def gguf_n_layers(path: Path) -> int | None:
    """Return the number of layers; None where the file does not begin as a GGUF file does, or says it late."""
    with open(path, "rb") as file:
        try:
            magic, version, _, n_fields = _unpacked(file, "4sIQQ")
            if magic != b"GGUF" or version not in (2, 3):
                return None
            for _ in range(n_fields):
                key, value = _text(file), _value(file, *_unpacked(file, "I"))
                if key.endswith(_N_LAYERS) and isinstance(value, int):
                    return value
        except (struct.error, ValueError):  # cut short, or no such file after all: said where it is converted
            return None
    return None


def _unpacked(file: IO[bytes], layout: str) -> tuple[Any, ...]:
    """Return the next values of a file, in little-endian order and without gaps."""
    layout = f"<{layout}"
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _text(file: IO[bytes]) -> str:
    """Return the next text of a file."""
    (n_bytes,) = _unpacked(file, "Q")
    if n_bytes > _MOST_BYTES:
        raise ValueError(f"a text of {n_bytes} bytes")
    return file.read(n_bytes).decode()


def _value(file: IO[bytes], kind: int) -> Any:
    """Return the next value of a file; of an array nothing, as the first is the tokenizer's."""
    if kind == _STRING:
        return _text(file)
    if kind not in _NUMBERS:
        raise ValueError(f"a value of kind {kind}")
    return _unpacked(file, _NUMBERS[kind])[0]
