"""Wrapped Slurm commands for the plugin of Snakemake, which retry while the Slurm controller restarts."""

from __future__ import annotations

import os
from pathlib import Path
from shutil import which

# Environment variable with the path where the wrapped `scontrol` saves the configuration of the controller.
CONFIG = "ID_SCALING_SLURM_CONFIG"


def outlast_controller(programs: Path, notes: Path) -> None:
    """Put the wrapped commands first on the PATH of this process, if Slurm is installed.

    Parameters
    ----------
    programs : Path
        Folder of the wrapped commands.
    notes : Path
        File in which `scontrol` saves the configuration.
    """
    folders = os.environ["PATH"].split(":")
    if which("scontrol") and str(programs) not in folders:
        os.environ["PATH"] = ":".join([str(programs), *folders])
        os.environ[CONFIG] = os.path.abspath(notes)
