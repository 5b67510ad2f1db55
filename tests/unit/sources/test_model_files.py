"""Damaged, impossible and unusual model files: one clear error each, or the right model; and quickly."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import build
from conftest import ROOT, study
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from id_scaling.errors import IdScalingError, InputError
from id_scaling.models.constants import is_constant
from id_scaling.models.loading import (
    MAX_FLOAT32_PARAMETERS,
    LossHead,
    decoder_of,
    last_hidden,
    load_model,
    pick_dtype,
)
from id_scaling.models.modules import PRESETS, SiteRequest, resolve_sites
from id_scaling.models.verification import check_meaning
from id_scaling.runtime.atomic_files import read_json
from id_scaling.sources.config_checks import check_values
from id_scaling.sources.meta_model import inspect
from id_scaling.sources.model_checks import check_built, check_model
from id_scaling.sources.weight_headers import read_headers
from id_scaling.study.study import Study

CPU = torch.device("cpu")
REQUEST = SiteRequest(None, ("block",), (), None)
WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no earlier run of this code have said what a model is."""
    monkeypatch.setattr("id_scaling.sources.cache.CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> dict[str, Path]:
    """Folders of tiny models by architecture; not to be changed."""
    root = tmp_path_factory.mktemp("saved")
    folders = {"llama": tiny_llama}
    for model_type in ("gpt_neox", "gpt2"):
        folders[model_type] = root / model_type
        build(model_type, "cpu").save_pretrained(folders[model_type])
    return folders


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    """A folder with a random two-layer Llama, to be changed."""
    return shutil.copytree(tiny_llama, tmp_path / "model")


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of a config; `None` as text of JSON's null."""
    path = folder / "config.json"
    path.write_text(json.dumps({**read_json(path), **changes}))


def loaded(folder: Path) -> Any:
    return load_model(folder, torch.float32, CPU, use_accelerator=False)


# ---- headers of weight files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: b"", ["damaged or cut short: found 0 bytes"]),
        (lambda raw: raw[:-1], ["damaged or cut short"]),
        (lambda raw: raw[: len(raw) // 2], ["damaged or cut short"]),
        (lambda raw: raw + b"\0", ["damaged or cut short"]),
        (lambda raw: raw[:5], ["found 5 bytes"]),
        (lambda raw: bytes(len(raw)), ["damaged or cut short"]),
        (lambda raw: raw.replace(b'"F32"', b'"F99"', 1), ["damaged or cut short"]),
        (
            lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            ["git-lfs", "git lfs pull"],
        ),
        (lambda raw: (2).to_bytes(8, "little") + b"{}", ["no tensors"]),
    ],
)
def test_a_weight_file_that_is_not_whole_is_known_by_its_header(
    damage: Callable[[bytes], bytes], words: list[str], model: Path, text_folder: Path
) -> None:
    (model / WEIGHTS).write_bytes(damage((model / WEIGHTS).read_bytes()))
    with pytest.raises(InputError) as caught:  # as the dry run does
        Study(study(model, text_folder)).check()
    message = str(caught.value)
    assert [word for word in [*words, str(model / WEIGHTS), "again"] if word not in message] == []


def test_an_index_that_names_a_tensor_its_file_lacks_is_said(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    names = {name: f"model-0000{number % 2 + 1}-of-00002.safetensors" for number, name in enumerate(sorted(tensors))}
    for file in set(names.values()):
        save_file({name: tensors[name] for name in names if names[name] == file}, model / file)
    (model / WEIGHTS).unlink()
    index = model / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    assert read_headers(model).keys() == tensors.keys()
    index.write_text(json.dumps({"weight_map": {**names, "lm_head.weight": names["model.norm.weight"]}}))
    if names["lm_head.weight"] == names["model.norm.weight"]:
        index.write_text(json.dumps({"weight_map": {**names, "more.weight": names["model.norm.weight"]}}))
    with pytest.raises(InputError, match=r"index\.json: names the tensor '.*weight' in .* does not hold it"):
        read_headers(model)


def test_headers_are_checked_without_torch(model: Path) -> None:
    """The dry run must stay quick: transformers takes seconds to import."""
    code = (
        "import sys; from pathlib import Path; from id_scaling.models.modules import SiteRequest; "
        "from id_scaling.sources.model_checks import check_model, check_paths_of; "
        "folder, request = Path(sys.argv[1]), SiteRequest(None, ('b',), (), {'b': 'model.layers.{layer}'}); "
        "check_paths_of(folder, request, check_model(folder, request, 64)); "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2"])
def test_mutated_headers_give_an_error_of_the_package_or_the_model(
    architecture: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(saved[architecture], tmp_path / "model")
    raw, draw = (folder / WEIGHTS).read_bytes(), random.Random(0)
    length = 8 + int.from_bytes(raw[:8], "little")
    messages, start = [], time.process_time()
    for _ in range(300):
        content = bytearray(raw)
        for _ in range(draw.choice([1, 1, 2, 8])):
            content[draw.randrange(length)] = draw.randrange(256)
        if draw.random() < 0.2:
            del content[draw.randrange(len(content)) :]
        (folder / WEIGHTS).write_bytes(content)
        try:
            check_model(folder, REQUEST, 16)
        except IdScalingError as error:
            messages.append(str(error))
    # A byte changed in a tensor's name makes another name, which only the model built on `meta` tells.
    assert len(messages) > 200
    assert [message for message in messages if str(folder) not in message or len(message) > 1000] == []
    assert time.process_time() - start < 20  # 0.3 s where the machine is idle


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.update(wrong=torch.ones(2)), ["unexpected_keys", "wrong"]),
        (lambda tensors: tensors.pop("model.norm.weight"), ["missing_keys", "model.norm.weight"]),
        (
            lambda tensors: tensors.update({"model.norm.weight": torch.ones(31)}),
            ["mismatched_keys", "model.norm.weight [31] instead of [32]"],
        ),
        (
            lambda tensors: tensors.update({"model.layers.0.self_attn.bias": torch.ones(16)}),
            ["unexpected_keys", "model.layers.0.self_attn.bias"],
        ),
    ],
)
def test_tensors_that_are_not_the_models_are_known_by_their_shapes(
    change: Callable[[dict], Any], words: list[str], model: Path, text_folder: Path
) -> None:
    tensors = load_file(model / WEIGHTS)
    change(tensors)
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    for check in (lambda: Study(study(model, text_folder)).check(is_thorough=True), lambda: loaded(model)):
        with pytest.raises(InputError) as caught:
            check()
        assert [word for word in words if word not in str(caught.value)] == []


# ---- configs ----------------------------------------------------------------------------------------------------

IMPOSSIBLE = {
    "num_attention_heads": [0, 3, -4, 4.0, "4", True, 10**9],
    "num_key_value_heads": [0, 3, -1],
    "num_hidden_layers": [0, -2, 10**9, 500, 1e9],
    "hidden_size": [0, -32, 10**12],
    "vocab_size": [-1, 0, 10**15],
    "intermediate_size": [-64, 0],
    "max_position_embeddings": [0, -128],
    "head_dim": [0, -8],
    "rms_norm_eps": [-1e-6, "small", 10.0],
    "rope_theta": [0, -1.0, "Infinity"],
    "rope_scaling": ["linear", {"rope_type": "linear", "factor": 0}, {"rope_type": "linear", "factor": "NaN"}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in IMPOSSIBLE.items() for value in values])
def test_an_impossible_value_is_told_by_arithmetic(key: str, value: Any, model: Path, text_folder: Path) -> None:
    edit(model, **{key: value})
    start = time.process_time()
    with pytest.raises(InputError) as caught:
        Study(study(model, text_folder)).check()
    assert time.process_time() - start < 1  # nothing is built
    found = [
        word for word in ("config.json", "found", "fetch or save the model again") if word not in str(caught.value)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "gellu"}, ["hidden_act: found 'gellu'"]),
        ({"rope_scaling": {"rope_type": "twisted", "factor": 2.0}}, ["twisted"]),
        ({"hidden_size": 64}, ["mismatched_keys"]),
        ({"num_hidden_layers": 3}, ["missing_keys", "model.layers.2"]),
        ({"num_hidden_layers": 1}, ["unexpected_keys", "model.layers.1"]),
        ({"model_type": "llamma"}, ["llamma"]),
    ],
)
def test_what_only_the_architecture_can_tell_is_told_when_it_is_built(
    changes: dict, words: list[str], model: Path, text_folder: Path
) -> None:
    edit(model, **{**changes, **({"rope_parameters": None} if "rope_scaling" in changes else {})})
    with pytest.raises(IdScalingError) as caught:
        check_built(model, SiteRequest(None, (), (), {}), read_headers(model))
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_model_that_takes_too_long_to_build_is_said(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The process that builds may have built models before, and makes one of two layers within a few milliseconds.
    edit(model, num_hidden_layers=100)
    monkeypatch.setattr("id_scaling.sources.meta_model.MAX_SECONDS", 0.05)
    with pytest.raises(InputError, match=r"takes more than 0\.05 s to build"):
        inspect(model)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2"])
def test_mutated_configs_give_an_error_of_the_package_or_a_model(
    architecture: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    """Each key in turn, by values of every kind, through everything but the building."""
    folder = shutil.copytree(saved[architecture], tmp_path / "model")
    config, messages, start = read_json(folder / "config.json"), [], time.process_time()
    values = (None, True, 0, -1, 3, 2**31, 10**18, 0.5, -1e300, "", "NaN", "x" * 10_000, [], [1], {}, {"a": {}})
    for key in [*config, "rope_scaling", "head_dim", "quantization_config", "attn_implementation", "text_config"]:
        for value in values:
            (folder / "config.json").write_text(json.dumps({**config, key: value}))
            try:
                check_model(folder, REQUEST, 16)
            except IdScalingError as error:
                messages.append(str(error))
    assert len(messages) > 100
    assert [message for message in messages if len(message) > 2000] == []
    assert time.process_time() - start < 60  # transformers is imported for a `text_config`


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2"])
def test_mutated_configs_that_arithmetic_lets_pass_build_or_say_why_not(
    architecture: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(saved[architecture], tmp_path / "model")
    config, draw, messages = read_json(folder / "config.json"), random.Random(0), []
    values = (None, True, 0, 3, 10**6, 0.5, "", "x", [], {"a": 1})
    for key in draw.sample(sorted(config), 12):
        (folder / "config.json").write_text(json.dumps({**config, key: draw.choice(values)}))
        try:
            check_built(folder, REQUEST, check_model(folder, REQUEST, 16))
        except IdScalingError as error:
            messages.append(str(error))
    assert messages
    assert [message for message in messages if len(message) > 2000] == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attn_implementation": "flash_attention_2"}, ["flash_attn", "remove attn_implementation"]),
        ({"_attn_implementation": "flash_attention_2"}, ["flash_attn", "install it"]),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["quantised (gptq)", "gptqmodel", "install it"]),
        ({"quantization_config": {"load_in_8bit": True}}, ["quantised (bitsandbytes)", "bitsandbytes"]),
        ({"quantization_config": {"quant_method": "awq"}}, ["quantised (awq)"]),
    ],
)
def test_a_package_that_a_model_needs_is_named_before_any_job(
    changes: dict, words: list[str], model: Path, text_folder: Path
) -> None:
    edit(model, **changes)
    with pytest.raises(InputError) as caught:
        Study(study(model, text_folder)).check()
    assert [word for word in [*words, "not installed"] if word not in str(caught.value)] == []


def test_packages_of_quantised_weights_are_those_of_transformers() -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    from id_scaling.sources.config_checks import PACKAGES

    known = set(AUTO_QUANTIZATION_CONFIG_MAPPING) | {"bitsandbytes"}
    assert set(PACKAGES) - known == set()


def test_sizes_of_published_models_are_possible() -> None:
    """The largest of each key that we know of, and settings that look odd."""
    check_values(
        {
            "model_type": "llama",
            "hidden_size": 20_480,
            "num_attention_heads": 128,
            "num_key_value_heads": 8,
            "num_hidden_layers": 1000,
            "vocab_size": 1_000_000,
            "max_position_embeddings": 10_485_760,
            "num_experts": 2048,
            "rope_theta": 500_000_000,
            "vision_feature_layer": -2,
            "window_size": -1,
            "vision_config": {"num_hidden_layers": 0, "image_size": [224, 224]},
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4},
        },
        Path("config.json"),
    )


def test_outputs_as_tuples_in_a_config_change_nothing(model: Path) -> None:
    """And hidden states or attentions that it asks for are not made."""
    ids = torch.arange(3, 43)[None]
    sites = resolve_sites(SiteRequest(None, ("block", "attn", "mlp"), ("emb", "unemb"), None), "llama", 2)
    results = []
    for changes in ({}, {"return_dict": False, "output_hidden_states": True}):
        edit(model, **changes)
        one = loaded(model)
        with torch.inference_mode():
            hidden = last_hidden(one, ids)
            results.append((hidden, LossHead(one, ids)(ids, hidden)[0][:, 1:]))
        check_meaning(one, sites, PRESETS["llama"], "llama", ids)
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("damage", [lambda raw: raw[:-8], lambda raw: b""])
def test_weights_that_are_cut_after_the_fetch_are_said_at_the_load(damage: Callable, model: Path) -> None:
    (model / WEIGHTS).write_bytes(damage((model / WEIGHTS).read_bytes()))
    with pytest.raises(InputError, match="transformers cannot load this model"):
        loaded(model)


# ---- constants among the weights --------------------------------------------------------------------------------


def mask(n: int = 32) -> torch.Tensor:
    return torch.ones(n, n).tril()[None, None]


CONSTANTS = {
    "gptj": {"transformer.h.0.attn.bias": mask(), "transformer.h.0.attn.masked_bias": torch.tensor(-1e9)},
    "gpt_neo": {
        "transformer.h.0.attn.attention.bias": mask().bool(),
        "transformer.h.1.attn.attention.masked_bias": torch.tensor(-1e4),
    },
    "gpt_neox": {
        "gpt_neox.layers.0.attention.bias": mask(),
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(1),
    },
    "gpt2": {"transformer.h.0.attn.bias": mask(), "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)},
    "llama": {
        "model.layers.0.self_attn.rotary_emb.inv_freq": 10_000.0 ** -(torch.arange(0, 8, 2) / 8),
        "model.layers.0.self_attn.rotary_emb.cos_cached": torch.outer(
            torch.arange(32.0), 10_000.0 ** -(torch.arange(0, 8, 2) / 8)
        )
        .repeat(1, 2)
        .cos()[None, None],
    },
    "opt": {"model.decoder.position_ids": torch.arange(32)[None]},
    "bloom": {"transformer.h.0.self_attention.masked_bias": torch.tensor(-torch.inf)},
}


@pytest.mark.parametrize("model_type", CONSTANTS)
def test_constants_that_a_model_computes_itself_may_lie_among_its_weights(model_type: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    build(model_type, "cpu").save_pretrained(folder)
    ids = torch.arange(3, 23)[None]
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, **CONSTANTS[model_type]}, folder / WEIGHTS, metadata={"format": "pt"})
    check_built(folder, REQUEST, check_model(folder, REQUEST, 16))
    with torch.inference_mode():
        assert torch.equal(loaded(folder)(ids).logits, expected)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("transformer.h.0.attn.bias", torch.ones(16)),
        ("transformer.h.0.attn.bias", torch.full((1, 1, 32, 32), 0.5)),
        ("transformer.h.0.attn.masked_bias", torch.tensor(0.1)),
        ("transformer.h.0.attn.masked_bias", torch.ones(16)),
        ("transformer.h.0.attn.q_proj.bias", torch.zeros(16)),
        ("transformer.h.2.attn.q_proj.weight", torch.zeros(16, 16)),
    ],
)
def test_a_weight_that_a_model_lacks_stays_an_error(name: str, values: torch.Tensor, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    build("gptj", "cpu").save_pretrained(folder)
    save_file({**load_file(folder / WEIGHTS), name: values}, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"unexpected_keys: {name}"):
        loaded(folder)


def test_other_rotary_frequencies_than_the_models_are_not_its_constants() -> None:
    """A model trained with them would be run with others, and its numbers would look right."""
    own = 10_000.0 ** -(torch.arange(0, 8, 2) / 8)
    buffers = {"model.rotary_emb.inv_freq": own}
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert is_constant(name, own.half(), buffers)
    assert not is_constant(name, 500_000.0 ** -(torch.arange(0, 8, 2) / 8), buffers)
    assert not is_constant(name, own[:2], buffers)


# ---- architectures whose decoder is found otherwise -------------------------------------------------------------

LLAMA4 = {
    "head_dim": 8,
    "intermediate_size_mlp": 48,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "attention_chunk_size": 16,
}


def test_the_text_model_of_llama_4_is_measured() -> None:
    """Its class names itself as its base model."""
    model = build("llama4_text", "cpu", **LLAMA4)
    ids = torch.randint(3, 31, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        head, hidden = LossHead(model, ids), last_hidden(model, ids)
        output = model(ids, output_hidden_states=True)
        expected = torch.nn.functional.cross_entropy(
            output.logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none"
        )
        loss = head(ids, hidden)[0][:, 1:]
    assert decoder_of(model) is head._decoder is model.model
    assert torch.equal(hidden, output.hidden_states[-1])
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    mapping = {"block": "model.layers.{layer}", "unemb": "model.norm"}
    sites = resolve_sites(SiteRequest(None, ("block",), (), mapping), "llama4_text", 2)
    assert check_meaning(model, sites, mapping, "llama4_text", ids)["block"]["verdict"] == "checked"


def test_blocks_that_return_lists_are_measured() -> None:
    """As those of the first GPT."""
    model = build("openai-gpt", "cpu")
    ids, mapping = torch.arange(3, 23)[None], {"block": "transformer.h.{layer}"}
    sites = resolve_sites(SiteRequest((0, 1), ("block",), (), mapping), "openai-gpt", 2)
    with torch.inference_mode():
        LossHead(model, ids)(ids, last_hidden(model, ids))
    assert check_meaning(model, sites, mapping, "openai-gpt", ids)["block"]["worst"] == 0.0


def test_a_model_without_last_hidden_states_is_said() -> None:
    class Output:
        logits = torch.zeros(1, 20, 5)

    model = build("llama", "cpu")
    model.model.forward = lambda *_, **__: Output()
    with pytest.raises(InputError, match="LlamaForCausalLM gives no last hidden states"):
        last_hidden(model, torch.arange(3, 23)[None])


# ---- the dtype that is chosen -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "n_parameters", "dtype"),
    [
        ("cpu", 10**11, torch.float32),
        ("cuda", MAX_FLOAT32_PARAMETERS, torch.float32),
        ("cuda", MAX_FLOAT32_PARAMETERS + 1, torch.bfloat16),
    ],
)
def test_the_size_of_a_model_decides_on_its_dtype_on_a_gpu(device: str, n_parameters: int, dtype: torch.dtype) -> None:
    assert pick_dtype("auto", torch.device(device), n_parameters) == dtype
    assert pick_dtype("float16", torch.device(device), n_parameters) == torch.float16


@pytest.mark.parametrize("is_tied", [False, True])
def test_parameters_are_counted_without_weights(is_tied: bool, tmp_path: Path) -> None:
    model = build("llama", "cpu", tie_word_embeddings=is_tied)
    model.save_pretrained(tmp_path)
    assert inspect(tmp_path, read_headers(tmp_path)).n_parameters == sum(one.numel() for one in model.parameters())


# ---- who may read what is written -------------------------------------------------------------------------------


def test_files_of_models_follow_the_umask(tmp_path: Path) -> None:
    """The safetensors library writes for the owner only."""
    code = (
        "import os, sys; os.umask(int(sys.argv[2], 8)); from pathlib import Path; import numpy as np; "
        "from safetensors.numpy import save_file; from id_scaling.runtime.atomic_files import writing, writing_folder\n"
        "root = Path(sys.argv[1])\n"
        "with writing(root / 'one') as aside: save_file({'a': np.ones(2)}, aside)\n"
        "with writing_folder(root / 'two') as whole: save_file({'a': np.ones(2)}, whole / 'a')\n"
        "print(*(oct(path.stat().st_mode & 0o777) for path in (root / 'one', root / 'two' / 'a')))"
    )
    for umask, expected in (("022", "0o644"), ("002", "0o664"), ("077", "0o600")):
        folder = tmp_path / umask
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder), umask],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.stdout.split() == [expected, expected]
