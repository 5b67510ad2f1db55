"""The Slurm profile on a real Slurm: what runs where, in how many submissions, with the numbers of a local run."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Workflow, save_text, save_tiny_llama, study
from slurm_cluster import SlurmCluster, missing_programs, slurm_cluster

pytestmark = pytest.mark.slurm
CHECKPOINTS, SUBSETS = ("step0", "step1"), (0, 1)
MODULES, ESTIMATORS = ("block", "attn", "mlp", "unemb"), ("mle", "mind_ml", "twoNN_f10")


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A running Slurm. Without its programs tests are skipped; they fail where CI is true."""
    if missing := missing_programs():
        reason = f"no Slurm to test with: {', '.join(missing)} not installed"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    # A socket's path is short, and pytest's folders are not.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, slurm_cluster(Path(folder)) as cluster:
        yield cluster


class SlurmWorkflow(Workflow):
    """A study that runs on a Slurm, with what a small quick cluster needs on the command line."""

    profile = "slurm"
    options = (
        *("--latency-wait", "10"),
        *("--slurm-init-seconds-before-status-checks", "1"),
        *("--set-threads", "extract_activations=2"),
    )
    slurm: SlurmCluster

    def environment(self) -> dict[str, str]:
        return {**super().environment(), **self.slurm.environment}
