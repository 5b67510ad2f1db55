"""From names to files: what is found, how it is identified, what is said of what is missing."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import WORDS, touch

from id_scaling.errors import ConfigError, IdScalingError, InputError
from id_scaling.models.modules import SiteRequest
from id_scaling.runtime.atomic_files import read_json, sha256
from id_scaling.runtime.locks import leased
from id_scaling.sources.base import resolve_model
from id_scaling.sources.build import built
from id_scaling.sources.model_checks import check_model, check_paths_of
from id_scaling.sources.model_config import Architecture, check_request, read_architecture
from id_scaling.sources.models import fetch_model
from id_scaling.sources.tokenizers import fetch_tokenizer
from id_scaling.sources.weight_headers import modules_of, read_headers
from id_scaling.storage.records import read_record

REQUEST = SiteRequest(None, ("block", "attn", "mlp"), ("emb", "unemb"), None)
ABSENT = "no-such-owner/no-such-name"


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    """A folder with a random two-layer Llama, to be changed."""
    return shutil.copytree(tiny_llama, tmp_path / "model")


@pytest.fixture
def checkpoints(tiny_llama: Path, tmp_path: Path) -> Path:
    """A folder of two checkpoint folders, and of one that is none."""
    root = tmp_path / "checkpoints"
    for name in ("step1000", "step2000"):
        shutil.copytree(tiny_llama, root / name)
    (root / "logs").mkdir()
    return root


def identity(model: Path, output: Path, request: SiteRequest = REQUEST, ctx_len: int = 64) -> dict[str, Any]:
    """Return the identity that fetching a model writes."""
    fetch_model(str(model), "main", request, ctx_len, output)
    return read_record(output)


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps({**read_json(path), **changes}))


# ---- models by name --------------------------------------------------------------------------------------------


def test_path_is_a_model_folder_and_a_bare_name_one_of_the_hub(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_model(str(checkpoints), "step1000").folder() == checkpoints / "step1000"
    assert resolve_model(str(checkpoints / "step2000"), "main").folder() == checkpoints / "step2000"
    assert resolve_model(ABSENT, "main").folder() is None
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("./checkpoints", "checkpoints", "~/checkpoints"):
        assert resolve_model(name, "step1000").folder().resolve() == (checkpoints / "step1000").resolve()


@pytest.mark.parametrize(
    ("name", "checkpoint", "words"),
    [
        ("{}/nothing", "main", ["nothing is not a folder", "'owner/model'"]),
        ("{}/checkpoints", "step100", ["checkpoints/step100", "did you mean 'step1000'"]),
        ("{}/checkpoints", "logs", ["no config.json", "step1000"]),
        ("{}/checkpoints", "main", ["holds checkpoints, not a model", "step1000, step2000"]),
        ("{}/checkpoints/logs", "main", ["no config.json", "no checkpoint folders"]),
        ("smollm2-135m-instruct", "step1", ["'main' alone", "'step1'"]),
        ("sotu-neox-64", "step3", ["'step0', 'step1', 'step4', 'step16', 'step64', 'step256' alone", "found 'step3'"]),
        ("sotu-neox-160", "main", ["sotu-neox-160 has 'step0'", "found 'main'"]),
        ("sotu-neox", "main", ["is a tokenizer", "sotu-neox-64, sotu-neox-96, sotu-neox-160"]),
        # A name that only looks like a path, and one too long to be one.
        ("~no-such-user/model", "main", ["~no-such-user/model"]),
    ],
)
def test_missing_model_or_checkpoint_is_said(
    name: str, checkpoint: str, words: list[str], checkpoints: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        resolve_model(name.format(tmp_path), checkpoint).folder()
    assert [word for word in words if word not in str(caught.value)] == []


def test_name_too_long_for_a_path_is_no_path() -> None:
    name = "owner/" + "x" * 290  # file systems end at 255 bytes a name
    assert resolve_model(name, "main").folder() is None


@pytest.mark.parametrize(
    "fetch",
    [
        pytest.param(lambda output: fetch_model(ABSENT, "main", REQUEST, 64, output), id="model"),
        pytest.param(lambda output: fetch_tokenizer(ABSENT, output), id="tokenizer"),
    ],
)
def test_hub_out_of_reach_is_said_with_what_to_do(fetch: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        fetch(tmp_path / "identity.json")
    message = str(caught.value)
    assert [word for word in (ABSENT, "where there is a network", "local folder") if word not in message] == []
    assert not (tmp_path / "identity.json").exists()


@pytest.mark.parametrize("name", ["a/b/c", "two words"])
def test_name_that_no_repository_can_have_is_said(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        fetch_tokenizer(name, tmp_path / "identity.json")
    assert name in str(caught.value)
    assert "check the spelling" in str(caught.value)


# ---- identity of a model ---------------------------------------------------------------------------------------


def test_identity_says_what_was_fetched(model: Path, tmp_path: Path) -> None:
    found = identity(model, tmp_path / "identity.json")
    assert found["path"] == str(model.resolve())
    assert (found["model_name"], found["checkpoint"], found["commit"]) == (str(model), "main", None)
    assert found["architecture"] == {
        "model_type": "llama",
        "n_layers": 2,
        "width": 32,
        "vocab_size": len(WORDS) + 1,
        "max_positions": 128,
    }
    assert found["weights"] == {"model.safetensors": sha256(model / "model.safetensors")}


def test_folder_named_by_a_commit_has_that_commit(model: Path, tmp_path: Path) -> None:
    snapshot = model.rename(tmp_path / ("0123456789" * 4))
    assert identity(snapshot, tmp_path / "identity.json")["commit"] == "0123456789" * 4


def test_identity_is_the_same_after_touch_and_copy(model: Path, tmp_path: Path) -> None:
    before = identity(model, tmp_path / "before.json")
    touch(model)
    assert identity(model, tmp_path / "after.json") == before
    copied = identity(shutil.copytree(model, tmp_path / "copy"), tmp_path / "copied.json")
    assert (copied["weights_sha256"], copied["tokenizer_sha256"]) == (
        before["weights_sha256"],
        before["tokenizer_sha256"],
    )


def test_weights_hash_changes_with_one_number_of_one_tensor(model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    before = identity(model, tmp_path / "before.json")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][3] += 1
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    after = identity(model, tmp_path / "after.json")
    assert after["weights_sha256"] != before["weights_sha256"]
    assert after["tokenizer_sha256"] == before["tokenizer_sha256"]


def test_tokenizer_hash_changes_with_the_tokenizer_alone(model: Path, tmp_path: Path) -> None:
    before = identity(model, tmp_path / "before.json")
    edit(model / "tokenizer.json", added_tokens=[])
    after = identity(model, tmp_path / "after.json")
    assert after["tokenizer_sha256"] != before["tokenizer_sha256"]
    assert after["weights_sha256"] == before["weights_sha256"]


def test_identity_changes_with_the_configuration_that_the_weights_are_run_by(model: Path, tmp_path: Path) -> None:
    before = identity(model, tmp_path / "before.json")
    edit(model / "config.json", rms_norm_eps=0.5, hidden_act="gelu")
    assert identity(model, tmp_path / "after.json") != before


@pytest.mark.parametrize(
    ("request_", "ctx_len", "message"),
    [
        (SiteRequest((0, 2), ("block",), (), None), 64, r"found layer 2, but the model has 2 layers"),
        (SiteRequest(None, ("bloc",), (), None), 64, r"key 'bloc' of a llama model; did you mean 'block'"),
        (
            SiteRequest(None, ("attn",), (), {"attn": "model.layers.{layer}.self_atn"}),
            64,
            r"no module 'model\.layers\.0\.self_atn'; did you mean 'model\.layers\.\{layer\}\.self_attn'",
        ),
        (REQUEST, 129, r"ctx_len: found 129, but the model has 128 positions; use a ctx_len of at most 128"),
    ],
    ids=["layer", "key", "path", "positions"],
)
def test_model_that_does_not_suit_the_study_is_refused(
    request_: SiteRequest, ctx_len: int, message: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        identity(model, tmp_path / "identity.json", request_, ctx_len)
    assert not (tmp_path / "identity.json").exists()


def test_context_of_all_positions_is_taken(model: Path, tmp_path: Path) -> None:
    assert identity(model, tmp_path / "identity.json", ctx_len=128)["architecture"]["max_positions"] == 128


def test_architecture_that_transformers_does_not_know_is_said(model: Path, tmp_path: Path) -> None:
    edit(model / "config.json", model_type="llamma")
    with pytest.raises(IdScalingError, match="llamma"):
        identity(model, tmp_path / "identity.json")


# ---- modules and architecture ----------------------------------------------------------------------------------


def test_modules_are_those_of_the_loaded_model(tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tiny_llama)
    names = {name for name, _ in loaded.named_modules()}
    assert {name for name, _ in built(tiny_llama, "meta").named_modules()} == names
    quick = modules_of(read_headers(tiny_llama))
    assert {"model", "model.layers.1", "model.layers.1.self_attn.q_proj", "lm_head"} <= quick <= names


def test_module_without_tensors_may_be_read_too(tiny_llama: Path) -> None:
    without = "model.layers.{layer}.mlp.act_fn"
    headers = read_headers(tiny_llama)
    assert without.format(layer=0) not in modules_of(headers)
    check_paths_of(tiny_llama, SiteRequest(None, ("act",), (), {"act": without}), headers)
    with pytest.raises(ConfigError, match=r"no module 'model\.layers\.0\.mlp\.act_fun'; did you mean .*act_fn'"):
        check_paths_of(
            tiny_llama, SiteRequest(None, ("act",), (), {"act": without.replace("act_fn", "act_fun")}), headers
        )


CONFIGS = [
    ("llama", {"num_hidden_layers": 3, "hidden_size": 64, "vocab_size": 99, "max_position_embeddings": 77}, 77),
    ("gpt2", {"n_layer": 3, "n_head": 4, "n_embd": 64, "vocab_size": 99, "n_positions": 77}, 77),
    ("gptj", {"n_layer": 3, "n_embd": 64, "vocab_size": 99, "n_positions": 77}, 77),
    ("gpt_neox", {"num_hidden_layers": 3, "hidden_size": 64, "vocab_size": 99, "max_position_embeddings": 77}, 77),
    (
        "gpt_neo",
        {
            "num_layers": 3,
            "hidden_size": 64,
            "vocab_size": 99,
            "max_position_embeddings": 77,
            "attention_types": [[["global", "local", "global"], 1]],
        },
        77,
    ),
    ("bloom", {"n_layer": 3, "hidden_size": 64, "vocab_size": 99}, None),
    ("mamba", {"num_hidden_layers": 3, "hidden_size": 64, "vocab_size": 99}, None),
    ("rwkv", {"num_hidden_layers": 3, "hidden_size": 64, "vocab_size": 99, "context_length": 77}, 77),
]


@pytest.mark.parametrize(("model_type", "options", "positions"), CONFIGS, ids=[row[0] for row in CONFIGS])
def test_architecture_is_read_as_transformers_saves_it(
    model_type: str, options: dict, positions: int | None, tmp_path: Path
) -> None:
    from transformers import AutoConfig

    AutoConfig.for_model(model_type, **options).save_pretrained(tmp_path)
    assert read_architecture(tmp_path) == Architecture(model_type, 3, 64, 99, positions)


def test_architecture_of_a_model_with_more_than_text_is_that_of_its_text(tmp_path: Path) -> None:
    """What it leaves out is what its architecture has by default, as Gemma 3's own files leave the vocabulary out."""
    text = {"model_type": "gemma3_text", "num_hidden_layers": 3, "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    assert read_architecture(tmp_path) == Architecture("gemma3", 3, 64, 262_208, 131_072)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["no config.json", "model folder"]),
        ('{"model_type": "llama", "hidden_size": 4, "vocab_size": 9}', ["num_hidden_layers, n_layer", "causal"]),
        ('{"num_hidden_layers": 2, "hidden_size": 4, "vocab_size": 9}', ["model_type"]),
        ('{"model_type": "llama", "hidden', ["config.json"]),
        ("[]", ["config.json"]),
    ],
    ids=["no file", "no layers", "no type", "cut short", "no mapping"],
)
def test_folder_without_a_usable_config_is_said(text: str | None, words: list[str], tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError) as caught:
        read_architecture(tmp_path)
    assert [word for word in [*words, str(tmp_path)] if word not in str(caught.value)] == []


def test_model_without_a_bound_takes_any_context() -> None:
    request = SiteRequest(None, ("block",), (), None)
    assert len(check_request(request, 10**6, Architecture("mamba", 3, 48, 99, None))) == 3
    assert len(check_request(request, 77, Architecture("llama", 3, 48, 99, 77))) == 3
    with pytest.raises(ConfigError, match="found 78, but the model has 77 positions"):
        check_request(request, 78, Architecture("llama", 3, 48, 99, 77))


def test_weights_cut_short_are_said(model: Path) -> None:
    raw = (model / "model.safetensors").read_bytes()
    for length in (0, 5, 200):
        (model / "model.safetensors").write_bytes(raw[:length])
        with pytest.raises(InputError, match=r"model\.safetensors"):
            check_model(model, SiteRequest(None, (), ("end",), {"end": "model.norm"}), 64)


# ---- checkpoints of the same weights ---------------------------------------------------------------------------


def test_checkpoint_with_the_weights_of_another_is_an_error_that_names_both(checkpoints: Path, tmp_path: Path) -> None:
    outputs = {name: tmp_path / f"{name}.json" for name in ("step1000", "step2000")}

    def fetch(name: str) -> None:
        others = [path for path in outputs.values() if path != outputs[name]]
        fetch_model(str(checkpoints), name, REQUEST, 64, outputs[name], others=others)

    fetch("step1000")
    with pytest.raises(InputError) as caught:
        fetch("step2000")
    words = (f"{checkpoints} at step2000", f"those of {checkpoints} at step1000", "allow_identical_checkpoints: true")
    assert [word for word in words if word not in str(caught.value)] == []
    assert not outputs["step2000"].exists()
    # The other one has changed since, and will be fetched again: what is there now counts.
    with (checkpoints / "step1000" / "model.safetensors").open("ab") as weights:
        weights.write(b"\0")
    fetch("step2000")


def test_of_two_checkpoints_that_are_fetched_at_once_the_second_sees_the_first(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one writes while the second, which has read all there is to read, waits."""
    monkeypatch.setattr("id_scaling.runtime.locks.LOOK", 0.01)
    first, second = tmp_path / "step1000" / "identity.json", tmp_path / "step2000" / "identity.json"
    with ThreadPoolExecutor() as pool:
        with leased(tmp_path):
            fetched = pool.submit(fetch_model, str(checkpoints), "step2000", REQUEST, 64, second, others=[first])
            time.sleep(0.3)
            fetch_model(str(checkpoints), "step1000", REQUEST, 64, first)
        with pytest.raises(InputError, match=r"step2000: its weights are, to the last bit, those of .* at step1000"):
            fetched.result()
    assert not second.exists()


def test_identity_of_another_checkpoint_that_is_damaged_is_not_this_ones_error(
    checkpoints: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.json").write_text("{")
    fetch_model(str(checkpoints), "step1000", REQUEST, 64, tmp_path / "model.json", others=[tmp_path / "other.json"])


# ---- tokenizers ------------------------------------------------------------------------------------------------


def test_tokenizer_is_the_models_own_or_that_of_its_first_checkpoint(checkpoints: Path, tmp_path: Path) -> None:
    output = tmp_path / "tokenizer.json"
    fetch_tokenizer(str(checkpoints), output)
    assert read_record(output)["path"] == str((checkpoints / "step1000").resolve())
    shutil.copy(checkpoints / "step2000" / "tokenizer.json", checkpoints)
    fetch_tokenizer(str(checkpoints), output)
    assert read_record(output)["path"] == str(checkpoints.resolve())


def test_folder_without_a_tokenizer_is_said(checkpoints: Path, tmp_path: Path) -> None:
    for path in checkpoints.glob("*/tokenizer.json"):
        path.unlink()
    with pytest.raises(InputError, match=r"no tokenizer, expected one of tokenizer\.json, tokenizer\.model"):
        fetch_tokenizer(str(checkpoints), tmp_path / "identity.json")


def test_tokenizer_of_a_checkpoint_that_has_its_own_is_the_models_when_equal(checkpoints: Path, tmp_path: Path) -> None:
    fetch_tokenizer(str(checkpoints), tmp_path / "tokenizer.json")
    fetch_model(str(checkpoints), "step2000", REQUEST, 64, tmp_path / "model.json")
    assert (
        read_record(tmp_path / "model.json")["tokenizer_sha256"] == read_record(tmp_path / "tokenizer.json")["sha256"]
    )


def test_checkpoint_without_a_tokenizer_has_that_of_its_model(checkpoints: Path, tmp_path: Path) -> None:
    # Training scripts often save the tokenizer once, beside the checkpoint folders.
    shutil.copy(checkpoints / "step1000" / "tokenizer.json", checkpoints)
    for path in checkpoints.glob("*/tokenizer*"):
        path.unlink()
    fetch_tokenizer(str(checkpoints), tmp_path / "tokenizer.json")
    fetch_model(str(checkpoints), "step2000", REQUEST, 64, tmp_path / "model.json")
    assert (
        read_record(tmp_path / "model.json")["tokenizer_sha256"] == read_record(tmp_path / "tokenizer.json")["sha256"]
    )


def test_checkpoint_on_disk_is_not_sought_on_the_hub(checkpoints: Path, tmp_path: Path) -> None:
    assert resolve_model(str(checkpoints), "step1000").config_folder(tmp_path) == checkpoints / "step1000"


def test_architecture_of_a_model_that_is_yet_to_be_trained_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = read_architecture(resolve_model("sotu-neox-96", "step4").config_folder(tmp_path))
    assert found == Architecture("gpt_neox", 6, 96, 2048, 256)
