"""Processes that answer one question after another: what one does, holds or crashes of is no matter to who asks.

A child is started for each thread that asks and each function that answers, kept between questions, and replaced once
anything has come between a question and its answer. It ends when its standard input does, so with whoever started it,
however that ended.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, BinaryIO

# What the operating system can wait for at once; some years.
LONGEST = 1e8
# Many children share the machine.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
# Ctrl-C is for the one who asks, who then ends the child.
_DEAF_TO_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"

_OF_THREAD = threading.local()


class ChildError(Exception):
    """What went wrong in the child, in words."""


class ChildEnded(ChildError):
    """The child's process ended before it answered."""


def ask_child(answer: Callable, *question: Any, max_seconds: float = LONGEST, files: Sequence[int] = ()) -> Any:
    """Return `answer(*question)`, as a child of this thread computes it.

    Parameters
    ----------
    answer : callable
        A module's function.
    *question : any
        Its arguments, pickled.
    max_seconds : float
        After so long the child is killed.
    files : sequence of int
        Descriptors of open files that a child has too, by the same numbers.

    Raises
    ------
    TimeoutError
        The answer took longer.
    ChildError
        The function raised an exception, whose traceback is a note; `ChildEnded` where its process ended.
    """
    name = f"{answer.__module__}:{answer.__qualname__}"
    child = _own_child(name, files)
    try:
        found, words, trace = child.ask(question, max_seconds)
    except BaseException as error:
        # Whatever is still to come from this child answers a question nobody asks any more.
        _children().pop(name)
        ended = child.end()
        if isinstance(error, EOFError | BrokenPipeError | pickle.UnpicklingError):
            cause = " (killed, most likely for want of memory)" if ended == -signal.SIGKILL else ""
            raise ChildEnded(f"its process ended with code {ended}{cause}") from error
        raise
    if words:
        raised = ChildError(words)
        raised.add_note(trace)
        raise raised
    return found


def _children() -> dict[str, _Child]:
    """Return the children of this thread, by what they answer."""
    if not hasattr(_OF_THREAD, "children"):
        _OF_THREAD.children = {}
    return _OF_THREAD.children


def _own_child(name: str, files: Sequence[int]) -> _Child:
    """Return the running child of this thread of this process; one from before a fork is the parent's."""
    child, held = _children().get(name), [(file, os.fstat(file).st_ino) for file in files]
    if child is None or child.owner != os.getpid() or child.held != held or not child.is_running():
        child = _children()[name] = _Child(name, held)
    return child


class _Child:
    """A process in which one function answers."""

    def __init__(self, name: str, held: Sequence[tuple[int, int]]) -> None:
        self.owner, self.held = os.getpid(), held
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"{_DEAF_TO_CTRL_C}; from {__name__} import serve; serve({name!r})"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                pass_fds=[file for file, _ in held],
            )
            self._answer()  # what the start of the process takes is no part of an answer
        except (OSError, EOFError) as error:
            raise ChildError(f"{sys.executable} could not be started to compute in ({error})") from error

    def ask(self, question: tuple, max_seconds: float) -> tuple[Any, str, str]:
        """Return the answer to a question, and the words and traceback of an exception, empty where there is none."""
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


def serve(name: str) -> None:
    """Answer questions on standard input by a module's function until there are no more."""
    # What a function prints must not stand among the answers.
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    module, function = name.split(":")
    answer = getattr(import_module(module), function)
    _send(None, answers)
    while True:
        try:
            question = pickle.load(questions)
        except EOFError:
            return
        try:
            reply = answer(*question), "", ""
        except Exception as error:  # noqa: BLE001  other packages' code may raise anything: it becomes words
            reply = None, f"{type(error).__name__}: {error}", traceback.format_exc()
        _send(reply, answers)


def _send(answer: Any, answers: BinaryIO) -> None:
    pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
    answers.flush()
