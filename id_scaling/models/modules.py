"""Sites: where in a network activations are read, and how module keys become module paths.

A mapping gives each module key a path in the model, with `{layer}` in the paths of in-block keys. The presets have
the usual keys: `block` (the residual stream after a block), `attn` and `mlp` (what each adds to the residual stream),
`emb` (the input of block 0) and `unemb` (the output of the final norm).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from id_scaling.errors import ConfigError, nearest
from id_scaling.models.layers import LayerChoice, check_layers_read, layers_of


def _preset(blocks: str, attn: str, mlp: str, emb: str, unemb: str) -> dict[str, str]:
    """Return a mapping of the five usual keys without those whose path is empty."""
    block = f"{blocks}.{{layer}}"
    mapping = {"block": block, "attn": attn and f"{block}.{attn}", "mlp": mlp and f"{block}.{mlp}"}
    return {key: path for key, path in {**mapping, "emb": emb, "unemb": unemb}.items() if path}


_LLAMA = _preset("model.layers", "self_attn", "mlp", "model.embed_tokens", "model.norm")
# A branch is normalized before it is added to the residual stream, so the added term is the norm's output.
_POST_NORM = {
    **_LLAMA,
    "attn": "model.layers.{layer}.post_attention_layernorm",
    "mlp": "model.layers.{layer}.post_feedforward_layernorm",
}
_GPT2 = _preset("transformer.h", "attn", "mlp", "transformer.drop", "transformer.ln_f")

PRESETS: dict[str, dict[str, str]] = {
    **dict.fromkeys(
        (
            "llama",
            "mistral",
            "mixtral",
            "qwen2",
            "qwen3",
            "qwen3_moe",
            "gemma",
            "olmo",
            "olmoe",
            "phi3",
            "starcoder2",
            "stablelm",
        ),
        _LLAMA,
    ),
    **dict.fromkeys(("gemma2", "gemma3_text", "olmo2"), _POST_NORM),
    # The language model of a model that also reads images; the smallest Gemma 3 models are gemma3_text.
    "gemma3": {key: path.replace("model.", "model.language_model.", 1) for key, path in _POST_NORM.items()},
    "phi": {**_LLAMA, "unemb": "model.final_layernorm"},
    "gpt_neox": _preset("gpt_neox.layers", "attention", "mlp", "gpt_neox.embed_in", "gpt_neox.final_layer_norm"),
    "gpt2": _GPT2,
    "gpt_neo": _GPT2,
    "gptj": {**_GPT2, "emb": "transformer.wte"},
    # OPT has no `emb`: token and position embeddings are added outside any module.
    "opt": _preset("model.decoder.layers", "self_attn", "fc2", "", "model.decoder.final_layer_norm"),
    # BLOOM's attention and MLP modules return their output plus the residual; their last linear layers do not.
    "bloom": _preset(
        "transformer.h",
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        "transformer.word_embeddings_layernorm",
        "transformer.ln_f",
    ),
    "falcon": _preset("transformer.h", "self_attention", "mlp", "transformer.word_embeddings", "transformer.ln_f"),
    "mamba": _preset("backbone.layers", "mixer", "", "backbone.embeddings", "backbone.norm_f"),
    "rwkv": _preset("rwkv.blocks", "attention", "feed_forward", "rwkv.embeddings", "rwkv.ln_out"),
}

# Modules whose output replaces the block's input as the start of its residual stream, in models that have them.
ENTRIES = {"rwkv": "rwkv.blocks.{layer}.pre_ln"}


@dataclass(frozen=True)
class Site:
    """One place in the network: a module key, its layer (None outside the blocks), its path."""

    module: str
    layer: int | None
    path: str


@dataclass(frozen=True)
class SiteRequest:
    """The sites that a study requests, before the model is known.

    Parameters
    ----------
    layers : sequence of int, mapping of str to int, or None
        Layers that are read, as defined in `models.layers`; None for all.
    inblock, outblock : tuple of str
        Module keys that are read in each layer, and once.
    mapping : mapping of str to str, or None
        Module key -> path; None for the preset of the architecture.
    views : mapping of str to sequence of int, or mapping of str to int
        View -> its layers, for views that are not computed at every layer that is read.
    """

    layers: LayerChoice | None
    inblock: tuple[str, ...]
    outblock: tuple[str, ...]
    mapping: Mapping[str, str] | None
    views: Mapping[str, LayerChoice] = field(default_factory=dict)


def request_of(sites: Mapping[str, Any]) -> SiteRequest:
    """Return the request for sites that a JSON object describes."""
    inblock, outblock = tuple(sites["inblock"]), tuple(sites["outblock"])
    return SiteRequest(sites["layers"], inblock, outblock, sites["mapping"], sites.get("views", {}))


def with_layers(request: SiteRequest, n_layers: int) -> SiteRequest:
    """Return a request with its layers as numbers from 0, for a model of this depth.

    Raises
    ------
    ConfigError
        A layer is not in the model or is named twice, or a view names a layer that is not read.
    """
    layers = layers_of(request.layers, n_layers, "layer_idx_list")
    views = {name: layers_of(choice, n_layers, f"views.{name}.layers") for name, choice in request.views.items()}
    for name, view_layers in views.items():
        check_layers_read(name, view_layers, layers)
    return replace(request, layers=layers, views=views)


def resolve_sites(request: SiteRequest, model_type: str, n_layers: int) -> list[Site]:
    """Return the sites of a request in a model, block by block, then outside the blocks.

    Raises
    ------
    ConfigError
        A layer is not in the model, a key has no path, or the architecture has no preset.
    """
    mapping = resolve_mapping(request.mapping, model_type)
    layers = cast("list[int]", with_layers(request, n_layers).layers)
    inblock_paths = {key: _path(mapping, key, model_type, is_inblock=True) for key in request.inblock}
    outblock_paths = {key: _path(mapping, key, model_type, is_inblock=False) for key in request.outblock}
    return [
        Site(key, layer, path.replace("{layer}", str(layer))) for layer in layers for key, path in inblock_paths.items()
    ] + [Site(key, None, path) for key, path in outblock_paths.items()]


def _path(mapping: Mapping[str, str], key: str, model_type: str, is_inblock: bool) -> str:
    """Return the path of a key; it has to contain `{layer}` if, and only if, the key is read in each layer."""
    if key not in mapping:
        raise ConfigError(
            f"cacheing_config: no module path is known for key {key!r} of a {model_type} model; "
            f"{nearest(key, mapping)}; or give its path in model_config.module_name_mapping"
        )
    path = mapping[key]
    has_other_braces = any(brace in path.replace("{layer}", "") for brace in "{}")
    if has_other_braces or ("{layer}" in path) != is_inblock:
        kind, expected = ("module_inblock_keys", "one with") if is_inblock else ("module_outblock_keys", "one without")
        raise ConfigError(
            f"cacheing_config.{kind}: found {key!r} with the path {path!r}, expected {expected} {{layer}} in its path; "
            "list the key under the other kind, or correct model_config.module_name_mapping"
        )
    return path


def resolve_mapping(mapping: Mapping[str, str] | None, model_type: str) -> Mapping[str, str]:
    """Return the given mapping, or the preset of the architecture if it is None."""
    if mapping is not None:
        return mapping
    if model_type not in PRESETS:
        raise ConfigError(
            f"model_config.module_name_mapping: 'auto' does not know the architecture {model_type!r}; "
            f"{nearest(model_type, PRESETS)}; or give the module paths yourself"
        )
    return PRESETS[model_type]


def check_paths(sites: Sequence[Site], module_names: Collection[str]) -> None:
    """Raise a ConfigError, which suggests names, if the path of a site is not a module of the model."""
    model_paths = set(module_names)
    for site in sites:
        if site.path not in model_paths:
            same_depth = {_without_layers(name) for name in model_paths if name}
            raise ConfigError(
                f"model_config.module_name_mapping.{site.module}: the model has no module {site.path!r}; "
                f"{nearest(_without_layers(site.path), same_depth)}"
            )


def _without_layers(path: str) -> str:
    """Return a module path with its first number replaced by `{layer}`."""
    return re.sub(r"\.\d+(?=\.|$)", ".{layer}", path, count=1)
