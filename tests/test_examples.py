"""Examples in docstrings: each is run, and gives what it says."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path

import pytest
from conftest import ROOT, study
from verbs import run_study

import id_scaling

PACKAGE = ROOT / "id_scaling"
FOLDERS = ("estimators", "neighbors", "results")


def module_of(path: Path) -> str:
    """Return the dotted name of a file of the package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def is_with_examples(path: Path) -> bool:
    """Return whether a docstring of a file has an example."""
    return ">>> " in path.read_text()


MODULES = [path for folder in FOLDERS for path in sorted((PACKAGE / folder).rglob("*.py")) if is_with_examples(path)]


@pytest.fixture(scope="module")
def quickstart(tiny_llama: Path, text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which `results/quickstart` is a session."""
    folder = tmp_path_factory.mktemp("examples")
    small = {"cacheing_config__save_IDs_list": ["mle"], "cacheing_config__module_outblock_keys": []}
    run_study(study(tiny_llama, text_folder, session_path=str(folder / "results" / "quickstart"), **small), False)
    return folder


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_examples_give_what_they_say(
    path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "results/quickstart" in path.read_text():
        monkeypatch.chdir(request.getfixturevalue("quickstart"))
    result = doctest.testmod(importlib.import_module(module_of(path)))
    assert result.failed == 0
    assert result.attempted > 0


def test_a_wrong_example_is_seen() -> None:
    (example,) = doctest.DocTestParser().get_examples(">>> 1 + 1\n3\n")
    test = doctest.DocTest([example], {}, "wrong", None, 0, None)
    assert doctest.DocTestRunner(verbose=False).run(test, out=lambda _: None).failed == 1


def test_every_public_function_and_every_estimator_has_an_example() -> None:
    functions = [getattr(id_scaling, name) for name in id_scaling.__all__ if name[0].islower()]
    assert [function.__name__ for function in functions if ">>> " not in function.__doc__] == []
    estimators = [path for path in (PACKAGE / "estimators").glob("*.py") if "make" in functions_of(path)]
    assert len(estimators) > 10
    assert [path.name for path in estimators if not is_with_examples(path)] == []


def functions_of(path: Path) -> set[str]:
    """Return the functions of a module."""
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
