"""The types of keys: names, paths, precisions, layers, one value or a list of them, and a section of keys."""

from __future__ import annotations

import os
import reprlib
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from id_scaling.errors import ConfigError, shortened
from id_scaling.neighbors.views import PREPROCESS
from id_scaling.text.shuffling import CONTROLS, SHUFFLE

T = TypeVar("T")


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, types are exact, values are fixed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def shown(value: Any) -> str:
    """Return a value with its type, as YAML users know types."""
    kinds = {
        str: "text",
        bool: "a yes/no value",
        int: "a whole number",
        float: "a number",
        list: "a list",
        dict: "a mapping",
        type(None): "nothing",
    }
    return f"{_SHORT.repr(value)} ({kinds.get(type(value), type(value).__name__)})"


def as_value_error(check: Callable[..., T], *arguments: object) -> T:
    """Return what a check returns; its errors are those of values, which pydantic collects."""
    try:
        return check(*arguments)
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def one_or_many(kind: type[T]) -> Any:
    """Return the type of a key that takes one value or a list of them."""
    as_given = BeforeValidator(_as_list, json_schema_input_type=kind | list[kind])
    return Annotated[list[kind], AfterValidator(unrepeated), as_given, Field(min_length=1)]


def _without_torch(value: Any) -> Any:
    return value.removeprefix("torch.") if isinstance(value, str) else value


def unrepeated(values: Any) -> Any:
    """Return values, if none of them is there twice; a ValueError names those that are."""
    counts = Counter(map(str, values)) if isinstance(values, list) else {}
    if repeated := sorted(text for text, n in counts.items() if n > 1):
        raise ValueError(f"{shortened(', '.join(repeated), 200)} is there more than once; name each once")
    return values


# Characters that end lines, and those that terminals obey.
UNPRINTED = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
Name = Annotated[str, Field(min_length=1, max_length=300, pattern=rf"^[^{UNPRINTED}]+$")]
# Names that become folders, columns and groups of HDF5.
KEY = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"
Key = Annotated[str, Field(max_length=60, pattern=KEY)]
# Snakemake reads braces and angle brackets in a path as wildcards and variables.
PLACE = rf"^[^{UNPRINTED}{{}}<>]+$"
_Place = Annotated[str, Field(min_length=1, max_length=300, pattern=PLACE)]
SESSION = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
SCALING = rf"^({PREPROCESS})$"
IN_WORDS = {
    SCALING: "raw, standardised, standardized, unit_norm or drop_top_C, with C from 1",
    KEY: "letters, digits, '_', '.' and '-' alone",
    PLACE: "text without control characters, braces and angle brackets",
    SESSION: "letters, digits, '_', '.' and '-' alone, the first a letter or a digit",
}


def _without_address(name: str) -> str:
    if "://" in name:
        raise ValueError("found an address, which may hold a password; expected a folder or a name")
    return name


def _inside(name: str) -> str:
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"found {name!r}, expected a revision, or a folder inside the model's")
    return name


def _as_folder(name: str) -> str:
    path = os.path.normpath(os.path.expanduser(os.path.normpath(name)))
    if path.startswith("~"):
        raise ValueError(f"found {name!r}, but there is no such user; expected a path")
    if path.startswith("-"):
        raise ValueError(f"found {name!r}, which a command takes for an option; write the whole path")
    if path.strip("/") in ("", "."):
        raise ValueError(f"found {name!r}, expected a folder that is the session's alone")
    if any(len(part.encode()) > LONGEST for part in name.split("/")):
        raise ValueError(f"found {shown(name)}, expected at most {LONGEST} bytes between two '/'")
    return name


def _other_than_none(name: Any) -> Any:
    if name == f"{SHUFFLE}0":
        raise ValueError(f"found {name!r}, which is the text as it is; write none")
    return name


# Bytes of a file's name.
LONGEST = 255
Source = Annotated[_Place, AfterValidator(_without_address)]
Checkpoint = Annotated[Source, AfterValidator(_inside)]
Folder = Annotated[_Place, AfterValidator(_as_folder)]
Control = Annotated[Literal[CONTROLS], BeforeValidator(_other_than_none)]


def precision(*names: str) -> Any:
    """Return the type of a key that takes one of these precisions, as `float16` or as `torch.float16`."""
    spelled = Literal[(*names, *(f"torch.{name}" for name in names if name != "auto"))]
    return Annotated[Literal[names], BeforeValidator(_without_torch, json_schema_input_type=spelled)]


class LayerRange(Section):
    """Some layers of a model, however many it has."""

    first: int | None = Field(None, ge=1, description="so many from the first block on")
    last: int | None = Field(None, ge=1, description="so many to the last block")
    every: int | None = Field(None, ge=1, description="every so many, from layer 0")

    @model_validator(mode="after")
    def _one(self) -> LayerRange:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("found no key or several, expected one of first, last and every")
        return self


Layers = LayerRange | Annotated[list[int], AfterValidator(unrepeated)]


def layers_as_json(layers: LayerRange | list[int]) -> list[int] | dict[str, int]:
    """Return layers as jobs are told them: increasing numbers, negative ones counted from the end, or a range."""
    return sorted(layers) if isinstance(layers, list) else layers.model_dump(exclude_none=True)
