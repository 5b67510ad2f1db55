"""Fetching a checkpoint of a model: its files on this machine, and the identity that is written of them.

A model becomes one small `identity.json`, as a tokenizer does in `sources.tokenizers` and a shard in
`sources.datasets`, which says where the files are and what they hold. Later stages depend on that file alone. Compute
nodes need no network.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from id_scaling.errors import InputError, StoreError
from id_scaling.models.modules import SiteRequest
from id_scaling.runtime.atomic_files import digest, sha256
from id_scaling.runtime.locks import leased
from id_scaling.runtime.logging import LOG
from id_scaling.sources.base import WEIGHTS_FOLDER, resolve_model
from id_scaling.sources.file_hashes import FileHashes
from id_scaling.sources.hub_client import commit_of
from id_scaling.sources.model_checks import check_built, check_model
from id_scaling.sources.model_config import check_request, config_digest, read_architecture, read_config
from id_scaling.sources.safe_files import check_settings, is_pickled, weight_files
from id_scaling.sources.tokenizers import check_same_tokenizer, folder_with_tokenizer
from id_scaling.storage.records import read_record, write_record
from id_scaling.storage.tokenizers import tokenizer_digest, tokenizer_files


def fetch_model(
    model_name: str,
    checkpoint: str,
    request: SiteRequest,
    ctx_len: int,
    output: Path,
    allow_pickle: bool = False,
    others: Sequence[Path] = (),
    settings: Mapping[str, Any] | None = None,
    check_own: Callable[[Path, int], None] | None = None,
) -> None:
    """Fetch a checkpoint, check that the study can run on it, and write its identity.

    Parameters
    ----------
    others : sequence of Path
        Identities that checkpoints with other weights than this one have, or will have.
    settings : mapping
        Of the job; the identity keeps them.
    check_own : callable, optional
        Checks the folder of its own tokenizer against the number of tokens that the model knows; None where text is cut
        by that of another model.

    Raises
    ------
    InputError
        The model or the checkpoint is missing, gated, in pickled weights that are not allowed, or has the weights of
        another checkpoint.
    ConfigError
        The model lacks a layer, module or the positions that the study asks for.
    """
    names, hashes = {"model_name": model_name, "checkpoint": checkpoint}, FileHashes.of_session(output)
    source = resolve_model(model_name, checkpoint)

    def check_config(folder: Path) -> None:
        check_settings(folder, read_config(folder))
        check_request(request, ctx_len, read_architecture(folder))

    folder = source.fetch(output.parent / WEIGHTS_FOLDER, check_config)
    headers = check_model(folder, request, ctx_len, allow_pickle, has_weights=not source.is_remote)
    weights = source.weight_hashes(folder, allow_pickle, hashes.sha256)
    if source.is_remote:
        check_unlike({**names, "commit": folder.name, "weights_sha256": digest(weights)}, others)
        headers = source.weight_headers(folder, weights)
    model, architecture = check_built(folder, request, headers), read_architecture(folder)
    with_tokenizer = folder_with_tokenizer(folder, model_name)
    if check_own is not None and tokenizer_files(with_tokenizer):
        if not source.is_made:
            check_same_tokenizer(folder, model_name, checkpoint, hashes.sha256)
        check_own(with_tokenizer, architecture.vocab_size)
    if is_pickled(weights):
        LOG.warning("%s: pickled weights, as allow_pickle says; they can run code of whoever made them", min(weights))
    identity = {
        **names,
        "settings": dict(settings or {}),
        "path": None if source.is_remote else str(folder.resolve()),  # remote weights come later
        "source_sha256": source.source_sha256(hashes.sha256),
        "commit": commit_of(folder),
        "architecture": asdict(architecture),
        "n_parameters": model.n_parameters,
        "weights": weights,
        "weights_sha256": digest(weights),
        "is_pickled": is_pickled(weights),
        "config_sha256": config_digest(folder),
        "tokenizer_sha256": tokenizer_digest(with_tokenizer, hashes.sha256),
    }
    # One at a time, so that of two that are fetched at once the second sees the first.
    with leased(Path(os.path.commonpath([output, *others]))) if others else contextlib.nullcontext():
        check_unlike(identity, others)
        write_record(output, identity)
    place = "the hub" if source.is_remote else folder
    LOG.info("%s %s: weights %s in %s", model_name, checkpoint, digest(weights), place)


def weights_folder_of(identity_path: Path) -> Path | None:
    """Return the folder that holds the weights of an identity now; None where they are remote."""
    identity = read_record(identity_path)
    return resolve_model(identity["model_name"], identity["checkpoint"]).weights_folder(identity_path)


def check_unlike(identity: Mapping[str, Any], others: Sequence[Path]) -> None:
    """Raise an InputError when a checkpoint has the weights of another one, as far as others are known."""
    for other in filter(None, map(known_identity, others)):
        is_same = identity["weights_sha256"] == other["weights_sha256"]
        if is_same and _is_as_fetched(identity) and _is_as_fetched(other):
            raise InputError(
                f"{_called(identity)}: its weights are, to the last bit, those of {_called(other)}; leave one of "
                "them out, or set allow_identical_checkpoints: true to go on with both"
            )


def known_identity(path: Path) -> dict[str, Any] | None:
    """Return the identity of something fetched; None where it is yet to be fetched, or to be made anew."""
    try:
        return read_record(path)
    except (StoreError, FileNotFoundError):  # the latter of one that is being removed
        return None


def _is_as_fetched(identity: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint still has the weights that its identity says, as a commit does, or has none."""
    if identity["commit"] or not Path(identity["path"]).is_dir():
        return True
    files = weight_files(Path(identity["path"]), identity["is_pickled"])
    return digest({path.name: sha256(path) for path in files}) == identity["weights_sha256"]


def _called(identity: Mapping[str, Any]) -> str:
    """Return what a checkpoint is called in messages."""
    return f"{identity['model_name']} at {identity['checkpoint']}"
