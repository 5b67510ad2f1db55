"""A batch of estimates: side by side, each kept as soon as it is finished, whatever happens to the others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from conftest import ROOT, study
from verbs import Session

from id_scaling.cli.main import main
from id_scaling.storage.staging import clear_staging, publish

TABLES = [(module, estimator) for module in ("block", "mlp") for estimator in ("mle", "mind_ml", "mle_harmonic")]
DISTURBED = ROOT / "tests" / "workflow" / "disturbed_estimates"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, text_folder: Path) -> Session:
    """A run that is extracted."""
    estimators = sorted({estimator for _, estimator in TABLES})
    config = study(tiny_llama, text_folder, cacheing_config__save_IDs_list=estimators)
    return Session(tmp_path_factory.mktemp("session"), config)


class Batch:
    """Batches of the run in a folder of their own, whose estimates can be disturbed."""

    def __init__(self, session: Session, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.session, self.folder, self.monkeypatch = session, folder, monkeypatch
        source = Path(session.paths["manifest"]).parent
        shutil.copytree(source, folder / "run")
        self.manifest, self.staging, self.trace = folder / "run/manifest.json", folder / "run/staged", folder / "trace"
        monkeypatch.syspath_prepend(DISTURBED)
        monkeypatch.setenv("ESTIMATE_TRACE", str(self.trace))
        monkeypatch.setenv("ESTIMATE_MENDED", str(folder / "mended"))

    def disturb(self, name: str, how: str) -> None:
        """Have one estimate end badly until `mend`."""
        self.monkeypatch.setenv("ESTIMATE_DISTURBED", name)
        self.monkeypatch.setenv("ESTIMATE_HOW", how)

    def mend(self) -> None:
        """Have all estimates end well."""
        (self.folder / "mended").touch()

    def command(self, n_threads: int = 2) -> list[str]:
        """Return the arguments of the batch of all tables."""
        settings = self.session.study.batch_settings(self.session.run, TABLES)
        execution = json.dumps({"n_threads": n_threads, "n_each": 1, "is_forced": False})
        paths = ["--manifest", str(self.manifest), "--logs", str(self.folder / "logs")]
        named = ["--settings", settings, "--execution", execution, *paths]
        return ["estimate-batch", *named, "--output", str(self.staging / "done")]

    def run(self, n_threads: int = 2) -> int:
        """Run the batch of all tables; return its exit status."""
        return main(self.command(n_threads))

    def computed(self) -> list[str]:
        """Return which tables were computed since this was asked last."""
        lines = self.trace.read_text().splitlines() if self.trace.is_file() else []
        self.trace.unlink(missing_ok=True)
        return sorted(line.split()[0] for line in lines)

    def staged(self) -> dict[str, Path]:
        """Return the tables that wait, by name."""
        paths = self.staging.glob("*/*.parquet")
        return {f"{path.parent.name}/{path.stem.rpartition('-')[0]}": path for path in paths}


@pytest.fixture
def batch(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Batch:
    """A batch of the run that is yet to be run."""
    return Batch(session, tmp_path, monkeypatch)


ALL = sorted(f"{module}/{estimator}" for module, estimator in TABLES)


def test_tables_and_logs_are_those_of_single_jobs(batch: Batch, tmp_path: Path):
    assert batch.run() == 0
    assert batch.computed() == ALL
    for module, estimator in TABLES:
        single = tmp_path / "single" / f"{estimator}.parquet"
        assert main(batch.session.estimate(module, estimator, single)) == 0
        staged = batch.staged()[f"{module}/{estimator}"]
        assert pl.read_parquet(staged).equals(pl.read_parquet(single), null_equal=True)
        facts = [pl.read_parquet_metadata(path)["id_scaling"] for path in (staged, single)]
        assert facts[0] == facts[1]
        first, *_, last = staged.with_suffix(".log").read_text().splitlines()
        assert {"estimate", f"module={module}", f"estimator={estimator}"} <= set(first.split())
        assert f"wrote {batch.manifest.parent}/ids/{module}/{estimator}.parquet (" in last


@pytest.mark.parametrize(("how", "words"), [("fails", "RuntimeError: mlp/mle fails for a test"), ("dies", "killed")])
def test_an_estimate_that_fails_stops_no_other_and_is_computed_next(
    batch: Batch, capfd: pytest.CaptureFixture, how: str, words: str
):
    batch.disturb("mlp/mle", how)
    assert batch.run() == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: 1 of 6 tables failed: mlp/mle: ")
    assert words in error
    assert words in (batch.folder / "logs" / "mlp" / "mle.log").read_text()
    others = [name for name in ALL if name != "mlp/mle"]
    assert (batch.computed(), sorted(batch.staged())) == (others, others)
    assert not (batch.staging / "done").exists()
    batch.mend()
    assert batch.run() == 0
    assert batch.computed() == ["mlp/mle"]
    assert (batch.staging / "done").is_file()


def damaged(batch: Batch) -> list[str]:
    """One byte of a staged table is flipped."""
    path = batch.staged()["block/mle"]
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    return ["block/mle"]


def extracted_again(batch: Batch) -> list[str]:
    """The manifest is that of another extraction."""
    batch.manifest.write_bytes(batch.manifest.read_bytes())
    (batch.staging / "manifest.json").write_text("{}")
    return ALL


def undisturbed(batch: Batch) -> list[str]:
    """Nothing happens; another batch died meanwhile and left half a table."""
    (batch.staging / "mlp" / ".mle.parquet.tmp-1").touch()
    return []


@pytest.mark.parametrize("disturb", [undisturbed, damaged, extracted_again])
def test_what_is_staged_is_used_where_it_is_whole_and_of_this_manifest(batch: Batch, disturb: Callable):
    assert batch.run() == 0
    batch.computed()
    expected = disturb(batch)
    assert batch.run() == 0
    assert batch.computed() == expected
    assert sorted(batch.staged()) == ALL
    assert not list(batch.staging.rglob("*.tmp-*"))


def test_a_declared_table_is_used_where_it_is_what_would_be_computed(batch: Batch):
    """Snakemake deletes declared outputs before it links: of one that is right there must be a second name."""
    assert batch.run() == 0
    batch.computed()
    for name, path in batch.staged().items():
        declared = batch.manifest.parent / "ids" / f"{name}.parquet"
        assert publish(path, declared, batch.manifest)
    assert batch.staged() == {}
    clear_staging(batch.staging)
    assert not batch.staging.exists()
    # One is another's, so it has other settings.
    ids = batch.manifest.parent / "ids"
    shutil.copyfile(ids / "mlp/mle.parquet", ids / "block/mle.parquet")
    assert batch.run() == 0
    assert batch.computed() == ["block/mle"]
    assert sorted(batch.staged()) == ALL


def test_a_table_of_another_manifest_is_not_published(batch: Batch):
    assert batch.run() == 0
    path = batch.staged()["mlp/mle"]
    other = batch.folder / "other.json"
    other.write_text("{}")
    assert not publish(path, batch.folder / "ids.parquet", other)
    assert path.is_file()
    assert not (batch.folder / "ids.parquet").exists()


def test_estimates_run_side_by_side_on_as_many_cores_as_there_are(batch: Batch):
    batch.monkeypatch.setenv("ESTIMATE_SECONDS", "2")
    assert batch.run(n_threads=6) == 0
    rows = [line.split() for line in batch.trace.read_text().splitlines()]
    starts, ends = zip(*((float(start), float(end)) for _, start, end in rows), strict=True)
    assert max(starts) < min(ends)


def test_a_batch_that_is_asked_to_end_ends_with_its_processes_and_keeps_what_is_finished(batch: Batch):
    batch.disturb("mlp/mle", "hangs")
    process = subprocess.Popen(
        [sys.executable, "-m", "id_scaling", *batch.command()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 120
    while len(batch.staged()) < len(ALL) - 1:
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    # The pipe is closed once no process of the batch holds it.
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "ended: the system asked for it" in errors
    assert len(batch.staged()) == len(ALL) - 1
    assert not (batch.staging / ".lease").exists()
