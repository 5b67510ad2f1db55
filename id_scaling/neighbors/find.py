"""Nearest-neighbor distances of one point cloud, under several views, from one product of its points.

Conventions: a cloud is (n_points, d). Distances are as accurate as an ID needs: an ID from float16, bfloat16, or
float32 points has a relative error of at most 1e-6, an ID from float64 points of at most 1e-9
(`neighbors.error_bounds` says for which estimators). Points are equal if their values are (−0.0 equals 0.0), never
because of a distance, and then their distance is exactly 0.

Each point keeps r_1 and log(r_j / r_1) at several ranks j. The logarithms are computed before anything is rounded,
because at an attention sink all r_j agree to four digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from id_scaling.neighbors.points import Cloud, prepare_points
from id_scaling.neighbors.search import LISTED, find_nearest, n_allowed
from id_scaling.neighbors.statistics import (
    ARBITRARY,
    N_LISTED,
    N_OVERLAP,
    Context,
    has_several_equals,
    names_of,
    statistics_of,
)
from id_scaling.neighbors.transforms import transform
from id_scaling.neighbors.views import View, select

# Squared distances below this lose digits; compared with coordinates near one they are zero.
LEAST_RESOLVED = 2.0**-960


@dataclass(frozen=True)
class Neighbors:
    """Nearest-neighbor distances of one cloud, or of several with leading axes over clouds.

    Parameters
    ----------
    ranks : tuple of int
        The stored ranks j, increasing; 1 is the nearest neighbor.
    r1 : (..., n_points) float64
        Distance to the nearest neighbor in the units of the points; NaN for points that are not selected.
    log_ratio : (..., n_points, n_ranks) float
        log(r_j / r_1); NaN for points that are not selected and for ranks that the cloud is too small for. If
        r_1 = 0, it is 0 for r_j = 0 and infinite for r_j > 0.
    statistics : dict of str to (...) float64
        Counts, shares and sums of each cloud under the view, named as in `neighbors.statistics`.
    nearest : (n_points, 10) int32, or None
        Indices of the nearest neighbors of each point: -1 where there is none, -2 where several points equal it. Only
        for a single cloud; not stored.
    """

    ranks: tuple[int, ...]
    r1: np.ndarray
    log_ratio: np.ndarray
    statistics: Mapping[str, Any]
    nearest: np.ndarray | None = None

    def at(self, rank: int) -> np.ndarray:
        """Return log(r_rank / r_1), (..., n_points), in float64."""
        return self.log_ratio[..., self.ranks.index(rank)].astype(np.float64)

    def statistic(self, name: str) -> np.ndarray:
        """Return the named statistic of each cloud."""
        return np.asarray(self.statistics[name])


def stacked(clouds: Sequence[Neighbors]) -> Neighbors:
    """Return the neighbors of several clouds of one size as one object, with a leading axis over clouds.

    Examples
    --------
    >>> cloud = Neighbors((1,), np.ones(3), np.zeros((3, 1)), {})
    >>> stacked([cloud, cloud]).r1.shape
    (2, 3)
    """
    return Neighbors(
        clouds[0].ranks,
        np.stack([cloud.r1 for cloud in clouds]),
        np.stack([cloud.log_ratio for cloud in clouds]),
        {name: np.array([cloud.statistics[name] for cloud in clouds]) for name in clouds[0].statistics},
    )


def find_neighbors(
    points: Any,
    views: Sequence[View],
    ranks: Sequence[int],
    groups: Sequence[str] = (),
    token_ids: np.ndarray | None = None,
    below: Sequence[np.ndarray | None] | None = None,
) -> list[Neighbors]:
    """Return the neighbors of one cloud under each view.

    Parameters
    ----------
    points : (n_points, d) array
        numpy, or torch on any device; any floating dtype.
    views : sequence of View
        Views that do not transform the points share one product.
    ranks : sequence of int
        Neighbor ranks to keep, increasing.
    groups : sequence of str
        Sets of `neighbors.statistics` to compute in addition to the counts.
    token_ids : (n_points,) array of int, optional
        Token ID of each point, for the share of nearest neighbors with the same token, and for views that select by
        token or at random.
    below : sequence of (n_points, 10) arrays of int, optional
        `nearest` of the site one layer down under each view, for the overlap.

    Returns
    -------
    list of Neighbors
        One per view, with numpy arrays of the cloud's full length.

    Examples
    --------
    >>> points = np.array([[0.0], [1.0], [3.0], [3.0]])
    >>> views = [View(skip_first_tokens=0), View(skip_first_tokens=0, duplicates="keep")]
    >>> first, every = find_neighbors(points, views, ranks=(1, 2))
    >>> first.r1.tolist()
    [1.0, 1.0, 2.0, nan]
    >>> every.r1.tolist()
    [1.0, 1.0, 0.0, 0.0]
    >>> np.exp(first.at(2)).round(6).tolist()
    [3.0, 2.0, 1.5, nan]
    """
    original, neighbors_by_view = prepare_points(points), []
    for index, view in enumerate(views):
        cloud, selection = _cloud_of_view(view, points, original, token_ids)
        context = Context(token_ids, below[index] if below else None)
        values, neighbors = _counts(view, original, cloud, selection), _no_neighbors(cloud, ranks)
        if len(selection) >= 2 and n_allowed(selection, view.exclude_window).min() >= 1:
            arguments = (selection, cloud, np.asarray(ranks), groups, context)
            neighbors, values = _neighbors_of_view(view.exclude_window, values, *arguments)
        statistics = {name: values.get(name, np.nan) for name in names_of(groups)}
        neighbors_by_view.append(replace(neighbors, statistics=statistics))
    return neighbors_by_view


def _cloud_of_view(view: View, points: Any, cloud: Cloud, token_ids: np.ndarray | None) -> tuple[Cloud, np.ndarray]:
    """Return the cloud under a view, and the indices of the selected points.

    Points that become equal by scaling are equal; a point with no direction becomes not finite.
    """
    selection = select(view, cloud.first, cloud.is_finite, token_ids)
    if view.is_as_made or len(selection) < 2:
        return cloud, selection
    scaled = prepare_points(transform(view, points, selection, token_ids))
    if not scaled.is_finite[selection].all():
        return scaled, selection[:0]
    keeps_all = view.duplicates == "keep"
    return scaled, selection if keeps_all else selection[np.unique(scaled.first[selection], return_index=True)[1]]


def _neighbors_of_view(
    window: int,
    counts: dict[str, float],
    selection: np.ndarray,
    cloud: Cloud,
    ranks: np.ndarray,
    groups: Sequence[str],
    context: Context,
) -> tuple[Neighbors, dict[str, float]]:
    """Return the neighbors among the selected points, in arrays of the cloud's full length, and their statistics."""
    n_points, n_others = len(cloud.first), n_allowed(selection, window).min()
    n_settled = min(max([*ranks[ranks <= LISTED], N_LISTED if groups else 1]), n_others)
    is_further = (ranks > n_settled) & (ranks <= n_others)
    nearest = find_nearest(cloud, selection, n_settled, ranks[is_further], window)
    nearest.squares[nearest.squares < LEAST_RESOLVED] = 0.0
    exact = nearest.squares.take(ranks[ranks <= n_settled] - 1, axis=1)
    squares = np.hstack([exact, nearest.beyond, np.full((len(selection), np.count_nonzero(ranks > n_others)), np.nan)])
    neighbors = _no_neighbors(cloud, ranks)
    with np.errstate(over="ignore"):
        neighbors.r1[selection] = np.minimum(np.sqrt(nearest.squares[:, 0]) * cloud.scale, np.finfo(np.float64).max)
    neighbors.log_ratio[selection] = _log_ratio(squares, nearest.squares[:, :1])
    nearest_indices = np.full((n_points, N_OVERLAP), -1, dtype=np.int32)
    if nearest.indices.shape[1] >= N_OVERLAP:
        nearest_indices[selection] = nearest.indices[:, :N_OVERLAP]
        nearest_indices[selection[has_several_equals(nearest.squares)]] = ARBITRARY
    with np.errstate(over="ignore"):
        median_norm = np.median(np.sqrt(cloud.squared_norms[selection])) * cloud.scale
    statistics = {**counts, "median_norm": median_norm, **statistics_of(groups, cloud, selection, nearest, context)}
    return replace(neighbors, nearest=nearest_indices), statistics


def _log_ratio(squares: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """Return log(r_j / r_1): 0 if both distances are zero, infinite if only r_1 is, NaN if there is no r_j."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratios = squares / nearest
        if not nearest.all():
            ratios[(squares == 0) & (nearest == 0)] = 1.0
        logs = np.multiply(np.log(ratios, out=ratios), 0.5, out=ratios)
        is_beyond = np.isinf(logs) & (nearest > 0)  # the ratio overflows or underflows
        return np.where(is_beyond, 0.5 * (np.log(squares) - np.log(nearest)), logs) if is_beyond.any() else logs


def _counts(view: View, original: Cloud, cloud: Cloud, selection: np.ndarray) -> dict[str, float]:
    """Return the counts of a cloud as the model made it, and of its points under a view."""
    index = np.arange(view.skip_first_tokens, len(original.first))
    return {
        "n_points": len(index),
        "n_distinct": len(index) if original.is_distinct else len(np.unique(original.first[index])),
        "n_nonfinite": int(np.count_nonzero(~(original.is_finite & cloud.is_finite)[index])),
        "n_used": len(selection),
    }


def _no_neighbors(cloud: Cloud, ranks: Sequence[int] | np.ndarray) -> Neighbors:
    """Return the neighbors of a cloud that has none: too few points, or a point that is not finite."""
    n = len(cloud.first)
    return Neighbors(tuple(int(rank) for rank in ranks), np.full(n, np.nan), np.full((n, len(ranks)), np.nan), {})
