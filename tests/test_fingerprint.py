"""Fingerprints: blind to what changes no result, aware of all that can, and of what each stage runs."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, study

from id_scaling.estimators.registry import GRAMMAR
from id_scaling.study import fingerprint as module
from id_scaling.study.fingerprint import WITHOUT_CONTENT, closure, fingerprint
from id_scaling.study.study import Study

PACKAGE = ROOT / "id_scaling"
ESTIMATORS = sorted({f"id_scaling.estimators.{rule.module}" for rule in GRAMMAR})

# The modules that each stage starts from.
STAGES: dict[str, list[str]] = {
    "train": ["id_scaling.sources.bundled_training"],
    "fetch": ["id_scaling.sources.models"],
    "fetch_dataset": ["id_scaling.sources.datasets"],
    "chunk": ["id_scaling.text.chunking"],
    "shuffle": ["id_scaling.text.shuffling"],
    "extract": ["id_scaling.extraction.run"],
    **{f"estimate {name.split('.')[-1]}": ["id_scaling.results.estimates", name] for name in ESTIMATORS},
    "summarize": ["id_scaling.results.summary"],
    "plot": ["id_scaling.plots.render"],
}

# Modules that a stage imports inside a function alone: they are of its closure, and not loaded with it.
LAZY = frozenset({"id_scaling.neighbors.kernels.numba_kernels", "id_scaling.neighbors.kernels.torch_kernels"})


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package to be edited, which fingerprints are taken of."""
    copy = shutil.copytree(PACKAGE, tmp_path / "id_scaling", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(module, "ROOT", copy)
    forget()
    yield copy
    forget()


def forget() -> None:
    """Have every file read again."""
    for remembered in (module._read, closure, fingerprint):
        remembered.cache_clear()


def of(stage: str) -> str:
    """Return the fingerprint of a stage as the files are now."""
    forget()
    return fingerprint(*STAGES[stage])


def edit(path: Path, change: Callable[[str], str]) -> None:
    """Change the source of a module, and make sure that it is a change and still Python."""
    before = path.read_text()
    after = change(before)
    assert after != before
    ast.parse(after)
    path.write_text(after)


def replaced(old: str, new: str) -> Callable[[str], str]:
    """Return the change that puts `new` for the one `old`."""

    def change(source: str) -> str:
        assert source.count(old) == 1
        return source.replace(old, new)

    return change


def source(name: str) -> Path:
    """Return the file of a module."""
    base = ROOT / name.replace(".", "/")
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


SMALL = '''"""Words."""

LIMIT = 10


def double(x, y=(1, 2)):
    """Return twice a number."""
    # A remark.
    return {"a": x * 2, "b": y}


def bare():
    return LIMIT


class Thing:
    """A thing."""

    name: str = "thing"
'''


@pytest.fixture
def helper(package: Path) -> Path:
    """A small module that `id_scaling.runtime.atomic_files`, and so every stage that writes, imports."""
    (package / "helper.py").write_text(SMALL)
    edit(package / "files.py", replaced("import shutil\n", "import shutil\n\nfrom id_scaling.helper import double\n"))
    return package / "helper.py"


# ---- what it is blind to, and what it sees ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: text + "\n# More.\n", id="comment added"),
        pytest.param(replaced("    # A remark.\n", ""), id="comment removed"),
        pytest.param(replaced('"""Words."""', '"""Other words."""'), id="docstring of the module"),
        pytest.param(replaced("Return twice a number.", "Twice."), id="docstring of a function"),
        pytest.param(replaced('"""A thing."""', '"""Any thing."""'), id="docstring of a class"),
        pytest.param(replaced("def bare():\n", 'def bare():\n    """Return the limit."""\n'), id="docstring added"),
        pytest.param(replaced('    """Return twice a number."""\n', ""), id="docstring removed"),
        pytest.param(replaced('"""Words."""\n', ""), id="docstring of the module removed"),
        pytest.param(replaced('{"a": x * 2, "b": y}', "{\n        'a': (x*2),\n        'b': y,\n    }"), id="layout"),
        pytest.param(lambda text: text.replace("\n\n\n", "\n\n"), id="blank lines"),
        pytest.param(replaced("LIMIT = 10", "LIMIT = 1_0"), id="spelling of a number"),
    ],
)
def test_blind_to_what_changes_no_result(change: Callable, helper: Path) -> None:
    before = of("extract")
    edit(helper, change)
    assert of("extract") == before


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(replaced("LIMIT = 10", "LIMIT = 11"), id="constant"),
        pytest.param(replaced("x * 2", "x + 2"), id="operator"),
        pytest.param(replaced("x * 2", "x * 2.0"), id="type of a constant"),
        pytest.param(replaced("(1, 2)", "(2, 1)"), id="default"),
        pytest.param(replaced('"a": x', '"c": x'), id="text that is no docstring"),
        pytest.param(replaced("    return LIMIT", "    return"), id="what is returned"),
        pytest.param(replaced('"thing"', '"other"'), id="attribute of a class"),
        pytest.param(lambda text: text + "\nLIMIT = 12\n", id="statement added"),
    ],
)
def test_sees_what_can_change_a_result(change: Callable, helper: Path) -> None:
    before = of("extract")
    edit(helper, change)
    assert of("extract") != before


def test_blind_to_the_layout_of_every_module(package: Path) -> None:
    before = {stage: of(stage) for stage in STAGES}
    for path in package.rglob("*.py"):
        edit(path, lambda text: "# First.\n" + ast.unparse(ast.parse(text)) + "\n\n\n# Last.\n")
    assert {stage: of(stage) for stage in STAGES} == before


@pytest.mark.parametrize(
    "statement",
    [
        "from id_scaling.late import value",
        "from id_scaling import late",
        "import id_scaling.late",
        "import id_scaling.late as other",
        "def use():\n    from id_scaling.late import value\n    return value",
    ],
)
def test_import_is_followed_however_it_is_written(statement: str, helper: Path) -> None:
    (helper.parent / "late.py").write_text("value = 1\n")
    edit(helper, lambda text: f"{text}\n{statement}\n")
    before = of("extract")
    edit(helper.parent / "late.py", replaced("1", "2"))
    assert of("extract") != before


SIMULATED = ("gride", "mind_ml", "mle", "mom", "twonn")
# Whose curves over scales are drawn.
DRAWN = ("gride", "mle", "twonn")
ESTIMATES = {stage for stage in STAGES if stage.startswith("estimate ")}
METHODS = sorted(stage.split()[-1] for stage in ESTIMATES)


def plot_of(method: str) -> set[str]:
    """Return the stage that draws curves of a method, if there are such."""
    return {"plot"} if method in DRAWN else set()


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("datasets.py", {"chunk"}),
        ("controls.py", {"shuffle"}),
        ("training.py", {"train"}),
        ("mkl.py", {"train", "extract"}),
        ("models.py", {"extract"}),
        ("store.py", {"extract"}),
        ("plots/style.py", {"plot"}),
        ("plots/page.py", {"plot"}),
        ("load.py", {"plot"}),
        ("equivalents.py", {"summarize"}),
        ("equivalent_tables.py", {"summarize"}),
        ("checkpoints.py", {"summarize"}),
        ("clouds.py", {"summarize", "plot"} | ESTIMATES),
        ("untrained.py", {"fetch", "fetch_dataset", "summarize"}),
        ("fetch.py", {"fetch", "fetch_dataset"}),
        ("shards.py", {"fetch_dataset"}),
        ("records.py", {"chunk"}),
        ("tokens.py", {"chunk"}),
        ("grouping.py", {"summarize", "plot"}),
        ("intervals.py", {"summarize", "plot"}),
        ("embedded.py", {"fetch", "fetch_dataset"}),
        ("hub.py", {"fetch", "fetch_dataset"}),
        ("summarize.py", {"summarize"}),
        ("layers.py", {"plot"} | ESTIMATES),
        *((f"estimators/{name}.py", {f"estimate {name}"} | plot_of(name)) for name in METHODS),
        # So a method simulated anew makes no other method's estimates stale.
        *((f"estimators/standard_error_tables/{name}.py", {f"estimate {name}"} | plot_of(name)) for name in SIMULATED),
        ("estimators/spread.py", {"plot"} | ESTIMATES),
        # Two steps away: an estimate reads neighbors, and they are sought under views.
        ("views.py", {"extract", "summarize", "plot"} | ESTIMATES),
        ("statistics.py", {"extract", "plot"} | ESTIMATES),
        ("kernels/numba_kernels.py", {"extract", "plot"} | ESTIMATES),
        ("files.py", set(STAGES)),
        ("errors.py", set()),
        ("logs.py", set()),
        ("cli.py", set()),
        ("config.py", set()),
        ("study.py", set()),
        ("documentation.py", set()),
        ("estimation.py", set()),
        ("fingerprint.py", set()),
    ],
)
def test_module_is_in_just_the_closures_of_the_stages_that_run_it(name: str, stages: set) -> None:
    dotted = f"id_scaling.{name.removesuffix('.py').replace('/', '.')}"
    assert source(dotted).is_file()
    assert {stage for stage, roots in STAGES.items() if dotted in set().union(*map(closure, roots))} == stages


@pytest.mark.parametrize(
    ("name", "stale", "fresh"),
    [
        ("views.py", "estimate mle", "chunk"),
        ("neighbors.py", "extract", "chunk"),
        ("estimators/twonn.py", "estimate twonn", "estimate mle"),
        ("estimators/mle.py", "estimate mle", "extract"),
        ("estimators/standard_error_tables/mle.py", "estimate mle", "estimate twonn"),
        ("files.py", "plot", None),
        ("errors.py", None, "estimate mle"),
    ],
)
def test_edit_makes_stale_the_stages_that_run_the_module(
    name: str, stale: str | None, fresh: str | None, package: Path
) -> None:
    before = {stage: of(stage) for stage in (stale, fresh) if stage}
    edit(package / name, lambda text: text + "\nADDED = 1\n")
    assert {stage: of(stage) == before[stage] for stage in before} == {stage: stage == fresh for stage in before}


def test_order_of_roots_is_no_matter() -> None:
    assert fingerprint("id_scaling.results.estimates", "id_scaling.results.load") == fingerprint(
        "id_scaling.results.load", "id_scaling.results.estimates"
    )
    assert fingerprint("id_scaling.results.estimates") != fingerprint("id_scaling.results.load")


# ---- closures against what is loaded ---------------------------------------------------------------------------


def loaded(names: list[str], root: Path = ROOT) -> set[str]:
    """Return the modules that stand in `sys.modules` once some are imported in a fresh process."""
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]; print(*sys.modules)"
    command = [sys.executable, "-c", code, *names]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=root)
    return set(done.stdout.split())


def differences(names: list[str], root: Path = ROOT) -> tuple[set[str], set[str]]:
    """Return (loaded and not in the closure, in the closure and neither loaded nor lazy) of some roots."""
    members = set().union(*map(closure, names))
    # Packages hold no code of a stage but their registry, which stands in WITHOUT_CONTENT.
    own = {name for name in loaded(names, root) if name.startswith("id_scaling.")} - WITHOUT_CONTENT
    return own - members, members - own - LAZY


@pytest.mark.parametrize("stage", STAGES)
def test_closure_is_what_importing_the_stage_loads(stage: str) -> None:
    assert differences(STAGES[stage]) == (set(), set())


def test_comparison_finds_what_is_loaded_behind_the_back_of_statements(package: Path) -> None:
    assert differences(["id_scaling.runtime.atomic_files"], package.parent) == (set(), set())
    edit(package / "files.py", lambda text: text + "\n__import__('id_scaling.neighbors.views')\n")
    forget()
    assert differences(["id_scaling.runtime.atomic_files"], package.parent) == ({"id_scaling.neighbors.views"}, set())


def test_comparison_finds_what_is_in_the_closure_and_not_loaded(package: Path) -> None:
    edit(package / "files.py", lambda text: text + "\n\ndef late():\n    import id_scaling.neighbors.views\n")
    forget()
    assert differences(["id_scaling.runtime.atomic_files"], package.parent) == (set(), {"id_scaling.neighbors.views"})


def test_extraction_knows_no_estimator_and_no_configuration() -> None:
    unwanted = (
        "id_scaling.estimat",
        "id_scaling.study.config",
        "id_scaling.study.study",
        "id_scaling.cli",
        "id_scaling.results.estimates",
    )
    assert [name for name in closure("id_scaling.extraction.run") if name.startswith(unwanted)] == []


def imports(path: Path) -> set[str]:
    """Return the first part of every module that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[0] for name in plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}}


@pytest.mark.parametrize("stage", sorted(ESTIMATES))
def test_estimates_know_neither_model_nor_torch(stage: str) -> None:
    members = set().union(*map(closure, STAGES[stage]))
    assert members.isdisjoint(
        {"id_scaling.extraction.run", "id_scaling.models.loading", "id_scaling.study.config", "id_scaling.cli"}
    )
    heavy = {"torch", "transformers", "accelerate", "safetensors"}
    assert [name for name in (members | set(WITHOUT_CONTENT)) - LAZY if imports(source(name)) & heavy] == []
    # The search for torch can find it.
    assert "torch" in imports(source("id_scaling.extraction.run"))


def test_without_content_are_modules_of_the_package() -> None:
    assert [name for name in WITHOUT_CONTENT if not source(name).is_file()] == []


# ---- imports that are no statements ----------------------------------------------------------------------------

# Where a module is loaded by name, which a fingerprint cannot follow:
# the package's lazy front door, which no stage imports from; a child, which answers by a function that whoever asks has
# imported; the registry, whose modules are roots beside the job; and another package, whose import is wrapped.
BY_NAME = {"__init__.py", "children.py", "estimators/__init__.py", "estimators/skdim.py"}
LOADERS = {"import_module", "spec_from_file_location", "run_module", "run_path"}
BUILT_IN_LOADERS = {"__import__", "exec", "eval"}


def loads_by_name(source: str) -> bool:
    """Return whether code calls a function that imports or runs what a text names."""
    functions = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    # A model has a method `eval`, which is another thing: built-in ones are called by their bare names.
    bare = {function.id for function in functions if isinstance(function, ast.Name)}
    dotted = {function.attr for function in functions if isinstance(function, ast.Attribute)}
    return bool(bare & (LOADERS | BUILT_IN_LOADERS) or dotted & LOADERS)


def test_modules_are_loaded_by_name_where_it_is_meant_alone() -> None:
    found = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if loads_by_name(path.read_text())}
    assert found == BY_NAME


@pytest.mark.parametrize("call", ["__import__('a')", "importlib.import_module(name)", "import_module(name)", "exec(a)"])
def test_search_finds_what_loads_by_name(call: str) -> None:
    assert loads_by_name(f"def f():\n    return {call}\n")


def test_no_import_is_relative_and_none_takes_everything() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, path
                assert [alias.name for alias in node.names] != ["*"], path


# ---- settings --------------------------------------------------------------------------------------------------


def settings_of(**changes: Any) -> dict[str, str]:
    """Return the settings of one job of each rule that follows from a dataset."""
    made = Study(study(Path("owner/model"), Path("owner/texts"), **changes))
    (run,) = made.runs
    return {
        "fetch_dataset": made.fetch_dataset_settings(run.dataset, "0"),
        "chunk": made.contexts_settings(run),
        "extract": made.extract_settings(run),
        "estimate": made.estimate_settings(run, "mlp", "mle"),
        "summarize": made.summarize_settings(),
        "plot": made.plot_settings(),
    }


def test_cloud_is_a_setting_of_estimates_alone() -> None:
    """Where its vectors are stored."""
    stored = {"cacheing_config__save_mean_tensors": True, "cacheing_config__save_positions": [-1]}
    before = settings_of(**stored)
    after = settings_of(**stored, cacheing_config__clouds=["position", "context"])
    assert [name for name in before if before[name] != after[name]] == ["estimate", "summarize"]
    again = settings_of(**stored, cacheing_config__clouds=["context", "position"])
    assert (
        again
        == after
        == settings_of(
            **{**stored, "cacheing_config__save_positions": [63]}, cacheing_config__clouds=["context", "position"]
        )
    )


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({"dataset_config__group_by": ["meta.pile_set_name"]}, "summarize"),
        ({"dataset_config__max_contexts": 9}, "chunk"),
        ({"add_bos": "always"}, "chunk"),
    ],
    ids=str,
)
def test_key_is_a_setting_of_the_stage_that_reads_it_alone(changes: dict, stage: str) -> None:
    before, after = settings_of(), settings_of(**changes)
    assert [name for name in before if before[name] != after[name]] == [stage]
