"""Means against training step and model size."""

from __future__ import annotations

import altair as alt
import polars as pl

from id_scaling.plots import style

STEP = "training step (updates)"


def id_by_step(summary: pl.DataFrame) -> style.Specification:
    """Return the figure: a few layers against step, a panel an estimator and one for the loss, a row a model."""
    table = _over_training(summary)
    layers = style.spread(sorted(table["layer"].drop_nulls().unique()), style.MOST_LAYERS) or [None]
    losses = table.unique(["model", "checkpoint"], maintain_order=True).with_columns(
        estimator=pl.lit("loss"), mean="mean_loss", layer=pl.lit(None, pl.Int64), sd=pl.lit(None, pl.Float64)
    )
    table = pl.concat([table.filter(pl.col("layer").is_in(layers, nulls_equal=True)), losses.select(table.columns)])
    return style.configured(style.grid(table, "model", "estimator", _against_step, _titles))


def id_by_layer_and_step(summary: pl.DataFrame) -> style.Specification:
    """Return the figure: a heat map of layer and checkpoint, a panel an estimator, a row a model."""
    grid = style.grid(_over_training(summary), "model", "estimator", _heat, _titles, color="independent")
    return style.configured(grid)


def id_by_size(summary: pl.DataFrame) -> style.Specification:
    """Return the figure: the largest mean of all layers of each model's last checkpoint, a panel an estimator."""
    table = style.of_last_checkpoints(style.of_all_contexts(style.leading(summary)))
    table = table.filter(pl.col("module").is_in(style.modules_of(table)))
    sizes = (
        table.group_by("model", "checkpoint", "n_parameters", "module", "estimator", maintain_order=True)
        .agg(pl.col("mean").max(), pl.col("layer").sort_by("mean").last(), pl.col("mean_loss").first())
        .with_columns(row=pl.lit("all"))
    )
    dataset, subset, control = (table[key][0] for key in ("dataset", "subset", "control"))
    said = f"the largest mean of all layers, last checkpoint of each model, {dataset} · {subset} · {control}"
    return style.configured(style.grid(sizes, "row", "estimator", _against_size, lambda _: ("Size of the model", said)))


def _over_training(summary: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of one control, shard and module at checkpoints whose step is known, of a few models."""
    table = style.of_all_contexts(style.leading(summary))
    same = {key: value for key, value in style.leading_run(table).items() if key in ("dataset", "subset", "control")}
    table = table.filter(**same, module=style.modules_of(table)[0])
    n_unknown = pl.col("checkpoint").filter(pl.col("training_step").is_null()).n_unique().over("model")
    table = table.with_columns(n_unknown=n_unknown).filter(pl.col("training_step").is_not_null())
    models, _ = style.shown(style.unique(table, "model"), style.MOST_RUNS, "models")
    return table.filter(pl.col("model").is_in(models))


def _titles(of_row: pl.DataFrame) -> tuple[str, str]:
    """Return the title of a model's row."""
    module, dataset, subset = (of_row[key][0] for key in ("module", "dataset", "subset"))
    n_steps, n_unknown = of_row["training_step"].n_unique(), of_row["n_unknown"][0]
    more = f", {n_unknown} more without a known step" if n_unknown else ""
    return of_row["model"][0], f"module {module!r}, {dataset} · {subset}, {n_steps} checkpoints{more}"


def _against_step(table: pl.DataFrame) -> alt.LayerChart:
    """Return lines against step, a colour for each layer."""
    is_loss = table["estimator"][0] == "loss"
    title = "loss (nats/token)" if is_loss else style.ID
    of_layer = alt.Color("layer:O", scale=alt.Scale(scheme="viridis"), title="layer")
    scale = alt.Scale(type="symlog", constant=1)
    values = [0, *(10**power for power in range(12) if 10**power <= table["training_step"].max())]
    base = alt.Chart(table).encode(
        x=alt.X("training_step:Q", title=STEP, scale=scale, axis=alt.Axis(values=values, format="~s")),
        y=alt.Y("mean:Q", title=title, scale=alt.Scale(zero=not is_loss)),
        color=alt.value("black") if is_loss else of_layer,
    )
    tooltip = style.tooltip("checkpoint", "layer", "mean", "sd")
    return base.mark_line(strokeWidth=1.5) + base.mark_point(filled=True, size=20).encode(tooltip=tooltip)


def _heat(table: pl.DataFrame) -> alt.LayerChart:
    """Return a heat map of layer and step."""
    n_steps = table["training_step"].n_unique()
    steps = style.spread(sorted(table["training_step"].unique()), 12)
    axis = alt.Axis(values=steps, labelAngle=-45, format="~s")
    return alt.layer(
        alt.Chart(table)
        .mark_rect()
        .encode(
            x=alt.X("training_step:O", title=f"{STEP}, {n_steps} checkpoints", axis=axis),
            y=alt.Y("layer:O", title="layer", sort="descending"),
            color=alt.Color("mean:Q", scale=alt.Scale(scheme="viridis"), title=style.ID),
            tooltip=style.tooltip("checkpoint", "layer", "mean", "sd"),
        )
    )


def _against_size(table: pl.DataFrame) -> alt.LayerChart:
    """Return lines against the number of parameters, one for each module."""
    base = alt.Chart(table).encode(
        x=alt.X("n_parameters:Q", title="parameters", scale=alt.Scale(type="log"), axis=alt.Axis(format="~s")),
        y=alt.Y("mean:Q", title=f"largest {style.ID} of a layer", scale=alt.Scale(zero=True)),
        **style.coloured("module", style.unique(table, "module")),
    )
    tooltip = style.tooltip("model", "checkpoint", "module", "layer", "mean", "mean_loss")
    return base.mark_line(strokeWidth=1.5) + base.mark_point(filled=True, size=40).encode(tooltip=tooltip)
