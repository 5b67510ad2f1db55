"""The real model on real text: what its hooks see, and what its losses are."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
import transformers
from architectures import build
from conftest import save_tiny_llama
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from id_scaling.errors import InputError
from id_scaling.models.loading import (
    TOKENS_A_CHUNK,
    LossHead,
    last_hidden,
    load_model,
    n_embedding_parameters,
    watching,
)
from id_scaling.models.mkl_workaround import VECTOR_FUNCTIONS
from id_scaling.models.modules import PRESETS, Site, SiteRequest, resolve_sites
from id_scaling.models.verification import check_meaning

N_LAYERS = 30
ADDRESS = "1999-Clinton-1"


@pytest.fixture(scope="module")
def model(resources: Path):
    """SmolLM2-135M-Instruct in float32."""
    torch.manual_seed(0)
    folder = resources / "smollm2-135m-instruct"
    return load_model(folder, torch.float32, torch.device("cpu"), use_accelerator=False)


@pytest.fixture(scope="module")
def address(resources: Path) -> str:
    """The address of 1999."""
    return pl.read_parquet(resources / "sotu" / "0000.parquet").filter(pl.col("id") == ADDRESS)["text"].item()


@pytest.fixture(scope="module")
def tokenizer(resources: Path):
    from id_scaling.text.tokenization import load_tokenizer

    return load_tokenizer(resources / "smollm2-135m-instruct")


@pytest.fixture(scope="module")
def input_ids(tokenizer, address: str) -> torch.Tensor:
    """Two contexts of 128 tokens."""
    return torch.tensor(tokenizer.encode([address])[0][:256]).reshape(2, 128)


@pytest.fixture(scope="module")
def seen(model, input_ids: torch.Tensor) -> dict[Site, torch.Tensor]:
    """What every site gives in one forward pass, and the input of every block."""
    request = SiteRequest(None, ("block", "attn", "mlp"), ("emb", "unemb"), None)
    found: dict[Site, torch.Tensor] = {}
    with torch.inference_mode(), watching(model, resolve_sites(request, "llama", N_LAYERS), found.__setitem__):
        last_hidden(model, input_ids)
    return found


@pytest.fixture(scope="module")
def hidden_states(model, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The model's own hidden states."""
    with torch.inference_mode():
        return model(input_ids, output_hidden_states=True).hidden_states


def site(module: str, layer: int | None = None) -> Site:
    return Site(module, layer, PRESETS["llama"][module].format(layer=layer))


@pytest.mark.parametrize("layer", range(N_LAYERS - 1))
def test_a_block_is_the_hidden_state_after_it(seen, hidden_states, layer: int):
    assert torch.equal(seen[site("block", layer)], hidden_states[layer + 1])


@pytest.mark.parametrize("is_tied", [False, True])
def test_parameters_of_embeddings_are_counted_once(is_tied: bool):
    kinds = {"llama": transformers.LlamaConfig, "gpt2": transformers.GPT2Config}
    shape = {"vocab_size": 50, "hidden_size": 16, "tie_word_embeddings": is_tied}
    more = {"llama": {"intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}}
    more |= {"gpt2": {"n_layer": 1, "n_head": 2, "n_positions": 20}}
    of_positions = {"llama": 0, "gpt2": 20 * 16}
    for kind, config in kinds.items():
        model = transformers.AutoModelForCausalLM.from_config(config(**shape, **more[kind]))
        assert n_embedding_parameters(model) == 50 * 16 * (1 if is_tied else 2) + of_positions[kind]


def test_the_last_hidden_state_is_the_final_norm_and_not_the_last_block(seen, hidden_states):
    assert torch.equal(seen[site("unemb")], hidden_states[-1])
    assert not torch.allclose(seen[site("block", N_LAYERS - 1)], hidden_states[-1])


def test_the_embedding_is_the_first_hidden_state(seen, hidden_states):
    assert torch.equal(seen[site("emb")], hidden_states[0])


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_block_input_and_attention_and_mlp_add_up_to_the_block_output(seen, layer: int):
    before = seen[site("block", layer - 1)] if layer else seen[site("emb")]
    total = before + seen[site("attn", layer)] + seen[site("mlp", layer)]
    error = (total - seen[site("block", layer)]).norm(dim=-1) / seen[site("block", layer)].norm(dim=-1)
    assert error.max() < 1e-5  # two float32 additions; a wrong module is off by its whole norm


def test_everything_seen_is_finite_and_fits_half_precision(seen):
    """The sink's 25,000 is the largest; float16 ends at 65,504."""
    assert all(torch.isfinite(values).all() for values in seen.values())
    assert max(values.abs().max() for values in seen.values()) < 65504


def test_perplexity_of_a_fixed_address_is_that_of_a_model_that_reads_english(model, tokenizer, address: str):
    """A broken conversion (say, rows of the queries left permuted) gives thousands."""
    ids = torch.tensor(tokenizer.encode([address])[0][:1024])[None]
    with torch.inference_mode():
        loss, _ = LossHead(model, ids)(ids, last_hidden(model, ids))
    assert 15 < loss[0, 1:].mean().exp() < 30


def test_loss_and_entropy_are_those_of_the_models_own_logits(model, input_ids: torch.Tensor):
    with torch.inference_mode():
        loss, entropy = LossHead(model, input_ids)(input_ids, last_hidden(model, input_ids))
        logits = model(input_ids).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none")
    prediction = torch.distributions.Categorical(logits=logits)
    # Sums over 49,152 words in float32 in another order.
    torch.testing.assert_close(loss[:, 1:].flatten(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy[:, 1:], prediction.entropy(), rtol=1e-4, atol=1e-4)
    assert loss[:, 0].isnan().all()
    assert entropy[:, 0].isnan().all()


def own_losses(model, ids: torch.Tensor) -> torch.Tensor:
    """Return the losses of the model's own logits, upcast: (contexts, tokens - 1)."""
    logits = model(ids).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("model_type", ["gemma2", "cohere", "granite", "mamba"])
def test_losses_are_of_the_models_own_logits_scaled_or_capped(
    monkeypatch: pytest.MonkeyPatch, model_type: str, dtype: torch.dtype, allowed: float
):
    """Gemma 2 caps its logits, Cohere and Granite scale them, Mamba gives states in float32. A bfloat16 has 8 bits."""
    monkeypatch.setattr("id_scaling.models.loading.TOKENS_A_CHUNK", 8)
    changes = {"cohere": {"logit_scale": 0.5}, "granite": {"logits_scaling": 4.0}}.get(model_type, {})
    model = build(model_type, "cpu", **changes)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.3)  # logits of several units, which a cap of 30 changes
    model, ids = model.to(dtype), torch.randint(3, 31, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        head = LossHead(model, ids)
        loss, _ = head(ids, last_hidden(model, ids))
        expected = own_losses(model, ids)
    assert head._decoder is not None
    torch.testing.assert_close(loss[:, 1:], expected, rtol=allowed, atol=allowed)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that was made."""

    n_elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        if isinstance(result, torch.Tensor):
            self.n_elements = max(self.n_elements, result.numel())
        return result


def test_logits_of_a_large_vocabulary_are_never_held_for_a_whole_context():
    n_tokens, n_words = 160, 262_144
    model = build("gemma2", "cpu", vocab_size=n_words, max_position_embeddings=n_tokens)
    ids = torch.randint(3, n_words, (1, n_tokens), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        head, hidden = LossHead(model, ids), last_hidden(model, ids)
        with Largest() as largest:
            loss, _ = head(ids, hidden)
    assert largest.n_elements == TOKENS_A_CHUNK * n_words
    assert loss[:, 1:].isfinite().all()


def test_a_model_whose_logits_need_more_than_hidden_states_is_run_twice(caplog: pytest.LogCaptureFixture):
    """One that makes later tokens surer, which a chunk of hidden states cannot know."""
    model = build("llama", "cpu")
    forward = model.forward

    def surer(ids, **options):
        output = forward(ids, **options)
        output.logits = output.logits * (1 + torch.arange(ids.shape[1]))[:, None]
        return output

    model.forward = surer
    ids = torch.arange(2, 32)[None]
    with torch.inference_mode():
        loss, _ = LossHead(model, ids)(ids, last_hidden(model, ids))
        torch.testing.assert_close(loss[:, 1:], own_losses(model, ids), rtol=1e-5, atol=1e-5)
    assert "it is run twice" in caplog.text


@pytest.mark.parametrize(("use_accelerator", "device_map"), [(True, "auto"), (False, None)])
def test_accelerate_places_the_model_when_asked(
    monkeypatch: pytest.MonkeyPatch, tiny_llama: Path, use_accelerator: bool, device_map: str | None
):
    """What transformers is asked for: on one device it would place the model alike."""
    asked = {}
    load = transformers.AutoModelForCausalLM.from_pretrained

    def watched(*arguments, **options):
        asked.update(options)
        return load(*arguments, **options)

    monkeypatch.setattr("id_scaling.models.loading.AutoModelForCausalLM.from_pretrained", watched)
    model = load_model(tiny_llama, torch.float32, torch.device("cpu"), use_accelerator)
    assert asked.get("device_map") == device_map
    assert not model.training


def test_a_model_spread_over_memory_and_disk_gives_the_same(tiny_llama: Path):
    """Where `accelerate` moves what goes into a module, and loads its weights for the call."""
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.rotary_emb": "cpu"}
    on_disk = dict.fromkeys(("model.layers.1", "model.norm", "lm_head"), "disk")
    spread = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, device_map={**places, **on_disk}).eval()
    assert spread.lm_head.weight.device.type == "meta"
    whole = load_model(tiny_llama, torch.float32, torch.device("cpu"), use_accelerator=False)
    ids = torch.arange(3, 43)[None]
    sites = resolve_sites(SiteRequest(None, ("block", "attn", "mlp"), ("emb", "unemb"), None), "llama", 2)
    seen: list[dict[Site, torch.Tensor]] = [{}, {}]
    losses = []
    with torch.inference_mode():
        for model, found in zip((spread, whole), seen, strict=True):
            with watching(model, sites, found.__setitem__):
                hidden = last_hidden(model, ids)
            losses.append(LossHead(model, ids)(ids, hidden)[0][:, 1:])
            check_meaning(model, sites, PRESETS["llama"], "llama", ids)
    assert torch.equal(*losses)
    assert all(torch.equal(seen[0][one], seen[1][one]) for one in sites)


class FirstCalls(TorchDispatchMode):
    """The number of elements that each function was first called with on the CPU, for each dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.n_elements: dict[tuple[str, torch.dtype], int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, operand = function.overloadpacket.__name__, args[0] if args else None
        if name in VECTOR_FUNCTIONS:
            self.n_elements.setdefault((name, operand.dtype), operand.numel())
        return function(*args, **kwargs or {})


def test_no_vector_function_is_first_called_by_several_threads(tmp_path: Path):
    """ATen hands out 2,048 elements to a thread; MKL picks a wrong kernel when several threads ask at once."""
    save_tiny_llama(tmp_path)
    with FirstCalls() as first, torch.inference_mode():
        model = load_model(tmp_path, torch.float32, torch.device("cpu"), use_accelerator=False)
        assert {name for name, _ in first.n_elements} == set(VECTOR_FUNCTIONS)
        model(torch.arange(64)[None])
    assert ("cos", torch.float32) in first.n_elements
    assert set(first.n_elements.values()) == {1}


def test_weights_that_are_not_those_of_the_config_are_refused(tmp_path: Path):
    """A tensor too few would be filled with random numbers."""
    folder = save_tiny_llama(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"missing_keys.*model\.layers\.1\.mlp\.down_proj\.weight"):
        load_model(folder, torch.float32, torch.device("cpu"), use_accelerator=False)


def test_tensors_that_the_config_knows_nothing_of_are_refused(tmp_path: Path):
    """As of a third layer, of which nobody would compute anything."""
    folder = save_tiny_llama(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"] = tensors["model.layers.1.mlp.down_proj.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"unexpected_keys.*model\.layers\.2\.mlp\.down_proj\.weight"):
        load_model(folder, torch.float32, torch.device("cpu"), use_accelerator=False)
