"""Means against the scale at which an estimator looks, and against how many points it sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import altair as alt
import polars as pl

from id_scaling.estimators import gride, mle, twonn
from id_scaling.estimators.base import OK, Estimator, estimate_from_neighbors
from id_scaling.layers import neighbors_at
from id_scaling.load import run_named
from id_scaling.neighbors import Neighbors
from id_scaling.paths import run_folder
from id_scaling.plots import style
from id_scaling.plots.catalogue import SAME
from id_scaling.sealed import read_record

# Kinds of estimators by their names up to the scale, and what it is.
SCALES = {"gride_n": "rank n, of n and 2n", "twoNN_f": "points discarded (%)", "mle_k": "neighbors k"}
# The spread of `mle` is infinite below.
LEAST_K = 4
MOST_CONTEXTS, MOST_SCALES = 16, 32
OF_SCALE = {"layer": pl.Int64, "kind": pl.String, "scale": pl.Int64, "mean": pl.Float64, "sd": pl.Float64}
OF_SCALE |= {"n_contexts": pl.Int64, "n_failed": pl.Int64}
LAYERS = alt.Color("layer:O", scale=alt.Scale(scheme="viridis"), title="layer")


def id_by_scale(summary: pl.DataFrame, session: Path) -> style.Specification:
    """Return the figure: a few layers against scale, a panel for each kind of estimator, of the leading run.

    All that stored neighbors allow is estimated for it, of up to 16 contexts, whichever estimators the study names.
    """
    table = _of_leading_run(style.of_all_contexts(style.leading(summary)))
    first = table.row(0, named=True)
    run = {key: first[key] for key in style.RUN}
    folder = run_folder(session, run_named(session, run))
    manifest = read_record(folder / "manifest.json")
    rows = range(0, manifest["n_contexts"], -(-manifest["n_contexts"] // MOST_CONTEXTS))
    sites = [(layer, first["module"], first["view"]) for layer in style.unique(table, "layer")]
    found = {site: neighbors_at(folder, manifest, *site, rows, tuple(manifest["ranks"])) for site in sites}
    means = pl.concat(_by_scale(neighbors, layer) for (layer, *_), neighbors in found.items())
    names = (pl.lit(first[key]).alias(key) for key in ("model", "checkpoint", "module", "run"))

    def titles(of_row: pl.DataFrame) -> tuple[str, str]:
        of_contexts = f"mean ± 1 sd over {len(rows)} of {manifest['n_contexts']} contexts"
        n_layers = of_row["layer"].n_unique()
        said = f"module {first['module']!r}, view {first['view']!r}, {of_contexts}, {n_layers} layers{first['others']}"
        return first["run"], said

    return style.configured(style.grid(means.with_columns(names), "run", "kind", _against_scale, titles))


def _by_scale(neighbors: Neighbors, layer: int | None) -> pl.DataFrame:
    """Return the mean and the standard deviation at each scale over the contexts with status `ok` there."""
    rows = []
    for kind, scale, estimator in _stored(neighbors.ranks):
        found = estimate_from_neighbors(estimator, neighbors)
        values = pl.Series(found.value[found.status == OK], dtype=pl.Float64)
        rows.append((layer, kind, scale, values.mean(), values.std(), len(found.value), len(found.value) - len(values)))
    table = pl.DataFrame(rows, schema=OF_SCALE, orient="row").filter(pl.col("mean").is_not_null())
    return table.with_columns(low=pl.col("mean") - pl.col("sd"), high=pl.col("mean") + pl.col("sd"))


def _stored(ranks: Sequence[int]) -> Iterator[tuple[str, int, Estimator]]:
    """Yield the estimators that read stored ranks alone, with their kinds and scales, where there are two of a kind."""
    # By import, not by name: figures are drawn again when one of these changes.
    of_kind = {
        "gride_n": [(n, gride.make(f"gride_n{n}", str(n))) for n in ranks],
        "twoNN_f": [(percent, twonn.make(f"twoNN_f{percent}", str(percent))) for percent in range(0, 100, 10)],
        "mle_k": [(k, mle.make(f"mle_k{k}", k=str(k))) for k in ranks if k >= LEAST_K],
    }
    for kind, made in of_kind.items():
        scaled = [(scale, estimator) for scale, estimator in made if set(estimator.ranks) <= set(ranks)]
        for scale, estimator in style.spread(scaled, MOST_SCALES) if len(scaled) > 1 else ():
            yield kind, scale, estimator


def id_by_n_points(summary: pl.DataFrame) -> style.Specification:
    """Return the figure: a few layers against the number of points, a panel an estimator, of the leading run."""
    table = _of_leading_run(style.of_all_contexts(summary, *SAME, "decimate", "draw", "n_used"))
    lead = style.leading(summary)
    same = [pl.col(key) == lead[key][0] for key in SAME]
    means = ["model", "checkpoint", "run", "module", "estimator", "layer", "decimate", "others"]
    drawn = table.filter(*same).group_by(means, maintain_order=True).agg(pl.col("mean", "n_used").mean(), pl.len())
    return style.configured(style.grid(drawn, "run", "estimator", _against_points, _titles))


def _of_leading_run(table: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of the leading run and the first module, at a few layers."""
    table = table.with_columns(others=pl.lit(style.one_of(table)))
    table = table.filter(**style.leading_run(table)).filter(module=style.modules_of(table)[0])
    layers = style.spread(sorted(table["layer"].drop_nulls().unique()), style.MOST_LAYERS)
    return table.filter(pl.col("layer").is_in(layers) | pl.col("layer").is_null())


def _titles(of_row: pl.DataFrame) -> tuple[str, str]:
    """Return the title of a run's row."""
    n_layers, module, others = of_row["layer"].n_unique(), of_row["module"][0], of_row["others"][0]
    return of_row["run"][0], f"module {module!r}, mean over contexts, {n_layers} layers{others}"


def _against_scale(table: pl.DataFrame) -> alt.LayerChart:
    """Return lines against scale, one a layer."""
    kind = table["kind"][0]
    scale = alt.Scale(type="linear", zero=False) if kind == "twoNN_f" else alt.Scale(type="log", base=2, nice=False)
    x = alt.X("scale:Q", title=SCALES[kind], scale=scale, axis=alt.Axis(format="d"))
    y = alt.Y("low:Q", title=style.ID, scale=alt.Scale(zero=True))
    band = alt.Chart(table).mark_area(opacity=0.12).encode(x=x, y=y, y2="high:Q", color=LAYERS)
    return band + _lines(table, x)


def _against_points(table: pl.DataFrame) -> alt.LayerChart:
    """Return lines against the number of points, one a layer."""
    scale = alt.Scale(type="log", base=2, nice=False)
    return _lines(table, alt.X("n_used:Q", title="points", scale=scale, axis=alt.Axis(format="d")))


def _lines(table: pl.DataFrame, x: alt.X) -> alt.LayerChart:
    """Return lines and points, one a layer."""
    base = alt.Chart(table).encode(
        x=x,
        y=alt.Y("mean:Q", title=style.ID, scale=alt.Scale(zero=True)),
        color=LAYERS,
        tooltip=style.tooltip("layer", "mean", x.shorthand.removesuffix(":Q")),
    )
    return base.mark_line(strokeWidth=1.5) + base.mark_point(filled=True, size=20)
