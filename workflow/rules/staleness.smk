"""Which jobs have to run: the records inside the outputs decide, and Snakemake is told by the inputs of each job.

`.snakemake` does not decide: a copied or moved session lacks it (see `id_scaling.study.staleness`). A stale output has
the file START among its inputs, which is newer than any file; the inputs of a fresh output are `ancient`.
"""

import contextlib
import os
import sys
import time
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import RerunTrigger

from id_scaling.errors import IdScalingError
from id_scaling.runtime.logging import plain
from id_scaling.study.staleness import Staleness

# Snakemake names it as the reason of a job; it holds the real reasons.
START = ".snakemake/stale.txt"


def is_main_process():
    return not workflow.remote_exec and not workflow.subprocess_exec


def compare(*is_forced):
    """Compare every output with the study; a source that is gone meanwhile is one message."""
    try:
        return Staleness(STUDY, *is_forced)
    except (IdScalingError, OSError) as error:
        raise WorkflowError(plain(str(error))) from None


@cache
def get_staleness():
    """Compare every output with the study, once, and say what is stale. Jobs, which parse this again, never do."""
    workflow.dag_settings.rerun_triggers = frozenset({RerunTrigger.MTIME})
    staleness = compare(is_forced)
    lines = [f"stale: {path}: {reason}" for path, reason in staleness.stale.items()]
    os.makedirs(os.path.dirname(START), exist_ok=True)
    # Other content each time: Snakemake compares inputs by content, too.
    Path(START).write_text("\n".join([*lines, f"compared at {time.time_ns()}", ""]))
    make_older(staleness.stale, os.stat(START).st_mtime)
    print(*map(plain, lines), sep="\n", end="\n" * bool(lines), file=sys.stderr)
    if workflow.touch:
        print("--touch changes times only: what is stale stays stale", file=sys.stderr)
    return staleness


def print_newly_stale():
    """Say what was fresh at the start and is not now: what contexts or weights made again were expected to leave as it is."""
    sources = [
        "fetch_model",
        "fetch_tokenizer",
        "fetch_dataset",
        "fetch_weights",
        "chunk_dataset",
        "shuffle_contexts",
    ]
    if not any(map(planned_jobs, sources)):
        return
    stale = compare().stale
    lines = [
        f"stale: {path}: {stale[path]}"
        for path in stale
        if path in get_staleness().fresh
    ]
    if lines:
        print(*map(plain, lines), sep="\n", file=sys.stderr)
        print("what it was made from came out otherwise: run again", file=sys.stderr)


def make_older(outputs, limit):
    """Set back the time of stale outputs that is not before `limit`: of clocks that are ahead, or of restored files."""
    for path in outputs:
        if os.path.exists(path) and os.stat(path).st_mtime >= limit:
            # A session that may not be written can be looked at in a dry run.
            with contextlib.suppress(
                PermissionError, *([OSError] if workflow.dryrun else [])
            ):
                os.utime(path, (limit - 1, limit - 1))


def is_forced(rule_name, outputs):
    """Return whether `--forcerun`, `--force` or `--forceall` names a job."""
    dag = workflow.dag
    # Of several studies in one Snakefile, the first alone has the rules that prepare models and texts.
    name = name_of(rule_name) if rules.has(rule_name) else rule_name
    return any(
        name == forced.name for forced in dag.forcerules
    ) or not dag.forcefiles.isdisjoint(outputs)


def since(output, files):
    """Return the input function of a job that makes `output`: its files, as a stale or as a fresh job sees them."""

    def get_input(wildcards):
        paths = files(wildcards) if callable(files) else files
        if not is_main_process():
            return paths
        path, staleness = expanded(output, wildcards), get_staleness()
        if path not in staleness.fresh:
            return paths
        # What a fresh output was made from may be gone, or be made again: neither concerns it.
        paths = [paths] if isinstance(paths, str) else paths
        return [
            ancient(each)
            for each in paths
            if is_there(expanded(each, wildcards), staleness)
        ]

    return get_input


def expanded(pattern, wildcards):
    path = pattern.replace("<session>", STUDY.session).replace(
        "<resources>", "resources"
    )
    return path.format(**wildcards) if "{" in path else path


def is_there(path, staleness):
    return path in staleness.fresh or (
        path not in staleness.reasons and os.path.exists(path)
    )
