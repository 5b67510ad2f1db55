"""Helper functions of the rules: what each job reads, from its wildcards alone."""

import gc
import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from id_scaling.sources import bundled
from id_scaling.text.shuffling import NONE
from id_scaling.errors import IdScalingError
from id_scaling.runtime.logging import plain
from id_scaling.storage.layout import Run
from id_scaling.study.config_file import read_config
from id_scaling.study.study import EXTRACT_MINUTES, Study


def load_study(config):
    try:
        # A job on a compute node has nothing to add to what was checked before it started.
        if not workflow.remote_exec:
            # Snakemake has read them already, but takes the last of two equal keys without a word.
            for path in workflow.configfiles:
                read_config(Path(path))
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
PYTHON = sys.executable
VERBOSITY = "--verbose" if STUDY.config.verbose else ""

# What `id_scaling` in commands is: the package under the interpreter that runs Snakemake, activated environment or not.
# It is no part of their text, which Snakemake records and which has to be the same on all machines.
# A cluster ends a job with SIGTERM to all of its processes, a terminal with SIGINT: the shell and `tee` stay until the
# program has said its last.
shell.prefix(
    "set -euo pipefail; trap '' TERM INT; "
    'id_scaling() {{ trap - TERM INT; exec {PYTHON:q} -m id_scaling "$@" {VERBOSITY}; }}; '
)


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


def get_run(wildcards):
    return Run(
        wildcards.model,
        wildcards.checkpoint,
        wildcards.dataset,
        int(wildcards.subset),
        int(wildcards.ctx_len),
        wildcards.control,
    )


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
        return "<session>/weights/{model}/{checkpoint}/{dataset}/{subset}/{ctx_len}/{control}"
    return []


def unless_kept(output):
    return output if STUDY.config.keep_weights else temp(output)


def get_tokenizer_files(wildcards):
    return STUDY.tokenizer_files(wildcards.tokenizer)


def get_shard_files(wildcards):
    return STUDY.shard_files(wildcards.dataset, wildcards.subset)


def get_contexts(wildcards):
    tokenizer = STUDY.tokenizer_of(wildcards.model)
    return f"<session>/contexts/{{dataset}}/{{subset}}/{tokenizer}/{{ctx_len}}/{{control}}/contexts.parquet"


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


def get_fetch_dataset_settings(wildcards):
    return STUDY.fetch_dataset_settings(wildcards.dataset, wildcards.subset)


def get_chunk_settings(wildcards):
    return STUDY.chunk_settings(**wildcards)


def get_group_by(wildcards, resources):
    # Not recorded: which fields are summarized by changes no context.
    return STUDY.group_by(wildcards.dataset)


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
        print(f"report: {STUDY.report()}, and its figures in {STUDY.session}/figures")
