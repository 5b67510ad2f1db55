"""The tokenizer of a model folder: the facts in its files, their content hash, and the tokenizer itself.

If there is a `tokenizer.json`, the `tokenizers` library reads the tokenizer from it; else, if there is a SentencePiece
model, that library reads it. transformers may replace parts of the file's tokenizer with those of the class that it
assumes for the model, so it builds the tokenizer only if a folder has neither file.
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
# Keys of a tokenizer's config that change the tokens of a text if transformers builds the tokenizer; the others are
# names, versions and chat templates.
TRANSFORMERS_KEYS = (
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
# Field numbers of SentencePiece's format: 1 pieces, 2 training, 3 normalization of text.
SENTENCEPIECE_FIELDS = {1, 2, 3}
# Files with a vocabulary for transformers; without any of them it builds a tokenizer with an empty vocabulary.
VOCABULARY_PATTERNS = (*TOKENIZER_FILES, "*.model", "*.tiktoken", "*.codes", "vocab*", "tekken.json", "*vocab.txt")
# Keys whose values are one control token, or a list of them, in a tokenizer's config or its map of special tokens.
NAMED_TOKEN_KEYS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TOKEN_LIST_KEYS = ("additional_special_tokens", "extra_special_tokens")
REMEDY = "fetch or save it again"
# The start of `tokenizer.json`. Truncation and padding are those of the last call of the tokenizer; neither is used.
_TRUNCATION_AND_PADDING = re.compile(
    rb"""
    ( \A \{ \s* "version" \s*:\s* "[^"]*" \s*,\s* "truncation" \s*:\s* ) (?: null | \{ [^{}]* \} )
    ( \s*,\s* "padding" \s*:\s* ) (?: null | \{ (?: [^{}] | \{ [^{}]* \} )* \} )
    (?= \s*, )
    """,
    re.VERBOSE,
)
# More than the matched start of a file takes.
N_HEADER_BYTES = 4096


@dataclass(frozen=True)
class TokenizerFacts:
    """Facts of a tokenizer in the small files next to it.

    Parameters
    ----------
    bos_token : str or None
        The beginning-of-sequence token; None if none is named.
    adds_bos : bool or None
        Whether this token is put before a text; None if the tokenizer itself decides.
    control : frozenset of str
        Tokens that are named as control tokens, such as end-of-text. `tokenizer.json` may name more.
    tokenizer_class : str or None
        Name of its class in transformers.
    """

    bos_token: str | None
    adds_bos: bool | None
    control: frozenset[str]
    tokenizer_class: str | None


def read_facts(folder: Path) -> TokenizerFacts:
    """Return the facts of a tokenizer in the small files next to it.

    Raises
    ------
    InputError
        One of them is not a JSON object.
    """
    config = {**_read_object(folder / SPECIAL_TOKENS), **_read_object(folder / TOKENIZER_CONFIG)}
    adds_bos, tokenizer_class = config.get("add_bos_token"), config.get("tokenizer_class")
    return TokenizerFacts(
        bos_token=next(_token_texts(config.get("bos_token")), None),
        adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
        control=frozenset(_control_tokens(config)),
        tokenizer_class=tokenizer_class if isinstance(tokenizer_class, str) else None,
    )


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files that define the tokenizer in a folder."""
    names = (*TOKENIZER_FILES, TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS)
    return [folder / name for name in names if (folder / name).is_file()]


def tokenizer_digest(folder: Path, hash_file: Callable[[Path], str] = sha256) -> str:
    """Return the content hash of the tokenizer in a folder, which covers only the used parts of its files.

    Raises
    ------
    InputError
        A file of the tokenizer is not a JSON object.
    """
    if not (folder / WHOLE).is_file():
        hashes: dict[str, Any] = {
            name: hash_file(folder / name) for name in (*TOKENIZER_FILES, ADDED_TOKENS) if (folder / name).is_file()
        }
        config = _read_object(folder / TOKENIZER_CONFIG)
        hashes["config"] = {key: config[key] for key in TRANSFORMERS_KEYS if key in config}
        hashes["control"] = sorted(read_facts(folder).control)
        return digest(hashes)
    facts = read_facts(folder)
    used = {"bos_token": facts.bos_token, "adds_bos": facts.adds_bos, "control": sorted(facts.control)}
    if facts.bos_token is None:  # then the class decides
        used["class"] = facts.tokenizer_class
    return digest({WHOLE: _whole_hash(folder / WHOLE, hash_file), **used})


def _whole_hash(path: Path, hash_file: Callable[[Path], str]) -> str:
    """Return the hash of `tokenizer.json` with truncation and padding set to null."""
    with open(path, "rb") as file:
        header = file.read(N_HEADER_BYTES)
        normalized = _TRUNCATION_AND_PADDING.sub(rb"\1null\2null", header)
        if normalized == header:
            return hash_file(path)
        return hashlib.sha256(normalized + file.read()).hexdigest()


def read_whole(folder: Path) -> Tokenizer:
    """Return the tokenizer in `tokenizer.json`, without truncation, padding and dropout.

    Raises
    ------
    InputError
        The file is damaged, or the `tokenizers` library does not support its content.
    """
    path = folder / WHOLE
    try:
        return whole_of(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: damaged: not UTF-8 at byte {error.start}; {REMEDY}") from error
    except InputError:
        _read_object(path)  # raises a clearer error if the file is not JSON
        raise


def whole_of(text: str, path: Path) -> Tokenizer:
    """Return the tokenizer in the text of a `tokenizer.json`; errors name `path`."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.encode("a")
    # The library has no error class of its own, and panics on some files that it cannot use.
    except BaseException as error:
        if not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
            raise
        raise InputError(
            f"{path}: not a tokenizer that can be read ({_first_line(error)}); {REMEDY}, or name a model with another "
            "in model_config.tokenizer"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):  # otherwise tokens are random, as in training
        tokenizer.model.dropout = None
    return tokenizer


def check_readable(folder: Path) -> int:
    """Return the number of tokens of the tokenizer in a folder, which is one more than the largest.

    Raises
    ------
    InputError
        The tokenizer cannot be read.
    """
    read_facts(folder)
    if (folder / WHOLE).is_file():
        return 1 + max(read_whole(folder).get_vocab().values(), default=-1)
    if (pieces := read_sentencepiece(folder)) is not None:
        return pieces.get_piece_size()
    return 1 + max(made_by_transformers(folder).get_vocab().values(), default=-1)


def read_sentencepiece(folder: Path) -> SentencePieceProcessor | None:
    """Return the tokenizer of the SentencePiece model in a folder; None if there is none.

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
    # This library has no error class of its own either.
    except Exception as error:
        raise InputError(
            f"{path}: not a SentencePiece model that can be read ({_first_line(error)}); {REMEDY}"
        ) from error
    return pieces


def _is_tiktoken(path: Path) -> bool:
    """Return whether a file is a vocabulary of tiktoken, as in Llama 3: each line is a token in base64 and its rank."""
    with path.open("rb") as file:
        return re.fullmatch(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", file.readline(200)) is not None


def _protobuf_fields(content: bytes) -> set[int]:
    """Return the field numbers of a protobuf message; raises a ValueError if a field ends beyond the message."""
    fields, position = set(), 0
    while position < len(content):
        tag, position = _varint(content, position)
        if tag & 7 != 2:  # all fields of the format are length-delimited
            raise ValueError(f"no field at byte {position}")
        length, position = _varint(content, position)
        fields.add(tag >> 3)
        position += length
    if position > len(content):
        raise ValueError("it is cut short")
    return fields


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """Return the protobuf varint at a position, and the position after it."""
    value = shift = 0
    while position < len(content) and shift < 64:
        byte, position = content[position], position + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise ValueError("it is cut short")


def made_by_transformers(folder: Path) -> Any:
    """Return the tokenizer that transformers builds from the files of a folder.

    Raises
    ------
    InputError
        It cannot be built, or only with code from the folder.
    """
    from transformers import AutoTokenizer

    _check_merges(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    # For damaged files, transformers and its libraries may raise any class.
    except Exception as error:
        raise InputError(
            f"{folder}: transformers cannot make this tokenizer, and Python code that may come with it is never run "
            f"({_first_line(error)}); name a model with another in model_config.tokenizer"
        ) from error
    if not any(True for name in VOCABULARY_PATTERNS for _ in folder.glob(name)):
        raise InputError(
            f"{folder}: found no tokenizer, expected one of {', '.join(TOKENIZER_FILES)}; name a model with one in "
            "model_config.tokenizer"
        )
    return tokenizer


def _check_merges(folder: Path) -> None:
    """Raise an InputError if a list of merges produces far fewer pieces than the vocabulary has, as after a cut."""
    if not (folder / MERGES).is_file() or (folder / WHOLE).is_file():
        return
    vocabulary = _read_object(folder / VOCABULARY)
    try:
        lines = (folder / MERGES).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{folder / MERGES}: damaged: {error}; {REMEDY}") from error
    merged = {"".join(line.split()) for line in lines if not line.startswith("#version")}
    n_without_merge = sum(len(piece) > 1 and piece not in merged for piece in vocabulary)
    # No merge produces control tokens and some reserved tokens.
    if n_without_merge > 300 + len(merged) / 100:
        raise InputError(
            f"{folder / MERGES}: cut short: {n_without_merge} of the {len(vocabulary)} pieces in {VOCABULARY} come "
            f"from no merge; {REMEDY}"
        )


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's text, shortened to 200 characters; its class if it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if the file is missing."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged or cut short, not JSON ({_first_line(error)}); {REMEDY}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: found a JSON {type(content).__name__}, expected an object; {REMEDY}")
    return content


def _control_tokens(config: dict[str, Any]) -> Iterator[str]:
    """Yield the control tokens that a tokenizer's config names."""
    for key in (*NAMED_TOKEN_KEYS, *TOKEN_LIST_KEYS):
        yield from _token_texts(config.get(key))
    decoder = config.get("added_tokens_decoder")
    for token in decoder.values() if isinstance(decoder, dict) else ():
        if isinstance(token, dict) and token.get("special") is True:
            yield from _token_texts(token)


def _token_texts(value: Any) -> Iterator[str]:
    """Yield the texts of tokens in a value: a text, the description of a token, or a list or mapping of these."""
    if isinstance(value, str) and value:
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _token_texts(item)
    elif isinstance(value, dict):
        if "content" in value:
            yield from _token_texts(value["content"])
        else:  # a mapping from names to tokens
            for item in value.values():
                yield from _token_texts(item)
