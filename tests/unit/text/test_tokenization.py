"""Tokens of texts: those of a long one are those of the whole; what contexts start with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tokenizers import Tokenizer

from id_scaling.errors import InputError
from id_scaling.text import tokenization as tokens
from id_scaling.text.tokenization import TextTokenizer, bos_token, load_tokenizer, tokenize

CODE = 'def f(x):\n    """Δ, 日本語, 🙂🙂 and\u2028more."""\n\treturn  {"a": [x ** 2,\n\n\n  x]}\n\n'


@pytest.fixture(scope="module")
def tokenizer(resources: Path) -> Any:
    """A real tokenizer of a real model: bytes, merged within words."""
    return load_tokenizer(resources / "smollm2-135m-instruct")


@pytest.fixture(scope="module")
def text(resources: Path) -> str:
    """English, code, and characters of one to four bytes, all in one."""
    english = pl.read_parquet(resources / "sotu" / "0000.parquet")["text"][0]
    return "".join(english[start : start + 700] + CODE for start in range(0, 14_000, 700))


def in_pieces(tokenizer: Any, text: str, monkeypatch: pytest.MonkeyPatch, piece: int, overlap: int, **of: Any) -> list:
    """Return the tokens of a text as those of a long one."""
    for name, value in {"MOST_WHOLE": 10, "PIECE": piece, "OVERLAP": overlap, "PIECES_A_BATCH": 3}.items():
        monkeypatch.setattr(tokens, name, value)
    return tokenize(tokenizer, [text], **of)[0].tolist()


@pytest.mark.parametrize(("piece", "overlap"), [(200, 100), (1000, 60), (777, 333), (10**6, 100)])
def test_tokens_of_a_long_text_are_those_of_the_whole(
    piece: int, overlap: int, tokenizer: Any, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tokenizer.encode([text])[0]
    assert in_pieces(tokenizer, text, monkeypatch, piece, overlap) == whole
    # Pieces that are just put after each other have others.
    apart = tokenizer.encode([text[start : start + piece] for start in range(0, len(text), piece)])
    assert piece > len(text) or [token for part in apart for token in part] != whole


@pytest.mark.parametrize("character", ["🟟", "𝔞", "é", "字", "a "])
def test_tokens_of_a_long_row_of_one_character_are_those_of_the_whole(
    character: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several tokens a character, some of which are equal, or of several characters a token."""
    text = f"the {character * 700} end"
    assert in_pieces(tokenizer, text, monkeypatch, 150, 80) == tokenizer.encode([text])[0]


def test_tokens_of_a_word_longer_than_the_overlap_are_still_its_text(
    tokenizer: Any, resources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Tokenizer.from_file(str(resources / "smollm2-135m-instruct" / "tokenizer.json"))
    word = "".join(map(str, np.random.default_rng(0).choice([*"abcdefgh"], 5000)))
    found = in_pieces(tokenizer, f"the {word} end", monkeypatch, 300, 3)
    assert file.decode(found) == f"the {word} end"


def test_of_a_long_text_no_more_is_tokenised_than_is_needed(
    tokenizer: Any, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tokenizer.encode([text])[0]
    found = in_pieces(tokenizer, text, monkeypatch, 1000, 100, n_needed=250)
    assert found == whole[: len(found)]
    assert 250 <= len(found) < 250 + 1000


def test_long_and_short_texts_keep_their_order(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MOST_WHOLE", 20)
    texts = ["the first", "and a second that is longer than that", "", "third"]
    assert [one.tolist() for one in tokenize(tokenizer, texts)] == tokenizer.encode(texts)


THREADS = """
import os, sys
from id_scaling.text.tokenization import load_tokenizer, tokenize
before = len(os.listdir("/proc/self/task"))
tokenizer = load_tokenizer(sys.argv[1])
tokenize(tokenizer, ["a text that is one of several"] * 100)
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted as Linux lists them")
def test_texts_are_tokenised_on_as_many_cores_as_are_given(
    resources: Path, python: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYON_NUM_THREADS", "3")
    process = python(THREADS, resources / "smollm2-135m-instruct")
    assert process.communicate()[0] == "3\n"


def plain(bos: int | None, is_added: bool) -> TextTokenizer:
    """A tokenizer that has a token before a text, or not, and puts it there, or not."""
    return TextTokenizer("models/plain", lambda texts: [], None, bos, is_added, {}, "nothing", lambda tokens: "")


@pytest.mark.parametrize(
    ("bos", "is_added", "add_bos", "expected"),
    [
        (7, True, "auto", 7),
        (0, True, "auto", 0),
        (0, False, "auto", None),
        (0, False, "always", 0),
        (7, False, "auto", None),
        (None, False, "auto", None),
        (7, True, "always", 7),
        (7, False, "always", 7),
        (7, True, "never", None),
        (7, False, "never", None),
        (None, False, "never", None),
    ],
)
def test_token_before_contexts_is_as_asked_or_as_the_tokenizer_has_it(
    bos: int | None, is_added: bool, add_bos: str, expected: int | None
) -> None:
    assert bos_token(plain(bos, is_added), add_bos) == expected


def test_token_that_is_always_to_be_there_and_does_not_exist_is_an_error() -> None:
    with pytest.raises(InputError, match=r"^models/plain: .* no beginning-of-sequence token, but add_bos is 'always'"):
        bos_token(plain(None, False), "always")
