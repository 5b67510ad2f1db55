"""How far an ID can be off when distances come from a product, and which points need more than that.

A distance from a product is right to

    |x_i - x_j|² ± 2 e |x_i||x_j|,

with e the relative error of an inner product. No bound on e is of use (the worst case exceeds what is seen by four
digits), but e is seen: the diagonal of the product is the squared norms, which are also known in float64. So for each
cloud e is the root mean square of their relative difference, and b its mean, the part that all products share.

The error of log(r_j / r_1) at point i is then about E_i = e max(|x_i|² / r_1², 1), and that of an ID

    3 (sum_i (s_i E_i)²)^½ + (b / e) sum_i s_i E_i,

where s_i is how strongly the ID hangs on point i: with m_i the mean over j < k of log(r_k / r_j), the
largest of 1 / sum m (harmonic MLE), m_i^-2 / sum m^-1 (arithmetic MLE) and x_i / sum x² with x = log(r_2 / r_1)
(TwoNN); that of MiND_ML is below the first. Points are taken out in order of s_i E_i until what is left is below
`of_id`, and so is every point with E_i above `of_point`, or whose two nearest may tie: errors of r_2 / r_1 are of one
sign there and add up. Those distances are computed again from differences of the coordinates. In float32 these are
right to some 3e-8, whatever the norms, which is of no account but where the two nearest, or all of a list, are close
together, as at an attention sink or in a hundred dimensions: there the differences are in float64.

What depends on other differences of logarithms is not guarded: `docs/accuracy.md` has the errors of other estimators.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIGMAS = 3.0
# Errors of squares that no neighbor left out of a list may have, in units of their standard deviation: of some 1e6
# pairs of a cloud, fewer than one in a thousand clouds has one beyond.
SIGMAS_OF_A_PAIR = 6.0
# The largest of some 25 errors that are seen is at about two standard deviations: three times that is as far.
TIMES_SEEN = 3.0
K = 20
# Squared distances of a list, and the two nearest, that differ by less: 3e-8 would then be 1e-6, and 1e-5, of a point's
# log-ratios.
CLOSE, CLOSE_PAIR = 0.1, 0.01


@dataclass(frozen=True)
class Tolerance:
    """The largest relative error of an ID, and of one point's log-ratios, that is left as it is."""

    of_id: float
    of_point: float


# An ID from narrow points is promised to 1e-6.
NARROW = Tolerance(of_id=5e-7, of_point=1e-5)
# From float64 points, to 1e-9.
WIDE = Tolerance(of_id=1e-10, of_point=1e-10)


@dataclass(frozen=True)
class ProductError:
    """The relative error of a cloud's inner products: root mean square, and mean."""

    spread: float
    bias: float


def product_error(diagonal: np.ndarray, squared_norms: np.ndarray) -> ProductError:
    """Return the error seen on the diagonal of a product against squared norms summed in float64."""
    is_seen = squared_norms > 0
    if not is_seen.any():
        return ProductError(float(np.finfo(diagonal.dtype).eps), 0.0)
    relative = diagonal[is_seen] / squared_norms[is_seen] - 1
    least = np.finfo(diagonal.dtype).eps / 2  # sums that happen to be exact say nothing of the others
    return ProductError(max(float(np.sqrt(np.mean(relative**2))), least), abs(float(np.mean(relative))))


def deviations(squares: np.ndarray | float, squared_norms: np.ndarray, error: ProductError) -> np.ndarray:
    """Return the standard deviation of the error of squared distances from points with these squared norms.

    |x_j| is close to |x_i| where x_j is close to x_i; else |x_i||x_j| is below twice |x_i - x_j|².
    """
    return 2 * error.spread * np.maximum(squares, squared_norms)


def suspects(
    squares: np.ndarray, squared_norms: np.ndarray, n_zeros: np.ndarray, error: ProductError, tolerance: Tolerance
) -> np.ndarray:
    """Return which points need more precision.

    Parameters
    ----------
    squares : (n, m) float64
        Squared distances to the nearest neighbors, ascending.
    squared_norms : (n,) float64
        Squared norms of the centred points.
    n_zeros : (n,) int
        How many of a point's neighbors equal it: those distances are zero and exact.
    error : ProductError
        Of the product that the squares come from.
    tolerance : Tolerance
        What may stay.

    Returns
    -------
    (n,) bool
    """
    nearest = squares[np.arange(len(squares)), np.minimum(n_zeros, squares.shape[1] - 1)]
    with np.errstate(divide="ignore", invalid="ignore"):
        of_log = deviations(nearest, squared_norms, error) / np.maximum(2 * nearest, 0)
        log_mu = 0.5 * np.log(squares[:, min(1, squares.shape[1] - 1)] / squares[:, 0])
        may_tie = ~(log_mu > SIGMAS * of_log) & (n_zeros == 0)
        share = _sensitivities(squares, n_zeros, may_tie) * of_log
    share = np.where(np.isnan(share), np.inf, share)
    order = np.argsort(share)
    ascending = share[order]
    with np.errstate(invalid="ignore"):
        predicted = SIGMAS * np.sqrt(np.cumsum(ascending**2)) + error.bias / error.spread * np.cumsum(ascending)
    is_suspect = ~(of_log <= tolerance.of_point) | may_tie
    is_suspect[order[~(predicted <= tolerance.of_id)]] = True
    return is_suspect & (n_zeros < squares.shape[1])


def close_together(squares: np.ndarray) -> np.ndarray:
    """Return for which points the squared distances (n, m) to a list are too close together for float32 differences."""
    nearest = squares.min(axis=1)
    following = np.partition(squares, 1, axis=1)[:, 1] if squares.shape[1] > 1 else nearest
    return (squares.max(axis=1) <= (1 + CLOSE) * nearest) | (following <= (1 + CLOSE_PAIR) * nearest)


def _sensitivities(squares: np.ndarray, n_zeros: np.ndarray, may_tie: np.ndarray) -> np.ndarray:
    """Return how strongly the most sensitive estimator's ID hangs on each point; ratios of ties are no part of it."""
    k = min(K, squares.shape[1])
    if k < 2:
        return np.ones(len(squares))
    is_usable = (n_zeros == 0) & (squares[:, 0] > 0) & np.isfinite(squares[:, k - 1])
    logs = 0.5 * np.log(np.where(is_usable[:, None], squares[:, :k], 1.0))
    inverse = np.where(is_usable, logs[:, -1] - logs[:, :-1].sum(axis=1) / (k - 1), np.inf)
    log_mu = np.where(may_tie, 0.0, logs[:, 1] - logs[:, 0])
    harmonic = 1 / inverse.sum(where=is_usable)
    arithmetic = inverse**-2 / (1 / inverse).sum()
    with np.errstate(invalid="ignore"):
        two_nn = log_mu / (log_mu @ log_mu)
    return np.fmax(np.fmax(harmonic, arithmetic), two_nn)
