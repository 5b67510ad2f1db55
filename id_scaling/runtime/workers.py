"""Child processes that run functions in isolation: their crashes, memory, and signals do not affect the caller.

Each thread has one child per function. The child stays between calls, and is replaced if a call is interrupted. It ends
when its standard input closes, even during a call, so it never outlives its parent.
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

# Longest wait that the operating system accepts, in seconds (days).
LONGEST = 1e6
# Wall time limit as a multiple of the processor time limit, for a child that waits or shares its core: nine other
# processes on each core do not change the result.
WALL_TIMES = 10
# Seconds that a process may take to exit after it closed its pipes.
TO_END = 5.0
# One thread each, because many children share the machine.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
# The parent handles Ctrl-C, and SIGTERM to a whole job, and then ends the child.
_DEAF = "import signal; [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)]"

_OF_THREAD = threading.local()
# The children of all threads.
_RUNNING: weakref.WeakSet[_Child] = weakref.WeakSet()


class ChildError(Exception):
    """An error in a child, in words.

    Parameters
    ----------
    words : str
    lacks_memory : bool
        Whether the cause seems to be too little memory.
    """

    def __init__(self, words: str, lacks_memory: bool = False) -> None:
        super().__init__(words)
        self.lacks_memory = lacks_memory


def ask_child(answer: Callable, *question: Any, max_seconds: float = LONGEST, files: Sequence[int] = ()) -> Any:
    """Return `answer(*question)`, computed in a child of this thread.

    Parameters
    ----------
    answer : callable
        A function at the top level of a module.
    *question : any
        Its arguments, pickled.
    max_seconds : float
        Processor time after which the child is killed; it does not depend on the load of the machine. The limit on wall
        time is WALL_TIMES as long.
    files : sequence of int
        Descriptors of open files that the child inherits, with the same numbers.

    Raises
    ------
    TimeoutError
        The call took longer.
    ChildError
        The function raised an exception, whose traceback is added as a note, or its process ended.
    """
    name = f"{answer.__module__}:{answer.__qualname__}"
    child = _own_child(name, files)
    try:
        result, raised, trace = child.ask(question, max_seconds)
    except BaseException as error:
        # A late answer of this child would belong to this call, so the child cannot be used again.
        _children().pop(name)
        is_cut_off = isinstance(error, EOFError | BrokenPipeError | pickle.UnpicklingError)
        code = child.end(TO_END if is_cut_off else 0.0)
        if code == -signal.SIGPROF:
            raise TimeoutError(f"no answer after {max_seconds:g} s of processor time") from error
        if is_cut_off:
            is_killed = code == -signal.SIGKILL
            cause = " (killed, probably because memory ran out)" if is_killed else ""
            raise ChildError(f"its process ended with code {code}{cause}", lacks_memory=is_killed) from error
        raise
    if raised:
        raised.add_note(trace)
        raise raised
    return result


@contextlib.contextmanager
def ending_children() -> Iterator[None]:
    """End the children of all threads on Ctrl-C or SIGTERM, because only the main thread gets these exceptions."""
    try:
        yield
    except (KeyboardInterrupt, Ended):
        for child in list(_RUNNING):
            if child.owner == os.getpid():
                child.kill()
        raise


def _children() -> dict[str, _Child]:
    """Return the children of this thread, by the name of their function."""
    if not hasattr(_OF_THREAD, "children"):
        _OF_THREAD.children = {}
    return _OF_THREAD.children


def _own_child(name: str, files: Sequence[int]) -> _Child:
    """Return the running child of this thread for a function; a child from before a fork belongs to the parent."""
    child, held = _children().get(name), [(file, os.fstat(file).st_ino) for file in files]
    if child is None or child.owner != os.getpid() or child.held != held or not child.is_running():
        child = _children()[name] = _Child(name, held)
    return child


class _Child:
    """A process that runs one function."""

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
            # PIPE above makes both of them files.
            self._questions = cast("IO[bytes]", self._process.stdin)
            self._answers = cast("IO[bytes]", self._process.stdout)
            self._answer()  # wait for the start, which does not count as part of a call
        except (OSError, EOFError) as error:
            words = f"{sys.executable} could not be started as a worker process ({error})"
            raise ChildError(words, lacks_memory=getattr(error, "errno", None) == errno.ENOMEM) from error
        _RUNNING.add(self)

    def ask(self, question: tuple, max_seconds: float) -> tuple[Any, ChildError | None, str]:
        """Return the result of a call, or the error and its traceback."""
        pickle.dump((question, max_seconds), self._questions, protocol=pickle.HIGHEST_PROTOCOL)
        self._questions.flush()
        waiting = select.poll()
        waiting.register(self._answers, select.POLLIN)
        longest = min(WALL_TIMES * max_seconds, LONGEST)
        if not waiting.poll(1000 * longest):
            raise TimeoutError(f"no answer after {longest:g} s")
        return self._answer()

    def is_running(self) -> bool:
        """Return whether the process is still running."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Kill the process; a thread that waits for its answer sees that it ended."""
        self._process.kill()

    def end(self, patience: float = 0.0) -> int:
        """Wait up to `patience` seconds for the process, then kill it; return the exit code."""
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
        for pipe in (self._questions, self._answers):
            with contextlib.suppress(BrokenPipeError):  # the child did not read all of a question
                pipe.close()
        return self._process.wait()

    def _answer(self) -> Any:
        return pickle.load(self._answers)

    def __del__(self) -> None:
        process = getattr(self, "_process", None)
        if process is not None and self.owner == os.getpid() and self.is_running():
            self.end()


def serve(name: str) -> None:
    """Run a function on each question from standard input until the input ends."""
    # Output that the function prints goes to standard error, not between the answers.
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
        # The signal of this timer ends the process, even inside compiled code.
        signal.setitimer(signal.ITIMER_PROF, min(max_seconds, LONGEST))
        try:
            reply = _pickled((answer(*question), None, ""))
        except Exception as error:  # noqa: BLE001  code of other packages may raise anything; the parent gets it as text
            raised = ChildError(f"{type(error).__name__}: {error}", lacks_memory=isinstance(error, MemoryError))
            reply = _pickled((None, raised, traceback.format_exc()))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(reply, answers)


def _end_with_input(file: int) -> None:
    """End this process at once when the other end of a pipe closes."""
    waiting = select.poll()
    waiting.register(file, 0)  # reports only the hangup
    waiting.poll()
    os._exit(1)


def _pickled(reply: tuple) -> bytes:
    return pickle.dumps(reply, protocol=pickle.HIGHEST_PROTOCOL)


def _send(reply: bytes, answers: BinaryIO) -> None:
    answers.write(reply)
    answers.flush()
