"""The report of a session, one self-contained page: what was run, figures in the order of questions, and caveats."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path

import polars as pl

from id_scaling.neighbors.cloud_kinds import CONTEXT
from id_scaling.neighbors.views import RAW
from id_scaling.plots import style
from id_scaling.plots.catalog import FIGURES
from id_scaling.plots.caveats import remarks
from id_scaling.plots.page import report_page


def write_report(summary: pl.DataFrame, charts: Mapping[str, style.Specification], path: Path) -> None:
    """Write the report of a session from its summary and its figures."""
    title = f"Intrinsic dimension of {_listed(style.unique(summary, 'model'), 3)}"
    sections = [("what", "What was run", _what_was_run(summary))]
    for figure in FIGURES:
        if figure.name in charts:
            sections.append((figure.name, figure.question, _figure(figure.name, figure.caption)))
    sections.append(("trust", "How far to trust this", _trust(summary)))
    page = report_page(
        title=escape(title),
        contents="".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in sections),
        sections="\n".join(
            f'<section id="{name}"><h2>{escape(heading)}</h2>{body}</section>' for name, heading, body in sections
        ),
        specifications=charts,
    )
    path.write_text(page, encoding="utf-8")


def _figure(name: str, caption: str) -> str:
    """Return the HTML of a figure: caption, empty place, and button for its data."""
    return (
        f'<p>{_marked(caption)}</p><div class="wide"><div class="figure" id="figure-{name}" role="figure" '
        f'aria-label="{escape(name)}"></div></div><button data-figure="{name}">Data of this figure (CSV)</button>'
    )


def _marked(text: str) -> str:
    """Return text as HTML, with backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _listed(values: list, most: int) -> str:
    """Return up to `most` values in words, and the number of the others."""
    shown = ", ".join(map(str, values[:most]))
    return shown if len(values) <= most else f"{shown} and {len(values) - most} more"


def _table(rows: Iterable[tuple[str, str]]) -> str:
    """Return named values as an HTML table."""
    lines = (f"<tr><th scope=row>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _what_was_run(summary: pl.DataFrame) -> str:
    """Return the tables of the axes and of the views."""
    return _table(_axes(summary)) + _table(_views(summary))


def _axes(summary: pl.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield the axes of the study with their values and sizes."""
    for model in style.unique(summary, "model"):
        model_rows = summary.filter(model=model)
        n_parameters, n_layers = model_rows["n_parameters"][0], model_rows["n_layers"][0]
        yield (
            f"model {model}",
            f"{n_layers} layers, {n_parameters:,} parameters, {_listed(style.unique(model_rows, 'dtype'), 3)}",
        )
        yield "its checkpoints", _listed(style.unique(model_rows, "checkpoint"), 12)
    has_lengths = summary["ctx_len"].n_unique() > 1
    for dataset, ctx_len in summary.select("dataset", "ctx_len").unique(maintain_order=True).iter_rows():
        dataset_rows = summary.filter(pl.col("group").is_null(), dataset=dataset, ctx_len=ctx_len)
        # A cloud of all contexts has one point per context.
        context_count = pl.when(level=CONTEXT).then("n_contexts").otherwise("n_points").cast(pl.Int64)
        by_subset = dataset_rows.with_columns(n_contexts=context_count).group_by("subset", maintain_order=True)
        subset_counts = by_subset.agg(pl.col("n_contexts", "n_documents").max())
        n_contexts, n_documents = subset_counts["n_contexts"].sum(), subset_counts["n_documents"].sum()
        description = f"{n_contexts:,} contexts of {n_documents:,} documents"
        description += f"; {ctx_len} tokens per context" if has_lengths else ""
        yield f"dataset {dataset}", f"shards {_listed(style.unique(dataset_rows, 'subset'), 12)}: {description}"
    if clouds := style.unique(summary.filter(level="run"), "cloud"):
        yield "clouds of all contexts", f"{_listed(clouds, 3)}: only in summary.csv, as rows of level run"
    for key in ("control", "module", "estimator", "group", "device", "versions"):
        values = [value for value in style.unique(summary, key) if value is not None]
        if values:
            yield f"{key}s".replace("versionss", "versions"), _listed(values, 12)
    losses = summary.filter(pl.col("group").is_null(), control="none")["mean_loss"].drop_nulls()
    if len(losses):
        yield "mean loss, plain text", "{:.3f} to {:.3f} nats/token".format(*style.bounds(losses))


def _views(summary: pl.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield the settings of each view that differ from doing nothing."""
    columns = ["skip_first_tokens", "duplicates", "decimate", "draw", "preprocess", "exclude_window", "null_cloud"]
    plain = {"decimate": 0, "draw": 0, "preprocess": RAW, "exclude_window": 0, "null_cloud": "none"}
    view_settings = summary.group_by("view", maintain_order=True).agg(pl.col(columns).drop_nulls().first())
    for name, *values in view_settings.iter_rows():
        changes = [f"{key} {value}" for key, value in zip(columns, values, strict=True) if plain.get(key) != value]
        yield f"view {name}", ", ".join(changes)


def _trust(summary: pl.DataFrame) -> str:
    """Return the remarks on how far to trust the numbers, as a list."""
    view = style.leading_name(summary)
    kinds = {True: "doubt", False: "fine", None: "fact"}
    items = (f'<li class="{kinds[is_doubt]}">{_marked(sentence)}</li>' for is_doubt, sentence in remarks(summary))
    return (
        f"<p>For the view {escape(repr(view))}, which summary.txt and most figures show.</p><ul>{''.join(items)}</ul>"
    )
