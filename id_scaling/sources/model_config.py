"""What a model folder says of its model, without loading weights and without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from id_scaling.errors import ConfigError, InputError, shortened
from id_scaling.models.modules import Site, SiteRequest, resolve_sites
from id_scaling.runtime.atomic_files import digest
from id_scaling.sources.config_checks import check_values

_N_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_WIDTH = ("hidden_size", "n_embd", "d_model")
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "context_length")


@dataclass(frozen=True)
class Architecture:
    """The facts of a model that decide whether a study can run on it.

    Parameters
    ----------
    model_type : str
        The architecture's name in transformers.
    n_layers, width, vocab_size : int
        Blocks, dimension of the residual stream, tokens of the vocabulary.
    max_positions : int or None
        Longest context; None where the architecture has no such bound.
    """

    model_type: str
    n_layers: int
    width: int
    vocab_size: int
    max_positions: int | None


def read_architecture(folder: Path) -> Architecture:
    """Return the architecture that a folder's `config.json` states.

    Raises
    ------
    InputError
        No `config.json`, or one without a field this needs.
    """
    return architecture_of(read_config(folder), Path(folder) / "config.json")


def architecture_of(config: dict[str, Any], path: Path) -> Architecture:
    """Return the architecture that a model's config states; raises an InputError that names `path` for one without."""
    check_values(config, path)
    model_type = _field(config, ("model_type",), path, str)
    if "text_config" in config:
        config = _completed(config["text_config"], path)
    return Architecture(
        model_type=model_type,
        n_layers=_field(config, _N_LAYERS, path, int),
        width=_field(config, _WIDTH, path, int),
        vocab_size=_field(config, ("vocab_size",), path, int),
        max_positions=next((config[key] for key in _POSITIONS if isinstance(config.get(key), int)), None),
    )


def check_request(request: SiteRequest, ctx_len: int, architecture: Architecture) -> list[Site]:
    """Return the sites a request means; raise a ConfigError when the model lacks a layer or the positions."""
    if architecture.max_positions is not None and ctx_len > architecture.max_positions:
        raise ConfigError(
            f"ctx_len: found {ctx_len}, but the model has {architecture.max_positions} positions; "
            f"use a ctx_len of at most {architecture.max_positions}"
        )
    return resolve_sites(request, architecture.model_type, architecture.n_layers)


def read_config(folder: Path) -> dict[str, Any]:
    """Return what a model folder's `config.json` says, infinities and NaN as text.

    Raises
    ------
    InputError
        There is none, or it is no JSON object.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: found no config.json, expected a model folder as transformers saves it")
    try:
        config = json.loads(path.read_text(), parse_constant=str)
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path}: not JSON ({shortened(str(error))}); fetch or save it again") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: found {type(config).__name__}, expected the config of a causal language model")
    return config


def _completed(config: Any, path: Path) -> dict[str, Any]:
    """Return the config of a language model inside another one, with what it leaves to its architecture's defaults."""
    from transformers import AutoConfig

    model_type = _field(config, ("model_type",), path, str)
    try:
        options = {key: value for key, value in config.items() if key != "model_type"}
        return AutoConfig.for_model(model_type, **options).to_dict()
    except Exception as error:  # code for configs of others may raise anything: it becomes words
        words = shortened(f"{type(error).__name__}: {error}")
        raise InputError(f"{path}: text_config is not one that transformers knows ({words}); fetch it again") from error


def config_digest(folder: Path) -> str:
    """Return the content hash of what a folder's `config.json` says of the model, whoever wrote it."""
    config = read_config(folder)
    return digest({key: value for key, value in config.items() if key not in ("transformers_version", "_name_or_path")})


def _field(config: Any, keys: tuple[str, ...], path: Path, kind: type) -> Any:
    """Return the first of `keys` that a model's config has with a value of this kind."""
    for key in keys:
        if isinstance(config, dict) and isinstance(config.get(key), kind) and not isinstance(config[key], bool):
            return config[key]
    raise InputError(f"{path}: found none of {', '.join(keys)}, expected the config of a causal language model")
