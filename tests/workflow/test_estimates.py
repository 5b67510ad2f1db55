"""Estimates under Snakemake: which tables are computed, whatever is asked for, fails or was there before."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest
from conftest import Workflow, study
from slurm_workflow import DISTURBED

MODULES, ESTIMATORS = ["block", "mlp"], ["mle", "mind_ml", "mle_harmonic"]
ALL = sorted(f"{module}/{estimator}" for module in MODULES for estimator in ESTIMATORS)


class Estimates(Workflow):
    """A study whose estimates are written down, and can be disturbed."""

    disturbed = ""

    def environment(self) -> dict[str, str]:
        """Return the environment, with what watches the estimates."""
        environment = super().environment()
        return {
            **environment,
            "PYTHONPATH": f"{DISTURBED}:{environment['PYTHONPATH']}",
            "ESTIMATE_TRACE": str(self.folder / "trace"),
            "ESTIMATE_DISTURBED": self.disturbed,
            "ESTIMATE_HOW": "fails",
            "ESTIMATE_MENDED": str(self.folder / "mended"),
        }

    def computed(self) -> list[str]:
        """Return which tables were computed since this was asked last."""
        trace = self.folder / "trace"
        lines = trace.read_text().splitlines() if trace.is_file() else []
        trace.unlink(missing_ok=True)
        return sorted(line.split()[0] for line in lines)

    def tables(self) -> list[str]:
        """Return which tables are declared and there."""
        return sorted(f"{path.parent.name}/{path.stem}" for path in self.session.glob("runs/*/*/*/*/*/*/ids/*/*"))

    def table(self, name: str) -> Path:
        """Return the declared table of a name."""
        (run,) = self.session.glob("runs/*/*/*/*/*/*")
        return run / "ids" / f"{name}.parquet"


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, text_folder: Path) -> Estimates:
    """One run, extracted; not to be changed."""
    cacheing = {"module_inblock_keys": MODULES, "module_outblock_keys": [], "save_IDs_list": ESTIMATORS[:2]}
    config = study(tiny_llama, text_folder)
    config["cacheing_config"] |= cacheing
    workflow = Estimates(tmp_path_factory.mktemp("extracted"), config)
    workflow.run("extract_all")
    workflow.config["cacheing_config"]["save_IDs_list"] = ESTIMATORS
    return workflow


@pytest.fixture
def workflow(extracted: Estimates, tmp_path: Path) -> Estimates:
    """The run in a folder of its own."""
    return Estimates(shutil.copytree(extracted.folder, tmp_path / "copy"), extracted.config)


def n_left(workflow: Estimates) -> int:
    """Return how many files the estimates left that are no outputs."""
    return len([*workflow.session.glob("runs/*/*/*/*/*/*/staged"), *workflow.session.glob(".planned*")])


def test_each_table_is_computed_once_and_then_fresh(workflow: Estimates):
    assert workflow.planned("estimate_all") == {"estimate_dimension": 6}
    workflow.run("estimate_all")
    assert (workflow.computed(), workflow.tables(), n_left(workflow)) == (ALL, ALL, 0)
    assert workflow.planned("estimate_all") == {}
    logs = workflow.session.glob("logs/estimate_dimension/*/*/*/*/*/*/*/*.log")
    assert sorted(f"{log.parent.name}/{log.stem}" for log in logs) == ALL


def test_one_table_asked_for_is_computed_only(workflow: Estimates):
    workflow.run(str(workflow.table("mlp/mle").relative_to(workflow.folder)))
    assert (workflow.computed(), workflow.tables()) == (["mlp/mle"], ["mlp/mle"])
    workflow.run("estimate_all")
    assert workflow.computed() == [name for name in ALL if name != "mlp/mle"]


def test_an_estimator_added_is_computed_only(workflow: Estimates):
    workflow.config = {**workflow.config, "cacheing_config": {**workflow.config["cacheing_config"]}}
    workflow.config["cacheing_config"]["save_IDs_list"] = ESTIMATORS[:2]
    workflow.write()
    workflow.run("estimate_all")
    workflow.computed()
    workflow.config["cacheing_config"]["save_IDs_list"] = ESTIMATORS
    workflow.write()
    assert workflow.planned("estimate_all") == {"estimate_dimension": 2}
    workflow.run("estimate_all")
    assert workflow.computed() == ["block/mle_harmonic", "mlp/mle_harmonic"]
    assert workflow.tables() == ALL


def test_forced_tables_are_computed_again(workflow: Estimates):
    workflow.run("estimate_all")
    workflow.computed()
    before = pl.read_parquet(workflow.table("mlp/mle"))
    workflow.run("estimate_all", "--forcerun", "estimate_dimension")
    assert (workflow.computed(), workflow.tables(), n_left(workflow)) == (ALL, ALL, 0)
    assert pl.read_parquet(workflow.table("mlp/mle")).equals(before, null_equal=True)
    name = str(workflow.table("mlp/mle").relative_to(workflow.folder))
    workflow.run(name, "--forcerun", name)
    assert workflow.computed() == ["mlp/mle"]


def test_an_estimate_that_fails_costs_its_table_only(workflow: Estimates):
    """Others are declared although none of them was linked; the next run computes what failed."""
    workflow.disturbed = "mlp/mle"
    output = workflow.run("estimate_all", is_ok=False)
    assert "1 of 6 tables failed: mlp/mle: RuntimeError: mlp/mle fails for a test" in output
    others = [name for name in ALL if name != "mlp/mle"]
    assert (workflow.computed(), workflow.tables(), n_left(workflow)) == (others, others, 0)
    assert workflow.planned("estimate_all") == {"estimate_dimension": 1}
    (workflow.folder / "mended").touch()
    workflow.run("estimate_all")
    assert (workflow.computed(), workflow.tables()) == (["mlp/mle"], ALL)


def test_a_table_that_no_batch_left_is_computed_by_its_own_job(workflow: Estimates):
    """As after a kill between a batch and its links, with another configuration since."""
    (run,) = workflow.session.glob("runs/*/*/*/*/*/*")
    (run / "staged").mkdir()
    (run / "staged" / "done").touch()
    workflow.run("estimate_all")
    assert (workflow.computed(), workflow.tables(), n_left(workflow)) == (ALL, ALL, 0)
