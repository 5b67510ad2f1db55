"""Published profiles beside ours: the protocol is run as a study, and its means are held against those of a paper.

A file states both, `protocol` and `published`; `config/reproduce/` has them.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import polars as pl
import yaml

from id_scaling.errors import ConfigError, ResourceError
from id_scaling.neighbors.cloud_kinds import CONTEXT
from id_scaling.results.load import load_summary
from id_scaling.study.study import Study

KEYS = {"protocol", "published"}


def read_reproduction(path: Path, said: Mapping, models: list[str] | None) -> tuple[Study, dict[str, Any]]:
    """Return the study of a protocol, of some of its models or all, and what was published, from what a file says.

    Raises
    ------
    ConfigError
        The file has other keys, several lengths of contexts, or a model is none of its.
    """
    if said.keys() != KEYS:
        raise ConfigError(f"{path}: found {', '.join(map(str, said))}, expected the keys {' and '.join(sorted(KEYS))}")
    protocol, published = said["protocol"], said["published"]
    entries = protocol["model_config"] if isinstance(protocol["model_config"], list) else [protocol["model_config"]]
    names = [entry["model_name"] for entry in entries]
    if unknown := sorted(set(models or ()) - set(names)):
        raise ConfigError(f"--only: {unknown[0]} is no model of {path}; it has {', '.join(names)}")
    chosen = models or names
    protocol["model_config"] = [entry for entry in entries if entry["model_name"] in chosen]
    published["profiles"] = [one for one in published["profiles"] if one["model"] in chosen]
    published["losses"] = {name: losses for name, losses in published["losses"].items() if name in chosen}
    study = Study(protocol)
    if len(study.config.ctx_len) > 1:
        raise ConfigError(
            f"{path}: protocol.ctx_len: found {', '.join(map(str, study.config.ctx_len))}, expected one, that of what "
            "was published; write a file for each"
        )
    return study, published


def run(study: Study, profile: str) -> None:
    """Run a study by Snakemake, under a profile.

    Raises
    ------
    ResourceError
        It failed; Snakemake says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "study.yaml"
        config.write_text(yaml.safe_dump(study.config.model_dump(by_alias=True, mode="json")))
        command = [sys.executable, "-m", "snakemake", "--profile", profile, "--configfile", str(config)]
        if subprocess.run(command, check=False).returncode:
            raise ResourceError("the study did not come to its end, see above; run again: what was finished is kept")


def compared(summary: pl.DataFrame, published: Mapping[str, Any]) -> pl.DataFrame:
    """Return ours beside theirs: a row for each published mean.

    Parameters
    ----------
    summary : polars.DataFrame
        Of a session of the protocol.
    published : mapping
        `view`, `n_contexts`, `profiles` and `losses`.

    Returns
    -------
    polars.DataFrame
        `model`, `control`, `what` (an estimator, or `loss`), `hidden_state` from 1, `ours`, `theirs`, `difference`, and
        `z`: the difference in standard errors of a difference of two means of independent prompts whose spread is ours;
        empty for losses, whose spread is not in the summary.

    Raises
    ------
    ConfigError
        A profile has another number of hidden states than the model.
    """
    rows = summary.filter(pl.col("group").is_null(), view=published["view"], level=CONTEXT)
    found = [row for profile in published["profiles"] for row in _of_profile(rows, profile, published["n_contexts"])]
    controls = ["none", *(f"shuffle-{level}" for level in range(1, 6))]
    for model, losses in published["losses"].items():
        for control, theirs in zip(controls, losses, strict=True):
            of = rows.filter(model=model, control=control)
            if len(of):
                found.append((model, control, "loss", None, of["mean_loss"][0], theirs, None))
    columns = ["model", "control", "what", "hidden_state", "ours", "theirs", "z"]
    table = pl.DataFrame(found, schema=columns, orient="row", schema_overrides={"z": pl.Float64})
    return table.with_columns(difference=pl.col("ours") - pl.col("theirs")).select(*columns[:-1], "difference", "z")


def _of_profile(rows: pl.DataFrame, profile: Mapping[str, Any], n_theirs: int) -> Iterator[tuple]:
    """Yield the rows of one profile: blocks but for the last, and in its place the final norm."""
    keys = {key: profile[key] for key in ("model", "control", "estimator")}
    of = rows.filter(**keys)
    if not len(of):
        return
    states = pl.concat([of.filter(module="block").sort("layer").head(-1), of.filter(module="unemb")])
    if len(states) != len(profile["mean"]):
        raise ConfigError(
            f"{keys['model']}: {len(profile['mean'])} hidden states are published, found {len(states)}; take the model "
            "and the layers that the protocol names"
        )
    for number, (row, theirs) in enumerate(zip(states.iter_rows(named=True), profile["mean"], strict=True), 1):
        n_ours, z = row["n_contexts"] - row["n_failed"], None
        if row["mean"] is not None and row["sd"]:
            z = (row["mean"] - theirs) / (row["sd"] * math.sqrt(1 / n_ours + 1 / n_theirs))
        yield (*keys.values(), number, row["mean"], theirs, z)


def report(table: pl.DataFrame) -> str:
    """Return the comparison as text, and a line on each profile."""
    lines = []
    for (model, control, what), part in table.group_by("model", "control", "what", maintain_order=True):
        differences, z = part["difference"].drop_nulls(), part["z"].drop_nulls()
        largest = cast("float", differences.abs().max())  # None where there is none
        said = f"largest difference {largest:.2f}" if len(differences) else "no estimate of ours"
        said += f", {(z.abs() > 2).sum()} of {len(z)} beyond two standard errors" if len(z) else ""
        lines.append(f"{model} · {control} · {what}: {said}")
        if what != "loss":
            lines.append(f"  {'hidden state':>12}{'ours':>9}{'theirs':>9}{'difference':>12}{'z':>7}")
        for row in part.iter_rows(named=True):
            state = "" if row["hidden_state"] is None else row["hidden_state"]
            numbers = f"{_cell(row['ours'], 2):>9}{row['theirs']:>9.2f}{_cell(row['difference'], 2):>12}"
            lines.append(f"  {state:>12}{numbers}{_cell(row['z'], 1):>7}")
    return "\n".join(lines)


def _cell(number: float | None, n_digits: int) -> str:
    """Return a number as text, a dash where there is none."""
    return "–" if number is None else f"{number:.{n_digits}f}"


def reproduce(path: Path, said: Mapping, models: list[str] | None, profile: str, is_run: bool) -> str:
    """Run a protocol, unless it was run before, and return ours beside theirs."""
    study, published = read_reproduction(path, said, models)
    if is_run:
        run(study, profile)
    return report(compared(load_summary(study.session), published))
