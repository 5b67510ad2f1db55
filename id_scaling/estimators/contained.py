"""Estimators of saved clouds in a process of their own: one that hangs, crashes or changes global state costs one row.

A child is started for each thread that asks, kept between clouds, and replaced once anything has come between a
question and its answer. It estimates by name: what it is sent is a name of the grammar and a cloud.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import subprocess
import sys
import threading
import warnings
from typing import Any, BinaryIO

import numpy as np

DEFAULT_SECONDS = 600.0
SEED = 0
# What the operating system can wait for at once; some years.
LONGEST = 1e8
# Threads of many children share the machine; each cloud is small.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
# Ctrl-C is for the one who asks, who then ends the child.
_DEAF_TO_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"

_OF_THREAD = threading.local()


class ChildError(Exception):
    """What went wrong in the child, in words."""


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
        After so long the child is killed.
    is_local : bool
        Whether to return the estimate at each point, (n,), too.

    Raises
    ------
    TimeoutError
        The estimate took longer.
    ChildError
        It raised an exception, or its process ended.
    """
    child = _own_child()
    try:
        answer = child.ask((name, points, is_local), max_seconds)
    except BaseException as error:
        # Whatever is still to come from this child answers a question nobody asks any more.
        _OF_THREAD.child = None
        ended = child.end()
        if isinstance(error, EOFError | BrokenPipeError | pickle.UnpicklingError):
            raise ChildError(f"its process ended with code {ended}") from error
        raise
    if isinstance(answer, str):
        raise ChildError(answer)
    return answer


def _own_child() -> _Child:
    """Return the running child of this thread of this process; one from before a fork is the parent's."""
    child = getattr(_OF_THREAD, "child", None)
    if child is None or child.owner != os.getpid() or not child.is_running():
        child = _OF_THREAD.child = _Child()
    return child


class _Child:
    """A process that estimates one cloud after another."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"{_DEAF_TO_CTRL_C}; from {__name__} import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            self._answer()  # what the start of the process takes is not the estimator's
        except (OSError, EOFError) as error:
            raise ChildError(f"{sys.executable} could not be started to estimate in ({error})") from error

    def ask(self, question: tuple[str, np.ndarray, bool], max_seconds: float) -> Any:
        """Return the answer to a question: a tuple, or the words of an exception."""
        pickle.dump(question, self._process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], min(max_seconds, LONGEST))[0]:
            raise TimeoutError(f"no answer after {max_seconds:g} s")
        return self._answer()

    def is_running(self) -> bool:
        """Return whether the process has not ended."""
        return self._process.poll() is None

    def end(self) -> int:
        """Kill the process and return its exit code."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):  # part of a question was never taken
                pipe.close()
        return self._process.wait()

    def _answer(self) -> Any:
        return pickle.load(self._process.stdout)

    def __del__(self) -> None:
        process = getattr(self, "_process", None)
        if process is not None and self.owner == os.getpid() and self.is_running():
            self.end()


def serve() -> None:
    """Answer questions on standard input until there are no more: (value, stderr, local), or an exception's words."""
    from id_scaling.estimators import get_estimator

    # What an estimator prints must not stand among the answers.
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _send(None, answers)
    while True:
        try:
            name, points, is_local = pickle.load(questions)
        except EOFError:
            return
        np.random.seed(SEED)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                estimator = get_estimator(name)
                value, stderr = estimator.compute(points)
                local = estimator.local(points) if is_local else None
            _send((float(value), float(stderr), local), answers)
        except Exception as error:  # noqa: BLE001  other packages' code may raise anything: it becomes the status
            _send(f"{type(error).__name__}: {error}", answers)


def _send(answer: Any, answers: BinaryIO) -> None:
    pickle.dump(answer, answers)
    answers.flush()
