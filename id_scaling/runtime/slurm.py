"""Slurm's commands as Snakemake's plugin calls them: wrapped, so that a restart of the controller is outlasted."""

from __future__ import annotations

import os
from pathlib import Path
from shutil import which

# Where the wrapped `scontrol` keeps what the controller said of its configuration.
CONFIG = "ID_SCALING_SLURM_CONFIG"


def outlast_controller(programs: Path, notes: Path) -> None:
    """Put the wrapped commands before Slurm's own on this process's PATH, where Slurm is there.

    Parameters
    ----------
    programs : Path
        The folder that holds them.
    notes : Path
        The file in which `scontrol` keeps the configuration.
    """
    folders = os.environ["PATH"].split(":")
    if which("scontrol") and str(programs) not in folders:
        os.environ["PATH"] = ":".join([str(programs), *folders])
        os.environ[CONFIG] = os.path.abspath(notes)
