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
    assert [path.parent.name for path in workflow.session.glob("models/*/*/identity.json")] == [first]

    workflow.config["allow_identical_checkpoints"] = True
    workflow.write()
    workflow.run("--until", "fetch_model")
    # Neither a third checkpoint nor the key makes anything of the others stale.
    save_tiny_llama(tmp_path / "model" / "step3", seed=1)
    workflow.config["model_config"]["model_checkpoint"] = [*STEPS, "step3"]
    workflow.write()
    planned = workflow.planned("extract_all")
    assert (planned["fetch_model"], planned["extract_activations"]) == (1, 3)

    # What was fetched while it was allowed is an error again, now before any job.
    workflow.config["allow_identical_checkpoints"] = False
    workflow.write()
    output = workflow.run("--dry-run", is_ok=False)
    assert "its weights are, to the last bit, those of" in output
    assert "rule " not in output
