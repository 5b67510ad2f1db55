"""Whether the values in a model's `config.json` are possible, by arithmetic, before anything is built of them.

What only the architecture's own code can tell, say an activation by its name, is told when the model is built on the
`meta` device. The limits are here to keep that from taking minutes and gigabytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeGuard

from id_scaling.errors import InputError

AGAIN = "correct it, or fetch or save the model again"
# What every causal language model whose config says it has at least 1 of.
AT_LEAST_ONE = {
    "hidden_size",
    "n_embd",
    "d_model",
    "num_hidden_layers",
    "n_layer",
    "num_layers",
    "num_attention_heads",
    "n_head",
    "num_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "n_positions",
}
# The keys of the configs of language models in others, of which that holds; and of a config that is one.
TEXT = ("", "text_config", "llm_config", "language_config")
# Keys, and the largest value that is taken. The largest that were published: 1,000 layers, 128 heads, 2,048 experts, a
# width of 20,480, 80,000 inside an MLP, 1e6 words, 1e7 positions.
LIMITS = {
    r"layers?$": 10_000,
    r"heads?$": 10_000,
    r"experts(_per_tok)?$": 10_000,
    r"^(hidden_size|n_embd|d_model|head_dim)$": 1_000_000,
    r"^num_labels$": 1_000_000,
    r"(_size|_dim|_rank|^n_inner|^d_\w+)$": 100_000_000,
    r"(positions|position_embeddings|n_ctx|context_length)$": 1_000_000_000,
}
# Architectures whose heads share the width out among them unless `head_dim` says otherwise.
HEADS_SHARE_WIDTH = {"llama", "mistral", "mixtral", "qwen2", "olmo", "olmo2", "olmoe", "phi", "phi3", "stablelm"} | {
    *("starcoder2", "gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "falcon")
}
WIDTHS, HEADS = ("hidden_size", "n_embd", "d_model"), ("num_attention_heads", "n_head", "num_heads")
# Numbers above 0; and numbers from 0 to 1.
ABOVE_ZERO = re.compile(r"^(rope_theta|rope_local_base_freq|rotary_emb_base|factor|(low|high|short|long)_freq_factor)$")
SHARES = re.compile(r"(_epsilon|_eps|^rotary_pct|^partial_rotary_factor)$")
ROPE = ("rope_scaling", "rope_parameters")
# The packages of each kind of quantised weights, by the name they are imported by; of several after each other any.
PACKAGES: dict[str, tuple[str, ...]] = {
    "aqlm": ("aqlm",),
    "auto-round": ("auto_round",),
    "awq": ("gptqmodel|awq",),
    "bitnet": ("accelerate",),
    "bitsandbytes": ("bitsandbytes", "accelerate"),
    "compressed-tensors": ("compressed_tensors",),
    "eetq": ("eetq|kernels",),
    "fbgemm_fp8": ("fbgemm_gpu",),
    "fp8": ("accelerate",),
    "gptq": ("optimum", "gptqmodel|auto_gptq"),
    "higgs": ("flute",),
    "hqq": ("hqq",),
    "mxfp4": ("kernels",),
    "quanto": ("optimum",),
    "quark": ("quark",),
    "spqr": ("spqr_quant",),
    "torchao": ("torchao",),
    "vptq": ("vptq",),
}
ATTENTION = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


def check_values(config: Mapping[str, Any], path: Path) -> None:
    """Raise an InputError when a model's config has a size or a setting that no model can have, or needs a package.

    Parameters
    ----------
    config : mapping
        What `config.json` says.
    path : Path
        Where it is, for messages.
    """
    model_type = config.get("model_type", "")
    _require(path, "model_type", model_type, isinstance(model_type, str) and len(model_type) < 100, "an architecture")
    for name, of_part in _parts(config):
        of_text = name in TEXT
        for key, value in of_part.items():
            if of_text and key in AT_LEAST_ONE and value is not None and not isinstance(value, list):
                _require(path, key, value, _is_whole(value) and value >= 1, "a whole number of at least 1")
            _check_number(path, key, value)
        _check_heads(path, of_part)
        _check_packages(path, of_part)


def check_layers(n_layers: int, n_tensors: int, path: Path) -> None:
    """Raise an InputError when a model would have more blocks than there are tensors: every block has some."""
    if n_layers > n_tensors:
        raise InputError(
            f"{path}: found {n_layers} layers, but the weight files hold {n_tensors} tensors, fewer than one a layer; "
            f"{AGAIN}"
        )


def is_quantised(config: Mapping[str, Any]) -> bool:
    """Return whether the weights of a model are quantised, so that files hold other tensors than the model has."""
    return any(isinstance(part.get("quantization_config"), Mapping) for _, part in _parts(config))


def _parts(config: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield a config and the configs in it, with their keys."""
    yield name, config
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _parts(value, key)


def _check_number(path: Path, key: str, value: Any) -> None:
    """Raise an InputError when the value of a key is not one that a model can have."""
    if value is None:
        return
    if _is_whole(value):
        limit = next((limit for pattern, limit in LIMITS.items() if re.search(pattern, key)), None)
        _require(path, key, value, limit is None or value <= limit, f"a number of at most {limit}")
    if ABOVE_ZERO.search(key):
        _require(path, key, value, _is_number(value) and 0 < value < math.inf, "a number above 0")
    if SHARES.search(key):
        _require(path, key, value, _is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
    if key in ROPE:
        _require(path, key, value, isinstance(value, Mapping), "a mapping of rope_type and its settings")


def _check_heads(path: Path, config: Mapping[str, Any]) -> None:
    """Raise an InputError when heads do not share the width, or queries the keys, out evenly."""
    width, heads = (next((config[key] for key in keys if key in config), None) for keys in (WIDTHS, HEADS))
    keys = config.get("num_key_value_heads")
    if _is_whole(heads) and _is_whole(keys) and heads % keys:
        raise InputError(
            f"{path}: found {heads} attention heads and {keys} key-value heads, expected a multiple; {AGAIN}"
        )
    shares = str(config.get("model_type")) in HEADS_SHARE_WIDTH and config.get("head_dim") is None
    if shares and _is_whole(heads) and _is_whole(width) and width % heads:
        raise InputError(f"{path}: found a width of {width} and {heads} attention heads, expected a multiple; {AGAIN}")


def _check_packages(path: Path, config: Mapping[str, Any]) -> None:
    """Raise an InputError when a config asks for attention or weights that need a package which is not installed."""
    for key in ("attn_implementation", "_attn_implementation"):
        package = ATTENTION.get(str(config.get(key)))
        if package and not _is_installed(package):
            raise InputError(
                f"{path}: {key} is {config[key]!r}, which needs the package {package}, not installed here; install it, "
                f"or remove {key} from config.json"
            )
    quantised = config.get("quantization_config")
    if isinstance(quantised, Mapping):
        _check_quantisation(path, quantised)


def _check_quantisation(path: Path, said: Mapping[str, Any]) -> None:
    """Raise an InputError when quantised weights need a package that is not installed."""
    is_old = any(str(key).startswith("load_in_") for key in said)
    method = said.get("quant_method", "bitsandbytes" if is_old else None)
    if not isinstance(method, str) or method not in PACKAGES:
        return  # transformers says what it knows of it when the model is built
    missing = [names for names in PACKAGES[method] if not any(map(_is_installed, names.split("|")))]
    if missing:
        raise InputError(
            f"{path}: its weights are quantised ({method}), which needs {', '.join(missing).replace('|', ' or ')}, not "
            "installed here; install it, or name the model that the quantised one was made from"
        )


def _is_installed(package: str) -> bool:
    return find_spec(package) is not None


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require(path: Path, key: str, value: Any, is_met: bool, expected: str) -> None:
    """Raise an InputError that names a key unless what is expected of its value is met."""
    if not is_met:
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}…"
        raise InputError(f"{path}: {key}: found {shown}, expected {expected}; {AGAIN}")
