"""Checks that a model knows the tokens that a tokenizer produces, and that contexts can start with the requested token.

A tokenizer may have more tokens than its model, for example an added padding token that no text produces. So each token
beyond the model's range is decoded to text, and the text is encoded again: only a token that comes back is an error.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from id_scaling.errors import InputError
from id_scaling.storage.tokenizers import check_readable
from id_scaling.text.tokenization import TextTokenizer, bos_token, load_tokenizer

# Tokens that are tried at a time, the largest first: the first batch reveals a tokenizer of another model.
BATCH_SIZE = 512
MAX_CHARACTERS_SHOWN = 40


def check_start(folder: Path, add_bos: str, allow_special_tokens: Collection[bool] = (False,)) -> None:
    """Raise an InputError if the tokenizer in a folder lacks the requested first token of contexts.

    Also raise it if control tokens are allowed in texts, and the tokenizer cannot produce them.
    """
    for is_allowed in sorted(set(allow_special_tokens)):
        bos_token(load_tokenizer(folder, is_allowed), add_bos)


def check_range(folder: Path, n_known: int, add_bos: str, n_tokens: int | None = None) -> None:
    """Raise an InputError if a text can produce a token that a model does not know.

    Parameters
    ----------
    folder : Path
        Folder of the tokenizer.
    n_known : int
        Number of tokens that the model knows: its `vocab_size`.
    add_bos : {"auto", "always", "never"}
        Whether contexts start with the beginning-of-sequence token.
    n_tokens : int, optional
        Number of tokens of the tokenizer (one more than the largest), if known.
    """
    n_tokens = check_readable(folder) if n_tokens is None else n_tokens
    if n_tokens <= n_known:
        return
    tokenizer = load_tokenizer(folder)
    example = unknown_token(tokenizer, bos_token(tokenizer, add_bos), n_known, n_tokens)
    if example is not None:
        token, text = example
        shown = text if len(text) <= MAX_CHARACTERS_SHOWN else f"{text[:MAX_CHARACTERS_SHOWN]}…"
        raise InputError(
            f"the tokenizer in {folder} makes token {token} of {shown!r}, but the model knows {n_known} tokens "
            "(vocab_size in config.json); name the tokenizer that it was trained with in model_config.tokenizer, or "
            "correct the files"
        )


def unknown_token(tokenizer: TextTokenizer, bos: int | None, n_known: int, n_tokens: int) -> tuple[int, str] | None:
    """Return a token of at least `n_known` and a text that produces it; None if no such text is found.

    Some tokens occur only after a space or at the end of a word, so their text is also tried after a space and after a
    letter.
    """
    if bos is not None and bos >= n_known:
        return bos, tokenizer.decode([bos])
    letter = tokenizer.encode(["a"])[0][-1:]
    tokens = [token for token in range(n_tokens - 1, n_known - 1, -1) if token not in tokenizer.refused]
    for start in range(0, len(tokens), BATCH_SIZE):
        texts = [
            text for token in tokens[start : start + BATCH_SIZE] for text in _candidate_texts(tokenizer, token, letter)
        ]
        for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
            unknown = [token for token in ids if token >= n_known and token not in tokenizer.refused]
            if unknown:
                return max(unknown), text
    return None


def _candidate_texts(tokenizer: TextTokenizer, token: int, letter: list[int]) -> list[str]:
    """Return texts that may produce a token."""
    text = tokenizer.decode([token])
    return [text, f" {text}", tokenizer.decode([*letter, token])]
