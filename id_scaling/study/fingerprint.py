"""What code means, as a hash: blind to comments, docstrings and formatting, aware of helpers.

The fingerprint of a module is the hash of its docstring-free `ast.unparse` and of that of every module
of this package that it imports, transitively. `ast.unparse` is stable over Python versions where
`ast.dump` is not. Imports must be statements: what is imported by name at run time is not followed,
so it has to be named as a further root (an estimator beside the module that runs it).
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

PACKAGE = "id_scaling"
ROOT = Path(__file__).parents[1]

# Modules that cannot change the content of an output: the words of errors, the lines of a log, and the registry of
# estimators with its grammar, whose whole answer for one name stands in the settings beside the fingerprint.
WITHOUT_CONTENT = frozenset(f"{PACKAGE}.{module}" for module in ("errors", "logs", "estimators", "estimators.grammar"))


@cache
def fingerprint(*modules: str) -> str:
    """Return 12 hexadecimal digits that change when, and only when, the modules' meaning changes."""
    members = sorted(set().union(*(closure(module) for module in modules)))
    text = "\n".join(f"# {name}\n{_read(_path(name))[1]}" for name in members)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@cache
def closure(module: str) -> frozenset[str]:
    """Return `module` and every module of the package it imports, transitively."""
    found, pending = set(), [module]
    while pending:
        name = pending.pop()
        if name not in found and name not in WITHOUT_CONTENT:
            found.add(name)
            pending.extend(_read(_path(name))[0])
    return frozenset(found)


def _path(module: str) -> Path:
    """Return the source file of a module of the package."""
    base = ROOT.joinpath(*module.split(".")[1:])
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


@cache
def _read(path: Path) -> tuple[set[str], str]:
    """Return the package modules that a file imports, and its source without docstrings, comments and formatting."""
    tree = ast.parse(path.read_text())
    _drop_docstrings(tree)
    return _imports(tree), ast.unparse(tree)


def _imports(tree: ast.Module) -> set[str]:
    """Return the package modules that import statements name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith(PACKAGE + ".") and _path(name).is_file()}


def _drop_docstrings(tree: ast.Module) -> None:
    """Take the docstrings out of a syntax tree."""
    for node in ast.walk(tree):
        is_documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if is_documented and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
