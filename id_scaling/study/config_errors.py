"""Pydantic's errors as sentences: one line for each key, which says where, what was found, and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from id_scaling.errors import nearest, shortened
from id_scaling.runtime.logging import plain
from id_scaling.study.config_types import IN_WORDS, Section, shown

# Where a problem is: the keys and indices of the configuration as it was given.
Place = tuple[str, ...]
# Of an error: together under 5 kB, which a terminal shows.
MOST_LINES, MOST_OF_A_LINE = 9, 500
# Of a key in a message, in characters; and of one that may have been mistyped.
MOST_OF_A_KEY = 60

# Text that was meant as a number.
NUMBER = r"[0-9][0-9_]*([.][0-9_]*)?([eE][+-]?[0-9]+)?"


def as_sentences(error: ValidationError, config: dict[str, Any], root: type[Section]) -> list[str]:
    """Return a line for every key that cannot be used, the first of many.

    Parameters
    ----------
    config : dict
        What was validated.
    root : type
        The outermost section, as which it was.
    """
    places = _by_place(error.errors(include_url=False), config)
    lines = [_line(*place, root) for place in places[:MOST_LINES]]
    more = [f"… and {len(places) - MOST_LINES} more"] if len(places) > MOST_LINES else []
    return [*(shortened(plain(line).replace("\n", "\\n"), MOST_OF_A_LINE) for line in lines), *more]


def _by_place(
    problems: Sequence[Mapping[str, Any]], config: dict[str, Any]
) -> list[tuple[Place, list[Mapping[str, Any]]]]:
    """Return problems grouped by key: a key that takes one of two types has a problem for each.

    Of a key and something inside it, only the inside is wrong: the key is of the type that has an inside.
    """
    places: dict[Place, list[Mapping[str, Any]]] = {}
    for problem in problems:
        places.setdefault(_place(problem, config), []).append(problem)
    outsides = {place[:depth] for place in places for depth in range(1, len(place))}
    return [(place, found) for place, found in places.items() if place not in outsides]


def _line(place: Place, problems: Sequence[Mapping[str, Any]], root: type[Section]) -> str:
    """Return the problems of one key as: where, what was found, what is allowed."""
    # Of several types that a key takes, the one whose own rule is broken is the one that was meant.
    problem = next((each for each in problems if each["type"] == "value_error"), problems[0])
    where = _dotted(place)
    if problem["type"] == "extra_forbidden":
        key = shortened(str(problem["loc"][-1]), MOST_OF_A_KEY)
        return f"{where} is not a key; {nearest(key, _keys_beside(problem['loc'], root))}"
    if problem["type"] == "missing":
        return f"{where} is missing; expected {_description(problem['loc'], root)}"
    if problem["type"] == "value_error":
        message = problem["msg"].removeprefix("Value error, ")
        return message if not where else f"{where}: {message}"
    allowed = " or ".join(_allowed(problem) for problem in problems)
    return f"{where}: found {shown(problem['input'])}, expected {allowed}{_advice(problem)}"


def _allowed(problem: Mapping[str, Any]) -> str:
    """Return what one problem says is allowed."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "string_pattern_mismatch":
        return IN_WORDS.get(context["pattern"], "text without control characters")
    words = {
        "model_type": "a mapping of keys",
        "dict_type": "a mapping of keys",
        "string_type": "text",
        "invalid_key": "keys that are text (YAML reads null and ~ as nothing; the null of a view is `null_cloud`)",
        "list_type": "a list",
        "too_short": "at least one",
        "string_too_short": "text that is not empty",
        "string_unicode": "text without half characters (lone surrogates)",
        "string_too_long": f"at most {context.get('max_length')} characters",
    }
    return words.get(kind, problem["msg"].removeprefix("Input should be ").removeprefix("a valid "))


def _place(problem: Mapping[str, Any], config: dict[str, Any]) -> Place:
    """Return where a problem is in the configuration as it was given.

    A location also names branches of types, and indices into lists made of one value: neither is in the configuration.
    """
    place: list[str] = []
    inside: Any = config
    is_missing = problem["type"] == "missing"
    for depth, part in enumerate(problem["loc"]):
        is_index = isinstance(inside, list) and isinstance(part, int)
        if is_index or (isinstance(inside, dict) and part in inside):
            place, inside = [*place, f"[{part}]" if is_index else f".{part}"], inside[part]
        elif is_missing and depth == len(problem["loc"]) - 1:
            place = [*place, f".{part}"]
    return tuple(place)


def _dotted(place: Place) -> str:
    """Return a place as a dotted key, `model_config[1].dtype`."""
    return "".join(shortened(part, MOST_OF_A_KEY) for part in place).removeprefix(".")


def _section(location: tuple, root: type[Section]) -> type[Section]:
    """Return the section that the last key of a location stands in."""
    section: Any = root
    for part in location[:-1]:
        for name, field in getattr(section, "model_fields", {}).items():
            if part in (name, field.alias):
                section = _sections_of(field.annotation) or section
    return section


def _sections_of(annotation: Any) -> type[Section] | None:
    """Return the section inside an annotation such as `list[ModelConfig]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    inner = [_sections_of(part) for part in getattr(annotation, "__args__", ())]
    return next((part for part in inner if part), None)


def _keys_beside(location: tuple, root: type[Section]) -> list[str]:
    """Return the keys allowed where the last key of a location stands."""
    return [field.alias or name for name, field in _section(location, root).model_fields.items()]


def _description(location: tuple, root: type[Section]) -> str:
    """Return the description of the key at a location."""
    fields = _section(location, root).model_fields
    return next((f.description or "" for name, f in fields.items() if location[-1] in (name, f.alias)), "a value")


def _advice(problem: Mapping[str, Any]) -> str:
    """Return what to do about a value whose type YAML chose unexpectedly."""
    value, is_text_meant = problem["input"], problem["type"] == "string_type"
    if isinstance(value, bool):
        return "; YAML reads bare yes, no, on and off as true and false: quote them where text is meant"
    if is_text_meant and isinstance(value, (int, float)):
        return "; put quotes around it"
    if not is_text_meant and isinstance(value, str) and re.fullmatch(NUMBER, value):
        return "; YAML reads numbers like 1e-3 as text: write 0.001 or 1.0e-3, without quotes"
    return ""
