"""Where a session keeps what; and that the axes of a run are told in one place."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

import id_scaling
from id_scaling.storage import layout
from id_scaling.storage.layout import AXES, Run, run_of

PACKAGE = Path(id_scaling.__file__).parent
# Where axes are told: what they are; their values by the configuration, and for the summary; what their columns mean.
TOLD = {"storage/layout.py", "study/axes.py", "study/settings.py", "results/columns.py"}
# Of the six, as many as one place may name for a reason of its own: contexts are cut by three, and a control.
MAX_AXES = 3


def axes_of(statement: ast.stmt) -> set[str]:
    """Return the axes that one statement names: in code, keys, columns or templates, and not in those inside it."""
    names: set[str] = set()
    pending: list[ast.AST] = [statement]
    while pending:
        node = pending.pop()
        pending += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.stmt)]
        names |= {getattr(node, field, None) for field in ("id", "attr", "arg")}
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= {node.value, *re.findall(r"\{(\w+)\}", node.value)}
    return names & set(AXES)


def statements(source: str) -> Iterator[ast.stmt]:
    """Yield every statement of a module."""
    yield from (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt))


def test_axes_are_told_in_one_place() -> None:
    telling = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(len(axes_of(statement)) > MAX_AXES for statement in statements(path.read_text()))
    }
    assert telling == TOLD


@pytest.mark.parametrize(
    "source",
    [
        'RUN = ["model", "checkpoint", "dataset", "subset", "ctx_len", "control"]',
        'path = f"runs/{run.model}/{run.checkpoint}/{run.dataset}/{run.subset}"',
        'path = "{dataset}/{subset}/{ctx_len}/{control}"',
        "def settings(model, checkpoint, dataset, subset):\n    pass",
        "if True:\n    row = table(dataset=1, subset=2, ctx_len=3, control=4)",
    ],
)
def test_another_place_would_be_seen(source: str) -> None:
    assert any(len(axes_of(statement)) > MAX_AXES for statement in statements(source))


def test_rules_spell_no_path_of_a_run() -> None:
    files = [*(ROOT / "workflow").rglob("*.smk"), ROOT / "workflow" / "Snakefile", *(ROOT / "tests").rglob("*.smk")]
    assert len(files) > 9
    spelled = re.compile(rf"\{{+({'|'.join(AXES)})\}}+/\{{")
    assert [path for path in files if spelled.search(path.read_text())] == []
    assert spelled.search('"<session>/runs/{model}/{checkpoint}/x"')


def test_wildcards_give_back_the_run_of_a_path() -> None:
    run = Run("m", "step1", "d", 3, 64, "shuffle-2")
    names = dict(zip(AXES, layout.RUN_NAMES.format(**vars(run)).split("/"), strict=True))
    assert run_of({**names, "module": "mlp", "estimator": "mle"}) == run
