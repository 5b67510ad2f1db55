"""An output is made again when, and only when, something that can change its content changed."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Workflow, save_text, save_tiny_llama, study

SOURCES = ("Snakefile", "id_scaling", "workflow", "profiles", "config", "environment.yml")


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


NOTHING: dict[str, int] = {}
DOWN_FROM_EXTRACTION = {"extract_activations": 1, "estimate_dimension": 15, "summarize": 1, "plot": 1}


def touch_everything(workflow: Workflow) -> None:
    """Give every source, model, text and result file the time of now."""
    now = time.time() + 5
    for folder in (workflow.root, workflow.folder / "model", workflow.folder / "text"):
        for path in folder.rglob("*"):
            os.utime(path, (now, now))


def add_comments(workflow: Workflow) -> None:
    """Comment and re-document every module, and reformat one."""
    for path in (workflow.root / "id_scaling").rglob("*.py"):
        path.write_text(path.read_text().replace('"""', '"""Anew: ', 1) + "\n# A comment.\n\n\n")
    mle = workflow.root / "id_scaling" / "estimators" / "mle.py"
    mle.write_text(mle.read_text().replace("K = 20", "K = (\n    20\n)"))


def reorder_keys(workflow: Workflow) -> None:
    """Turn the order of the configuration's keys around, sections too."""

    def turned(value):
        return {key: turned(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    text = yaml.safe_dump(turned(workflow.config), sort_keys=False)
    assert text != (workflow.folder / "study.yaml").read_text()
    (workflow.folder / "study.yaml").write_text(text)


def respell_numbers(workflow: Workflow) -> None:
    """Write a share as 0.90 where it was 0.9."""
    path = workflow.folder / "study.yaml"
    path.write_text(path.read_text().replace("max_broken_share: 0.0", "max_broken_share: 0.00"))


def change_execution(workflow: Workflow) -> None:
    """Change everything that says how jobs run."""
    workflow.config |= {"batch_size": 1, "multiprocessing": False, "multiprocessing_num_cpus": 2, "verbose": True}
    workflow.config["model_config"]["use_accelerator"] = True
    workflow.write()


@pytest.mark.parametrize(
    "edit", [touch_everything, add_comments, reorder_keys, respell_numbers, change_execution], ids=lambda f: f.__name__
)
def test_nothing_is_made_again_after(copied: Workflow, edit):
    copied.config["dataset_config"]["max_broken_share"] = 0.0
    copied.write()
    assert copied.planned() == NOTHING
    edit(copied)
    assert copied.planned() == NOTHING


def change_code(file: str, old: str, new: str):
    """Return an edit of one source file."""

    def edit(workflow: Workflow) -> None:
        path = workflow.root / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return edit


def set_key(dotted: str, value):
    """Return an edit of one configuration key."""

    def edit(workflow: Workflow) -> None:
        *parents, key = dotted.split(".")
        section = workflow.config
        for parent in parents:
            section = section.setdefault(parent, {})
        section[key] = value
        workflow.write()

    return edit


def add_checkpoint(workflow: Workflow) -> None:
    """Add a checkpoint to the model's folder and to the study, before the one that is there."""
    save_tiny_llama(workflow.folder / "model" / "step-more", seed=1)
    set_key("model_config.model_checkpoint", ["step-more", "step0"])(workflow)


def change_text(workflow: Workflow) -> None:
    """Change one word of the shard that is read."""
    path = workflow.folder / "text" / "00.jsonl"
    path.write_text(path.read_text().replace(" the ", " that ", 1))


ESTIMATES_OF_ONE = {"estimate_dimension": 5, "summarize": 1, "plot": 1}
CHAIN = {"extract_activations": 1, "estimate_dimension": 15, "summarize": 1, "plot": 1}

CASES = {
    "the code of one estimator": (
        change_code("id_scaling/estimators/twonn.py", "(x * x).sum", "(x**2).sum"),
        ESTIMATES_OF_ONE,
    ),
    "one estimator more": (
        set_key("cacheing_config.save_IDs_list", ["mle", "mle_harmonic", "mind_ml", "twoNN_f10"]),
        ESTIMATES_OF_ONE,
    ),
    "one estimator less": (set_key("cacheing_config.save_IDs_list", ["mle", "mind_ml"]), {"summarize": 1, "plot": 1}),
    "the discarded share of one estimator": (
        set_key("cacheing_config.save_IDs_list", ["mle", "mind_ml", "twoNN_f20"]),
        ESTIMATES_OF_ONE,
    ),
    "one checkpoint more": (add_checkpoint, {**CHAIN, "fetch_model": 1}),
    "one shard more": (
        set_key("dataset_config.dataset_subset", [0, 1]),
        {**CHAIN, "fetch_dataset": 1, "chunk_dataset": 1},
    ),
    "one length more": (set_key("ctx_len", [48, 64]), {**CHAIN, "chunk_dataset": 1}),
    "the code of the neighbor search": (
        change_code("id_scaling/neighbors/search.py", "SETTLED_BY_ROWS = 1 / 16", "SETTLED_BY_ROWS = 1 / 17"),
        DOWN_FROM_EXTRACTION,
    ),
    "the neighbor ranks": (
        set_key("cacheing_config.neighbor_ranks", list(range(1, 23))),
        DOWN_FROM_EXTRACTION,
    ),
    "the style of figures": (
        change_code("id_scaling/plots/style.py", "PANEL_WIDTH, PANEL_HEIGHT = 300", "PANEL_WIDTH, PANEL_HEIGHT = 320"),
        {"plot": 1},
    ),
    "the command of a rule": (
        change_code("workflow/rules/summarize.smk", "--csv {output.csv:q}", "  --csv {output.csv:q}"),
        {"summarize": 1, "plot": 1},
    ),
    "saving the clouds": (set_key("cacheing_config.save_cache_tensors", True), DOWN_FROM_EXTRACTION),
    "the precision of clouds that are not saved": (set_key("cacheing_config.save_fp", "float32"), NOTHING),
    "one layer alone": (
        set_key("cacheing_config.layer_idx_list", [1]),
        {**DOWN_FROM_EXTRACTION, "fetch_model": 1},
    ),
    "the content of a shard": (change_text, {**CHAIN, "fetch_dataset": 1, "chunk_dataset": 1}),
    "not saving IDs": (set_key("cacheing_config.save_IDs", False), NOTHING),
}


@pytest.mark.parametrize("case", CASES)
def test_only_what_changed_is_made_again_after(copied: Workflow, case: str):
    edit, expected = CASES[case]
    edit(copied)
    assert copied.planned() == expected


def test_the_code_of_one_estimator_makes_that_estimator_again(copied: Workflow):
    """And the run that follows leaves nothing to do, with the new code in the table."""
    change_code("id_scaling/estimators/twonn.py", "(x * x).sum", "(x**2).sum")(copied)
    before = {path: path.stat().st_mtime_ns for path in copied.session.rglob("ids/*/*.parquet")}
    copied.run()
    made = {path.stem for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert made == {"twoNN_f10"}
    assert copied.planned() == NOTHING


def test_settings_hold_no_path_of_this_machine(copied: Workflow):
    """Else the same study in another place would be stale."""
    output = copied.run("--dry-run", "--printshellcmds", "--forceall")
    for line in output.splitlines():
        if "--settings" in line:
            assert str(Path.home()) not in line
            assert str(copied.folder) not in line
