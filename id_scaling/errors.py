"""The one family of errors that users meet: where, what was found, what was expected, what to do."""

from __future__ import annotations

import difflib
import errno
import os
import re
import resource
import shlex
from collections.abc import Iterable


class IdScalingError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(IdScalingError):
    """A configuration, or an argument, that cannot be used."""


class InputError(IdScalingError):
    """A model, a dataset or a text that is missing or cannot be used."""


class StoreError(IdScalingError):
    """A stored file that is missing, damaged, or made under other settings."""


class UnsealedError(StoreError):
    """A stored file without a checksum, as older versions wrote them."""


class ResourceError(IdScalingError):
    """A machine that has too little memory, or a file system that has too little room or may not be written."""


class EstimateError(IdScalingError):
    """Tables of a batch of estimates that could not be computed."""


class Ended(BaseException):
    """The system asks this process to end (SIGTERM), as at the end of a job's time."""


class LeaseError(IdScalingError):
    """A folder that another process writes."""


def made_anew(path: object) -> str:
    """Return how to have a stored file made again; of what others are made of, Snakemake does so only when asked."""
    place = shlex.quote(str(path))
    return f"remove it and ask for it: rm {place} && snakemake … all {place} (… are the options that you run it with)"


# What is said where memory is refused: by Linux, by the loader of shared libraries, by Python's threads, by torch.
_OF_MEMORY = ("Cannot allocate memory", "failed to map segment", "start new thread", "not enough memory", "bad_alloc")
# By libraries in Rust, where a thread cannot be started.
_OF_PANICS = (*_OF_MEMORY, "memory allocation", "kind: WouldBlock")


def is_panic(error: BaseException) -> bool:
    """Return whether an error is a panic of a library in Rust, which is no `Exception`."""
    return type(error).__name__ == "PanicException"


def of_memory(error: BaseException) -> ResourceError | None:
    """Return the error that users meet where memory is refused; None for any other."""
    text = str(error) or "no memory for what was asked"
    known = _OF_PANICS if is_panic(error) else _OF_MEMORY
    is_memory = isinstance(error, MemoryError) or any(words in text for words in known)
    # What Python says where its own C code loses the MemoryError; without a limit it may be another fault.
    is_lost = isinstance(error, SystemError) and "without exception set" in text
    if not is_memory and not (is_lost and resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY):
        return None
    return ResourceError(
        f"too little memory ({text.splitlines()[0]}): give the job more (mem_mb), or raise the limit of the shell "
        "(ulimit -v), and run again: what was finished is kept"
    )


# What an operating system says of a disk, in the words that also stand in what libraries make of it.
_OF_DISKS = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room within your quota",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that you may read and write",
    errno.EIO: "look at the disk",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
}


def of_a_disk(error: BaseException) -> ResourceError | None:
    """Return the error that users meet where a disk is full or may not be written; None for any other."""
    text, name = str(error), getattr(error, "filename", None)
    for code, advice in _OF_DISKS.items():
        if getattr(error, "errno", None) == code or os.strerror(code) in text:
            found = re.search(r"filename = '([^']+)'", text)  # as HDF5 says it
            where = name or (found and found[1]) or text
            return ResourceError(f"{where}: {os.strerror(code)}; {advice} and run again: what was finished is kept")
    return None


# Characters of what someone else wrote, another package's error say, that a message shows.
MAX_SHOWN = 500


def shortened(text: str, most: int = MAX_SHOWN) -> str:
    """Return a text on one line, a long one without its end."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]} …"


def nearest(name: str, allowed: Iterable[str], n: int = 3) -> str:
    """Return a sentence part that names the values closest to `name`, whatever their case, or all of a short list."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(name.lower(), [word.lower() for word in allowed], n=n, cutoff=0.5)
    if close:
        words = sorted((word for word in allowed if word.lower() in close), key=lambda word: close.index(word.lower()))
        return "did you mean " + " or ".join(map(repr, words)) + "?"
    shown = ", ".join(allowed[:20]) + (", …" if len(allowed) > 20 else "")
    return f"allowed: {shown}"
