"""Tokens of texts of any length, in memory that does not grow with the text by more than the tokens themselves.

A text is text: a string in it that is spelled as a control token of the tokenizer, `<|endoftext|>` say, becomes the
ordinary tokens of its letters, unless it is asked for otherwise.

A tokenizer takes more than a hundred bytes for each byte of a text, so a long text is tokenised in pieces that overlap.
Two pieces are joined at a token that both have at the same place of the text, in the middle of their overlap: the
tokens are those of the whole text, if its words are shorter than half of an overlap. Where two pieces have none in
common, as in a word as long as the overlap, the text is cut at the end of the first, and what follows is tokenised as a
text of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from id_scaling.errors import InputError
from id_scaling.storage.tokenizers import (
    LLAMA_PIECES,
    T5_PIECES,
    WHOLE,
    made_by_transformers,
    read_facts,
    read_sentencepiece,
    read_whole,
    tokenizer_files,
    whole_of,
)

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

# Characters of a text that is tokenised whole; of the pieces of a longer one, and how much of a piece is in the next.
MOST_WHOLE = 2**19
PIECE, OVERLAP, PIECES_A_BATCH = 2**16, 2**10, 8


class Tokens(NamedTuple):
    """Tokens of a piece of a text, and the characters of the text that each is of."""

    ids: np.ndarray
    starts: np.ndarray
    stops: np.ndarray


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer of raw text, without special tokens around it.

    Parameters
    ----------
    name : str
        What messages call it.
    encode : callable
        Returns the tokens of each of some texts.
    encode_with_offsets : callable or None
        Returns them with the characters that each token is of; None where that is not known.
    bos : int or None
        The beginning-of-sequence token.
    adds_bos : bool
        Whether the tokenizer itself puts that before a text.
    refused : mapping of int to str
        Control tokens that no text may become.
    read_from : str
        The files it was read from.
    decode : callable
        Returns the text of some tokens.
    """

    name: str
    encode: Callable[[list[str]], list[list[int]]]
    encode_with_offsets: Callable[[list[str]], list[Tokens]] | None
    bos: int | None
    adds_bos: bool
    refused: Mapping[int, str]
    read_from: str
    decode: Callable[[list[int]], str]

    def tokens(self, text: str, places: list[tuple[int, int]]) -> list[Tokens]:
        """Return the tokens of the pieces of a text at some places, and where in it they are."""
        assert self.encode_with_offsets is not None  # asked only where places are known
        made = self.encode_with_offsets([text[start:stop] for start, stop in places])
        return [
            Tokens(ids, starts + start, stops + start)
            for (start, _), (ids, starts, stops) in zip(places, made, strict=True)
        ]

    def check(self, ids: np.ndarray) -> np.ndarray:
        """Return tokens of a text; raises an InputError where one is a control token."""
        wrong = ids[np.isin(ids, list(self.refused))] if self.refused else ids[:0]
        if len(wrong):
            raise InputError(
                f"{self.name}: text became the control token {self.refused[int(wrong[0])]!r}, which this tokenizer "
                "cannot be kept from; set dataset_config.allow_special_tokens: true to let it"
            )
        return ids


def load_tokenizer(folder: Path, allow_special_tokens: bool = False) -> TextTokenizer:
    """Return the tokenizer of a model folder: what its own library reads, or else what transformers makes of its files.

    Parameters
    ----------
    folder : Path
        The folder.
    allow_special_tokens : bool
        Whether a string in a text that is spelled as a control token becomes that token.

    Raises
    ------
    InputError
        A file is damaged, or transformers cannot make it without code that comes with it.
    """
    folder = Path(folder)
    if (folder / WHOLE).is_file():
        return _of_file(folder, allow_special_tokens)
    if (pieces := read_sentencepiece(folder)) is not None:
        return _of_sentencepiece(folder, pieces, allow_special_tokens)
    return _of_transformers(folder, allow_special_tokens)


def bos_token(tokenizer: TextTokenizer, add_bos: str) -> int | None:
    """Return the beginning-of-sequence token that contexts start with; None for none.

    Parameters
    ----------
    tokenizer : TextTokenizer
        Whose token it is.
    add_bos : str
        `auto`: the token if the tokenizer itself puts it before a text; `always`; `never`.

    Raises
    ------
    InputError
        It is always to be there, and the tokenizer has none.
    """
    if add_bos == "always" and tokenizer.bos is None:
        raise InputError(
            f"{tokenizer.name}: the tokenizer has no beginning-of-sequence token, but add_bos is 'always'; set "
            "add_bos: auto"
        )
    is_first = add_bos == "always" or (add_bos == "auto" and tokenizer.adds_bos)
    return tokenizer.bos if is_first else None


def tokenize(tokenizer: TextTokenizer, texts: list[str], n_needed: int | None = None) -> list[np.ndarray]:
    """Return the tokens of texts, without special tokens; of a long text the first `n_needed` at least.

    Raises
    ------
    InputError
        A text became a control token although it is to be text.
    """
    ids = iter(tokenizer.encode([text for text in texts if len(text) <= MOST_WHOLE]))
    return [
        tokenizer.check(
            np.array(next(ids), np.int32) if len(text) <= MOST_WHOLE else _long_tokens(tokenizer, text, n_needed)
        )
        for text in texts
    ]


def _long_tokens(tokenizer: TextTokenizer, text: str, n_needed: int | None) -> np.ndarray:
    """Return the tokens of a long text."""
    if tokenizer.encode_with_offsets is None:
        return np.array(tokenizer.encode([text])[0], np.int32)
    parts, n_tokens = [], 0
    for part in _joined(tokenizer, text):
        parts.append(part)
        n_tokens += len(part)
        if n_needed is not None and n_tokens >= n_needed:
            break
    return np.concatenate(parts)


def _joined(tokenizer: TextTokenizer, text: str) -> Iterator[np.ndarray]:
    """Yield the tokens of a text, piece by piece."""
    pieces = _pieces(tokenizer, text)
    first, edge = next(pieces), PIECE
    for second in pieces:
        join = _join(first, second, edge)
        if join is None:
            second = tokenizer.tokens(text, [(edge, edge + PIECE)])[0]
            join = len(first.ids), 0
        yield first.ids[: join[0]]
        first, edge = Tokens(*(values[join[1] :] for values in second)), edge + PIECE
    yield first.ids


def _pieces(tokenizer: TextTokenizer, text: str) -> Iterator[Tokens]:
    """Yield the tokens of each piece of a text."""
    places = iter([(max(0, start - OVERLAP), start + PIECE) for start in range(0, len(text), PIECE)])
    while batch := list(islice(places, PIECES_A_BATCH)):
        yield from tokenizer.tokens(text, batch)


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


# ---- from files ------------------------------------------------------------------------------------------------


def _of_file(folder: Path, allow_special_tokens: bool) -> TextTokenizer:
    """Return the tokenizer that `tokenizer.json` is."""
    facts, backend = read_facts(folder), read_whole(folder)
    token = facts.bos_token or _bos_token_of_class(folder)
    bos = None if token is None else backend.token_to_id(token)
    is_first = backend.encode("a").ids[:1] == [bos] if facts.adds_bos is None else facts.adds_bos
    refused = {} if allow_special_tokens else _control(backend, facts.control, _unknown_token(backend))
    return _of_backend(backend, str(folder), bos, bos is not None and is_first, refused, WHOLE)


def _of_sentencepiece(folder: Path, pieces: SentencePieceProcessor, allow_special_tokens: bool) -> TextTokenizer:
    """Return the tokenizer that a SentencePiece model is; to it, control tokens in a text are text."""
    (name, *_) = (path.name for path in tokenizer_files(folder) if path.name in (LLAMA_PIECES, T5_PIECES))
    if allow_special_tokens:
        raise InputError(
            f"{folder / name}: SentencePiece takes no text for a control token, but allow_special_tokens is true; set "
            f"it to false, or name a model with a {WHOLE} in model_config.tokenizer"
        )
    facts = read_facts(folder)
    named = pieces.bos_id() if facts.bos_token is None else pieces.piece_to_id(facts.bos_token)
    bos = None if named in (-1, pieces.unk_id()) else named
    # Llama and who took its format put the token before a text, T5 and XLNet do not.
    is_first = name == LLAMA_PIECES if facts.adds_bos is None else facts.adds_bos
    encode = partial(pieces.encode, num_threads=int(os.environ.get("RAYON_NUM_THREADS", "1")))
    return TextTokenizer(str(folder), encode, None, bos, bos is not None and is_first, {}, name, pieces.decode)


def _of_transformers(folder: Path, allow_special_tokens: bool) -> TextTokenizer:
    """Return the tokenizer that transformers makes of a folder's files."""
    made = made_by_transformers(folder)
    bos, named = made.bos_token_id, read_facts(folder).control | set(made.all_special_tokens)
    adds_bos = bos is not None and made("a")["input_ids"][:1] == [bos]
    read_from = f"{', '.join(path.name for path in tokenizer_files(folder))}, by transformers as {type(made).__name__}"
    if made.is_fast:
        backend = whole_of(made.backend_tokenizer.to_str(), folder)
        refused = {} if allow_special_tokens else _control(backend, named, _unknown_token(backend))
        return _of_backend(backend, str(folder), bos, adds_bos, refused, read_from)
    numbers = {made.convert_tokens_to_ids(token): token for token in named}
    refused = {} if allow_special_tokens else {key: numbers[key] for key in numbers if key != made.unk_token_id}
    options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}

    def encode(texts: list[str]) -> list[list[int]]:
        return made(texts, split_special_tokens=bool(refused), **options)["input_ids"] if texts else []

    return TextTokenizer(str(folder), encode, None, bos, adds_bos, refused, read_from, made.decode)


def _of_backend(
    backend: Tokenizer, name: str, bos: int | None, adds_bos: bool, refused: Mapping[int, str], read_from: str
) -> TextTokenizer:
    """Return a tokenizer to which strings that are spelled as the control tokens that it refuses are text."""
    # A model of pieces knows the unknown token by its place, and finds the string of its name as any piece.
    unknown = getattr(backend.model, "unk_id", None)
    hidden = (
        {**refused, unknown: cast("str", backend.id_to_token(unknown))} if refused and unknown is not None else refused
    )
    backend.encode_special_tokens = bool(refused)
    if _is_reached(backend, hidden):
        backend = whole_of(_without(json.loads(backend.to_str()), set(hidden.values())), Path(name))
        backend.encode_special_tokens = True

    # On as many cores as RAYON_NUM_THREADS says.
    def encode(texts: list[str]) -> list[list[int]]:
        return [made.ids for made in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_with_offsets(texts: list[str]) -> list[Tokens]:
        made = backend.encode_batch(texts, add_special_tokens=False)
        return [Tokens(np.array(one.ids, np.int32), *np.array(one.offsets, np.int64).reshape(-1, 2).T) for one in made]

    decode = partial(backend.decode, skip_special_tokens=False)
    return TextTokenizer(name, encode, encode_with_offsets, bos, adds_bos, refused, read_from, decode)


def _bos_token_of_class(folder: Path) -> str | None:
    """Return the beginning-of-sequence token that a tokenizer has by its class in transformers, if that is known."""
    try:
        return made_by_transformers(folder).bos_token
    except InputError:
        return None


# ---- control tokens are text -----------------------------------------------------------------------------------


def _control(backend: Tokenizer, named: Iterable[str], unknown: int | None) -> dict[int, str]:
    """Return the control tokens of a tokenizer: those that it marks as special, and those that are named as such.

    Not that of what it does not know, which any text may become; nor a single character, a letter of the text whatever
    else it may be.
    """
    marked = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    numbers = {backend.token_to_id(token): token for token in marked | set(named) if len(token) > 1}
    return {number: token for number, token in numbers.items() if number not in (None, unknown)}


def _unknown_token(backend: Tokenizer) -> int | None:
    """Return the token of what a tokenizer does not know."""
    token = getattr(backend.model, "unk_token", None)
    return getattr(backend.model, "unk_id", None) if token is None else backend.token_to_id(token)


def _is_reached(backend: Tokenizer, control: Mapping[int, str]) -> bool:
    """Return whether the string of a control token, on its own or in a text, becomes that token."""
    texts = [text for token in control.values() for text in (token, f"a {token} a", f"a{token}a")]
    made = backend.encode_batch_fast(texts, add_special_tokens=False)
    return any(number in control for encoding in made for number in encoding.ids)


def _without(tokenizer: dict[str, Any], control: set[str]) -> str:
    """Return a tokenizer, as in `tokenizer.json`, in which no string becomes a control token; all ids stay.

    In the file a control token may be a piece of the vocabulary too, which a model of words or of pieces finds as any
    other, or an added token that is not marked as special. Its place is given a name that no text has.
    """
    private = {token: f"\ue000control {number}\ue001" for number, token in enumerate(sorted(control))}
    for token in tokenizer["added_tokens"]:
        if token["content"] in control:
            token |= {"content": private[token["content"]], "special": True}
    model = tokenizer["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {private.get(piece, piece): number for piece, number in model["vocab"].items()}
    else:
        model["vocab"] = [[private.get(piece, piece), score] for piece, score in model["vocab"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not control & {"".join(merge), *merge}]
    return json.dumps(tokenizer)
