"""The figures of a study, in the order of a reader's questions, with their captions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from id_scaling.neighbors.views import View, leading_view

# Settings that a view shares with the leading view if the two differ only in their number of points.
SAME = ["skip_first_tokens", "duplicates", "preprocess", "exclude_window", "null_cloud"]


@dataclass(frozen=True)
class Figure:
    """A figure of a study.

    Parameters
    ----------
    name : str
        Name of its file.
    question : str
        Question that it answers.
    caption : str
        What it shows, and how to read it.
    of : str, optional
        Axis of the study that needs at least two values.
    """

    name: str
    question: str
    caption: str
    of: str | None = None


FIGURES = (
    Figure(
        "id_by_layer",
        "How does the dimension change with depth?",
        "Mean over contexts. The band is one standard deviation between contexts and does not include the bias of the "
        "estimator. Sites outside the blocks are next to them: `emb` before the first layer, the others after the "
        "last. A second row shows the leading run with one point per token, on the same axes, because repeated tokens "
        "are the largest confound.",
    ),
    Figure(
        "estimator_agreement",
        "Do the estimators agree?",
        "Means of all estimators, with one panel per module. Estimators look at different scales, so their values can "
        "differ by a factor. A finding should not depend on the choice of the estimator.",
        of="estimators",
    ),
    Figure(
        "twonn_fit",
        "Do the distances fit the model behind TwoNN?",
        "Points of one context, sorted by µ, the ratio of the distances to the second and the first nearest neighbor. "
        "F is the share of points up to each one. If the density is constant around each point, the points lie on the "
        "line, and its slope is the dimension by TwoNN. A bend means that small and large ratios give different "
        "dimensions.",
    ),
    Figure(
        "id_by_view",
        "Does it depend on which points count, and how they are scaled?",
        "Means under each view. Comparing `one_per_token` with `matched_subset` separates the effect of repeated "
        "tokens from the effect of fewer points. A view with `null_cloud` shows the values of a Gaussian with the "
        "same covariance.",
        of="views",
    ),
    Figure(
        "id_by_scale",
        "Does it depend on the scale at which an estimator looks?",
        "Means of each kind of estimator at the scales that stored neighbors allow. The band is one standard "
        "deviation between contexts. Noise affects small scales; curvature, density, and the boundary of the cloud "
        "affect large scales. If the values agree over no range of scales, no single number describes the dimension. "
        "`mle_k` is the arithmetic mean of local dimensions, whose distribution has a heavy tail: a few points with "
        "very large local dimensions dominate it, most strongly at small k. So it can be high and fall with k "
        "although `mle_harmonic_k`, from the same local dimensions, does not. On a flat cloud, `mle_k` is too high "
        "only by a factor of (k − 1)/(k − 2).",
    ),
    Figure(
        "id_by_n_points",
        "Does it depend on the number of points?",
        "Means of random subsets. A value that still changes with the number of points has not converged.",
        of="sizes",
    ),
    Figure(
        "id_by_length",
        "Does it depend on the length of contexts?",
        "Means for each `ctx_len`. Each length cuts the documents again. Longer contexts have more points, which by "
        "itself changes an estimate. If a view has `decimate` and all contexts have enough points, panels below show "
        "the same number of points at every length.",
        of="lengths",
    ),
    Figure(
        "id_by_control",
        "Does it depend on the order of the text?",
        "Means under each control of the text. The more blocks a control permutes, the less structure of the text "
        "remains.",
        of="controls",
    ),
    Figure(
        "id_against_loss",
        "Is it related to how well the model predicts?",
        "Top: one point per context, at the layer with the strongest Spearman correlation between ID and loss, with a "
        "fitted straight line. The layer is chosen by its correlation, so this panel is not a test. Bottom: the "
        "correlation at every layer, with its 95 % interval if there are at least 20 documents. The interval covers "
        "the variation between documents, not the bias of the estimator.",
    ),
    Figure(
        "loss_by_position",
        "How do loss and entropy change along a context?",
        "Means over contexts, and over positions within an eighth of an octave. The first token has no prediction.",
    ),
    Figure(
        "id_by_step",
        "How does it change over training?",
        "Means at up to five layers, and the loss, against training updates. The axis is linear up to 1 and "
        "logarithmic above, so that it can show step 0.",
        of="steps",
    ),
    Figure(
        "id_by_layer_and_step",
        "Where and when does it change over training?",
        "Mean at each layer and checkpoint. Checkpoints are evenly spaced, whatever their steps.",
        of="steps",
    ),
    Figure(
        "id_by_size",
        "How does it change with the size of the model?",
        "Top: the largest mean of all layers, at the last checkpoint of each model, against N, its number of "
        "parameters without embeddings. Bottom, if losses of at least five sizes are known and `clouds` has `mean` or "
        "`position`: the dimension of one cloud of all contexts after the last block. If the loss falls as N to the "
        "power −α, the dashed line is 4/α, and the gray area is its 95 % interval. Sharma and Kaplan (2022) expect "
        "that 4/α is about the dimension of the data, for models trained to convergence on enough data. All losses "
        "must come from the same tokenizer, and must tend to zero for large models. A part of the loss that does not "
        "depend on the size makes α too small and the line too high. The interval does not include this error.",
        of="models",
    ),
)


def figures_of(n_values: Mapping[str, int]) -> list[Figure]:
    """Return the figures of a study, given the number of values on each axis."""
    return [figure for figure in FIGURES if figure.of is None or n_values[figure.of] > 1]


def n_sizes(views: Mapping[str, View]) -> int:
    """Return the number of cloud sizes among the views that differ from the leading view only in their size."""
    lead = views[leading_view({name: view.null_cloud for name, view in views.items()})]
    similar_views = (view for view in views.values() if all(getattr(view, key) == getattr(lead, key) for key in SAME))
    return len({view.decimate for view in similar_views})
