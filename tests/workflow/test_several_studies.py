"""Two studies as modules of one Snakefile: planned without ambiguity, prepared once, each with its own session."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Workflow, study

SNAKEFILE = """
import yaml

module short:
    snakefile: "{workflow}"
    config: yaml.safe_load(open("short.yaml"))

module long:
    snakefile: "{workflow}"
    config: yaml.safe_load(open("long.yaml"))

use rule * from short as short_*
use rule * from long as long_*

rule both:
    default_target: True
    input:
        rules.short_all.input,
        rules.long_all.input,

onstart:
    short.onstart()
    long.onstart()

onsuccess:
    short.onsuccess()
    long.onsuccess()

onerror:
    short.onerror()
    long.onerror()
"""


class TwoStudies(Workflow):
    """A folder with a Snakefile of its own, in which two studies are modules."""

    def __init__(self, folder: Path, **configs: dict) -> None:
        self.folder, self.root = folder, ROOT
        (folder / "Snakefile").write_text(SNAKEFILE.format(workflow=ROOT / "workflow" / "Snakefile"))
        for name, config in configs.items():
            (folder / f"{name}.yaml").write_text(yaml.safe_dump({**config, "session_name": name}))

    def command(self, *arguments: str) -> list[str]:
        snakemake = str(Path(sys.executable).parent / "snakemake")
        return [snakemake, "--directory", str(self.folder), "--snakefile", str(self.folder / "Snakefile"),
                "--profile", str(ROOT / "profiles" / "local"), *self.options, *arguments]  # fmt: skip


def test_bundled_models_and_texts_are_prepared_once(tmp_path: Path):
    config = yaml.safe_load((ROOT / "config" / "training.yaml").read_text())
    planned = TwoStudies(tmp_path, short=config, long=config).planned()
    prepared = {rule: count for rule, count in planned.items() if re.search("prepare|train", rule)}
    assert prepared == {"short_prepare_dataset": 1, "short_train_tokenizer": 1, "short_train_model": 3}
    assert planned["short_extract_activations"] == planned["long_extract_activations"] > 1


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, text_folder: Path) -> TwoStudies:
    """Two studies that differ in the length of contexts, run to their ends."""
    config = study(tiny_llama, text_folder, cacheing_config__save_IDs_list=["mle"])
    two = TwoStudies(tmp_path_factory.mktemp("two"), short={**config, "ctx_len": 32}, long={**config, "ctx_len": 64})
    two.output = two.run()
    return two


def test_each_has_its_own_session(two: TwoStudies):
    for name, length in (("short", 32), ("long", 64)):
        assert f"table:  results/{name}/summary.parquet" in two.output
        assert {path.name for path in (two.folder / f"results/{name}").glob("runs/*/*/*/*/*")} == {str(length)}
    assert two.planned() == {}
    assert "not present in the Snakefile" not in two.output  # rules that are to run here, under other names


def test_a_batch_of_one_is_planned_by_its_own_tables(two: TwoStudies):
    table = next((two.folder / "results/short").glob("runs/*/*/*/*/*/*/ids/block/mle.parquet"))
    table.unlink()
    assert two.planned() == {
        "short_estimate_batch": 1, "short_estimate_dimension": 1, "short_summarize": 1, "short_plot": 1, "both": 1
    }  # fmt: skip
    two.run()
    assert table.is_file()
    assert two.planned() == {}


def test_a_rule_is_forced_by_the_name_that_it_has_in_the_snakefile(two: TwoStudies):
    planned = two.planned("--forcerun", "long_summarize")
    assert {"long_summarize", "long_plot"} <= planned.keys()
    assert not {"short_summarize", "long_estimate_dimension"} & planned.keys()


def test_each_session_is_held_while_both_run(two: TwoStudies):
    from id_scaling.runtime.locks import hold_session

    lease = hold_session(two.folder / "results/long")
    try:
        done = subprocess.run(
            two.command("--forcerun", "short_summarize"), capture_output=True, text=True, env=two.environment()
        )
    finally:
        lease.release()
    assert done.returncode != 0
    assert "results/long: process" in done.stdout + done.stderr
