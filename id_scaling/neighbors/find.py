"""Nearest-neighbor distances of one point cloud, under several views, from one product of its points.

Conventions: a cloud is (n_points, d). Distances are right to what an ID needs: to 1e-6 of it from float16, bfloat16 and
float32 points, to 1e-9 from float64 points (`neighbors.error_bounds` says of which estimators). Equal points are
decided on their values (−0.0 equals 0.0), never on distances, and are at distance exactly 0.

What is kept of a point is r_1 and log(r_j / r_1) at a ladder of ranks j: the logarithms are formed
before anything is rounded, because at an attention sink all r_j agree to four digits.
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

# Squared distances below this lose digits; beside coordinates of about one that is zero.
LEAST_RESOLVED = 2.0**-960


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
    statistics : dict of str to (...) float64
        Counts, shares and sums of each cloud under the view, by the names of `neighbors.statistics`.
    nearest : (n_points, 10) int32, or None
        The nearest neighbors of each point, -1 where there is none, -2 where several points equal it; of one cloud, and
        not stored.
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
        """Return one named statistic of each cloud."""
        return np.asarray(self.statistics[name])


def stacked(clouds: Sequence[Neighbors]) -> Neighbors:
    """Return the neighbors of several clouds of one size as one, with an axis over clouds in front.

    Examples
    --------
    >>> cloud = Neighbors((1,), np.ones(3), np.zeros((3, 1)), {})
    >>> stacked([cloud, cloud]).r1.shape
    (2, 3)
    """
    return Neighbors(
        clouds[0].ranks,
        np.stack([one.r1 for one in clouds]),
        np.stack([one.log_ratio for one in clouds]),
        {name: np.array([one.statistics[name] for one in clouds]) for name in clouds[0].statistics},
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
        Those that leave the points as they are share one product.
    ranks : sequence of int
        Neighbor ranks to keep, increasing.
    groups : sequence of str
        Groups of `neighbors.statistics` to compute beside the counts.
    token_ids : (n_points,) array of int, optional
        Token of each point, for the share of nearest neighbors with the same token, and for views that choose by
        token or at random.
    below : sequence of (n_points, 10) arrays of int, optional
        `nearest` of the site one layer down under each view, for the overlap.

    Returns
    -------
    list of Neighbors
        One a view, each with numpy arrays of the cloud's full length.

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
    as_made, found = prepare_points(points), []
    for index, view in enumerate(views):
        cloud, selection = _under(view, points, as_made, token_ids)
        context = Context(token_ids, below[index] if below else None)
        values, neighbors = _counts(view, as_made, cloud, selection), _nothing(cloud, ranks)
        if len(selection) >= 2 and n_allowed(selection, view.exclude_window).min() >= 1:
            given = (selection, cloud, np.asarray(ranks), groups, context)
            neighbors, values = _under_view(view.exclude_window, values, *given)
        statistics = {name: values.get(name, np.nan) for name in names_of(groups)}
        found.append(replace(neighbors, statistics=statistics))
    return found


def _under(view: View, points: Any, cloud: Cloud, token_ids: np.ndarray | None) -> tuple[Cloud, np.ndarray]:
    """Return a cloud as a view has it, and the indices of the points that count.

    Points that a scaling made equal are equal, and one that it gives no direction is not finite.
    """
    selection = select(view, cloud.first, cloud.is_finite, token_ids)
    if view.is_as_made or len(selection) < 2:
        return cloud, selection
    scaled = prepare_points(transform(view, points, selection, token_ids))
    if not scaled.is_finite[selection].all():
        return scaled, selection[:0]
    is_kept = view.duplicates == "keep"
    return scaled, selection if is_kept else selection[np.unique(scaled.first[selection], return_index=True)[1]]


def _under_view(
    window: int,
    counts: dict[str, float],
    selection: np.ndarray,
    cloud: Cloud,
    ranks: np.ndarray,
    groups: Sequence[str],
    context: Context,
) -> tuple[Neighbors, dict[str, float]]:
    """Return the neighbors among the selected points, spread over the cloud's full length, and their statistics."""
    n_points, n_others = len(cloud.first), n_allowed(selection, window).min()
    n_settled = min(max([*ranks[ranks <= LISTED], N_LISTED if groups else 1]), n_others)
    is_further = (ranks > n_settled) & (ranks <= n_others)
    found = find_nearest(cloud, selection, n_settled, ranks[is_further], window)
    found.squares[found.squares < LEAST_RESOLVED] = 0.0
    settled = found.squares.take(ranks[ranks <= n_settled] - 1, axis=1)
    squares = np.hstack([settled, found.beyond, np.full((len(selection), np.count_nonzero(ranks > n_others)), np.nan)])
    neighbors = _nothing(cloud, ranks)
    with np.errstate(over="ignore"):
        neighbors.r1[selection] = np.minimum(np.sqrt(found.squares[:, 0]) * cloud.scale, np.finfo(np.float64).max)
    neighbors.log_ratio[selection] = _log_ratio(squares, found.squares[:, :1])
    nearest = np.full((n_points, N_OVERLAP), -1, dtype=np.int32)
    if found.indices.shape[1] >= N_OVERLAP:
        nearest[selection] = found.indices[:, :N_OVERLAP]
        nearest[selection[has_several_equals(found.squares)]] = ARBITRARY
    with np.errstate(over="ignore"):
        median_norm = np.median(np.sqrt(cloud.squared_norms[selection])) * cloud.scale
    statistics = {**counts, "median_norm": median_norm, **statistics_of(groups, cloud, selection, found, context)}
    return replace(neighbors, nearest=nearest), statistics


def _log_ratio(squares: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """Return log(r_j / r_1): 0 for two zero distances, infinite where r_1 alone is zero, NaN where there is no r_j."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratios = squares / nearest
        if not nearest.all():
            ratios[(squares == 0) & (nearest == 0)] = 1.0
        logs = np.multiply(np.log(ratios, out=ratios), 0.5, out=ratios)
        is_beyond = np.isinf(logs) & (nearest > 0)  # a ratio that overflows, or vanishes
        return np.where(is_beyond, 0.5 * (np.log(squares) - np.log(nearest)), logs) if is_beyond.any() else logs


def _counts(view: View, as_made: Cloud, cloud: Cloud, selection: np.ndarray) -> dict[str, float]:
    """Return the counts of a cloud as the model made it, and of what a view has of it."""
    index = np.arange(view.skip_first_tokens, len(as_made.first))
    return {
        "n_points": len(index),
        "n_distinct": len(index) if as_made.is_distinct else len(np.unique(as_made.first[index])),
        "n_nonfinite": int(np.count_nonzero(~(as_made.is_finite & cloud.is_finite)[index])),
        "n_used": len(selection),
    }


def _nothing(cloud: Cloud, ranks: Sequence[int] | np.ndarray) -> Neighbors:
    """Return the neighbors of a cloud that has none: too few points, or one not finite."""
    n = len(cloud.first)
    return Neighbors(tuple(int(rank) for rank in ranks), np.full(n, np.nan), np.full((n, len(ranks)), np.nan), {})
