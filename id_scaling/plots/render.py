"""Draw the figures of a session from its tables, and write them in each format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import altair as alt
import polars as pl
import vl_convert

from id_scaling.plots import style
from id_scaling.plots.comparisons import estimator_agreement, id_by_control, id_by_length, id_by_view
from id_scaling.plots.depth import id_by_layer
from id_scaling.plots.loss import id_against_loss, loss_by_position
from id_scaling.plots.page import figure_page
from id_scaling.plots.report import write_report
from id_scaling.plots.scales import id_by_n_points, id_by_scale
from id_scaling.plots.training import id_by_layer_and_step, id_by_size, id_by_step
from id_scaling.plots.twonn_fit import twonn_fit
from id_scaling.runtime.atomic_files import writing_all
from id_scaling.runtime.logging import LOG
from id_scaling.storage.records import read_table

REPORT = "report.html"
# The version of Vega-Lite that altair writes, as vl_convert names it: v6.1.0 is 6.1.
VEGA_LITE = alt.SCHEMA_VERSION.removeprefix("v").rpartition(".")[0]
PIXELS_AN_INCH = 150
# Figures that need only the summary, and figures that also read other files of the session.
OF_SUMMARY = (
    id_by_layer,
    estimator_agreement,
    id_by_view,
    id_by_n_points,
    id_by_length,
    id_by_control,
    id_by_step,
    id_by_layer_and_step,
    id_by_size,
)
OF_SESSION = (twonn_fit, id_by_scale, id_against_loss, loss_by_position)


def plot(session: Path, outputs: Sequence[Path]) -> None:
    """Draw figures of a session, each named by its file, and the report; replace all files as one set.

    Parameters
    ----------
    session : Path
        The folder of the session.
    outputs : sequence of Path
        Files to write: `NAME.html`, `NAME.svg`, or `NAME.png` for figures, and `report.html`.
    """
    with writing_all(outputs) as places:
        draw(session, dict(zip(outputs, places, strict=True)))


def draw(session: Path, places: Mapping[Path, Path]) -> None:
    """Draw figures and the report like `plot`, each to the path that `places` gives for its output."""
    summary, _ = read_table(session / "summary.parquet")
    alt.data_transformers.disable_max_rows()
    names = dict.fromkeys(output.stem for output in places if output.name != REPORT)
    charts = {name: chart_of(name, summary, session) for name in names}

    @cache
    def image(name: str) -> str:
        return vl_convert.vegalite_to_svg(charts[name], vl_version=VEGA_LITE)

    for output, place in places.items():
        if output.name == REPORT:
            write_report(summary, charts, place)
        elif output.suffix == ".html":
            place.write_text(figure_page(output.stem, charts[output.stem]), encoding="utf-8")
        elif output.suffix == ".svg":
            place.write_text(image(output.stem), encoding="utf-8")
        else:
            place.write_bytes(vl_convert.svg_to_png(image(output.stem), ppi=PIXELS_AN_INCH))
    LOG.info("drew %s", ", ".join(map(str, places)))


def chart_of(name: str, summary: pl.DataFrame, session: Path) -> style.Specification:
    """Return the named figure, or a message if it has no data."""
    summary_figures = {draw.__name__: draw for draw in OF_SUMMARY}
    try:
        if name in summary_figures:
            return style.with_warning(summary_figures[name](summary))
        return style.with_warning({draw.__name__: draw for draw in OF_SESSION}[name](summary, session))
    except style.NothingToShowError as error:
        return style.nothing(str(error))
