"""A training here: the same to the last bit whatever ends it on the way, and checkpoints that the rest can read."""

from __future__ import annotations

import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest
import torch
from conftest import random_text
from tokenizers import Tokenizer

from id_scaling.errors import Ended, InputError
from id_scaling.models.loading import load_model
from id_scaling.runtime.atomic_files import canonical_json, sha256
from id_scaling.sources import bundled
from id_scaling.sources import bundled_training as training
from id_scaling.sources.bundled_training import BATCH, learning_rate, read_contexts, train_model, train_tokenizer
from id_scaling.study.fingerprint import ROOTS, fingerprint
from id_scaling.text.chunking import bos_token, load_tokenizer

VOCABULARY, N_TOKENS = 300, 32
CONFIG = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": N_TOKENS,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
}
SETTINGS = {"config": CONFIG, "steps": [0, 1, 3, 6], "code": "0"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two shards of five documents each."""
    folder = tmp_path_factory.mktemp("texts")
    paths = [folder / "0001.parquet", folder / "0002.parquet"]
    for number, path in enumerate(paths):
        pl.DataFrame({"text": [random_text(300, seed=10 * number + seed) for seed in range(5)]}).write_parquet(path)
    return paths


@pytest.fixture(scope="module")
def tokenizer(shards: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer trained on them."""
    folder = tmp_path_factory.mktemp("trained") / "tokenizer"
    train_tokenizer(shards, VOCABULARY, folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(shards: list[Path], tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that nothing disturbed; not to be changed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "model"
    train_model(shards, tokenizer, SETTINGS, folder)
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder, by its path in it."""
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The batches of all updates that are made."""
    batches, update = [], training._Training._update

    def counted(self: training._Training, batch: torch.Tensor, rate: float) -> float:
        batches.append(batch)
        return update(self, batch, rate)

    monkeypatch.setattr(training._Training, "_update", counted)
    return batches


# ---- the same bits ---------------------------------------------------------------------------------------------


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Have torch compute on two threads."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(n_threads)


@pytest.mark.usefixtures("two_threads")
def test_training_again_gives_the_same_bits_whatever_the_process_did_before(
    undisturbed: Path, shards: list[Path], tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It computes on one thread and draws from its own seed, and leaves both settings of the process as they were."""
    torch.manual_seed(123)
    before, n_threads, update = torch.get_rng_state(), [], training._Training._update

    def counted(self: training._Training, batch: torch.Tensor, rate: float) -> float:
        n_threads.append(torch.get_num_threads())
        return update(self, batch, rate)

    monkeypatch.setattr(training._Training, "_update", counted)
    train_model(shards, tokenizer, SETTINGS, tmp_path / "model")
    assert contents(tmp_path / "model") == contents(undisturbed)
    assert (torch.get_rng_state() == before).all()
    assert (set(n_threads), torch.get_num_threads()) == ({1}, 2)


def ended_after(n_calls: int, function: Callable) -> Callable:
    """Return a function that ends the process, as a signal does, at a call after so many."""
    calls = []

    def counted(*arguments: object, **named: object) -> object:
        if len(calls) == n_calls:
            raise Ended
        calls.append(arguments)
        return function(*arguments, **named)

    return counted


@pytest.mark.parametrize(
    ("n_made", "n_left"),
    [pytest.param(0, 6, id="before any"), (1, 5), (2, 5), (3, 3), pytest.param(5, 3, id="before the last")],
)
def test_training_that_was_ended_goes_on_from_its_last_checkpoint_and_ends_in_the_same_bits(
    n_made: int,
    n_left: int,
    undisturbed: Path,
    shards: list[Path],
    tokenizer: Path,
    tmp_path: Path,
    updates: list,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ended at an update after so many, it makes again those after the last of steps 1, 3 and 6."""
    with monkeypatch.context() as patch:
        patch.setattr(training._Training, "_update", ended_after(n_made, training._Training._update))
        with pytest.raises(Ended):
            train_model(shards, tokenizer, SETTINGS, tmp_path / "model")
    assert contents(tmp_path / "model") == {}
    updates.clear()
    train_model(shards, tokenizer, SETTINGS, tmp_path / "model")
    assert len(updates) == n_left
    assert contents(tmp_path / "model") == contents(undisturbed)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("n_copied", [0, 2])
def test_training_that_was_ended_while_it_published_trains_no_more(
    n_copied: int,
    undisturbed: Path,
    shards: list[Path],
    tokenizer: Path,
    tmp_path: Path,
    updates: list,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Snakemake then removes the weights that stand under their final names."""
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", ended_after(n_copied, shutil.copytree))
        with pytest.raises(Ended):
            train_model(shards, tokenizer, SETTINGS, tmp_path / "model")
    published = list((tmp_path / "model").glob("step*/model.safetensors"))
    assert len(published) == n_copied
    for path in published:
        path.unlink()
    updates.clear()
    train_model(shards, tokenizer, SETTINGS, tmp_path / "model")
    assert updates == []
    assert contents(tmp_path / "model") == contents(undisturbed)


def test_training_that_was_ended_while_it_tidied_up_can_be_made_again(
    undisturbed: Path, shards: list[Path], tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of what was kept is gone: what is left of it is no training to go on from."""

    remove = shutil.rmtree

    def removed_in_part(folder: Path, **options: bool) -> None:
        if folder.name == ".model.training":
            remove(folder / "step0")
            raise Ended
        remove(folder, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", removed_in_part)
        with pytest.raises(Ended):
            train_model(shards, tokenizer, SETTINGS, tmp_path / "model")
    train_model(shards, tokenizer, SETTINGS, tmp_path / "model")
    assert contents(tmp_path / "model") == contents(undisturbed)


def test_killed_process_leaves_a_state_from_which_the_same_bits_come(
    shards: list[Path], tokenizer: Path, tmp_path: Path, updates: list, python: Callable
) -> None:
    """Killed without a word (SIGKILL) somewhere in the 99 updates after its second checkpoint."""
    # A job refuses to run by other code than it was planned with.
    settings = {**SETTINGS, "steps": [0, 1, 100], "code": fingerprint(*ROOTS["train-model"])}
    train_model(shards, tokenizer, settings, tmp_path / "undisturbed")
    code = "import sys; from id_scaling.cli.main import main; main(sys.argv[1:])"
    outputs = [tmp_path / "killed" / f"step{step}" / "model.safetensors" for step in settings["steps"]]
    inputs = ["--texts", *shards, "--tokenizer", tokenizer / "tokenizer.json"]
    process = python(code, "train-model", "--settings", canonical_json(settings), *inputs, "--output", *outputs)
    state = tmp_path / ".killed.training" / "state.safetensors"
    until = time.monotonic() + 120
    while not state.is_file() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert state.is_file()
    assert not any(path.is_file() for path in outputs)
    updates.clear()
    train_model(shards, tokenizer, settings, tmp_path / "killed")
    assert len(updates) == 99
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("other", ["code", "text", "tokenizer"])
def test_state_of_another_training_is_not_gone_on_from(
    other: str,
    shards: list[Path],
    tokenizer: Path,
    tmp_path: Path,
    updates: list,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(training._Training, "_update", ended_after(4, training._Training._update))
        with pytest.raises(Ended):
            train_model(shards, tokenizer, SETTINGS, tmp_path / "model")
    updates.clear()
    settings, texts = SETTINGS, shards
    if other == "code":
        settings = {**SETTINGS, "code": "1"}
    elif other == "text":
        texts = shards[::-1]
    else:
        tokenizer = shutil.copytree(tokenizer, tmp_path / "tokenizer")
        (tokenizer / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    train_model(texts, tokenizer, settings, tmp_path / "model")
    assert len(updates) == 6


# ---- what is trained, on what ----------------------------------------------------------------------------------


def loss_of(folder: Path, contexts: torch.Tensor) -> float:
    """Return the mean loss of a checkpoint, nats a token."""
    model = load_model(folder, torch.float32, torch.device("cpu"), use_accelerator=False)
    with torch.inference_mode():
        return model(contexts, labels=contexts).loss.item()


def test_checkpoints_load_and_their_loss_falls_from_that_of_guessing(
    undisturbed: Path, shards: list[Path], tokenizer: Path
) -> None:
    """Untrained, it guesses among all tokens alike: ln 300 = 5.70 nats."""
    contexts = read_contexts(shards, tokenizer, N_TOKENS)
    losses = [loss_of(undisturbed / f"step{step}", contexts) for step in SETTINGS["steps"]]
    assert losses[0] == pytest.approx(math.log(VOCABULARY), abs=0.05)
    assert losses == sorted(losses, reverse=True)
    assert len({sha256(path) for path in undisturbed.glob("step*/model.safetensors")}) == len(losses)


def test_learning_rate_rises_in_a_line_and_falls_along_a_cosine() -> None:
    """Of 256 updates the first 16 lead up; half-way the cosine is zero, and so is the last rate but a little."""
    rates = [learning_rate(step, 256) for step in range(256)]
    assert rates[0] == pytest.approx(3e-3 / 16)
    assert rates[7] == pytest.approx(1.5e-3, rel=0.01)
    assert max(rates) == rates[15] == pytest.approx(3e-3, rel=0.01)
    assert rates[128] == pytest.approx(1.5e-3)
    assert 0 < rates[255] < 1e-6


def test_widths_see_the_same_contexts_in_the_same_order_and_none_twice_before_all_were_seen(
    shards: list[Path], tokenizer: Path, tmp_path: Path, updates: list
) -> None:
    contexts = read_contexts(shards, tokenizer, N_TOKENS)
    n_updates = 2 * len(contexts) // BATCH
    for width in (16, 32):
        settings = {"config": {**CONFIG, "hidden_size": width}, "steps": [0, n_updates]}
        train_model(shards, tokenizer, settings, tmp_path / str(width))
    seen = torch.cat(updates).view(2, -1, N_TOKENS)
    assert (seen[0] == seen[1]).all()
    first = seen[0, : len(contexts)]
    assert sorted(first.tolist()) == sorted(contexts.tolist())
    assert first.tolist() != contexts.tolist()
    assert (seen[0, len(contexts) : n_updates * BATCH] == first[: n_updates * BATCH - len(contexts)]).all()


def test_contexts_are_the_documents_one_after_the_other(shards: list[Path], tokenizer: Path) -> None:
    reader = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    texts = [text for path in shards for text in pl.read_parquet(path)["text"]]
    contexts = read_contexts(shards, tokenizer, N_TOKENS)
    assert contexts.dtype == torch.int64
    read = reader.decode(contexts.flatten().tolist(), skip_special_tokens=False)
    assert "<|endoftext|>".join(texts).startswith(read)
    assert len(read) > 0.9 * sum(map(len, texts))


def test_texts_too_short_for_an_update_are_an_error(tokenizer: Path, tmp_path: Path) -> None:
    pl.DataFrame({"text": ["the of and"]}).write_parquet(tmp_path / "short.parquet")
    with pytest.raises(InputError, match=r"short.parquet: found \d tokens, expected the 256 of one update"):
        train_model([tmp_path / "short.parquet"], tokenizer, SETTINGS, tmp_path / "model")


# ---- the tokenizer ---------------------------------------------------------------------------------------------


def test_tokenizer_is_the_same_again_and_cuts_as_the_rest_reads_it(
    shards: list[Path], tokenizer: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Beside a config, transformers picks the class of a tokenizer by the architecture: that must change no token."""
    train_tokenizer(shards, VOCABULARY, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tokenizer)
    raw = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    assert raw.get_vocab_size() == VOCABULARY
    text = "The people of 1789,\n\n  their “œuvre” — 新しい\tand so on. "
    for folder in (tokenizer, undisturbed / "step0", undisturbed / "step6"):
        loaded = load_tokenizer(folder)
        assert loaded.encode([text]) == [raw.encode(text).ids]
        assert raw.decode(raw.encode(text).ids) == text
        assert bos_token(loaded, "auto") is None


# ---- the family ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "n_parameters"), [("sotu-neox-64", 562_176), ("sotu-neox-160", 2_511_360)])
def test_config_of_a_model_that_is_yet_to_be_trained_is_that_of_the_trained_one(name: str, n_parameters: int) -> None:
    """Parameters counted by hand: 2 embeddings of 2048 x d, 6 blocks of 12 d² + 13 d, a norm of 2 d."""
    config, width = bundled.config_of(name), bundled.TRAINED[name]
    assert n_parameters == 2 * 2048 * width + 6 * (12 * width**2 + 13 * width) + 2 * width
    with torch.device("meta"):
        model = training._Training(config, Path(), Path(), "").model
    assert sum(parameter.numel() for parameter in model.parameters()) == n_parameters
    assert {key: model.config.to_dict()[key] for key in config} == config
