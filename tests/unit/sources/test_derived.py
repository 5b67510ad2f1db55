"""Checkpoints made here: of a GGUF file, and untrained ones of an architecture and a seed."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import polars as pl
import pytest
import torch
from conftest import ROOT, Workflow, save_tokenizer, study
from gguf_files import save_gguf
from safetensors.torch import load_file
from verbs import Session

from id_scaling.cli.main import main
from id_scaling.errors import ConfigError, InputError
from id_scaling.sources import gguf_conversion as conversion
from id_scaling.sources.base import resolve_model
from id_scaling.sources.gguf_conversion import convert_gguf, gguf_model, gguf_tokenizer
from id_scaling.sources.gguf_header import check_gguf
from id_scaling.sources.tokenizers import fetch_tokenizer
from id_scaling.sources.untrained import seed_of
from id_scaling.storage.records import read_record
from id_scaling.study.study import Study


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """The tiny Llama as a GGUF file; not to be changed."""
    return save_gguf(tiny_llama, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_gguf_file_is_studied_as_the_model_it_was_made_from(
    tmp_path: Path, gguf_file: Path, tiny_llama: Path, text_folder: Path
) -> None:
    session = Session(tmp_path / "session", study(gguf_file, text_folder))
    identity, tokenizer = (read_record(Path(session.paths[name])) for name in ("model", "tokenizer"))
    ours, theirs = (load_file(Path(folder) / "model.safetensors") for folder in (identity["path"], tiny_llama))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert Path(identity["path"]).parent == Path(session.paths["model"]).parent
    assert identity["tokenizer_sha256"] == tokenizer["sha256"]
    assert main(session.estimate("block", "mle", tmp_path / "mle.parquet")) == 0
    # Some contexts have fewer different tokens than `mle` takes.
    assert set(pl.read_parquet(tmp_path / "mle.parquet").filter(pl.col("view") != "one_per_token")["status"]) == {"ok"}


def test_a_gguf_file_is_an_input_of_what_is_made_of_it(gguf_file: Path, text_folder: Path) -> None:
    made = Study(study(gguf_file, text_folder))
    (model,), (tokenizer,) = made.models, made.tokenizers
    assert made.model_files(model, "main") == made.tokenizer_files(tokenizer) == [str(gguf_file)]
    made.check()


def test_a_layer_beyond_a_gguf_file_is_said_before_it_is_converted(gguf_file: Path, text_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"tiny\.gguf at main: .*layer_idx_list: found layer 2, .* has 2 layers"):
        Study(study(gguf_file, text_folder, cacheing_config__layer_idx_list=[2])).check()
    made = Study(study(gguf_file, text_folder, cacheing_config__layer_idx_list=[-1]))
    assert made.sites(next(iter(made.models)))["layers"] == [1]


def test_a_gguf_file_is_one_model(gguf_file: Path, text_folder: Path) -> None:
    config = study(gguf_file, text_folder, model_config__model_checkpoint="step1")
    with pytest.raises(InputError, match="its checkpoint is 'main', found 'step1'"):
        Study(config).check()


def test_a_gguf_file_that_is_not_there_is_said(text_folder: Path) -> None:
    with pytest.raises(InputError, match=r"owner/model.gguf is not a file; download it"):
        Study(study(Path("owner/model.gguf"), text_folder)).check()


def test_a_gguf_file_that_is_cut_short_is_said(tmp_path: Path, gguf_file: Path, text_folder: Path, capsys) -> None:
    (tmp_path / "cut.gguf").write_bytes(gguf_file.read_bytes()[:1000])
    assert main(["describe", str(tmp_path / "cut.gguf")]) == 1
    assert "cut.gguf: damaged or cut short: not a whole GGUF file" in capsys.readouterr().err


@pytest.mark.parametrize("cut", [0, 3, 20, 1000, -1])
def test_a_gguf_file_that_is_not_whole_is_refused_before_any_job(
    cut: int, tmp_path: Path, gguf_file: Path, text_folder: Path
) -> None:
    (tmp_path / "cut.gguf").write_bytes(gguf_file.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"cut\.gguf: damaged or cut short"):
        Study(study(tmp_path / "cut.gguf", text_folder)).check()


def test_mutated_gguf_headers_are_read_or_refused_quickly(tmp_path: Path, gguf_file: Path) -> None:
    """Whatever a length says: no more is read than is there."""
    raw, draw, path = gguf_file.read_bytes(), random.Random(0), tmp_path / "mutated.gguf"
    n_refused, start = 0, time.process_time()
    for _ in range(400):
        content = bytearray(raw)
        for _ in range(draw.choice([1, 1, 4])):
            content[draw.randrange(3000)] = draw.choice([0, 1, 127, 255, draw.randrange(256)])
        path.write_bytes(content)
        try:
            check_gguf(path)
        except InputError:
            n_refused += 1
    assert n_refused > 100
    assert time.process_time() - start < 30  # 1 s where the machine is idle


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("llama.block_count", 10**9, r"found 1000000000"),
        ("llama.block_count", 999, r"found 999 layers, but the file holds 21 tensors"),
        ("llama.attention.head_count", 0, r"found 0, expected a number from 1"),
        ("llama.embedding_length", 2**31, r"found 2147483648"),
    ],
)
def test_impossible_sizes_of_a_gguf_file_are_refused(
    name: str, value: int, words: str, tmp_path: Path, gguf_file: Path
) -> None:
    raw, key = gguf_file.read_bytes(), name.encode()
    place = raw.index(key) + len(key) + 4  # after the type of the value
    (tmp_path / "other.gguf").write_bytes(raw[:place] + struct.pack("<I", value) + raw[place + 4 :])
    with pytest.raises(InputError, match=rf"{name}: {words}"):
        check_gguf(tmp_path / "other.gguf")


def test_a_gguf_file_is_converted_once_for_all_sessions(
    tmp_path: Path, gguf_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("id_scaling.sources.cache.CACHE", tmp_path / "cache")
    calls = []
    for name in ("_convert", "gguf_config", "gguf_tokenizer"):
        original = getattr(conversion, name)
        monkeypatch.setattr(conversion, name, lambda *given, made=original: calls.append(made.__name__) or made(*given))
    with caplog.at_level("INFO", "id_scaling"):
        for session in ("one", "two"):
            gguf_model(gguf_file, tmp_path / session)
            resolve_model(str(gguf_file), "main").config_folder(tmp_path)
            fetch_tokenizer(str(gguf_file), tmp_path / session / "tokenizer.json")
    assert sorted(calls) == ["_convert", "gguf_config", "gguf_tokenizer", "gguf_tokenizer"]
    assert "which may take" in caplog.text
    one, two = (load_file(tmp_path / session / "model.safetensors") for session in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    shutil.rmtree(tmp_path / "cache")  # what sessions have stays
    assert load_file(tmp_path / "one" / "model.safetensors").keys() == one.keys()


def test_no_bar_is_drawn_in_a_log(tmp_path: Path, gguf_file: Path) -> None:
    command = [sys.executable, "-m", "id_scaling", "describe", str(shutil.copy(gguf_file, tmp_path / "tiny.gguf"))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert "reading the config and the tokenizer" in done.stderr
    assert "it/s" not in done.stderr
    assert "%|" not in done.stderr


def test_a_gguf_file_without_a_tensor_is_refused(tmp_path: Path, tiny_llama: Path) -> None:
    """transformers would fill it with random numbers."""
    path = save_gguf(tiny_llama, tmp_path / "part.gguf", left_out="blk.1.ffn_up")
    with pytest.raises(InputError, match=r"its tensors are not those of its architecture: .*layers\.1\.mlp\.up_proj"):
        convert_gguf(path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def scaled(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(8.0)


@pytest.mark.parametrize(
    ("say", "what"),
    [
        (lambda writer: writer.add_float32("llama.rope.scale_linear", 4.0), r"llama\.rope\.scale_linear = 4"),
        (scaled, r"rope\.scaling\.type = yarn, .*factor = 8"),
        (lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32)), "rope_freqs.weight"),
        (lambda writer: writer.add_tensor("blk.0.attn_q.bias", np.ones(32, np.float32)), "1 biases"),
        (lambda writer: writer.add_uint16("split.count", 3), "split.count = 3"),
    ],
)
def test_what_a_gguf_file_says_and_transformers_does_not_read_is_refused(
    say: Callable, what: str, tmp_path: Path, tiny_llama: Path
) -> None:
    path = save_gguf(tiny_llama, tmp_path / "more.gguf", say=say)
    with pytest.raises(InputError, match=f"transformers does not read .*{what}"):
        convert_gguf(path, tmp_path / "model")


@pytest.mark.parametrize("split", ["smollm", "gpt-2", None, "llama-bpe"])
def test_the_tokenizer_of_a_gguf_file_splits_text_as_it_says(
    split: str | None, tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = save_gguf(tiny_llama, tmp_path / "a.gguf", say=lambda writer: split and writer.add_tokenizer_pre(split))
    pre_tokenizer = gguf_tokenizer(path).backend_tokenizer.pre_tokenizer
    words = [word for word, _ in pre_tokenizer.pre_tokenize_str("in 1999")]
    assert words == {"smollm": ["in", "Ġ", "1", "9", "9", "9"], "llama-bpe": ["in", "Ġ", "199", "9"]}.get(
        split, ["in", "Ġ1999"]
    )
    fetch_tokenizer(str(path), tmp_path / "identity.json")


def test_a_gguf_file_that_splits_text_as_nobody_here_knows_is_refused(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = save_gguf(tiny_llama, tmp_path / "a.gguf", say=lambda writer: writer.add_tokenizer_pre("viking"))
    with pytest.raises(InputError, match=r"splits text into words as 'viking', .*model_config\.tokenizer"):
        fetch_tokenizer(str(path), tmp_path / "identity.json")
    assert not (tmp_path / "identity.json").exists()
    gguf_model(path, tmp_path / "model")  # which may be studied with the tokenizer of another


def test_what_lies_beside_a_gguf_file_is_not_read(tmp_path: Path, gguf_file: Path) -> None:
    alone = gguf_tokenizer(gguf_file)("the of and")["input_ids"]
    beside = shutil.copy(gguf_file, tmp_path / "tiny.gguf")
    save_tokenizer(tmp_path)
    assert gguf_tokenizer(beside)("the of and")["input_ids"] == alone


def test_describe_reads_a_gguf_file(gguf_file: Path, capsys) -> None:
    assert main(["describe", str(gguf_file)]) == 0
    said = capsys.readouterr().out
    assert "model_type: llama\nn_layers: 2\nwidth: 32\n" in said
    assert "block: model.layers.{layer}" in said


@pytest.mark.parametrize(
    ("checkpoint", "seed"),
    [("random-init", 0), ("random-init-0", 0), ("random-init-17", 17), ("main", None), ("random-init-x", None)],
)
def test_the_name_of_untrained_weights_holds_their_seed(checkpoint: str, seed: int | None) -> None:
    assert seed_of(checkpoint) == seed


def untrained(folder: Path, model: Path, text: Path, checkpoint: str) -> dict[str, torch.Tensor]:
    """Return the weights of an untrained checkpoint, fetched and extracted."""
    session = Session(folder, study(model, text, model_config__model_checkpoint=checkpoint))
    identity = read_record(Path(session.paths["model"]))
    assert read_record(Path(session.paths["manifest"]))["weights"] == identity["weights_sha256"]
    return load_file(Path(identity["path"]) / "model.safetensors")


def test_untrained_weights_are_those_their_architecture_begins_with(
    tmp_path: Path, tiny_llama: Path, text_folder: Path
) -> None:
    first, again, other = (
        untrained(tmp_path / str(number), tiny_llama, text_folder, checkpoint)
        for number, checkpoint in enumerate(("random-init", "random-init-0", "random-init-1"))
    )
    # The tiny model is untrained itself, made by its own class after the same seed.
    own = load_file(tiny_llama / "model.safetensors")
    for weights in (first, again):
        assert weights.keys() == own.keys()
        assert all(torch.equal(weights[name], own[name]) for name in own)
    matrices = [name for name in own if own[name].ndim == 2]
    assert not any(torch.equal(other[name], own[name]) for name in matrices)
    # A Llama's are drawn with a standard deviation of 0.02; of 1,024 numbers it is known to 2 %.
    assert all(other[name].std().item() == pytest.approx(0.02, rel=0.15) for name in matrices)


def test_untrained_weights_need_no_trained_ones(tmp_path: Path, tiny_llama: Path, text_folder: Path) -> None:
    """Of a folder of checkpoints they are of the first one's architecture."""
    shutil.copytree(tiny_llama, tmp_path / "family" / "step1")
    (tmp_path / "family" / "step1" / "model.safetensors").unlink()
    config = study(tmp_path / "family", text_folder, model_config__model_checkpoint=["random-init", "random-init-1"])
    made = Study(config)
    made.check()
    settings = made.fetch_model_settings(next(iter(made.models)), "random-init")
    # One more checkpoint that becomes the first changes nothing, as long as it is of the same architecture.
    shutil.copytree(tmp_path / "family" / "step1", tmp_path / "family" / "step0")
    again = Study(config)
    assert again.fetch_model_settings(next(iter(again.models)), "random-init") == settings
    assert again.model_files(next(iter(again.models)), "random-init") == []
    config["cacheing_config"]["layer_idx_list"] = [2]
    with pytest.raises(ConfigError, match=r"at random-init: .*found layer 2, but the model has 2 layers"):
        Study(config).check()


@pytest.mark.workflow
def test_a_study_of_trained_and_untrained_weights_runs(tmp_path: Path, tiny_llama: Path, text_folder: Path) -> None:
    config = study(tiny_llama, text_folder, model_config__model_checkpoint=["main", "random-init-1"])
    config["cacheing_config"]["save_IDs_list"] = ["mle"]
    workflow = Workflow(tmp_path, config)
    workflow.run()
    assert workflow.planned() == {}
    summary = pl.read_parquet(workflow.session / "summary.parquet")
    assert set(summary["checkpoint"]) == {"main", "random-init-1"}
    assert summary.group_by("checkpoint").agg(pl.col("mean_loss").first())["mean_loss"].n_unique() == 2
