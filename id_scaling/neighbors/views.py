"""Views: which points of a cloud are selected, how they are scaled, and which of them may be neighbors.

An attention sink puts the first token of a context at about 200 times the median norm, and then it is in most neighbor
lists. Repeated tokens give equal points at the embedding. So the view `default` skips the first token and keeps one of
each set of equal points, `one_per_token` also keeps only one point per token, and `origin` keeps all points.

Random draws depend only on the tokens of the context and the number of the draw: all layers, models, and checkpoints
that see the same tokens have the same draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from id_scaling.runtime.settings import setting

Duplicates = Literal["distinct", "keep", "one_per_token", "matched_subset"]
NullCloud = Literal["none", "gaussian"]
RAW = "raw"
# `raw`, z-scores, directions, and points without their leading principal components.
PREPROCESS = r"raw|standardi[sz]ed|unit_norm|drop_top_[1-9][0-9]{0,3}"


def spelling_of(preprocess: str) -> str:
    """Return the spelling under which a scaling is stored, so that nothing depends on the spelling in the config."""
    return "standardised" if preprocess == "standardized" else preprocess


@dataclass(frozen=True)
class View:
    """Which points of a cloud are selected, how they are scaled, and which may be neighbors.

    Parameters
    ----------
    draw : int
        Number of the random draw. The other fields are configuration keys; each declares its meaning.
    """

    skip_first_tokens: int = setting(1, meaning="tokens left out at the start of each context", ge=0)
    duplicates: Duplicates = setting(
        "distinct",
        meaning="which of several points count: the first of each set of equal points (`distinct`); all of them "
        "(`keep`); of the distinct ones, the first of each token (`one_per_token`), or as many at random as there are "
        "tokens (`matched_subset`)",
    )
    decimate: int = setting(
        0,
        meaning="count this many of the points that would count, at random; 0 counts all; a cloud with fewer points "
        "has no ID",
        ge=0,
    )
    draw: int = 0
    preprocess: str = setting(
        RAW,
        meaning="how points are scaled: `raw`, as they are; `standardised` or `standardized`, each coordinate to mean "
        "0 and standard deviation 1 (stored as `standardised`); `unit_norm`; `drop_top_C`, without the C leading "
        "principal components",
        pattern=rf"^({PREPROCESS})$",
    )
    exclude_window: int = setting(
        0,
        meaning="points at most this many positions apart are not neighbors (a Theiler window); 0: all may be",
        ge=0,
    )
    null_cloud: NullCloud = setting(
        "none",
        meaning="`gaussian` replaces the points by a Gaussian sample with their number, mean, and covariance",
    )

    @property
    def is_random(self) -> bool:
        """Whether the points depend on the random draw."""
        return self.duplicates == "matched_subset" or self.decimate > 0 or self.null_cloud != "none"

    @property
    def is_as_made(self) -> bool:
        """Whether the view leaves the points as the model made them."""
        return self.preprocess == RAW and self.null_cloud == "none"


DEFAULT_VIEWS = {
    "default": View(),
    "one_per_token": View(duplicates="one_per_token"),
    "origin": View(skip_first_tokens=0, duplicates="keep"),
}


def leading_view(null_clouds: Mapping[str, str]) -> str:
    """Return the name of the view that text and figures show, given the `null_cloud` of each view.

    It is `default` if there is one, else the first by name of the views without a null, else the first by name.
    """
    names = sorted(null_clouds)
    real = [name for name in names if null_clouds[name] == "none"]
    return "default" if "default" in names else (real or names)[0]


def views_at(layer: int | None, names: Iterable[str], layers: Mapping[str, Sequence[int]]) -> list[str]:
    """Return the views that apply at a layer (None: outside the blocks); a view without a list applies everywhere."""
    return [name for name in names if name not in layers or layer in layers[name]]


def default_ranks(n_points: int) -> tuple[int, ...]:
    """Return the default neighbor ranks: 1 to 32, then powers of two up to half the number of points."""
    ranks = [*range(1, 33)]
    while ranks[-1] * 2 <= n_points // 2:
        ranks.append(ranks[-1] * 2)
    return tuple(rank for rank in ranks if rank < n_points)


def select(view: View, first: np.ndarray, is_finite: np.ndarray, token_ids: np.ndarray | None) -> np.ndarray:
    """Return the indices of the selected points; no index if a point of the view is not finite.

    Parameters
    ----------
    first : (n_points,) array of int
        For each point, the index of the first point equal to it.
    is_finite : (n_points,) array of bool
    token_ids : (n_points,) array of int, or None
        Token IDs, required by `one_per_token`, `matched_subset`, and every random draw.
    """
    index = np.arange(view.skip_first_tokens, len(first))
    if not is_finite[index].all():
        return index[:0]
    if view.duplicates in ("one_per_token", "matched_subset"):
        distinct = _firsts(index, first)
        one_per_token = _firsts(distinct, needed(token_ids))
        is_matched = view.duplicates == "matched_subset"
        index = _at_random(distinct, len(one_per_token), view.draw, needed(token_ids)) if is_matched else one_per_token
    elif view.duplicates == "distinct":
        index = _firsts(index, first)
    return _at_random(index, view.decimate, view.draw, needed(token_ids)) if view.decimate else index


def needed(token_ids: np.ndarray | None) -> np.ndarray:
    """Return the token IDs that select or draw points, or raise a ValueError if there are none."""
    if token_ids is None:
        raise ValueError(
            "a view that draws, or that counts tokens, needs the tokens of the points; none are given: pass token_ids"
        )
    return token_ids


def generator(draw: int, token_ids: np.ndarray) -> np.random.Generator:
    """Return the random number generator of one draw of a context."""
    content = hashlib.sha256(np.ascontiguousarray(token_ids, np.int64).tobytes()).digest()
    return np.random.default_rng([draw, *np.frombuffer(content, np.uint32).tolist()])


def _firsts(index: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Return the indices of the first point of each kind."""
    kinds_of_index = kinds[index]
    if (np.diff(kinds_of_index) > 0).all():
        return index
    return index[np.sort(np.unique(kinds_of_index, return_index=True)[1])]


def _at_random(index: np.ndarray, n_points: int, draw: int, token_ids: np.ndarray) -> np.ndarray:
    """Return `n_points` of the indices at random, ascending; no index if there are fewer.

    A random order of all positions decides, so the draw depends little on which positions are in `index`.
    """
    if len(index) < n_points:
        return index[:0]
    order = generator(draw, token_ids).permutation(len(token_ids))
    return np.sort(index[np.argsort(order[index])[:n_points]])
