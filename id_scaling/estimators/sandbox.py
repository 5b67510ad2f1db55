"""Run estimators of saved clouds in a separate process: a hang, a crash, or changed global state costs one row.

The child process gets the name of an estimator and a cloud.
"""

from __future__ import annotations

import importlib
import warnings

import numpy as np

from id_scaling.runtime.workers import ask_child

DEFAULT_SECONDS = 600.0
SEED = 0


def estimate_contained(
    name: str, points: np.ndarray, max_seconds: float, is_local: bool = False
) -> tuple[float, float, np.ndarray | None]:
    """Return value, standard error and, if requested, local values of one cloud by a named estimator of `points`.

    Parameters
    ----------
    name : str
        Name of the estimator.
    points : (n, d) float64 array
        The used points.
    max_seconds : float
        The child process is killed after this much processor time.
    is_local : bool
        Whether to also return the estimate at each point, (n,).

    Raises
    ------
    TimeoutError
        The estimate took longer.
    ChildError
        The estimate raised an exception, or its process ended.
    """
    return ask_child(estimate_here, name, points, is_local, max_seconds=max_seconds)


def estimate_here(name: str, points: np.ndarray, is_local: bool) -> tuple[float, float, np.ndarray | None]:
    """Return the result of `estimate_contained`, computed in this process."""
    # An import statement would make the registry part of the fingerprint; job settings already hold what it resolves.
    registry = importlib.import_module("id_scaling.estimators.registry")
    np.random.seed(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator = registry.get_estimator(name)
        value, stderr, *local = estimator.compute(points)
        if is_local and not local:
            local = [estimator.local(points)]
        return float(value), float(stderr), local[0] if is_local else None
