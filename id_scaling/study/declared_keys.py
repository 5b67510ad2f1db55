"""Keys that the class of a stage declares (`runtime.settings`): sections made of them, and their values for a job."""

from __future__ import annotations

from functools import reduce
from typing import Any, get_type_hints

from pydantic import Field, create_model

from id_scaling.runtime.settings import declarations
from id_scaling.study.config_types import Name, Section


def section_of(settings: type, place: str = "") -> type[Section]:
    """Return a section with the keys that a class of settings declares for one place.

    Parameters
    ----------
    settings : type
        A dataclass with fields made by `setting`.
    place : str
        Dotted name of the section, as in the keys that are declared.
    """
    hints, keys = get_type_hints(settings), {}
    for name, declared in declarations(settings).items():
        section, _, key = (declared.key or name).rpartition(".")
        if section == place:
            field = Field(declared.default, description=declared.meaning, **declared.bounds)
            # Text is without control characters, where no pattern says what it is.
            is_name = hints[name] is str and "pattern" not in declared.bounds
            keys[key] = Name if is_name else hints[name], field
    return create_model(f"{settings.__name__}Keys", __base__=Section, **keys)


def values_of(settings: type, sections: dict[str, Section], is_execution: bool = False) -> dict[str, Any]:
    """Return the values of the keys that a class of settings declares, by the names of its fields.

    Parameters
    ----------
    settings : type
        A dataclass with fields made by `setting`.
    sections : dict of str to Section
        The outermost sections by name, in which keys are dotted; that of undotted keys is `""`.
    is_execution : bool
        Whether to return what changes no content, instead of what may.
    """
    return {
        name: _value(declared.key or name, sections)
        for name, declared in declarations(settings).items()
        if declared.is_execution == is_execution
    }


def _value(key: str, sections: dict[str, Section]) -> Any:
    """Return the value of a dotted key."""
    outer, *inner = key.split(".") if "." in key else ["", key]
    return reduce(getattr, inner, sections[outer])
