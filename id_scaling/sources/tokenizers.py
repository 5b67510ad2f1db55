"""Fetching a tokenizer: its files on this machine, and the identity that is written of them.

The identity says from which files the tokenizer is read; where transformers would make other tokens, the log says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from id_scaling.errors import InputError
from id_scaling.runtime.atomic_files import sha256
from id_scaling.runtime.logging import LOG
from id_scaling.sources.base import TOKENIZER_FOLDER, resolve_tokenizer
from id_scaling.sources.file_hashes import FileHashes
from id_scaling.sources.hub_client import commit_of
from id_scaling.storage.records import write_record
from id_scaling.storage.tokenizers import (
    TOKENIZER_FILES,
    WHOLE,
    check_readable,
    made_by_transformers,
    read_facts,
    read_sentencepiece,
    read_whole,
    tokenizer_digest,
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


def fetch_tokenizer(
    model_name: str,
    output: Path,
    settings: Mapping[str, Any] | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write the identity of a model's own tokenizer, at its main revision.

    Parameters
    ----------
    settings : mapping
        Of the job; the identity keeps them.
    check : callable, optional
        Checks that the tokenizer in a folder does what a study asks of it.

    Raises
    ------
    InputError
        There is none, or it cannot be read.
    """
    source, hashes = resolve_tokenizer(model_name), FileHashes.of_session(output)
    folder = source.fetch(output.parent / TOKENIZER_FOLDER)
    if check is not None:
        check(folder)
    identity = {
        "model_name": model_name,
        "settings": dict(settings or {}),
        "path": str(folder.resolve()),
        "source_sha256": source.source_sha256(hashes.sha256),
        "commit": commit_of(folder),
        "sha256": tokenizer_digest(folder, hashes.sha256),
        "read_from": check_tokenizer(folder),
        "n_tokens": check_readable(folder),
    }
    write_record(output, identity)
    LOG.info("%s: tokenizer %s, read from %s", model_name, identity["sha256"], identity["read_from"])


def tokenizer_folder(identity: Mapping[str, Any], identity_path: Path) -> Path:
    """Return the folder that holds the tokenizer of an identity now: a session or a clone may have been moved."""
    return resolve_tokenizer(identity["model_name"]).fetched_folder(identity, identity_path)


def folder_with_tokenizer(folder: Path, model_name: str) -> Path:
    """Return a checkpoint's folder, or that of its model's tokenizer when it has none of its own."""
    if any((folder / name).is_file() for name in TOKENIZER_FILES):
        return folder
    source = resolve_tokenizer(model_name)
    try:
        own = source.folder()
    except InputError:
        return folder  # a model without a tokenizer runs with the one that `tokenizer` names
    return own or source.fetch(folder / TOKENIZER_FOLDER)


def check_same_tokenizer(
    folder: Path, model_name: str, checkpoint: str, hash_file: Callable[[Path], str] = sha256
) -> None:
    """Raise an InputError where a checkpoint's folder has a tokenizer that is not its model's, which cuts the text."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return
    source = resolve_tokenizer(model_name)
    own = source.folder() or source.fetch(folder / TOKENIZER_FOLDER)
    if own != folder and own.is_dir() and tokenizer_digest(own, hash_file) != tokenizer_digest(folder, hash_file):
        raise InputError(
            f"{model_name} at {checkpoint}: its tokenizer, in {folder}, is not the one in {own}, which cuts the text "
            "for all checkpoints of a model; study it in a session of its own, or name the tokenizer to use in "
            "model_config.tokenizer"
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
