"""Whether modules mean what their keys say: what passes, what is refused with its numbers, what is not checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from architectures import build

from id_scaling.errors import InputError
from id_scaling.models.modules import PRESETS, SiteRequest, resolve_sites
from id_scaling.models.verification import check_meaning

IDS = torch.arange(3, 23)[None]
LLAMA = PRESETS["llama"]


def model_of(model_type: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """Return a tiny model whose branches add much more than rounding does."""
    model = build(model_type, "cpu", **changes)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.3)
    return model.to(dtype)


def meaning(model: Any, mapping: Mapping[str, str], model_type: str = "llama", layers=None, inblock=None) -> dict:
    """Return what is found of a model's keys under a mapping."""
    inside = inblock or tuple(key for key, path in mapping.items() if "{layer}" in path)
    outside = tuple(key for key, path in mapping.items() if "{layer}" not in path)
    sites = resolve_sites(SiteRequest(layers, inside, outside, mapping), model_type, 2)
    return check_meaning(model, sites, mapping, model_type, IDS)


def test_what_is_checked_has_its_worst_layer_and_what_is_allowed() -> None:
    found = meaning(model_of("llama"), LLAMA)
    assert {key: finding["verdict"] for key, finding in found.items()} == {
        **dict.fromkeys(("block", "attn", "mlp"), "checked"),
        **dict.fromkeys(("emb", "unemb"), "unchecked"),
    }
    assert found["block"] == {"verdict": "checked", "worst": 0.0, "layer": 0, "allowed": 1e-4}
    assert 0 < found["attn"]["worst"] < 1e-6
    assert "none of block, attn and mlp" in found["emb"]["reason"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt_neox", "bloom"])
def test_half_precision_rounds_more_and_is_allowed_more(model_type: str, dtype: torch.dtype) -> None:
    found = meaning(model_of(model_type, dtype), PRESETS[model_type], model_type)
    assert 1e-4 < found["attn"]["worst"] < found["attn"]["allowed"] == 2e-2


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "olmo2"])
def test_branches_before_their_norm_are_refused(model_type: str) -> None:
    """These add a normed branch to the stream, so the branch itself is not what is added."""
    with pytest.raises(
        InputError, match=r"in layer 0 .* differs from block output by [0-9.e+]+ of the largest"
    ) as caught:
        meaning(model_of(model_type), LLAMA, model_type)
    assert "attn is model.layers.0.self_attn, mlp is model.layers.0.mlp" in str(caught.value)


def test_modules_that_hold_the_residual_are_refused_and_said_to() -> None:
    whole = {**PRESETS["bloom"], "attn": "transformer.h.{layer}.self_attention", "mlp": "transformer.h.{layer}.mlp"}
    with pytest.raises(InputError, match="the output of mlp is the whole block's"):
        meaning(model_of("bloom"), whole, "bloom")


def test_a_multiplier_between_a_branch_and_the_stream_is_noticed() -> None:
    model = model_of("granite", residual_multiplier=0.5)
    with pytest.raises(InputError, match="attn and mlp are not what they say: in layer 0"):
        meaning(model, LLAMA, "granite")
    others = {"block": LLAMA["block"], "attention": LLAMA["attn"], "feedforward": LLAMA["mlp"]}
    found = meaning(model, others, "granite")
    assert [finding["verdict"] for finding in found.values()] == ["checked", "unchecked", "unchecked"]


@pytest.mark.parametrize("part", ["input_layernorm", "self_attn", "post_attention_layernorm", "mlp.down_proj"])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_block_that_is_a_part_of_one_is_refused(part: str, layer: int) -> None:
    mapping = {"block": f"model.layers.{{layer}}.{part}", "unemb": "model.norm"}
    with pytest.raises(InputError, match=rf"block is not what it says: .*layers\.{layer}\.{part} differs"):
        meaning(model_of("llama"), mapping, layers=(layer,))


def test_the_last_block_is_compared_with_what_enters_the_final_norm() -> None:
    """The model's last hidden state comes after the final norm."""
    assert meaning(model_of("llama"), LLAMA, layers=(1,))["block"]["worst"] == 0.0
    without = {key: path for key, path in LLAMA.items() if key != "unemb"}
    assert "after its last block" in meaning(model_of("llama"), without, layers=(1,))["block"]["reason"]


def test_a_branch_alone_is_compared_with_the_others_that_the_mapping_knows() -> None:
    found = meaning(model_of("llama"), LLAMA, inblock=("attn",))
    assert found["attn"]["verdict"] == "checked"
    alone = {"block": LLAMA["block"], "attn": LLAMA["attn"]}
    assert "the mapping has only attn of attn and mlp" in meaning(model_of("llama"), alone)["attn"]["reason"]
    assert "no block" in meaning(model_of("llama"), {"attn": LLAMA["attn"], "mlp": LLAMA["mlp"]})["mlp"]["reason"]


def test_branches_that_are_not_asked_for_are_not_verified() -> None:
    """The paths of `attn` and `mlp` here are those before their norms, which `gemma2` does not add."""
    found = meaning(model_of("gemma2"), LLAMA, "gemma2", inblock=("block",))
    assert found["block"] == {"verdict": "checked", "worst": 0.0, "layer": 0, "allowed": 1e-4}
    with pytest.raises(InputError, match="attn and mlp are not what they say"):
        meaning(model_of("gemma2"), LLAMA, "gemma2", inblock=("block", "attn"))


def test_a_mixer_that_is_all_of_a_block_is_checked() -> None:
    assert meaning(model_of("mamba"), PRESETS["mamba"], "mamba")["attn"]["verdict"] == "checked"


def test_no_hook_stays() -> None:
    def n_hooks() -> int:
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())

    model = model_of("llama")
    model(IDS, output_hidden_states=True)  # for which transformers hooks its own, once
    before = n_hooks()
    meaning(model, LLAMA)
    assert n_hooks() == before


def test_tokens_whose_block_overflows_are_not_held_to_anything() -> None:
    model = model_of("llama")
    model.model.layers[1].mlp.down_proj.weight.data.fill_(torch.nan)
    assert meaning(model, LLAMA)["mlp"]["layer"] == 0
    assert "finite" in meaning(model, LLAMA, layers=(1,))["mlp"]["reason"]


def test_a_branch_that_overflows_where_its_block_does_not_is_refused() -> None:
    model = model_of("llama")
    model.model.layers[1].register_forward_hook(lambda _module, _inputs, output: output.nan_to_num())
    model.model.layers[1].mlp.down_proj.weight.data[0].fill_(torch.nan)
    with pytest.raises(InputError, match=r"in layer 1 .* by inf of the largest"):
        meaning(model, LLAMA)


def test_a_block_that_cancels_a_massive_activation_may_round_by_it() -> None:
    """As the last blocks of large models do with that of their first token: of what is left it is much."""
    model = model_of("llama", torch.bfloat16)
    size = 20_000.0

    def massive(_module, inputs: tuple) -> tuple:
        return (inputs[0].index_fill(-1, torch.tensor([3]), size), *inputs[1:])

    model.model.layers[1].register_forward_pre_hook(massive)
    model.model.layers[1].mlp.register_forward_hook(
        lambda _module, _inputs, output: output.index_fill(-1, torch.tensor([3]), -size)
    )
    found = meaning(model, LLAMA, layers=(1,))
    assert found["mlp"]["worst"] < found["mlp"]["allowed"]
