"""Tokens of texts of any length, in memory that grows with a text only by its tokens.

By default, a string in a text that is spelled as a control token of the tokenizer, such as `<|endoftext|>`, becomes the
ordinary tokens of its letters.

A tokenizer needs more than a hundred bytes of memory per byte of text, so a long text is tokenized in overlapping
pieces. Two pieces are joined at a token that both have at the same place of the text, close to the middle of their
overlap. The result is the tokens of the whole text, if its words are shorter than half of an overlap. If two pieces
have no token in common, as in a word as long as the overlap, the text is split at the end of the first piece, and the
rest is tokenized as a separate text.
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

# In characters: the longest text that is tokenized as a whole; the size of a piece of a longer text, and the overlap of
# two pieces.
MOST_WHOLE = 2**19
PIECE, OVERLAP, PIECES_A_BATCH = 2**16, 2**10, 8


class Tokens(NamedTuple):
    """Tokens of a piece of a text, and the first character and the end of each token in the text."""

    ids: np.ndarray
    starts: np.ndarray
    stops: np.ndarray


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer of raw text, without special tokens around it.

    Parameters
    ----------
    name : str
        Its name in messages.
    encode : callable
        Returns the tokens of each text in a list.
    encode_with_offsets : callable or None
        Returns the tokens with their characters in the text; None if these are unknown.
    bos : int or None
        The beginning-of-sequence token.
    adds_bos : bool
        Whether the tokenizer itself puts this token before a text.
    refused : mapping of int to str
        Control tokens that no text may produce.
    read_from : str
        The files from which it was read.
    decode : callable
        Returns the text of a list of tokens.
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
        """Return the tokens of pieces of a text, given as (start, stop), with their places in the whole text."""
        assert self.encode_with_offsets is not None  # called only if offsets are known
        pieces = self.encode_with_offsets([text[start:stop] for start, stop in places])
        return [
            Tokens(ids, starts + start, stops + start)
            for (start, _), (ids, starts, stops) in zip(places, pieces, strict=True)
        ]

    def check(self, ids: np.ndarray) -> np.ndarray:
        """Return tokens of a text unchanged; raises an InputError if one is a control token."""
        refused_ids = ids[np.isin(ids, list(self.refused))] if self.refused else ids[:0]
        if len(refused_ids):
            raise InputError(
                f"{self.name}: text became the control token {self.refused[int(refused_ids[0])]!r}, which cannot be "
                "prevented for this tokenizer; set dataset_config.allow_special_tokens: true to allow it"
            )
        return ids


def load_tokenizer(folder: Path, allow_special_tokens: bool = False) -> TextTokenizer:
    """Return the tokenizer of a model folder, read by its own library, or else by transformers.

    Parameters
    ----------
    folder : Path
        The folder.
    allow_special_tokens : bool
        Whether a string in a text that is spelled as a control token becomes that token.

    Raises
    ------
    InputError
        A file is damaged, or transformers cannot build the tokenizer without code from the folder.
    """
    folder = Path(folder)
    if (folder / WHOLE).is_file():
        return _from_tokenizer_json(folder, allow_special_tokens)
    if (pieces := read_sentencepiece(folder)) is not None:
        return _from_sentencepiece(folder, pieces, allow_special_tokens)
    return _from_transformers(folder, allow_special_tokens)


def bos_token(tokenizer: TextTokenizer, add_bos: str) -> int | None:
    """Return the beginning-of-sequence token at the start of contexts; None if they start without one.

    Parameters
    ----------
    tokenizer : TextTokenizer
        The tokenizer with this token.
    add_bos : str
        `auto`: the token if the tokenizer itself puts it before a text; `always`; `never`.

    Raises
    ------
    InputError
        `add_bos` is `always`, and the tokenizer has no such token.
    """
    if add_bos == "always" and tokenizer.bos is None:
        raise InputError(
            f"{tokenizer.name}: the tokenizer has no beginning-of-sequence token, but add_bos is 'always'; set "
            "add_bos: auto"
        )
    is_first = add_bos == "always" or (add_bos == "auto" and tokenizer.adds_bos)
    return tokenizer.bos if is_first else None


def tokenize(tokenizer: TextTokenizer, texts: list[str], n_needed: int | None = None) -> list[np.ndarray]:
    """Return the tokens of texts, without special tokens; of a long text at least the first `n_needed` tokens.

    Raises
    ------
    InputError
        A text became a control token that is not allowed in texts.
    """
    ids = iter(tokenizer.encode([text for text in texts if len(text) <= MOST_WHOLE]))
    return [
        tokenizer.check(
            np.array(next(ids), np.int32) if len(text) <= MOST_WHOLE else _long_tokens(tokenizer, text, n_needed)
        )
        for text in texts
    ]


def _long_tokens(tokenizer: TextTokenizer, text: str, n_needed: int | None) -> np.ndarray:
    """Return the tokens of a long text, at least the first `n_needed`."""
    if tokenizer.encode_with_offsets is None:
        return np.array(tokenizer.encode([text])[0], np.int32)
    parts, n_tokens = [], 0
    for part in _joined_pieces(tokenizer, text):
        parts.append(part)
        n_tokens += len(part)
        if n_needed is not None and n_tokens >= n_needed:
            break
    return np.concatenate(parts)


def _joined_pieces(tokenizer: TextTokenizer, text: str) -> Iterator[np.ndarray]:
    """Yield the tokens of a text, piece by piece."""
    pieces = _pieces(tokenizer, text)
    first, edge = next(pieces), PIECE
    for second in pieces:
        join = _find_join(first, second, edge)
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


def _find_join(first: Tokens, second: Tokens, edge: int) -> tuple[int, int] | None:
    """Return where two pieces join: the number of tokens of the first, and the index in the second; None for no join.

    They join at a common token as close as possible to the middle of their overlap, since splitting the text may have
    changed the tokens at its ends. If several tokens belong to one character, they join at the first of these.
    """
    first_start, second_stop = np.searchsorted(first.starts, edge - OVERLAP), np.searchsorted(second.starts, edge)
    second_tokens = list(enumerate(zip(*(values[:second_stop].tolist() for values in second), strict=True)))
    place_in_second = {token: place for place, token in reversed(second_tokens)}
    first_tokens = enumerate(
        zip(*(values[first_start:].tolist() for values in first), strict=True), start=int(first_start)
    )
    joins = [(place, place_in_second[token]) for place, token in first_tokens if token in place_in_second]
    return min(joins, key=lambda join: abs(first.starts[join[0]] - (edge - OVERLAP // 2)), default=None)


def _from_tokenizer_json(folder: Path, allow_special_tokens: bool) -> TextTokenizer:
    """Return the tokenizer in `tokenizer.json`."""
    facts, backend = read_facts(folder), read_whole(folder)
    token = facts.bos_token or _bos_token_of_class(folder)
    bos = None if token is None else backend.token_to_id(token)
    is_first = backend.encode("a").ids[:1] == [bos] if facts.adds_bos is None else facts.adds_bos
    refused = {} if allow_special_tokens else _control_tokens(backend, facts.control, _unknown_token(backend))
    return _from_backend(backend, str(folder), bos, bos is not None and is_first, refused, WHOLE)


def _from_sentencepiece(folder: Path, pieces: SentencePieceProcessor, allow_special_tokens: bool) -> TextTokenizer:
    """Return the tokenizer of a SentencePiece model, which never turns text into control tokens."""
    (name, *_) = (path.name for path in tokenizer_files(folder) if path.name in (LLAMA_PIECES, T5_PIECES))
    if allow_special_tokens:
        raise InputError(
            f"{folder / name}: SentencePiece reads no text as a control token, but allow_special_tokens is true; set "
            f"it to false, or name a model with a {WHOLE} in model_config.tokenizer"
        )
    facts = read_facts(folder)
    bos_id = pieces.bos_id() if facts.bos_token is None else pieces.piece_to_id(facts.bos_token)
    bos = None if bos_id in (-1, pieces.unk_id()) else bos_id
    # Llama and models with its format put the token before a text; T5 and XLNet do not.
    is_first = name == LLAMA_PIECES if facts.adds_bos is None else facts.adds_bos
    encode = partial(pieces.encode, num_threads=int(os.environ.get("RAYON_NUM_THREADS", "1")))
    return TextTokenizer(str(folder), encode, None, bos, bos is not None and is_first, {}, name, pieces.decode)


def _from_transformers(folder: Path, allow_special_tokens: bool) -> TextTokenizer:
    """Return the tokenizer that transformers builds from the files of a folder."""
    tokenizer = made_by_transformers(folder)
    bos, control = tokenizer.bos_token_id, read_facts(folder).control | set(tokenizer.all_special_tokens)
    adds_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
    read_from = (
        f"{', '.join(path.name for path in tokenizer_files(folder))}, by transformers as {type(tokenizer).__name__}"
    )
    if tokenizer.is_fast:
        backend = whole_of(tokenizer.backend_tokenizer.to_str(), folder)
        refused = {} if allow_special_tokens else _control_tokens(backend, control, _unknown_token(backend))
        return _from_backend(backend, str(folder), bos, adds_bos, refused, read_from)
    token_by_id = {tokenizer.convert_tokens_to_ids(token): token for token in control}
    refused = (
        {} if allow_special_tokens else {key: token_by_id[key] for key in token_by_id if key != tokenizer.unk_token_id}
    )
    options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}

    def encode(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, split_special_tokens=bool(refused), **options)["input_ids"] if texts else []

    return TextTokenizer(str(folder), encode, None, bos, adds_bos, refused, read_from, tokenizer.decode)


def _from_backend(
    backend: Tokenizer, name: str, bos: int | None, adds_bos: bool, refused: Mapping[int, str], read_from: str
) -> TextTokenizer:
    """Return a tokenizer for which strings that are spelled as refused control tokens are text."""
    # A unigram model knows the unknown token by its id, but also matches its name in a text as an ordinary piece.
    unknown_id = getattr(backend.model, "unk_id", None)
    hidden_tokens = (
        {**refused, unknown_id: cast("str", backend.id_to_token(unknown_id))}
        if refused and unknown_id is not None
        else refused
    )
    backend.encode_special_tokens = bool(refused)
    if _is_reached(backend, hidden_tokens):
        backend = whole_of(
            _rename_control_tokens(json.loads(backend.to_str()), set(hidden_tokens.values())), Path(name)
        )
        backend.encode_special_tokens = True

    # `encode_batch_fast` runs on RAYON_NUM_THREADS cores.
    def encode(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_with_offsets(texts: list[str]) -> list[Tokens]:
        encodings = backend.encode_batch(texts, add_special_tokens=False)
        return [
            Tokens(np.array(encoding.ids, np.int32), *np.array(encoding.offsets, np.int64).reshape(-1, 2).T)
            for encoding in encodings
        ]

    decode = partial(backend.decode, skip_special_tokens=False)
    return TextTokenizer(name, encode, encode_with_offsets, bos, adds_bos, refused, read_from, decode)


def _bos_token_of_class(folder: Path) -> str | None:
    """Return the beginning-of-sequence token of a tokenizer's class in transformers; None if it is unknown."""
    try:
        return made_by_transformers(folder).bos_token
    except InputError:
        return None


def _control_tokens(backend: Tokenizer, named: Iterable[str], unknown_id: int | None) -> dict[int, str]:
    """Return the control tokens of a tokenizer: those that it marks as special, and those in `named`.

    The unknown token is left out, since any text may become it, and so are single characters, which are letters of a
    text.
    """
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    token_by_id = {backend.token_to_id(token): token for token in special | set(named) if len(token) > 1}
    return {token_id: token for token_id, token in token_by_id.items() if token_id not in (None, unknown_id)}


def _unknown_token(backend: Tokenizer) -> int | None:
    """Return the id of the unknown token of a tokenizer; None if it has none."""
    token = getattr(backend.model, "unk_token", None)
    return getattr(backend.model, "unk_id", None) if token is None else backend.token_to_id(token)


def _is_reached(backend: Tokenizer, control: Mapping[int, str]) -> bool:
    """Return whether the string of a control token, on its own or in a text, becomes a control token."""
    texts = [text for token in control.values() for text in (token, f"a {token} a", f"a{token}a")]
    encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
    return any(token_id in control for encoding in encodings for token_id in encoding.ids)


def _rename_control_tokens(tokenizer: dict[str, Any], control: set[str]) -> str:
    """Return the content of a `tokenizer.json` in which no string becomes a control token; all ids stay.

    A control token may also be an entry of the vocabulary, which the model matches like any other entry, or an added
    token that is not marked as special. So each gets a name that does not occur in texts.
    """
    private_names = {token: f"\ue000control {number}\ue001" for number, token in enumerate(sorted(control))}
    for token in tokenizer["added_tokens"]:
        if token["content"] in control:
            token |= {"content": private_names[token["content"]], "special": True}
    model = tokenizer["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {private_names.get(piece, piece): number for piece, number in model["vocab"].items()}
    else:
        model["vocab"] = [[private_names.get(piece, piece), score] for piece, score in model["vocab"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not control & {"".join(merge), *merge}]
    return json.dumps(tokenizer)
