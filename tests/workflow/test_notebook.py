"""The notebook of a study, cell by cell, in a clone of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt
import nbformat
import polars as pl
import pytest
from conftest import ROOT

NOTEBOOK = ROOT / "workflow" / "notebooks" / "study.ipynb"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, resources: Path) -> tuple[Path, dict[str, Any], list[Any]]:
    """The folder of a clone, and what running all cells left: their names, and the value of each last expression."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("Snakefile", "workflow", "profiles", "id_scaling", "environment.yml"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "resources").symlink_to(resources)
    names: dict[str, Any] = {}
    values = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
            if cell.cell_type == "code":
                values.append(run_cell(cell.source, names))
    return folder, names, values


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run a cell as a notebook does: return the value of an expression that it ends with, unless a `;` does."""
    import ast

    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) and not source.rstrip().endswith(";") else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    return last and eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)


def test_the_notebook_ends_with_a_table_and_figures_of_its_study(done: tuple) -> None:
    folder, names, values = done
    summary = names["summary"]
    assert set(summary["control"]) == {"none", "shuffle-5"}
    assert set(summary["layer"]) == {0, 15, 29}
    plain, shuffled = (summary.filter(control=control)["mean_loss"][0] for control in ("none", "shuffle-5"))
    assert plain < shuffled
    assert (folder / "results" / "notebook" / "report.html").is_file()
    table, profile, scatter = [value for value in values if value is not None]
    assert isinstance(table, pl.DataFrame)
    for chart in (profile, scatter):
        assert isinstance(chart, alt.TopLevelMixin)
        assert chart.to_dict()["datasets"]


def test_the_notebook_holds_no_outputs() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")
