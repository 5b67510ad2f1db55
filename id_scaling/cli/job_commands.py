"""The commands that the workflow's rules call: one for each stage, given settings and paths.

A setting that a command does not know is an error: it would be recorded, though it changed nothing. What a command
needs is imported inside it, so that estimates never import torch and `--help` is quick.
"""

from __future__ import annotations

import os
import socket
from argparse import Namespace as Arguments
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from id_scaling.runtime.logging import LOG
from id_scaling.runtime.settings import call_with, check_keys, read_settings
from id_scaling.storage.layout import Run

if TYPE_CHECKING:
    from id_scaling.models.modules import SiteRequest

# What names contexts, and a run, in settings.
CONTEXTS = ("dataset", "subset", "tokenizer", "control")
RUN = tuple(field.name for field in fields(Run))
# Of the commands whose stages take and record their settings as a whole.
KEYS = {
    "train-tokenizer": ("vocab_size", "texts", "code"),
    "train-model": ("config", "steps", "texts", "code"),
    "shuffle": (*CONTEXTS, "ctx_len", "code"),
    "estimate": (*RUN, "module", "estimator", "parameters", "views", "clouds", "has_local", "max_seconds", "code"),
    "estimate-batch": ("run", "estimators", "tables"),
    "summarize": (
        "models",
        "datasets",
        "lengths",
        "clouds",
        "positions",
        "controls",
        "group_by",
        "family_per",
        "tokenizers",
        "extractions",
        "modules",
        "estimators",
        "names",
        "code",
    ),
    "plot": ("code",),
}


def check_recorded(verb: str, settings: Mapping[str, Any]) -> None:
    """Raise an InputError where a command would record a setting that it does not know; others read theirs one by one.

    Parameters
    ----------
    verb : str
        The command.
    settings : mapping
        What it was given.
    """
    if verb in KEYS:
        check_keys(verb, settings, needed=(), known=KEYS[verb])


def prepare_model(arguments: Arguments) -> None:
    """Write the embedded model as safetensors."""
    from id_scaling.sources import bundled

    bundled.prepare_model(arguments.output)


def prepare_dataset(arguments: Arguments) -> None:
    """Write the embedded texts as parquet shards."""
    from id_scaling.sources import bundled

    bundled.prepare_dataset(arguments.output)


def train_tokenizer(arguments: Arguments) -> None:
    """Train the tokenizer of the models that are trained here."""
    from id_scaling.sources import bundled_training as training

    folder = arguments.output.parent
    training.train_tokenizer(arguments.texts, arguments.settings["vocab_size"], folder)
    _record_training(folder, arguments.settings)


def train_model(arguments: Arguments) -> None:
    """Train a small model, or go on where that was cut short, and write its checkpoints."""
    from id_scaling.sources import bundled_training as training

    # Of each checkpoint its weights are named: FOLDER/step4/model.safetensors
    folder = arguments.output[0].parents[1]
    training.train_model(arguments.texts, arguments.tokenizer.parent, arguments.settings, folder)
    _record_training(folder, arguments.settings)


def _record_training(folder: Path, settings: dict[str, Any]) -> None:
    """Record with which settings a folder was trained."""
    from id_scaling.sources.bundled import TRAINING_RECORD
    from id_scaling.storage.records import write_record

    write_record(folder / TRAINING_RECORD, {"settings": settings, "made_from": {}})


def fetch_model(arguments: Arguments) -> None:
    """Fetch a checkpoint, check that the study fits it, write its identity."""
    given = {**arguments.settings, **arguments.execution}
    call_with(_fetch_model, given, output=arguments.output, settings=arguments.settings)


def _fetch_model(
    model_name: str,
    checkpoint: str,
    sites: dict[str, Any],
    unlike: list[str],
    add_bos: str,
    is_own_tokenizer: bool,
    output: Path,
    settings: dict[str, Any],
    ctx_len: int,
    allow_pickle: bool,
) -> None:
    """Fetch a checkpoint, with what it is checked against: sites, others of other weights, and its own tokenizer."""
    from id_scaling.sources import models as fetch
    from id_scaling.text.token_range import check_range

    fetch.fetch_model(
        model_name,
        checkpoint,
        _request(sites),
        ctx_len,
        output,
        allow_pickle,
        [output.parent.parent / other / output.name for other in unlike if other != output.parent.name],
        settings,
        partial(check_range, add_bos=add_bos) if is_own_tokenizer else None,
    )


def _request(sites: Mapping[str, Any]) -> SiteRequest:
    """Return a request for sites from its JSON, in which views that are made at all layers are left out."""
    from id_scaling.models.modules import SiteRequest

    return read_settings(SiteRequest, {"views": {}, **sites})


def fetch_weights(arguments: Arguments) -> None:
    """Bring the weights of a checkpoint of the hub to this machine."""
    from id_scaling.sources.weights import fetch_weights

    call_with(fetch_weights, arguments.execution, identity_path=arguments.model, output=arguments.output)


def fetch_tokenizer(arguments: Arguments) -> None:
    """Fetch a tokenizer, write its identity."""
    from id_scaling.sources import tokenizers as fetch
    from id_scaling.text.token_range import check_start

    call_with(
        fetch.fetch_tokenizer,
        arguments.settings,
        output=arguments.output,
        settings=arguments.settings,
        check=lambda folder: call_with(check_start, arguments.execution, folder=folder),
    )


def fetch_dataset(arguments: Arguments) -> None:
    """Fetch a shard, write its identity."""
    from id_scaling.sources import datasets as shards

    call_with(shards.fetch_dataset, arguments.settings, output=arguments.output, settings=arguments.settings)


def chunk(arguments: Arguments) -> None:
    """Cut the documents of a shard into contexts."""
    from id_scaling.sources.datasets import shard_paths
    from id_scaling.sources.tokenizers import tokenizer_folder
    from id_scaling.storage.records import read_record
    from id_scaling.text.chunk_options import Chunking
    from id_scaling.text.chunking import chunk_dataset
    from id_scaling.text.documents import check_groups

    check_keys("chunk", arguments.settings, (*CONTEXTS, "chunking", "code"))
    refused = dict(arguments.execution)
    group_by = refused.pop("group_by")
    chunking = read_settings(Chunking, {**arguments.settings["chunking"], **refused})
    shard, tokenizer = read_record(arguments.shard), read_record(arguments.tokenizer)
    metadata = {
        "settings": arguments.settings,
        "made_from": {"shard": shard["sha256"], "tokenizer": tokenizer["sha256"]},
        "shard_sha256": shard["sha256"],
        "tokenizer_sha256": tokenizer["sha256"],
        "tokenizer_source_sha256": tokenizer["source_sha256"],
    }
    chunk_dataset(
        shard_paths(shard),
        tokenizer_folder(tokenizer, arguments.tokenizer),
        chunking,
        metadata,
        arguments.output,
    )
    check_groups(arguments.output, group_by)


def shuffle(arguments: Arguments) -> None:
    """Permute blocks of tokens of each context, a control of the text."""
    from id_scaling.text.shuffling import shuffle_contexts

    shuffle_contexts(arguments.contexts, arguments.settings, arguments.output)


def extract(arguments: Arguments) -> None:
    """Run the model over a run's contexts and store neighbors, loss and entropy."""
    # Before torch, which may be what there is no memory for: of a job whose log is empty Snakemake shows no other log.
    LOG.info("process %d on %s", os.getpid(), socket.gethostname())
    from id_scaling.extraction.compute import Extraction
    from id_scaling.extraction.run import Execution, Inputs, extract
    from id_scaling.models.loading import pick_device
    from id_scaling.sources.models import weights_folder_of

    LOG.info("device %s, CUDA_VISIBLE_DEVICES=%s", pick_device(), os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    settings = arguments.settings
    named = {*RUN, "layout", "sites", "code"}
    options = {name: value for name, value in settings.items() if name not in named}
    extraction = read_settings(Extraction, options, request=_request(settings["sites"]))
    execution = read_settings(Execution, arguments.execution, n_threads=arguments.threads)
    inputs = Inputs(arguments.contexts, arguments.model, arguments.weights or weights_folder_of(arguments.model))
    extract(extraction, inputs, settings, arguments.output, execution)


def estimate(arguments: Arguments) -> None:
    """Estimate every cloud of one module of a run by one estimator."""
    from id_scaling.estimators.registry import get_estimator
    from id_scaling.results.estimates import estimate_run

    settings = arguments.settings
    estimate_run(
        arguments.manifest,
        settings["module"],
        get_estimator(settings["estimator"]),
        settings,
        arguments.output,
        arguments.threads,
    )


def estimate_batch(arguments: Arguments) -> None:
    """Estimate, side by side, the tables of a run that are not finished, and stage each as soon as it is."""
    from id_scaling.cli.batch import Execution, estimate_batch

    execution = read_settings(Execution, arguments.execution, is_verbose=arguments.verbose)
    estimate_batch(arguments.settings, arguments.manifest, arguments.logs, execution, arguments.output)


def summarize(arguments: Arguments) -> None:
    """Join the tables of a session into one."""
    from id_scaling.results.summary import summarize

    summarize(arguments.session, arguments.settings, arguments.parquet, arguments.csv, arguments.text)


def plot(arguments: Arguments) -> None:
    """Draw the figures of a session and its report, and record what they were drawn from and the checksum of each."""
    from id_scaling.plots.render import draw
    from id_scaling.runtime.atomic_files import sha256, writing_all
    from id_scaling.storage.records import key_of, read_facts, summary_settings, write_record

    session, settings, outputs = arguments.session, arguments.settings, arguments.output
    summary, facts = session / "summary.parquet", read_facts(session / "summary.parquet")
    made_from = {"summary": key_of({"settings": summary_settings(facts), "made_from": facts["made_from"]})}
    summary_sha256 = sha256(summary)
    with writing_all([*outputs, arguments.record]) as (*places, record):
        draw(session, dict(zip(outputs, places, strict=True)))
        pairs = sorted(zip(outputs, places, strict=True))
        files = {str(output.relative_to(session)): sha256(place) for output, place in pairs}
        write_record(record, {"settings": settings, "made_from": made_from, "summary": summary_sha256, "files": files})
