"""Nearest-neighbor distances of one point cloud, under several views, from one product of its points.

Conventions: a cloud is (n_points, d). Distances are right to what an ID needs: to 1e-6 of it from float16, bfloat16 and
float32 points, to 1e-9 from float64 points (`id_scaling.search` says how). Equal points are decided on their values
(−0.0 equals 0.0), never on distances, and are at distance exactly 0.

What is kept of a point is r_1 and log(r_j / r_1) at a ladder of ranks j: the logarithms are formed
before anything is rounded, because at an attention sink all r_j agree to four digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

from id_scaling.search import LISTED, Cloud, Product, find_nearest, survey
from id_scaling.views import View

STATISTICS = (
    "n_points",
    "n_distinct",
    "n_nonfinite",
    "n_used",
    "median_norm",
    "gram_trace",
    "gram_frobenius",
    "nn_same_token",
    "nn_within_5",
)


@dataclass(frozen=True)
class Neighbors:
    """Nearest-neighbor distances of clouds; leading axes, if any, run over clouds.

    Parameters
    ----------
    ranks : tuple of int
        The ranks j stored, increasing, 1 is the nearest neighbor.
    r1 : (..., n_points) float64
        Distance to the nearest neighbor in the units of the points; NaN for points that do not count.
    log_ratio : (..., n_points, n_ranks) float
        log(r_j / r_1); NaN for points that do not count and for ranks the cloud is too small for;
        where r_1 = 0 it is 0 for r_j = 0 and infinite for r_j > 0.
    statistics : (..., len(STATISTICS)) float64
        Counts and shares of the cloud under the view, in the order of `STATISTICS`.
    """

    ranks: tuple[int, ...]
    r1: np.ndarray
    log_ratio: np.ndarray
    statistics: np.ndarray

    def at(self, rank: int) -> np.ndarray:
        """Return log(r_rank / r_1), (..., n_points), in float64."""
        return self.log_ratio[..., self.ranks.index(rank)].astype(np.float64)

    def statistic(self, name: str) -> np.ndarray:
        """Return one named statistic of each cloud."""
        return self.statistics[..., STATISTICS.index(name)]


def find_neighbors(
    points: Any,
    views: Sequence[View],
    ranks: Sequence[int],
    token_ids: np.ndarray | None = None,
) -> list[Neighbors]:
    """Return the neighbors of one cloud under each view.

    Parameters
    ----------
    points : (n_points, d) array
        numpy, or torch on any device; any floating dtype.
    views : sequence of View
        All are selections of the same points, so they share one product.
    ranks : sequence of int
        Neighbor ranks to keep, increasing.
    token_ids : (n_points,) array of int, optional
        Token of each point, for the share of nearest neighbors with the same token.

    Returns
    -------
    list of Neighbors
        One a view, each with numpy arrays of the cloud's full length.
    """
    cloud = survey(points)
    selections = [_select(view, cloud) for view in views]
    return [
        _nothing(view, selection, ranks, cloud)
        if len(selection) < 2
        else _under_view(view, selection, cloud, np.asarray(ranks), token_ids)
        for view, selection in zip(views, selections, strict=True)
    ]


def _select(view: View, cloud: Cloud) -> np.ndarray:
    """Return the indices of the points that count; none when one of the view's points is not finite."""
    index = np.arange(view.skip_first_tokens, len(cloud.first))
    if not cloud.is_finite[index].all():
        return index[:0]
    if view.duplicates == "keep":
        return index
    return index[np.sort(np.unique(cloud.first[index], return_index=True)[1])]


def _under_view(view, selection, cloud, ranks, token_ids) -> Neighbors:
    """Return the neighbors among the selected points, spread over the cloud's full length."""
    n = len(selection)
    n_settled = min(max(ranks[ranks <= LISTED], default=1), n - 1)
    is_further = (ranks > n_settled) & (ranks < n)
    found = find_nearest(cloud, selection, n_settled, ranks[is_further])
    squares = np.full((n, len(ranks)), np.nan)
    squares[:, ranks <= n_settled] = found.squares[:, ranks[ranks <= n_settled] - 1]
    squares[:, is_further] = found.beyond
    r1, log_ratio = np.full(len(cloud.first), np.nan), np.full((len(cloud.first), len(ranks)), np.nan)
    r1[selection] = np.sqrt(found.squares[:, 0]) * cloud.scale
    log_ratio[selection] = _log_ratio(squares, found.squares[:, :1])
    statistics = [
        *_counts(view, selection, cloud),
        np.median(np.sqrt(cloud.squared_norms[selection])) * cloud.scale,
        *(moment * cloud.scale * cloud.scale for moment in _gram_moments(_squares(found.product, selection))),
        *_neighbor_shares(selection, found.indices[:, 0], token_ids),
    ]
    return Neighbors(tuple(ranks.tolist()), r1, log_ratio, np.array(statistics))


def _log_ratio(squares: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """Return log(r_j / r_1): 0 for two zero distances, infinite where r_1 alone is zero, NaN where there is no r_j."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((squares == 0) & (nearest == 0), 0.0, 0.5 * np.log(squares / nearest))


def _squares(product: Product, selection: np.ndarray) -> Any:
    xp = array_api_compat.array_namespace(product.gram)
    index = xp.asarray(selection, device=array_api_compat.device(product.gram))
    norms = xp.asarray(product.squared_norms[selection], device=array_api_compat.device(product.gram))
    gram = xp.take(xp.take(product.gram, index, axis=0), index, axis=1)
    return norms[:, None] + norms[None, :] - 2 * xp.astype(gram, xp.float64)


def _gram_moments(squares: Any) -> tuple[float, float]:
    """Return trace and Frobenius norm of the centred Gram matrix G = -½ H S H of squared distances S."""
    xp = array_api_compat.array_namespace(squares)
    n = squares.shape[0]
    row_means = xp.mean(squares, axis=1)
    mean = float(xp.mean(row_means))
    square = xp.sum(xp.vecdot(squares, squares)) - 2 * n * xp.sum(row_means**2) + n**2 * mean**2
    return n * mean / 2, float(np.sqrt(max(float(square), 0.0))) / 2


def _neighbor_shares(selection, nearest, token_ids) -> tuple[float, float]:
    """Return the shares of nearest neighbors with the same token, and within five positions."""
    same = np.nan if token_ids is None else np.mean(token_ids[selection] == token_ids[nearest])
    return float(same), float(np.mean(np.abs(selection - nearest) <= 5))


def _counts(view: View, selection: np.ndarray, cloud: Cloud) -> list[int]:
    """Return n_points, n_distinct, n_nonfinite, n_used of a cloud under a view."""
    index = np.arange(view.skip_first_tokens, len(cloud.first))
    n_distinct = len(np.unique(cloud.first[index]))
    return [len(index), n_distinct, np.count_nonzero(~cloud.is_finite[index]), len(selection)]


def _nothing(view, selection, ranks, cloud) -> Neighbors:
    """Return the neighbors of a cloud that has none: too few points, or one not finite."""
    n = len(cloud.first)
    statistics = np.full(len(STATISTICS), np.nan)
    statistics[:4] = _counts(view, selection, cloud)
    no_ratio = np.full((n, len(ranks)), np.nan)
    return Neighbors(tuple(ranks), np.full(n, np.nan), no_ratio, statistics)
