"""Figures of means against training step and model size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import altair as alt
import numpy as np
import polars as pl
from scipy import stats

from id_scaling.plots import style

STEP = "training step (updates)"
COUNTS = ["n_parameters", "n_embedding_parameters"]
SIZE = "parameters without embeddings"
# The module whose output after the last block is the last hidden state of the model.
RESIDUAL = "block"
# With four sizes, a slope has two degrees of freedom, and its interval is twice as wide as with many: too wide to draw.
LEAST_SIZES, CONFIDENCE = 5, 0.95
# A line at a dimension more than FAR times the largest ID would flatten the other lines.
FAR = 4


@dataclass(frozen=True)
class ScalingLaw:
    """Loss ~ N^(-alpha) over sizes N without embeddings, and the dimension 4 / alpha by Sharma and Kaplan (2022).

    Parameters
    ----------
    alpha, stderr : float
        Slope, with reversed sign, and its standard error from the least-squares line of log loss on log N.
    n_sizes, n_points : int
        Number of different N, and number of losses; two models can have the same N.
    """

    alpha: float
    stderr: float
    n_sizes: int
    n_points: int

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of alpha, by Student's t with `n_points` − 2 degrees of freedom."""
        half_width = stats.t.ppf((1 + CONFIDENCE) / 2, self.n_points - 2) * self.stderr
        return self.alpha - half_width, self.alpha + half_width

    @property
    def dimension(self) -> float:
        """Return 4 / alpha; NaN if the loss does not fall."""
        return 4 / self.alpha if self.alpha > 0 else np.nan

    @property
    def dimension_interval(self) -> tuple[float, float]:
        """Return the 95 % interval of 4 / alpha, infinite if that of alpha reaches 0; NaN if the loss does not fall."""
        low, high = self.interval
        return (4 / high, 4 / low if low > 0 else np.inf) if self.alpha > 0 else (np.nan, np.nan)

    def __str__(self) -> str:
        low, high = self.interval
        slope = f"α = {self.alpha:.3g}, {CONFIDENCE:.0%} interval {low:.3g} to {high:.3g}"
        degrees = f"Student, {self.n_points - 2} degrees of freedom"
        falls = "" if self.alpha > 0 else "; the loss does not fall, so no 4/α"
        return f"loss ~ N^−α over {self.n_sizes} sizes, {slope} ({degrees}){falls}"


def id_by_step(summary: pl.DataFrame) -> style.Specification:
    """Return the figure against step: one panel per estimator and one for the loss, one row per model."""
    table = _over_training(summary)
    layers = style.spread(sorted(table["layer"].drop_nulls().unique()), style.MOST_LAYERS) or [None]
    losses = table.unique(["model", "checkpoint"], maintain_order=True).with_columns(
        estimator=pl.lit("loss"), mean="mean_loss", layer=pl.lit(None, pl.Int64), sd=pl.lit(None, pl.Float64)
    )
    table = pl.concat([table.filter(pl.col("layer").is_in(layers, nulls_equal=True)), losses.select(table.columns)])
    return style.configured(style.grid(table, "model", "estimator", _against_step, _titles))


def id_by_layer_and_step(summary: pl.DataFrame) -> style.Specification:
    """Return the heat map of layer and checkpoint, one panel per estimator and one row per model."""
    grid = style.grid(_over_training(summary), "model", "estimator", _heat, _titles, color="independent")
    return style.configured(grid)


def id_by_size(summary: pl.DataFrame) -> style.Specification:
    """Return the figure of ID at each model's last checkpoint against its size, one panel per estimator.

    The first row has the largest mean of all layers. If losses of five sizes give a scaling law and the study has
    clouds of all contexts, a second row has their ID after the last block, with 4 / alpha and its interval.
    """
    lead = style.leading(summary)
    table = style.of_last_checkpoints(style.of_all_contexts(lead)).with_columns(_size())
    block_rows = table.filter(pl.col("module").is_in(style.modules_of(table)))
    largest = block_rows.group_by(*_MODEL, "module", "estimator", maintain_order=True).agg(
        pl.col("mean").max(), pl.col("layer").sort_by("mean").last(), pl.col("mean_loss").first()
    )
    losses = table.unique("run", maintain_order=True)
    law = scaling_law(losses["n_counted"].to_numpy(), losses["mean_loss"].cast(pl.Float64).to_numpy())
    text = table.select(style.called(summary, style.TEXT))[0].item()
    subtitle = f"the largest mean of all layers, selected after looking; last checkpoint of each model, {text}"
    panel = partial(_against_size, title=f"largest {style.ID} of a layer", by="module")
    titles = "Size of the model", subtitle
    grids = [style.grid(largest.with_columns(row=pl.lit("largest")), "row", "estimator", panel, lambda _: titles)]
    last = _after_last_block(summary, table)
    if law and len(last):
        grids.append(_with_law(last, law, text))
    return style.configured(style.beside("vconcat", grids, color="independent", strokeDash="independent"))


_MODEL = ["model", "checkpoint", "dtype", "device", *COUNTS, "n_counted"]


def _size() -> pl.Expr:
    """Return N, the number of parameters without embeddings, as in the scaling laws of Kaplan et al. (2020)."""
    return (pl.col("n_parameters") - pl.col("n_embedding_parameters")).alias("n_counted")


def _after_last_block(summary: pl.DataFrame, table: pl.DataFrame) -> pl.DataFrame:
    """Return the IDs of clouds of all contexts after the last block for the runs of a table, under the leading view."""
    is_last = (pl.col("module") == RESIDUAL) & (pl.col("layer") == pl.col("n_layers") - 1) & pl.col("group").is_null()
    rows = summary.filter(is_last, pl.col("mean").is_not_null(), level="run", view=style.leading_name(summary))
    rows = rows.join(table, on=style.RUN, how="semi", maintain_order="left").with_columns(
        _size(), points=pl.concat_str("cloud", "position", separator=" ", ignore_nulls=True)
    )
    return rows.select(*_MODEL, "module", "estimator", "points", "layer", "mean", "stderr", "n_used", "mean_loss")


def _with_law(last: pl.DataFrame, law: ScalingLaw, text: str) -> style.Specification:
    """Return the row of panels of the last block's clouds of all contexts, with what a scaling law implies."""
    low, high = law.dimension_interval
    implied = {"four_over_alpha": law.dimension, "four_over_alpha_low": low, "four_over_alpha_high": high}
    last = last.with_columns(pl.lit(value, pl.Float64).alias(name) for name, value in implied.items())
    n_points = " to ".join(dict.fromkeys(f"{n:.0f}" for n in style.bounds(last["n_used"])))
    subtitle = [f"one cloud of all contexts ({n_points} points), output of the last block, {text}", str(law)]
    panel = partial(_against_size, title=style.ID, by="points", law=law)
    titles = "The last block and a scaling law of the losses", subtitle
    return style.grid(last.with_columns(row=pl.lit("last")), "row", "estimator", panel, lambda _: titles)


def scaling_law(n_parameters: np.ndarray, losses: np.ndarray) -> ScalingLaw | None:
    """Return how losses fall with size; None where fewer than five sizes have one. The same model may come often."""
    points = np.unique(np.stack([n_parameters, losses], axis=1).astype(np.float64), axis=0)
    points = points[np.isfinite(points).all(axis=1) & (points > 0).all(axis=1)]
    n_sizes = len(np.unique(points[:, 0]))
    if n_sizes < LEAST_SIZES:
        return None
    line = stats.linregress(*np.log(points).T)
    return ScalingLaw(float(-line.slope), float(line.stderr), n_sizes, len(points))


def _over_training(summary: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of a few models at checkpoints with a known step, for one control, shard, length, and module."""
    table = style.of_all_contexts(style.leading(summary))
    table = table.with_columns(style.called(summary, ["dataset", "subset", "ctx_len"]).alias("text"))
    leading_text = {key: value for key, value in style.leading_run(table).items() if key in style.TEXT}
    table = table.filter(**leading_text, module=style.modules_of(table)[0])
    n_unknown = pl.col("checkpoint").filter(pl.col("training_step").is_null()).n_unique().over("model")
    table = table.with_columns(n_unknown=n_unknown).filter(pl.col("training_step").is_not_null())
    models, _ = style.shown(style.unique(table, "model"), style.MOST_RUNS, "models")
    return table.filter(pl.col("model").is_in(models))


def _titles(rows: pl.DataFrame) -> tuple[str, str]:
    """Return title and subtitle of the row of a model."""
    module, text = rows["module"][0], rows["text"][0]
    n_steps, n_unknown = rows["training_step"].n_unique(), rows["n_unknown"][0]
    note = f", {n_unknown} more without a known step" if n_unknown else ""
    return rows["model"][0], f"module {module!r}, {text}, {n_steps} checkpoints{note}"


def _against_step(table: pl.DataFrame) -> style.Panel:
    """Return lines against step, with one color per layer."""
    is_loss = table["estimator"][0] == "loss"
    title = "loss (nats/token)" if is_loss else style.ID
    layer_color = alt.Color("layer:O", scale=alt.Scale(scheme="viridis"), title="layer")
    scale = alt.Scale(type="symlog", constant=1)
    values = [0, *(10**power for power in range(12) if 10**power <= style.bounds(table["training_step"])[1])]
    base = alt.Chart(table).encode(
        x=alt.X("training_step:Q", title=STEP, scale=scale, axis=alt.Axis(values=values, format="~s")),
        y=alt.Y("mean:Q", title=title, scale=alt.Scale(zero=not is_loss)),
        color=alt.value("black") if is_loss else layer_color,
    )
    tooltip = style.tooltip("checkpoint", "layer", "mean", "sd")
    return base.mark_line(strokeWidth=1.5) + base.mark_point(filled=True, size=20).encode(tooltip=tooltip)


def _heat(table: pl.DataFrame) -> style.Panel:
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


def _against_size(table: pl.DataFrame, title: str, by: str, law: ScalingLaw | None = None) -> style.Panel:
    """Return lines against the number of parameters, one per value of a column, and the dimension by a scaling law."""
    (_, highest), implied = style.bounds(table["mean"]), law.dimension if law else np.nan
    is_near = implied <= FAR * highest
    # Leave room for the label above the dashed line, or above all points.
    top = max(highest, 1.2 * implied) if is_near else (1.2 * highest if implied > 0 else highest)
    scale = alt.Scale(domain=[0, top], nice=True)
    base = alt.Chart(table).encode(
        x=alt.X("n_counted:Q", title=SIZE, scale=alt.Scale(type="log"), axis=alt.Axis(format="~s")),
        y=alt.Y("mean:Q", title=title, scale=scale),
        **style.coloured(by, style.unique(table, by)),
    )
    tooltip = style.tooltip("model", "checkpoint", "layer", "mean", "mean_loss", "n_parameters", "n_counted")
    lines = base.mark_line(strokeWidth=1.5) + base.mark_point(filled=True, size=40).encode(tooltip=tooltip)
    return lines + _implied(table, law, title, scale, is_near) if law is not None and implied > 0 else lines


def _implied(table: pl.DataFrame, law: ScalingLaw, title: str, scale: alt.Scale, is_near: bool) -> style.Panel:
    """Return the dimension of a law with interval and label; only a label at the top if it is far above the panel."""
    height = alt.Y("min(four_over_alpha):Q", title=title, scale=scale)
    low, high = map(_number, law.dimension_interval)
    label = f"4/α = {_number(law.dimension)} ({low} to {high}){'' if is_near else ', far above'}"
    text = alt.Chart(table).mark_text(text=label, align="left", baseline="bottom", dx=4, dy=-3, color="#444")
    if not is_near:
        return alt.layer(text.encode(x=alt.value(0), y=alt.value(16), detail="count()"))
    bounds = alt.Y("min(four_over_alpha_low):Q", title=title, scale=scale)
    # An infinite end has no number in the data, so the band goes to the top of the panel.
    upper = alt.Y2("min(four_over_alpha_high):Q") if np.isfinite(law.dimension_interval[1]) else alt.Y2Value(0)
    band = alt.Chart(table).mark_rect(opacity=0.12, color="#444", clip=True).encode(y=bounds, y2=upper)
    rule = alt.Chart(table).mark_rule(strokeDash=[6, 4], color="#444").encode(y=height)
    return band + rule + text.encode(x=alt.value(0), y=height)


def _number(dimension: float) -> str:
    """Return a dimension as text with few digits."""
    return "∞" if np.isinf(dimension) else f"{dimension:,.0f}" if dimension >= 100 else f"{dimension:.1f}"
