"""Clouds: the points that one ID is of.

`context` is the tokens of one context at one site. The others are of all contexts of a run, one point a context: `mean`
of their centres, `position` of the token at one position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from id_scaling.neighbors.views import View

CONTEXT, MEAN, POSITION = "context", "mean", "position"
CLOUDS = (CONTEXT, MEAN, POSITION)


def clouds_of_run(clouds: Sequence[str], positions: Sequence[int]) -> list[tuple[str, int | None]]:
    """Return the clouds of all contexts of a run, each with its position if it has one.

    Examples
    --------
    >>> clouds_of_run(["context", "mean", "position"], [0, 63])
    [('mean', None), ('position', 0), ('position', 63)]
    """
    means = [(MEAN, None)] if MEAN in clouds else []
    return means + ([(POSITION, position) for position in positions] if POSITION in clouds else [])


def stored_as(cloud: str, position: int | None) -> str:
    """Return where the points of a cloud of a run stand in the group of a module.

    Examples
    --------
    >>> stored_as("position", 63)
    'positions/63'
    """
    return "mean" if cloud == MEAN else f"positions/{position}"


def view_of_run(view: View) -> View | None:
    """Return a view as it is of points that are contexts; None where it makes no sense of them.

    Such points have no place in a context, so none are skipped, and no window is about them. Neither is it said which
    of them to draw, or which are of one token.
    """
    is_of_tokens = view.exclude_window > 0 or view.decimate > 0 or view.duplicates not in ("distinct", "keep")
    return None if is_of_tokens else replace(view, skip_first_tokens=0)
