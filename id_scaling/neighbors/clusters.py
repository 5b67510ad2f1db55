"""Points of a cloud in groups, each with a centre of its own, for clouds that one centre serves badly.

Where a coordinate has two modes, or points stand in clusters, the norms about one centre exceed the distances to the
nearest by so much that products lose these. About the centre of its group a point y_i = x_i - c_{g(i)} is short. With
V_ib = y_i·(c_{g(i)} - c_b) + |c_{g(i)} - c_b|² / 4, which is zero for a point's own group,

    |x_i - x_j|² = |y_i|² + |y_j|² - 2 (y_i·y_j - V_{i g(j)} - V_{j g(i)}),

so that products of all points, the short y, need but the small table V (n, n_groups) beside them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Groups at the most, and the distance, as a share of the first, at which a point is far from no centre.
MOST, NEAR = 16, 1 / 256
# A point may have neighbors in a group whose centre is within so many of the group's radii.
REACH = 1.5


class Shifts(NamedTuple):
    """What is taken off the products of points of different groups.

    Parameters
    ----------
    labels : (n,) int32
        The group of each point.
    table : (n, n_groups) float64
        V above.
    """

    labels: np.ndarray
    table: np.ndarray


def split(features: np.ndarray) -> np.ndarray:
    """Return the group, int32, of each of n points that lie apart where their features (n, m) do.

    Centres are chosen each the farthest from those before (Gonzalez 1985).
    """
    features = features.astype(np.float64)
    labels, nearest = np.zeros(len(features), np.int32), _squares(features, 0)
    least = NEAR**2 * nearest.max(initial=0)
    for label in range(1, MOST):
        farthest = int(np.argmax(nearest))
        if nearest[farthest] <= least:
            break
        squares = _squares(features, farthest)
        labels[squares < nearest] = label
        np.minimum(nearest, squares, out=nearest)
    return labels


def _squares(features: np.ndarray, point: int) -> np.ndarray:
    """Return the squared distances of all features to those of one point."""
    difference = features - features[point]
    return np.einsum("ij,ij->i", difference, difference)


def shifts_between(labels: np.ndarray, projections: np.ndarray, centres: np.ndarray) -> Shifts:
    """Return what is taken off products, from the inner products of points less their centres with all centres."""
    own = np.take_along_axis(projections, labels[:, None].astype(np.intp), axis=1)
    return Shifts(labels, own - projections + _squares_between(centres)[labels] / 4)


def _squares_between(centres: np.ndarray) -> np.ndarray:
    """Return the squared distances of centres, (n_groups, n_groups)."""
    return np.array([_squares(centres, group) for group in range(len(centres))])


def largest_in_reach(squared_norms: np.ndarray, shifts: Shifts, centres: np.ndarray) -> np.ndarray:
    """Return, for each point, the largest squared norm of a group that may hold neighbors of it."""
    labels, table = shifts
    radii = np.zeros(len(centres))
    np.maximum.at(radii, labels, squared_norms)
    to_centres = squared_norms[:, None] + 2 * table + _squares_between(centres)[labels] / 2
    return np.where(to_centres <= REACH**2 * radii, radii, squared_norms[:, None]).max(axis=1)
