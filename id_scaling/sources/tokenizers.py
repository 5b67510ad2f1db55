"""Whether a tokenizer can be read, from which of its files, and what transformers would make of them instead."""

from __future__ import annotations

from pathlib import Path

from id_scaling.errors import InputError
from id_scaling.runtime.logging import LOG
from id_scaling.storage.tokenizers import (
    WHOLE,
    made_by_transformers,
    read_facts,
    read_sentencepiece,
    read_whole,
    tokenizer_files,
)

# Texts that parts of tokenizers treat in ways of their own: spaces at each place, lines, digits, letters of one to four
# bytes, composed and decomposed accents, code.
PROBES = (
    "the people of the united states",
    " leading, two  spaces,   three and trailing ",
    "lines\nof\n\ntext\r\n\tand tabs\u00a0and\u2028more",
    "0 12 345 6789 1,234.56 2026-11-30 x2",
    "It's don't WE'LL Ünïcödé naïve cafe\u0301 ﬁ ½ ²",
    "日本語と中文 한국어 русский العربية हिन्दी",
    "🙂🙂 👩\u200d👩\u200d👧 🇩🇪 𝔞𝔟",
    'def f(x):\n    """Doc."""\n    return {"a": [x ** 2, -1]}  # <b>html</b> </s>?\n',
)


def check_tokenizer(folder: Path) -> str:
    """Return which files of a folder its tokenizer is read from; say where transformers would make other tokens.

    Raises
    ------
    InputError
        They cannot be read.
    """
    read_facts(folder)
    if not (folder / WHOLE).is_file() and read_sentencepiece(folder) is not None:
        return ", ".join(path.name for path in tokenizer_files(folder) if path.suffix == ".model")
    if not (folder / WHOLE).is_file():
        made = made_by_transformers(folder)
        names = ", ".join(path.name for path in tokenizer_files(folder))
        return f"{names}, by transformers as {type(made).__name__}"
    own = read_whole(folder)
    try:
        other = made_by_transformers(folder)
    except InputError as error:
        LOG.info("%s: read from %s itself; transformers cannot make it: %s", folder, WHOLE, error.__cause__)
        return WHOLE
    for text in PROBES:
        ids = own.encode(text, add_special_tokens=False).ids
        theirs = other(text, add_special_tokens=False, verbose=False)["input_ids"]
        if ids != theirs:
            LOG.warning(
                "%s: transformers would make other tokens of it as %s (%r becomes %r, not %r); those of the file are "
                "taken",
                folder / WHOLE,
                type(other).__name__,
                text,
                other.convert_ids_to_tokens(theirs),
                [own.id_to_token(number) for number in ids],
            )
            break
    return WHOLE
