"""Processes that answer one question after another: what one does, holds or crashes of is no matter to who asks.

A child is started for each thread that asks and each function that answers, kept between questions, and replaced once
anything has come between a question and its answer. It ends when its standard input does, in the midst of an answer
too, so with whoever started it, however that ended.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import IO, Any, BinaryIO, cast

from id_scaling.errors import Ended

# What the operating system can wait for at once, in seconds; days.
LONGEST = 1e6
# A child that waits, or shares its core with others, is killed after so many times the seconds that it may compute:
# nine others on each core leave an answer as it is.
WALL_TIMES = 10
# Seconds that a process which has said its last may take to end.
TO_END = 5.0
# Many children share the machine.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
# Ctrl-C, and SIGTERM to all of a job, are for the one who asks, who then ends the child.
_DEAF = "import signal; [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)]"

_OF_THREAD = threading.local()
# Those of all threads.
_RUNNING: weakref.WeakSet[_Child] = weakref.WeakSet()


class ChildError(Exception):
    """What went wrong in the child, in words.

    Parameters
    ----------
    words : str
    lacks_memory : bool
        Whether there was, as far as can be seen, too little memory.
    """

    def __init__(self, words: str, lacks_memory: bool = False) -> None:
        super().__init__(words)
        self.lacks_memory = lacks_memory


def ask_child(answer: Callable, *question: Any, max_seconds: float = LONGEST, files: Sequence[int] = ()) -> Any:
    """Return `answer(*question)`, as a child of this thread computes it.

    Parameters
    ----------
    answer : callable
        A module's function.
    *question : any
        Its arguments, pickled.
    max_seconds : float
        After so much processor time the child is killed, so that an answer does not depend on who else computes; and
        after WALL_TIMES as long by the clock.
    files : sequence of int
        Descriptors of open files that a child has too, by the same numbers.

    Raises
    ------
    TimeoutError
        The answer took more.
    ChildError
        The function raised an exception, whose traceback is a note, or its process ended.
    """
    name = f"{answer.__module__}:{answer.__qualname__}"
    child = _own_child(name, files)
    try:
        found, raised, trace = child.ask(question, max_seconds)
    except BaseException as error:
        # Whatever is still to come from this child answers a question nobody asks any more.
        _children().pop(name)
        is_cut_off = isinstance(error, EOFError | BrokenPipeError | pickle.UnpicklingError)
        code = child.end(TO_END if is_cut_off else 0.0)
        if code == -signal.SIGPROF:
            raise TimeoutError(f"no answer after {max_seconds:g} s of processor time") from error
        if is_cut_off:
            is_killed = code == -signal.SIGKILL
            cause = " (killed, most likely for want of memory)" if is_killed else ""
            raise ChildError(f"its process ended with code {code}{cause}", lacks_memory=is_killed) from error
        raise
    if raised:
        raised.add_note(trace)
        raise raised
    return found


@contextlib.contextmanager
def ending_children() -> Iterator[None]:
    """End the children of all threads at Ctrl-C, or when the system asks to end: threads that ask see nothing of it."""
    try:
        yield
    except (KeyboardInterrupt, Ended):
        for child in list(_RUNNING):
            if child.owner == os.getpid():
                child.kill()
        raise


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
                [sys.executable, "-P", "-c", f"{_DEAF}; from {__name__} import serve; serve({name!r})"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                pass_fds=[file for file, _ in held],
            )
            # Both are pipes, as asked for.
            self._questions = cast("IO[bytes]", self._process.stdin)
            self._answers = cast("IO[bytes]", self._process.stdout)
            self._answer()  # what the start of the process takes is no part of an answer
        except (OSError, EOFError) as error:
            words = f"{sys.executable} could not be started to compute in ({error})"
            raise ChildError(words, lacks_memory=getattr(error, "errno", None) == errno.ENOMEM) from error
        _RUNNING.add(self)

    def ask(self, question: tuple, max_seconds: float) -> tuple[Any, ChildError | None, str]:
        """Return the answer to a question, or the error and the traceback."""
        pickle.dump((question, max_seconds), self._questions, protocol=pickle.HIGHEST_PROTOCOL)
        self._questions.flush()
        waiting = select.poll()
        waiting.register(self._answers, select.POLLIN)
        longest = min(WALL_TIMES * max_seconds, LONGEST)
        if not waiting.poll(1000 * longest):
            raise TimeoutError(f"no answer after {longest:g} s")
        return self._answer()

    def is_running(self) -> bool:
        """Return whether the process has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Kill the process; whoever waits for its answer sees that it ended."""
        self._process.kill()

    def end(self, patience: float = 0.0) -> int:
        """Return the exit code of a process that is ending, or is killed after so many seconds."""
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
        for pipe in (self._questions, self._answers):
            with contextlib.suppress(BrokenPipeError):  # part of a question was never taken
                pipe.close()
        return self._process.wait()

    def _answer(self) -> Any:
        return pickle.load(self._answers)

    def __del__(self) -> None:
        process = getattr(self, "_process", None)
        if process is not None and self.owner == os.getpid() and self.is_running():
            self.end()


def serve(name: str) -> None:
    """Answer questions on standard input by a module's function until there are no more."""
    # What a function prints must not stand among the answers.
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    threading.Thread(target=_end_with_input, args=[questions.fileno()], daemon=True).start()
    module, function = name.split(":")
    answer = getattr(import_module(module), function)
    _send(pickle.dumps(None), answers)
    while True:
        try:
            question, max_seconds = pickle.load(questions)
        except EOFError:
            return
        # The signal of this timer ends the process, in the midst of compiled code too.
        signal.setitimer(signal.ITIMER_PROF, min(max_seconds, LONGEST))
        try:
            reply = _pickled((answer(*question), None, ""))
        except Exception as error:  # noqa: BLE001  other packages' code may raise anything: it becomes words
            raised = ChildError(f"{type(error).__name__}: {error}", lacks_memory=isinstance(error, MemoryError))
            reply = _pickled((None, raised, traceback.format_exc()))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(reply, answers)


def _end_with_input(file: int) -> None:
    """End this process, whatever it does, once nobody holds the other end of a pipe."""
    waiting = select.poll()
    waiting.register(file, 0)  # of its end alone
    waiting.poll()
    os._exit(1)


def _pickled(reply: tuple) -> bytes:
    return pickle.dumps(reply, protocol=pickle.HIGHEST_PROTOCOL)


def _send(reply: bytes, answers: BinaryIO) -> None:
    answers.write(reply)
    answers.flush()
