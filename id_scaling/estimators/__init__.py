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

# Numbers have one spelling: no leading zeros, and no k where it is the 20 of the plain name.
_K_FROM = {2: "[2-9]", 3: "[3-9]", 4: "[4-9]"}
_LARGER_K = r"|1[0-9]|2[1-9]|[3-9][0-9]|[1-9][0-9]{2,3})"
# (grammar as people read it, pattern, module, what NN may be)
GRAMMAR = (
    ("mle", r"mle", "mle", ""),
    ("mle_kNN", rf"mle_k(?P<k>{_K_FROM[4]}{_LARGER_K}", "mle", "4 to 9999; its spread is infinite below; 20 is `mle`"),
    ("mle_harmonic", r"mle_(?P<mean>harmonic)", "mle", ""),
    (
        "mle_harmonic_kNN",
        rf"mle_(?P<mean>harmonic)_k(?P<k>{_K_FROM[2]}{_LARGER_K}",
        "mle",
        "2 to 9999; 20 is `mle_harmonic`",
    ),
    ("mle_unbiased", r"mle_(?P<mean>unbiased)", "mle", ""),
    (
        "mle_unbiased_kNN",
        rf"mle_(?P<mean>unbiased)_k(?P<k>{_K_FROM[3]}{_LARGER_K}",
        "mle",
        "3 to 9999; 20 is `mle_unbiased`",
    ),
    ("twoNN_fNN", r"twoNN_f(?P<discard_percent>0|[1-9][0-9]?)", "twonn", "0 to 99"),
    ("twoNN_ml", r"twoNN_(?P<method>ml)", "twonn", ""),
    ("gride_nNN", r"gride_n(?P<scale>[1-9][0-9]{0,3})", "gride", "1 to 9999"),
    ("mom_kNN", r"mom_k(?P<k>[4-9]|[1-9][0-9]{1,3})", "mom", "4 to 9999; its spread is infinite below"),
    ("mind_ml", r"mind_ml", "mind_ml", ""),
    ("mind_ml_dNN", r"mind_ml_d(?P<cap>[1-9][0-9]{0,3})", "mind_ml", "1 to 9999"),
    ("corrint", r"corrint", "corrint", ""),
    ("participation_ratio", r"participation_ratio", "participation_ratio", ""),
    ("participation_ratio_corrected", r"participation_ratio_(?P<form>corrected)", "participation_ratio", ""),
    ("effective_rank", r"(?P<statistic>effective_rank)", "spectrum", ""),
    ("pca_NN", r"(?P<statistic>pca_9[059])", "spectrum", "90, 95 or 99"),
    ("mada", r"mada", "mada", ""),
    ("tle", r"tle", "tle", ""),
    ("abid_kNN", r"abid_k(?P<k>[2-9]|[1-9][0-9]{1,2})", "abid", "2 to 999"),
    (
        "local_pca_kNN_vNN",
        r"local_pca_k(?P<k>[2-9]|[1-9][0-9]{1,2})_v(?P<percent>[1-9][0-9])",
        "local_pca",
        "k 2 to 999, v 10 to 99",
    ),
    ("phd", r"phd", "phd", ""),
    ("mst", r"mst", "mst", ""),
    ("skdim_Name", r"skdim_(?P<class_name>[A-Za-z_]+)", "skdim", ""),
)
EXAMPLES = (
    "mle",
    "mle_k10",
    "mle_harmonic",
    "mle_harmonic_k10",
    "mle_unbiased",
    "mle_unbiased_k10",
    "twoNN_f10",
    "twoNN_ml",
    "gride_n8",
    "mom_k20",
    "mind_ml",
    "mind_ml_d20",
    "corrint",
    "participation_ratio",
    "participation_ratio_corrected",
    "effective_rank",
    "pca_90",
    "mada",
    "tle",
    "abid_k100",
    "local_pca_k50_v90",
    "phd",
    "mst",
    "skdim_TLE",
)


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
    for _, pattern, module, _ in GRAMMAR:
        match = re.fullmatch(pattern, str(name))
        if match:
            given = {key: value for key, value in match.groupdict().items() if value}
            return Definition(f"{__name__}.{module}", given)
    grammar = ", ".join(
        f"{form} (NN {numbers})" if numbers and form.endswith("NN") else form for form, _, _, numbers in GRAMMAR
    )
    raise ConfigError(
        f"{name!r} is not an estimator: {nearest(str(name), EXAMPLES)} (names: {grammar}; numbers without leading "
        "zeros; Name is an estimator of scikit-dimension)"
    )


@cache
def get_estimator(name: str) -> Estimator:
    """Return the estimator a name defines; raises as `definition_of` does."""
    definition = definition_of(name)
    return importlib.import_module(definition.module).make(name, **definition.parameters)
