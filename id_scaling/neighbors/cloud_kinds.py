"""Kinds of clouds: which points have one ID together.

A `context` cloud is the tokens of one context at one site. The other kinds have one point per context of a run: `mean`
has the mean of each context, `position` the token at one position of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from id_scaling.neighbors.views import View

CONTEXT, MEAN, POSITION = "context", "mean", "position"
CLOUDS = (CONTEXT, MEAN, POSITION)


def clouds_of_run(clouds: Sequence[str], positions: Sequence[int]) -> list[tuple[str, int | None]]:
    """Return the clouds over all contexts of a run, each with its position or None.

    Examples
    --------
    >>> clouds_of_run(["context", "mean", "position"], [0, 63])
    [('mean', None), ('position', 0), ('position', 63)]
    """
    means = [(MEAN, None)] if MEAN in clouds else []
    return means + ([(POSITION, position) for position in positions] if POSITION in clouds else [])


def stored_as(cloud: str, position: int | None) -> str:
    """Return the path of the points of a cloud over a run, within the HDF5 group of a module.

    Examples
    --------
    >>> stored_as("position", 63)
    'positions/63'
    """
    return "mean" if cloud == MEAN else f"positions/{position}"


def view_of_run(view: View) -> View | None:
    """Return the view for clouds whose points are contexts; None if the view does not apply to them.

    Such points have no position in a context, so none are skipped. A view with a window, with a random subset, or with
    a selection by token does not apply.
    """
    is_of_tokens = view.exclude_window > 0 or view.decimate > 0 or view.duplicates not in ("distinct", "keep")
    return None if is_of_tokens else replace(view, skip_first_tokens=0)
