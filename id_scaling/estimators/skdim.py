"""Any estimator of scikit-dimension with its defaults, on saved clouds: `skdim_TLE`, `skdim_DANCo`, …

`skdim_lPCA_NAME` is local PCA in one of its versions, such as `skdim_lPCA_Fan`. Random draws are seeded: the same
cloud gives the same number.

Bac, Mirkes, Gorban, Tyukin and Zinovyev (2021), "Scikit-Dimension: a Python package for intrinsic dimension
estimation". Importing scikit-dimension silences every warning of the process; this module restores the filters.

Some methods have a largest value that depends on a parameter, on the coordinates, or on the number of points. They
return this ceiling if the dimension is larger, and a value at the ceiling is `saturated`. The ceilings come from the
source of version 0.5, and tests compare them with it.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from id_scaling.errors import ConfigError, nearest
from id_scaling.estimators.base import Estimator

SEED = 0
LPCA_VERSIONS = ("FO", "Fan", "maxgap", "ratio", "participation_ratio", "Kaiser", "broken_stick")

NEIGHBORS_OF_ESS = 100
# Smallest margin alpha of FisherS.
LEAST_ALPHA = 0.6


def _rank(n: int, d: int) -> float:
    """Return how many directions n centered points with d coordinates can span."""
    return float(min(n - 1, d))


def _ess(n: int, _: int) -> float:
    """Return the dimension of m points at equal distances from one another, with m the size of a neighborhood.

    The m centered vectors have cosines -1 / (m - 1), so their sines equal the average sines in (m - 1)² dimensions.
    """
    m = min(NEIGHBORS_OF_ESS, n - 1)
    return float((m - 1) ** 2)


def _fisher(n: int, _: int) -> float:
    """Return the dimension where exactly one pair of points on the sphere is inseparable, at the smallest margin."""
    with warnings.catch_warnings():  # the import adds a filter
        lambertw = importlib.import_module("scipy.special").lambertw
    share, log_complement = 2 / (n * (n - 1)), np.log(1 - LEAST_ALPHA**2)
    return float(
        lambertw(-log_complement / (2 * np.pi * share**2 * LEAST_ALPHA**2 * (1 - LEAST_ALPHA**2))).real
        / -log_complement
    )


# class -> (number of points, number of coordinates -> the largest value); None if there is no largest value.
CEILINGS: dict[str, Callable[[int, int], float] | None] = {
    "CorrInt": None,
    # DANCo compares with balls of 1 to d dimensions, and then searches half a dimension to either side.
    "DANCo": lambda n, d: d - 0.5,
    "ESS": _ess,
    "FisherS": _fisher,
    "GRIDE": None,
    "KNN": lambda n, d: float(d),
    "MADA": None,
    "MLE": None,
    "MOM": None,
    "MiND_ML": lambda n, d: float(_default("MiND_ML", "D")),
    "PH": None,
    "TLE": None,
    "TwoNN": None,
    "lPCA": _rank,
}
OF_VERSIONS: dict[str, Callable[[int, int], float]] = {
    # The position of the largest ratio of successive variances; there is one ratio fewer than variances.
    "maxgap": lambda n, d: float(min(n, d) - 1),
    # The leading variances hold at least their proportional share, so this number of them holds 5 percent.
    "ratio": lambda n, d: float(np.ceil(0.05 * _rank(n, d))),
    # Not all variances exceed their mean, or those of a broken stick.
    "Kaiser": lambda n, d: _rank(n, d) - 1,
    "broken_stick": lambda n, d: _rank(n, d) - 1,
}


def make(name: str, class_name: str) -> Estimator:
    """Return the estimator that runs `skdim.id.<class_name>().fit_transform`."""
    class_names = _class_names()
    versions = {f"lPCA_{version}": ("lPCA", version) for version in LPCA_VERSIONS}
    variants = {known: (known, "") for known in class_names} | versions
    if class_name not in variants:
        raise ConfigError(
            f"{name!r} is not an estimator: skdim.id has no {class_name!r}; {nearest(class_name, list(variants))}"
        )
    class_name, version = variants[class_name]
    compute = partial(fit, class_name=class_name, version=version)
    ceiling = OF_VERSIONS.get(version) or CEILINGS.get(class_name)
    return Estimator(name, "points", min_points=22, compute=compute, ceiling=ceiling)


def fit(points: np.ndarray, class_name: str, version: str = "") -> tuple[float, float]:
    """Return the dimension of one cloud; scikit-dimension gives no standard error.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> sheet = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 20))
    >>> value, stderr = fit(sheet, "MLE")
    >>> round(value, 3), stderr
    (3.177, nan)
    """
    estimator = getattr(_skdim_id(), class_name)
    parameters = inspect.signature(estimator).parameters
    arguments = {key: SEED for key in ("random_state", "seed") if key in parameters} | (
        {"ver": version} if version else {}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(estimator(**arguments).fit_transform(points)), np.nan


def _default(class_name: str, parameter: str) -> Any:
    """Return the default value of a parameter of a scikit-dimension estimator."""
    return inspect.signature(getattr(_skdim_id(), class_name)).parameters[parameter].default


def _class_names() -> list[str]:
    """Return the names of the estimator classes in the installed scikit-dimension."""
    module = _skdim_id()
    return [name for name in dir(module) if hasattr(getattr(module, name), "fit_transform")]


def _skdim_id() -> ModuleType:
    """Return `skdim.id`, imported without its change to the warning filters of the process."""
    try:
        with warnings.catch_warnings():
            return importlib.import_module("skdim.id")
    except ModuleNotFoundError as error:
        raise ConfigError(f"skdim_…: {error.name} is not installed; pip install scikit-dimension") from error
