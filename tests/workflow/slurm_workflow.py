"""A study under the Slurm profile, and what it submitted, by Slurm's own records."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import Workflow
from slurm_cluster import SlurmCluster

COLUMNS = ("JobIDRaw", "State", "Partition", "NodeList", "ReqCPUS", "ReqMem", "AllocTRES", "SubmitLine")

# A folder whose `sitecustomize` disturbs estimates and writes down when each was at work.
DISTURBED = Path(__file__).with_name("disturbed_estimates")

# Sums are made in the same order wherever a run is, and no processes are started that share its work.
ONE_THREAD = ("--set-threads", "extract_activations=1")


class LocalWorkflow(Workflow):
    """A study run locally, to be compared with."""

    options = (*ONE_THREAD, *Workflow.options)


class SlurmWorkflow(Workflow):
    """A study run under the Slurm profile; its options are what a small quick cluster needs beyond that."""

    profile = "slurm"
    options = (*ONE_THREAD, "--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "10")
    slurm: SlurmCluster

    def command(self, *arguments: str) -> list[str]:
        """Return the command that runs Snakemake here, asking for news every second."""
        asking = Path(__file__).with_name("asking_each_second.py")
        return [sys.executable, "-P", str(asking), *super().command(*arguments)[1:]]

    def environment(self) -> dict[str, str]:
        """Return the environment, with the way to this Slurm."""
        return {**super().environment(), **self.slurm.environment}


class EstimatesOnSlurm(SlurmWorkflow):
    """A study whose estimates are written down, and one of which hangs until `mended` is there."""

    def __init__(self, folder: Path, config: dict[str, Any], slurm: SlurmCluster) -> None:
        super().__init__(folder, config)
        self.slurm, self.trace, self.mended = slurm, folder / "trace", folder / "mended"
        self.variables = {"ESTIMATE_DISTURBED": "mlp/mle", "ESTIMATE_HOW": "hangs"}
        cacheing = config["cacheing_config"]
        n_modules = len(cacheing["module_inblock_keys"]) + len(cacheing["module_outblock_keys"])
        self.n_tables = n_modules * len(cacheing["save_IDs_list"])

    def environment(self) -> dict[str, str]:
        """Return the environment, with what watches the estimates."""
        environment = super().environment()
        paths = {"ESTIMATE_TRACE": str(self.trace), "ESTIMATE_MENDED": str(self.mended)}
        python = {"PYTHONPATH": f"{DISTURBED}:{environment['PYTHONPATH']}"}
        return {**environment, **python, **paths, **self.variables}

    def computed(self) -> list[tuple[str, float, float]]:
        """Return the tables that were computed to their end, with when each began and ended, by when it began."""
        rows = [line.split() for line in self.trace.read_text().splitlines()]
        return sorted(((name, float(start), float(end)) for name, start, end in rows), key=lambda row: row[1])


@dataclass(frozen=True)
class Submission:
    """One job as Slurm's accounting has it; `targets` are the workflow's jobs in it, as (rule, wildcards)."""

    job: str
    state: str
    partition: str
    node: str
    n_cores: int
    memory: str
    minutes: int
    allocated: str
    targets: tuple[tuple[str, str], ...]

    @property
    def rules(self) -> set[str]:
        return {rule for rule, _ in self.targets}


def submissions_of(workflow: SlurmWorkflow, *rules: str) -> list[Submission]:
    """Return all that a workflow submitted, or of these rules alone, once accounting has caught up."""
    arguments = ["sacct", "-X", "-P", "-n", f"--format={','.join(COLUMNS)}"]
    for _ in range(60):
        lines = [line.split("|", len(COLUMNS) - 1) for line in workflow.slurm.run(*arguments).splitlines()]
        rows = [row for row in lines if f"-D {workflow.folder} " in row[-1]]
        ended = {row[0] for row in rows if not row[1].startswith(("PENDING", "RUNNING"))}
        queue = [
            line.split(" ", 1) for line in workflow.slurm.run("squeue", "-h", "-t", "all", "-o", "%A %Z").splitlines()
        ]
        if ended >= {job for job, folder in queue if folder == str(workflow.folder)}:
            break
        time.sleep(0.5)
    found = sorted(map(_submission, rows), key=lambda one: int(one.job))
    return [one for one in found if not rules or one.rules == set(rules)]


def _submission(row: list[str]) -> Submission:
    job, state, partition, node, n_cores, memory, allocated, line = row
    named = re.search(r"--target-jobs (.*?) --allowed-rules", line).group(1)
    targets = tuple(tuple(target.split(":", 1)) for target in re.findall(r"'([^']*)'", named))
    # As asked for: the limit on record is the one that a test set since.
    minutes = int(re.search(r" -t (\d+) ", line).group(1))
    return Submission(job, state.split()[0], partition, node, int(n_cores), memory, minutes, allocated, targets)


@contextmanager
def running(workflow: Workflow, *arguments: str, is_ok: bool = True) -> Iterator[subprocess.Popen]:
    """Run Snakemake beside what the context does; it must succeed, or fail when not `is_ok`, and outlives no error."""
    with open(workflow.folder / "output.txt", "a") as log:
        command, environment = workflow.command(*arguments), workflow.environment()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        yield process
        assert (process.wait() == 0) == is_ok, output_of(workflow)
    finally:
        process.kill()


def output_of(workflow: Workflow) -> str:
    """Return what the Snakemakes that were `running` say, failed jobs' logs included."""
    return (workflow.folder / "output.txt").read_text()
