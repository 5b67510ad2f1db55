"""A study as the workflow sees it: what it names, what each of its jobs is told, and the files that it makes."""

from __future__ import annotations

from id_scaling.study.checks import check_study
from id_scaling.study.settings import JobSettings
from id_scaling.study.targets import Targets

# Minutes that a first attempt at an extraction asks for.
EXTRACT_MINUTES = 720


class Study(JobSettings, Targets):
    """A validated configuration and its jobs. `Axes` documents the argument."""

    def check(self, is_thorough: bool = False) -> None:
        """Check models and shards against what is on disk, before any job: see `study.checks.check_study`."""
        check_study(self, is_thorough)
