"""Statistics of each cloud that are stored next to its neighbor distances, computed from the same inner products.

Statistics come in named sets. An extraction has its own setting for these sets, independent of the estimators, so
adding an estimator extracts nothing. Sums are float64 even where products are float32. Statistics from float32 products
are accurate to 1e-5. Counts of pairs within a radius are wrong only for pairs at its edge, a few in ten thousand, and
`corrint` is as accurate as the counts; its standard error is accurate to 1 %. Where float32 is not accurate enough,
sums and pairs come from float64 products of points about their own mean. Where float64 is not enough either, pairs are
not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from id_scaling.neighbors.error_bounds import deviations
from id_scaling.neighbors.kernels.dispatch import kernels_of
from id_scaling.neighbors.points import Centred, Cloud, centred_on
from id_scaling.neighbors.search import Nearest, beyond_window

# statistic set -> (statistic, meaning)
GROUPS: dict[str, tuple[tuple[str, str], ...]] = {
    "counts": (
        ("n_points", "points of the view, before equal ones are dropped"),
        ("n_distinct", "different points"),
        ("n_nonfinite", "points with a coordinate that is not finite"),
        ("n_used", "points that enter estimates"),
        ("median_norm", "median norm of a point, as given"),
    ),
    "moments": (
        ("gram_trace", "trace of the Gram matrix of the centred points"),
        ("gram_frobenius", "its Frobenius norm"),
        ("participation_ratio_stderr", "standard error of the participation ratio within the cloud"),
    ),
    "cosine": (("mean_cosine", "mean cosine similarity of two different points, as given"),),
    "shares": (
        ("nn_same_token", "share of points whose nearest neighbor is the same token"),
        (
            "nn_within_5",
            "share of points whose nearest neighbor is at most 5 positions away; none where several points are at no "
            "distance from one, as which of them is its nearest is arbitrary",
        ),
    ),
    "correlation": (
        ("correlation_r10", "median distance to the 10th neighbor"),
        ("correlation_r20", "median distance to the 20th neighbor"),
        ("correlation_pairs_r10", "pairs nearer than correlation_r10"),
        ("correlation_pairs_r20", "pairs nearer than correlation_r20"),
        ("corrint_stderr", "standard error of corrint within the cloud"),
    ),
    "overlap": (
        (
            "nn_overlap",
            "share of a point's 10 nearest that are among its 10 nearest at the same module one layer down; none "
            "where, at either, several points are at no distance from one",
        ),
    ),
    "spectrum": (
        ("effective_rank", "exponential of the entropy of the covariance spectrum"),
        ("effective_rank_stderr", "its standard error within the cloud"),
        ("pca_90", "principal components that hold 90 % of the variance"),
        ("pca_95", "principal components that hold 95 % of the variance"),
        ("pca_99", "principal components that hold 99 % of the variance"),
    ),
}
ALWAYS = ("counts",)
DEFAULT_GROUPS = ("moments", "cosine", "shares", "correlation", "overlap")
N_OVERLAP = 10
# Marks the nearest neighbors of a point that equals several others.
ARBITRARY = -2
CORRELATION_RANKS = (10, 20)
# Shares of the variance that differ by less than this are equal.
ROUNDING = 1e-12
# Float32 products are accurate enough if the relative error of a squared radius is below EDGE, and if centering the
# selected points on their own mean leaves more than LEFT of the sum of their squared norms.
EDGE, LEFT = 1e-4, 0.01
# A squared distance that differs from a squared radius by less than TIE of it, or by less than TIE_SIGMAS standard
# deviations of its error, is equal to it, so the pair is not within the radius.
TIE, TIE_SIGMAS = 1e-9, 3.0
# Neighbors that statistics need, whatever ranks are stored.
N_LISTED = 20


def names_of(groups: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the statistics in the given sets and in those always stored, in storage order.

    Examples
    --------
    >>> names_of(["moments"])[-3:]
    ('gram_trace', 'gram_frobenius', 'participation_ratio_stderr')
    """
    return tuple(name for group, rows in GROUPS.items() if group in (*ALWAYS, *groups) for name, _ in rows)


def group_of(statistic: str) -> str:
    """Return the set that a statistic belongs to.

    Examples
    --------
    >>> group_of("pca_90")
    'spectrum'
    """
    return next(group for group, rows in GROUPS.items() if statistic in dict(rows))


def participation_ratio(trace: np.ndarray, frobenius: np.ndarray) -> np.ndarray:
    """Return (tr G)² / ‖G‖², the number of directions that share the variance.

    Examples
    --------
    >>> variances = np.array([1.0, 1.0, 1.0, 0.0])
    >>> float(participation_ratio(variances.sum(), np.sqrt((variances**2).sum())).round(6))
    3.0
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return (trace / frobenius) ** 2


def participation_ratio_corrected(trace: np.ndarray, frobenius: np.ndarray, n_used: np.ndarray) -> np.ndarray:
    """Return ((n + 1) (tr G)² - 2 ‖G‖²) / (n ‖G‖² - (tr G)²) with n = n_used - 1; NaN where it is undefined.

    Examples
    --------
    >>> float(participation_ratio_corrected(np.array(6.0), np.array(3.0), np.array(100)).round(3))
    4.189
    """
    n, ratio = n_used - 1, participation_ratio(trace, frobenius)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(n > ratio, ((n + 1) * ratio - 2) / (n - ratio), np.nan)


def participation_ratio_slope(ratio: np.ndarray, n_used: np.ndarray) -> np.ndarray:
    """Return the derivative of the corrected participation ratio with respect to the plain one.

    Examples
    --------
    >>> round(participation_ratio_slope(4.0, 100), 3)
    1.097
    """
    n = n_used - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        return (n * (n + 1) - 2) / (n - ratio) ** 2


def jackknife_error(influences: np.ndarray, noise: np.ndarray | float) -> float:
    """Return the standard error of a logarithm from the influence of each point's weight on it.

    At the maximum of a statistic, single points change it only by noise, and pairs carry the signal. The sum of squared
    influences then contains the noise twice, so it is subtracted once; at least half of the noise remains.

    Parameters
    ----------
    influences : (n,) array
        Derivative of the logarithm with respect to the weight of each point; the sum is zero.
    noise : float
        Variance of the logarithm at the maximum.

    Examples
    --------
    >>> float(jackknife_error(np.array([0.3, 0.1, -0.4]), 0.0).round(3))
    0.51
    """
    return np.sqrt(np.maximum(influences @ influences - noise, noise / 2))


def noise_of_equal_variances(ratio: np.ndarray | float, n_used: int) -> np.ndarray:
    """Return the variance of log PR over clouds of a normal distribution with equal variances, at the given PR."""
    n = n_used - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        free_share = 1 - np.minimum(ratio / n, 1)
        return (2 * free_share / n) ** 2 * (1 - 1 / ratio) * (1 + 2 / ratio)


@dataclass(frozen=True)
class Context:
    """Inputs of statistics other than the points of the cloud.

    Parameters
    ----------
    token_ids : (n_points,) array of int, or None
        Token ID of each point.
    below : (n_points, N_OVERLAP) array of int, or None
        Nearest neighbors of each point at the site one layer down, under the same view; -1 for none, ARBITRARY
        where several points equal the point.
    """

    token_ids: np.ndarray | None = None
    below: np.ndarray | None = None


def statistics_of(
    groups: Sequence[str], cloud: Cloud, selection: np.ndarray, neighbors: Nearest, context: Context
) -> dict[str, float]:
    """Return the statistics in the given sets, without the counts, for the selected points of a cloud."""
    values: dict[str, float] = {}
    for group in groups:
        values |= _COMPUTE[group](cloud, selection, neighbors, context)
    return values


def _moments(cloud: Cloud, selection: np.ndarray, neighbors: Nearest, _: Context) -> dict[str, float]:
    """Return trace and Frobenius norm of the Gram matrix of the selected points, centered on their own mean."""
    if _are_all_equal(selection, cloud):
        return dict(zip((name for name, _ in GROUPS["moments"]), (0.0, 0.0, np.nan), strict=True))
    centred = neighbors.centred if neighbors.centred.shifts is None else cloud.about_mean(np.float32)
    moments = _moments_of(centred, selection, cloud)
    if not moments[0] > LEFT * centred.squared_norms[selection].sum():  # the cloud's center is far from theirs
        moments = _moments_of(_about_own_mean(selection, cloud), selection, cloud)
    scale = cloud.scale * cloud.scale
    units = (scale, scale, 1.0)
    return {name: moment * unit for (name, _), moment, unit in zip(GROUPS["moments"], moments, units, strict=True)}


def _are_all_equal(selection: np.ndarray, cloud: Cloud) -> bool:
    """Return whether the selected points are all equal: then any variance would be rounding error."""
    return bool((cloud.first[selection] == cloud.first[selection[0]]).all())


def _about_own_mean(selection: np.ndarray, cloud: Cloud) -> Centred:
    """Return points minus the mean of the selected ones, in float64."""
    mean = cloud.kernels.mean_of(cloud.points, selection)
    labels = np.zeros(len(cloud.first), np.int32)
    return centred_on(cloud.kernels, cloud.points, labels, np.float64, cloud.probes, mean[None])


def _moments_of(centred: Centred, selection: np.ndarray, cloud: Cloud) -> tuple[float, float, float]:
    """Return trace and Frobenius norm of C = H G H, and the standard error of PR = (tr C)² / ‖C‖².

    G are the products of points about any center, and H = 1 - 11ᵀ / n. The standard error is the infinitesimal
    jackknife minus the noise of equal variances: the weight of point i changes log PR by
    2 (C_ii / tr C - q_i / ‖C‖²) with q_i the sum of squares of row i of C.
    """
    n, squared_norms = len(selection), centred.squared_norms
    sums_of_all = cloud.kernels.gram_sums(centred.gram, _mask(cloud, selection))
    sums, squares, products = (values[selection] for values in sums_of_all)
    means, total = sums / n, sums.sum()
    shifts = means - total / n**2
    diagonal = squared_norms[selection] - means - shifts
    rows = squares + means @ means - 2 * products / n - n * shifts**2
    trace = squared_norms[selection].sum() - total / n
    square = max(squares.sum() - 2 * (sums @ sums) / n + (total / n) ** 2, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        influences = 2 * (diagonal / trace - rows / square)
        ratio = participation_ratio(trace, np.sqrt(square))
        error = ratio * jackknife_error(influences, noise_of_equal_variances(ratio, n))
    return float(trace), float(np.sqrt(square)), float(error)


def _cosine(cloud: Cloud, selection: np.ndarray, _: Nearest, __: Context) -> dict[str, float]:
    """Return (|sum_i u_i|² - n) / (n (n - 1)) for the points' directions u_i; NaN where a point has none."""
    n = len(selection)
    with np.errstate(divide="ignore"):
        inverse_norms = 1 / np.sqrt(cloud.squared_norms[selection])
    if not np.isfinite(inverse_norms).all():
        return {"mean_cosine": np.nan}
    weights = np.zeros(len(cloud.first))
    weights[selection] = inverse_norms
    total = cloud.kernels.weighted_sum(cloud.points, weights)
    return {"mean_cosine": (total @ total - n) / (n * (n - 1))}


def _shares(_: Cloud, selection: np.ndarray, neighbors: Nearest, context: Context) -> dict[str, float]:
    """Return the shares of nearest neighbors with the same token, and within five positions.

    Among several equal points, the nearest neighbor is arbitrary. Then the share within five positions is NaN, and so
    is the share with the same token unless equal points have one token, as at an embedding.
    """
    nearest, token_ids = neighbors.indices[:, 0], context.token_ids
    within_5, is_tied = np.mean(np.abs(selection - nearest) <= 5), has_several_equals(neighbors.squares)
    same_token = np.nan
    if token_ids is not None and _is_of_one_token(neighbors, is_tied, token_ids):
        same_token = np.mean(token_ids[selection] == token_ids[nearest])
    return {"nn_same_token": float(same_token), "nn_within_5": np.nan if is_tied.any() else float(within_5)}


def has_several_equals(squares: np.ndarray) -> np.ndarray:
    """Return which points have several neighbors at distance zero, from ascending squared distances (n, m)."""
    return squares[:, 1] == 0 if squares.shape[1] > 1 else np.zeros(len(squares), bool)


def _is_of_one_token(neighbors: Nearest, is_tied: np.ndarray, token_ids: np.ndarray) -> bool:
    """Return whether, for each tied point, all listed neighbors at distance zero have the same token."""
    tokens, is_equal = token_ids[neighbors.indices[is_tied]], neighbors.squares[is_tied] == 0
    return bool((~is_equal | (tokens == tokens[:, :1])).all())


def _correlation(cloud: Cloud, selection: np.ndarray, neighbors: Nearest, _: Context) -> dict[str, float]:
    """Return the median distances to two neighbors, and how many pairs are nearer than each.

    NaN for too few points, and where float64 products are not accurate enough to count pairs.
    """
    names = [name for name, _ in GROUPS["correlation"]]
    if neighbors.squares.shape[1] < CORRELATION_RANKS[-1]:
        return dict.fromkeys(names, np.nan)
    radii = np.array([np.median(np.sqrt(neighbors.squares[:, rank - 1])) for rank in CORRELATION_RANKS])
    centred, deviation = neighbors.centred, _relative_deviation(radii[0], neighbors.centred, selection)
    if deviation > EDGE:  # many pairs near the edge would be on the wrong side
        centred = _about_own_mean(selection, cloud)
        deviation = _relative_deviation(radii[0], centred, selection)
    if not deviation <= EDGE:
        return dict.fromkeys(names, np.nan)
    limits = radii**2 * (1 - max(TIE, TIE_SIGMAS * deviation))
    product = beyond_window(centred.gram, neighbors.window)
    within = cloud.kernels.n_within(product, centred.squared_norms, _mask(cloud, selection), limits)
    pairs = within.sum(axis=1) // 2
    with np.errstate(invalid="ignore", divide="ignore"):
        error = log_ratio_error(within, pairs) / np.log(radii[1] / radii[0])
    return dict(zip(names, [*(radii * cloud.scale).tolist(), *map(float, pairs), float(error)], strict=True))


def _relative_deviation(radius: float, centred: Centred, selection: np.ndarray) -> float:
    """Return the relative standard deviation of squared distances near a radius, at a point of median norm."""
    with np.errstate(invalid="ignore", divide="ignore"):
        norm = np.median(centred.guard_norms[selection])
        return float(deviations(radius**2, norm, centred.error) / radius**2)


def log_ratio_error(within: np.ndarray, pairs: np.ndarray) -> float:
    """Return the standard error of log(N_2 / N_1), where N_1 and N_2 are the numbers of pairs within two radii.

    The pairs of a point are correlated: with c_i of the N pairs at point i, its projection is c_i2 / N_2 - c_i1 / N_1.
    The sum of squared projections counts the part of each single pair, 1 / N_1 - 1 / N_2, twice, so it is subtracted
    once; at least half of the sum remains.

    Parameters
    ----------
    within : (2, n) array of int
        Number of points within each radius of each point.
    pairs : (2,) array of int
        N_1 and N_2.
    """
    square = np.sum((within[1] / pairs[1] - within[0] / pairs[0]) ** 2)
    return np.sqrt(np.maximum(square - (1 / pairs[0] - 1 / pairs[1]), square / 2))


def _overlap(_: Cloud, selection: np.ndarray, neighbors: Nearest, context: Context) -> dict[str, float]:
    """Return the share of neighbors that two lists have in common, averaged over points that have both lists."""
    if context.below is None or neighbors.indices.shape[1] < N_OVERLAP:
        return {"nn_overlap": np.nan}
    own, below = neighbors.indices[:, :N_OVERLAP], context.below[selection]
    if has_several_equals(neighbors.squares).any() or (below == ARBITRARY).any():
        return {"nn_overlap": np.nan}
    has_both = below[:, 0] >= 0
    common = kernels_of(own).share_in_common(own, below)
    return {"nn_overlap": float(common[has_both].mean()) if has_both.any() else np.nan}


def _spectrum(cloud: Cloud, selection: np.ndarray, neighbors: Nearest, _: Context) -> dict[str, float]:
    """Return the statistics of the covariance spectrum, from the eigenvalues of the centered Gram matrix in float64.

    The standard error of exp(H), H = -sum_k p_k log p_k, is the infinitesimal jackknife minus the noise of equal
    variances: the weight of point i changes H by -sum_k p_k (log p_k + H) u_ik² with u_k the eigenvectors. Near equal
    variances, H changes half as much as log PR.
    """
    names = [name for name, _ in GROUPS["spectrum"]]
    if _are_all_equal(selection, cloud):
        return dict.fromkeys(names, np.nan)
    gram = _about_own_mean(selection, cloud).gram
    eigenvalues, eigenvectors = cloud.kernels.centred_spectrum(cloud.kernels.submatrix(gram, selection))
    shares = np.clip(eigenvalues, 0, None)
    shares = shares / shares.sum()
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy = -(shares * logs).sum()
    influences = cloud.kernels.weighted_squares(eigenvectors, shares * (logs + entropy))
    rank = np.exp(entropy)
    error = rank * jackknife_error(influences, noise_of_equal_variances(rank, len(selection)) / 4)
    held = np.cumsum(shares[::-1]) + ROUNDING
    percents = [float(1 + np.searchsorted(held, float(name.removeprefix("pca_")) / 100)) for name in names[2:]]
    return dict(zip(names, [float(rank), float(error), *percents], strict=True))


def _mask(cloud: Cloud, selection: np.ndarray) -> np.ndarray:
    """Return the boolean mask of the selected points of a cloud."""
    mask = np.zeros(len(cloud.first), dtype=bool)
    mask[selection] = True
    return mask


_COMPUTE = {
    "moments": _moments,
    "cosine": _cosine,
    "shares": _shares,
    "correlation": _correlation,
    "overlap": _overlap,
    "spectrum": _spectrum,
}
