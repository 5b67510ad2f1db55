"""Leases: who writes a folder, and that nobody else does, on all machines that share the file system.

No lock of the operating system is used: a file is created that must not exist, renamed, and touched.

A lease is a file that names its holder, and that its holder touches every few seconds. It is stale once its holder, on
this machine, is gone, or, on another, has not touched it for long; then it is taken over. A holder that was only
stopped, and finds on waking that its lease is another's, writes no more.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import socket
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from id_scaling.errors import LeaseError, StoreError
from id_scaling.runtime.logging import LOG

# Seconds between two touches, and after how many without one a holder on another machine is taken for dead: some
# touches may be late on a busy file system. Clocks may differ by less than that.
BEAT, STALE = 10.0, 120.0
# Seconds between two looks of one who waits.
LOOK = 1.0
# When a living process started, where the system does not say.
ALIVE = "alive"


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Parameters
    ----------
    host : str
        Name of the machine.
    machine : str
        Which running system and which processes of it can be seen: equal where a process id means the same.
    pid : int
    started : str
        When the process started, in the system's own count: process ids are used again.
    since : str
        When it took the lease.
    token : str
        Of this lease alone.
    """

    host: str
    machine: str
    pid: int
    started: str
    since: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}" if self.token else "an unknown process"

    def is_gone(self, age: float) -> bool:
        """Return whether the process has ended; whether it was not heard of for long, where that cannot be seen.

        Parameters
        ----------
        age : float
            Seconds since it touched its lease; negative where that time is still to come, as after a clock was put
            back, which a living holder would have touched again since.
        """
        is_here = self.machine == _machine()
        if is_here and _start_of(self.pid) != self.started:
            return True
        # A process id alone may have been used again.
        is_seen = is_here and self.started != ALIVE
        return not is_seen and abs(age) >= STALE


class Lease:
    """A lease of this process; `take` it, `check` it before writing, `release` it.

    Parameters
    ----------
    path : Path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._is_over = Path(path), threading.Event()
        self._own: Holder | None = None

    def take(self) -> Holder | None:
        """Take the lease; return its holder where another has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            own = Holder(
                socket.gethostname(),
                _machine(),
                os.getpid(),
                _start_of(os.getpid()),
                time.strftime("%Y-%m-%d %H:%M:%S"),
                uuid.uuid4().hex,
            )
            if _create(self.path, own):
                self._own = own
                threading.Thread(target=self._beat, daemon=True).start()
                return None
            _refuse_others(self.path)
            holder = read_holder(self.path)
            if holder and not self._evicted(holder):
                return holder

    def check(self) -> None:
        """Raise `LeaseError` where another process took the lease over, or it was removed."""
        self.check_others()
        if read_holder(self.path) is None:
            raise LeaseError(
                f"{self.path} was removed, so another process may write here; nothing more is written; run again"
            )

    def check_others(self) -> None:
        """Raise `LeaseError` where another process took the lease over."""
        holder, own = read_holder(self.path), self._own.token if self._own else None
        if holder is not None and holder.token != own:
            raise LeaseError(
                f"{self.path.parent}: this process was not heard of for {STALE:g} s, so {holder} took over; nothing "
                "more is written here"
            )

    def release(self) -> None:
        """Give the lease back, if it is still this process's."""
        self._is_over.set()
        holder = read_holder(self.path)
        if self._own and holder and holder.token == self._own.token:
            self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        """Touch the file until the lease is over."""
        while not self._is_over.wait(BEAT):
            with contextlib.suppress(OSError):  # a full disk, or a file system that is away: the next time may do
                if read_holder(self.path) == self._own:
                    os.utime(self.path)

    def _evicted(self, holder: Holder) -> bool:
        """Take a stale lease out of the way; return whether it was."""
        age = _age(self.path)
        if not holder.is_gone(age):
            return False
        aside = self.path.with_name(f".{self.path.name}.tmp-{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):  # another one that waits was quicker
            os.rename(self.path, aside)
            if read_holder(aside) != holder:  # and has it: put back what was taken
                _put_back(aside, self.path)
            aside.unlink()
        heard = f"not heard of for {age:.0f} s" if age >= 0 else f"whose last sign is {-age:.0f} s ahead of the clock"
        LOG.info("%s: %s is gone, %s; its lease is taken over", self.path.parent, holder, heard)
        return True


@contextlib.contextmanager
def leased(folder: Path) -> Iterator[Lease]:
    """Hold the lease of a folder, waiting while another process holds it.

    Raises
    ------
    LeaseError
        From `check`, or in place of an error of a file, where another took it over.
    """
    lease, is_said = Lease(Path(folder) / ".lease"), False
    while holder := lease.take():
        if not is_said:
            LOG.info("waiting for %s, which writes %s; to go on at once, end it", holder, folder)
            is_said = True
        time.sleep(LOOK)
    try:
        yield lease
    except (OSError, StoreError):  # of a file that whoever took over removed?
        lease.check_others()
        raise
    finally:
        lease.release()


def hold_session(session: Path) -> Lease:
    """Take the lease of a session until this process ends, or say who has it.

    Raises
    ------
    LeaseError
        Another process works on the session.
    """
    lease = Lease(Path(session) / ".lease")
    try:
        holder = lease.take()
    except OSError as error:
        raise LeaseError(f"{lease.path}: cannot be written: {error.strerror}; choose another session_path") from error
    if holder:
        raise LeaseError(
            f"{session}: {holder} is at work on this session; wait until it ends, or end it. If it is gone for "
            f"certain, this is seen within {STALE:g} s; {lease.path} can be removed sooner"
        )
    atexit.register(lease.release)
    return lease


def _create(path: Path, holder: Holder) -> bool:
    """Write the file of a lease; return whether there was none."""
    try:
        file = open(path, "x")  # noqa: SIM115  what exists is another's, and must not be removed below
    except FileExistsError:
        return False
    try:
        with file:
            json.dump(asdict(holder), file)
    except OSError:  # on a full disk it would bind as a lease of nobody known
        path.unlink()
        raise
    return True


def _put_back(aside: Path, path: Path) -> None:
    """Give a lease that was taken by mistake its name again, unless there is another one by now."""
    with contextlib.suppress(FileExistsError):
        try:
            os.link(aside, path)
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise
            with open(path, "xb") as file:  # the file system has no hard links
                file.write(aside.read_bytes())


def _refuse_others(path: Path) -> None:
    """Raise `LeaseError` where something has the name of a lease that this program does not write."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise LeaseError(f"{path}: found a link, a folder or a device, expected the file of a lease; remove it")


def read_holder(path: Path) -> Holder | None:
    """Return who holds the lease in a file; None where nobody does.

    A file that says nothing, as one that was created a moment ago, or that cannot be read, is held by nobody known.
    """
    unknown = Holder("an unknown machine", "", 0, "", "an unknown time", "")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return unknown if path.is_symlink() else None
    except OSError:
        return unknown
    try:
        holder = Holder(**json.loads(content.decode()))
    except (ValueError, TypeError, RecursionError):
        return unknown
    is_sound = all(isinstance(value, int if key == "pid" else str) for key, value in asdict(holder).items())
    return holder if is_sound else unknown


def _age(path: Path) -> float:
    """Return the seconds since a file was touched, both by the clock of its file system."""
    now = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex}")
    try:
        now.touch()
        return now.lstat().st_mtime - path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        now.unlink(missing_ok=True)


def _machine() -> str:
    """Return what tells running systems, and what processes of them can be seen, apart."""
    parts = []
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            parts.append(os.readlink(path) if path.endswith("pid") else Path(path).read_text().strip())
    return ":".join([socket.gethostname(), *parts])


def _start_of(pid: int) -> str:
    """Return when a process started; empty where there is none, or it has ended and is not yet waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return _without_proc(pid)
    return "" if fields[0] in "ZX" else fields[19]


def _without_proc(pid: int) -> str:
    """Return a word for any living process where the system does not say when it started."""
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return ALIVE
