"""The command line of id_scaling: commands for people first, then those that the workflow's rules call.

`python -m id_scaling COMMAND --help` says what a command takes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from id_scaling.cli import job_commands, study_commands
from id_scaling.cli.arguments import OPTIONS
from id_scaling.errors import Ended, IdScalingError, InputError, is_panic, of_a_disk, of_memory
from id_scaling.runtime.atomic_files import sweep
from id_scaling.runtime.interrupts import endable
from id_scaling.runtime.logging import LOG, plain, start_logging

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
    job_commands.check_recorded(arguments.verb, getattr(arguments, "settings", {}))
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


# What the verbs of jobs write.
OUTPUTS = frozenset(("--output", "--outputs", "--parquet", "--csv", "--text", "--record"))

VERBS: dict[str, tuple[Callable[[Arguments], int | None], tuple[str, ...]]] = {
    "validate": (study_commands.validate, ("config",)),
    "plan": (study_commands.plan, ("config", "--tflops", "--gpus")),
    "status": (study_commands.status, ("config",)),
    "check": (study_commands.check, ("config", "--profile")),
    "reproduce": (study_commands.reproduce, ("config", "--only", "--profile", "--no-run")),
    "describe": (study_commands.describe, ("name", "--checkpoint")),
    "document": (study_commands.document, ("--root",)),
    "prepare-model": (job_commands.prepare_model, ("--output",)),
    "prepare-dataset": (job_commands.prepare_dataset, ("--output",)),
    "train-tokenizer": (job_commands.train_tokenizer, ("--settings", "--texts", "--output")),
    "train-model": (job_commands.train_model, ("--settings", "--texts", "--tokenizer", "--outputs")),
    "fetch-model": (job_commands.fetch_model, ("--settings", "--execution", "--output")),
    "fetch-weights": (job_commands.fetch_weights, ("--execution", "--model", "--output")),
    "fetch-tokenizer": (job_commands.fetch_tokenizer, ("--settings", "--execution", "--output")),
    "fetch-dataset": (job_commands.fetch_dataset, ("--settings", "--output")),
    "chunk": (job_commands.chunk, ("--settings", "--execution", "--shard", "--tokenizer", "--output")),
    "shuffle": (job_commands.shuffle, ("--settings", "--contexts", "--output")),
    "extract": (
        job_commands.extract,
        ("--settings", "--execution", "--threads", "--contexts", "--model", "--weights", "--output"),
    ),
    "estimate": (job_commands.estimate, ("--settings", "--threads", "--manifest", "--output")),
    "estimate-batch": (job_commands.estimate_batch, ("--settings", "--execution", "--manifest", "--logs", "--output")),
    "summarize": (job_commands.summarize, ("--settings", "--session", "--parquet", "--csv", "--text")),
    "plot": (job_commands.plot, ("--settings", "--session", "--outputs", "--record")),
}


def _commands_of_rules() -> str:
    """Return the commands that only rules call, with what each does."""
    jobs = {name: run.__doc__ for name, (run, _) in VERBS.items() if run.__module__ == job_commands.__name__}
    return "\n".join(["commands that the rules of the workflow call:", *(f"    {n:<18}{d}" for n, d in jobs.items())])


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="python -m id_scaling",
        description=__doc__.splitlines()[0],
        epilog=_commands_of_rules(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, title="commands", metavar="COMMAND")
    for name, (run, options) in VERBS.items():
        listed: dict[str, Any] = {"help": run.__doc__} if run.__module__ == study_commands.__name__ else {}
        verb = verbs.add_parser(name, description=run.__doc__, **listed)
        verb.add_argument("--verbose", action="store_true", help="log in detail")
        for option in options:
            spelled = dict(OPTIONS[option])
            flag = option if option.startswith("--") else spelled.pop("dest", option)
            verb.add_argument("--output" if option == "--outputs" else flag, **spelled)
    return parser
