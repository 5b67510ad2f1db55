"""Means against training step and model size."""

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
# The module whose output after the last block is the model's own last hidden layer.
RESIDUAL = "block"
# From four sizes a slope has two degrees of freedom, and its interval is twice as wide as from many: too few to draw.
LEAST_SIZES, CONFIDENCE = 5, 0.95
# A dimension so many times above all IDs would flatten them.
FAR = 4


@dataclass(frozen=True)
class ScalingLaw:
    """Loss ~ N^(-alpha) over sizes N without embeddings, and the dimension 4 / alpha of Sharma and Kaplan (2022).

    Parameters
    ----------
    alpha, stderr : float
        Of the least-squares line of log loss on log N.
    n_sizes, n_points : int
        How many different N there are, and how many losses: two models may have the same N.
    """

    alpha: float
    stderr: float
    n_sizes: int
    n_points: int

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of alpha: Student's, with two degrees of freedom less than points."""
        half_width = stats.t.ppf((1 + CONFIDENCE) / 2, self.n_points - 2) * self.stderr
        return self.alpha - half_width, self.alpha + half_width

    @property
    def dimension(self) -> float:
        """Return 4 / alpha; NaN where the loss does not fall."""
        return 4 / self.alpha if self.alpha > 0 else np.nan

    @property
    def dimension_interval(self) -> tuple[float, float]:
        """Return the 95 % interval of 4 / alpha, to infinity where that of alpha reaches 0; NaN as the dimension."""
        low, high = self.interval
        return (4 / high, 4 / low if low > 0 else np.inf) if self.alpha > 0 else (np.nan, np.nan)

    def __str__(self) -> str:
        low, high = self.interval
        slope = f"α = {self.alpha:.3g}, {CONFIDENCE:.0%} interval {low:.3g} to {high:.3g}"
        degrees = f"Student, {self.n_points - 2} degrees of freedom"
        falls = "" if self.alpha > 0 else "; the loss does not fall, so no 4/α"
        return f"loss ~ N^−α over {self.n_sizes} sizes, {slope} ({degrees}){falls}"


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
    """Return the figure: IDs of each model's last checkpoint against its size, a panel an estimator.

    The first row has the largest mean of all layers. A second, where losses of five sizes give a scaling law and the
    study has clouds of all contexts, has their ID after the last block, with 4 / alpha and its interval.
    """
    lead = style.leading(summary)
    table = style.of_last_checkpoints(style.of_all_contexts(lead)).with_columns(_size())
    of_blocks = table.filter(pl.col("module").is_in(style.modules_of(table)))
    largest = of_blocks.group_by(*_MODEL, "module", "estimator", maintain_order=True).agg(
        pl.col("mean").max(), pl.col("layer").sort_by("mean").last(), pl.col("mean_loss").first()
    )
    losses = table.unique("run", maintain_order=True)
    law = scaling_law(losses["n_counted"].to_numpy(), losses["mean_loss"].cast(pl.Float64).to_numpy())
    text = table.select(style.called(summary, style.TEXT))[0].item()
    subtitle = f"the largest mean of all layers, which is chosen by looking; last checkpoint of each model, {text}"
    panel = partial(_against_size, title=f"largest {style.ID} of a layer", by="module")
    titles = "Size of the model", subtitle
    drawn = [style.grid(largest.with_columns(row=pl.lit("largest")), "row", "estimator", panel, lambda _: titles)]
    last = _after_last_block(summary, table)
    if law and len(last):
        drawn.append(_with_law(last, law, text))
    return style.configured(style.beside("vconcat", drawn, color="independent", strokeDash="independent"))


_MODEL = ["model", "checkpoint", "dtype", "device", *COUNTS, "n_counted"]


def _size() -> pl.Expr:
    """Return the N of scaling laws, as Kaplan et al. (2020) count, whose losses the dimension is expected of."""
    return (pl.col("n_parameters") - pl.col("n_embedding_parameters")).alias("n_counted")


def _after_last_block(summary: pl.DataFrame, table: pl.DataFrame) -> pl.DataFrame:
    """Return the IDs of clouds of all contexts after the last block, of the runs and the view of a table."""
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
    """Return the rows of one control, shard, length and module at checkpoints whose step is known, of a few models."""
    table = style.of_all_contexts(style.leading(summary))
    table = table.with_columns(style.called(summary, ["dataset", "subset", "ctx_len"]).alias("text"))
    same = {key: value for key, value in style.leading_run(table).items() if key in style.TEXT}
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


def _against_step(table: pl.DataFrame) -> style.Panel:
    """Return lines against step, a colour for each layer."""
    is_loss = table["estimator"][0] == "loss"
    title = "loss (nats/token)" if is_loss else style.ID
    of_layer = alt.Color("layer:O", scale=alt.Scale(scheme="viridis"), title="layer")
    scale = alt.Scale(type="symlog", constant=1)
    values = [0, *(10**power for power in range(12) if 10**power <= style.bounds(table["training_step"])[1])]
    base = alt.Chart(table).encode(
        x=alt.X("training_step:Q", title=STEP, scale=scale, axis=alt.Axis(values=values, format="~s")),
        y=alt.Y("mean:Q", title=title, scale=alt.Scale(zero=not is_loss)),
        color=alt.value("black") if is_loss else of_layer,
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
    """Return lines against the number of parameters, one for each value of a column, and what a law implies."""
    (_, highest), implied = style.bounds(table["mean"]), law.dimension if law else np.nan
    is_near = implied <= FAR * highest
    # Room for words, above the line or above all there is.
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
    """Return a law's dimension and its interval with words; where it is far above the panel, the words at its top."""
    at = alt.Y("min(four_over_alpha):Q", title=title, scale=scale)
    low, high = map(_number, law.dimension_interval)
    label = f"4/α = {_number(law.dimension)} ({low} to {high}){'' if is_near else ', far above'}"
    words = alt.Chart(table).mark_text(text=label, align="left", baseline="bottom", dx=4, dy=-3, color="#444")
    if not is_near:
        return alt.layer(words.encode(x=alt.value(0), y=alt.value(16), detail="count()"))
    bounds = alt.Y("min(four_over_alpha_low):Q", title=title, scale=scale)
    # What reaches to infinity has no number in the data: it goes to the top of the panel.
    upper = alt.Y2("min(four_over_alpha_high):Q") if np.isfinite(law.dimension_interval[1]) else alt.Y2Value(0)
    band = alt.Chart(table).mark_rect(opacity=0.12, color="#444", clip=True).encode(y=bounds, y2=upper)
    rule = alt.Chart(table).mark_rule(strokeDash=[6, 4], color="#444").encode(y=at)
    return band + rule + words.encode(x=alt.value(0), y=at)


def _number(dimension: float) -> str:
    """Return a dimension in a few digits."""
    return "∞" if np.isinf(dimension) else f"{dimension:,.0f}" if dimension >= 100 else f"{dimension:.1f}"
