"""What a dry run costs beside one of the same jobs in a Snakefile with nothing else in it.

`python -m tests.benchmarks.dry_run [--checkpoints N ...] [--rounds N]` cuts the study of `config/pythia.yaml` to some
checkpoints of each model and plans it, ours and bare in turns, with nothing built and with everything built. Printed
are seconds and peak memory, the ratio by time on the clock and of the processor (median and least of the rounds), what
a job costs more with us, and how many submissions the Slurm profile makes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import polars as pl
import yaml

from id_scaling.runtime.atomic_files import sha256
from id_scaling.sources.model_config import Architecture
from id_scaling.storage.records import key_of, read_footer, write_record, write_table
from id_scaling.study.jobs import jobs_of
from id_scaling.study.staleness import Staleness
from id_scaling.study.study import Study

ROOT = Path(__file__).parents[2]
BARE = Path(__file__).with_name("bare.smk")
# What `snakemake` does but for a wait of 0.1 s that `--touch` makes for each job, half an hour for 17,000.
SNAKEMAKE = (
    "import sys; from snakemake import cli; from snakemake.executors import touch; touch.Executor.SLEEPING_TIME = 0; "
    "cli.main(sys.argv[1:])"
)
EMPTY = pl.DataFrame({"value": [0.0]})
# What the check before any job reads of a checkpoint that was fetched.
FETCHED = {
    "architecture": asdict(Architecture("gpt_neox", 6, 512, 50304, 2048)),
    "model_name": "a model",
    "checkpoint": "main",
    "commit": "0" * 40,
    "path": "/not/on/this/machine",
    "is_pickled": False,
    "source_sha256": None,
}
# What contexts say of themselves.
CUT = {"tokens_sha256": "of tokens", "documents_sha256": "of documents", "n_records": 1, "n_broken": 0}


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock, seconds of the processor and peak MB of one process."""

    wall: float
    processor: float
    megabytes: float


@dataclass(frozen=True)
class Side:
    """A workflow in a folder of its own."""

    folder: Path
    snakefile: Path
    options: tuple[str, ...]

    def command(self, *arguments: str) -> list[str]:
        """Return the command that runs Snakemake on it."""
        places = ["--snakefile", str(self.snakefile), "--directory", str(self.folder), "--cores", "2"]
        return [sys.executable, "-c", SNAKEMAKE, *places, *self.options, *arguments]

    def run(self, *arguments: str) -> str:
        """Return what Snakemake says."""
        return _output(self.command(*arguments))[0]

    def dry_run(self, words: str) -> Cost:
        """Return the cost of a dry run, which must say `words`."""
        output, cost = _output(self.command("--dry-run", "--quiet", "rules"))
        if not re.search(words, output):
            raise RuntimeError(f"expected {words!r}:\n{output[-2000:]}")
        return cost

    def touch(self) -> None:
        """Make every output a small file, and the notes of Snakemake as after a run."""
        listed = self.run("--summary").splitlines()
        names = [line.split("\t")[0] for line in listed if line.count("\t") > 3][1:]
        for path in (self.folder / name for name in names):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.name == "done":
                continue  # gone once it is used
            if "/weights/" in str(path):
                path.mkdir()
            else:
                path.touch()
        self.run("--touch", "--forceall", "--quiet", "all")


def main() -> None:
    """Print a table of costs against the number of jobs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=int, nargs="+", default=[9, 45, 154], help="of each of the 8 models")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print("  jobs  submissions  built     ours s      MB  bare s      MB  ratio, clock   processor   ms more a job")
    for n_checkpoints in arguments.checkpoints:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), n_checkpoints, arguments.rounds)


def measure(folder: Path, n_checkpoints: int, n_rounds: int) -> None:
    """Print the rows of one number of checkpoints."""
    config = _cut(folder, n_checkpoints)
    ours, bare, on_slurm = sides(folder, config)
    planned = on_slurm.run("--dry-run")
    n_submissions = len(re.findall(r"Group job |^rule (?!fetch_|all:)\w+:$", planned, flags=re.MULTILINE))
    n_jobs = int(re.search(r"^total\s+(\d+)$", ours.run("--dry-run", "--quiet", "rules"), flags=re.MULTILINE)[1])
    for built, words in (("nothing", rf"total\s+{n_jobs}\b"), ("all", "Nothing to be done")):
        if built == "all":
            build(ours.folder, config)
            bare.touch()
        pairs = [(ours.dry_run(words), bare.dry_run(words)) for _ in range(n_rounds)]
        print(f"{n_jobs:6}  {n_submissions:11}  {built:7}  {row(pairs, n_jobs)}", flush=True)


class _Builder(Staleness):
    """Makes every output of a study instead of comparing it: a small file with the record that it would have."""

    def _compare(self, rule, outputs, read, settings, made_from, upstream) -> str:
        """Write the outputs of one job; return the key of them."""
        record = {"settings": json.loads(settings), "made_from": made_from, "files": {}, "digest": "made"}
        for output in outputs:
            output.parent.mkdir(parents=True, exist_ok=True)
            if not output.is_file():
                output.write_text("made")
        if rule == "summarize":
            write_table(outputs[0], EMPTY, {**record["settings"], "made_from": made_from})
        elif outputs[0].suffix == ".parquet":
            write_table(outputs[0], EMPTY, {**record, **CUT, "manifest": "made"})
            self._seals += [read_footer(outputs[0])[1]] if rule == "estimate_dimension" else []
        elif rule == "plot":
            write_record(outputs[0], {**record, "summary": sha256(self.session / "summary.parquet")})
        elif outputs[0].name == "manifest.json":
            write_record(outputs[0], record)
            write_table(outputs[1], EMPTY, {"digest": record["digest"]})
        self.fresh.add(str(outputs[0]))
        return key_of(record)


def build(folder: Path, config: Path) -> None:
    """Make every output of a study whose models, tokenizers and texts are the hub's, and were fetched."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        study = Study(yaml.safe_load(config.read_text()))
        settings_of = {
            "fetch_model": study.fetch_model_settings,
            "fetch_tokenizer": study.fetch_tokenizer_settings,
            "fetch_dataset": study.fetch_dataset_settings,
        }
        for job in jobs_of(study, *settings_of):
            (path,), settings = job.outputs, settings_of[job.rule](**job.wildcards)
            content = {name: str(path) for name in ("weights_sha256", "config_sha256", "sha256")}
            write_record(path, {**FETCHED, **content, "settings": json.loads(settings)})
        _Builder(study)
    finally:
        os.chdir(before)


def sides(folder: Path, config: Path) -> tuple[Side, Side, Side]:
    """Return ours, the bare one, and ours as it would be submitted."""
    named = ("--configfile", str(config))
    ours, bare, on_slurm = folder / "ours", folder / "bare", folder / "slurm"
    for path in (ours, bare, on_slurm):
        path.mkdir()
    profiles = ROOT / "profiles"
    return (
        Side(ours, ROOT / "Snakefile", (*named, "--profile", str(profiles / "local"))),
        Side(bare, BARE, named),
        Side(on_slurm, ROOT / "Snakefile", (*named, "--profile", str(profiles / "slurm"))),
    )


def row(pairs: list[tuple[Cost, Cost]], n_jobs: int) -> str:
    """Return what some rounds of ours and the bare one say."""
    clock = [ours.wall / bare.wall for ours, bare in pairs]
    processor = [ours.processor / bare.processor for ours, bare in pairs]
    more = median(ours.processor - bare.processor for ours, bare in pairs) / n_jobs
    shown = [
        f"{median(one.wall for one in side):8.1f}  {max(one.megabytes for one in side):6.0f}"
        for side in zip(*pairs, strict=True)
    ]
    return (
        f"{''.join(shown)}     {median(clock):.2f} ({min(clock):.2f}) {median(processor):.2f} ({min(processor):.2f})  "
        f"{1e3 * more:13.2f}"
    )


def _output(command: list[str]) -> tuple[str, Cost]:
    """Return what a process says, and its cost; it must succeed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as run:
        output = run.stdout.read()
        _, status, used = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
    if run.returncode:
        raise RuntimeError(output[-4000:])
    # Linux counts peak memory in units of 1024 bytes.
    return output, Cost(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6)


def _cut(folder: Path, n_checkpoints: int) -> Path:
    """Write the study of Pythia with the first so many checkpoints of each model."""
    config = yaml.safe_load((ROOT / "config" / "pythia.yaml").read_text())
    for model in config["model_config"]:
        model["model_checkpoint"] = model["model_checkpoint"][:n_checkpoints]
    # Weights that go after their use cannot be there when everything is built.
    config["keep_weights"] = True
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


if __name__ == "__main__":
    main()
