"""What a stranger's files can make this project do: no code of theirs runs, and no secret of the user's is written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
import yaml
from conftest import ROOT, save_tiny_llama, study
from safetensors.torch import load_file

from id_scaling.cli.main import VERBS, main
from id_scaling.errors import ConfigError, InputError
from id_scaling.models.loading import load_model
from id_scaling.models.modules import SiteRequest
from id_scaling.runtime.atomic_files import read_json, sha256
from id_scaling.runtime.logging import LOG, plain
from id_scaling.sources.build import built
from id_scaling.sources.model_checks import check_built
from id_scaling.sources.models import fetch_model
from id_scaling.text.readers import Shard
from id_scaling.text.tokenization import load_tokenizer

REQUEST = SiteRequest(None, ("block",), (), None)
GIVEN = SiteRequest(None, ("block",), (), {"block": "model.layers.{layer}"})


class Evil:
    """An object that, once unpickled, makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.fixture
def pwned(tmp_path: Path) -> Path:
    """What exists once a stranger's code has run."""
    return tmp_path / "pwned"


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    """A folder with a random two-layer Llama, to be changed."""
    return shutil.copytree(tiny_llama, tmp_path / "model")


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps({**(read_json(path) if path.is_file() else {}), **changes}))


def identity(model: Path, allow_pickle: bool = False, request: SiteRequest = REQUEST) -> dict[str, Any]:
    """Return the identity that fetching a model writes."""
    output = model.parent / "identity.json"
    fetch_model(str(model), "main", request, 64, output, allow_pickle)
    return read_json(output)


def loaded(model: Path, is_pickled: bool = False) -> Any:
    """Return a model as an extraction loads it."""
    return load_model(model, torch.float32, torch.device("cpu"), use_accelerator=False, is_pickled=is_pickled)


def as_pickle(model: Path, **more: Any) -> dict[str, torch.Tensor]:
    """Turn a model's weights into a pickle, with what else it may hold; return them."""
    tensors = load_file(model / "model.safetensors")
    torch.save({**tensors, **more}, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    return tensors


# ---- pickled weights -------------------------------------------------------------------------------------------


def test_the_pickle_of_these_tests_does_run_code(pwned: Path) -> None:
    pickle.loads(pickle.dumps(Evil(pwned)))
    assert pwned.exists()


@pytest.mark.parametrize("is_evil", [False, True])
def test_pickled_weights_are_refused_with_what_to_do(is_evil: bool, model: Path, pwned: Path) -> None:
    as_pickle(model, **({"x": Evil(pwned)} if is_evil else {}))
    with pytest.raises(InputError, match=r"pickled weights .* save_pretrained, or, .* allow_pickle: true"):
        identity(model)
    assert not (model.parent / "identity.json").exists()
    assert not pwned.exists()


def test_pickled_weights_are_read_of_a_model_whose_entry_says_so(
    model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOG, "propagate", True)
    weights = as_pickle(model)
    found = identity(model, allow_pickle=True)
    assert found["is_pickled"]
    assert found["weights"] == {"pytorch_model.bin": sha256(model / "pytorch_model.bin")}
    of_model = loaded(model, is_pickled=True).state_dict()
    assert all(torch.equal(of_model[name], values) for name, values in weights.items())
    assert [record.levelname for record in caplog.records if "pickled weights" in record.message] == ["WARNING"] * 2


def test_code_in_allowed_pickles_is_refused_and_not_run(model: Path, pwned: Path) -> None:
    as_pickle(model, x=Evil(pwned))
    identity(model, allow_pickle=True)
    with pytest.raises(InputError, match=r"hold more than tensors, .* save_pretrained"):
        loaded(model, is_pickled=True)
    assert not pwned.exists()


@pytest.mark.parametrize("is_pickled", [False, True])
def test_weights_are_asked_for_in_one_kind_of_file_and_as_tensors(
    is_pickled: bool, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    load = transformers.AutoModelForCausalLM.from_pretrained

    def watched(*arguments: Any, **options: Any) -> Any:
        asked.update(options)
        return load(*arguments, **options)

    if is_pickled:
        as_pickle(model)
    monkeypatch.setattr("id_scaling.models.loading.AutoModelForCausalLM.from_pretrained", watched)
    loaded(model, is_pickled)
    assert (asked["use_safetensors"], asked["weights_only"], asked["trust_remote_code"]) == (
        not is_pickled,
        True,
        False,
    )


def test_safetensors_are_taken_where_a_model_has_both(model: Path, pwned: Path) -> None:
    torch.save({"x": Evil(pwned)}, model / "pytorch_model.bin")
    found = identity(model, allow_pickle=True)
    assert not found["is_pickled"]
    assert list(found["weights"]) == ["model.safetensors"]
    loaded(model, is_pickled=found["is_pickled"])
    assert not pwned.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../other.safetensors", "absent.safetensors"])
def test_index_that_names_other_files_than_weights_beside_it_is_refused(name: str, model: Path, pwned: Path) -> None:
    """transformers would read them as weights, a pickle too."""
    torch.save({"x": Evil(pwned)}, model / "pytorch_model.bin")
    shutil.copy(model / "model.safetensors", model.parent / "other.safetensors")
    (model / "model.safetensors").rename(model / "decoy.safetensors")
    shards = {"metadata": {}, "weight_map": {"model.norm.weight": "decoy.safetensors", "x": name}}
    edit(model / "model.safetensors.index.json", **shards)
    with pytest.raises(InputError, match=r"index\.json: found .*, expected a \.safetensors file beside it"):
        identity(model)


def test_what_is_hashed_of_shards_is_what_the_index_names(model: Path) -> None:
    (model / "model.safetensors").rename(model / "a.safetensors")
    names = load_file(model / "a.safetensors")
    shards = dict.fromkeys(names, "a.safetensors")
    edit(model / "model.safetensors.index.json", metadata={"total_size": 1}, weight_map=shards)
    shutil.copy(model / "a.safetensors", model / "unread.safetensors")
    assert list(identity(model)["weights"]) == ["a.safetensors"]
    loaded(model)


@pytest.mark.parametrize("text", ["[]", "{", '{"weight_map": 3}', '{"weight_map": {"a": [1]}}'])
def test_index_that_is_none_is_said(text: str, model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match=r"index\.json"):
        identity(model)


# ---- code that comes with a model ------------------------------------------------------------------------------


@pytest.fixture
def with_code(model: Path, pwned: Path) -> Path:
    """A model folder with Python code for its config, model and tokenizer."""
    code = f"import os\nos.mkdir({str(pwned)!r})\nclass Config: pass\nModel = Tokenizer = Config\n"
    (model / "code.py").write_text(code)
    auto_map = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model", "AutoModel": "code.Model"}
    edit(model / "config.json", auto_map=auto_map)
    edit(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"]})
    return model


def test_code_of_a_model_that_transformers_knows_is_ignored(with_code: Path, pwned: Path) -> None:
    identity(with_code, request=GIVEN)
    loaded(with_code)
    assert load_tokenizer(with_code).encode(["the of"]) == [[1, 2]]
    assert not pwned.exists()


def test_model_that_needs_its_own_code_is_refused_before_any_job(with_code: Path, pwned: Path) -> None:
    edit(with_code / "config.json", model_type="evil")
    for attempt in (lambda: check_built(with_code, GIVEN, {}), lambda: built(with_code, "meta")):
        with pytest.raises(InputError, match="Python code that comes with it, which is never run; name one"):
            attempt()
    assert not pwned.exists()


def test_tokenizer_that_needs_its_own_code_is_refused(with_code: Path, pwned: Path) -> None:
    edit(with_code / "config.json", model_type="evil")
    edit(with_code / "tokenizer_config.json", tokenizer_class="EvilTokenizer")
    (with_code / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"never run .*model_config\.tokenizer"):
        load_tokenizer(with_code)
    assert not pwned.exists()


def test_nothing_is_loaded_without_saying_that_code_is_not_trusted() -> None:
    """Said each time: what is not said, transformers asks at the terminal."""
    for path in (ROOT / "id_scaling").rglob("*.py"):
        text = path.read_text()
        n_loads = text.count(".from_pretrained(") + text.count(".from_config(")
        assert text.count("trust_remote_code=False") == n_loads, path
        assert "trust_remote_code=True" not in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"transformers_weights": "adapter_model.bin"}, "weights in another file"),
        ({"attn_implementation": "owner/kernel"}, "code from the hub"),
        ({"_attn_implementation": "owner/kernel"}, "code from the hub"),
        ({"sub_config": {"attn_implementation": "owner/kernel"}}, "code from the hub"),
        ({"experts_implementation": {"": "owner/kernel"}}, "code from the hub"),
    ],
    ids=str,
)
def test_config_that_points_elsewhere_is_refused(changes: dict, words: str, model: Path) -> None:
    edit(model / "config.json", **changes)
    with pytest.raises(InputError, match=words):
        identity(model)


def test_usual_config_that_names_an_implementation_is_taken(model: Path) -> None:
    edit(model / "config.json", attn_implementation="sdpa")
    assert identity(model)["architecture"]["n_layers"] == 2


def test_adapter_is_refused_with_what_to_do(model: Path) -> None:
    edit(model / "adapter_config.json", base_model_name_or_path="owner/other")
    with pytest.raises(InputError, match="holds an adapter; merge it"):
        identity(model)


def test_infinity_in_a_config_is_a_value_like_others(model: Path) -> None:
    """As configs of Mamba 2 have it; NaN is no JSON, but Python writes it."""
    before = identity(model)["config_sha256"]
    edit(model / "config.json", time_step_limit=[0.0, float("inf")], other=float("nan"))
    assert identity(model)["config_sha256"] != before


@pytest.mark.parametrize("value", ["3", None, [], {}])
def test_number_of_layers_that_is_no_number_is_said(value: Any, model: Path) -> None:
    edit(model / "config.json", num_hidden_layers=value)
    with pytest.raises(InputError, match=r"config\.json: (found none of )?num_hidden_layers"):
        identity(model)


# ---- YAML, parquet ---------------------------------------------------------------------------------------------


def run(*arguments: Any, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Run Python in a process of its own, with more in its environment."""
    known = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=known)


TAGS = {
    "apply": "!!python/object/apply:os.mkdir [{}]",
    "new": "!!python/object/new:os.mkdir [{}]",
    "name": "!!python/name:os.mkdir",
    "module": "!!python/module:os",
}


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_that_names_python_objects_is_refused(tag: str, tmp_path: Path, pwned: Path) -> None:
    """By `validate`, and as Snakemake loads a configuration."""
    from snakemake.common.configfile import load_configfile

    from id_scaling.cli.study_commands import validate
    from id_scaling.study.study import Study

    path = tmp_path / "study.yaml"
    path.write_text(_without_ctx_len() + f"ctx_len: {TAGS[tag].format(pwned)}\n")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        validate(_arguments(path))
    with pytest.raises(Exception, match=r"could not determine a constructor|ctx_len: found .*, expected integer|YAML"):
        Study(load_configfile(path))
    assert not pwned.exists()


def test_template_that_snakemake_would_run_is_refused_by_validate(tmp_path: Path, pwned: Path) -> None:
    """The one way in which a configuration is code; the documentation says to validate a stranger's first."""
    from id_scaling.cli.study_commands import validate

    path = tmp_path / "study.yaml"
    path.write_text(_without_ctx_len() + f"__use_yte__: true\nctx_len: ?__import__('os').mkdir({str(pwned)!r})\n")
    with pytest.raises(ConfigError, match=r"__use_yte__ .* Python"):
        validate(_arguments(path))
    assert not pwned.exists()
    assert "__use_yte__" in (ROOT / "docs" / "configuration.md").read_text()


def _without_ctx_len() -> str:
    """Return a configuration that lacks `ctx_len`: a key that is there twice would be refused for that."""
    return yaml.safe_dump({key: value for key, value in study("m", "t").items() if key != "ctx_len"})


def _arguments(path: Path) -> Any:
    """Return the arguments of `validate`."""
    from argparse import Namespace

    return Namespace(config=path)


def test_parquet_that_names_a_python_type_is_read_as_what_it_stores(tmp_path: Path, pwned: Path) -> None:
    """Arrow once unpickled the metadata of columns of this extension type when a file was opened."""
    evil = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Evil(pwned))}
    columns = [pa.field(name, pa.string(), metadata=evil) for name in ("text", "other")]
    schema = pa.schema(columns, metadata={"pandas": pickle.dumps(Evil(pwned))})
    path = tmp_path / "00.parquet"
    pq.write_table(pa.table({"text": ["a b"], "other": ["c"]}, schema=schema), path)
    assert [document.text for document in Shard([path], "text", "id").records()] == ["a b"]
    assert not pwned.exists()


# ---- secrets ---------------------------------------------------------------------------------------------------

TOKEN = "hf_" + "SecretSecretSecretSecretSecretSecr"
PASSWORD = "s3cret-pass"


@pytest.fixture
def hub(tmp_path: Path) -> dict[str, str]:
    """An environment with a token, in a variable and in a file, and a hub whose address holds a password."""
    home = tmp_path / "hub"
    home.mkdir()
    (home / "token").write_text(TOKEN)
    address = f"http://user:{PASSWORD}@127.0.0.1:9"  # nothing listens there
    return {"HF_TOKEN": TOKEN, "HF_HOME": str(home), "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}


@pytest.mark.parametrize("way", ["plain", "traceback"])
def test_secrets_are_in_nothing_that_a_failing_fetch_says(way: str, hub: dict[str, str], tmp_path: Path) -> None:
    settings = {"model_name": "owner/model", "checkpoint": "main"}
    sites = {"layers": None, "inblock": ["block"], "outblock": [], "mapping": None}
    verb = [
        "fetch-model",
        "--verbose",
        "--settings",
        json.dumps(settings),
        "--execution",
        json.dumps(
            {
                "unlike": [],
                "ctx_len": 64,
                "sites": sites,
                "allow_pickle": False,
                "add_bos": "auto",
                "is_own_tokenizer": True,
            }
        ),
    ]
    verb += ["--output", tmp_path / "identity.json"]
    command = ["-m", "id_scaling", *verb]
    if way == "traceback":  # an error that nobody foresaw, which holds the address and the token
        code = (
            "import os, sys, huggingface_hub\n"
            "def fail(*_, **__): raise TypeError(os.environ['HF_ENDPOINT'], os.environ['HF_TOKEN'])\n"
            "huggingface_hub.snapshot_download = fail\n"
            "from id_scaling.cli.main import main\n"
            "main(sys.argv[1:])"
        )
        command = ["-c", code, *verb]
    done = run(*command, **hub)
    assert done.returncode == 1
    assert ("no answer" if way == "plain" else "Traceback") in done.stderr
    for secret in (TOKEN, PASSWORD):
        assert secret not in done.stdout + done.stderr
    for path in (path for path in tmp_path.rglob("*") if path.is_file() and path.name != "token"):
        assert not any(secret.encode() in path.read_bytes() for secret in (TOKEN, PASSWORD)), path


def test_log_and_error_of_a_verb_are_shown_plainly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Any) -> None:
        LOG.warning("found %s", f"\x1b[2J{TOKEN}")
        raise InputError(f"\x1b[2J{TOKEN}")

    for name, value in {"handlers": [], "propagate": True, "level": LOG.level}.items():
        monkeypatch.setattr(LOG, name, value)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setitem(VERBS, "describe", (fail, ("name", "--checkpoint")))
    assert main(["describe", "x"]) == 1
    logged, error = capsys.readouterr().err.splitlines()
    assert logged.endswith("found \\x1b[2J***")
    assert error == "error: \\x1b[2J***"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pass@host/x failed", "https://***@host/x failed"),
        ("https://token@host", "https://***@host"),
        ("https://host/a@b", "https://host/a@b"),
        (f"Bearer {TOKEN}!", "Bearer ***!"),
        ("hf_hub and hf_transfer", "hf_hub and hf_transfer"),
        ("a\x1b[31mred\x9b\n\tb", "a\\x1b[31mred\\x9b\n\tb"),
    ],
)
def test_text_is_shown_without_secrets_and_without_what_terminals_obey(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_token_of_another_form_is_hidden_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "of-another-form")
    assert plain("the of-another-form token") == "the *** token"
    monkeypatch.setenv("HF_TOKEN", "")
    assert plain("the of") == "the of"


@pytest.mark.parametrize("key", ["model_name", "tokenizer", "model_checkpoint"])
def test_address_with_a_password_is_refused_and_not_repeated(key: str) -> None:
    from id_scaling.study.config import parse

    with pytest.raises(ConfigError, match=f"model_config.{key}: found an address") as caught:
        parse(study("m", "t", **{f"model_config__{key}": f"https://user:{PASSWORD}@host/x"}))
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("key", ["token", "hf_token", "use_auth_token"])
def test_no_key_takes_a_token(key: str) -> None:
    from id_scaling.study.config import parse

    with pytest.raises(ConfigError, match=f"{key} is not a key") as caught:
        parse(study("m", "t", **{f"model_config__{key}": TOKEN}))
    assert TOKEN not in str(caught.value)


def test_what_one_entry_allows_is_not_allowed_to_the_next(model: Path, tmp_path: Path, text_folder: Path) -> None:
    from id_scaling.study.study import Study

    other = save_tiny_llama(tmp_path / "other", seed=1)
    for folder in (model, other):
        as_pickle(folder)
    entries = [{"model_name": str(model), "allow_pickle": True}, {"model_name": str(other)}]
    with pytest.raises(InputError, match=rf"{other} at main: .*allow_pickle"):
        Study(study(model, text_folder, model_config=entries)).check()
    entries[1]["allow_pickle"] = True
    Study(study(model, text_folder, model_config=entries)).check()
