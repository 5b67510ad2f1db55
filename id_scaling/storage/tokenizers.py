"""The tokenizer of a model folder: what its files say, their content hash, and what is made of them.

Where there is a `tokenizer.json`, that file is the tokenizer, read by the `tokenizers` library; or else a model of
SentencePiece is, read by that library. transformers may put parts of the class that it takes for the model in the place
of the file's own, so it makes the tokenizer only of a folder with neither.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from id_scaling.errors import InputError
from id_scaling.runtime.atomic_files import digest, sha256

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

WHOLE, LLAMA_PIECES, T5_PIECES = "tokenizer.json", "tokenizer.model", "spiece.model"
VOCABULARY, MERGES = "vocab.json", "merges.txt"
TOKENIZER_FILES = (WHOLE, LLAMA_PIECES, VOCABULARY, MERGES, T5_PIECES)
TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
# What of a tokenizer's config changes the tokens of a text where transformers makes the tokenizer; the rest is names,
# versions and chat templates.
KEYS_OF_TRANSFORMERS = (
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "added_tokens_decoder",
    "bos_token",
    "do_lower_case",
    "eos_token",
    "legacy",
    "tokenizer_class",
    "unk_token",
)
# Numbers of the fields of SentencePiece's format, in their order: pieces, their training, normalization of text.
SENTENCEPIECE_FIELDS = {1, 2, 3}
# Of files that transformers can make a tokenizer of: where there is none, it makes one without a vocabulary.
VOCABULARIES = (*TOKENIZER_FILES, "*.model", "*.tiktoken", "*.codes", "vocab*", "tekken.json", "*vocab.txt")
# Keys of a tokenizer's config and of its map of special tokens whose values are control tokens, one or several.
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTED = ("additional_special_tokens", "extra_special_tokens")
AGAIN = "fetch or save it again"
# How `tokenizer.json` begins. Truncation and padding are whatever the tokenizer was last called with; neither is used.
_AS_LAST_CALLED = re.compile(
    rb"""
    ( \A \{ \s* "version" \s*:\s* "[^"]*" \s*,\s* "truncation" \s*:\s* ) (?: null | \{ [^{}]* \} )
    ( \s*,\s* "padding" \s*:\s* ) (?: null | \{ (?: [^{}] | \{ [^{}]* \} )* \} )
    (?= \s*, )
    """,
    re.VERBOSE,
)
# Longer than the beginning ever is.
BYTES_OF_BEGINNING = 4096


@dataclass(frozen=True)
class TokenizerFacts:
    """What the small files next to a tokenizer say of it.

    Parameters
    ----------
    bos_token : str or None
        The beginning-of-sequence token; None where none is named.
    adds_bos : bool or None
        Whether it goes before a text; None where that is left to the tokenizer.
    control : frozenset of str
        Tokens that are named as control tokens, as that at the end of a text. `tokenizer.json` names more.
    tokenizer_class : str or None
        The class of transformers.
    """

    bos_token: str | None
    adds_bos: bool | None
    control: frozenset[str]
    tokenizer_class: str | None


def read_facts(folder: Path) -> TokenizerFacts:
    """Return what the small files next to a tokenizer say of it.

    Raises
    ------
    InputError
        One of them is not a JSON object.
    """
    said = {**_object(folder / SPECIAL_TOKENS), **_object(folder / TOKENIZER_CONFIG)}
    adds_bos, name = said.get("add_bos_token"), said.get("tokenizer_class")
    return TokenizerFacts(
        bos_token=next(_contents(said.get("bos_token")), None),
        adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
        control=frozenset(_control(said)),
        tokenizer_class=name if isinstance(name, str) else None,
    )


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files that make the tokenizer in a folder."""
    names = (*TOKENIZER_FILES, TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS)
    return [folder / name for name in names if (folder / name).is_file()]


def tokenizer_digest(folder: Path, hash_file: Callable[[Path], str] = sha256) -> str:
    """Return the content hash of the tokenizer in a folder: of what is used of its files.

    Raises
    ------
    InputError
        A file that belongs to it is not a JSON object.
    """
    if not (folder / WHOLE).is_file():
        hashes: dict[str, Any] = {
            name: hash_file(folder / name) for name in (*TOKENIZER_FILES, ADDED_TOKENS) if (folder / name).is_file()
        }
        config = _object(folder / TOKENIZER_CONFIG)
        hashes["config"] = {key: config[key] for key in KEYS_OF_TRANSFORMERS if key in config}
        hashes["control"] = sorted(read_facts(folder).control)
        return digest(hashes)
    facts = read_facts(folder)
    used = {"bos_token": facts.bos_token, "adds_bos": facts.adds_bos, "control": sorted(facts.control)}
    if facts.bos_token is None:  # then it is the one of the class
        used["class"] = facts.tokenizer_class
    return digest({WHOLE: _whole_hash(folder / WHOLE, hash_file), **used})


def _whole_hash(path: Path, hash_file: Callable[[Path], str]) -> str:
    """Return the hash of `tokenizer.json` as it would be without truncation and padding."""
    with open(path, "rb") as file:
        beginning = file.read(BYTES_OF_BEGINNING)
        plain = _AS_LAST_CALLED.sub(rb"\1null\2null", beginning)
        if plain == beginning:
            return hash_file(path)
        return hashlib.sha256(plain + file.read()).hexdigest()


def read_whole(folder: Path) -> Tokenizer:
    """Return the tokenizer that `tokenizer.json` is, without truncation, padding and dropout.

    Raises
    ------
    InputError
        The file is damaged, or the `tokenizers` library does not know what is in it.
    """
    path = folder / WHOLE
    try:
        return whole_of(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: damaged: not UTF-8 at byte {error.start}; {AGAIN}") from error
    except InputError:
        _object(path)  # says so where it is not JSON
        raise


def whole_of(text: str, path: Path) -> Tokenizer:
    """Return the tokenizer of the text of a `tokenizer.json`; errors name `path`."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.encode("a")
    # The library raises no class of its own, and ends with a panic on some files that it cannot use.
    except BaseException as error:
        if not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
            raise
        raise InputError(
            f"{path}: not a tokenizer that can be read ({_first_line(error)}); {AGAIN}, or name a model with another "
            "in model_config.tokenizer"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):  # tokens would be drawn at random, as in training
        tokenizer.model.dropout = None
    return tokenizer


def check_readable(folder: Path) -> int:
    """Return how many tokens the tokenizer in a folder has, one more than the largest.

    Raises
    ------
    InputError
        It cannot be read.
    """
    read_facts(folder)
    if (folder / WHOLE).is_file():
        return 1 + max(read_whole(folder).get_vocab().values(), default=-1)
    if (pieces := read_sentencepiece(folder)) is not None:
        return pieces.get_piece_size()
    return 1 + max(made_by_transformers(folder).get_vocab().values(), default=-1)


def read_sentencepiece(folder: Path) -> SentencePieceProcessor | None:
    """Return the tokenizer that a model of SentencePiece is; None where a folder has none.

    Raises
    ------
    InputError
        The file is damaged.
    """
    path = next((folder / name for name in (LLAMA_PIECES, T5_PIECES) if (folder / name).is_file()), None)
    if path is None or _is_tiktoken(path):
        return None
    from sentencepiece import SentencePieceProcessor

    pieces, content = SentencePieceProcessor(), path.read_bytes()
    try:
        if not _protobuf_fields(content) >= SENTENCEPIECE_FIELDS:
            raise ValueError("it ends before its last part")
        pieces.load_from_serialized_proto(content)
        pieces.encode("a")
    # As `tokenizers`, the library raises no class of its own.
    except Exception as error:
        raise InputError(
            f"{path}: not a SentencePiece model that can be read ({_first_line(error)}); {AGAIN}"
        ) from error
    return pieces


def _is_tiktoken(path: Path) -> bool:
    """Return whether a file is a vocabulary of tiktoken, as Llama 3 has: lines of a token in base64 and its rank."""
    with path.open("rb") as file:
        return re.fullmatch(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", file.readline(200)) is not None


def _protobuf_fields(content: bytes) -> set[int]:
    """Return the numbers of the fields of a message; raises a ValueError where one ends after the message does."""
    fields, place = set(), 0
    while place < len(content):
        tag, place = _varint(content, place)
        if tag & 7 != 2:  # all fields of the format have a length
            raise ValueError(f"no field of it at byte {place}")
        length, place = _varint(content, place)
        fields.add(tag >> 3)
        place += length
    if place > len(content):
        raise ValueError("it is cut short")
    return fields


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """Return a number of protobuf's format, and where the next field begins."""
    value = shift = 0
    while place < len(content) and shift < 64:
        byte, place = content[place], place + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
    raise ValueError("it is cut short")


def made_by_transformers(folder: Path) -> Any:
    """Return what transformers makes of the files of a tokenizer.

    Raises
    ------
    InputError
        It cannot be made, or not without code that comes with it.
    """
    from transformers import AutoTokenizer

    _check_merges(folder)
    try:
        made = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    # Damaged files make transformers, and the libraries under it, raise almost any class.
    except Exception as error:
        raise InputError(
            f"{folder}: transformers cannot make this tokenizer, and Python code that may come with it is never run "
            f"({_first_line(error)}); name a model with another in model_config.tokenizer"
        ) from error
    if not any(True for name in VOCABULARIES for _ in folder.glob(name)):
        raise InputError(
            f"{folder}: found no tokenizer, expected one of {', '.join(TOKENIZER_FILES)}; name a model with one in "
            "model_config.tokenizer"
        )
    return made


def _check_merges(folder: Path) -> None:
    """Raise an InputError where a vocabulary has far more pieces than a list of merges, which may be cut, makes."""
    if not (folder / MERGES).is_file() or (folder / WHOLE).is_file():
        return
    vocabulary = _object(folder / VOCABULARY)
    try:
        lines = (folder / MERGES).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{folder / MERGES}: damaged: {error}; {AGAIN}") from error
    made = {"".join(line.split()) for line in lines if not line.startswith("#version")}
    n_lacking = sum(len(piece) > 1 and piece not in made for piece in vocabulary)
    # Control tokens and some reserved ones are made by no merge.
    if n_lacking > 300 + len(made) / 100:
        raise InputError(
            f"{folder / MERGES}: cut short: {n_lacking} of the {len(vocabulary)} pieces in {VOCABULARY} come of no "
            f"merge; {AGAIN}"
        )


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's text, cut where it is long; its class where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged or cut short, not JSON ({_first_line(error)}); {AGAIN}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: found a JSON {type(content).__name__}, expected an object; {AGAIN}")
    return content


def _control(said: dict[str, Any]) -> Iterator[str]:
    """Yield the control tokens that a tokenizer's config names."""
    for key in (*NAMED, *LISTED):
        yield from _contents(said.get(key))
    decoder = said.get("added_tokens_decoder")
    for token in decoder.values() if isinstance(decoder, dict) else ():
        if isinstance(token, dict) and token.get("special") is True:
            yield from _contents(token)


def _contents(value: Any) -> Iterator[str]:
    """Yield the texts of tokens: of a text, of the description of a token, or of several of them."""
    if isinstance(value, str) and value:
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _contents(inner)
    elif isinstance(value, dict):
        if "content" in value:
            yield from _contents(value["content"])
        else:  # by name
            for inner in value.values():
                yield from _contents(inner)
