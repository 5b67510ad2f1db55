"""Weights of the hub: on the disk for as long as they are needed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from conftest import Workflow, save_tiny_llama, study
from hub_server import Hub, environment, files_of

STEPS = ["step1", "step2", "step3"]


class OnHub(Workflow):
    """A workflow for which the hub is a given one."""

    hub: Hub

    def environment(self) -> dict[str, str]:
        """Return the environment of the workflow."""
        return environment(self.hub, self.folder)

    def n_downloads(self) -> int:
        """Return how often weights were downloaded so far."""
        return self.hub.downloads().count("model.safetensors")


@pytest.fixture
def workflow(tmp_path: Path, text_folder: Path) -> Iterator[OnHub]:
    """A study of three steps of a model of the hub."""
    config = study(Path("owner/model"), text_folder, model_config__model_checkpoint=STEPS)
    config["cacheing_config"] |= {
        "module_inblock_keys": ["mlp"],
        "module_outblock_keys": [],
        "save_IDs_list": ["mle"],
    }
    made = OnHub(tmp_path, config)
    with Hub() as made.hub:
        repository = made.hub.repository("owner/model")
        for seed, step in enumerate(STEPS):
            repository.commit(files_of(save_tiny_llama(tmp_path / "saved" / step, seed)), branch=step)
        repository.commit(files_of(tmp_path / "saved" / "step3"))
        yield made


def test_weights_come_when_nothing_is_left_to_extract_and_go_after_their_last_use(workflow: OnHub) -> None:
    workflow.run()
    (log,) = (workflow.folder / ".snakemake" / "log").glob("*.log")
    said = log.read_text()
    finished = re.findall(r"Finished jobid: \d+ \(Rule: (fetch_weights|extract_activations)\)", said)
    assert finished == ["fetch_weights", "extract_activations"] * 3
    assert not list(workflow.session.glob("weights/*/*/*/*/*/*"))
    assert not list(workflow.folder.glob("hf/**/*.safetensors"))
    assert set(pl.read_parquet(workflow.session / "summary.parquet")["checkpoint"]) == set(STEPS)
    assert (workflow.planned(), workflow.n_downloads()) == ({}, 3)

    # Another shard needs them again; what is extracted stays as it is.
    workflow.config["dataset_config"]["dataset_subset"] = [0, 1]
    workflow.write()
    planned = workflow.planned()
    assert {rule: planned[rule] for rule in ("fetch_weights", "extract_activations")} == {
        "fetch_weights": 3,
        "extract_activations": 3,
    }
    assert "fetch_model" not in planned
    assert planned["estimate_dimension"] == 3

    # Those that are kept are links to the cache.
    workflow.config["dataset_config"]["dataset_subset"] = [1]
    workflow.config["keep_weights"] = True
    workflow.write()
    workflow.run()
    assert workflow.planned() == {}
    workflow.config["dataset_config"]["dataset_subset"] = [0, 1]
    workflow.write()
    workflow.run()
    # What the first shard gave is not made again for the second.
    assert workflow.planned() == {}
    kept = list(workflow.session.glob("weights/**/model.safetensors"))
    assert len(kept) == 3
    assert all(path.is_symlink() for path in kept)
    assert workflow.n_downloads() == 6
