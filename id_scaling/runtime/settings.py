"""Settings of jobs as dataclasses: a class declares its settings, and a job reads them from JSON.

The class that uses a setting declares it: name, type, default, meaning, and allowed values. `study.declared_keys`
generates the keys of the configuration from these declarations. A job builds the same class from its JSON.
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
    """The declaration of a setting, without its name and type.

    Parameters
    ----------
    default : object
        Default of the field and of the key.
    meaning : str
        Description of the key.
    key : str
        The key, with dots between sections; empty if it equals the name of the field.
    is_execution : bool
        Whether the setting changes no content; the job then gets it separately from its settings.
    bounds : mapping
        Limits of the values, named as in `Field` of pydantic.
    """

    default: Any
    meaning: str
    key: str
    is_execution: bool
    bounds: Mapping[str, Any]


def setting(default: Any, /, *, meaning: str, key: str = "", is_execution: bool = False, **bounds: Any) -> Any:
    """Return a field of a dataclass that is also a key of the configuration, see `Declaration`.

    The fingerprint of the code includes only the default.
    """
    return field(default=default, metadata={"setting": Declaration(default, meaning, key, is_execution, bounds)})


def declarations(kind: type) -> dict[str, Declaration]:
    """Return the settings that a dataclass declares, by field name."""
    return {declared.name: declared.metadata["setting"] for declared in fields(kind) if "setting" in declared.metadata}


def check_keys(job: str, values: Mapping[str, Any], needed: Iterable[str], known: Iterable[str] = ()) -> None:
    """Raise an InputError if the settings of a job have an unknown key, or lack a required key.

    This happens if another version of the workflow planned the job. An ignored key would be recorded as if it applied.
    """
    names = {*needed, *known}
    if unknown := sorted(values.keys() - names):
        raise InputError(f"{job}: found the setting {unknown[0]!r}, which is not known; {nearest(unknown[0], names)}")
    if missing := sorted({*needed} - values.keys()):
        raise InputError(f"{job}: the setting {missing[0]!r} is missing; run snakemake again to plan the job again")


def call_with(function: Callable[..., T], values: Mapping[str, Any], /, **others: Any) -> T:
    """Call a function with the settings of a job, and other arguments, and return its result.

    Raises
    ------
    InputError
        A setting is not an argument of the function, or a required argument is missing.
    """
    arguments = {name: parameter for name, parameter in signature(function).parameters.items() if name not in others}
    needed = [name for name, parameter in arguments.items() if parameter.default is Parameter.empty]
    check_keys(function.__name__.strip("_"), values, needed, arguments)
    return function(**values, **others)


def read_settings(kind: type[Declared], values: Mapping[str, Any], **made: Any) -> Declared:
    """Return the settings of a job as an instance of the class that declares them.

    Parameters
    ----------
    kind : type
        A dataclass.
    values : mapping
        All its fields as JSON, except those in `made`.
    **made : object
        Fields that are given as objects and need no conversion.

    Raises
    ------
    InputError
        A key is not a field, or a field has no key.
    """
    hints = get_type_hints(kind)
    check_keys(kind.__name__, values, [declared.name for declared in fields(kind) if declared.name not in made])
    return kind(**{name: _as_declared(hints[name], value) for name, value in values.items()}, **made)


def _as_declared(hint: Any, value: Any) -> Any:
    """Return a JSON value as the declared type of a field; JSON has neither tuples nor classes."""
    arguments = get_args(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        return read_settings(hint, value)
    if (
        isinstance(value, Mapping)
        and len(arguments) == 2
        and isinstance(arguments[1], type)
        and is_dataclass(arguments[1])
    ):
        return {name: read_settings(arguments[1], part) for name, part in value.items()}
    is_tuple = any(get_origin(part) is tuple for part in (hint, *arguments))
    return tuple(value) if is_tuple and isinstance(value, list) else value
