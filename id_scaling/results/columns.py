"""The columns of the summary: name, unit, and meaning, defined once for tables, loaders, figures, and docs."""

from __future__ import annotations

from id_scaling.results.run_tables import SITE
from id_scaling.storage.layout import AXES

RUN_AXES = list(AXES)
GROUP = ["group", "group_value"]
KEYS = [*GROUP, *SITE]
# Properties of clouds, averaged like their IDs.
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


def _correlation_columns(score: str) -> tuple[tuple[str, str, str], ...]:
    """Return name, unit, and meaning of the columns about correlations of the ID with a score."""
    fisher = (
        "Fisher's z ± 1.96 standard errors, which come from the influence function, summed by document (Croux and "
        "Dehon 2010)"
    )
    share = (
        "two-sided p-value of `{}`: (b + 1)/(m + 1), where b of m permutations give at least this correlation in "
        "absolute value (Phipson and Smyth 2010; docs/statistics.md gives the number of permutations). A permutation "
        "exchanges"
    )
    few = "empty if fewer than 20 different permutations exist"
    plain, partial = f"spearman_{score}", f"partial_{score}"
    meanings = (
        (
            plain,
            f"Spearman's rank correlation of the ID with the mean {score} of the context, over contexts with status "
            "`ok`; the mean leaves out the first token; empty with fewer than 5 documents, or if all values are equal",
        ),
        (f"{plain}_low", f"lower end of the 95 % interval of `{plain}`: {fisher}; empty with fewer than 20 documents"),
        (f"{plain}_high", "upper end of that interval"),
        (f"p_{score}", f"{share.format(plain)} whole documents that have equally many contexts; {few}"),
        *_adjustment_columns(score, plain),
        (
            partial,
            f"Spearman's partial rank correlation of the ID with the mean {score}: the correlation of the residuals of "
            "a linear regression of both ranks on the covariates. Covariates are the ranks of the number of different "
            "tokens in the context (without the first token) and of its start in the document and, in rows of all "
            "contexts, the document's value of the first key of `group_by`. Empty with fewer than 20 documents, plus "
            "one for each such value after the first",
        ),
        (
            f"{partial}_low",
            f"lower end of the 95 % interval of `{partial}`: {fisher}, with one degree of freedom less for each "
            "covariate",
        ),
        (f"{partial}_high", "upper end of that interval"),
        (
            f"p_{partial}",
            f"{share.format(partial)} the residuals of whole documents (Freedman and Lane 1983) that have equally many "
            f"contexts and the same value of the first key of `group_by`; {few}",
        ),
        *_adjustment_columns(partial, partial),
    )
    return tuple((name, "", meaning) for name, meaning in meanings)


def _adjustment_columns(tested: str, statistic: str) -> tuple[tuple[str, str], ...]:
    """Return name and meaning of the columns that adjust a p-value for its whole family of tests."""
    return (
        (
            f"q_{tested}",
            f"`p_{tested}` adjusted for the false discovery rate (Benjamini and Hochberg 1995). A family is all rows "
            "with the same `group`, `view`, `cloud`, and `estimator` in one run, or in the runs `family_per` joins",
        ),
        (
            f"p_{tested}_maxt",
            f"`p_{tested}` adjusted for the family-wise error rate: the share of permutations in which the largest "
            f"absolute value of `{statistic}` × √(contexts − 1) in the family is at least that of this row "
            "(single-step max-T, Westfall and Young 1993); it accounts for the dependence between rows",
        ),
        (
            f"q_{tested}_floor",
            f"the smallest `q_{tested}` that a single effect in the family can reach with the available permutations; "
            "if it is above 0.05, no single effect can be significant, whatever its size",
        ),
    )


# (column, unit, meaning): the order of the columns, and their documentation.
COLUMNS = (
    ("model", "", "`model_name` of the configuration"),
    ("checkpoint", "", "training checkpoint: revision, folder, or `main`"),
    ("dataset", "", "`dataset_name` of the configuration"),
    ("subset", "", "index of the shard"),
    ("ctx_len", "tokens", "number of tokens in each context"),
    (
        "control",
        "",
        "change to the text: `none`, or `shuffle-S`, which permutes up to 4^S blocks of each context",
    ),
    (
        "group",
        "",
        "key of `group_by` whose value all contexts of this row share; empty if the row is of all contexts of the run",
    ),
    ("group_value", "", "the value of that key; empty if the documents have none"),
    ("view", "", "name of the view, which says which points count"),
    (
        "skip_first_tokens",
        "tokens",
        "tokens that the view leaves out at the start of each context; empty if `level` is `run`",
    ),
    (
        "duplicates",
        "",
        "how the view treats equal points: `distinct` counts them once, `keep` counts all; `one_per_token` counts the "
        "first occurrence of each token, `matched_subset` as many points at random",
    ),
    ("decimate", "points", "number of points that the view draws at random; 0 if it counts all"),
    ("draw", "", "number of the view's random draw"),
    (
        "preprocess",
        "",
        "how the view scales points: `raw`, `standardised`, `unit_norm`, or `drop_top_C` leading principal components",
    ),
    (
        "exclude_window",
        "positions",
        "points at most this many positions apart are not neighbors under the view; 0 if all can be",
    ),
    ("null_cloud", "", "`gaussian` if a Gaussian sample with the same size, mean, and covariance replaces the points"),
    (
        "cloud",
        "",
        "`context`: the tokens of one context at one site; `mean`: the mean points of all contexts of a run; "
        "`position`: the tokens at one position in all contexts of a run",
    ),
    ("position", "", "position of the tokens of a `position` cloud, from 0; empty for other clouds"),
    (
        "level",
        "",
        "`context` if the row summarizes one ID per context; `run` if it has the ID of one cloud of all contexts, "
        "which is then both `mean` and `median`, with its own `stderr` and an empty `sd`",
    ),
    ("layer", "", "index of the transformer block; empty outside the blocks"),
    ("module", "", "module key"),
    ("estimator", "", "name of the estimator, which defines it completely"),
    ("mean", "", "mean ID over contexts with status `ok`"),
    ("median", "", "median ID over contexts with status `ok`"),
    ("sd", "", "standard deviation of the ID over contexts with status `ok`"),
    (
        "n_documents",
        "documents",
        "number of documents that have a context with status `ok`; of all documents if `level` is `run`",
    ),
    (
        "ci_low",
        "",
        "lower end of the 95 % interval of `mean`, with documents as the unit; empty with fewer than 5 documents",
    ),
    ("ci_high", "", "upper end of that interval"),
    (
        "interval",
        "",
        "kind of that interval. `t`, with 5 to 19 documents: `mean` ± Student's quantile (number of documents − 1 "
        "degrees of freedom) × the jackknife standard error over documents (Efron and Stein 1981). `bootstrap`, with "
        "20 or more: percentiles of 2000 draws of whole documents (Davison and Hinkley 1997). `too_few_documents`, or "
        "`one_cloud` for a row of one cloud: no interval",
    ),
    (
        "stderr",
        "",
        "median over contexts of the standard error of one estimate: the asymptotic formula times a simulated factor",
    ),
    (
        "value_gaussian_equivalent",
        "",
        "not an estimate: the dimension of the Gaussian distribution whose clouds of `n_used` points give this `mean`, "
        "from simulations with 1 to 200 dimensions and 64 to 4096 points",
    ),
    ("value_ball_equivalent", "", "the same for the uniform distribution in a ball"),
    (
        "value_sphere_equivalent",
        "",
        "the same for the uniform distribution on a sphere; it is the dimension of the surface",
    ),
    (
        "equivalent_status",
        "",
        "status of `value_gaussian_equivalent`: `ok`; `rejected`, if `equivalents_rejected` has `gaussian`; "
        "`out_of_range`, if `mean` or `n_used` is outside the simulated range; `not_calibrated`, if the estimator was "
        "not simulated",
    ),
    (
        "equivalents_rejected",
        "",
        "which of `gaussian`, `ball`, `sphere` do not describe the cloud: the equivalents of its estimators differ by "
        "more than a factor of 1.5, but would agree for a cloud of that distribution; empty if none is rejected, or if "
        "fewer than two estimators are calibrated",
    ),
    ("n_contexts", "contexts", "number of clouds, with any status"),
    (
        "n_failed",
        "contexts",
        "number of clouds whose status is not `ok`; means, medians, intervals, and correlations leave them out",
    ),
    ("statuses", "", "number of clouds with each status that is not `ok`"),
    (
        "n_points",
        "points",
        "mean number of points under the view, before equal points are dropped; this mean, and the means of cloud "
        "properties below, are over contexts with status `ok`",
    ),
    ("n_distinct", "points", "mean number of different points"),
    ("n_used", "points", "mean number of points that entered the estimate"),
    ("median_r1", "activation", "mean over contexts of the median nearest-neighbor distance"),
    (
        "tiny_r1",
        "share",
        "share of points whose nearest neighbor is at distance zero, or nearer than a hundredth of the typical "
        "distance: the median of the distances above any jump by a factor of a hundred",
    ),
    (
        "top_share",
        "share",
        "share of the estimate that the tenth of the points with the largest local dimensions contributes; empty for "
        "estimators that are not a mean of local dimensions",
    ),
    ("median_norm", "activation", "mean over contexts of the median norm of a point"),
    ("participation_ratio", "", "mean of trace(G)²/‖G‖², where G is the centered Gram matrix"),
    (
        "participation_ratio_corrected",
        "",
        "the same with unbiased estimates of numerator and denominator, for clouds of few points",
    ),
    (
        "effective_rank",
        "",
        "mean exponential of the entropy of the covariance spectrum (Roy and Vetterli 2007); empty for clouds of all "
        "contexts of a run, and unless `cloud_statistics` has `spectrum`",
    ),
    ("mean_cosine", "", "mean cosine similarity of two different points"),
    ("nn_same_token", "share", "share of points whose nearest neighbor is the same token"),
    ("nn_within_5", "share", "share of points whose nearest neighbor is at most 5 positions away"),
    (
        "nn_overlap",
        "share",
        "share of the 10 nearest neighbors that are also among the 10 nearest at the same module one layer below",
    ),
    ("n_layers", "blocks", "number of transformer blocks of the model"),
    (
        "relative_depth",
        "",
        "(`layer` + 1) / `n_layers`: the share of the blocks up to this site; 0 for `emb`, 1 for `unemb`",
    ),
    ("n_parameters", "", "number of parameters of the model; shared parameters count once"),
    (
        "n_embedding_parameters",
        "",
        "number of those parameters that embed tokens or positions, or map to the vocabulary",
    ),
    (
        "training_step",
        "updates",
        "number of training updates, from the name of the checkpoint (`step1000`, `checkpoint-500`); 0 for "
        "`random-init`",
    ),
    (
        "training_tokens",
        "tokens",
        "number of training tokens, from the name of the checkpoint (`step1000-tokens4B`); or 2,097,152 per update for "
        "Pythia (Biderman et al. 2023) and 2,048 per update for the bundled `sotu-neox` models",
    ),
    (
        "mean_loss",
        "nats/token",
        "mean cross-entropy over the tokens of the row's contexts, without the first token of each context",
    ),
    ("mean_entropy", "nats/token", "mean entropy of the predictions of the same tokens"),
    *_correlation_columns("loss"),
    *_correlation_columns("entropy"),
    ("dtype", "", "data type of the model's weights"),
    ("device", "", "device on which the model ran"),
    ("versions", "", "library versions of the extraction and of the estimate"),
)
