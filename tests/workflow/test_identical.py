"""Two checkpoints of the same weights: a copy that was meant to be another step."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from conftest import Workflow, save_tiny_llama, study

STEPS = ("step1", "step2")


def test_checkpoints_of_the_same_weights_are_an_error_unless_allowed(
    tmp_path: Path, tiny_llama: Path, text_folder: Path
) -> None:
    for step in STEPS:
        shutil.copytree(tiny_llama, tmp_path / "model" / step)
    config = study(Path("./model"), text_folder, model_config__model_checkpoint=list(STEPS))
    config["model_config"]["model_name"] = "./model"
    workflow = Workflow(tmp_path, config)

    output = workflow.run("--until", "fetch_model", is_ok=False)
    said = re.search(r"model at (step[12]): its weights are, to the last bit, those of .*model at (step[12]); ", output)
    second, first = said.groups()
    assert {first, second} == set(STEPS)
    assert "set allow_identical_checkpoints: true" in output
    assert "Traceback" not in output
    # Without its identity, which the job takes as input, nothing is extracted.
    (identity,) = workflow.session.glob("models/*/*/identity.json")
    assert identity.parent.name == first

    # What the others are makes nothing of a checkpoint stale, and neither does the key.
    made = identity.stat().st_mtime_ns
    save_tiny_llama(tmp_path / "model" / "step3", seed=1)
    workflow.config["model_config"]["model_checkpoint"] = [first, "step3"]
    workflow.write()
    assert workflow.planned("--until", "fetch_model") == {"fetch_model": 1}
    workflow.config["model_config"]["model_checkpoint"] = [*STEPS, "step3"]
    workflow.config["allow_identical_checkpoints"] = True
    workflow.write()
    workflow.run("--until", "fetch_model")
    assert len(list(workflow.session.glob("models/*/*/identity.json"))) == 3
    assert identity.stat().st_mtime_ns == made

    # What was fetched while it was allowed is an error again, now before any job.
    workflow.config["allow_identical_checkpoints"] = False
    workflow.write()
    output = workflow.run("--dry-run", is_ok=False)
    assert "its weights are, to the last bit, those of" in output
    assert "rule " not in output
