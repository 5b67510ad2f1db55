"""Snakemake whose Slurm plugin asks after its jobs every second; by itself it waits ten more each time in vain."""

import sys

from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor

Executor.next_seconds_between_status_checks = property(lambda _: 1, lambda _, seconds: None)
sys.exit(main())
