"""What Snakemake plans and runs, by the records in the outputs; `unit/study/test_stale_outputs.py` has each case."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Workflow, save_text, save_tiny_llama, study

SOURCES = ("Snakefile", "id_scaling", "workflow", "profiles", "config", "environment.yml")
NOTHING: dict[str, int] = {}
TABLES = {"estimate_dimension": 15, "summarize": 1, "plot": 1}
ONE_ESTIMATOR = {**TABLES, "estimate_dimension": 5}
CHAIN = {"extract_activations": 1, **TABLES}


def copy_sources(folder: Path) -> Path:
    """Copy the project's sources, so that a test can edit them."""
    folder.mkdir(parents=True)
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `clone` with the sources, and `work` with a tiny study that has run to its end; not to be changed."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "work").mkdir()
    save_tiny_llama(folder / "work" / "model" / "step0")
    save_text(folder / "work" / "text", n_shards=2)
    config = study(Path("model"), Path("text"))
    config["model_config"] = {"model_name": "./model", "model_checkpoint": ["step0"]}
    config["dataset_config"]["dataset_name"] = "./text"
    Workflow(folder / "work", config, root=copy_sources(folder / "clone")).run()
    return folder


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Workflow:
    """The built study in a copy of its own, times and all: its sources and its configuration may be edited."""
    shutil.copytree(built, tmp_path / "copy", copy_function=shutil.copy2)
    work = tmp_path / "copy" / "work"
    return Workflow(work, yaml.safe_load((work / "study.yaml").read_text()), root=tmp_path / "copy" / "clone")


def set_key(workflow: Workflow, dotted: str, value: Any) -> None:
    """Change one configuration key."""
    *parents, key = dotted.split(".")
    section = workflow.config
    for parent in parents:
        section = section.setdefault(parent, {})
    section[key] = value
    workflow.write()


def change_text(workflow: Workflow) -> None:
    """Change one word of the shard that is read, under an older time."""
    path = workflow.folder / "text" / "00.jsonl"
    before = path.stat()
    path.write_text(path.read_text().replace(" the ", " his ", 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns - 86_400 * 10**9))


def no_notes(workflow: Workflow) -> None:
    """Remove what Snakemake knows of the session."""
    shutil.rmtree(workflow.folder / ".snakemake")


def foreign_notes(workflow: Workflow) -> None:
    """Leave Snakemake what it knows of another study, whose paths are the same."""
    no_notes(workflow)
    other = Workflow(workflow.folder, {**workflow.config, "ctx_len": 48}, workflow.root)
    other.run("--touch")
    workflow.write()


def without_times(workflow: Workflow) -> None:
    """Give every file another time, in another order, some in the future."""
    now = time.time()
    for number, path in enumerate(sorted(path for path in workflow.folder.parent.rglob("*") if path.is_file())):
        os.utime(path, (now - 1000 + 7 * number, now - 1000 + 7 * number))


@pytest.mark.parametrize("change", [no_notes, foreign_notes, without_times], ids=lambda change: change.__name__)
def test_nothing_runs_again_and_then_just_what_changed(copied: Workflow, change) -> None:
    change(copied)
    assert copied.planned() == NOTHING
    set_key(copied, "cacheing_config.save_IDs_list", ["mle", "mind_ml", "twoNN_f10", "mle_harmonic"])
    assert copied.planned() == ONE_ESTIMATOR


def test_comments_and_messages_run_nothing_again(copied: Workflow) -> None:
    """In every package at once; `tests/unit/study/test_fingerprint.py` rewords each module."""
    for path in (copied.root / "id_scaling").rglob("*.py"):
        text = path.read_text()
        path.write_text(text.replace('"""', '"""Reworded: ', 1).replace("raise InputError(f", "raise InputError(f'' f"))
    assert copied.planned() == NOTHING


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("text/chunking.py", {"chunk_dataset": 1, **CHAIN}),
        ("extraction/compute.py", CHAIN),
        ("models/loading.py", CHAIN),
        ("neighbors/search.py", CHAIN),
        ("estimators/twonn.py", ONE_ESTIMATOR),
        ("results/summary.py", {"summarize": 1, "plot": 1}),
        ("plots/style.py", {"plot": 1}),
        ("storage/layer_writer.py", NOTHING),
        ("sources/models.py", NOTHING),
        ("runtime/locks.py", NOTHING),
        ("study/study.py", NOTHING),
        ("cli/job_commands.py", NOTHING),
    ],
)
def test_a_constant_in_a_module_runs_what_it_computes_for(copied: Workflow, file: str, expected: dict) -> None:
    """One module of each package."""
    path = copied.root / "id_scaling" / file
    path.write_text(path.read_text() + "\nADDED = 1\n")
    assert copied.planned() == expected


def test_the_layout_of_a_rules_command_runs_nothing_again(copied: Workflow) -> None:
    """Records decide, also where Snakemake notes another command."""
    for path in (copied.root / "workflow/rules").glob("*.smk"):
        path.write_text(path.read_text().replace("2>&1 | tee", " 2>&1 | tee"))
    assert copied.planned() == NOTHING


def test_each_change_is_made_good_by_one_run(copied: Workflow) -> None:
    """In a session without Snakemake's notes: after each run nothing is planned."""
    no_notes(copied)
    session = copied.session
    (table,) = session.rglob("ids/mlp/mle.parquet")
    (contexts,) = session.rglob("contexts.parquet")
    # A stale table next to contexts that are gone: what was made from these is fresh, and hides nothing behind it.
    contexts.unlink()
    twonn = copied.root / "id_scaling/estimators/twonn.py"
    twonn.write_text(twonn.read_text().replace("(x * x).sum", "(x**2).sum"))
    before = {path: path.stat().st_mtime_ns for path in session.rglob("ids/*/*.parquet")}
    output = copied.run("--dry-run")
    assert (
        "stale: " + str(table.relative_to(copied.folder)).replace("mle", "twoNN_f10") + ": made with other code"
        in output
    )
    assert copied.planned() == {"chunk_dataset": 1, **ONE_ESTIMATOR}
    copied.run()
    changed = {path.stem for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert changed == {"twoNN_f10"}
    assert copied.planned() == NOTHING

    next(session.rglob("layer_01.h5")).unlink()
    table.unlink()
    assert copied.planned() == CHAIN
    copied.run()
    assert copied.planned() == NOTHING

    change_text(copied)
    assert copied.planned() == {"fetch_dataset": 1, "chunk_dataset": 1, **CHAIN}
    copied.run(str(table.relative_to(copied.folder)))
    # What was not asked for is still stale, and no more than that.
    assert copied.planned() == {**TABLES, "estimate_dimension": 14}
    copied.run()
    assert copied.planned() == NOTHING


def test_contexts_that_come_out_otherwise_are_said_and_the_next_run_extracts_them(copied: Workflow) -> None:
    """As by another version of a library: neither settings nor sources tell before they are cut."""
    next(copied.session.rglob("contexts.parquet")).unlink()
    verbs = copied.root / "id_scaling/cli/job_commands.py"
    words = '**arguments.settings["chunking"]'
    verbs.write_text(verbs.read_text().replace(words, '**{**arguments.settings["chunking"], "max_contexts": 5}'))
    assert copied.planned() == {"chunk_dataset": 1}
    output = copied.run()
    assert "manifest.json: made from other contexts" in output
    assert "came out otherwise: run again" in output
    assert copied.planned() == CHAIN
    copied.run()
    assert copied.planned() == NOTHING


def test_equal_tokens_of_contexts_cut_otherwise_are_not_computed_again(copied: Workflow) -> None:
    """That they are equal is known only once they are cut: the jobs are planned, and find nothing to do."""
    files = [*copied.session.rglob("*.h5")]
    before = {path: path.stat().st_mtime_ns for path in files}
    tables = {path: path.read_bytes() for path in copied.session.rglob("ids/*/*.parquet")}
    assert len(files) > 3
    set_key(copied, "dataset_config.max_contexts", 1000)
    assert copied.planned() == {"chunk_dataset": 1, **CHAIN}
    output = copied.run()
    assert "came out otherwise" not in output
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert {path: path.read_bytes() for path in tables} == tables
    assert copied.planned() == NOTHING


def test_forcing_a_rule_runs_all_that_follows_it(copied: Workflow) -> None:
    assert copied.planned("--forcerun", "chunk_dataset") == {"chunk_dataset": 1, **CHAIN}
    assert copied.planned("--forcerun", "summarize") == {"summarize": 1, "plot": 1}


def test_touching_changes_times_only(copied: Workflow) -> None:
    """A stale output stays stale, also where Snakemake notes the settings of now; a fresh one stays fresh."""
    before = copied.config["cacheing_config"]["save_IDs_list"]
    set_key(copied, "cacheing_config.neighbor_ranks", list(range(1, 23)))
    assert "changes times only" in copied.run("--touch")
    assert copied.planned() == CHAIN
    del copied.config["cacheing_config"]["neighbor_ranks"]
    copied.write()
    assert copied.config["cacheing_config"]["save_IDs_list"] == before
    assert copied.planned() == NOTHING


def test_a_session_is_the_same_from_another_clone(copied: Workflow, tmp_path: Path) -> None:
    shutil.copytree(copied.folder, tmp_path / "elsewhere", ignore=shutil.ignore_patterns(".snakemake"))
    other = Workflow(tmp_path / "elsewhere", copied.config)
    assert other.planned() == NOTHING
    shutil.rmtree(copied.folder)
    set_key(other, "dataset_config.dataset_subset", [0, 1])
    assert other.planned() == {"fetch_dataset": 1, "chunk_dataset": 1, **CHAIN}
    other.run()
    assert other.planned() == NOTHING


def test_the_summary_is_kept_where_it_cannot_be_made_again(copied: Workflow, python) -> None:
    """And status says that it is stale."""
    summary = copied.session / "summary.parquet"
    before = summary.read_bytes()
    module = copied.root / "id_scaling/results/summary.py"
    module.write_text(module.read_text().replace("def summarize(", "raise OSError(5, 'disk')\n\n\ndef summarize(", 1))
    copied.run(is_ok=False)
    assert summary.read_bytes() == before
    assert (copied.session / "report.html").is_file()
    output = copied.run("--dry-run")
    assert "summary.parquet: made with other code" in output


def test_settings_hold_no_path_of_this_machine(copied: Workflow) -> None:
    """Else the same study in another place would be stale."""
    output = copied.run("--dry-run", "--printshellcmds", "--forceall")
    assert "--settings" in output
    for line in output.splitlines():
        if "--settings" in line:
            assert str(Path.home()) not in line
            assert str(copied.folder) not in line
