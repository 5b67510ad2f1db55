"""What code computes, as a hash: blind to words, formatting and the places of modules, aware of helpers.

Only the packages of COMPUTING can change a number, so only they count. What stores, locks, logs, resumes, fetches or
parses is outside: a changed file format is said by `storage.layout.LAYOUT_VERSION`.

The fingerprint of a module is the hash of its syntax tree without docstrings, without the words of its errors and log
lines, and with each import of a module of the package replaced by the fingerprint of that module. So a module may
move, be renamed, or have its imports reordered, and two functions of one name in two modules differ. `ast.unparse` is
stable over Python versions where `ast.dump` is not. Imports must be statements: what is imported by name at run time is
not followed, so it has to be named as a further root (an estimator next to the job that runs it).
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

PACKAGE = "id_scaling"
ROOT = Path(__file__).parent.parent

# Folders of the package whose code can change the content of an output.
COMPUTING = ("estimators", "extraction", "models", "neighbors", "plots", "results", "text")

LOGGING_METHODS = {"critical", "debug", "error", "exception", "info", "log", "warn", "warning"}


@cache
def fingerprint(*modules: str) -> str:
    """Return 12 hexadecimal digits that change when, and only when, what the modules compute may change.

    Parameters
    ----------
    *modules : str
        Dotted names; each counts, in whichever folder it is.
    """
    return hashlib.sha256("\n".join(sorted({_hash(module) for module in modules})).encode()).hexdigest()[:12]


@cache
def closure(module: str) -> frozenset[str]:
    """Return `module` and every computing module that it imports, transitively."""
    members, pending = set(), [module]
    while pending:
        name = pending.pop()
        if name not in members:
            members.add(name)
            pending.extend(filter(is_computing, _imported(_tree(name))))
    return frozenset(members)


def is_computing(module: str) -> bool:
    """Return whether a module of the package is in a folder of COMPUTING."""
    return module.split(".")[1] in COMPUTING


@cache
def _hash(module: str) -> str:
    """Return the hash of a module and, through its imports, of all that it computes with."""
    text = _normalized(_tree(module))
    return hashlib.sha256(text.encode()).hexdigest()


def _path(module: str) -> Path:
    """Return the source file of a module of the package."""
    base = ROOT.joinpath(*module.split(".")[1:])
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def _tree(module: str) -> ast.Module:
    """Return the syntax tree of a module, without what is read by type checkers only."""
    return _WithoutTypes().visit(ast.parse(_path(module).read_text(encoding="utf-8")))


def _imported(tree: ast.AST) -> set[str]:
    """Return the modules of the package that the import statements of a tree name."""
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {name for statement in statements for alias in statement.names if (name := _module_of(statement, alias))}


def _module_of(statement: ast.Import | ast.ImportFrom, alias: ast.alias) -> str | None:
    """Return the module of the package that one name of an import statement is, or is taken from."""
    if isinstance(statement, ast.Import):
        names = [alias.name]
    else:
        names = [f"{statement.module}.{alias.name}", statement.module]
    return next((name for name in names if name.startswith(f"{PACKAGE}.") and _path(name).is_file()), None)


def _normalized(tree: ast.Module) -> str:
    """Return the text of a module's tree in which nothing is left that cannot change a number."""
    tree = _WithoutWords().visit(tree)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    others = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
    # Their order is a matter of taste; below the top level a statement stays where it is.
    lines = sorted(line for node in imports for line in _import_lines(node))
    return "\n".join([*lines, ast.unparse(_WithoutPaths().visit(ast.Module(others, [])))])


def _import_lines(statement: ast.Import | ast.ImportFrom) -> list[str]:
    """Return one line for each name of an import: a module of the package by what it computes, not by where it is."""
    lines = []
    for alias in statement.names:
        module = _module_of(statement, alias)
        if module is None:
            name = alias.name if isinstance(statement, ast.Import) else f"{statement.module}.{alias.name}"
        else:
            content = _hash(module) if is_computing(module) else "outside"
            is_module = isinstance(statement, ast.Import) or module == f"{statement.module}.{alias.name}"
            name = content if is_module else f"{content}.{alias.name}"
        lines.append(f"import {name} as {alias.asname or alias.name}")
    return lines


class _WithoutTypes(ast.NodeTransformer):
    """Drops blocks of `if TYPE_CHECKING`, which never run, and the import of annotations."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        return self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        is_of_types = node.module == "__future__" or all(alias.name == "TYPE_CHECKING" for alias in node.names)
        return None if is_of_types else node


class _WithoutWords(ast.NodeTransformer):
    """Drops docstrings, and blanks the text of errors that are raised and of lines that are logged."""

    def _documented(self, node: ast.AST) -> ast.AST:
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return self.generic_visit(node)

    visit_Module = visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _documented

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return _Blank().visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        return _Blank().visit(node) if _is_logged(node.value) else self.generic_visit(node)


class _Blank(ast.NodeTransformer):
    """Blanks every text; what is formatted into it stays."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant("") if isinstance(node.value, str) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        values = [self.generic_visit(part) for part in node.values if isinstance(part, ast.FormattedValue)]
        return ast.JoinedStr(values) if values else ast.Constant("")


class _WithoutPaths(ast.NodeTransformer):
    """Writes imports below the top level as the fingerprints of their modules."""

    def visit_Import(self, node: ast.Import) -> list[ast.AST]:
        return [ast.Expr(ast.Constant(line)) for line in _import_lines(node)]

    visit_ImportFrom = visit_Import


def _is_logged(node: ast.expr) -> bool:
    """Return whether an expression is a line of a log, or a warning."""
    is_method = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    if not is_method or not isinstance(node.func.value, ast.Name):
        return False
    owner, method = node.func.value.id, node.func.attr
    return (owner == "LOG" and method in LOGGING_METHODS) or (owner, method) == ("warnings", "warn")
