"""Which package may import which: data flows one way, so a name is looked up in one direction only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import id_scaling

PACKAGE = Path(id_scaling.__file__).parent
# Of each package, the others that it may import; an entry with a dot allows one module only.
ALLOWED = {
    "runtime": {"errors"},
    "models": {"runtime", "errors"},
    "neighbors": {"runtime", "errors"},
    "storage": {"neighbors", "models.modules", "runtime", "errors"},
    "text": {"storage", "runtime", "errors"},
    "sources": {"models", "storage", "runtime", "errors"},
    "estimators": {"neighbors", "runtime", "errors"},
    "extraction": {"models", "neighbors", "storage", "runtime", "errors"},
    "results": {
        "estimators",
        "text.documents",
        "sources.untrained",
        "models.modules",
        "neighbors",
        "storage",
        "runtime",
        "errors",
    },
    "plots": {"results", "estimators", "neighbors", "storage", "runtime", "errors"},
    "study": {
        "plots.catalog",
        "results.inputs",
        "results.training_steps",
        "sources",
        "text",
        "estimators.registry",
        "neighbors",
        "models.modules",
        "models.layers",
        "storage",
        "runtime",
        "errors",
    },
    "cli": set(),  # all of them
}
ALLOWED["cli"] = {*ALLOWED, "extraction", "errors"}
# What a job imports that reads no model and no file format at all, so that it starts in a moment.
HEAVY = ("torch", "h5py", "pydantic", "snakemake", "transformers")
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


def imports_of(path: Path) -> Iterator[str]:
    """Yield the modules of this package that a module imports, anywhere in it, without the package's name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}: a relative import")
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            inside = node.module.removeprefix(PACKAGE.name).lstrip(".")
            yield from ([f"{inside}.{name.name}" for name in node.names] if "." not in inside else [inside])
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] == PACKAGE.name:
                    yield name.name.removeprefix(PACKAGE.name).lstrip(".")


def is_allowed(imported: str, package: str) -> bool:
    """Return whether a module of a package may import another."""
    parts = [part for part in imported.split(".") if part]
    if parts[0] == package:
        return True
    return any(parts[: len(entry.split("."))] == entry.split(".") for entry in ALLOWED[package])


def test_each_package_has_its_arrows() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(ALLOWED)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_its_package_may(path: Path) -> None:
    package = path.relative_to(PACKAGE).parts[0]
    assert [name for name in imports_of(path) if not is_allowed(name, package)] == []


def test_what_computes_an_extraction_imports_no_file_format() -> None:
    of_compute = {name.split(".")[0] for name in imports_of(PACKAGE / "extraction" / "compute.py")}
    assert of_compute <= {"models", "neighbors", "errors", "runtime"}
    modules = {name for name in imports_of(PACKAGE / "extraction" / "compute.py") if name.startswith("runtime")}
    assert modules <= {"runtime.logging"}


def test_an_upward_import_is_seen(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("def late():\n    from id_scaling.study.study import Study\n    from id_scaling import results\n")
    assert [is_allowed(name, "neighbors") for name in imports_of(module)] == [False, False]


@pytest.mark.parametrize("package", ["neighbors", "estimators"])
def test_numbers_need_no_torch(package: str) -> None:
    """All modules of a package together, in a process that imports nothing else."""
    names = [
        ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts))
        for path in MODULES
        if path.relative_to(PACKAGE).parts[0] == package and path.name not in ("__init__.py", "torch_kernels.py")
    ]
    code = f"import sys, {', '.join(names)}; print([name for name in {HEAVY} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_results_are_imported_without_scipy() -> None:
    """Where an interval is computed it is imported; who reads a table need not wait for it."""
    code = "import sys, id_scaling.results.summary, id_scaling.results.load; print('scipy' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False"


def test_an_estimator_does_not_know_what_applies_it() -> None:
    """A worker imports an estimator by name: what starts the worker would be imported in a circle."""
    appliers = {"estimators.apply", "estimators.arrays", "estimators.sandbox"}
    knowing = {
        path.stem for path in MODULES if path.parent.name == "estimators" and not appliers.isdisjoint(imports_of(path))
    }
    assert knowing == {"apply", "arrays"}
