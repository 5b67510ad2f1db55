"""What of a model folder is read, whoever made it: plain tensors and settings, and no code.

Weights are read from safetensors. Pickled ones, which can name any function to be called, are read only of a model
whose entry in the study says so, and then as torch reads them with `weights_only`. Python files of a model
are never imported. What is hashed in an identity is exactly what is loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from id_scaling.errors import InputError
from id_scaling.runtime.atomic_files import read_json

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"


def weight_files(folder: Path, allow_pickle: bool = False) -> list[Path]:
    """Return the files that transformers loads a checkpoint's weights from: safetensors, or else pickled if allowed.

    Raises
    ------
    InputError
        There are none, or an index names other files than weights in its folder.
    """
    held = {path.name for path in folder.glob("*") if path.is_file()}
    return [folder / name for name in weight_names(folder, held, allow_pickle)]


def weight_names(folder: Path, held: Collection[str], allow_pickle: bool = False) -> list[str]:
    """Return the names of those files, of a folder that holds `held`, or will once they are downloaded."""
    names = _names_of(folder, SAFE, held) or (_names_of(folder, PICKLED, held) if allow_pickle else [])
    if not names:
        raise InputError(f"{folder}: found no {SAFE} nor an index of its shards; {_instead(held, allow_pickle)}")
    return names


def is_pickled(names: Iterable[str]) -> bool:
    """Return whether weight files of these names are pickled."""
    return any(name.endswith(Path(PICKLED).suffix) for name in names)


def check_settings(folder: Path, config: dict[str, Any]) -> None:
    """Raise an InputError when a model folder has its weights or its code from elsewhere than its weight files."""
    for key, value in _settings(config):
        if key == "transformers_weights":
            raise InputError(f"{folder}: its config.json names weights in another file ({key}); save the model again")
        if "implementation" in key and "/" in str(value):
            raise InputError(f"{folder}: its config.json asks for code from the hub ({key}: {value}); remove that key")
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder}: holds an adapter; merge it into the weights (merge_and_unload) and save the model")


def _settings(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of a model's config, and of the configs in it."""
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict):
            yield from _settings(value)


def _names_of(folder: Path, whole: str, held: Collection[str]) -> list[str]:
    """Return the names of weights saved as one file of this name, or as shards that an index names."""
    index = folder / f"{whole}.index.json"
    if whole in held:
        return [whole]
    return _listed(index, Path(whole).suffix, held) if index.is_file() else []


def _listed(index: Path, suffix: str, held: Collection[str]) -> list[str]:
    """Return the shards that an index names, once they are known to be weight files beside it."""
    try:
        names = sorted({str(name) for name in read_json(index)["weight_map"].values()})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{index}: no index of weights ({error!r}); fetch or save it again") from error
    for name in names:
        if Path(name).name != name or Path(name).suffix != suffix or name not in held:
            raise InputError(f"{index}: found {name!r}, expected a {suffix} file beside it; fetch or save it again")
    return names


def _instead(held: Collection[str], allow_pickle: bool) -> str:
    """Return what to do about a folder without safetensors."""
    if allow_pickle or not any(name.endswith(".bin") for name in held):
        return "fetch or save the model again"
    return (
        "pickled weights (*.bin) can run code and are not read: convert them with transformers' save_pretrained, or, "
        "if who made them is to be trusted, set allow_pickle: true in this model's model_config"
    )
