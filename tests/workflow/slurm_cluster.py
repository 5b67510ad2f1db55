"""A small real Slurm on this machine's loopback, from Debian's packages: two CPU nodes and six with a pretend GPU.

Every daemon, accounting and its MariaDB included, lives in one folder and on ports that were free, so two clusters can
run beside each other. Nodes claim more cores and memory than the machine has; the GPU is `/dev/null`.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacct")
NODES = ("cpu1", "cpu2", "gpu1", "gpu2", "gpu3", "gpu4", "gpu5", "gpu6")
# More cores than a submission may ask for, so that one that does is seen.
NODE = "CPUs=16 RealMemory=64000"
SECONDS_TO_START = 60

SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
# No cgroups: processes are found by their parents and bound to nothing.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# Nor do cgroups hold a job's memory: Slurm looks every second, and kills a step that has more than its job asked for.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
SlurmdTimeout=300
KillWait=10
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
{accounting}
PartitionName=cpu Nodes=cpu1,cpu2 Default=YES DefaultTime=10
PartitionName=gpu Nodes=gpu[1-6] DefaultTime=10
"""

ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={database}
# On this link munge's socket goes here, not in AuthInfo.
AccountingStoragePass={folder}/munge/socket
AccountingStorageTRES=gres/gpu
"""

SLURMDBD_CONF = """
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={database}
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={sql}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
"""

SQL = """
create database slurm;
create user 'slurm'@'127.0.0.1' identified by 'slurm';
grant all on slurm.* to 'slurm'@'127.0.0.1';
"""


def missing_programs() -> list[str]:
    """Return the programs of Slurm, munge and MariaDB that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


def free_ports(n_ports: int) -> list[int]:
    """Return different ports of the loopback that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n_ports)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class SlurmCluster:
    """A Slurm in an empty `folder`, whose path must be short enough for a socket; with or without accounting."""

    def __init__(self, folder: Path, has_accounting: bool = True) -> None:
        self.folder, self.has_accounting = folder, has_accounting
        self.daemons: dict[str, subprocess.Popen] = {}
        self.environment = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            # The plugin drops SLURM_CONF before it calls srun: the one in `bin` sets it again.
            "PATH": f"{folder / 'bin'}:{PATH}",
        }

    def start(self) -> None:
        """Start every daemon and wait until all nodes take jobs."""
        self._configure()
        self._start_munge()
        if self.has_accounting:
            self._start_accounting()
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self._wait_for("slurmctld", lambda: set(self.run("sinfo", "-h", "-N", "-o", "%T").split()) == {"idle"})

    def start_controller(self) -> None:
        """Start the controller, which finds the jobs that it had."""
        self._start_daemon("slurmctld", "slurmctld", "-D")
        self._wait_for("slurmctld", lambda: " UP" in self.run("scontrol", "ping", is_ok=None))

    def stop_controller(self) -> None:
        """Stop the controller, as an administrator does who restarts it."""
        daemon = self.daemons.pop("slurmctld")
        daemon.terminate()
        daemon.wait(timeout=SECONDS_TO_START)

    def start_node(self, node: str) -> None:
        """Start the daemon of one node."""
        self._start_daemon(node, "slurmd", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """End the daemon of one node and what that had started, as a crash would; the controller takes it for down."""
        self.daemons[node].kill()
        self.daemons.pop(node).wait()
        # Down first: a job step that outlives its job by a moment would report a failure.
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=killed")
        for process in self._processes(f"SLURMD_NODENAME={node}"):
            os.kill(process, signal.SIGKILL)

    def stop(self) -> None:
        """End every daemon and whatever their jobs left."""
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for daemon in reversed(self.daemons.values()):
            try:
                daemon.wait(timeout=15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in self._processes():
            os.kill(process, signal.SIGKILL)

    def run(self, *command: str, is_ok: bool | None = True) -> str:
        """Run a client of this Slurm and return what it says; it must succeed unless `is_ok` is None."""
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=self._everything())
        assert is_ok is None or (done.returncode == 0) == is_ok, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def _is_ok(self, *command: str) -> bool:
        return subprocess.run(command, capture_output=True, check=False, env=self._everything()).returncode == 0

    def _everything(self) -> dict[str, str]:
        """Return the environment of a client or a daemon."""
        return {**os.environ, **self.environment}

    def _configure(self) -> None:
        """Write the files that the daemons read."""
        controller, database, self.sql_port, *ports = free_ports(3 + len(NODES))
        host, user = socket.gethostname().split(".")[0], getpass.getuser()
        words = {"host": host, "user": user, "folder": self.folder, "controller": controller, "database": database}
        accounting = ACCOUNTING if self.has_accounting else "AccountingStorageType=accounting_storage/none\n"
        words["accounting"] = accounting.format(**words)
        where = f"NodeHostname={host} NodeAddr=127.0.0.1"
        nodes = [
            f"NodeName={node} {where} Port={port} {NODE}{' Gres=gpu:1' if node.startswith('gpu') else ''}\n"
            for node, port in zip(NODES, ports, strict=True)
        ]
        # Partitions come after the nodes they name.
        before, partitions = SLURM_CONF.split("PartitionName", 1)
        conf = before.format(**words) + "".join(nodes) + "PartitionName" + partitions
        (self.folder / "slurm.conf").write_text(conf)
        (self.folder / "slurmdbd.conf").write_text(SLURMDBD_CONF.format(**words, sql=self.sql_port))
        (self.folder / "slurmdbd.conf").chmod(0o600)
        # Slurm wants a device file to hand out an index, which becomes CUDA_VISIBLE_DEVICES.
        (self.folder / "gres.conf").write_text("NodeName=gpu[1-6] Name=gpu File=/dev/null\n")
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        (self.folder / "bin").mkdir()
        srun = self.folder / "bin" / "srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={self.folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
        srun.chmod(0o755)
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()

    def _start_munge(self) -> None:
        """Start the daemon that vouches for who sends a message."""
        munge = self.folder / "munge"
        munge.mkdir(mode=0o711)
        key = munge / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        places = [f"--{option}={munge / name}" for option, name in names.items()]
        self._start_daemon("munged", "munged", "--foreground", "--force", *places)
        self._wait_for("munged", lambda: self._is_ok("munge", "-n", "-S", str(munge / "socket")))

    def _start_accounting(self) -> None:
        """Start the database, its daemon, and the account of who runs this."""
        self._start_database()
        self._start_daemon("slurmdbd", "slurmdbd", "-D")
        self._wait_for("slurmdbd", lambda: self._is_ok("sacctmgr", "-n", "list", "cluster"))
        for words in (("cluster", "test"), ("account", "test"), ("user", getpass.getuser(), "account=test")):
            self.run("sacctmgr", "-i", "-Q", "add", *words)

    def _start_database(self) -> None:
        """Start the database of the accounting, empty."""
        folder, socket_path = self.folder / "mysql", str(self.folder / "mysql.sock")
        common = ["--no-defaults", f"--datadir={folder}", f"--user={getpass.getuser()}", "--skip-name-resolve"]
        without = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        self.run("mariadb-install-db", *common, *without)
        small = ["--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M", "--performance-schema=OFF"]
        quick = ["--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900", "--skip-log-bin"]
        where = [f"--socket={socket_path}", f"--port={self.sql_port}", "--bind-address=127.0.0.1"]
        pid_file = f"--pid-file={self.folder / 'mariadbd.pid'}"
        self._start_daemon("mariadbd", "mariadbd", *common, *small, *quick, *where, pid_file)
        client = ["mariadb", "--no-defaults", f"--socket={socket_path}", "-u", "root"]
        self._wait_for("mariadbd", lambda: self._is_ok(*client, "-e", "select 1"))
        self.run(*client, "-e", SQL)

    def _start_daemon(self, name: str, *command: str) -> None:
        """Start a daemon in the foreground of its own session, its output in NAME.out."""
        with open(self.folder / f"{name}.out", "ab") as output:
            self.daemons[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._everything(),
                start_new_session=True,
            )

    def _wait_for(self, name: str, is_ready: Callable[[], bool]) -> None:
        """Wait until a daemon is ready; say what it said when it is not."""
        end = time.monotonic() + SECONDS_TO_START
        while not is_ready():
            if time.monotonic() > end:
                said = [path.read_text() for path in self.folder.glob(f"{name}.[ol]*")]
                raise TimeoutError(f"{name} is not ready after {SECONDS_TO_START} s: {''.join(said)[-3000:]}")
            time.sleep(0.2)

    def _processes(self, *variables: str) -> Iterator[int]:
        """Yield the processes that a job of this Slurm left, known by their environment."""
        wanted = {f"SLURM_CONF={self.folder}/slurm.conf", *variables}
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                found = set(environ.read_bytes().decode(errors="replace").split("\0"))
            except OSError:
                continue
            if wanted <= found:
                yield int(environ.parent.name)


@contextmanager
def slurm_cluster(folder: Path, has_accounting: bool = True) -> Iterator[SlurmCluster]:
    """Keep a Slurm in an empty folder until the end of the context."""
    cluster = SlurmCluster(folder, has_accounting)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
