"""Views: which points of a cloud count before neighbors are sought.

Attention sinks put the first token of a context at some 200 times the median norm, and it then sits
in most neighbor lists; repeated tokens give equal points at the embedding. So the default view skips
the first token and keeps one of each set of equal points; the origin's view keeps everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Duplicates = Literal["distinct", "keep"]


@dataclass(frozen=True)
class View:
    """Which points of a cloud count.

    Parameters
    ----------
    skip_first_tokens : int
        Tokens left out at the start of each context.
    duplicates : {"distinct", "keep"}
        `distinct` counts the first of each set of equal points, `keep` counts them all.
    preprocess : {"raw"}
        How the points are scaled; `raw` leaves them as the model made them.
    """

    skip_first_tokens: int = 1
    duplicates: Duplicates = "distinct"
    preprocess: Literal["raw"] = "raw"


DEFAULT_VIEWS = {"default": View(), "origin": View(skip_first_tokens=0, duplicates="keep")}


def leading_view(names: Sequence[str]) -> str:
    """Return the view that text and figures show: `default` where there is one, else the first."""
    return "default" if "default" in names else names[0]


def default_ranks(n_points: int) -> tuple[int, ...]:
    """Return the default ladder of neighbor ranks: 1 to 32, then powers of two to half the points."""
    ranks = [*range(1, 33)]
    while ranks[-1] * 2 <= n_points // 2:
        ranks.append(ranks[-1] * 2)
    return tuple(rank for rank in ranks if rank < n_points)
