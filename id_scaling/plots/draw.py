"""The figures of a session, drawn from its tables and written in each format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import altair as alt
import polars as pl

from id_scaling.files import writing
from id_scaling.logs import LOG
from id_scaling.plots.by_layer import id_by_layer
from id_scaling.plots.fit import twonn_fit
from id_scaling.plots.lines import estimator_agreement, id_by_control, id_by_length, id_by_view
from id_scaling.plots.loss import id_against_loss, loss_by_position
from id_scaling.plots.page import FIGURE, as_script, libraries
from id_scaling.plots.report import write_report
from id_scaling.plots.scales import id_by_n_points, id_by_scale
from id_scaling.plots.style import NothingToShowError, nothing
from id_scaling.plots.training import id_by_layer_and_step, id_by_size, id_by_step
from id_scaling.sealed import read_table

REPORT = "report.html"
# Of the summary alone, and of the rows behind it too.
OF_SUMMARY = (
    id_by_layer,
    estimator_agreement,
    id_by_view,
    id_by_scale,
    id_by_n_points,
    id_by_length,
    id_by_control,
    id_by_step,
    id_by_layer_and_step,
    id_by_size,
)
OF_SESSION = (twonn_fit, id_against_loss, loss_by_position)


def plot(session: Path, outputs: Sequence[Path]) -> None:
    """Draw figures of a session, each by the name of its file, and the report of all of them.

    Parameters
    ----------
    session : Path
        The folder of the session.
    outputs : sequence of Path
        Files to write: `NAME.html`, `.svg` or `.png` of figures, and `report.html`.
    """
    summary, _ = read_table(session / "summary.parquet")
    alt.data_transformers.disable_max_rows()
    names = list(dict.fromkeys(output.stem for output in outputs if output.name != REPORT))
    charts = {name: chart_of(name, summary, session) for name in names}
    for output in outputs:
        with writing(output) as aside:
            if output.name == REPORT:
                write_report(summary, charts, aside)
            else:
                _save(output.stem, charts[output.stem], aside, output.suffix[1:])
    LOG.info("drew %s", ", ".join(map(str, outputs)))


def chart_of(name: str, summary: pl.DataFrame, session: Path) -> alt.TopLevelMixin:
    """Return the figure of a name; where it has no data, what says so."""
    of_summary = {draw.__name__: draw for draw in OF_SUMMARY}
    try:
        if name in of_summary:
            return of_summary[name](summary)
        return {draw.__name__: draw for draw in OF_SESSION}[name](summary, session)
    except NothingToShowError as error:
        return nothing(str(error))


def _save(name: str, chart: alt.TopLevelMixin, path: Path, kind: str) -> None:
    """Write a figure in one format; as HTML it needs no network."""
    if kind == "html":
        path.write_text(FIGURE.format(title=name, libraries=libraries(), spec=as_script(chart.to_dict())), "utf-8")
    else:
        chart.save(str(path), format=kind, **({"ppi": 150} if kind == "png" else {}))
