"""What can come between a cluster and an extraction: each disturbs the one of a workflow, and sees it end well."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from conftest import ROOT
from slurm_workflow import EstimatesOnSlurm, SlurmWorkflow, output_of, running

from id_scaling.runtime.locks import read_holder

RUN = "runs/*/*/*/*/*/*"
# Far longer than it takes to start the next; where there is time, as long as those of a study: 30.
SECONDS_OF_AN_ESTIMATE = float(os.environ.get("SECONDS_OF_AN_ESTIMATE", "5"))


@dataclass(frozen=True)
class Extraction:
    """An extraction at work: its process, and Slurm's names of its job and node."""

    process: int
    job: str
    node: str


def wait_for(condition: Callable[[], object], seconds: float = 300) -> object:
    """Return what `condition()` gives as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
    return found


def parts_of(workflow: SlurmWorkflow) -> set[Path]:
    """Return the parts that an extraction has kept."""
    return set(workflow.session.glob(f"{RUN}/parts/*/contexts_*"))


def log_of(workflow: SlurmWorkflow) -> str:
    """Return the log of the extraction; nothing where there is none."""
    return "".join(path.read_text() for path in workflow.session.glob("logs/extract_activations/*/*/*/*/*/*.log"))


def stopped(workflow: SlurmWorkflow) -> Extraction:
    """Stop the extraction once it has kept a part, so that it cannot end undisturbed."""
    wait_for(lambda: parts_of(workflow))
    process = read_holder(next(workflow.session.glob(f"{RUN}/.lease"))).pid
    os.kill(process, signal.SIGSTOP)
    environment = Path(f"/proc/{process}/environ").read_text().split("\0")
    variables = dict(line.split("=", 1) for line in environment if line.startswith("SLURM"))
    return Extraction(process, variables["SLURM_JOB_ID"], variables["SLURMD_NODENAME"])


def cancelled(workflow: SlurmWorkflow) -> None:
    """The job of an extraction is cancelled."""
    with running(workflow, "extract_all"):
        workflow.slurm.run("scancel", stopped(workflow).job)


def warned(workflow: SlurmWorkflow) -> None:
    """The time of an extraction is up in a minute."""
    _shortened(workflow, "now+60")


def out_of_time(workflow: SlurmWorkflow) -> None:
    """The time of an extraction is up, without a minute to end by itself."""
    _shortened(workflow, "now")


def _shortened(workflow: SlurmWorkflow, end: str) -> None:
    """Shorten the time of an extraction from outside: what it asked for, twelve hours, is too long for a test.

    Slurm looks every half a minute, and lets what was stopped go on when it asks it to end.
    """
    with running(workflow, "extract_all"):
        workflow.slurm.run("scontrol", "update", f"jobid={stopped(workflow).job}", f"EndTime={end}")


def out_of_memory(workflow: SlurmWorkflow) -> None:
    """An extraction takes more memory than its profile gives it at first, an expression of the attempt."""
    profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "profile.yaml").read_text())
    profile["set-resources"]["extract_activations"]["mem_mb"] = "300 * attempt ** 3"
    folder = workflow.folder / "profile"
    folder.mkdir()
    (folder / "profile.yaml").write_text(yaml.safe_dump(profile))
    workflow.profile = str(folder)
    with running(workflow, "extract_all"):
        pass


def node_lost(workflow: SlurmWorkflow) -> None:
    """The node of an extraction dies."""
    with running(workflow, "extract_all"):
        workflow.slurm.kill_node(stopped(workflow).node)


def controller_killed(workflow: SlurmWorkflow) -> None:
    """Snakemake is killed and started again, while its extraction, which Slurm alone still knows, stands still."""
    with running(workflow, "extract_all", is_ok=False) as snakemake:
        first = stopped(workflow)
        snakemake.kill()
    kept = parts_of(workflow)
    assert "--unlock" in workflow.run("extract_all", is_ok=False)
    workflow.run("--unlock")
    with running(workflow, "extract_all"):
        wait_for(lambda: f"waiting for process {first.process} on " in log_of(workflow))
        time.sleep(3)
        assert parts_of(workflow) == kept
        os.kill(first.process, signal.SIGCONT)


def estimates_side_by_side(workflow: EstimatesOnSlurm) -> None:
    """Nothing comes between; each estimate of a run lasts long."""
    workflow.variables["ESTIMATE_SECONDS"] = str(SECONDS_OF_AN_ESTIMATE)
    with running(workflow, "estimate_all"):
        pass


def estimates_out_of_time(workflow: EstimatesOnSlurm) -> None:
    """The time of a run's estimates is up when all but one are finished."""
    with running(workflow, "estimate_all"):
        job, _ = hanging(workflow)
        workflow.slurm.run("scontrol", "update", f"jobid={job}", "EndTime=now")


def estimates_node_lost(workflow: EstimatesOnSlurm) -> None:
    """The node of a run's estimates dies when all but one are finished."""
    with running(workflow, "estimate_all"):
        _, node = hanging(workflow)
        workflow.slurm.kill_node(node)


def hanging(workflow: EstimatesOnSlurm) -> tuple[str, str]:
    """Wait until one estimate is left, which hangs; return the job and the node. No other attempt's estimate hangs."""
    wait_for(lambda: len(list(workflow.session.glob(f"{RUN}/staged/*/*.parquet"))) == workflow.n_tables - 1)
    workflow.mended.touch()
    rows = workflow.slurm.run("squeue", "-h", "-t", "R", "-o", "%A %N %Z").splitlines()
    ((job, node),) = [(job, node) for job, node, folder in map(str.split, rows) if folder == str(workflow.folder)]
    return job, node


def controller_restarted(workflow: EstimatesOnSlurm) -> None:
    """Slurm's controller is away for 25 s at the first look at a job, and nobody keeps accounts."""
    with running(workflow, "estimate_all") as snakemake:
        wait_for(lambda: "has been submitted with SLURM jobid" in output_of(workflow))
        workflow.slurm.stop_controller()
        time.sleep(25)
        workflow.slurm.start_controller()
        # Where Snakemake lost its job it waits for ever.
        snakemake.wait(timeout=240)
