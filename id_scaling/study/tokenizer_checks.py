"""Whether the tokenizers of a study do what it asks of them, by their files on disk, before any job.

Of those that are yet to be fetched the jobs that fetch them say the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from id_scaling.errors import InputError
from id_scaling.sources.file_hashes import FOLDER, FileHashes
from id_scaling.sources.models import known_identity
from id_scaling.sources.tokenizers import check_same_tokenizer
from id_scaling.storage.layout import identity_path, slug
from id_scaling.storage.tokenizers import check_readable, tokenizer_digest, tokenizer_files

if TYPE_CHECKING:
    from id_scaling.study.study import Study


def check_tokenizers(study: Study) -> None:
    """Raise an InputError where a tokenizer on disk is not one for the study.

    It cannot be read; it lacks the token that contexts are to start with; a text can become a token that the model does
    not know; or it is not the same for all checkpoints of a model.
    """
    for name, model in study.models.items():
        if study.is_own_tokenizer(model):
            _check_same(study, name)
    is_loaded = study.config.add_bos == "always" or any(study.allow_special_tokens)
    for tokenizer in study.tokenizers:
        users = [model for model in study.models if study.tokenizer_of(model) == tokenizer]
        sizes = {(model, one): size for model in users for one, size in _known_sizes(study, model).items()}
        folder, fetched = _on_disk(study, tokenizer, is_needed=is_loaded or bool(sizes))
        if folder is None:
            continue
        n_tokens = fetched["n_tokens"] if fetched and "n_tokens" in fetched else check_readable(folder)
        _check_use(study, folder, n_tokens, sizes, is_loaded)


def _check_use(study: Study, folder: Path, n_tokens: int, sizes: dict[tuple[str, str], int], is_loaded: bool) -> None:
    """Check the start of contexts, and the tokens against the sizes of vocabularies by model and checkpoint."""
    larger = {key: size for key, size in sizes.items() if size < n_tokens}
    if not is_loaded and not larger:
        return
    # numpy and what reads texts.
    from id_scaling.text.token_range import check_range, check_start

    if is_loaded:
        check_start(folder, study.config.add_bos, study.allow_special_tokens)
    checked: set[int] = set()
    for (model, checkpoint), size in larger.items():
        try:
            if size not in checked:
                check_range(folder, size, study.config.add_bos, n_tokens)
        except InputError as error:
            raise InputError(f"{study.models[model].model_name} at {checkpoint}: {error}") from None
        checked.add(size)


def _on_disk(study: Study, tokenizer: str, is_needed: bool) -> tuple[Path | None, dict[str, Any] | None]:
    """Return the folder of a tokenizer, None where it is not on disk; and its identity, where that is still of it."""
    path = identity_path(Path(study.session), "tokenizers", tokenizer)
    source, fetched = study.tokenizer_source(tokenizer), known_identity(path)
    folder = source.folder()
    if folder is not None:
        if not tokenizer_files(folder):  # one that is yet to be made here
            return None, None
        is_same = fetched is not None and fetched["sha256"] == tokenizer_digest(folder)
        return folder, fetched if is_same else None
    if fetched is not None:
        folder = source.fetched_folder(fetched, path)
        return (folder, fetched) if folder.is_dir() else (None, None)
    # Where the hub's cache is takes half a second to find out.
    cached = source.cached_folder() if is_needed else None
    return (cached if cached and tokenizer_files(cached) else None), None


def _known_sizes(study: Study, model: str) -> dict[str, int]:
    """Return how many tokens each checkpoint of a model knows of which that is known."""
    sizes = {}
    for checkpoint in study.models[model].model_checkpoint:
        architecture = study.model_source(model, checkpoint).architecture()
        fetched = known_identity(study.identity_path(model, slug(checkpoint))) if architecture is None else None
        if architecture is not None:
            sizes[checkpoint] = architecture.vocab_size
        elif fetched is not None:
            sizes[checkpoint] = fetched["architecture"]["vocab_size"]
    return sizes


def _check_same(study: Study, model: str) -> None:
    """Raise an InputError where a checkpoint on disk has another tokenizer than its model."""
    hashes, of_model = FileHashes(Path(study.session) / FOLDER), study.models[model]
    for checkpoint in of_model.model_checkpoint:
        source = study.model_source(model, checkpoint)
        folder = None if source.is_made else source.folder()
        if folder is not None:
            check_same_tokenizer(folder, of_model.model_name, checkpoint, hashes.sha256)
