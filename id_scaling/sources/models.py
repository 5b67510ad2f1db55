"""From a name to files on this machine, with an identity: the content hash of what was fetched.

A model and a tokenizer each become one small `identity.json`, as a shard does in `sources.datasets`, which says where
the files are and what they hold. Later stages depend on that file alone. Compute nodes need no network.

A model name is a folder, a GGUF file, an embedded model, or a repository of the Hugging Face hub; a checkpoint is
`main`, a folder inside the model's folder, a revision of the repository, or `random-init`: weights not yet trained.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from id_scaling.errors import InputError, StoreError, nearest
from id_scaling.models.modules import Site, SiteRequest, check_paths, resolve_sites
from id_scaling.runtime.atomic_files import digest, sha256, writing_folder
from id_scaling.runtime.locks import leased
from id_scaling.runtime.logging import LOG
from id_scaling.sources import bundled, hub
from id_scaling.sources.cache import RESOURCES
from id_scaling.sources.config_checks import check_layers
from id_scaling.sources.derived import check_split, gguf_model, gguf_settings, is_derived, is_gguf, untrained
from id_scaling.sources.file_hashes import FileHashes
from id_scaling.sources.meta_model import MetaModel, inspect
from id_scaling.sources.model_config import (
    check_request,
    config_digest,
    read_architecture,
    read_config,
)
from id_scaling.sources.safe_files import check_settings, is_pickled, weight_files
from id_scaling.sources.tokenizers import check_tokenizer
from id_scaling.sources.untrained import seed_of
from id_scaling.sources.weight_headers import Stored, modules_of, read_headers
from id_scaling.storage.records import read_record, write_record
from id_scaling.storage.tokenizers import TOKENIZER_FILES, check_readable, tokenizer_digest, tokenizer_files

# Beside the identity of a checkpoint that is made here: its weights.
WEIGHTS_FOLDER = "weights"


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
    folder = model_folder(model_name, checkpoint)
    if is_derived(model_name, checkpoint):
        folder = _derived(names, request, ctx_len, output.parent / WEIGHTS_FOLDER)
    if folder is None:
        config_folder, weights, headers = _from_hub(names, request, ctx_len, allow_pickle, others)
    else:
        config_folder, headers = folder, check_model(folder, request, ctx_len, allow_pickle)
        weights = {path.name: _content_hash(path, hashes) for path in weight_files(folder, allow_pickle)}
    model, architecture = check_built(config_folder, request, headers), read_architecture(config_folder)
    with_tokenizer = _with_tokenizer(config_folder, model_name)
    if check_own is not None and tokenizer_files(with_tokenizer):
        if not is_derived(model_name, checkpoint):
            check_same_tokenizer(config_folder, model_name, checkpoint, hashes.sha256)
        check_own(with_tokenizer, architecture.vocab_size)
    if is_pickled(weights):
        LOG.warning("%s: pickled weights, as allow_pickle says; they can run code of whoever made them", min(weights))
    identity = {
        **names,
        "settings": dict(settings or {}),
        "path": folder and str(folder.resolve()),  # None for one of the hub, whose weights come later
        "source_sha256": source_content(model_name, checkpoint, hashes.sha256),
        "commit": _commit(config_folder),
        "architecture": asdict(architecture),
        "n_parameters": model.n_parameters,
        "weights": weights,
        "weights_sha256": digest(weights),
        "is_pickled": is_pickled(weights),
        "config_sha256": config_digest(config_folder),
        "tokenizer_sha256": tokenizer_digest(with_tokenizer, hashes.sha256),
    }
    # One at a time, so that of two that are fetched at once the second sees the first.
    with leased(Path(os.path.commonpath([output, *others]))) if others else contextlib.nullcontext():
        check_unlike(identity, others)
        write_record(output, identity)
    LOG.info("%s %s: weights %s in %s", model_name, checkpoint, digest(weights), folder or "the hub")


def _derived(names: Mapping[str, str], request: SiteRequest, ctx_len: int, folder: Path) -> Path:
    """Make a checkpoint here, once it is known to be of use; return its folder."""
    model_name, seed = names["model_name"], seed_of(names["checkpoint"])
    with TemporaryDirectory() as aside:
        settings = settings_folder(model_name, names["checkpoint"], Path(aside))
        check_settings(settings, read_config(settings))
        check_request(request, ctx_len, read_architecture(settings))
        if seed is None:
            gguf_model(gguf_file(model_name, names["checkpoint"]), folder)
        else:
            untrained(settings, seed, folder)
    return folder


def _from_hub(
    names: Mapping[str, str], request: SiteRequest, ctx_len: int, allow_pickle: bool, others: Sequence[Path]
) -> tuple[Path, dict[str, str], dict[str, Stored]]:
    """Return the folder of a checkpoint's settings, its weights by name and hash, and the tensors in them.

    The hub knows the hashes of large files; only where it does not say one, the files are downloaded for theirs. Of
    safetensors not in the cache the headers alone are read.
    """
    repository = names["model_name"]
    folder = hub.download_settings(repository, names["checkpoint"])
    check_model(folder, request, ctx_len, has_weights=False)
    weights = hub.weight_hashes(repository, folder, allow_pickle)
    if not all(weights.values()):
        hub.download_to_cache(repository, folder, weights)
    hashes = {name: known or _content_hash(folder / name) for name, known in weights.items()}
    check_unlike({**names, "commit": folder.name, "weights_sha256": digest(hashes)}, others)
    return folder, hashes, hub.weight_headers(repository, folder, weights)


def check_same_tokenizer(
    folder: Path, model_name: str, checkpoint: str, hash_file: Callable[[Path], str] = sha256
) -> None:
    """Raise an InputError where a checkpoint's folder has a tokenizer that is not its model's, which cuts the text."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return
    own = local_tokenizer_folder(model_name) or hub.download_settings(model_name, "main")
    if own != folder and own.is_dir() and tokenizer_digest(own, hash_file) != tokenizer_digest(folder, hash_file):
        raise InputError(
            f"{model_name} at {checkpoint}: its tokenizer, in {folder}, is not the one in {own}, which cuts the text "
            "for all checkpoints of a model; study it in a session of its own, or name the tokenizer to use in "
            "model_config.tokenizer"
        )


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


def _content_hash(path: Path, hashes: FileHashes | None = None) -> str:
    """Return the hash of a weight file, once it is known to be the one that the hub has of it."""
    found, expected = (hashes.sha256 if hashes else sha256)(path), hub.stored_hash(path)
    if expected not in (None, found):
        raise InputError(f"{path}: damaged: its hash is not the hub's; remove {path.resolve()} and run again")
    return found


def weights_folder_of(identity_path: Path) -> Path | None:
    """Return the folder that holds the weights of an identity now, None of one of the hub.

    It is found by the model's name, as a session or a clone may have been moved since it was fetched.
    """
    identity = read_record(identity_path)
    name, checkpoint = identity["model_name"], identity["checkpoint"]
    if is_derived(name, checkpoint):
        return identity_path.parent / WEIGHTS_FOLDER
    return model_folder(name, checkpoint)


def tokenizer_folder(identity: Mapping[str, Any], identity_path: Path) -> Path:
    """Return the folder that holds the tokenizer of an identity now, as `weights_folder_of`."""
    if is_gguf(identity["model_name"]):
        return identity_path.parent / "tokenizer"
    return local_tokenizer_folder(identity["model_name"]) or Path(identity["path"])


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
    folder = _tokenizer_folder(model_name, output.parent / "tokenizer")
    hashes = FileHashes.of_session(output)
    if is_gguf(model_name):
        check_split(gguf_file(model_name, "main"), folder)
    if check is not None:
        check(folder)
    identity = {
        "model_name": model_name,
        "settings": dict(settings or {}),
        "path": str(folder.resolve()),
        "source_sha256": hashes.sha256(gguf_file(model_name, "main")) if is_gguf(model_name) else None,
        "commit": _commit(folder),
        "sha256": tokenizer_digest(folder, hashes.sha256),
        "read_from": check_tokenizer(folder),
        "n_tokens": check_readable(folder),
    }
    write_record(output, identity)
    LOG.info("%s: tokenizer %s, read from %s", model_name, identity["sha256"], identity["read_from"])


def settings_folder(model_name: str, checkpoint: str, aside: Path) -> Path:
    """Return a folder with the config of a checkpoint: its own, or `aside` with it where it has none yet.

    Of the hub's files its settings alone are downloaded; untrained weights are of the architecture of `main`.
    """
    if is_gguf(model_name):
        with gguf_settings(gguf_file(model_name, checkpoint)) as settings:
            shutil.copy(settings / "config.json", aside)
        return aside
    revision = checkpoint if seed_of(checkpoint) is None else "main"
    folder = model_folder(model_name, checkpoint) or hub.download_settings(model_name, revision)
    if model_name in bundled.MODELS and not (folder / "config.json").is_file():
        (aside / "config.json").write_text(json.dumps(bundled.config_of(model_name)))
        return aside
    return folder


# ---- what can be known without a network, before any job ------------------------------------------------------


def looks_local(name: str) -> bool:
    """Return whether a name can only be a path."""
    return name.startswith((".", "/", "~")) or os.path.exists(name)


def expanded(name: str) -> Path:
    """Return a path with `~` replaced by the home folder it means."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise InputError(f"{name}: there is no such user; expected a path") from error


def gguf_file(model_name: str, checkpoint: str) -> Path:
    """Return the GGUF file of this name.

    Raises
    ------
    InputError
        There is none, or the checkpoint is not `main`.
    """
    path = expanded(model_name)
    if not path.is_file():
        raise InputError(f"model_name: {path} is not a file; download it, or name the model that it was made from")
    if checkpoint != "main":
        raise InputError(f"model_checkpoint: {path} is one model, its checkpoint is 'main', found {checkpoint!r}")
    return path


def model_folder(model_name: str, checkpoint: str) -> Path | None:
    """Return the folder of a local or embedded checkpoint, None for a GGUF file and for one of the hub.

    Of untrained weights it is the folder whose architecture they are of: the model's own, or its first checkpoint's.

    Raises
    ------
    InputError
        The name is a path, and the model or the checkpoint is not there.
    """
    if is_gguf(model_name):
        gguf_file(model_name, checkpoint)
        return None
    is_untrained = seed_of(checkpoint) is not None
    if model_name in bundled.MODELS:
        first = bundled.checkpoints_of(model_name)[0]
        return _embedded_folder(model_name, first if is_untrained else checkpoint)
    if model_name == bundled.TRAINED_TOKENIZER:
        raise InputError(f"model_name: {model_name} is a tokenizer; its models are {', '.join(bundled.TRAINED)}")
    if not looks_local(model_name):
        return None
    root = expanded(model_name)
    if is_untrained:
        checkpoint = _first_with_config(root)
    folder = root if checkpoint == "main" else root / checkpoint
    if not os.path.isfile(folder / "config.json"):  # False for a name too long to be one too
        raise InputError(_missing_checkpoint(root, checkpoint))
    return folder


def _first_with_config(root: Path) -> str:
    """Return `main` where a model's folder has a config, or else its first checkpoint that has."""
    has_own = os.path.isfile(root / "config.json") or not os.path.isdir(root)
    return "main" if has_own else next((path.parent.name for path in sorted(root.glob("*/config.json"))), "main")


def _embedded_folder(model_name: str, checkpoint: str) -> Path:
    """Return the folder of a checkpoint of an embedded model, whether or not it is made yet."""
    checkpoints = bundled.checkpoints_of(model_name)
    if checkpoint not in checkpoints:
        listed = ", ".join(map(repr, checkpoints))
        raise InputError(
            f"model_checkpoint: {model_name} has {listed} alone, found {checkpoint!r}; name one it has, or random-init"
        )
    return RESOURCES / model_name if checkpoint == "main" else RESOURCES / model_name / checkpoint


def _missing_checkpoint(root: Path, checkpoint: str) -> str:
    """Return what to say of a local model or checkpoint that is not there."""
    if not os.path.isdir(root):
        return f"model_name: {root} is not a folder; expected a model folder or a hub name like 'owner/model'"
    found = sorted(path.parent.name for path in root.glob("*/config.json"))
    if checkpoint == "main" and found:
        return f"model_checkpoint: {root} holds checkpoints, not a model; choose from {', '.join(found[:20])}"
    hint = nearest(checkpoint, found) if found else "it has no checkpoint folders"
    where = root if checkpoint == "main" else root / checkpoint
    return f"model_checkpoint: found no config.json in {where}, expected a checkpoint folder; {hint}"


def model_content(
    model_name: str, checkpoint: str, allow_pickle: bool, hash_file: Callable[[Path], str]
) -> dict[str, str | None]:
    """Return the fields of a checkpoint's identity that follow from files on this machine, as the files are now.

    There are none for a checkpoint of the hub, for untrained weights of one, and for a bundled model that is yet to be
    made. Of a checkpoint that is made here it is what it is made of.
    """
    if is_derived(model_name, checkpoint):
        source = source_content(model_name, checkpoint, hash_file)
        return {} if source is None else {"source_sha256": source}
    folder = model_folder(model_name, checkpoint)
    if folder is None or not (folder / "config.json").is_file():
        return {}
    return {
        "weights_sha256": digest({path.name: hash_file(path) for path in weight_files(folder, allow_pickle)}),
        "config_sha256": config_digest(folder),
        "tokenizer_sha256": _local_tokenizer_digest(folder, model_name, hash_file),
    }


def source_content(model_name: str, checkpoint: str, hash_file: Callable[[Path], str]) -> str | None:
    """Return the hash of what a checkpoint is made of here: of a GGUF file, or of the config of untrained weights.

    None for any other, and where the config is the hub's or a bundled model's.
    """
    if is_gguf(model_name):
        return hash_file(gguf_file(model_name, checkpoint))
    folder = model_folder(model_name, checkpoint) if seed_of(checkpoint) is not None else None
    return None if folder is None or model_name in bundled.MODELS else config_digest(folder)


def _local_tokenizer_digest(folder: Path, model_name: str, hash_file: Callable[[Path], str]) -> str | None:
    """Return the content hash of the tokenizer of a local checkpoint; None where it is another one's, not made yet."""
    with_tokenizer = _with_tokenizer(folder, model_name)
    return tokenizer_digest(with_tokenizer, hash_file) if with_tokenizer.is_dir() else None


def tokenizer_content(model_name: str, hash_file: Callable[[Path], str]) -> dict[str, str | None]:
    """Return the fields of a tokenizer's identity that follow from files on this machine, as in `model_content`."""
    if is_gguf(model_name):
        return {"source_sha256": hash_file(gguf_file(model_name, "main"))}
    folder = local_tokenizer_folder(model_name)
    if folder is None or not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return {}
    return {"sha256": tokenizer_digest(folder, hash_file)}


# ---- what a folder holds --------------------------------------------------------------------------------------


def check_model(
    folder: Path, request: SiteRequest, ctx_len: int, allow_pickle: bool = False, has_weights: bool = True
) -> dict[str, Stored]:
    """Check a model by its config and the headers of its weight files only; return the tensors in its safetensors.

    Raises
    ------
    InputError
        The config or a weight file is damaged, impossible, or needs a package that is not installed.
    ConfigError
        The model lacks a layer, a module key or the positions that are asked for.
    """
    files = weight_files(folder, allow_pickle) if has_weights else []
    architecture = read_architecture(folder)
    check_settings(folder, read_config(folder))
    headers = read_headers(folder) if files and not is_pickled(path.name for path in files) else {}
    if headers:
        check_layers(architecture.n_layers, len(headers), folder / "config.json")
    check_request(request, ctx_len, architecture)
    return headers


def check_paths_of(folder: Path, request: SiteRequest, headers: Mapping[str, Stored]) -> None:
    """Raise a ConfigError where a module path that is given is not in the model.

    Paths of a preset are known to fit. Modules that hold tensors are known from the headers; only for others, and for
    models that may need code of their own, is the model built.
    """
    if request.mapping is None:
        return
    paths = {site.path for site in _sites(folder, request)}
    if "auto_map" in read_config(folder) or not paths <= modules_of(headers):
        check_built(folder, request, {})


def check_built(folder: Path, request: SiteRequest, headers: Mapping[str, Stored]) -> MetaModel:
    """Check a model as it is built, without reading or holding weights; return what is known of it then.

    Parameters
    ----------
    headers : mapping of str to Stored
        The tensors in its weight files; none where they are not known.

    Raises
    ------
    InputError
        transformers cannot build the model, or the tensors are not its own.
    ConfigError
        It lacks a module that is asked for.
    """
    model = inspect(folder, headers or None)
    check_paths(_sites(folder, request), model.modules)
    return model


def _sites(folder: Path, request: SiteRequest) -> list[Site]:
    """Return the sites that a request means in a model."""
    architecture = read_architecture(folder)
    return resolve_sites(request, architecture.model_type, architecture.n_layers)


def _with_tokenizer(folder: Path, model_name: str) -> Path:
    """Return a checkpoint's folder, or that of its model's tokenizer when it has none of its own."""
    if any((folder / name).is_file() for name in TOKENIZER_FILES):
        return folder
    try:
        own = local_tokenizer_folder(model_name)
    except InputError:
        return folder  # a model without a tokenizer runs with the one that `tokenizer` names
    return own or hub.download_settings(model_name, "main")


def _tokenizer_folder(model_name: str, aside: Path) -> Path:
    """Return a folder that holds a model's tokenizer, downloaded when it is on the hub, `aside` for a GGUF file's."""
    if is_gguf(model_name):
        with gguf_settings(gguf_file(model_name, "main")) as settings, writing_folder(aside) as whole:
            for path in (path for path in settings.iterdir() if path.name != "config.json"):
                shutil.copyfile(path, whole / path.name)
        return aside
    return local_tokenizer_folder(model_name) or hub.download_settings(model_name, "main")


def local_tokenizer_folder(model_name: str) -> Path | None:
    """Return a local or embedded model's folder that holds its tokenizer; None for a GGUF file and one of the hub.

    It is the model's own, or else that of its first checkpoint.

    Raises
    ------
    InputError
        The name is a path, and there is no tokenizer.
    """
    if is_gguf(model_name):
        gguf_file(model_name, "main")
        return None
    if (name := bundled.tokenizer_of(model_name)) in bundled.TOKENIZERS:
        return RESOURCES / name
    if not looks_local(model_name):
        return None
    root = expanded(model_name)
    checkpoints = sorted(path.parent for path in root.glob("*/config.json")) if os.path.isdir(root) else []
    for folder in (root, *checkpoints):
        if any(os.path.isfile(folder / name) for name in TOKENIZER_FILES):
            return folder
    raise InputError(
        f"{root}: found no tokenizer, expected one of {', '.join(TOKENIZER_FILES)} in it or in a checkpoint; or name a "
        "model that has one in model_config.tokenizer"
    )


def _commit(folder: Path) -> str | None:
    """Return the commit of a folder in the hub's cache, which is named by it."""
    return folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None
