"""Any estimator of scikit-dimension with its defaults, on saved clouds: `skdim_TLE`, `skdim_DANCo`, …

Bac, Mirkes, Gorban, Tyukin and Zinovyev (2021), "Scikit-Dimension: a Python package for intrinsic dimension
estimation". Importing it silences every warning of the process; that is undone here.
"""

from __future__ import annotations

import importlib
import warnings
from functools import partial
from types import ModuleType

import numpy as np

from id_scaling.errors import ConfigError, nearest
from id_scaling.estimators.base import Estimator


def make(name: str, class_name: str) -> Estimator:
    """Return the estimator that runs `skdim.id.<class_name>().fit_transform`."""
    known = _class_names()
    if class_name not in known:
        raise ConfigError(f"{name!r} is not an estimator: skdim.id has no {class_name!r}; {nearest(class_name, known)}")
    return Estimator(name, "points", min_points=22, compute=partial(fit, class_name=class_name))


def fit(points: np.ndarray, class_name: str) -> tuple[float, float]:
    """Return the dimension of one cloud; scikit-dimension gives no standard error."""
    estimator = getattr(_skdim_id(), class_name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(estimator().fit_transform(points)), np.nan


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
