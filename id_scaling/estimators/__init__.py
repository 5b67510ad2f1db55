"""The registry: an estimator's name is its whole definition.

A name is matched against the grammar below and only then its module is imported. Each module has
one method and a function `make(name, **parameters)` that returns an `Estimator`.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from functools import cache

from id_scaling.errors import ConfigError, nearest
from id_scaling.estimators.base import Estimator

# (grammar as people read it, pattern, module)
GRAMMAR = (
    ("mle", r"mle", "mle"),
    ("mle_harmonic", r"mle_(?P<mean>harmonic)", "mle"),
    ("twoNN_fNN", r"twoNN_f(?P<discard_percent>[0-9]{1,2})", "twonn"),
    ("mind_ml", r"mind_ml", "mind_ml"),
    ("mind_ml_dNN", r"mind_ml_d(?P<cap>[1-9][0-9]{0,3})", "mind_ml"),
    ("skdim_Name", r"skdim_(?P<class_name>[A-Za-z_]+)", "skdim"),
)
EXAMPLES = ("mle", "mle_harmonic", "twoNN_f10", "mind_ml", "mind_ml_d20", "skdim_TLE")


@dataclass(frozen=True)
class Definition:
    """What a name says: the module that holds the method, and the method's parameters."""

    module: str
    parameters: dict[str, str]


def definition_of(name: str) -> Definition:
    """Return what an estimator's name says.

    Raises
    ------
    ConfigError
        The name is not in the grammar; the nearest names and the grammar are given.
    """
    for _, pattern, module in GRAMMAR:
        match = re.fullmatch(pattern, str(name))
        if match:
            given = {key: value for key, value in match.groupdict().items() if value}
            return Definition(f"{__name__}.{module}", given)
    grammar = ", ".join(grammar for grammar, _, _ in GRAMMAR)
    raise ConfigError(
        f"{name!r} is not an estimator: {nearest(str(name), EXAMPLES)} "
        f"(names: {grammar}; NN is a per cent or a ceiling, Name an estimator of scikit-dimension)"
    )


@cache
def get_estimator(name: str) -> Estimator:
    """Return the estimator a name defines; raises as `definition_of` does."""
    definition = definition_of(name)
    return importlib.import_module(definition.module).make(name, **definition.parameters)
