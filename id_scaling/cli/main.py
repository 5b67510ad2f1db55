"""The command line: one verb a stage, which the workflow's rules call with settings and paths.

`python -m id_scaling VERB --help` says what a verb takes. What a verb needs is imported inside it, so that
estimates never import torch and `--help` is quick.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from id_scaling.errors import Ended, IdScalingError, InputError, is_panic, of_a_disk, of_memory
from id_scaling.runtime.atomic_files import sweep
from id_scaling.runtime.interrupts import endable
from id_scaling.runtime.logging import LOG, plain, start_logging

if TYPE_CHECKING:
    from id_scaling.study.study import Study

Arguments = argparse.Namespace

# Verbs whose outputs nobody else writes meanwhile, so that what a killed process left of them is removed first.
ALONE = ("fetch-model", "fetch-tokenizer", "fetch-dataset", "chunk", "shuffle", "estimate", "summarize", "plot")

# Bars of other packages, redrawn in place, make a log of thousands of lines. Read when tqdm is imported.
os.environ.setdefault("TQDM_DISABLE", "1")

# Characters of a setting in a log.
MOST_SHOWN = 80


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; an error of the package is one message on standard error and exit status 1."""
    arguments = _parser().parse_args(argv)
    start_logging(arguments.verbose)
    _warn_of_limit()
    with endable():
        try:
            return run_job(arguments)
        except Ended:
            print("ended: the system asked for it (SIGTERM), as at the end of a job's time", file=sys.stderr)
            return 128 + signal.SIGTERM
        except KeyboardInterrupt:
            print("ended: interrupted (SIGINT), as by Ctrl-C", file=sys.stderr)
            return 128 + signal.SIGINT


def run_job(arguments: Arguments) -> int:
    """Run one verb; return its exit status, 1 after an error of the package, which is one message."""
    try:
        return _run(arguments)
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        shown = error if isinstance(error, IdScalingError) else of_a_disk(error) or of_memory(error)
        if shown is None:
            raise
        print(f"error: {plain(str(shown))}", file=sys.stderr)
        return 1


def _warn_of_limit() -> None:
    """Say that memory is limited where it is: libraries in Rust and C++ end the process in words of their own."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        LOG.warning(
            "memory is limited to %.0f MB of addresses (ulimit -v); `memory allocation failed`, `bad_alloc` or an end "
            "by signal 6 or 11 mean that it is too little",
            limit / 1e6,
        )


def _check_code(arguments: Arguments) -> None:
    """Raise an InputError where a job would compute by other code than the one that it was planned with.

    As where the sources changed while jobs were queued: their outputs would say that they are of the code before.
    """
    from id_scaling.study.fingerprint import ROOTS, fingerprint

    planned = getattr(arguments, "settings", {}).get("code")
    if planned is None or arguments.verb not in ROOTS:
        return
    roots = ROOTS[arguments.verb]
    if arguments.verb == "estimate":
        from id_scaling.estimators.registry import definition_of

        roots = (*roots, definition_of(arguments.settings["estimator"]).module)
    if fingerprint(*roots) != planned:
        raise InputError(
            f"{arguments.verb}: the code changed since this job was planned (found {fingerprint(*roots)}, expected "
            f"{planned}); run snakemake again"
        )


def _run(arguments: Arguments) -> int:
    """Run one verb; the log of a job begins with its settings and ends with what was written."""
    run, options = VERBS[arguments.verb]
    if OUTPUTS.isdisjoint(options):
        return run(arguments) or 0
    LOG.info("%s", _started(arguments))
    _check_code(arguments)
    if arguments.verb in ALONE:
        for path in _outputs(arguments):
            sweep(path.parent, path.name)
    run(arguments)
    LOG.info("%s", _written(arguments))
    return 0


def _started(arguments: Arguments) -> str:
    """Return a verb and what it was given on one line: `estimate estimator=mle module=mlp … --output=…`."""
    given = {key: value for key, value in vars(arguments).items() if key not in ("verb", "verbose") and value}
    settings = {**given.pop("settings", {}), **given.pop("execution", {})}
    pairs = {**settings, **{f"--{option}": value for option, value in given.items()}}
    return " ".join([arguments.verb, *(f"{key}={_shown(value)}" for key, value in pairs.items())])


def _shown(value: object) -> str:
    """Return a value on one line, a long one without its end, but a path whole."""
    if isinstance(value, Path):
        return str(value)
    text = (
        value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)
    )
    text = plain(" ".join(text.split()))  # before it is cut: half a token would not be known for one
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def _written(arguments: Arguments) -> str:
    """Return what a verb wrote: `wrote results/…/mle.parquet (96 rows)`."""
    return f"wrote {', '.join(f'{path} ({_size(path)})' for path in _outputs(arguments))}"


def _outputs(arguments: Arguments) -> list[Path]:
    """Return the paths that a verb writes."""
    values = [value for key, value in vars(arguments).items() if f"--{key}" in OUTPUTS]
    return [path for value in values for path in (value if isinstance(value, list) else [value])]


def _size(path: Path) -> str:
    """Return how much is in an output: contexts, rows, files or bytes."""
    if path.is_dir():
        return f"{sum(one.is_file() for one in path.rglob('*'))} files"
    if path.suffix == ".parquet":
        import polars as pl

        return f"{pl.scan_parquet(path, glob=False).select(pl.len()).collect().item()} rows"
    if path.name == "manifest.json":
        record = json.loads(path.read_text())
        return f"{record['n_contexts']} contexts" if "n_contexts" in record else f"{len(record['files'])} files"
    return f"{path.stat().st_size} bytes"


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
    from id_scaling.models.modules import request_of
    from id_scaling.sources import models as fetch
    from id_scaling.text.token_range import check_range

    settings, execution, output = arguments.settings, arguments.execution, arguments.output
    request = request_of(execution["sites"])
    others = [output.parent.parent / checkpoint / output.name for checkpoint in execution["unlike"]]
    fetch.fetch_model(
        settings["model_name"],
        settings["checkpoint"],
        request,
        execution["ctx_len"],
        output,
        execution["allow_pickle"],
        [path for path in others if path != output],
        settings,
        partial(check_range, add_bos=execution["add_bos"]) if execution["is_own_tokenizer"] else None,
    )


def fetch_weights(arguments: Arguments) -> None:
    """Bring the weights of a checkpoint of the hub to this machine."""
    from id_scaling.sources.weights import fetch_weights

    fetch_weights(arguments.model, arguments.output, **arguments.execution)


def fetch_tokenizer(arguments: Arguments) -> None:
    """Fetch a tokenizer, write its identity."""
    from id_scaling.sources import models as fetch
    from id_scaling.text.token_range import check_start

    check = partial(check_start, **arguments.execution)
    fetch.fetch_tokenizer(arguments.settings["model_name"], arguments.output, arguments.settings, check)


def fetch_dataset(arguments: Arguments) -> None:
    """Fetch a shard, write its identity."""
    from id_scaling.sources import datasets as shards

    settings = arguments.settings
    shards.fetch_dataset(settings["dataset_name"], settings["subset"], arguments.output, settings)


def chunk(arguments: Arguments) -> None:
    """Cut the documents of a shard into contexts."""
    from id_scaling.sources.datasets import shard_paths
    from id_scaling.sources.models import tokenizer_folder
    from id_scaling.storage.records import read_record
    from id_scaling.text.chunking import Chunking, chunk_dataset
    from id_scaling.text.documents import check_groups

    shard, tokenizer, execution = read_record(arguments.shard), read_record(arguments.tokenizer), arguments.execution
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
        Chunking(**arguments.settings["chunking"], max_broken_share=execution["max_broken_share"]),
        metadata,
        arguments.output,
    )
    check_groups(arguments.output, execution["group_by"])


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
    from id_scaling.models.modules import request_of
    from id_scaling.neighbors.views import View
    from id_scaling.sources.models import weights_folder_of

    LOG.info("device %s, CUDA_VISIBLE_DEVICES=%s", pick_device(), os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    settings = arguments.settings
    extraction = Extraction(
        request=request_of(settings["sites"]),
        views={name: View(**view) for name, view in settings["views"].items()},
        ranks=settings["ranks"] and tuple(settings["ranks"]),
        groups=tuple(settings["groups"]),
        save_clouds=settings["save_clouds"],
        save_means=settings["save_means"],
        save_fp=settings["save_fp"],
        dtype=settings["dtype"],
        positions=tuple(settings["positions"]),
    )
    execution = Execution(**arguments.execution, n_threads=arguments.threads)
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

    execution = Execution(**arguments.execution, is_verbose=arguments.verbose)
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


def validate(arguments: Arguments) -> None:
    """Check a configuration file, and the models and shards it names that are on disk."""
    study = _study(arguments.config)
    study.check(is_thorough=True)
    _show(f"{arguments.config}: valid; {len(study.runs)} run(s), {len(study.tables())} table(s) of estimates")


def check(arguments: Arguments) -> int:
    """Verify a whole session: print what is missing, stale, damaged or suspicious; exit status 1 unless it is whole."""
    from id_scaling.cli.check import check_session, is_whole, report

    study = _study(arguments.config)
    findings = check_session(study)
    options = ["--configfile", str(arguments.config), "--profile", arguments.profile]
    word = "whole" if is_whole(findings) else "not whole"
    left_out = "logs, benchmarks and weights of the hub are not checked"
    _show(f"{report(findings, options)}\n{study.session}: {word} ({left_out})")
    return 0 if is_whole(findings) else 1


def status(arguments: Arguments) -> None:
    """Print how far a session is: jobs done, running and failed, contexts, the last errors, who works on it."""
    from id_scaling.cli.status import report, status_of

    study = _study(arguments.config)
    _show(report(study, status_of(study)))


def _show(text: str) -> None:
    """Print to standard output, whose reader, `head` say, may have read enough."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _study(path: Path) -> Study:
    """Return the study of a configuration file."""
    from id_scaling.errors import ConfigError
    from id_scaling.study.config_file import read_config
    from id_scaling.study.study import Study

    config = read_config(path)
    if "__use_yte__" in config:
        raise ConfigError(f"{path}: __use_yte__ has Snakemake run Python that stands in the file")
    return Study(config)


def plan(arguments: Arguments) -> None:
    """Print what a study takes before it starts: jobs, contexts, disk, FLOPs, hours."""
    from id_scaling.cli.plan import report

    study = _study(arguments.config)
    study.check()
    _show(report(study, arguments.tflops, arguments.gpus))


def reproduce(arguments: Arguments) -> None:
    """Run the protocol of a paper, and print ours beside what it published."""
    from id_scaling.cli.reproduce import reproduce
    from id_scaling.study.config_file import read_config

    _show(
        reproduce(
            arguments.config,
            read_config(arguments.config),
            arguments.only,
            arguments.profile,
            is_run=not arguments.no_run,
        )
    )


def describe(arguments: Arguments) -> None:
    """Print the layers, width, positions and module paths of a model, without loading weights."""
    from id_scaling.models.modules import PRESETS
    from id_scaling.sources.model_config import read_architecture
    from id_scaling.sources.models import settings_folder

    try:
        with TemporaryDirectory() as aside:
            architecture = read_architecture(settings_folder(arguments.model, arguments.checkpoint, Path(aside)))
    except InputError as error:
        raise InputError(_with_options(str(error))) from error
    preset = PRESETS.get(architecture.model_type)
    lines = [
        *(f"{key}: {value}" for key, value in vars(architecture).items()),
        "module_name_mapping:" if preset else "module_name_mapping: none is known; give the paths yourself",
        *(f"  {key}: {path}" for key, path in (preset or {}).items()),
    ]
    _show("\n".join(lines))


def _with_options(words: str) -> str:
    """Return an error of `describe` that names its own arguments, not the keys of a configuration."""
    key, separator, rest = words.partition(": ")
    return f"{DESCRIBED.get(key, key)}{separator}{rest}"


def document(arguments: Arguments) -> None:
    """Write the JSON schema of the configuration and the generated parts of the documentation."""
    from id_scaling.cli.documentation import write_all

    write_all(arguments.root)


def _json(text: str) -> dict:
    return json.loads(text)


def _positive(text: str) -> float:
    """Return a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"found {text}, expected a number above 0")
    return number


def _count(text: str) -> int:
    """Return a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected a number of at least 1")
    return int(text)


# An option of a verb: its flag, and how it is read.
OPTIONS: dict[str, dict] = {
    "--settings": {"type": _json, "required": True, "help": "what can change the output, as JSON"},
    "--execution": {"type": _json, "required": True, "help": "how the job runs, as JSON"},
    "--threads": {"type": int, "default": 1, "help": "cores to use"},
    "--output": {"type": Path, "required": True, "help": "what to write"},
    "--outputs": {"type": Path, "required": True, "nargs": "+", "dest": "output", "help": "what to write"},
    "--texts": {"type": Path, "required": True, "nargs": "+", "help": "parquet files with a column text"},
    "--shard": {"type": Path, "required": True, "help": "identity.json of the shard"},
    "--tokenizer": {"type": Path, "required": True, "help": "identity.json, or tokenizer.json of one trained here"},
    "--weights": {"type": Path, "nargs": "?", "help": "folder of the weights, where the model's identity names none"},
    "--contexts": {"type": Path, "required": True, "help": "contexts.parquet"},
    "--model": {"type": Path, "required": True, "help": "identity.json of the model"},
    "--manifest": {"type": Path, "required": True, "help": "manifest.json of the run"},
    "--logs": {"type": Path, "required": True, "help": "folder of the logs of single tables"},
    "--session": {"type": Path, "required": True, "help": "folder of the session"},
    "--parquet": {"type": Path, "required": True, "help": "table to write"},
    "--csv": {"type": Path, "required": True, "help": "the same as text, to write"},
    "--text": {"type": Path, "required": True, "help": "readable summary to write"},
    "--record": {"type": Path, "required": True, "help": "settings and checksums of what was drawn, to write"},
    "--checkpoint": {"default": "main", "help": "training checkpoint"},
    "--root": {"type": Path, "default": Path("."), "help": "root of the repository"},
    "--tflops": {
        "type": _positive,
        "default": 100.0,
        "help": "10¹² FLOPs a second of a GPU, an assumption",
    },
    "--gpus": {"type": _count, "default": 1, "help": "GPUs that extract beside each other"},
    "--only": {"nargs": "+", "metavar": "MODEL", "help": "models of the file to run, all by default"},
    "--profile": {"default": "profiles/local", "help": "profile of Snakemake, profiles/local by default"},
    "--no-run": {"action": "store_true", "help": "compare what was run before"},
    "config": {"type": Path, "help": "configuration file"},
    "name": {"metavar": "MODEL", "dest": "model", "help": "model folder or name"},
}

# The arguments of `describe` by the keys of a configuration that they stand for.
DESCRIBED = {"model_name": "MODEL", "model_checkpoint": "--checkpoint"}

# What the verbs of jobs write.
OUTPUTS = frozenset(("--output", "--outputs", "--parquet", "--csv", "--text", "--record"))

VERBS: dict[str, tuple[Callable[[Arguments], int | None], tuple[str, ...]]] = {
    "prepare-model": (prepare_model, ("--output",)),
    "prepare-dataset": (prepare_dataset, ("--output",)),
    "train-tokenizer": (train_tokenizer, ("--settings", "--texts", "--output")),
    "train-model": (train_model, ("--settings", "--texts", "--tokenizer", "--outputs")),
    "fetch-model": (fetch_model, ("--settings", "--execution", "--output")),
    "fetch-weights": (fetch_weights, ("--execution", "--model", "--output")),
    "fetch-tokenizer": (fetch_tokenizer, ("--settings", "--execution", "--output")),
    "fetch-dataset": (fetch_dataset, ("--settings", "--output")),
    "chunk": (chunk, ("--settings", "--execution", "--shard", "--tokenizer", "--output")),
    "shuffle": (shuffle, ("--settings", "--contexts", "--output")),
    "extract": (extract, ("--settings", "--execution", "--threads", "--contexts", "--model", "--weights", "--output")),
    "estimate": (estimate, ("--settings", "--threads", "--manifest", "--output")),
    "estimate-batch": (estimate_batch, ("--settings", "--execution", "--manifest", "--logs", "--output")),
    "summarize": (summarize, ("--settings", "--session", "--parquet", "--csv", "--text")),
    "plot": (plot, ("--settings", "--session", "--outputs", "--record")),
    "validate": (validate, ("config",)),
    "check": (check, ("config", "--profile")),
    "status": (status, ("config",)),
    "plan": (plan, ("config", "--tflops", "--gpus")),
    "reproduce": (reproduce, ("config", "--only", "--profile", "--no-run")),
    "describe": (describe, ("name", "--checkpoint")),
    "document": (document, ("--root",)),
}


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="python -m id_scaling", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (run, options) in VERBS.items():
        verb = verbs.add_parser(name, help=run.__doc__, description=run.__doc__)
        verb.add_argument("--verbose", action="store_true", help="log in detail")
        for option in options:
            spelled = dict(OPTIONS[option])
            flag = option if option.startswith("--") else spelled.pop("dest", option)
            verb.add_argument("--output" if option == "--outputs" else flag, **spelled)
    return parser
