"""Clusters of points, each with its own center, for clouds where a single center loses precision.

If a coordinate has two modes, or points form clusters, the norms about one center are so much larger than the distances
to the nearest neighbors that products lose these distances. About the center of its cluster, a point
y_i = x_i - c_{g(i)} is short. With V_ib = y_i·(c_{g(i)} - c_b) + |c_{g(i)} - c_b|² / 4, which is zero for the point's
own cluster,

    |x_i - x_j|² = |y_i|² + |y_j|² - 2 (y_i·y_j - V_{i g(j)} - V_{j g(i)}),

so the products of the short vectors y need only the small table V (n, n_groups) in addition.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Maximum number of clusters, and the distance, as a share of the first, below which no point needs another center.
MOST, NEAR = 16, 1 / 256
# A point may have neighbors in a cluster whose center is within this many radii of the cluster.
REACH = 1.5


class Shifts(NamedTuple):
    """Corrections that are subtracted from products of points in different clusters.

    Parameters
    ----------
    labels : (n,) int32
        Cluster of each point.
    table : (n, n_groups) float64
        V of the module docstring.
    """

    labels: np.ndarray
    table: np.ndarray


def split(features: np.ndarray) -> np.ndarray:
    """Return the cluster, int32, of each of n points: points are far apart where their features (n, m) are.

    Each center is the point farthest from all earlier ones (Gonzalez 1985).
    """
    features = features.astype(np.float64)
    labels, nearest = np.zeros(len(features), np.int32), _squares(features, 0)
    smallest = NEAR**2 * nearest.max(initial=0)
    for label in range(1, MOST):
        farthest = int(np.argmax(nearest))
        if nearest[farthest] <= smallest:
            break
        squares = _squares(features, farthest)
        labels[squares < nearest] = label
        np.minimum(nearest, squares, out=nearest)
    return labels


def _squares(features: np.ndarray, point: int) -> np.ndarray:
    """Return the squared distances from all features to those of one point."""
    difference = features - features[point]
    return np.einsum("ij,ij->i", difference, difference)


def shifts_between(labels: np.ndarray, projections: np.ndarray, centres: np.ndarray) -> Shifts:
    """Return the corrections of products, from the inner products of centered points with all centers."""
    own = np.take_along_axis(projections, labels[:, None].astype(np.intp), axis=1)
    return Shifts(labels, own - projections + _squares_between(centres)[labels] / 4)


def _squares_between(centres: np.ndarray) -> np.ndarray:
    """Return the squared distances between centers, (n_groups, n_groups)."""
    return np.array([_squares(centres, group) for group in range(len(centres))])


def largest_in_reach(squared_norms: np.ndarray, shifts: Shifts, centres: np.ndarray) -> np.ndarray:
    """Return, for each point, the largest squared norm in the clusters that may hold its neighbors."""
    labels, table = shifts
    radii = np.zeros(len(centres))
    np.maximum.at(radii, labels, squared_norms)
    to_centres = squared_norms[:, None] + 2 * table + _squares_between(centres)[labels] / 2
    return np.where(to_centres <= REACH**2 * radii, radii, squared_norms[:, None]).max(axis=1)
