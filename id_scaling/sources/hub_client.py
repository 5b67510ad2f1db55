"""The Hugging Face hub: what is read of a repository, and no more, into the hub's own cache on this machine.

A branch or a tag is resolved to a commit once, when its settings are downloaded; all else is asked for by that commit.
"""

from __future__ import annotations

import difflib
import glob
import re
import shutil
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from id_scaling.errors import InputError, of_a_disk
from id_scaling.runtime.atomic_files import sha256
from id_scaling.runtime.logging import LOG
from id_scaling.sources.safe_files import weight_files, weight_names
from id_scaling.sources.weight_headers import Stored, read_header

T = TypeVar("T")

# Config, tokenizer and the indices of shards, beside each other; folders in a repository hold other formats of it.
SETTINGS, IN_FOLDERS = ["*.json", "*.model", "*.txt"], "*/*"
WEIGHTS = (".safetensors", ".bin")
MOST_SHOWN = 20


def download_settings(repository: str, revision: str) -> Path:
    """Return the folder of a revision, named by its commit, with everything but the weights."""
    from huggingface_hub import snapshot_download

    def download() -> str:
        return snapshot_download(repository, revision=revision, allow_patterns=SETTINGS, ignore_patterns=IN_FOLDERS)

    return Path(_call(download, repository, revision))


def cached_settings(repository: str, revision: str) -> Path | None:
    """Return the folder of a revision in the hub's cache, without asking the hub; None where it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=SETTINGS, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def weight_bytes(repository: str, folder: Path, allow_pickle: bool) -> int:
    """Return the size of the weight files of a commit."""
    held = {one.rfilename: one.size or 0 for one in _files_of(repository, folder)}
    return sum(held[name] for name in weight_names(folder, held, allow_pickle))


def weight_hashes(repository: str, folder: Path, allow_pickle: bool) -> dict[str, str | None]:
    """Return name and SHA-256 of the weight files of a commit, before they are downloaded.

    The hub knows the hash of every large file; it is None for a small one, and where the hub is out of reach and
    the weights are in the cache.
    """
    try:
        held = {one.rfilename: one.lfs and one.lfs.sha256 for one in _files_of(repository, folder)}
    except InputError as out_of_reach:
        try:
            return dict.fromkeys(path.name for path in weight_files(folder, allow_pickle))
        except InputError:
            raise out_of_reach from None
    return {name: held[name] for name in weight_names(folder, held, allow_pickle)}


def weight_headers(repository: str, folder: Path, names: Iterable[str]) -> dict[str, Stored]:
    """Return the tensors in the safetensors files of a commit, of those not in the cache by their headers only."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    tensors: dict[str, Stored] = {}
    for name in (name for name in names if name.endswith(".safetensors")):
        if (folder / name).is_file():
            tensors |= read_header(folder / name)
            continue
        ask = partial(HfApi().parse_safetensors_file_metadata, repository, name, revision=folder.name)
        try:
            header = _call(ask, repository, folder.name)
        except SafetensorsParsingError as error:
            raise InputError(
                f"model {repository} at {folder.name}: {name}: not a safetensors file ({error})"
            ) from error
        tensors |= {tensor: Stored(str(one.dtype), tuple(one.shape)) for tensor, one in header.tensors.items()}
    return tensors


def _files_of(repository: str, folder: Path) -> list[Any]:
    """Return what the hub says of each file of a commit."""
    from huggingface_hub import HfApi

    def ask() -> list[Any]:
        return HfApi().model_info(repository, revision=folder.name, files_metadata=True).siblings or []

    return _call(ask, repository, folder.name)


def download_weights(repository: str, folder: Path, names: Collection[str], output: Path, keep: bool) -> None:
    """Put the files of these names and the settings of a commit's folder into another: links to those in the cache.

    Those not in the cache are downloaded to it when they are to be kept, and else to `output` itself.
    """
    from huggingface_hub import snapshot_download

    if keep:
        download_to_cache(repository, folder, names)
    missing = [name for name in names if not (folder / name).is_file()]
    output.mkdir(parents=True, exist_ok=True)

    def download() -> str:
        wanted = list(map(glob.escape, missing))
        return snapshot_download(repository, revision=folder.name, allow_patterns=wanted, local_dir=output)

    if missing:
        _call(download, repository, folder.name)
    shutil.rmtree(output / ".cache", ignore_errors=True)  # the client's own notes
    for path in folder.iterdir():
        if path.is_file() and (path.suffix not in WEIGHTS or path.name in names):
            (output / path.name).unlink(missing_ok=True)
            (output / path.name).symlink_to(path.resolve())


def download_to_cache(repository: str, folder: Path, names: Iterable[str]) -> None:
    """Download the files of these names into the folder of a commit, in the hub's cache."""
    from huggingface_hub import snapshot_download

    def download() -> str:
        return snapshot_download(repository, revision=folder.name, allow_patterns=list(map(glob.escape, names)))

    _call(download, repository, folder.name)


def download_shard(repository: str, pick: Callable[[list[str]], str]) -> tuple[Path, str]:
    """Return the file that `pick` names of those of a dataset, and the commit it is of.

    Where the hub is out of reach, the files are those that the hub's cache knows of the commit that `main` was last.
    """
    from huggingface_hub import HfApi, snapshot_download

    def ask() -> list[str]:
        return [one.rfilename for one in HfApi().dataset_info(repository).siblings or []]

    try:
        names = _call(ask, repository, "main", "dataset")
    except InputError as out_of_reach:
        names = _cached_names(repository)
        if not names:
            raise out_of_reach
    name = pick(names)

    def download() -> str:
        return snapshot_download(repository, repo_type="dataset", allow_patterns=[glob.escape(name)])

    folder = Path(_call(download, repository, "main", "dataset"))
    if not (folder / name).is_file():
        raise InputError(
            f"dataset {repository} at main: {name} is not in the local cache; run where there is a network"
        )
    return folder / name, folder.name


def _cached_names(repository: str) -> list[str]:
    """Return the files that a dataset has by the hub's cache; none where it knows nothing of it."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, repo_type="dataset", allow_patterns=[], local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return []
    try:
        return [one.path for one in get_cached_repo_tree(repository, repo_type="dataset", revision=folder.name)]
    except CachedRepoTreeNotFoundError:
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        LOG.warning(
            "%s: the cache does not say what files it has; the %d in it are taken for all", repository, len(names)
        )
        return names


def stored_hash(path: Path) -> str | None:
    """Return the SHA-256 that the hub's cache names a large file by; None for a file that is not of it."""
    name = path.resolve().name
    return name if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", name) else None


def commit_of(folder: Path) -> str | None:
    """Return the commit of a folder in the hub's cache, which is named by it; None of any other folder."""
    return folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None


def verified_sha256(path: Path, hash_file: Callable[[Path], str] = sha256) -> str:
    """Return the SHA-256 of a weight file; raise an InputError where the hub's cache names it by another one."""
    content, expected = hash_file(path), stored_hash(path)
    if expected not in (None, content):
        raise InputError(f"{path}: damaged: its hash is not the hub's; remove {path.resolve()} and run again")
    return content


def _call(call: Callable[[], T], repository: str, revision: str, kind: str = "model") -> T:
    """Return what a call to the hub gives, or say what keeps it from that and what to do."""
    # The hub's client names the base error of whatever HTTP library it uses `HTTPError`.
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = f"{kind} {repository} at {revision}"
    try:
        return call()
    except GatedRepoError as error:
        raise InputError(
            f"{what}: access is gated; accept its terms at {_address(repository, kind)}, then `hf auth login` as who "
            "accepted them, or give their token in HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(f"{what}: {_no_revision(repository, revision, kind)}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise InputError(f"{what}: not in the local cache, and {_no_answer(error)}, or name a local folder") from error
    except (RepositoryNotFoundError, EntryNotFoundError, HFValidationError) as error:
        raise InputError(
            f"{what}: not on the hub, and not a folder here; check the spelling, or `hf auth login` if it is private"
        ) from error
    except (HTTPError, OSError, ValueError) as error:
        raise of_a_disk(error) or InputError(f"{what}: {_broken_off(error)}") from error


def _no_answer(error: Exception) -> str:
    """Return why the hub gave no answer, and what to do."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids to ask the hub; unset it where there is a network"
    return f"the hub gave no answer ({_cause(error)}); run where there is a network"


def _broken_off(error: Exception) -> str:
    """Return what to say of an answer that is none of those above, or that did not come to its end."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the hub refuses the token that it is given ({status}); `hf auth login` anew, or correct HF_TOKEN"
    return f"the hub did not answer to the end ({_cause(error)}); run again: files that came whole are kept"


def _no_revision(repository: str, revision: str, kind: str) -> str:
    """Return what to say of a revision that a repository does not have: those that it has, the nearest first."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        refs = HfApi().list_repo_refs(repository, repo_type=kind)
    except (HTTPError, OSError, ValueError):
        return f"the repository has no such revision; look at its branches and tags at {_address(repository, kind)}"
    names = {one.name for one in (*refs.branches, *refs.tags)}
    near = sorted(names, key=lambda name: (-difflib.SequenceMatcher(None, revision, name).ratio(), name))
    shown = ", ".join(near[:MOST_SHOWN]) + (", …" if len(near) > MOST_SHOWN else "")
    return f"the repository has no such revision; it has {len(near)}, the nearest first: {shown}"


def _address(repository: str, kind: str) -> str:
    """Return where to look at a repository."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'' if kind == 'model' else kind + 's/'}{repository}"


def _cause(error: BaseException) -> str:
    """Return what an error says first, of that which it was made from."""
    cause = error.__cause__ or error
    return ": ".join([type(cause).__name__, *str(cause).strip().splitlines()[:1]])
