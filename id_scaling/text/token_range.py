"""Whether a model knows the tokens that a tokenizer makes of texts, and whether contexts can start as they are to.

A tokenizer may have more tokens than its model: a padding token, say, that was added to it and that no text becomes. So
tokens that a model does not know are looked for by what they are tokens of: each is turned into text, and that into
tokens again.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from id_scaling.errors import InputError
from id_scaling.storage.tokenizers import check_readable
from id_scaling.text.tokenization import TextTokenizer, bos_token, load_tokenizer

# Tokens that are tried at a time, the largest first: a tokenizer that is another model's is known by the first.
TRIED = 512
MOST_SHOWN = 40


def check_start(folder: Path, add_bos: str, allow_special_tokens: Collection[bool] = (False,)) -> None:
    """Raise an InputError where the tokenizer in a folder lacks the token that contexts are to start with.

    Or where control tokens are allowed in texts, and it can make none.
    """
    for allow in sorted(set(allow_special_tokens)):
        bos_token(load_tokenizer(folder, allow), add_bos)


def check_range(folder: Path, n_known: int, add_bos: str, n_tokens: int | None = None) -> None:
    """Raise an InputError where a text can become a token that a model does not know.

    Parameters
    ----------
    folder : Path
        Of the tokenizer.
    n_known : int
        Tokens that the model knows: its `vocab_size`.
    add_bos : {"auto", "always", "never"}
        Whether contexts start with the beginning-of-sequence token.
    n_tokens : int, optional
        Tokens of the tokenizer, one more than the largest, where that is known.
    """
    n_tokens = check_readable(folder) if n_tokens is None else n_tokens
    if n_tokens <= n_known:
        return
    tokenizer = load_tokenizer(folder)
    example = unknown_token(tokenizer, bos_token(tokenizer, add_bos), n_known, n_tokens)
    if example is not None:
        token, text = example
        shown = text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
        raise InputError(
            f"the tokenizer in {folder} makes token {token} of {shown!r}, but the model knows {n_known} tokens "
            "(vocab_size in config.json); name the tokenizer that it was trained with in model_config.tokenizer, or "
            "correct the files"
        )


def unknown_token(tokenizer: TextTokenizer, bos: int | None, n_known: int, n_tokens: int) -> tuple[int, str] | None:
    """Return a token of at least `n_known` and a text that becomes it; None where no text is found that does.

    The text of a token may begin with a space or be the end of a word only, so it is tried after others too.
    """
    if bos is not None and bos >= n_known:
        return bos, tokenizer.decode([bos])
    letter = tokenizer.encode(["a"])[0][-1:]
    tokens = [token for token in range(n_tokens - 1, n_known - 1, -1) if token not in tokenizer.refused]
    for start in range(0, len(tokens), TRIED):
        texts = [text for token in tokens[start : start + TRIED] for text in _texts(tokenizer, token, letter)]
        for text, made in zip(texts, tokenizer.encode(texts), strict=True):
            unknown = [token for token in made if token >= n_known and token not in tokenizer.refused]
            if unknown:
                return max(unknown), text
    return None


def _texts(tokenizer: TextTokenizer, token: int, letter: list[int]) -> list[str]:
    """Return texts that a token may be of."""
    text = tokenizer.decode([token])
    return [text, f" {text}", tokenizer.decode([*letter, token])]
