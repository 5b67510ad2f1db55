"""Helper functions of the rules: what each job reads, from its wildcards alone."""

import gc
import json
import re
import sys
from functools import cache
from itertools import product
from math import ceil
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

import id_scaling
from id_scaling.sources import bundled
from id_scaling.sources.cache import RESOURCES
from id_scaling.text.shuffling import NONE
from id_scaling.errors import IdScalingError
from id_scaling.runtime.logging import plain
from id_scaling.runtime.atomic_files import canonical_json, read_json, writing
from id_scaling.runtime.slurm import outlast_controller
from id_scaling.storage import layout
from id_scaling.storage.layout import run_of, staging_folder
from id_scaling.storage.staging import clear_staging, publish, staged_table
from id_scaling.study.jobs import RULES
from id_scaling.study.staleness import FORCED
from id_scaling.study.study import EXTRACT_MINUTES, Study


def load_study(config):
    # A job on a compute node has nothing to add to what was checked before it started.
    if not workflow.remote_exec:
        # Snakemake has read them already, but takes the last of two equal keys without a word.
        for path in workflow.configfiles:
            check_file(path)
    try:
        study = Study(config)
        if not workflow.remote_exec:
            study.check()
    except IdScalingError as error:
        raise WorkflowError(plain(str(error))) from None
    return study


# Snakemake makes a few hundred objects a job, which stay: to look for garbage among them took a tenth of a dry run.
gc.set_threshold(100_000, 50, 50)
STUDY = load_study(config)
LEASES = []
# With `--sdm conda` the interpreter is that of the environment, which has everything but the package itself.
IS_CONDA = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
PACKAGE = Path(id_scaling.__file__).parents[1]
PYTHON = ["env", f"PYTHONPATH={PACKAGE}", "python"] if IS_CONDA else [sys.executable]
VERBOSITY = "--verbose" if STUDY.config.verbose else ""

PLAN, PLANNED = Path(STUDY.session) / ".planned_estimates.json", {}
# What one estimate asks for at first, and cores of a batch where no profile says how many one job may have.
ESTIMATE_MB, ESTIMATE_MINUTES, BATCH_CORES, EXTRACT_CORES = 2000, 30, 8, 8

# What `id_scaling` in commands is: the package under the interpreter that runs Snakemake, activated environment or not.
# It is no part of their text, which Snakemake records and which has to be the same on all machines.
# A cluster ends a job with SIGTERM to all of its processes, a terminal with SIGINT: the shell and `tee` stay until the
# program has said its last.
shell.prefix(
    "set -euo pipefail; trap '' TERM INT; "
    'id_scaling() {{ trap - TERM INT; exec {PYTHON:q} -m id_scaling "$@" {VERBOSITY}; }}; '
    + TO_TERMINAL.replace("{", "{{").replace("}", "}}")
    + "; "
)


# Snakemake's plugin for Slurm loses sight of its jobs where the controller is away for a moment.
if workflow.is_main_process:
    FOLDER = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).resolve()
    outlast_controller(
        FOLDER.parents[1] / "profiles" / "slurm" / "bin",
        Path(".snakemake/slurm_config.txt"),
    )


def is_prepared_elsewhere():
    """Return whether another study of the same Snakefile has the rules that prepare models and texts."""
    log = str(RESOURCES / layout.log_of("prepare_model"))
    return any(log in map(str, rule.log) for rule in workflow.rules)


def one_of(names):
    return "|".join(map(re.escape, names)) or "(?!)"


wildcard_constraints:
    model=one_of(STUDY.models),
    checkpoint=one_of(STUDY.checkpoints),
    dataset=one_of(STUDY.datasets),
    subset=r"\d+",
    tokenizer=one_of(STUDY.tokenizers),
    ctx_len=one_of(map(str, STUDY.config.ctx_len)),
    control=one_of(STUDY.config.controls),
    module=one_of(STUDY.modules),
    estimator=r"[A-Za-z0-9_]+",


def placed(rule, template):
    return f"<{'session' if RULES[rule].is_of_session else 'resources'}>/{template}"


def outputs_of(rule):
    return [placed(rule, template) for template in RULES[rule].outputs]


def log_of(rule):
    return placed(rule, layout.log_of(rule))


def benchmark_of(rule):
    return placed(rule, layout.benchmark_of(rule))


def get_run(wildcards):
    return run_of(dict(wildcards.items()))


def get_model_files(wildcards):
    return STUDY.model_files(wildcards.model, wildcards.checkpoint)


def get_model_sources(wildcards):
    # So that a bundled model is there in another clone too, in which nothing was fetched.
    return STUDY.model_files(wildcards.model, wildcards.checkpoint)


def get_text_sources(wildcards):
    return [
        *STUDY.shard_files(wildcards.dataset, wildcards.subset),
        *STUDY.tokenizer_files(wildcards.tokenizer),
    ]


def get_weights(wildcards):
    if STUDY.is_on_hub(wildcards.model, wildcards.checkpoint):
        return WEIGHTS
    return []


def unless_kept(output):
    return output if STUDY.config.keep_weights else temp(output)


def get_tokenizer_files(wildcards):
    return STUDY.tokenizer_files(wildcards.tokenizer)


def get_shard_files(wildcards):
    return STUDY.shard_files(wildcards.dataset, wildcards.subset)


def get_contexts(wildcards):
    tokenizer = STUDY.tokenizer_of(wildcards.model)
    return CONTEXTS.replace("{tokenizer}", tokenizer)


def get_train_tokenizer_settings(wildcards):
    return STUDY.train_tokenizer_settings()


def get_train_model_settings(wildcards):
    return STUDY.train_model_settings(wildcards.model)


def get_fetch_model_settings(wildcards):
    return STUDY.fetch_model_settings(wildcards.model, wildcards.checkpoint)


def get_fetch_model_execution(wildcards, resources):
    # Not recorded, as that of an extraction: one more checkpoint, or length, makes nothing of the others stale.
    return STUDY.fetch_model_execution(wildcards.model)


def get_fetch_weights_execution(wildcards, resources):
    return STUDY.fetch_weights_execution()


def get_fetch_tokenizer_settings(wildcards):
    return STUDY.fetch_tokenizer_settings(wildcards.tokenizer)


def get_fetch_tokenizer_execution(wildcards, resources):
    return STUDY.fetch_tokenizer_execution()


def get_fetch_dataset_settings(wildcards):
    return STUDY.fetch_dataset_settings(wildcards.dataset, wildcards.subset)


def get_chunk_settings(wildcards):
    return STUDY.chunk_settings(**wildcards)


def get_chunk_execution(wildcards, resources):
    # Not recorded: what the records are checked against changes no context.
    return STUDY.chunk_execution(wildcards.dataset)


def get_shuffle_settings(wildcards):
    return STUDY.shuffle_settings(**wildcards)


def get_extract_settings(wildcards):
    return STUDY.extract_settings(get_run(wildcards))


def get_extract_execution(wildcards, resources):
    # Snakemake does not record a param that takes `resources`: how a job runs makes nothing stale.
    return STUDY.extract_execution(wildcards.model)


def get_estimate_settings(wildcards):
    return STUDY.estimate_settings(
        get_run(wildcards), wildcards.module, wildcards.estimator
    )


def planned_batches():
    """What this Snakemake is to estimate: by run, its tables by module and estimator, and the cores of its batch."""
    if workflow.is_main_process:
        return batches_of_dag(len(workflow.dag or ()))
    return read_json(PLAN) if PLAN.is_file() else {}


@cache
def batches_of_dag(n_jobs):
    """As above, by the jobs of the main process, which are known once they are counted."""
    batches = {}
    for job in planned_jobs("estimate_dimension") if n_jobs else ():
        batch = batches.setdefault(key_of(job.wildcards), {"tables": []})
        batch["tables"].append((job.wildcards.module, job.wildcards.estimator))
    return batches


def planned_jobs(rule):
    """Return the jobs of a rule that have to run."""
    name = name_of(rule)
    jobs = workflow.dag.needrun_jobs(exclude_finished=False)
    return [job for job in jobs if job.rule.name == name]


def name_of(rule):
    """Return the name that a rule has in the whole workflow, which users of a module choose."""
    return getattr(rules, rule).rule.name


def key_of(wildcards):
    return layout.RUN_NAMES.format(**wildcards)


def get_planned_tables(wildcards):
    """The tables that the batch of a run is to make; all, where nothing is known of a plan."""
    batch = planned_batches().get(key_of(wildcards))
    return batch["tables"] if batch else [*product(STUDY.modules, STUDY.estimators)]


def get_batch_settings(wildcards, resources):
    # Not recorded, as it takes `resources`: which tables are planned is no reason to make one.
    return STUDY.batch_settings(get_run(wildcards), get_planned_tables(wildcards))


def get_batch_execution(wildcards, resources, threads):
    # What is allocated is what the main process asked for. Snakemake elsewhere counts the cores of the machine.
    planned = (PLANNED or planned_batches()).get(key_of(wildcards), {})
    return canonical_json(
        {
            "n_threads": planned.get("threads", threads),
            "n_each": STUDY.estimate_threads(),
            "is_forced": planned.get("is_forced", False),
        }
    )


def get_batch_logs(wildcards):
    of_run = Path(layout.log_of("estimate_dimension")).parents[1]
    return f"{STUDY.session}/{str(of_run).format(**wildcards)}"


def get_batch_threads(wildcards):
    """As many cores as its tables can use. With more runs to extract on this machine, those of an extraction stay free."""
    n_useful = len(get_planned_tables(wildcards)) * STUDY.estimate_threads()
    n_cores = workflow.resource_settings.cores or BATCH_CORES
    if workflow.local_exec and n_extractions(len(workflow.dag or ())) > 1:
        n_cores = n_cores - EXTRACT_CORES if n_cores >= 2 * EXTRACT_CORES else n_cores
    return min(n_useful, n_cores)


@cache
def n_extractions(n_jobs):
    return len(planned_jobs("extract_activations")) if n_jobs else 0


def n_side_by_side(wildcards, threads):
    n_tables = len(get_planned_tables(wildcards))
    return max(1, min(n_tables, threads // STUDY.estimate_threads()))


def get_batch_memory(wildcards, threads, attempt):
    """Memory of one estimate times how many run side by side."""
    return ESTIMATE_MB * n_side_by_side(wildcards, threads) * attempt


def get_batch_minutes(wildcards, threads, attempt):
    """Time of one estimate times how many run one after the other."""
    n_tables = len(get_planned_tables(wildcards))
    return (
        ESTIMATE_MINUTES * ceil(n_tables / n_side_by_side(wildcards, threads)) * attempt
    )


def get_staging(wildcards, resources):
    return staging_folder(Path(STUDY.session), get_run(wildcards))


def get_staged(wildcards, resources):
    """Where the batch left a table, without its suffix; not recorded, as it follows from the settings."""
    settings = json.loads(get_estimate_settings(wildcards))
    staging = staging_folder(Path(STUDY.session), get_run(wildcards))
    return staged_table(staging, settings).with_suffix("")


def plan_batches():
    """Write down what is to be estimated, for jobs elsewhere; drop what is staged of what is forced."""
    batches = {
        key_of(job.wildcards): {
            "tables": get_planned_tables(job.wildcards),
            "threads": job.threads,
            "is_forced": False,
        }
        for job in planned_jobs("estimate_batch")
    }
    reasons = get_staleness().reasons
    for job in planned_jobs("estimate_dimension"):
        # Forced itself, or made from what is. Snakemake's own reason may be another one: that its batch runs.
        if reasons.get(job.output[0], "").endswith(FORCED):
            Path(f"{get_staged(job.wildcards, None)}.parquet").unlink(missing_ok=True)
            batches[key_of(job.wildcards)]["is_forced"] = True
    PLANNED.update(batches)
    if batches:
        with writing(PLAN) as aside:
            aside.write_text(canonical_json(batches))


def end_batches():
    """Publish what was estimated and not linked, as where another estimate of its run failed; remove what is left over."""
    session = Path(STUDY.session)
    for job in planned_jobs("estimate_dimension"):
        staged = Path(f"{get_staged(job.wildcards, None)}.parquet")
        publish(staged, Path(job.output[0]), Path(job.input.manifest))
    for key in planned_batches():
        clear_staging(session / layout.STAGING.replace(layout.RUN_NAMES, key))
    PLAN.unlink(missing_ok=True)


def get_summarize_settings(wildcards):
    return STUDY.summarize_settings()


def get_plot_settings(wildcards):
    return STUDY.plot_settings()


def growing(first):
    """Return a resource that is `first` at the first attempt, twice as much at the second, and so on."""

    def get_resource(wildcards, attempt):
        return first * attempt

    return get_resource


def hold_session():
    """Refuse to work on a session that another Snakemake, in whichever clone, works on."""
    from id_scaling.runtime import locks as lease

    try:
        LEASES.append(lease.hold_session(Path(STUDY.session)))
    except IdScalingError as error:
        raise WorkflowError(plain(str(error))) from None


def release_session():
    while LEASES:
        LEASES.pop().release()


def print_summary():
    """Print the readable summary and say where the rest is."""
    text = Path(STUDY.session) / "summary.txt"
    if STUDY.estimators and text.is_file():
        print(f"\n{text.read_text()}")
        print(f"table:  {STUDY.session}/summary.parquet and .csv")
        print(f"report: {Path(STUDY.report()).resolve().as_uri()}")
        print(f"figures: {STUDY.session}/figures")
