"""Registry of estimators: the name of an estimator is its complete definition.

A name is matched against the grammar below; only then is its module imported. Each module has one method and a
function `make(name, **parameters)` that returns an `Estimator`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache

from id_scaling.errors import ConfigError
from id_scaling.estimators.base import Estimator
from id_scaling.estimators.grammar import Rule, hint

MOST = 9999
# Suffix that canonical names of the module mle omit.
DEFAULT_K = "_k20"


GRAMMAR = (
    Rule("mle", "mle", "mle"),
    Rule("mle_k(?P<k>NN)", "mle", "mle_k10", {"k": range(4, MOST + 1)}, "its spread is infinite below; mle_k20 is mle"),
    *(
        rule
        for mean, min_k in (("harmonic", 2), ("unbiased", 3), ("median", 2))
        for rule in (
            Rule(f"mle_(?P<mean>{mean})", "mle", f"mle_{mean}"),
            Rule(
                f"mle_(?P<mean>{mean})_k(?P<k>NN)",
                "mle",
                f"mle_{mean}_k10",
                {"k": range(min_k, MOST + 1)},
                f"mle_{mean}_k20 is mle_{mean}",
            ),
        )
    ),
    Rule("twoNN_f(?P<discard_percent>NN)", "twonn", "twoNN_f10", {"f": range(100)}),
    Rule("twoNN_(?P<method>ml)", "twonn", "twoNN_ml"),
    Rule("gride_n(?P<scale>NN)", "gride", "gride_n8", {"n": range(1, MOST + 1)}),
    Rule("mom_k(?P<k>NN)", "mom", "mom_k20", {"k": range(4, MOST + 1)}, "its spread is infinite below"),
    Rule("mind_ml", "mind_ml", "mind_ml"),
    Rule("mind_ml_d(?P<cap>NN)", "mind_ml", "mind_ml_d20", {"d": range(1, MOST + 1)}),
    Rule("corrint", "corrint", "corrint"),
    Rule("participation_ratio", "participation_ratio", "participation_ratio"),
    Rule("participation_ratio_(?P<form>corrected)", "participation_ratio", "participation_ratio_corrected"),
    Rule("(?P<statistic>effective_rank)", "spectrum", "effective_rank"),
    Rule("(?P<statistic>pca_NN)", "spectrum", "pca_90", {"NN": (90, 95, 99)}),
    Rule("mada", "mada", "mada"),
    Rule("tle", "tle", "tle"),
    Rule("abid_k(?P<k>NN)", "abid", "abid_k100", {"k": range(2, 1000)}),
    Rule(
        "local_pca_k(?P<k>NN)_v(?P<percent>NN)",
        "local_pca",
        "local_pca_k50_v90",
        {"k": range(2, 1000), "v": range(10, 100)},
    ),
    Rule("phd", "phd", "phd"),
    Rule("phd_(?P<protocol>text)", "phd", "phd_text"),
    Rule("mst", "mst", "mst"),
    Rule("skdim_(?P<class_name>Name)", "skdim", "skdim_TLE", note="Name is an estimator of scikit-dimension"),
)

# Other common names of estimators, in lowercase letters and digits, and their names here.
OTHER_NAMES = {
    "2nn": "twoNN_f10",
    "danco": "skdim_DANCo",
    "ess": "skdim_ESS",
    "fishers": "skdim_FisherS",
    "knn": "skdim_KNN",
    "lpca": "skdim_lPCA",
}


@dataclass(frozen=True)
class Definition:
    """The definition in a name: the module of the method, and the parameters of the method."""

    module: str
    parameters: dict[str, str]


@cache
def definition_of(name: str) -> Definition:
    """Return the definition in the name of an estimator.

    Raises
    ------
    ConfigError
        The name is not in the grammar; the message suggests a name and lists the forms of its method.

    Examples
    --------
    >>> definition_of("gride_n8")
    Definition(module='id_scaling.estimators.gride', parameters={'scale': '8'})
    """
    for rule in GRAMMAR:
        parameters = rule.parameters(str(name))
        if parameters is not None:
            return Definition(f"id_scaling.estimators.{rule.module}", parameters)
    raise ConfigError(f"{name!r} is not an estimator: {hint(str(name), GRAMMAR, OTHER_NAMES)}")


def canonical_name(name: str) -> str:
    """Return the name under which an estimator is stored: `mle_k20` is `mle`; raises like `definition_of`.

    Examples
    --------
    >>> canonical_name("mle_k20"), canonical_name("mle_k10")
    ('mle', 'mle_k10')
    """
    if definition_of(name).module == "id_scaling.estimators.mle":
        return str(name).removesuffix(DEFAULT_K)
    return str(name)


def get_estimator(name: str) -> Estimator:
    """Return the estimator that a name defines, under its canonical name; raises like `definition_of`.

    Examples
    --------
    >>> estimator = get_estimator("twoNN_f10")
    >>> estimator.needs, estimator.ranks, estimator.min_points
    ('neighbors', (2,), 3)
    """
    return _make_estimator(canonical_name(name))


@cache
def _make_estimator(name: str) -> Estimator:
    definition = definition_of(name)
    return importlib.import_module(definition.module).make(name, **definition.parameters)
