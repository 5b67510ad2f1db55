"""What code computes, as a hash: blind to words, formatting and the places of modules, aware of helpers.

Only the packages of COMPUTING can change a number, so only they count. What stores, locks, logs, resumes, fetches or
parses is outside: a changed file format is said by `storage.layout.LAYOUT_VERSION`.

The fingerprint of a module is the hash of its syntax tree without docstrings, without the words of its errors and log
lines, with only the default of a declared setting, and with each import of a module of the package replaced by the
fingerprint of that module. So a module may move, be renamed, or have its imports reordered, and two functions of one
name in two modules differ. An imported folder counts with the files in it, as the templates of pages. `ast.unparse` is
stable over Python versions where `ast.dump` is not. Imports must be statements: what is imported by name at run time is
not followed, so it has to be named as a further root (an estimator next to the job that runs it).
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from id_scaling.runtime import settings

PACKAGE = "id_scaling"
ROOT = Path(__file__).parent.parent

# Folders of the package whose code can change the content of an output.
COMPUTING = ("estimators", "extraction", "models", "neighbors", "plots", "results", "text")

# The modules that each verb of the command line starts from; an estimate starts from its estimator too.
ROOTS = {
    "train-tokenizer": ("id_scaling.sources.bundled_training",),
    "train-model": ("id_scaling.sources.bundled_training",),
    # Which tokens a text has is decided next to the digest of a tokenizer.
    "chunk": ("id_scaling.text.chunking", "id_scaling.storage.tokenizers"),
    "shuffle": ("id_scaling.text.shuffling",),
    "extract": ("id_scaling.extraction.compute",),
    "estimate": ("id_scaling.results.estimates",),
    "summarize": ("id_scaling.results.summary",),
    "plot": ("id_scaling.plots.render",),
}

# What may start with a docstring.
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
SETTING = settings.setting.__name__
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
            pending.extend(filter(is_computing, imported(name)))
    return frozenset(members)


def is_computing(module: str) -> bool:
    """Return whether a module of the package is in a folder of COMPUTING."""
    return module.split(".")[1] in COMPUTING


def imported(module: str) -> set[str]:
    """Return the modules of the package that the import statements of a module name."""
    return {name for _, imports in _parsed(_source(module)) for each in imports if (name := each.module)}


@cache
def _hash(module: str) -> str:
    """Return the hash of a module and, through its imports, of all that it computes with."""
    lines = [
        "\n".join([text, *sorted(each.line(_hash) for each in imports)]) for text, imports in _parsed(_source(module))
    ]
    return hashlib.sha256("\n".join([*lines, *_data(module)]).encode()).hexdigest()


def _data(module: str) -> list[str]:
    """Return name and hash of each file of a package that is not Python; of a module nothing."""
    path = _path(module)
    files = sorted(path.parent.iterdir()) if path.name == "__init__.py" else []
    # An editor keeps hidden files.
    kept = [file for file in files if file.is_file() and file.suffix != ".py" and not file.name.startswith(".")]
    return [f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in kept]


def _path(module: str) -> Path:
    """Return the source file of a module of the package."""
    base = ROOT.joinpath(*module.split(".")[1:])
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def _source(module: str) -> str:
    """Return the source of a module of the package."""
    return _path(module).read_text(encoding="utf-8")


@dataclass(frozen=True)
class _Import:
    """One name of an import statement.

    Parameters
    ----------
    package : str
        The module that the statement names, empty in `import NAME`.
    name, alias : str
        What is imported from there, and what it is called here.
    """

    package: str
    name: str
    alias: str

    @property
    def module(self) -> str | None:
        """The module of the package that the name is, or is taken from."""
        names = [f"{self.package}.{self.name}", self.package] if self.package else [self.name]
        return next((name for name in names if name.startswith(f"{PACKAGE}.") and _path(name).is_file()), None)

    def line(self, hash_of: Callable[[str], str]) -> str:
        """Return the import as text, in which a module of the package is what it computes, and not where it is."""
        module = self.module
        if module is None:
            return f"import {self.package} {self.name} as {self.alias}"
        content = hash_of(module) if is_computing(module) else "outside"
        is_module = module != self.package
        return f"import {content} {'' if is_module else self.name} as {self.alias}"


@cache
def _parsed(source: str) -> list[tuple[str, list[_Import]]]:
    """Return the text of a module in which nothing is left that cannot change a number, with what it imports.

    First the module's text and its imports at the top level, whose order is a matter of taste. Then each import
    statement below that, in order; the text marks its place.
    """
    tree = _WithoutWords().visit(_WithoutDeclarations().visit(_WithoutTypes().visit(ast.parse(source))))
    is_import = [isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body]
    top = [each for node, is_one in zip(tree.body, is_import, strict=True) if is_one for each in _names_of(node)]
    below = _WithoutImports()
    rest = [node for node, is_one in zip(tree.body, is_import, strict=True) if not is_one]
    text = ast.unparse(below.visit(ast.Module(rest, [])))
    return [(text, top), *(("", imports) for imports in below.imports)]


def _names_of(statement: ast.Import | ast.ImportFrom) -> list[_Import]:
    """Return the names of an import statement."""
    package = statement.module or "" if isinstance(statement, ast.ImportFrom) else ""
    return [_Import(package, alias.name, alias.asname or alias.name) for alias in statement.names]


class _WithoutTypes(ast.NodeTransformer):
    """Drops blocks of `if TYPE_CHECKING`, which never run, and the import of annotations."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" and not node.orelse:
            return None
        return self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        node.names = [alias for alias in node.names if alias.name != "TYPE_CHECKING"]
        return node if node.names and node.module != "__future__" else None


class _WithoutDeclarations(ast.NodeTransformer):
    """Leaves of a declared setting its default: its meaning and its bounds are those of a key of the configuration."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name) and node.value.func.id == SETTING:
            node.value = node.value.args[0]
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        if node.module == settings.__name__:
            node.names = [alias for alias in node.names if alias.name != SETTING]
        return node if node.names else None


class _WithoutWords(ast.NodeTransformer):
    """Drops docstrings, and blanks the text of errors that are raised and of lines that are logged."""

    def _documented(self, node: Documented) -> ast.AST:
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return self.generic_visit(node)

    visit_Module = visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _documented

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        _without_message(node.exc)
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if is_logged(node.value):
            _without_message(node.value)
            return node
        return self.generic_visit(node)


def _blank(node: ast.expr) -> ast.expr:
    """Return a message without its words: what is formatted into it stays, and what other calls are given."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return ast.Constant("")
    if isinstance(node, ast.JoinedStr):
        values: list[ast.expr] = [part for part in node.values if isinstance(part, ast.FormattedValue)]
        return ast.JoinedStr(values) if values else ast.Constant("")
    if isinstance(node, ast.BinOp):
        return ast.BinOp(_blank(node.left), node.op, _blank(node.right))
    if isinstance(node, ast.IfExp):
        return ast.IfExp(node.test, _blank(node.body), _blank(node.orelse))
    return node


def _without_message(call: ast.expr | None) -> None:
    """Take the words out of the making of an error, or of a line of a log."""
    if isinstance(call, ast.Call):
        call.args = [_blank(argument) for argument in call.args]


class _WithoutImports(ast.NodeTransformer):
    """Takes imports out of a tree and keeps them; `pass` marks where each was."""

    def __init__(self) -> None:
        self.imports: list[list[_Import]] = []

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> ast.AST:
        self.imports.append(_names_of(node))
        return ast.Pass()

    visit_ImportFrom = visit_Import


def is_logged(node: ast.expr) -> bool:
    """Return whether an expression is a line of a log, or a warning."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    if not isinstance(node.func.value, ast.Name):
        return False
    owner, method = node.func.value.id, node.func.attr
    return (owner == "LOG" and method in LOGGING_METHODS) or (owner, method) == ("warnings", "warn")
