"""The summary as readable text: the mean ID of each run at up to five layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import cast

import polars as pl

from id_scaling.neighbors.cloud_kinds import CONTEXT
from id_scaling.neighbors.views import leading_view
from id_scaling.results.columns import RUN_AXES
from id_scaling.results.run_tables import SCORES
from id_scaling.storage.layout import called


def mixture(values: Mapping[str, Iterable[str]]) -> str:
    """Return a warning about mixed dtypes or devices, given the values of each; empty if nothing is mixed.

    Examples
    --------
    >>> mixture({"dtype": ["float32", "bfloat16"], "device": ["cpu"]})
    'mixed dtype bfloat16, float32: differences between rows may come from precision, not from the models'
    >>> mixture({"dtype": ["float32"], "device": ["cpu"]})
    ''
    """
    mixed = {kind: sorted(kind_values) for kind, kind_values in values.items() if len(set(kind_values)) > 1}
    listed = "; ".join(f"{kind} {', '.join(kind_values)}" for kind, kind_values in mixed.items())
    return f"mixed {listed}: differences between rows may come from precision, not from the models" if mixed else ""


def readable(summary: pl.DataFrame) -> str:
    """Return the mean ID under the leading view at up to five layers, one line per run, cloud, and estimator."""
    view = leading_view(dict(summary.select("view", "null_cloud").iter_rows()))
    lines = [f"Mean intrinsic dimension by layer (view {view!r}), loss and entropy in nats/token"]
    if words := mixture({kind: set(summary[kind]) for kind in ("dtype", "device")}):
        lines.append(f"warning: {words}")
    rows = summary.filter(pl.col("group").is_null(), view=view)
    has_lengths = summary["ctx_len"].n_unique() > 1
    for run, table in rows.group_by(RUN_AXES, maintain_order=True):
        means = {score: table[f"mean_{score}"][0] for score in SCORES}
        layers = _evenly_spaced(sorted(table["layer"].drop_nulls().unique()))
        layer_headings = "".join(f"{f'layer {layer}':>10}" for layer in layers) + f"{'outside':>10}"
        n_layers = table["n_layers"][0]
        name = called(dict(zip(RUN_AXES, run, strict=True)), has_lengths)
        scores = ", ".join(f"{score} {_cell(mean, 3) or 'no number'}" for score, mean in means.items())
        lines += ["", f"{name}: {n_layers} layers, {scores}"]
        width = max(14, *(len(name) + 1 for name in table["estimator"]))
        lines.append(f"  {'module':<8}{'estimator':<{width}}{layer_headings}   not ok")
        for (cloud, position), cloud_rows in table.group_by("cloud", "position", maintain_order=True):
            if cloud != CONTEXT:
                where = "" if position is None else f" {position}"
                n_points = cast("float | None", cloud_rows["n_points"].max())  # null if no cloud has an estimate
                n_contexts = "all" if n_points is None else f"{n_points:.0f}"
                lines.append(f"  one cloud of {n_contexts} contexts: {cloud}{where}")
            lines += _lines(cloud_rows, layers, width)
    return "\n".join(lines) + "\n"


def _lines(table: pl.DataFrame, layers: list[int], width: int) -> Iterator[str]:
    """Yield one line per module and estimator, with the means at the given layers and outside the blocks."""
    for (module, estimator), part in table.group_by(["module", "estimator"], maintain_order=True):
        means = dict(zip(part["layer"], part["mean"], strict=True))
        cells = "".join(f"{_cell(means.get(layer)):>10}" for layer in (*layers, None))
        yield f"  {module:<8}{estimator:<{width}}{cells}{_failed(part):>9}"


def _evenly_spaced(layers: list[int]) -> list[int]:
    """Return up to five of the layers, evenly spaced, including the first and the last."""
    n = min(5, len(layers))
    return [layers[round(step * (len(layers) - 1) / max(n - 1, 1))] for step in range(n)]


def _cell(mean: float | None, n_digits: int = 2) -> str:
    """Return a mean as text, empty if it is missing."""
    return "" if mean is None else f"{mean:.{n_digits}f}"


def _failed(part: pl.DataFrame) -> str:
    """Return the number of clouds whose status is not `ok`, out of all."""
    return f"{part['n_failed'].sum()}/{part['n_contexts'].sum()}"
