"""Estimators of saved clouds in a process of their own: one that hangs, crashes or changes global state costs one row.

A child is started for each thread that asks, kept between clouds, and replaced when it is killed. It estimates by
name: what it is sent is a name of the grammar and a cloud.
"""

from __future__ import annotations

import os
import pickle
import select
import subprocess
import sys
import threading
import warnings
from typing import BinaryIO

import numpy as np

DEFAULT_SECONDS = 600.0
# Threads of many children share the machine; each cloud is small.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")

_OF_THREAD = threading.local()


class ChildError(Exception):
    """What went wrong in the child, in words."""


def estimate_contained(name: str, points: np.ndarray, max_seconds: float) -> tuple[float, float]:
    """Return value and standard error of one cloud by a named estimator of `points`.

    Parameters
    ----------
    name : str
        A name of the grammar.
    points : (n, d) float64 array
        The points that count.
    max_seconds : float
        After so long the child is killed.

    Raises
    ------
    TimeoutError
        The estimate took longer.
    ChildError
        It raised an exception, or its process ended.
    """
    child = getattr(_OF_THREAD, "child", None) or _Child()
    _OF_THREAD.child = child
    try:
        return child.ask((name, points), max_seconds)
    except (TimeoutError, EOFError, OSError) as error:
        _OF_THREAD.child = None
        ended = child.end()
        if isinstance(error, TimeoutError):
            raise
        raise ChildError(f"its process ended with code {ended}") from error


class _Child:
    """A process that estimates one cloud after another."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._answer()  # what the start of the process takes is not the estimator's

    def ask(self, question: tuple[str, np.ndarray], max_seconds: float) -> tuple[float, float]:
        """Return the answer to a question, or raise what became of it."""
        pickle.dump(question, self._process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], max_seconds)[0]:
            raise TimeoutError(f"no answer after {max_seconds:g} s")
        answer = self._answer()
        if isinstance(answer, str):
            raise ChildError(answer)
        return answer

    def end(self) -> int:
        """Kill the process and return its exit code."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            pipe.close()
        return self._process.wait()

    def _answer(self) -> tuple[float, float] | str | None:
        return pickle.load(self._process.stdout)

    def __del__(self) -> None:
        if self._process.poll() is None:
            self.end()


def serve() -> None:
    """Answer questions on standard input until there are no more: (value, stderr), or the words of an exception."""
    from id_scaling.estimators import get_estimator

    # What an estimator prints must not stand among the answers.
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _send(None, answers)
    while True:
        try:
            name, points = pickle.load(questions)
        except EOFError:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value, stderr = get_estimator(name).compute(points)
            _send((float(value), float(stderr)), answers)
        except Exception as error:  # noqa: BLE001  other packages' code may raise anything: it becomes the status
            _send(f"{type(error).__name__}: {error}", answers)


def _send(answer: tuple[float, float] | str | None, answers: BinaryIO) -> None:
    pickle.dump(answer, answers)
    answers.flush()
