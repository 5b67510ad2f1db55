"""Exceptions of this package. A message says where, what was found, what was expected, and what to do."""

from __future__ import annotations

import difflib
import errno
import os
import re
import resource
import shlex
from collections.abc import Iterable


class IdScalingError(Exception):
    """Base class of all errors that this package raises."""


class ConfigError(IdScalingError):
    """A configuration, or an argument, that cannot be used."""


class InputError(IdScalingError):
    """A model, a dataset or a text that is missing or cannot be used."""


class StoreError(IdScalingError):
    """A stored file that is missing, damaged, or made under other settings."""


class UnsealedError(StoreError):
    """A stored file without a checksum, for example from an older version."""


class ResourceError(IdScalingError):
    """Too little memory, too little room on a disk, or a file system without write permission."""


class EstimateError(IdScalingError):
    """A batch of estimates in which some tables could not be computed."""


class Ended(BaseException):
    """A request of the system to end this process (SIGTERM), for example at the time limit of a job."""


class LeaseError(IdScalingError):
    """A folder that another process is writing."""


def made_anew(path: object) -> str:
    """Return how to regenerate a stored file; Snakemake regenerates an intermediate file only on request."""
    quoted_path = shlex.quote(str(path))
    return f"remove it and ask for it: rm {quoted_path} && snakemake … all {quoted_path} (… are your usual options)"


# Messages for failed allocations: from Linux, the loader of shared libraries, Python's threads, torch, and C++.
_MEMORY_MESSAGES = (
    "Cannot allocate memory",
    "failed to map segment",
    "start new thread",
    "not enough memory",
    "bad_alloc",
)
# Further messages of libraries in Rust, which panic, for example if a thread cannot be started.
_PANIC_MESSAGES = (*_MEMORY_MESSAGES, "memory allocation", "kind: WouldBlock")


def is_panic(error: BaseException) -> bool:
    """Return whether an error is a panic of a library in Rust, which is not an `Exception`."""
    return type(error).__name__ == "PanicException"


def of_memory(error: BaseException) -> ResourceError | None:
    """Return the error for users if an allocation failed; None for any other error."""
    message = str(error) or "no memory for what was asked"
    messages = _PANIC_MESSAGES if is_panic(error) else _MEMORY_MESSAGES
    is_memory = isinstance(error, MemoryError) or any(part in message for part in messages)
    # Python's C code may lose a MemoryError in this way; without a memory limit the cause may be another.
    is_lost_error = isinstance(error, SystemError) and "without exception set" in message
    if not is_memory and not (is_lost_error and resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY):
        return None
    return ResourceError(
        f"too little memory ({message.splitlines()[0]}): give the job more (mem_mb), or raise the limit of the shell "
        "(ulimit -v), and run again: what was finished is kept"
    )


# Advice by the error code of the system; libraries may only quote its text (`os.strerror`) in their own errors.
_DISK_ADVICE = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room within your quota",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that you may read and write",
    errno.EIO: "look at the disk",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
}


def of_a_disk(error: BaseException) -> ResourceError | None:
    """Return the error for users if a disk is full or cannot be written; None for any other error."""
    message, file_name = str(error), getattr(error, "filename", None)
    for code, advice in _DISK_ADVICE.items():
        if getattr(error, "errno", None) == code or os.strerror(code) in message:
            hdf5_match = re.search(r"filename = '([^']+)'", message)  # in errors of HDF5
            where = file_name or (hdf5_match and hdf5_match[1]) or message
            return ResourceError(f"{where}: {os.strerror(code)}; {advice} and run again: what was finished is kept")
    return None


# Most characters of a foreign text, such as the error of another package, in a message.
MAX_SHOWN = 500


def shortened(text: str, most: int = MAX_SHOWN) -> str:
    """Return a text on one line, cut after `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]} …"


def nearest(name: str, allowed: Iterable[str], n: int = 3) -> str:
    """Return a hint with the values closest to `name`, ignoring case, or else with the first allowed values."""
    allowed = sorted(allowed)
    close_words = difflib.get_close_matches(name.lower(), [word.lower() for word in allowed], n=n, cutoff=0.5)
    if close_words:
        words = sorted(
            (word for word in allowed if word.lower() in close_words), key=lambda word: close_words.index(word.lower())
        )
        return "did you mean " + " or ".join(map(repr, words)) + "?"
    shown = ", ".join(allowed[:20]) + (", …" if len(allowed) > 20 else "")
    return f"allowed: {shown}"
