"""A GPU that runs out of memory: the batch is halved, the log says so, and the numbers are those of a smaller batch."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import Workflow, study

from id_scaling.cli import job_commands
from id_scaling.errors import ResourceError
from id_scaling.extraction import compute
from id_scaling.storage.records import read_record
from id_scaling.study.study import Study


@pytest.fixture
def extracted(tmp_path: Path, tiny_llama: Path, text_folder: Path) -> Workflow:
    """A study with its extraction done, four contexts at once."""
    workflow = Workflow(tmp_path, study(tiny_llama, text_folder, batch_size=4))
    workflow.run("extract_all")
    return workflow


def extract_again(workflow: Workflow, output: Path, monkeypatch: pytest.MonkeyPatch, n_at_once: int) -> None:
    """Extract the same run into another folder, with a model that takes no more than so many contexts at once."""
    forward = compute.last_hidden

    def limited(model: torch.nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
        if len(input_ids) > n_at_once:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return forward(model, input_ids)

    monkeypatch.setattr(compute, "last_hidden", limited)
    monkeypatch.chdir(workflow.folder)
    monkeypatch.setattr(compute.LOG, "propagate", True)
    jobs = Study(workflow.config)
    (run,) = jobs.runs
    job_commands.extract(
        argparse.Namespace(
            settings=json.loads(jobs.extract_settings(run)),
            execution=json.loads(jobs.extract_execution(run.model)),
            threads=1,
            contexts=next(workflow.session.glob("contexts/*/*/*/*/*/contexts.parquet")),
            model=next(workflow.session.glob("models/*/*/identity.json")),
            weights=None,
            output=output / "manifest.json",
        )
    )


def test_the_batch_is_halved_until_it_fits(extracted: Workflow, tmp_path: Path, monkeypatch, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="id_scaling"):
        extract_again(extracted, tmp_path / "again", monkeypatch, n_at_once=1)
    said = [record.message for record in caplog.records if "do not fit" in record.message]
    assert [words.split()[0] for words in said] == ["4", "2"]  # and then every batch is of one
    assert said[0].endswith("(CUDA out of memory): on with 2")
    (folder,) = (path.parent for path in extracted.session.rglob("manifest.json"))
    for name in read_record(folder / "manifest.json")["files"]:
        with h5py.File(folder / name) as whole, h5py.File(tmp_path / "again" / name) as halved:
            for array in arrays_of(whole):
                np.testing.assert_allclose(halved[array][:], whole[array][:], rtol=1e-5, atol=1e-5)  # what is promised


def arrays_of(file: h5py.File) -> list[str]:
    """Return the neighbors in a layer file, or the losses and entropies in that of tokens."""
    tokens = [name for name in ("loss", "entropy") if name in file]
    return tokens or [f"{module}/default/{array}" for module in file for array in ("r1", "log_ratio")]


def test_one_context_too_many_is_one_clear_error(extracted: Workflow, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ResourceError, match=r"one context does not fit in the GPU's memory .* use_accelerator: true"):
        extract_again(extracted, tmp_path / "again", monkeypatch, n_at_once=0)
