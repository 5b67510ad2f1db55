"""Leases: at most one process writes to a folder, on all machines that share the file system.

Leases do not use locks of the operating system; they create a file exclusively, rename it, and touch it.

A lease is a file that names its holder. The holder touches it every few seconds. A lease is stale if its holder has
ended (on this machine), or has not touched it for long (on another machine). Another process then takes it over. A
holder that was only suspended notices on waking that it lost its lease, and stops writing.
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

# Seconds between two touches, and seconds without a touch after which a holder on another machine counts as dead. A
# busy file system can delay several touches. Clocks must differ by less than STALE.
BEAT, STALE = 10.0, 120.0
# Seconds between two attempts of a waiting process.
LOOK = 1.0
# Start time of a running process if the system does not report it.
ALIVE = "alive"


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Parameters
    ----------
    host : str
        Name of the machine.
    machine : str
        Running system and process namespace; equal if a process id means the same process.
    pid : int
    started : str
        Start time of the process in units of the system, because process ids are reused.
    since : str
        Time at which it took the lease.
    token : str
        Unique identifier of this lease.
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
        """Return whether the process has ended or, if that is unknown, has not touched its lease for long.

        Parameters
        ----------
        age : float
            Seconds since it touched its lease; negative if that time is in the future, after a clock was set back. A
            running holder would have touched the lease again since then.
        """
        is_here = self.machine == _machine()
        if is_here and _start_of(self.pid) != self.started:
            return True
        # Without a start time, another process can have the same id.
        is_seen = is_here and self.started != ALIVE
        return not is_seen and abs(age) >= STALE


class Lease:
    """A lease of this process: `take` it, `check` it before writing, `release` it.

    Parameters
    ----------
    path : Path
        File of the lease.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._is_over = Path(path), threading.Event()
        self._own: Holder | None = None

    def take(self) -> Holder | None:
        """Take the lease; return its holder if another process has it, else None."""
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
        """Raise a LeaseError if another process took over the lease, or if it was removed."""
        self.check_others()
        if read_holder(self.path) is None:
            raise LeaseError(
                f"{self.path} was removed, so another process may write here; this process stops writing; run again"
            )

    def check_others(self) -> None:
        """Raise a LeaseError if another process took over the lease."""
        holder, own = read_holder(self.path), self._own.token if self._own else None
        if holder is not None and holder.token != own:
            raise LeaseError(
                f"{self.path.parent}: this process was not heard of for {STALE:g} s, so {holder} took over; nothing "
                "more is written here"
            )

    def release(self) -> None:
        """Release the lease if this process still has it."""
        self._is_over.set()
        holder = read_holder(self.path)
        if self._own and holder and holder.token == self._own.token:
            self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        """Touch the file until the lease is over."""
        while not self._is_over.wait(BEAT):
            with contextlib.suppress(OSError):  # a full disk or an absent file system; the next touch may succeed
                if read_holder(self.path) == self._own:
                    os.utime(self.path)

    def _evicted(self, holder: Holder) -> bool:
        """Remove a stale lease; return whether it was stale."""
        age = _age(self.path)
        if not holder.is_gone(age):
            return False
        temporary = self.path.with_name(f".{self.path.name}.tmp-{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):  # another waiting process was faster
            os.rename(self.path, temporary)
            if read_holder(temporary) != holder:  # and has a new lease, which was renamed here by mistake
                _put_back(temporary, self.path)
            temporary.unlink()
        last_sign = (
            f"not heard of for {age:.0f} s" if age >= 0 else f"whose last sign is {-age:.0f} s ahead of the clock"
        )
        LOG.info("%s: %s is gone, %s; its lease is taken over", self.path.parent, holder, last_sign)
        return True


@contextlib.contextmanager
def leased(folder: Path) -> Iterator[Lease]:
    """Hold the lease of a folder; wait while another process holds it.

    Raises
    ------
    LeaseError
        Another process took over the lease: from `check`, or in place of an error of a file.
    """
    lease, is_said = Lease(Path(folder) / ".lease"), False
    while holder := lease.take():
        if not is_said:
            LOG.info("waiting for %s, which writes %s; to go on at once, end it", holder, folder)
            is_said = True
        time.sleep(LOOK)
    try:
        yield lease
    except (OSError, StoreError):  # maybe the process that took over removed a file
        lease.check_others()
        raise
    finally:
        lease.release()


def hold_session(session: Path) -> Lease:
    """Hold the lease of a session until this process ends.

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
            f"{session}: {holder} is at work on this session; wait until it ends, or end it. If it has ended, the "
            f"session is free within {STALE:g} s; to free it sooner, {lease.path} can be removed"
        )
    atexit.register(lease.release)
    return lease


def _create(path: Path, holder: Holder) -> bool:
    """Create the file of a lease; return False if it exists."""
    try:
        file = open(path, "x")  # noqa: SIM115  an existing file belongs to another process and must not be removed below
    except FileExistsError:
        return False
    try:
        with file:
            json.dump(asdict(holder), file)
    except OSError:  # an incomplete file would count as a lease of an unknown process
        path.unlink()
        raise
    return True


def _put_back(temporary: Path, path: Path) -> None:
    """Restore the name of a lease that was renamed by mistake, unless there is another lease by now."""
    with contextlib.suppress(FileExistsError):
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise
            with open(path, "xb") as file:  # the file system has no hard links
                file.write(temporary.read_bytes())


def _refuse_others(path: Path) -> None:
    """Raise a LeaseError if the path of a lease is not a regular file."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise LeaseError(f"{path}: found a link, a folder or a device, expected the file of a lease; remove it")


def read_holder(path: Path) -> Holder | None:
    """Return the holder of the lease in a file; None if there is no file.

    The holder of an empty file, created a moment ago, or of an unreadable file is an unknown process.
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
    """Return the seconds since a file was touched, by the clock of its file system."""
    now = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex}")
    try:
        now.touch()
        return now.lstat().st_mtime - path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        now.unlink(missing_ok=True)


def _machine() -> str:
    """Return an identifier of the running system and its process namespace."""
    parts = []
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            parts.append(os.readlink(path) if path.endswith("pid") else Path(path).read_text().strip())
    return ":".join([socket.gethostname(), *parts])


def _start_of(pid: int) -> str:
    """Return the start time of a process; empty if it does not exist, or has ended as a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return _without_proc(pid)
    return "" if fields[0] in "ZX" else fields[19]


def _without_proc(pid: int) -> str:
    """Return ALIVE if a process runs, on systems that do not report its start time; else an empty string."""
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return ALIVE
