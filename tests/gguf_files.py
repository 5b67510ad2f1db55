"""A small Llama as a GGUF file, as llama.cpp would write it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from conftest import WORDS
from transformers import AutoModelForCausalLM

# Their names in a GGUF file, by their names in a Llama.
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def rotated(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Return the rows of a query or key projection in the order of llama.cpp: halves of a head interleaved."""
    return weight.reshape(n_heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def save_gguf(
    model_folder: Path, path: Path, left_out: str = "", say: Callable[[gguf.GGUFWriter], None] | None = None
) -> Path:
    """Save a Llama as a GGUF file in float32, with a byte-pair tokenizer whose pieces are words."""
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    letters = sorted({letter for word in WORDS for letter in word} | {"Ġ"})
    pieces = ["<unk>", *letters, "th"]
    tokens = pieces + [f"p{number}" for number in range(config.vocab_size - len(pieces))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(0)
    for name, tensor in model.state_dict().items():
        layer, values = name.removesuffix(".weight"), tensor.numpy()
        if layer.endswith(("q_proj", "k_proj")):
            n_heads = config.num_attention_heads if layer.endswith("q_proj") else config.num_key_value_heads
            values = rotated(values, n_heads)
        prefix, _, rest = layer.removeprefix("model.layers.").partition(".")
        known = NAMES[layer] if layer in NAMES else f"blk.{prefix}.{NAMES[rest]}"
        if known != left_out:
            writer.add_tensor(f"{known}.weight", np.ascontiguousarray(values))
    if say is not None:
        say(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
