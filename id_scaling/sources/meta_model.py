"""A model whose tensors have shapes and no values, held against the headers of its weight files.

It is built in a process of its own, of bounded memory and time: what a config that someone else wrote has the code of
an architecture do is not known before. Loading is left to transformers, which gets tensors on the `meta` device in
place of files, so that what is renamed, fused, tied or ignored is so as it is when the weights are loaded.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from id_scaling.errors import IdScalingError, InputError, shortened
from id_scaling.runtime.atomic_files import digest
from id_scaling.runtime.logging import LOG
from id_scaling.runtime.workers import ChildError, ask_child
from id_scaling.sources.cache import cached_folder
from id_scaling.sources.config_checks import is_quantised
from id_scaling.sources.model_config import config_digest, read_config
from id_scaling.sources.weight_headers import Stored
from id_scaling.storage.records import read_record, write_record

# Of building: a model of 1,000 layers took 20 s and 0.3 GB beyond the libraries.
MAX_SECONDS, MAX_BYTES = 300.0, 8 * 2**30
PROBE_TOKENS = 4
# Part of the cache's key: to be raised where this module comes to check more.
INSPECTION = 1
RECORD = "model.json"
# As safetensors calls them, and as torch does. Types of less than a byte are of quantised weights.
DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "I32": "int32",
    "U32": "uint32",
    "I64": "int64",
    "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}


class MetaModel(NamedTuple):
    """What is known of a model without its weights."""

    modules: frozenset[str]
    n_parameters: int


def inspect(folder: Path, stored: Mapping[str, Stored] | None = None) -> MetaModel:
    """Return the modules and the number of parameters of the model that a folder's config describes.

    It is built once for each content of the config and of the headers: the checkpoints of a training mostly share it.

    Parameters
    ----------
    folder : Path
        Folder with a `config.json`.
    stored : mapping of str to Stored, optional
        The tensors of its weight files, which must be those of the model. Not compared where weights are quantised,
        whose files hold other tensors than the model has.

    Raises
    ------
    InputError
        transformers cannot build the model, it takes too much time or memory, or the tensors are others.
    """
    tensors = None if stored is None or is_quantised(read_config(folder)) else {**stored}
    key = {
        "config": config_digest(folder),
        "tensors": tensors and digest(sorted([name, one.dtype, list(one.shape)] for name, one in tensors.items())),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "inspection": INSPECTION,
    }

    def fill(content: Path) -> None:
        modules, n_parameters = _inspected_in_worker(folder, tensors)
        write_record(content / RECORD, {"modules": sorted(modules), "n_parameters": n_parameters})

    with cached_folder("models", key, fill) as content:
        known = read_record(content / RECORD)
    return MetaModel(frozenset(known["modules"]), known["n_parameters"])


def _inspected_in_worker(folder: Path, tensors: Mapping[str, Stored] | None) -> tuple[frozenset[str], int]:
    """Return the modules and the number of parameters of a model, which another process builds."""
    try:
        words, answer = ask_child(_inspected, os.path.abspath(folder), tensors, max_seconds=MAX_SECONDS)
    except TimeoutError as error:
        raise InputError(f"{folder}: {_too_large(f'{MAX_SECONDS:g} s')}") from error
    except ChildError as error:
        if error.lacks_memory:
            raise InputError(f"{folder}: {_too_large(f'{MAX_BYTES / 2**30:g} GiB')}") from error
        words = f"{folder}: transformers cannot build the model of its config.json ({shortened(str(error))})"
        raise InputError(f"{words}; correct it, or fetch or save the model again") from error
    if words is not None:
        raise InputError(words)
    return answer


def _too_large(bound: str) -> str:
    return (
        f"the model of its config.json, without weights, takes more than {bound} to build; correct the sizes in "
        "config.json, or fetch or save the model again"
    )


def _inspected(folder: str, tensors: Mapping[str, Stored] | None) -> tuple[str | None, tuple | None]:
    """Return what is wrong with a model, or else what is known of it."""
    # Where a system has no such limit, time alone bounds it.
    with contextlib.suppress(ValueError, OSError):
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        limit = MAX_BYTES if most == resource.RLIM_INFINITY else min(MAX_BYTES, most)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
    try:
        model = _compared(Path(folder), tensors)
        _probe(model)
    except IdScalingError as error:
        return str(error), None
    modules = frozenset(name for name, _ in model.named_modules())
    return None, (modules, sum(parameter.numel() for parameter in model.parameters()))


def _compared(folder: Path, tensors: Mapping[str, Stored] | None) -> Any:
    """Return a model on the `meta` device, once it is known that the tensors of its files are its own."""
    import torch
    from transformers.utils import logging as transformers_logging

    from id_scaling.models.loading import check_report
    from id_scaling.sources.build import built

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    model = built(folder, "meta")
    if tensors is None:
        return model
    held = {
        name: torch.empty(one.shape, dtype=getattr(torch, DTYPES.get(one.dtype, "uint8")), device="meta")
        for name, one in tensors.items()
    }
    loaded, report = type(model).from_pretrained(
        None,  # tensors and a config, and no folder: trust_remote_code=False is of the class that was built
        config=model.config,
        state_dict=dict(held),
        device_map={"": "meta"},
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    check_report(folder, loaded, report, held)
    return model


def _probe(model: Any) -> None:
    """Raise an InputError where a forward pass gives no last hidden states, as far as shapes can tell."""
    import torch

    from id_scaling.models.loading import last_hidden

    try:
        with torch.inference_mode():
            last_hidden(model.eval(), torch.zeros(1, PROBE_TOKENS, dtype=torch.long, device="meta"))
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001  code that computes with values has none here: only the run can tell
        LOG.debug("a forward pass needs values: %s", error)
