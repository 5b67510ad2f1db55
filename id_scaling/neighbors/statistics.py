"""What is stored of each cloud beside its neighbor distances, from the same inner products: named groups of statistics.

The set is an extraction's own setting and never follows from the estimators asked for, so that adding an estimator
extracts nothing. Sums are float64 wherever the products are float32. What comes of float32 products is right to 1e-5;
pairs within a radius are right but for those on its edge, a few in ten thousand, and so is `corrint`; its error is
right to a hundredth. Where float32 would not do for that, sums and pairs are of float64 products of points about their
own mean, and where those would not do, pairs are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from id_scaling.neighbors.error_bounds import deviations
from id_scaling.neighbors.kernels.dispatch import kernels_of
from id_scaling.neighbors.points import Centred, Cloud, centred_on
from id_scaling.neighbors.search import Nearest, beyond_window

# group -> (statistic, meaning)
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
# In the place of the nearest neighbors of a point that several others equal.
ARBITRARY = -2
CORRELATION_RANKS = (10, 20)
# Shares of the variance that differ by less are equal.
ROUNDING = 1e-12
# Products in float32 do where a squared radius is off by less, and where centring the points that count on their mean
# leaves more of the sum of their squared norms.
EDGE, LEFT = 1e-4, 0.01
# Squared distances nearer to a squared radius than this share of it, or than so many deviations of their error, are
# equal to it, so not within.
TIE, TIE_SIGMAS = 1e-9, 3.0
# Neighbors that statistics look at, so that they are found whatever the ladder.
N_LISTED = 20


def names_of(groups: Sequence[str]) -> tuple[str, ...]:
    """Return the statistics of some groups and of those always stored, in the order in which they are stored.

    Examples
    --------
    >>> names_of(["moments"])[-3:]
    ('gram_trace', 'gram_frobenius', 'participation_ratio_stderr')
    """
    return tuple(name for group, rows in GROUPS.items() if group in (*ALWAYS, *groups) for name, _ in rows)


def group_of(statistic: str) -> str:
    """Return the group that a statistic belongs to.

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
    """Return ((n + 1) (tr G)² - 2 ‖G‖²) / (n ‖G‖² - (tr G)²) with n = n_used - 1; NaN where that is no ratio.

    Examples
    --------
    >>> float(participation_ratio_corrected(np.array(6.0), np.array(3.0), np.array(100)).round(3))
    4.189
    """
    n, ratio = n_used - 1, participation_ratio(trace, frobenius)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(n > ratio, ((n + 1) * ratio - 2) / (n - ratio), np.nan)


def participation_ratio_slope(ratio: np.ndarray, n_used: np.ndarray) -> np.ndarray:
    """Return the derivative of the corrected participation ratio by the plain one.

    Examples
    --------
    >>> round(participation_ratio_slope(4.0, 100), 3)
    1.097
    """
    n = n_used - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        return (n * (n + 1) - 2) / (n - ratio) ** 2


def jackknife_error(influences: np.ndarray, noise: np.ndarray | float) -> float:
    """Return the standard error of a logarithm from what the weight of each point changes it by, (n,).

    Where a statistic is at its maximum, single points change it by noise, pairs of them by what counts: the sum of the
    squares of influences then holds the noise twice, so that is taken off once; half of the noise is left at least.

    Parameters
    ----------
    influences : (n,) array
        They sum to zero.
    noise : float
        The variance at the maximum.

    Examples
    --------
    >>> float(jackknife_error(np.array([0.3, 0.1, -0.4]), 0.0).round(3))
    0.51
    """
    return np.sqrt(np.maximum(influences @ influences - noise, noise / 2))


def noise_of_equal_variances(ratio: np.ndarray | float, n_used: int) -> np.ndarray:
    """Return the variance of log PR over clouds of a normal distribution whose variances are equal, at a PR."""
    n = n_used - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        left = 1 - np.minimum(ratio / n, 1)
        return (2 * left / n) ** 2 * (1 - 1 / ratio) * (1 + 2 / ratio)


@dataclass(frozen=True)
class Context:
    """What statistics see of a cloud beside its points.

    Parameters
    ----------
    token_ids : (n_points,) array of int, or None
        Token of each point.
    below : (n_points, N_OVERLAP) array of int, or None
        The nearest neighbors of each point at the site one layer down under the same view, -1 for none, ARBITRARY
        where several points equal it.
    """

    token_ids: np.ndarray | None = None
    below: np.ndarray | None = None


def statistics_of(
    groups: Sequence[str], cloud: Cloud, selection: np.ndarray, found: Nearest, context: Context
) -> dict[str, float]:
    """Return the statistics of some groups, without the counts, for the selected points of a cloud."""
    values: dict[str, float] = {}
    for group in groups:
        values |= _COMPUTE[group](cloud, selection, found, context)
    return values


def _moments(cloud: Cloud, selection: np.ndarray, found: Nearest, _: Context) -> dict[str, float]:
    """Return the trace and the Frobenius norm of the Gram matrix of the selected points, centred on their own mean."""
    if _are_equal(selection, cloud):
        return dict(zip((name for name, _ in GROUPS["moments"]), (0.0, 0.0, np.nan), strict=True))
    centred = found.centred if found.centred.shifts is None else cloud.about_mean(np.float32)
    moments = _moments_of(centred, selection, cloud)
    if not moments[0] > LEFT * centred.squared_norms[selection].sum():  # the cloud's centre is far from theirs
        moments = _moments_of(_about_own_mean(selection, cloud), selection, cloud)
    scale = cloud.scale * cloud.scale
    units = (scale, scale, 1.0)
    return {name: moment * unit for (name, _), moment, unit in zip(GROUPS["moments"], moments, units, strict=True)}


def _are_equal(selection: np.ndarray, cloud: Cloud) -> bool:
    """Return whether the selected points are all equal: what rounding would make of them is no variance."""
    return bool((cloud.first[selection] == cloud.first[selection[0]]).all())


def _about_own_mean(selection: np.ndarray, cloud: Cloud) -> Centred:
    """Return points less the mean of the selected ones, in float64."""
    mean = cloud.kernels.mean_of(cloud.points, selection)
    one_group = np.zeros(len(cloud.first), np.int32)
    return centred_on(cloud.kernels, cloud.points, one_group, np.float64, cloud.probes, mean[None])


def _moments_of(centred: Centred, selection: np.ndarray, cloud: Cloud) -> tuple[float, float, float]:
    """Return trace and Frobenius norm of C = H G H, G the products of points centred anywhere and H = 1 - 11ᵀ / n.

    The standard error of PR = (tr C)² / ‖C‖² is its infinitesimal jackknife, less the noise of equal variances: a
    point's weight changes log PR by 2 (C_ii / tr C - q_i / ‖C‖²) with q_i the sum of squares of row i of C.
    """
    n, squared_norms = len(selection), centred.squared_norms
    found = cloud.kernels.gram_sums(centred.gram, _mask(cloud, selection))
    sums, squares, products = (values[selection] for values in found)
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


def _shares(_: Cloud, selection: np.ndarray, found: Nearest, context: Context) -> dict[str, float]:
    """Return the shares of nearest neighbors with the same token, and within five positions.

    Among several equal points which is the nearest is arbitrary: of positions nothing can be said then, and of tokens
    only where equal points are of one token, as at an embedding.
    """
    nearest, token_ids = found.indices[:, 0], context.token_ids
    same, near, is_tied = np.nan, np.mean(np.abs(selection - nearest) <= 5), has_several_equals(found.squares)
    if token_ids is not None and _is_of_one_token(found, is_tied, token_ids):
        same = np.mean(token_ids[selection] == token_ids[nearest])
    return {"nn_same_token": float(same), "nn_within_5": np.nan if is_tied.any() else float(near)}


def has_several_equals(squares: np.ndarray) -> np.ndarray:
    """Return which points have several others at no distance, from ascending squared distances (n, m)."""
    return squares[:, 1] == 0 if squares.shape[1] > 1 else np.zeros(len(squares), bool)


def _is_of_one_token(found: Nearest, is_tied: np.ndarray, token_ids: np.ndarray) -> bool:
    """Return whether the points at no distance from a point, as far as they are listed, are all of one token."""
    tokens, is_equal = token_ids[found.indices[is_tied]], found.squares[is_tied] == 0
    return bool((~is_equal | (tokens == tokens[:, :1])).all())


def _correlation(cloud: Cloud, selection: np.ndarray, found: Nearest, _: Context) -> dict[str, float]:
    """Return the medians of two neighbor distances and how many pairs are nearer than each.

    NaN for too few points, and where products in float64 do not tell which pairs are nearer.
    """
    names = [name for name, _ in GROUPS["correlation"]]
    if found.squares.shape[1] < CORRELATION_RANKS[-1]:
        return dict.fromkeys(names, np.nan)
    radii = np.array([np.median(np.sqrt(found.squares[:, rank - 1])) for rank in CORRELATION_RANKS])
    centred, off = found.centred, _off_at(radii[0], found.centred, selection)
    if off > EDGE:  # then many a pair near the edge would be on its wrong side
        centred = _about_own_mean(selection, cloud)
        off = _off_at(radii[0], centred, selection)
    if not off <= EDGE:
        return dict.fromkeys(names, np.nan)
    limits = radii**2 * (1 - max(TIE, TIE_SIGMAS * off))
    product = beyond_window(centred.gram, found.window)
    within = cloud.kernels.n_within(product, centred.squared_norms, _mask(cloud, selection), limits)
    pairs = within.sum(axis=1) // 2
    with np.errstate(invalid="ignore", divide="ignore"):
        error = log_ratio_error(within, pairs) / np.log(radii[1] / radii[0])
    return dict(zip(names, [*(radii * cloud.scale).tolist(), *map(float, pairs), float(error)], strict=True))


def _off_at(radius: float, centred: Centred, selection: np.ndarray) -> float:
    """Return how far squared distances of about a radius are off, as a share, at a point like most."""
    with np.errstate(invalid="ignore", divide="ignore"):
        norm = np.median(centred.guard_norms[selection])
        return float(deviations(radius**2, norm, centred.error) / radius**2)


def log_ratio_error(within: np.ndarray, pairs: np.ndarray) -> float:
    """Return the standard error of log(N_2 / N_1), numbers of pairs within two radii, N_1 of them within both.

    A point's pairs move together: with c_i of N pairs at point i its projection is c_i2 / N_2 - c_i1 / N_1. The sum of
    their squares counts twice what is each pair's own, 1 / N_1 - 1 / N_2, so that is taken off once; half of the sum
    is left at least.

    Parameters
    ----------
    within : (2, n) array of int
        Points within each radius of each point.
    pairs : (2,) array of int
        N_1 and N_2.
    """
    square = np.sum((within[1] / pairs[1] - within[0] / pairs[0]) ** 2)
    return np.sqrt(np.maximum(square - (1 / pairs[0] - 1 / pairs[1]), square / 2))


def _overlap(_: Cloud, selection: np.ndarray, found: Nearest, context: Context) -> dict[str, float]:
    """Return the mean share of common members of two lists of neighbors, over points that have both."""
    if context.below is None or found.indices.shape[1] < N_OVERLAP:
        return {"nn_overlap": np.nan}
    here, below = found.indices[:, :N_OVERLAP], context.below[selection]
    if has_several_equals(found.squares).any() or (below == ARBITRARY).any():
        return {"nn_overlap": np.nan}
    has_both = below[:, 0] >= 0
    common = kernels_of(here).share_in_common(here, below)
    return {"nn_overlap": float(common[has_both].mean()) if has_both.any() else np.nan}


def _spectrum(cloud: Cloud, selection: np.ndarray, found: Nearest, _: Context) -> dict[str, float]:
    """Return what the covariance spectrum tells; its eigenvalues are those of the centred Gram matrix, in float64.

    The standard error of exp(H), H = -sum_k p_k log p_k, is its infinitesimal jackknife, less the noise of equal
    variances: the weight of point i changes H by -sum_k p_k (log p_k + H) u_ik² with u_k the eigenvectors. Near equal
    variances H changes by half of what log PR does.
    """
    names = [name for name, _ in GROUPS["spectrum"]]
    if _are_equal(selection, cloud):
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
    """Return which points of a cloud are selected."""
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
