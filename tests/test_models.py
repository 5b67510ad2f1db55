"""The real model on real text: what its hooks see, and what its losses are."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
import transformers
from conftest import save_tiny_llama
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from id_scaling.errors import InputError
from id_scaling.models import VECTOR_FUNCTIONS, LossHead, last_hidden, load_model, watching
from id_scaling.sites import PRESETS, Site, SiteRequest, resolve_sites

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
    from id_scaling.tokens import load_tokenizer

    return load_tokenizer(resources / "smollm2-135m-instruct")


@pytest.fixture(scope="module")
def input_ids(tokenizer, address: str) -> torch.Tensor:
    """Two contexts of 128 tokens."""
    ids = tokenizer(address, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids[:256]).reshape(2, 128)


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
    ids = torch.tensor(tokenizer(address, add_special_tokens=False, verbose=False)["input_ids"][:1024])[None]
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


def test_a_head_that_changes_its_logits_is_noticed_and_the_models_own_are_used(model, input_ids: torch.Tensor):
    """A model whose forward pass doubles the logits, which the plain head cannot know."""

    class Doubling(torch.nn.Module):
        config, base_model = model.config, model.base_model
        get_output_embeddings = staticmethod(model.get_output_embeddings)

        def forward(self, ids, **options):
            output = model(ids, **options)
            output.logits = 2 * output.logits
            return output

    with torch.inference_mode():
        doubling = Doubling()
        loss, _ = LossHead(doubling, input_ids)(input_ids, last_hidden(model, input_ids))
        logits = doubling(input_ids).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none")
    torch.testing.assert_close(loss[:, 1:].flatten(), expected, rtol=1e-5, atol=1e-5)


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

    monkeypatch.setattr("id_scaling.models.AutoModelForCausalLM.from_pretrained", watched)
    model = load_model(tiny_llama, torch.float32, torch.device("cpu"), use_accelerator)
    assert asked.get("device_map") == device_map
    assert not model.training


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
