"""Tokens of texts of any length, in memory that does not grow with the text by more than the tokens themselves.

A tokenizer takes more than a hundred bytes for each byte of a text, so a long text is tokenised in pieces that overlap.
Two pieces are joined at a token that both have at the same place of the text, in the middle of their overlap: the
tokens are those of the whole text, if its words are shorter than half of an overlap. Where two pieces have none in
common, as in a word as long as the overlap, the text is cut at the end of the first, and what follows is tokenised as a
text of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from id_scaling.errors import InputError

# Characters of a text that is tokenised whole; of the pieces of a longer one, and how much of a piece is in the next.
MOST_WHOLE = 2**19
PIECE, OVERLAP, PIECES_A_BATCH = 2**16, 2**10, 8


class Tokens(NamedTuple):
    """Tokens of a piece of a text, and the characters of the text that each is of."""

    ids: np.ndarray
    starts: np.ndarray
    stops: np.ndarray


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a model folder.

    Raises
    ------
    InputError
        transformers cannot make it without code that comes with it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, ImportError) as error:
        raise InputError(
            f"{folder}: transformers cannot make this tokenizer, and Python code that may come with it is never run "
            f"({str(error).splitlines()[0]}); name a model with another in model_config.tokenizer"
        ) from error


def bos_token(tokenizer: Any, add_bos: str) -> int | None:
    """Return the beginning-of-sequence token that contexts start with; None for none.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        Whose token it is.
    add_bos : str
        `auto`: the token if the tokenizer itself puts it before a text; `always`; `never`.

    Raises
    ------
    InputError
        It is always to be there, and the tokenizer has none.
    """
    bos = tokenizer.bos_token_id
    if add_bos == "always" and bos is None:
        raise InputError(
            f"{tokenizer.name_or_path}: the tokenizer has no beginning-of-sequence token, but add_bos is 'always'; set "
            "add_bos: auto"
        )
    is_first = add_bos == "always" or (add_bos == "auto" and tokenizer("a")["input_ids"][:1] == [bos])
    return bos if is_first else None


def tokenize(tokenizer: Any, texts: list[str], n_needed: int | None = None) -> list[np.ndarray]:
    """Return the tokens of texts, without special tokens; of a long text the first `n_needed` at least."""
    whole = [text for text in texts if len(text) <= MOST_WHOLE]
    ids = iter(_encoded(tokenizer, whole)["input_ids"] if whole else ())
    return [
        np.array(next(ids), np.int32) if len(text) <= MOST_WHOLE else _long_tokens(tokenizer, text, n_needed)
        for text in texts
    ]


def _encoded(tokenizer: Any, texts: list[str], **options: bool) -> Any:
    """Return what the tokenizer makes of texts, several of them at once on as many cores as RAYON_NUM_THREADS says."""
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False, **options)


def _long_tokens(tokenizer: Any, text: str, n_needed: int | None) -> np.ndarray:
    """Return the tokens of a long text."""
    if not tokenizer.is_fast:  # it does not say where in a text its tokens are
        return np.array(_encoded(tokenizer, [text])["input_ids"][0], np.int32)
    parts, n_tokens = [], 0
    for part in _joined(tokenizer, text):
        parts.append(part)
        n_tokens += len(part)
        if n_needed is not None and n_tokens >= n_needed:
            break
    return np.concatenate(parts)


def _joined(tokenizer: Any, text: str) -> Iterator[np.ndarray]:
    """Yield the tokens of a text, piece by piece."""
    pieces = _pieces(tokenizer, text)
    first, edge = next(pieces), PIECE
    for second in pieces:
        join = _join(first, second, edge)
        if join is None:
            second = _tokens(tokenizer, text, [(edge, edge + PIECE)])[0]
            join = len(first.ids), 0
        yield first.ids[: join[0]]
        first, edge = Tokens(*(values[join[1] :] for values in second)), edge + PIECE
    yield first.ids


def _pieces(tokenizer: Any, text: str) -> Iterator[Tokens]:
    """Yield the tokens of each piece of a text."""
    places = iter([(max(0, start - OVERLAP), start + PIECE) for start in range(0, len(text), PIECE)])
    while batch := list(islice(places, PIECES_A_BATCH)):
        yield from _tokens(tokenizer, text, batch)


def _tokens(tokenizer: Any, text: str, places: list[tuple[int, int]]) -> list[Tokens]:
    """Return the tokens of the pieces of a text at some places."""
    found = _encoded(tokenizer, [text[start:stop] for start, stop in places], return_offsets_mapping=True)
    return [
        Tokens(np.array(ids, np.int32), *(np.array(offsets, np.int64).reshape(-1, 2).T + start))
        for (start, _), ids, offsets in zip(places, found["input_ids"], found["offset_mapping"], strict=True)
    ]


def _join(first: Tokens, second: Tokens, edge: int) -> tuple[int, int] | None:
    """Return how many tokens of one piece go before the next piece, and from which of its own on; None for nowhere.

    The two meet at a token of both, as near as can be to the middle of their overlap, since the cut may have changed
    those near its ends; where several tokens are of one character, at the first of them.
    """
    begin, stop = np.searchsorted(first.starts, edge - OVERLAP), np.searchsorted(second.starts, edge)
    theirs = list(enumerate(zip(*(values[:stop].tolist() for values in second), strict=True)))
    known = {token: place for place, token in reversed(theirs)}
    ours = enumerate(zip(*(values[begin:].tolist() for values in first), strict=True), start=int(begin))
    joins = [(place, known[token]) for place, token in ours if token in known]
    return min(joins, key=lambda join: abs(first.starts[join[0]] - (edge - OVERLAP // 2)), default=None)
