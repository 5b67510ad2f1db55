"""Ranks of the values in each row of a table, and the influence of each value on the ranks of the others."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Ranking(NamedTuple):
    """The sorted order of each row, and for each place in it the first and last place of an equal value."""

    order: np.ndarray
    first: np.ndarray
    last: np.ndarray


def ranking_of(values: np.ndarray) -> Ranking:
    """Return the sorted order of each row, with the extent of ties.

    Examples
    --------
    >>> ranking = ranking_of(np.array([[5.0, 3.0, 3.0]]))
    >>> ranking.order.tolist(), ranking.first.tolist(), ranking.last.tolist()
    ([[1, 2, 0]], [[0, 0, 2]], [[1, 1, 2]])
    """
    n = values.shape[1]
    order = np.argsort(values, axis=1, kind="stable")
    is_new = np.diff(np.take_along_axis(values, order, axis=1), axis=1) != 0
    edge = np.ones((len(values), 1), bool)
    first = np.maximum.accumulate(np.where(np.hstack([edge, is_new]), np.arange(n), 0), axis=1)
    last = np.where(np.hstack([is_new, edge]), np.arange(n), n)
    return Ranking(order, first, np.minimum.accumulate(last[:, ::-1], axis=1)[:, ::-1])


def standardized(ranking: Ranking) -> np.ndarray:
    """Return mid-ranks scaled to mean 0 and mean square 1 in each row; NaN if all values are equal.

    Examples
    --------
    >>> standardized(ranking_of(np.array([[5.0, 3.0, 3.0]]))).round(3).tolist()
    [[1.414, -0.707, -0.707]]
    """
    ranks = np.empty(ranking.order.shape)
    np.put_along_axis(ranks, ranking.order, (ranking.first + ranking.last) / 2, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return ranks / ranks.std(axis=1, keepdims=True)


def influence_of_ranks(ranking: Ranking, residuals: np.ndarray) -> np.ndarray:
    """Return the influence of each context on the correlation through the ranks of the other contexts.

    It is Σ_j s(x_i, x_j) e_j / sd(ranks), with s = 1 if x_j > x_i, ½ if they are equal, and 0 otherwise.
    """
    order = np.broadcast_to(ranking.order, residuals.shape)
    cumulative = np.cumsum(np.take_along_axis(residuals, order, axis=1), axis=1)
    before = np.hstack([np.zeros((len(cumulative), 1)), cumulative])
    ends = [np.broadcast_to(places, residuals.shape) for places in (ranking.first, ranking.last + 1)]
    at_most = sum(np.take_along_axis(before, places, axis=1) for places in ends) / 2
    influence = np.empty(residuals.shape)
    np.put_along_axis(influence, order, cumulative[:, -1:] - at_most, axis=1)
    return influence / ((ranking.first + ranking.last) / 2).std(axis=1, keepdims=True)
