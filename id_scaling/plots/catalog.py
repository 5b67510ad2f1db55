"""Which figures a study has, in the order of a reader's questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from id_scaling.neighbors.views import View, leading_view

# What a view may not differ in from the leading one to differ in its number of points alone.
SAME = ["skip_first_tokens", "duplicates", "preprocess", "exclude_window", "null_cloud"]


@dataclass(frozen=True)
class Figure:
    """A figure of a study.

    Parameters
    ----------
    name : str
        Its file's.
    question : str
        What it answers.
    caption : str
        What is seen in it.
    of : str, optional
        The axis of the study that has to have two values for it.
    """

    name: str
    question: str
    caption: str
    of: str | None = None


FIGURES = (
    Figure(
        "id_by_layer",
        "How does the dimension change with depth?",
        "Mean over contexts and a band of one standard deviation between them, which says nothing of an estimator's "
        "bias. Sites outside the blocks are next to them: `emb` before the first, the others after the last. The "
        "leading run is shown with one point per token, too, on the same axes: repeated tokens are the largest "
        "confound.",
    ),
    Figure(
        "estimator_agreement",
        "Do the estimators agree?",
        "Means of all estimators in one panel a module. They look at different scales, so they differ by factors; a "
        "finding should not depend on which is taken.",
        of="estimators",
    ),
    Figure(
        "twonn_fit",
        "Do the distances fit the model behind TwoNN?",
        "Points of one context in the order of µ, the ratio of the distances to the two nearest; F is their share. "
        "Where density is even about each point they lie on the line, whose slope is TwoNN's dimension; a bend says "
        "that small and large ratios tell different dimensions.",
    ),
    Figure(
        "id_by_view",
        "Does it depend on which points count, and how they are scaled?",
        "Means under each view. `one_per_token` next to `matched_subset` tells repeated tokens from fewer points; a "
        "`null_cloud` is what a Gaussian of the same covariance gives.",
        of="views",
    ),
    Figure(
        "id_by_scale",
        "Does it depend on the scale at which an estimator looks?",
        "Means of each kind of estimator at the scales that stored neighbors allow, and a band of one standard "
        "deviation between contexts. At small scales noise counts, at large ones curvature, density and that the cloud "
        "ends. A dimension that no range of scales agrees on is not one number. `mle_k` is the arithmetic mean of a "
        "heavy-tailed list: a few points with very large local dimensions carry it, the more the smaller k. So it is "
        "high and falls with k where `mle_harmonic_k`, from the same local dimensions, need not; on a flat cloud it is "
        "too high by (k − 1)/(k − 2) only.",
    ),
    Figure(
        "id_by_n_points",
        "Does it depend on the number of points?",
        "Means of random subsets: what still changes with the number of points has not converged.",
        of="sizes",
    ),
    Figure(
        "id_by_length",
        "Does it depend on the length of contexts?",
        "Means for each `ctx_len`, which cuts the documents anew. Longer contexts have more points, which changes an "
        "estimate by itself: beneath, where a view has `decimate` and contexts have so many, all have as many.",
        of="lengths",
    ),
    Figure(
        "id_by_control",
        "Does it depend on the order of the text?",
        "Means under each control of the text: the more blocks are permuted, the less structure is left.",
        of="controls",
    ),
    Figure(
        "id_against_loss",
        "Is it related to how well the model predicts?",
        "Above, each context at the layer where Spearman's correlation with the loss is strongest, which is chosen by "
        "looking, so no test; with a straight line fitted. Below, the correlation at every layer, with its 95 % "
        "interval where there are 20 documents. An interval holds what other documents would change, not the bias of "
        "an estimator.",
    ),
    Figure(
        "loss_by_position",
        "How do loss and entropy change along a context?",
        "Means over contexts and over positions within an eighth of an octave; the first token is not predicted.",
    ),
    Figure(
        "id_by_step",
        "How does it change over training?",
        "Means at up to five layers, and the loss, against updates on a scale that is linear to 1 and logarithmic "
        "beyond, so that it has 0.",
        of="steps",
    ),
    Figure(
        "id_by_layer_and_step",
        "Where and when does it change over training?",
        "Mean at each layer and checkpoint; checkpoints are evenly spaced, whatever their steps.",
        of="steps",
    ),
    Figure(
        "id_by_size",
        "How does it change with the size of the model?",
        "Above, the largest mean of all layers, at each model's last checkpoint, against N, its parameters without "
        "embeddings. Below, where losses of at least five sizes are known and `clouds` has `mean` or `position`: the "
        "dimension of one cloud of all contexts after the last block. The dashed line is 4/α, of losses that fall as "
        "N to the −α, and the grey area its 95 % interval: about the dimension of the data, expect Sharma and Kaplan "
        "(2022), of models trained to convergence on plentiful data. Losses have to be of one tokenizer, and no part "
        "of them may stay however large the model: such a part makes α too small and the line too high. The interval "
        "knows nothing of that.",
        of="models",
    ),
)


def figures_of(n_values: Mapping[str, int]) -> list[Figure]:
    """Return the figures of a study with so many values on each axis."""
    return [figure for figure in FIGURES if figure.of is None or n_values[figure.of] > 1]


def n_sizes(views: Mapping[str, View]) -> int:
    """Return how many sizes of clouds views have that differ from the leading one in that alone."""
    lead = views[leading_view({name: view.null_cloud for name, view in views.items()})]
    alike = (view for view in views.values() if all(getattr(view, key) == getattr(lead, key) for key in SAME))
    return len({view.decimate for view in alike})
