"""One self-contained page of a session: what was run, its figures in the order of questions, and what to doubt."""

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
    """Write the report of a session whose figures are drawn."""
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
    """Return the place of a figure."""
    return (
        f'<p>{_marked(caption)}</p><div class="wide"><div class="figure" id="figure-{name}" role="figure" '
        f'aria-label="{escape(name)}"></div></div><button data-figure="{name}">Data of this figure (CSV)</button>'
    )


def _marked(text: str) -> str:
    """Return text for the page, what stands in backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _listed(values: list, most: int) -> str:
    """Return up to so many values in words."""
    shown = ", ".join(map(str, values[:most]))
    return shown if len(values) <= most else f"{shown} and {len(values) - most} more"


def _table(rows: Iterable[tuple[str, str]]) -> str:
    """Return named values as a table."""
    lines = (f"<tr><th scope=row>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _what_was_run(summary: pl.DataFrame) -> str:
    """Return the tables of what was run and of the views."""
    return _table(_axes(summary)) + _table(_views(summary))


def _axes(summary: pl.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield what the study is the product of, and how large it is."""
    for model in style.unique(summary, "model"):
        of_model = summary.filter(model=model)
        n_parameters, n_layers = of_model["n_parameters"][0], of_model["n_layers"][0]
        yield (
            f"model {model}",
            f"{n_layers} layers, {n_parameters:,} parameters, {_listed(style.unique(of_model, 'dtype'), 3)}",
        )
        yield "its checkpoints", _listed(style.unique(of_model, "checkpoint"), 12)
    has_lengths = summary["ctx_len"].n_unique() > 1
    for dataset, ctx_len in summary.select("dataset", "ctx_len").unique(maintain_order=True).iter_rows():
        of_dataset = summary.filter(pl.col("group").is_null(), dataset=dataset, ctx_len=ctx_len)
        # One cloud of a run has a point for each context.
        context_count = pl.when(level=CONTEXT).then("n_contexts").otherwise("n_points").cast(pl.Int64)
        by_subset = of_dataset.with_columns(n_contexts=context_count).group_by("subset", maintain_order=True)
        of_subset = by_subset.agg(pl.col("n_contexts", "n_documents").max())
        n_contexts, n_documents = of_subset["n_contexts"].sum(), of_subset["n_documents"].sum()
        said = f"{n_contexts:,} contexts of {n_documents:,} documents"
        said += f"; {ctx_len} tokens a context" if has_lengths else ""
        yield f"dataset {dataset}", f"shards {_listed(style.unique(of_dataset, 'subset'), 12)}: {said}"
    if clouds := style.unique(summary.filter(level="run"), "cloud"):
        yield "of all contexts of a run", f"{_listed(clouds, 3)}: rows of level `run` of summary.csv, in no figure"
    for key in ("control", "module", "estimator", "group", "device", "versions"):
        values = [value for value in style.unique(summary, key) if value is not None]
        if values:
            yield f"{key}s".replace("versionss", "versions"), _listed(values, 12)
    losses = summary.filter(pl.col("group").is_null(), control="none")["mean_loss"].drop_nulls()
    if len(losses):
        yield "mean loss, plain text", "{:.3f} to {:.3f} nats/token".format(*style.bounds(losses))


def _views(summary: pl.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield what each view does."""
    columns = ["skip_first_tokens", "duplicates", "decimate", "draw", "preprocess", "exclude_window", "null_cloud"]
    plain = {"decimate": 0, "draw": 0, "preprocess": RAW, "exclude_window": 0, "null_cloud": "none"}
    of_views = summary.group_by("view", maintain_order=True).agg(pl.col(columns).drop_nulls().first())
    for name, *values in of_views.iter_rows():
        said = [f"{key} {value}" for key, value in zip(columns, values, strict=True) if plain.get(key) != value]
        yield f"view {name}", ", ".join(said)


def _trust(summary: pl.DataFrame) -> str:
    """Return how far the numbers carry, as a list."""
    view = style.leading_name(summary)
    kinds = {True: "doubt", False: "fine", None: "fact"}
    items = (f'<li class="{kinds[is_doubt]}">{_marked(said)}</li>' for is_doubt, said in remarks(summary))
    return f"<p>Of the view {escape(repr(view))}, which text and most figures show.</p><ul>{''.join(items)}</ul>"
