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
from id_scaling.study.fingerprint import COMPUTING, closure, fingerprint, is_computing
from id_scaling.study.study import Study

PACKAGE = ROOT / "id_scaling"
ESTIMATORS = sorted({f"id_scaling.estimators.{rule.module}" for rule in GRAMMAR})

# The modules that each stage starts from.
STAGES: dict[str, list[str]] = {
    "train": ["id_scaling.sources.bundled_training"],
    "chunk": ["id_scaling.text.chunking"],
    "shuffle": ["id_scaling.text.shuffling"],
    "extract": ["id_scaling.extraction.compute"],
    **{f"estimate {name.split('.')[-1]}": ["id_scaling.results.estimates", name] for name in ESTIMATORS},
    "summarize": ["id_scaling.results.summary"],
    "plot": ["id_scaling.plots.render"],
}

# Modules that a stage imports inside a function only: they are of its closure, and not loaded with it.
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
    for remembered in (module._hash, closure, fingerprint):
        remembered.cache_clear()


def of(stage: str) -> str:
    """Return the fingerprint of a stage as the files are now."""
    forget()
    return fingerprint(*STAGES[stage])


def of_all() -> dict[str, str]:
    """Return the fingerprints of all stages as the files are now."""
    forget()
    return {stage: fingerprint(*roots) for stage, roots in STAGES.items()}


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

import warnings
from math import ceil, floor

from numpy import mean as center

from id_scaling.models.first import scale
from id_scaling.runtime.logging import LOG
from id_scaling.runtime.atomic_files import sync
from id_scaling.runtime.settings import setting

LIMIT = 10


def double(x, y=(1, 2)):
    """Return twice a number."""
    # A remark.
    LOG.info("doubling %s", x)
    if x > LIMIT:
        raise ValueError(f"{x}: too large, at most {LIMIT}")
    if x < 0:
        raise ValueError("negative")
    warnings.warn("slow", stacklevel=2)
    return {"a": x * 2, "b": y, "c": center([ceil(x), floor(x)]), "d": scale(x)}


def bare():
    return LIMIT


class Thing:
    """A thing."""

    name: str = "thing"
    size: int = setting(3, meaning="how large", ge=0)
'''
FIRST = "def scale(x):\n    return x + 1\n"
SECOND = "def scale(x):\n    return x + 2\n"


@pytest.fixture
def helper(package: Path) -> Path:
    """A small computing module that the extraction imports."""
    (package / "models" / "helper.py").write_text(SMALL)
    (package / "models" / "first.py").write_text(FIRST)
    (package / "models" / "second.py").write_text(SECOND)
    line = "from id_scaling.models.modules import Site,"
    edit(package / "extraction" / "compute.py", replaced(line, f"from id_scaling.models.helper import double\n{line}"))
    return package / "models" / "helper.py"


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
        pytest.param(replaced("doubling %s", "two times %s"), id="log message"),
        pytest.param(replaced("too large, at most", "too big; the most is"), id="error with values"),
        pytest.param(replaced('"negative"', '"below zero"'), id="error"),
        pytest.param(replaced('"slow"', '"this takes long"'), id="warning"),
        pytest.param(replaced('"how large"', '"which size"'), id="meaning of a setting"),
        pytest.param(replaced("ge=0", "ge=1, le=9"), id="bounds of a setting"),
        pytest.param(replaced('setting(3, meaning="how large", ge=0)', "3"), id="declaration of a setting"),
        pytest.param(replaced("y=(1, 2)", "y=(\n    1,\n    2,\n)"), id="layout"),
        pytest.param(lambda text: text.replace("\n\n\n", "\n\n"), id="blank lines"),
        pytest.param(replaced("LIMIT = 10", "LIMIT = 1_0"), id="spelling of a number"),
        pytest.param(replaced("from math import ceil, floor", "from math import floor, ceil"), id="order of names"),
        pytest.param(
            replaced(
                "import warnings\nfrom math import ceil, floor\n", "from math import ceil, floor\nimport warnings\n"
            ),
            id="order of imports",
        ),
        pytest.param(
            lambda text: text + "\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n",
            id="import for types",
        ),
        pytest.param(replaced("runtime.atomic_files", "storage.records"), id="place of a helper that computes nothing"),
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
        pytest.param(replaced('"a": x', '"e": x'), id="text that is no docstring"),
        pytest.param(replaced("    return LIMIT", "    return"), id="what is returned"),
        pytest.param(replaced('"thing"', '"other"'), id="attribute of a class"),
        pytest.param(replaced("setting(3,", "setting(4,"), id="default of a setting"),
        pytest.param(replaced("    size: int", "    length: int"), id="name of a setting"),
        pytest.param(lambda text: text + "\nLIMIT = 12\n", id="statement added"),
        pytest.param(replaced('ValueError("negative")', 'TypeError("negative")'), id="kind of an error"),
        pytest.param(replaced("import mean as center", "import median as center"), id="another function of a library"),
        pytest.param(replaced("models.first import", "models.second import"), id="another function of ours"),
        pytest.param(replaced("import scale\n", "import scale as center\n"), id="another name"),
        pytest.param(replaced("from numpy import mean", "from scipy.stats import mean"), id="another library"),
    ],
)
def test_sees_what_can_change_a_result(change: Callable, helper: Path) -> None:
    before = of("extract")
    edit(helper, change)
    assert of("extract") != before


def test_blind_to_the_layout_of_every_module(package: Path) -> None:
    before = of_all()
    for path in package.rglob("*.py"):
        edit(path, lambda text: "# First.\n" + ast.unparse(ast.parse(text)) + "\n\n\n# Last.\n")
    assert of_all() == before


def test_a_module_may_move_and_be_renamed(package: Path) -> None:
    before = of_all()
    (package / "neighbors" / "search.py").rename(package / "models" / "nearest.py")
    for path in package.rglob("*.py"):
        text = path.read_text()
        path.write_text(text.replace("id_scaling.neighbors.search", "id_scaling.models.nearest"))
    assert of_all() == before
    edit(package / "models" / "nearest.py", lambda text: text + "\nADDED = 1\n")
    assert of("extract") != before["extract"]


@pytest.mark.parametrize(
    "statement",
    [
        "from id_scaling.models.late import value",
        "from id_scaling.models import late",
        "import id_scaling.models.late",
        "import id_scaling.models.late as other",
        "def use():\n    from id_scaling.models.late import value\n    return value",
    ],
)
def test_import_is_followed_however_it_is_written(statement: str, helper: Path) -> None:
    late = helper.with_name("late.py")
    late.write_text("value = 1\n")
    edit(helper, lambda text: f"{text}\n{statement}\n")
    before = of("extract")
    edit(late, replaced("1", "2"))
    assert of("extract") != before


# ---- every module ----------------------------------------------------------------------------------------------

MODULES = sorted(
    str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py")
)


def dotted(name: str) -> str:
    """Return the dotted name of a file of the package."""
    return f"id_scaling.{name.removesuffix('.py').replace('/', '.')}"


def stages_of(name: str) -> set[str]:
    """Return the stages that a module computes for."""
    return {stage for stage, roots in STAGES.items() if dotted(name) in set().union(*map(closure, roots))}


@pytest.fixture(scope="module")
def base() -> dict[str, str]:
    """The fingerprints of all stages."""
    return of_all()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package that tests of one module each edit and restore."""
    return shutil.copytree(PACKAGE, tmp_path_factory.mktemp("copy") / "id_scaling")


@pytest.fixture
def edited(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], dict[str, str]]]:
    """Return the fingerprints of all stages with another source of one module, which is restored."""
    monkeypatch.setattr(module, "ROOT", shared)

    def fingerprints(name: str, text: str) -> dict[str, str]:
        before = (shared / name).read_text()
        (shared / name).write_text(text)
        try:
            return of_all()
        finally:
            (shared / name).write_text(before)

    yield fingerprints
    forget()


def reword(tree: ast.Module) -> bool:
    """Reword the first error or log line of a module in place; return whether it has one."""
    for node in ast.walk(tree):
        is_log = isinstance(node, ast.Expr) and module.is_logged(node.value)
        if is_log or (isinstance(node, ast.Raise) and node.exc is not None):
            texts = [part for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            if texts:
                texts[0].value = f"reworded: {texts[0].value}"
                return True
    return False


@pytest.mark.parametrize("name", MODULES)
def test_no_stage_is_stale_after_a_message_is_reworded(name: str, edited: Callable, base: dict[str, str]) -> None:
    tree = ast.parse((PACKAGE / name).read_text())
    if not reword(tree):  # a module without messages: its docstring is all the prose it has
        tree.body[0].value.value = "Reworded."
    assert edited(name, ast.unparse(tree)) == base


@pytest.mark.parametrize("name", MODULES)
def test_just_the_stages_that_a_module_computes_for_are_stale_after_a_constant(
    name: str, edited: Callable, base: dict[str, str]
) -> None:
    after = edited(name, (PACKAGE / name).read_text() + "\nADDED = 1\n")
    stale = {stage for stage in STAGES if after[stage] != base[stage]}
    assert stale == stages_of(name)
    if name.split("/")[0] not in COMPUTING:
        # But for what a stage starts from, as the training of the bundled models.
        assert stale <= {"train"}


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
        ("text/chunking.py", {"chunk"}),
        ("text/chunk_options.py", {"chunk"}),
        ("text/readers.py", {"chunk"}),
        ("text/tokenization.py", {"chunk"}),
        ("text/shuffling.py", {"shuffle"}),
        ("sources/bundled_training.py", {"train"}),
        ("models/mkl_workaround.py", {"train", "extract"}),
        ("models/loading.py", {"extract"}),
        ("extraction/compute.py", {"extract"}),
        ("extraction/run.py", set()),
        ("plots/style.py", {"plot"}),
        ("results/load.py", {"plot"}),
        ("results/equivalents.py", {"summarize"}),
        ("results/equivalent_tables.py", {"summarize"}),
        ("results/training_steps.py", {"summarize"}),
        ("results/summary.py", {"summarize"}),
        ("results/columns.py", {"summarize", "plot"}),
        ("results/text_table.py", {"summarize", "plot"}),
        ("neighbors/cloud_kinds.py", {"summarize", "plot"} | ESTIMATES),
        ("results/uncertainty.py", {"summarize", "plot"}),
        *((f"estimators/{name}.py", {f"estimate {name}"} | plot_of(name)) for name in METHODS),
        # So a method simulated again makes no other method's estimates stale.
        *((f"estimators/standard_error_tables/{name}.py", {f"estimate {name}"} | plot_of(name)) for name in SIMULATED),
        ("estimators/standard_errors.py", {"plot"} | ESTIMATES),
        # A new estimator makes no other's estimates stale.
        ("estimators/registry.py", set()),
        ("estimators/grammar.py", set()),
        # Two steps away: an estimate reads neighbors, and they are sought under views.
        ("neighbors/views.py", {"extract", "summarize", "plot"} | ESTIMATES),
        ("neighbors/search.py", {"extract", "plot"} | ESTIMATES),
        ("neighbors/kernels/numba_kernels.py", {"extract", "plot"} | ESTIMATES),
    ],
)
def test_module_is_in_just_the_closures_of_the_stages_that_run_it(name: str, stages: set) -> None:
    assert source(dotted(name)).is_file()
    assert stages_of(name) == stages


@pytest.mark.parametrize("name", ["report.html", "report.css", "report.js", "figure.html"])
def test_figures_alone_are_stale_after_a_change_of_a_template(name: str, package: Path) -> None:
    before = of_all()
    template = package / "plots" / "templates" / name
    template.write_text(template.read_text() + "\n")
    after = of_all()
    assert {stage for stage in STAGES if after[stage] != before[stage]} == {"plot"}


def test_figures_are_stale_after_a_template_is_renamed(package: Path) -> None:
    before = of("plot")
    template = package / "plots" / "templates" / "report.css"
    template.rename(template.with_name("other.css"))
    assert of("plot") != before


def test_an_editors_hidden_file_next_to_the_templates_makes_nothing_stale(package: Path) -> None:
    before = of("plot")
    (package / "plots" / "templates" / ".report.css.swp").write_bytes(b"")
    assert of("plot") == before


def test_order_of_roots_is_no_matter() -> None:
    names = ["id_scaling.results.estimates", "id_scaling.results.load"]
    assert fingerprint(*names) == fingerprint(*reversed(names))
    assert fingerprint(names[0]) != fingerprint(names[1])


def test_no_module_imports_itself_in_a_circle() -> None:
    """A circle would have no fingerprint."""
    for stage in STAGES:
        assert len(of(stage)) == 12


# ---- closures against what is loaded ---------------------------------------------------------------------------


def loaded(names: list[str], root: Path = ROOT) -> set[str]:
    """Return the modules that are in `sys.modules` once some are imported in a fresh process."""
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]; print(*sys.modules)"
    command = [sys.executable, "-c", code, *names]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=root)
    return set(done.stdout.split())


def differences(names: list[str], root: Path = ROOT) -> tuple[set[str], set[str]]:
    """Return (loaded and not in the closure, in the closure and neither loaded nor lazy) of some roots."""
    members = set().union(*map(closure, names))
    own = {name for name in loaded(names, root) if name.startswith("id_scaling.") and is_computing(name)}
    # Packages hold no code, but may hold templates. What only a module outside imports is not the stage's.
    own = {name for name in own if source(name).name != "__init__.py" or name in members} - OF_STORAGE
    return own - members, {name for name in members if is_computing(name)} - own - LAZY


# Computing modules that files of results are read by: their names and types, not what they compute.
OF_STORAGE = {
    "id_scaling.models.modules",
    "id_scaling.neighbors.cloud_kinds",
    "id_scaling.neighbors.find",
}


@pytest.mark.parametrize("stage", STAGES)
def test_closure_is_what_importing_the_stage_loads(stage: str) -> None:
    unfollowed, unloaded = differences(STAGES[stage])
    assert unloaded - OF_STORAGE == set()
    # What is loaded through storage and runtime does not count; each of these is imported there.
    assert unfollowed <= through_outside(STAGES[stage])


def through_outside(roots: list[str]) -> set[str]:
    """Return the computing modules that modules outside import, of those that the closure of roots imports."""
    members, pending = set(), list(roots)
    while pending:
        name = pending.pop()
        if name not in members:
            members.add(name)
            pending += module.imported(name)
    return {name for name in members if is_computing(name)}


def test_comparison_finds_what_is_loaded_behind_the_back_of_statements(package: Path) -> None:
    assert differences(["id_scaling.text.readers"], package.parent) == (set(), set())
    edit(package / "text" / "readers.py", lambda text: text + "\n__import__('id_scaling.neighbors.views')\n")
    forget()
    assert differences(["id_scaling.text.readers"], package.parent) == ({"id_scaling.neighbors.views"}, set())


def test_comparison_finds_what_is_in_the_closure_and_not_loaded(package: Path) -> None:
    edit(
        package / "text" / "readers.py", lambda text: text + "\n\ndef late():\n    import id_scaling.neighbors.views\n"
    )
    forget()
    assert differences(["id_scaling.text.readers"], package.parent) == (set(), {"id_scaling.neighbors.views"})


def test_extraction_knows_no_estimator_and_no_configuration() -> None:
    unwanted = ("id_scaling.estimators", "id_scaling.study", "id_scaling.cli", "id_scaling.results")
    everything = through_outside(["id_scaling.extraction.run"])
    assert [name for name in everything if name.startswith(unwanted)] == []


def test_what_a_batch_computes_knows_no_file() -> None:
    """Else what stores would have to count, and a reworded path would run a model again."""
    outside = {name.split(".")[1] for name in module.imported("id_scaling.extraction.compute")}
    assert outside <= {"models", "neighbors", "errors", "runtime"}


def imports(path: Path) -> set[str]:
    """Return the first part of every module that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[0] for name in plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}}


@pytest.mark.parametrize("stage", sorted(ESTIMATES))
def test_estimates_know_neither_model_nor_torch(stage: str) -> None:
    members = through_outside(STAGES[stage])
    assert members.isdisjoint({"id_scaling.extraction.run", "id_scaling.models.loading"})
    heavy = {"torch", "transformers", "accelerate", "safetensors"}
    assert [name for name in members - LAZY if imports(source(name)) & heavy] == []
    # The search for torch can find it.
    assert "torch" in imports(source("id_scaling.extraction.compute"))


def test_computing_folders_are_folders_of_the_package() -> None:
    assert [name for name in COMPUTING if not (PACKAGE / name).is_dir()] == []


def computes(source: str) -> bool:
    """Return whether a module holds more than its docstring, imports and `__all__`."""
    tree = ast.parse(source)
    body = tree.body[ast.get_docstring(tree) is not None :]
    rest = [node for node in body if not isinstance(node, ast.Import | ast.ImportFrom)]
    return any(
        not isinstance(node, ast.Assign) or [ast.unparse(target) for target in node.targets] != ["__all__"]
        for node in rest
    )


PACKAGES = sorted(
    str(path.relative_to(PACKAGE)) for name in COMPUTING for path in (PACKAGE / name).rglob("__init__.py")
)


def test_every_computing_folder_is_a_package() -> None:
    """Folders of data apart: else its modules would be of no closure."""
    folders = {path.parent for name in COMPUTING for path in (PACKAGE / name).rglob("*.py")}
    assert {PACKAGE / name for name in PACKAGES} == {folder / "__init__.py" for folder in folders}


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_hold_no_code(name: str) -> None:
    """An import of a module runs them, and no fingerprint follows that."""
    source = (PACKAGE / name).read_text()
    assert not computes(source)
    assert ast.get_docstring(ast.parse(source))


@pytest.mark.parametrize("code", ["K = 20", "import numpy\nnumpy.seterr(all='ignore')", "def f():\n    return 1"])
def test_search_finds_code_in_a_package(code: str) -> None:
    assert computes(f'"""Words."""\n\n{code}\n')
    assert not computes('"""Words."""\n\nfrom a import b\n\n__all__ = ["b"]\n')


# ---- imports that are no statements ----------------------------------------------------------------------------

# Where a module is loaded by name, which a fingerprint cannot follow:
# the package's lazy front door, which no stage imports from; a child, which answers by a function that whoever asks has
# imported; the registry, whose modules are roots next to the job, and those who ask it; and another, wrapped package.
BY_NAME = {
    "__init__.py",
    "runtime/workers.py",
    "estimators/registry.py",
    "estimators/sandbox.py",
    "estimators/skdim.py",
    "results/load.py",
}
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
