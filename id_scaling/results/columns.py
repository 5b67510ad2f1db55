"""The columns of the summary: name, unit and meaning of each, told once for tables, loaders, figures and docs."""

from __future__ import annotations

from id_scaling.results.run_tables import SITE
from id_scaling.storage.layout import AXES

RUN_AXES = list(AXES)
GROUP = ["group", "group_value"]
KEYS = [*GROUP, *SITE]
# Mean properties of the clouds of a row, next to their ID.
COMPANIONS = (
    "n_points",
    "n_distinct",
    "n_used",
    "median_r1",
    "tiny_r1",
    "top_share",
    "median_norm",
    "participation_ratio",
    "participation_ratio_corrected",
    "effective_rank",
    "mean_cosine",
    "nn_same_token",
    "nn_within_5",
    "nn_overlap",
)


def _of_score(score: str) -> tuple[tuple[str, str, str], ...]:
    """Return the columns of the correlations of the ID with a score: name, unit and meaning."""
    fisher = "Fisher's z ± 1.96 standard errors between documents of its influence function (Croux and Dehon 2010)"
    share = (
        "two-sided p-value of `{}`: (b + 1)/(m + 1) of m permutations (Phipson and Smyth 2010; how many: "
        "docs/statistics.md) of"
    )
    few = "empty where there are fewer than 20 of these"
    plain, partial = f"spearman_{score}", f"partial_{score}"
    of_columns = (
        (
            plain,
            f"Spearman's rank correlation, over contexts with status `ok`, of the ID with the mean {score} of a "
            "context's tokens, the first left out; empty under 5 documents, and where all values are equal",
        ),
        (f"{plain}_low", f"lower end of its 95 % interval: {fisher}; empty under 20 documents"),
        (f"{plain}_high", "its upper end"),
        (f"p_{score}", f"{share.format(plain)} whole documents among those with equally many contexts; {few}"),
        *_of_family(score, plain),
        (
            partial,
            "Spearman's partial rank correlation of the same: that of what a linear regression leaves of both ranks, "
            "on the ranks of how many different tokens a context has, the first left out, and of where in its document "
            "it starts, and, in the rows of all contexts, on its document's value of the first key of `group_by`; "
            "empty under 20 documents, and one more for each such value but the first",
        ),
        (f"{partial}_low", f"lower end of its 95 % interval: {fisher}, less a degree of freedom for each covariate"),
        (f"{partial}_high", "its upper end"),
        (
            f"p_{partial}",
            f"{share.format(partial)} the residuals of whole documents (Freedman and Lane 1983) among those with "
            f"equally many contexts and the same value of the first key of `group_by`; {few}",
        ),
        *_of_family(partial, partial),
    )
    return tuple((name, "", meaning) for name, meaning in of_columns)


def _of_family(tested: str, statistic: str) -> tuple[tuple[str, str], ...]:
    """Return the columns that say what a p-value is worth among all of its family: name and meaning."""
    return (
        (
            f"q_{tested}",
            f"`p_{tested}` adjusted for the false discovery rate (Benjamini and Hochberg 1995); a family is all rows "
            "of one `group`, `view`, `cloud` and `estimator` of a run, or of what `family_per` says",
        ),
        (
            f"p_{tested}_maxt",
            f"`p_{tested}` adjusted for the family-wise error rate: the share of permutations whose largest absolute "
            f"`{statistic}` of the family, times √(contexts − 1), is at least this row's (single-step max-T, Westfall "
            "and Young 1993), which counts how rows resemble each other",
        ),
        (
            f"q_{tested}_floor",
            f"the smallest `q_{tested}` that a single effect in the family could have, from how many permutations "
            "there are: above 0.05 no single effect can be significant, whatever its size",
        ),
    )


# (column, unit, meaning): the documentation of the table, and its order.
COLUMNS = (
    ("model", "", "`model_name` of the configuration"),
    ("checkpoint", "", "training checkpoint: revision, folder or `main`"),
    ("dataset", "", "`dataset_name` of the configuration"),
    ("subset", "", "index of the shard"),
    ("ctx_len", "tokens", "tokens of a context"),
    (
        "control",
        "",
        "what was done to the text: `none`, or `shuffle-S`: up to 4^S blocks of a context permuted",
    ),
    (
        "group",
        "",
        "key of `group_by` whose value the contexts of this row have in common; empty: all contexts of the run",
    ),
    ("group_value", "", "that value; empty where the documents have none"),
    ("view", "", "name of the view: which points count"),
    (
        "skip_first_tokens",
        "tokens",
        "tokens left out at the start of each context by the view; empty where points are contexts",
    ),
    (
        "duplicates",
        "",
        "what the view does with equal points: `distinct` or `keep`; `one_per_token` counts the first of each token, "
        "`matched_subset` as many at random",
    ),
    ("decimate", "points", "how many points the view draws at random; 0: it counts all"),
    ("draw", "", "number of the view's random draw"),
    (
        "preprocess",
        "",
        "how the view scales points: `raw`, `standardised`, `unit_norm`, or `drop_top_C` leading principal components",
    ),
    ("exclude_window", "positions", "points at most this far apart are not neighbors under the view; 0: all may be"),
    ("null_cloud", "", "`gaussian`: points replaced by a Gaussian sample with their number, mean and covariance"),
    (
        "cloud",
        "",
        "`context`: the tokens of one context at one site; `mean`: the centers of all contexts of a run; `position`: "
        "the tokens at one position of all",
    ),
    ("position", "", "that position, from 0; empty for other clouds"),
    (
        "level",
        "",
        "what each estimate of the row is of: `context`, and the row is over contexts; `run`, one cloud of all "
        "contexts: its ID is `mean` and `median` alike, `stderr` is its own, and `sd` is empty",
    ),
    ("layer", "", "index of the block; empty outside the blocks"),
    ("module", "", "module key"),
    ("estimator", "", "name of the estimator, its whole definition"),
    ("mean", "", "mean ID over contexts with status `ok`"),
    ("median", "", "median ID over contexts with status `ok`"),
    ("sd", "", "standard deviation of the ID over contexts with status `ok`"),
    ("n_documents", "documents", "documents of the contexts with status `ok`; of all where points are contexts"),
    (
        "ci_low",
        "",
        "lower end of the 95 % interval of `mean`, with documents as the unit; empty under 5 documents",
    ),
    ("ci_high", "", "its upper end"),
    (
        "interval",
        "",
        "`t`, with 5 to 19 documents: `mean` ± Student's quantile of one degree of freedom less than documents × the "
        "standard error of the jackknife over documents (Efron and Stein 1981); `bootstrap`, from 20: percentiles of "
        "2000 draws of whole documents (Davison and Hinkley 1997); `too_few_documents`; `one_cloud`, which has none",
    ),
    ("stderr", "", "median standard error within a cloud: the asymptotic formula times a simulated factor"),
    (
        "value_gaussian_equivalent",
        "",
        "not an estimate: the dimension of the normal distribution whose clouds of `n_used` points give this `mean`, "
        "from simulations of 1 to 200 dimensions and 64 to 4096 points",
    ),
    ("value_ball_equivalent", "", "the same of the uniform distribution in a ball"),
    ("value_sphere_equivalent", "", "the same of that on a sphere, of the dimension of its surface"),
    (
        "equivalent_status",
        "",
        "of the first: `ok`; `rejected`, by the estimators of the cloud, see `equivalents_rejected`; `out_of_range`, "
        "above or below all that was simulated; `not_calibrated`, an estimator that was not",
    ),
    (
        "equivalents_rejected",
        "",
        "which of `gaussian`, `ball`, `sphere` the cloud is not like: by one of them its estimators have equivalents "
        "that differ by more than a factor of 1.5, where those of such a cloud would agree; empty: none, or only one "
        "estimator that is calibrated",
    ),
    ("n_contexts", "contexts", "clouds estimated"),
    (
        "n_failed",
        "contexts",
        "clouds whose status is not `ok`: in none of this row's means, medians, intervals and correlations",
    ),
    ("statuses", "", "count of each status that is not `ok`"),
    (
        "n_points",
        "points",
        "mean number of points under the view, before duplicates are dropped; this and what follows of clouds, over "
        "contexts with status `ok`",
    ),
    ("n_distinct", "points", "mean number of different points"),
    ("n_used", "points", "mean number of points that entered the estimate"),
    ("median_r1", "activation", "mean over contexts of the median nearest-neighbor distance"),
    (
        "tiny_r1",
        "share",
        "share of points whose nearest neighbor is at no distance, or below a hundredth of the usual one, the median "
        "distance past any jump by a factor of a hundred",
    ),
    (
        "top_share",
        "share",
        "share of the mean over points that the tenth of the points with the largest local dimensions makes; empty for "
        "estimators that are not such a mean",
    ),
    ("median_norm", "activation", "mean over contexts of the median norm of a point"),
    ("participation_ratio", "", "mean of trace(G)²/‖G‖² of the centered Gram matrix G"),
    ("participation_ratio_corrected", "", "the same from unbiased estimates of its parts, for samples of few points"),
    (
        "effective_rank",
        "",
        "mean exponential of the entropy of the covariance spectrum (Roy and Vetterli 2007); empty unless "
        "`cloud_statistics` has `spectrum`, and for clouds of a run",
    ),
    ("mean_cosine", "", "mean cosine similarity of two different points"),
    ("nn_same_token", "share", "share of points whose nearest neighbor is the same token"),
    ("nn_within_5", "share", "share of points whose nearest neighbor is at most 5 positions away"),
    ("nn_overlap", "share", "share of the 10 nearest points that are also so at the same module one layer down"),
    ("n_layers", "blocks", "blocks of the model"),
    (
        "relative_depth",
        "",
        "(`layer` + 1) / `n_layers`: the share of the blocks that a token has been through; 0 for `emb`, 1 for `unemb`",
    ),
    ("n_parameters", "", "parameters of the model, shared ones counted once"),
    ("n_embedding_parameters", "", "those of them that embed tokens and positions or map to the vocabulary"),
    (
        "training_step",
        "updates",
        "as the checkpoint's name says it (`step1000`, `checkpoint-500`); 0 for `random-init`",
    ),
    (
        "training_tokens",
        "tokens",
        "as the checkpoint's name says it (`step1000-tokens4B`), or 2,097,152 an update for Pythia (Biderman et al. "
        "2023) and 2,048 for the embedded `sotu-neox`",
    ),
    ("mean_loss", "nats/token", "mean cross-entropy of the run's tokens, first token of a context left out"),
    ("mean_entropy", "nats/token", "mean entropy of the predictions of the same tokens"),
    *_of_score("loss"),
    *_of_score("entropy"),
    ("dtype", "", "precision of the model's weights"),
    ("device", "", "where the model ran"),
    ("versions", "", "library versions of extraction and estimate"),
)
