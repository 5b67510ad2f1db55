"""Means against training step and model size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import altair as alt
import numpy as np
import polars as pl

from id_scaling.plots import style

STEP = "training step (updates)"
COUNTS = ["n_parameters", "n_embedding_parameters"]
# Fewer sizes leave a line nothing to miss; a dimension so many times above all means would flatten them.
LEAST_SIZES, FAR = 3, 4


@dataclass(frozen=True)
class ScalingLaw:
    """Loss ~ N^(-alpha) over sizes N without embeddings, and the dimension 4 / alpha of Sharma and Kaplan (2022).

    Parameters
    ----------
    alpha, stderr : float
        Of the least-squares line of log loss on log N.
    n_sizes : int
        How many different N there are.
    """

    alpha: float
    stderr: float
    n_sizes: int

    @property
    def dimension(self) -> float:
        """Return 4 / alpha; NaN where the loss does not fall."""
        return 4 / self.alpha if self.alpha > 0 else np.nan

    def __str__(self) -> str:
        """Return what is said of it."""
        if not self.alpha > 0:
            return f"; no 4/α: over {self.n_sizes} sizes the loss does not fall"
        return f"; loss ~ N^−α, α = {self.alpha:.3g} ± {self.stderr:.1g} (least squares, N without embeddings)"


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
        table.group_by("model", "checkpoint", *COUNTS, "module", "estimator", maintain_order=True)
        .agg(pl.col("mean").max(), pl.col("layer").sort_by("mean").last(), pl.col("mean_loss").first())
        .with_columns(row=pl.lit("all"))
    )
    # As Kaplan et al. (2020) count, whose losses the dimension is expected of.
    n_counted = (sizes["n_parameters"] - sizes["n_embedding_parameters"]).to_numpy()
    law = scaling_law(n_counted, sizes["mean_loss"].cast(pl.Float64).to_numpy())
    sizes = sizes.with_columns(four_over_alpha=pl.lit(law.dimension if law else None, pl.Float64))
    text = table.select(style.called(summary, ["dataset", "subset", "ctx_len", "control"]))[0].item()
    said = f"the largest mean of all layers, last checkpoint of each model, {text}{law or ''}"
    panel = partial(_against_size, law=law)
    return style.configured(style.grid(sizes, "row", "estimator", panel, lambda _: ("Size of the model", said)))


def scaling_law(n_parameters: np.ndarray, losses: np.ndarray) -> ScalingLaw | None:
    """Return how losses fall with size; None where fewer than three sizes have one. The same model may come often."""
    points = np.unique(np.stack([n_parameters, losses], axis=1).astype(np.float64), axis=0)
    points = points[np.isfinite(points).all(axis=1) & (points > 0).all(axis=1)]
    n_sizes = len(np.unique(points[:, 0]))
    if n_sizes < LEAST_SIZES:
        return None
    (slope, _), covariance = np.polyfit(*np.log(points).T, 1, cov=True)
    return ScalingLaw(float(-slope), float(np.sqrt(covariance[0, 0])), n_sizes)


def _over_training(summary: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of one control, shard, length and module at checkpoints whose step is known, of a few models."""
    table = style.of_all_contexts(style.leading(summary))
    table = table.with_columns(style.called(summary, ["dataset", "subset", "ctx_len"]).alias("text"))
    of_text = ("dataset", "subset", "ctx_len", "control")
    same = {key: value for key, value in style.leading_run(table).items() if key in of_text}
    table = table.filter(**same, module=style.modules_of(table)[0])
    n_unknown = pl.col("checkpoint").filter(pl.col("training_step").is_null()).n_unique().over("model")
    table = table.with_columns(n_unknown=n_unknown).filter(pl.col("training_step").is_not_null())
    models, _ = style.shown(style.unique(table, "model"), style.MOST_RUNS, "models")
    return table.filter(pl.col("model").is_in(models))


def _titles(of_row: pl.DataFrame) -> tuple[str, str]:
    """Return the title of a model's row."""
    module, text = of_row["module"][0], of_row["text"][0]
    n_steps, n_unknown = of_row["training_step"].n_unique(), of_row["n_unknown"][0]
    more = f", {n_unknown} more without a known step" if n_unknown else ""
    return of_row["model"][0], f"module {module!r}, {text}, {n_steps} checkpoints{more}"


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


def _against_size(table: pl.DataFrame, law: ScalingLaw | None) -> alt.LayerChart:
    """Return lines against the number of parameters, one for each module, and what a scaling law implies."""
    highest, implied = table["mean"].max(), law.dimension if law else np.nan
    is_near = implied <= FAR * highest
    # Room for words, above the line or above all there is.
    top = max(highest, 1.1 * implied) if is_near else (1.2 * highest if implied > 0 else highest)
    scale = alt.Scale(domain=[0, top], nice=True)
    base = alt.Chart(table).encode(
        x=alt.X("n_parameters:Q", title="parameters", scale=alt.Scale(type="log"), axis=alt.Axis(format="~s")),
        y=alt.Y("mean:Q", title=f"largest {style.ID} of a layer", scale=scale),
        **style.coloured("module", style.unique(table, "module")),
    )
    tooltip = style.tooltip("model", "checkpoint", "module", "layer", "mean", "mean_loss")
    lines = base.mark_line(strokeWidth=1.5) + base.mark_point(filled=True, size=40).encode(tooltip=tooltip)
    return lines + _implied(table, law, scale, is_near) if implied > 0 else lines


def _implied(table: pl.DataFrame, law: ScalingLaw, scale: alt.Scale, is_near: bool) -> alt.LayerChart:
    """Return the line of a scaling law with its words; where it is far above the panel, the words at its top."""
    at = alt.Y("min(four_over_alpha):Q", title=f"largest {style.ID} of a layer", scale=scale)
    number = f"{law.dimension:,.0f}" if law.dimension >= 100 else f"{law.dimension:.1f}"
    said = f"4/α = {number}{'' if is_near else ' (far above)'}, from {law.n_sizes} sizes"
    words = alt.Chart(table).mark_text(text=said, align="left", baseline="bottom", dx=4, dy=-3, color="#444")
    if not is_near:
        return alt.layer(words.encode(x=alt.value(0), y=alt.value(16), detail="count()"))
    rule = alt.Chart(table).mark_rule(strokeDash=[6, 4], color="#444").encode(y=at)
    return rule + words.encode(x=alt.value(0), y=at)
