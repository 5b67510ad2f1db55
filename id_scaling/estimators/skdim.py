"""Any estimator of scikit-dimension with its defaults, on saved clouds: `skdim_TLE`, `skdim_DANCo`, …

`skdim_lPCA_NAME` is local PCA by one of its versions, such as `skdim_lPCA_Fan`. What is drawn at random is
seeded: the same cloud gives the same number.

Bac, Mirkes, Gorban, Tyukin and Zinovyev (2021), "Scikit-Dimension: a Python package for intrinsic dimension
estimation". Importing it silences every warning of the process; that is undone here.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from functools import partial
from types import ModuleType

import numpy as np

from id_scaling.errors import ConfigError, nearest
from id_scaling.estimators.base import Estimator

SEED = 0
LPCA_VERSIONS = ("FO", "Fan", "maxgap", "ratio", "participation_ratio", "Kaiser", "broken_stick")


def make(name: str, class_name: str) -> Estimator:
    """Return the estimator that runs `skdim.id.<class_name>().fit_transform`."""
    known = _class_names()
    versions = {f"lPCA_{version}": ("lPCA", version) for version in LPCA_VERSIONS}
    variants = {known_name: (known_name, "") for known_name in known} | versions
    if class_name not in variants:
        raise ConfigError(
            f"{name!r} is not an estimator: skdim.id has no {class_name!r}; {nearest(class_name, list(variants))}"
        )
    class_name, version = variants[class_name]
    return Estimator(name, "points", min_points=22, compute=partial(fit, class_name=class_name, version=version))


def fit(points: np.ndarray, class_name: str, version: str = "") -> tuple[float, float]:
    """Return the dimension of one cloud; scikit-dimension gives no standard error."""
    estimator = getattr(_skdim_id(), class_name)
    parameters = inspect.signature(estimator).parameters
    given = {key: SEED for key in ("random_state", "seed") if key in parameters} | ({"ver": version} if version else {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(estimator(**given).fit_transform(points)), np.nan


def _class_names() -> list[str]:
    """Return the estimators of the installed scikit-dimension."""
    module = _skdim_id()
    return [name for name in dir(module) if hasattr(getattr(module, name), "fit_transform")]


def _skdim_id() -> ModuleType:
    """Import `skdim.id` without its change to the process's warning filters."""
    try:
        with warnings.catch_warnings():
            return importlib.import_module("skdim.id")
    except ModuleNotFoundError as error:
        raise ConfigError(f"skdim_…: {error.name} is not installed; pip install scikit-dimension") from error
