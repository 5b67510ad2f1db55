"""Sites: how module keys become module paths, and whether the presets are what they say."""

from __future__ import annotations

import pytest
from architectures import TINY, build

from id_scaling.errors import ConfigError
from id_scaling.models.layers import LayerChoice, layers_of
from id_scaling.models.modules import (
    PRESETS,
    Site,
    SiteRequest,
    check_paths,
    request_of,
    resolve_mapping,
    resolve_sites,
    with_layers,
)

MAPPING = {"block": "net.{layer}", "attn": "net.{layer}.attn", "emb": "wte", "unemb": "norm"}


def request(layers=None, inblock=("block", "attn"), outblock=("emb",), mapping=MAPPING) -> SiteRequest:
    return SiteRequest(layers, inblock, outblock, mapping)


LAYERS = [
    (None, [0, 1, 2, 3, 4]),
    ([3, 0], [0, 3]),
    ([-1], [4]),
    ([-5, -1, 2], [0, 2, 4]),
    ({"first": 2}, [0, 1]),
    ({"last": 2}, [3, 4]),
    ({"last": 5}, [0, 1, 2, 3, 4]),
    ({"every": 2}, [0, 2, 4]),
    ({"every": 9}, [0]),
]


@pytest.mark.parametrize(("choice", "layers"), LAYERS)
def test_layers_are_counted_from_either_end_or_are_a_range(choice: LayerChoice | None, layers: list[int]) -> None:
    assert layers_of(choice, 5, "layer_idx_list") == layers
    sites = resolve_sites(request(layers=choice, inblock=("attn",), outblock=()), "any", 5)
    assert [site.layer for site in sites] == layers


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ([5], "found layer 5, but the model has 5 layers: 0 to 4 are allowed, and -5 to -1 from the end"),
        ([-6], "found layer -6"),
        ([-1, 4], "-1 and 4 are one layer"),
        ({"last": 6}, r"layer_idx_list\.last: found 6, but the model has 5 layers; take fewer"),
        ({"first": 6}, r"layer_idx_list\.first: found 6"),
    ],
)
def test_layers_that_a_model_does_not_have_are_an_error(choice: LayerChoice, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        layers_of(choice, 5, "layer_idx_list")


def test_view_at_a_layer_that_is_not_read_is_an_error_once_layers_are_known() -> None:
    asked = request_of({"layers": {"last": 2}, "inblock": [], "outblock": [], "mapping": {}, "views": {"v": [-1, 3]}})
    assert with_layers(asked, 5).views == {"v": [3, 4]}
    with pytest.raises(ConfigError, match=r"views\.v\.layers: found layer 3, but layer_idx_list has 4, 5"):
        with_layers(asked, 6)


def test_sites_go_block_by_block_then_outside_the_blocks() -> None:
    assert resolve_sites(request(outblock=("unemb", "emb")), "any", 2) == [
        Site("block", 0, "net.0"),
        Site("attn", 0, "net.0.attn"),
        Site("block", 1, "net.1"),
        Site("attn", 1, "net.1.attn"),
        Site("unemb", None, "norm"),
        Site("emb", None, "wte"),
    ]


def test_only_the_layers_asked_for_are_read() -> None:
    sites = resolve_sites(request(layers=(0, 3), inblock=("attn",), outblock=()), "any", 4)
    assert sites == [Site("attn", 0, "net.0.attn"), Site("attn", 3, "net.3.attn")]


def test_layer_beyond_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"layer_idx_list: found layer 4, .* 4 layers: 0 to 3 are allowed") as caught:
        resolve_sites(request(layers=(0, 4)), "any", 4)
    assert "'all'" in str(caught.value)


@pytest.mark.parametrize("place", ["inblock", "outblock"])
def test_key_without_a_path_is_refused_with_the_nearest(place: str) -> None:
    with pytest.raises(ConfigError, match=r"'atn' of a any model; did you mean 'attn'\?.*module_name_mapping"):
        resolve_sites(request(**{place: ("atn",)}), "any", 2)


def test_given_mapping_stands_alone() -> None:
    assert resolve_mapping({"mine": "a.b"}, "llama") == {"mine": "a.b"}
    with pytest.raises(ConfigError, match="'block'"):
        resolve_sites(request(mapping={"mine": "a.b"}), "llama", 2)


def test_auto_does_not_guess_an_unknown_architecture() -> None:
    with pytest.raises(ConfigError, match=r"'auto' does not know the architecture 'gemma9'.*'gemma'.*give the module"):
        resolve_sites(request(mapping=None), "gemma9", 2)


@pytest.mark.parametrize(
    ("inblock", "outblock", "mapping"),
    [
        # Every layer would be given the activations of one and the same module.
        pytest.param(("block",), (), {"block": "norm"}, id="in-block path without the layer"),
        pytest.param(("emb",), (), MAPPING, id="out-block key asked for in the blocks"),
        pytest.param((), ("block",), MAPPING, id="in-block key asked for outside the blocks"),
        pytest.param(("block",), (), {"block": "net.{layers}"}, id="misspelt placeholder"),
        pytest.param(("block",), (), {"block": "net.{}"}, id="nameless placeholder"),
        pytest.param(("block",), (), {"block": "net.{layer"}, id="open brace"),
    ],
)
def test_path_that_does_not_suit_its_key_is_refused(inblock: tuple, outblock: tuple, mapping: dict) -> None:
    with pytest.raises(ConfigError, match=r"\{layer\}"):
        resolve_sites(request(inblock=inblock, outblock=outblock, mapping=mapping), "any", 2)


def test_view_at_a_layer_beyond_the_model_is_refused() -> None:
    asked = request_of(
        {"layers": None, "inblock": ["block"], "outblock": [], "mapping": MAPPING, "views": {"a": [0, 2]}}
    )
    assert len(resolve_sites(asked, "any", 3)) == 3
    with pytest.raises(ConfigError, match=r"views\.a\.layers: found layer 2, but the model has 2 layers: 0 to 1"):
        resolve_sites(asked, "any", 2)


def test_path_that_is_no_module_is_refused_with_the_nearest() -> None:
    names = ["net", *(f"net.{layer}{part}" for layer in range(2) for part in ("", ".attention", ".mlp"))]
    check_paths([Site("mlp", 1, "net.1.mlp")], names)
    with pytest.raises(ConfigError) as caught:
        check_paths([Site("attn", 1, "net.1.atention")], names)
    message = str(caught.value)
    assert "module_name_mapping.attn: the model has no module 'net.1.atention'" in message
    assert "did you mean 'net.{layer}.attention'" in message


# ---- presets ---------------------------------------------------------------------------------------------------


def whole_request(model_type: str) -> SiteRequest:
    """Return a request for every key of a preset."""
    keys = list(PRESETS[model_type])
    inside = tuple(key for key in keys if key in ("block", "attn", "mlp"))
    return SiteRequest(None, inside, tuple(key for key in keys if key not in inside), None)


def test_every_preset_is_tried_here() -> None:
    assert set(TINY) == set(PRESETS)


@pytest.mark.parametrize("model_type", PRESETS)
def test_preset_resolves_to_modules_of_the_model(model_type: str) -> None:
    names = [name for name, _ in build(model_type, "meta").named_modules()]
    sites = resolve_sites(whole_request(model_type), model_type, 2)
    check_paths(sites, names)
    assert {site.path for site in sites} <= set(names)
    assert {(site.module, site.layer) for site in sites if site.layer is not None} >= {("block", 0), ("block", 1)}


@pytest.mark.parametrize("model_type", PRESETS)
def test_preset_reads_what_its_keys_mean(model_type: str) -> None:
    """`block` is the stream after a block, `attn` and `mlp` what is added to it, `emb` what enters, `unemb` the end."""
    import torch

    from id_scaling.models.loading import last_hidden, watching

    model = build(model_type, "cpu")
    for parameter in model.parameters():
        if parameter.ndim > 1:
            # Wide enough that every branch adds much more than rounding does.
            parameter.data.normal_(0, 0.3)
    sites = resolve_sites(whole_request(model_type), model_type, 2)
    read: dict[tuple, torch.Tensor] = {}
    entered: dict[int, torch.Tensor] = {}

    def keep(layer: int):
        def enter(_module, arguments: tuple, named: dict) -> None:
            entered[layer] = (arguments[0] if arguments else named["hidden_states"]).clone()

        return enter

    def look(site: Site, activations: torch.Tensor) -> None:
        # Cloned at once, as some architectures add to a module's output in place later.
        read[site.module, site.layer] = activations.clone()

    for site in sites:
        if site.module == "block":
            model.get_submodule(site.path).register_forward_pre_hook(keep(site.layer), with_kwargs=True)
    with torch.inference_mode(), watching(model, sites, look):
        hidden = last_hidden(model, torch.arange(3, 13)[None])

    def close(found: torch.Tensor, expected: torch.Tensor) -> None:
        # float32 sums of a few terms of size 1 to 10 agree to about 1e-6.
        torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)

    close(read["unemb", None], hidden)
    close(read["block", 0], entered[1])
    if "emb" in PRESETS[model_type]:
        close(read["emb", None], entered[0])
    if "attn" in PRESETS[model_type]:
        # RWKV's block 0 normalises what enters it before anything is added.
        for layer in (1,) if model_type == "rwkv" else (0, 1):
            added = [read[key, layer].reshape(entered[layer].shape) for key in ("attn", "mlp") if (key, layer) in read]
            close(entered[layer] + sum(added), read["block", layer])


@pytest.mark.parametrize("model_type", [name for name, preset in PRESETS.items() if {"attn", "mlp"} <= preset.keys()])
def test_attention_alone_reads_other_tokens(model_type: str) -> None:
    """Their sum is the same where the paths of `attn` and `mlp` are swapped; what they depend on is not."""
    import torch

    from id_scaling.models.loading import first_of

    model = build(model_type, "cpu")
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.3)
    attn, mlp = (model.get_submodule(PRESETS[model_type][key].format(layer=0)) for key in ("attn", "mlp"))
    tokens = torch.arange(3, 13)[None]
    others = torch.cat([torch.tensor([[2]]), tokens[:, 1:]], dim=1)

    def last_of(module: torch.nn.Module) -> list[torch.Tensor]:
        """Return what a module gives at the last of some tokens, and where the first of them is another."""
        read: list[torch.Tensor] = []
        handle = module.register_forward_hook(
            lambda _module, _given, output: read.append(first_of(output).reshape(10, -1)[-1].clone())
        )
        with torch.inference_mode():
            model(tokens)
            model(others)
        handle.remove()
        return read

    def silence(_module: torch.nn.Module, _given: tuple, output: object) -> object:
        zeros = torch.zeros_like(first_of(output))
        return (zeros, *output[1:]) if isinstance(output, tuple) else zeros

    here, there = last_of(attn)
    assert (here - there).abs().max() > 1e-3
    attn.register_forward_hook(silence)
    here, there = last_of(mlp)
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)
