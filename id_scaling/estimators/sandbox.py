"""Estimators of saved clouds in a process of their own: one that hangs, crashes or changes global state costs one row.

A child estimates by name: what it is sent is a name of the grammar and a cloud.
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
    """Return value, standard error and, if asked for, local values of one cloud by a named estimator of `points`.

    Parameters
    ----------
    name : str
        A name of the grammar.
    points : (n, d) float64 array
        The points that count.
    max_seconds : float
        After so much processor time the child is killed.
    is_local : bool
        Whether to return the estimate at each point, (n,), too.

    Raises
    ------
    TimeoutError
        The estimate took more.
    ChildError
        It raised an exception, or its process ended.
    """
    return ask_child(estimate_here, name, points, is_local, max_seconds=max_seconds)


def estimate_here(name: str, points: np.ndarray, is_local: bool) -> tuple[float, float, np.ndarray | None]:
    """Return what `estimate_contained` returns, from this process."""
    # Not a statement: the registry answers a name by a module and parameters, which are in a job's settings already.
    registry = importlib.import_module("id_scaling.estimators.registry")
    np.random.seed(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator = registry.get_estimator(name)
        value, stderr, *local = estimator.compute(points)
        if is_local and not local:
            local = [estimator.local(points)]
        return float(value), float(stderr), local[0] if is_local else None
