"""The commands that people call: what a study is, costs, has reached, and whether its session is whole.

What a command needs is imported inside it, so that `--help` is quick.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace as Arguments
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from id_scaling.errors import InputError

if TYPE_CHECKING:
    from id_scaling.study.study import Study

# The arguments of `describe` by the keys of a configuration that they stand for.
DESCRIBED = {"model_name": "MODEL", "model_checkpoint": "--checkpoint"}


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
    from id_scaling.sources.base import resolve_model
    from id_scaling.sources.model_config import read_architecture

    try:
        with TemporaryDirectory() as aside:
            source = resolve_model(arguments.model, arguments.checkpoint)
            architecture = read_architecture(source.config_folder(Path(aside)))
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
