"""A tiny random model of every architecture that has a preset, shared by tests."""

from __future__ import annotations

from typing import Any

TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
USUAL = {
    **TOKENS,
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
GPT = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "vocab_size": 32,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 32,
}

# Sizes of a two-layer model of every architecture that has a preset.
TINY: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "olmo", "olmo2", "phi", "phi3", "starcoder2", "stablelm"), USUAL),
    **dict.fromkeys(("gpt_neox", "falcon"), USUAL),
    **{name: {**USUAL, "head_dim": 8} for name in ("qwen3", "gemma", "gemma2", "gemma3_text")},
    "gemma3": {
        "text_config": {**USUAL, "head_dim": 8},
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
    },
    "mixtral": {**USUAL, "num_local_experts": 2},
    "olmoe": {**USUAL, "num_experts": 2, "num_experts_per_tok": 1},
    "qwen3_moe": {**USUAL, "head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8},
    "gpt2": GPT,
    "gptj": {**GPT, "rotary_dim": 4},
    "gpt_neo": {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "vocab_size": 32,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "max_position_embeddings": 32,
        "attention_types": [[["global", "local"], 1]],
    },
    "opt": {**USUAL, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "bloom": {"bos_token_id": 1, "eos_token_id": 2, "vocab_size": 32, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "mamba": {**TOKENS, "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "rwkv": {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "vocab_size": 32,
        "hidden_size": 16,
        "attention_hidden_size": 16,
        "num_hidden_layers": 2,
        "intermediate_size": 24,
        "context_length": 32,
    },
}


def build(model_type: str, device: str, **changes: Any) -> Any:
    """Return a random two-layer model of an architecture; one without a preset is of the usual sizes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = TINY.get(model_type, USUAL)
    inner = {"text_config": {**sizes["text_config"], **changes}} if "text_config" in sizes else changes
    with torch.device(device):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**sizes, **inner})).eval()
