"""Error of an ID when distances come from a product, and which points need more precision.

A squared distance from a product is accurate to

    |x_i - x_j|² ± 2 e |x_i||x_j|,

where e is the relative error of an inner product. A worst-case bound on e is useless: it exceeds the observed error by
four digits. But e can be measured, because the diagonal of the product holds the squared norms, which are also known in
float64. So for each cloud e is the root mean square of their relative difference, and b is its mean: the bias that all
products share.

The error of log(r_j / r_1) at point i is then about E_i = e max(|x_i|² / r_1², 1), and the error of an ID is

    3 (sum_i (s_i E_i)²)^½ + (b / e) sum_i s_i E_i,

where the sensitivity s_i says how strongly the ID depends on point i. With m_i the mean over j < k of log(r_k / r_j)
and x = log(r_2 / r_1), s_i is the largest of 1 / sum m (harmonic MLE), m_i^-2 / sum m^-1 (arithmetic MLE), and
x_i / sum x² (TwoNN); the sensitivity of MiND_ML is below the first. The points with the largest s_i E_i are recomputed,
as many as it takes to bring the error of the ID below `of_id`. So is every point with E_i above `of_point`, and every
point whose two nearest neighbors may tie: there, errors of r_2 / r_1 have one sign and add up.

These distances are recomputed from differences of the coordinates. In float32 they are accurate to about 3e-8, whatever
the norms. This is not enough where the two nearest neighbors, or all neighbors of a list, are close together, as at an
attention sink or in a hundred dimensions: there the differences are in float64.

Estimators that depend on other differences of logarithms are not covered: `docs/accuracy.md` lists their errors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIGMAS = 3.0
# A neighbor missing from a list has an error of its square below this many standard deviations: with about 1e6 pairs
# per cloud, fewer than one cloud in a thousand has a larger error.
SIGMAS_OF_A_PAIR = 6.0
# The largest of about 25 observed errors is at about two standard deviations: three times that is six.
TIMES_SEEN = 3.0
K = 20
# Squared distances of a list, and of the two nearest, are close together below these relative differences: an error of
# 3e-8 would be 1e-6, and 1e-5, of a point's log-ratios.
CLOSE, CLOSE_PAIR = 0.1, 0.01


@dataclass(frozen=True)
class Tolerance:
    """The largest relative error that is accepted, of an ID and of one point's log-ratios."""

    of_id: float
    of_point: float


# An ID is accurate to 1e-6 from narrow points,
NARROW = Tolerance(of_id=5e-7, of_point=1e-5)
# and to 1e-9 from float64 points.
WIDE = Tolerance(of_id=1e-10, of_point=1e-10)


@dataclass(frozen=True)
class ProductError:
    """The relative error of a cloud's inner products: root mean square, and mean."""

    spread: float
    bias: float


def product_error(diagonal: np.ndarray, squared_norms: np.ndarray) -> ProductError:
    """Return the error of a product, measured on its diagonal against squared norms summed in float64."""
    is_nonzero = squared_norms > 0
    if not is_nonzero.any():
        return ProductError(float(np.finfo(diagonal.dtype).eps), 0.0)
    relative = diagonal[is_nonzero] / squared_norms[is_nonzero] - 1
    least = np.finfo(diagonal.dtype).eps / 2  # sums that happen to be exact do not make the others exact
    return ProductError(max(float(np.sqrt(np.mean(relative**2))), least), abs(float(np.mean(relative))))


def deviations(squares: np.ndarray | float, squared_norms: np.ndarray, error: ProductError) -> np.ndarray:
    """Return the standard deviation of the error of squared distances from points with these squared norms.

    |x_j| is close to |x_i| where x_j is close to x_i; elsewhere |x_i||x_j| is below 2 |x_i - x_j|².
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
        Squared norms of the centered points.
    n_zeros : (n,) int
        How many neighbors of a point are equal to it: these distances are zero and exact.
    error : ProductError
        Error of the product that gave the squares.
    tolerance : Tolerance
        Largest errors that are accepted.

    Returns
    -------
    (n,) bool
    """
    nearest = squares[np.arange(len(squares)), np.minimum(n_zeros, squares.shape[1] - 1)]
    with np.errstate(divide="ignore", invalid="ignore"):
        log_error = deviations(nearest, squared_norms, error) / np.maximum(2 * nearest, 0)
        log_mu = 0.5 * np.log(squares[:, min(1, squares.shape[1] - 1)] / squares[:, 0])
        may_tie = ~(log_mu > SIGMAS * log_error) & (n_zeros == 0)
        share = _sensitivities(squares, n_zeros, may_tie) * log_error
    share = np.where(np.isnan(share), np.inf, share)
    order = np.argsort(share)
    ascending = share[order]
    with np.errstate(invalid="ignore"):
        predicted = SIGMAS * np.sqrt(np.cumsum(ascending**2)) + error.bias / error.spread * np.cumsum(ascending)
    is_suspect = ~(log_error <= tolerance.of_point) | may_tie
    is_suspect[order[~(predicted <= tolerance.of_id)]] = True
    return is_suspect & (n_zeros < squares.shape[1])


def close_together(squares: np.ndarray) -> np.ndarray:
    """Return for which points the squared distances (n, m) of a list are too close together for float32 differences."""
    nearest = squares.min(axis=1)
    following = np.partition(squares, 1, axis=1)[:, 1] if squares.shape[1] > 1 else nearest
    return (squares.max(axis=1) <= (1 + CLOSE) * nearest) | (following <= (1 + CLOSE_PAIR) * nearest)


def _sensitivities(squares: np.ndarray, n_zeros: np.ndarray, may_tie: np.ndarray) -> np.ndarray:
    """Return how strongly the ID of the most sensitive estimator depends on each point, without ratios of ties."""
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
