"""A model of the config in a folder, built by transformers from its own code, without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from id_scaling.errors import InputError, shortened
from id_scaling.sources.config_checks import check_values
from id_scaling.sources.model_config import read_config


def built(settings: Path, device: str, **options: Any) -> Any:
    """Return a model of the config in a folder, on a device: on `meta` its tensors have shapes alone.

    Raises
    ------
    InputError
        transformers cannot build it without code that comes with it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    check_values(read_config(settings), settings / "config.json")
    try:
        config = AutoConfig.from_pretrained(settings, trust_remote_code=False)
        with torch.device(device):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
    # Whatever a config that someone else wrote makes of the architecture's own code.
    except Exception as error:
        raise InputError(f"{settings}: {_unbuildable(settings, error)}") from error


def _unbuildable(settings: Path, error: Exception) -> str:
    """Return what to say of a model that transformers cannot build by itself."""
    config = read_config(settings)
    if "auto_map" in config:
        return (
            "the model is made by Python code that comes with it, which is never run; name one of an architecture that "
            "transformers has, or convert it to one"
        )
    keys = sorted(key for key, value in config.items() if isinstance(error, KeyError) and error.args == (value,))
    place = f"{' or '.join(keys)}: found {error.args[0]!r}, which transformers does not know" if keys else ""
    words = place or shortened(f"{type(error).__name__}: {error}")
    return f"transformers cannot build this model ({words}); correct config.json, or fetch or save the model again"
