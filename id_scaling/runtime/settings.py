"""Settings of jobs as dataclasses: how a class declares one, and how a job reads it back from JSON.

The class that uses a setting declares it, once: name, type, default, meaning, and which values it takes. The keys of
the configuration are generated from these declarations (`study.declared_keys`), and a job builds the same class from
its JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from id_scaling.errors import InputError, nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
Declared = TypeVar("Declared", bound="DataclassInstance")


@dataclass(frozen=True)
class Declaration:
    """What a class says of a setting, other than its name and its type.

    Parameters
    ----------
    default : object
        Of the field and of the key.
    meaning : str
        Description of the key.
    key : str
        The key, dotted inside its sections; empty where it has the name of the field.
    is_execution : bool
        Whether the setting changes no content, so that it is told to the job next to its settings.
    bounds : mapping
        Limits of the values, as pydantic's `Field` names them.
    """

    default: Any
    meaning: str
    key: str
    is_execution: bool
    bounds: Mapping[str, Any]


def setting(default: Any, /, *, meaning: str, key: str = "", is_execution: bool = False, **bounds: Any) -> Any:
    """Return the field of a dataclass that is a key of the configuration too, see `Declaration`.

    The fingerprint of the code sees the default, and nothing else of it.
    """
    return field(default=default, metadata={"setting": Declaration(default, meaning, key, is_execution, bounds)})


def declarations(kind: type) -> dict[str, Declaration]:
    """Return the settings that a dataclass declares, by the names of their fields."""
    return {each.name: each.metadata["setting"] for each in fields(kind) if "setting" in each.metadata}


def check_keys(job: str, values: Mapping[str, Any], needed: Iterable[str], known: Iterable[str] = ()) -> None:
    """Raise an InputError where the settings of a job have a key that it does not know, or lack one that it needs.

    As where another version of the workflow planned the job: what is ignored would be recorded as if it counted.
    """
    names = {*needed, *known}
    if unknown := sorted(values.keys() - names):
        raise InputError(f"{job}: found the setting {unknown[0]!r}, which is not known; {nearest(unknown[0], names)}")
    if missing := sorted({*needed} - values.keys()):
        raise InputError(f"{job}: the setting {missing[0]!r} is missing; run snakemake again, which plans the job anew")


def call_with(function: Callable[..., T], values: Mapping[str, Any], /, **others: Any) -> T:
    """Return what a function returns, with the settings of a job and others as its arguments.

    Raises
    ------
    InputError
        A setting is no argument of the function, or one that it needs is missing.
    """
    arguments = {name: each for name, each in signature(function).parameters.items() if name not in others}
    needed = [name for name, each in arguments.items() if each.default is Parameter.empty]
    check_keys(function.__name__.strip("_"), values, needed, arguments)
    return function(**values, **others)


def read_settings(kind: type[Declared], values: Mapping[str, Any], **made: Any) -> Declared:
    """Return the settings of a job as the class that declares them.

    Parameters
    ----------
    kind : type
        A dataclass.
    values : mapping
        All its fields as JSON, except those in `made`.
    **made : object
        Fields that need no conversion.

    Raises
    ------
    InputError
        A key is no field, or a field has no key.
    """
    hints = get_type_hints(kind)
    check_keys(kind.__name__, values, [each.name for each in fields(kind) if each.name not in made])
    return kind(**{name: _as_declared(hints[name], value) for name, value in values.items()}, **made)


def _as_declared(hint: Any, value: Any) -> Any:
    """Return a value of JSON, which has neither tuples nor classes, as the type that a field declares."""
    inner = get_args(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        return read_settings(hint, value)
    if isinstance(value, Mapping) and len(inner) == 2 and isinstance(inner[1], type) and is_dataclass(inner[1]):
        return {name: read_settings(inner[1], each) for name, each in value.items()}
    is_tuple = any(get_origin(each) is tuple for each in (hint, *inner))
    return tuple(value) if is_tuple and isinstance(value, list) else value
