"""The tokenizer of a folder is the one that its files are, whatever class transformers takes; text is text."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import random_text, study
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizer_kinds import KINDS, SPECIAL, TRAINED_ON, byte_level, save, spaces_marked, unigram, words
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from tokenizers.processors import TemplateProcessing
from verbs import do

from id_scaling.errors import InputError
from id_scaling.sources.tokenizers import PROBES, check_tokenizer, fetch_tokenizer
from id_scaling.storage.records import read_record, read_table
from id_scaling.storage.tokenizers import tokenizer_digest
from id_scaling.study.study import Study
from id_scaling.text import tokenization
from id_scaling.text.tokenization import bos_token, load_tokenizer, tokenize

# Long enough that it holds each probe in a text, in a place that is not its start.
TEXTS = [*PROBES, "\n\n".join(PROBES), "", " ", "\n", *(random_text(50, seed) for seed in range(3))]
# An architecture, and the class that its tokenizer's config names.
CLASSES = [
    *((name, None) for name in ("llama", "qwen2", "qwen3", "gpt_neox", "gpt2", "opt", "olmo", "olmo2", "phi", "phi3")),
    *((name, None) for name in ("mamba", "gemma", "gemma2", "mistral", "falcon", "bloom", "stablelm", "gptj", "rwkv")),
    ("qwen2", "PreTrainedTokenizerFast"),
    ("qwen2", "Qwen2TokenizerFast"),
    ("llama", "LlamaTokenizerFast"),
    ("llama", "LlamaTokenizer"),
    ("llama", "PreTrainedTokenizerFast"),
    ("llama", "TokenizersBackend"),
    ("gpt2", "GPT2TokenizerFast"),
    ("gpt_neox", "GPTNeoXTokenizerFast"),
    ("gemma", "GemmaTokenizerFast"),
    ("mistral", "LlamaTokenizerFast"),
    ("bloom", "BloomTokenizerFast"),
    ("opt", "GPT2Tokenizer"),
    ("qwen2", "NoSuchTokenizer"),
    ("no_such_type", "NoSuchTokenizer"),
    ("t5", "T5TokenizerFast"),
]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[str, Tokenizer]:
    """A kind of tokenizer."""
    return request.param, KINDS[request.param]()


@pytest.mark.parametrize(("model_type", "name"), CLASSES)
def test_tokens_are_those_of_the_file(
    model_type: str, name: str | None, kind: tuple[str, Tokenizer], tmp_path: Path
) -> None:
    named = {"tokenizer_class": name} if name else {}
    folder = save(tmp_path / "model", kind[1], model_type, bos_token="<s>", eos_token="</s>", **named)
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    whole = [file.encode(text, add_special_tokens=False).ids for text in TEXTS]
    for allow in (False, True):
        # The probe of code ends in a control token as it is written in HTML.
        texts = TEXTS if allow else [text.replace("</s>", "") for text in TEXTS]
        ids = whole if allow else [file.encode(text, add_special_tokens=False).ids for text in texts]
        loaded = load_tokenizer(folder, allow)
        assert [one.tolist() for one in tokenize(loaded, texts)] == ids
        assert (loaded.read_from, loaded.bos, loaded.adds_bos) == ("tokenizer.json", SPECIAL.index("<s>"), False)


def test_of_a_tokenizer_that_transformers_would_change_the_fetch_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("id_scaling"), "propagate", True)
    changed = save(tmp_path / "changed", spaces_marked(), "qwen3", bos_token="<s>")
    fetch_tokenizer(str(changed), tmp_path / "identity.json")
    assert read_record(tmp_path / "identity.json")["read_from"] == "tokenizer.json"
    assert "transformers would make other tokens of it as Qwen2Tokenizer ('the people" in caplog.text
    caplog.clear()
    kept = save(tmp_path / "kept", byte_level(), "gpt_neox", tokenizer_class="PreTrainedTokenizerFast")
    assert check_tokenizer(kept) == "tokenizer.json"
    assert "other tokens" not in caplog.text


def contexts_of(config: dict[str, Any], folder: Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return the contexts of a study's first run, and their facts, made verb by verb."""
    made = Study(config)
    run, tokenizer, shard, contexts = made.runs[0], *(folder / name for name in ("tokenizer", "shard", "contexts"))
    settings, execution = made.fetch_tokenizer_settings(made.tokenizer_of(run.model)), made.fetch_tokenizer_execution()
    do("fetch-tokenizer", tokenizer, settings, execution=execution)
    do("fetch-dataset", shard, made.fetch_dataset_settings(run.dataset, "0"))
    execution = made.chunk_execution(run.dataset)
    do("chunk", contexts, made.contexts_settings(run), shard=shard, tokenizer=tokenizer, execution=execution)
    return read_table(contexts)


def test_contexts_are_of_the_file_and_say_so(tmp_path: Path, text_folder: Path) -> None:
    """Of a tokenizer that transformers would change."""
    model = save(tmp_path / "model", spaces_marked(), "qwen2", tokenizer_class="PreTrainedTokenizerFast")
    table, facts = contexts_of(study(model, text_folder), tmp_path)
    assert facts["tokenizer"] == "tokenizer.json"
    documents = [json.loads(line)["text"] for line in (text_folder / "00.jsonl").read_text().splitlines()]
    file = Tokenizer.from_file(str(model / "tokenizer.json"))
    for row in table.iter_rows(named=True):
        ids = file.encode(documents[row["document"]]).ids
        assert row["input_ids"] == ids[row["token_start"] : row["token_stop"]]
    assert len(table) > len(documents)


# ---- control tokens are text -----------------------------------------------------------------------------------

WRITTEN = [f"a text {token} and{token}more" for token in SPECIAL] + SPECIAL + ["".join(SPECIAL), " ".join(SPECIAL)]


def test_a_string_spelled_as_a_control_token_is_text(kind: tuple[str, Tokenizer], tmp_path: Path) -> None:
    folder = save(tmp_path, kind[1], bos_token="<s>", eos_token="</s>")
    ids = np.concatenate(tokenize(load_tokenizer(folder), WRITTEN))
    control = {kind[1].token_to_id(token) for token in SPECIAL if token != "<unk>"}
    assert not control & set(ids.tolist())
    # What the letters of a tokenizer can spell is kept.
    if kind[0] in ("byte_level", "byte_level_split"):
        for text in WRITTEN:
            made = tokenize(load_tokenizer(folder), [text])[0].tolist()
            assert kind[1].decode(made, skip_special_tokens=False) == text
            assert 0 not in made


def test_a_string_spelled_as_a_control_token_becomes_it_where_that_is_asked_for(
    kind: tuple[str, Tokenizer], tmp_path: Path
) -> None:
    folder = save(tmp_path, kind[1], bos_token="<s>", eos_token="</s>")
    made = [ids.tolist() for ids in tokenize(load_tokenizer(folder, allow_special_tokens=True), WRITTEN)]
    assert made == [kind[1].encode(text, add_special_tokens=False).ids for text in WRITTEN]
    assert set(range(len(SPECIAL))) <= {number for ids in made for number in ids}


def test_the_unknown_token_of_pieces_is_not_found_by_its_name(tmp_path: Path) -> None:
    """As SentencePiece, whose control and unknown pieces no text becomes; all its letters are known here."""
    tokenizer = unigram()
    assert tokenizer.encode("<unk>").ids == [0]
    ids = tokenize(load_tokenizer(save(tmp_path, tokenizer)), ["<unk>"])[0].tolist()
    assert 0 not in ids
    assert "".join(map(tokenizer.id_to_token, ids)) == "▁<unk>"


def test_a_named_control_token_that_the_file_does_not_mark_is_text_too(tmp_path: Path) -> None:
    """As Phi-3, whose file has `</s>` as an added token like any other."""
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<|end|>"), AddedToken("<|tool|>"), AddedToken("<|call|>")])
    end, tool, call = map(tokenizer.token_to_id, ("<|end|>", "<|tool|>", "<|call|>"))
    decoder = {str(tool): {"content": "<|tool|>", "special": True}, str(call): {"content": "<|call|>"}}
    folder = save(tmp_path, tokenizer, eos_token={"content": "<|end|>"}, added_tokens_decoder=decoder)
    ids = tokenize(load_tokenizer(folder), ["a<|end|> b <|tool|><|call|>"])[0].tolist()
    assert not {end, tool} & set(ids)
    assert ids[-1] == call  # an added token that is none of control is a token of the text
    assert tokenizer.decode(ids, skip_special_tokens=False) == "a<|end|> b <|tool|><|call|>"
    assert {end, tool} <= set(tokenize(load_tokenizer(folder, True), ["a<|end|> b <|tool|>"])[0].tolist())


def test_merges_that_end_in_a_control_token_are_left_out(tmp_path: Path) -> None:
    """As some files made of SentencePiece's."""
    vocabulary = {piece: number for number, piece in enumerate(["<unk>", "<s>", "<", "s", ">", "<s", "a", "▁"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("<", "s"), ("<s", ">")], unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    tokenizer.encode_special_tokens = True
    assert tokenizer.encode("a<s>a").ids == [6, 1, 6]
    assert tokenize(load_tokenizer(save(tmp_path, tokenizer)), ["a<s>a"])[0].tolist() == [6, 5, 4, 6]


def test_a_control_token_that_still_comes_of_a_text_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenization, "_is_reached", lambda *_: False)
    loaded = load_tokenizer(save(tmp_path, unigram()))
    with pytest.raises(InputError, match=r"became the control token '</s>'.*allow_special_tokens: true"):
        tokenize(loaded, ["a </s> b"])


@pytest.mark.parametrize(("allow", "n_expected"), [(False, 0), (True, 20)])
def test_control_strings_of_documents_are_as_the_study_asks(allow: bool, n_expected: int, tmp_path: Path) -> None:
    model, text = save(tmp_path / "model", words()), tmp_path / "text"
    text.mkdir()
    (text / "0.jsonl").write_text(json.dumps({"text": "the of and <|endoftext|> to in " * 60}))
    config = study(model, text, dataset_config__allow_special_tokens=allow, ctx_len=60)
    table, facts = contexts_of(config, tmp_path)
    assert facts["settings"]["chunking"]["allow_special_tokens"] is allow
    assert (table["input_ids"].explode() == SPECIAL.index("<|endoftext|>")).sum() == n_expected


# ---- what contexts start with ----------------------------------------------------------------------------------


def with_bos(number: int, is_first: bool) -> Tokenizer:
    """A tokenizer whose `<|start|>` has a number, and goes before a text or does not."""
    names = ["a", "b", "<|start|>"] if number else ["<|start|>", "a", "b"]
    tokenizer = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="b"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<|start|>"])
    if is_first:
        tokenizer.post_processor = TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", number)])
    return tokenizer


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize(
    ("is_first", "adds", "add_bos", "is_expected"),
    [
        (True, None, "auto", True),
        (False, None, "auto", False),
        (True, False, "auto", False),  # said by its config, against the file's template
        (False, True, "auto", True),
        (False, False, "always", True),
        (True, True, "never", False),
    ],
)
def test_token_before_contexts_is_as_the_files_say(
    number: int, is_first: bool, adds: bool | None, add_bos: str, is_expected: bool, tmp_path: Path
) -> None:
    config = {} if adds is None else {"add_bos_token": adds}
    folder = save(tmp_path, with_bos(number, is_first), "gpt_neox", bos_token="<|start|>", **config)
    assert bos_token(load_tokenizer(folder), add_bos) == (number if is_expected else None)
    # The text itself never has it, nor whatever else the file's template adds.
    assert tokenize(load_tokenizer(folder), ["a b"])[0].tolist() == ([0, 1] if number else [1, 2])


def test_token_of_the_class_is_known_where_no_file_names_one(tmp_path: Path) -> None:
    """As GPT-2, whose tokenizer's config names a length and nothing else."""
    folder = save(tmp_path, byte_level(), "gpt2")
    assert load_tokenizer(folder).bos == SPECIAL.index("<|endoftext|>")


def test_token_that_the_vocabulary_lacks_is_none(tmp_path: Path) -> None:
    folder = save(tmp_path, byte_level(), "gpt2", bos_token="<|nowhere|>", add_bos_token=True)
    assert load_tokenizer(folder).bos is None
    assert bos_token(load_tokenizer(folder), "auto") is None


# ---- what a file adds that is no part of a text ----------------------------------------------------------------


def test_truncation_padding_and_dropout_of_a_file_are_not_taken(tmp_path: Path) -> None:
    tokenizer = byte_level()
    expected = tokenizer.encode(TEXTS[0]).ids
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=64)
    tokenizer.model.dropout = 0.5
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    loaded = load_tokenizer(save(tmp_path, tokenizer))
    assert [one.tolist() for one in tokenize(loaded, [TEXTS[0]] * 5)] == [expected] * 5


# ---- folders without tokenizer.json ----------------------------------------------------------------------------


def test_vocabulary_and_merges_without_the_file_keep_working(tmp_path: Path) -> None:
    """What transformers makes of them is the same tokenizer, except for control tokens, which they do not mark."""
    tokenizer = byte_level()
    tokenizer.model.save(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    loaded = load_tokenizer(tmp_path)
    assert loaded.read_from == "vocab.json, merges.txt, by transformers as GPT2Tokenizer"
    texts = [text.replace("</s>", "") for text in TEXTS]
    assert [ids.tolist() for ids in tokenize(loaded, texts)] == [tokenizer.encode(text).ids for text in texts]
    assert SPECIAL.index("<|endoftext|>") not in tokenize(loaded, ["a <|endoftext|> b"])[0]
    assert SPECIAL.index("<|endoftext|>") in tokenize(load_tokenizer(tmp_path, True), ["a <|endoftext|> b"])[0]
    assert check_tokenizer(tmp_path) == loaded.read_from


def test_a_first_token_with_number_zero_is_one_where_transformers_makes_the_tokenizer(tmp_path: Path) -> None:
    byte_level().model.save(str(tmp_path))
    config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": SPECIAL[0], "add_bos_token": True}
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = load_tokenizer(tmp_path)
    assert loaded.read_from.endswith("by transformers as GPT2Tokenizer")
    assert (loaded.bos, loaded.adds_bos, bos_token(loaded, "auto")) == (0, True, 0)


def test_a_first_token_with_number_zero_is_one_of_sentencepiece(tmp_path: Path) -> None:
    SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINED_ON),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=200,
        hard_vocab_limit=False,
        minloglevel=2,
        bos_id=0,
        unk_id=1,
        eos_id=2,
    )
    loaded = load_tokenizer(tmp_path)
    assert loaded.read_from == "tokenizer.model"
    assert (loaded.bos, loaded.adds_bos, bos_token(loaded, "auto")) == (0, True, 0)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def sentencepiece(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of SentencePiece, as Llama 2 has it or as T5."""
    options = {
        "bpe": {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        "unigram": {},
    }
    prefix = tmp_path_factory.mktemp(request.param) / "pieces"
    SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINED_ON * 3),
        model_prefix=str(prefix),
        vocab_size=450,
        model_type=request.param,
        hard_vocab_limit=False,
        minloglevel=2,
        **options[request.param],
    )
    return prefix.with_suffix(".model")


@pytest.mark.parametrize("name", [None, "LlamaTokenizer", "GemmaTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("model_type", ["llama", "gemma", "mistral", "qwen2", "internlm2"])
def test_a_sentencepiece_model_is_read_by_its_own_library(
    model_type: str, name: str | None, sentencepiece: Path, tmp_path: Path
) -> None:
    """transformers makes other tokens of it for most classes: spaces are lost, or the first word has another start."""
    shutil.copy(sentencepiece, tmp_path / "tokenizer.model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name} if name else {}))
    file = SentencePieceProcessor(model_file=str(sentencepiece))
    loaded = load_tokenizer(tmp_path)
    assert [ids.tolist() for ids in tokenize(loaded, TEXTS)] == file.encode(TEXTS)
    written = np.concatenate(tokenize(loaded, ["<s> a</s>", "</s>"])).tolist()
    assert not {file.bos_id(), file.eos_id()} & set(written)
    assert (loaded.read_from, check_tokenizer(tmp_path)) == ("tokenizer.model", "tokenizer.model")
    assert bos_token(loaded, "auto") == file.bos_id() == 1


@pytest.mark.parametrize(
    ("config", "add_bos", "expected"),
    [
        ({}, "auto", None),
        ({}, "always", 1),
        ({"add_bos_token": True}, "auto", 1),
        ({"bos_token": "the"}, "always", None),
    ],
)
def test_token_before_contexts_of_t5s_format_is_added_when_asked_for(
    config: dict, add_bos: str, expected: int | None, sentencepiece: Path, tmp_path: Path
) -> None:
    shutil.copy(sentencepiece, tmp_path / "spiece.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = load_tokenizer(tmp_path)
    assert loaded.read_from == "spiece.model"
    if "bos_token" not in config:
        assert bos_token(loaded, add_bos) == expected
        return
    with pytest.raises(InputError, match="no beginning-of-sequence token"):  # no piece has that name
        bos_token(loaded, add_bos)


def test_sentencepiece_takes_no_text_for_control_tokens(sentencepiece: Path, tmp_path: Path) -> None:
    shutil.copy(sentencepiece, tmp_path / "tokenizer.model")
    with pytest.raises(InputError, match=r"allow_special_tokens is true; .*with a tokenizer\.json"):
        load_tokenizer(tmp_path, allow_special_tokens=True)


def test_folder_with_a_config_alone_is_no_tokenizer(tmp_path: Path) -> None:
    """transformers makes one without a vocabulary of it."""
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "XGLMTokenizer"}')
    (tmp_path / "config.json").write_text('{"model_type": "xglm"}')
    with pytest.raises(InputError, match=r"found no tokenizer, expected one of tokenizer\.json"):
        load_tokenizer(tmp_path)


# ---- damaged files ---------------------------------------------------------------------------------------------


def damaged(content: bytes, seed: int) -> bytes:
    """Cut a file, or flip some of its bits."""
    draw = np.random.default_rng(seed)
    if seed % 3 == 0:
        return content[: draw.integers(len(content))]
    changed = bytearray(content)
    for place in draw.integers(len(content), size=draw.choice([1, 1, 30])):
        changed[place] ^= 1 << draw.integers(8)
    return bytes(changed)


def outcome(folder: Path) -> str:
    """Return what becomes of reading a tokenizer: it works, or one error of ours says where."""
    try:
        tokenizer_digest(folder)
        check_tokenizer(folder)
        tokenize(load_tokenizer(folder), ["the people <s> 12"])
    except InputError as error:
        is_clear = str(folder) in str(error) and len(str(error)) < 1000
        return "error" if is_clear else str(error)
    return "read"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_damaged_files_are_read_or_said(kind: tuple[str, Tokenizer], name: str, tmp_path: Path) -> None:
    folder = save(tmp_path, kind[1], bos_token="<s>", eos_token={"content": "</s>", "lstrip": False})
    shutil.copy(folder / "tokenizer_config.json", folder / "special_tokens_map.json")
    content = (folder / name).read_bytes()
    cut = []
    for seed in range(12):
        (folder / name).write_bytes(damaged(content, seed))
        result = outcome(folder)
        assert result in ("error", "read")
        cut += [result] if seed % 3 == 0 else []
    assert set(cut) == {"error"}  # no cut is silent


def test_a_damaged_sentencepiece_model_is_read_or_said(sentencepiece: Path, tmp_path: Path) -> None:
    content, cut = sentencepiece.read_bytes(), []
    for seed in range(90):
        (tmp_path / "tokenizer.model").write_bytes(damaged(content, seed))
        result = outcome(tmp_path)
        assert result in ("error", "read")
        cut += [result] if seed % 3 == 0 else []
    assert set(cut) == {"error"}


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_damaged_vocabulary_or_list_of_merges_is_read_or_said(name: str, tmp_path: Path) -> None:
    byte_level().model.save(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    content = (tmp_path / name).read_bytes()
    for seed in range(12):
        (tmp_path / name).write_bytes(damaged(content, seed))
        assert outcome(tmp_path) in ("error", "read")


def test_file_of_another_encoding_is_said(tmp_path: Path) -> None:
    folder = save(tmp_path, words())
    (folder / "tokenizer.json").write_text(words().to_str(), encoding="utf-16")
    with pytest.raises(InputError, match=r"tokenizer\.json: damaged: not UTF-8 at byte 0"):
        load_tokenizer(folder)


def test_merges_that_are_cut_short_are_said(tmp_path: Path) -> None:
    pieces = [f"p{number}" for number in range(2000)]
    vocabulary = {piece: place for place, piece in enumerate([*"p0123456789", *pieces])}
    merges = [(piece[:-1], piece[-1]) for piece in pieces]
    models.BPE(vocab=vocabulary, merges=merges).save(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert load_tokenizer(tmp_path).encode(["p1234"])
    lines = (tmp_path / "merges.txt").read_bytes().splitlines(keepends=True)
    (tmp_path / "merges.txt").write_bytes(b"".join(lines[:1200]))
    with pytest.raises(InputError, match=r"merges\.txt: cut short: 801 of the 2011 pieces"):
        load_tokenizer(tmp_path)


def test_validate_says_that_a_tokenizer_is_damaged(
    tiny_llama: Path, text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    Study(study(model, text_folder)).check()
    content = (model / "tokenizer.json").read_bytes()
    (model / "tokenizer.json").write_bytes(content[:-20])
    with pytest.raises(InputError, match=r"model/tokenizer\.json: damaged or cut short, not JSON"):
        Study(study(model, text_folder)).check()
    (model / "tokenizer.json").write_bytes(content)
    (model / "tokenizer_config.json").write_text("[]")
    with pytest.raises(InputError, match=r"tokenizer_config\.json: found a JSON list, expected an object"):
        Study(study(model, text_folder)).check()


# ---- identity --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "is_other"),
    [
        ({"tokenizer_class": "LlamaTokenizer"}, False),  # not what is used
        ({"model_max_length": 1}, False),
        ({"clean_up_tokenization_spaces": False}, False),
        ({"add_prefix_space": True}, False),
        ({"bos_token": "</s>"}, True),
        ({"bos_token": {"content": "<s>"}}, False),
        ({"add_bos_token": True}, True),
        ({"additional_special_tokens": ["<|x|>"]}, True),
    ],
)
def test_identity_is_of_what_is_used(change: dict, is_other: bool, tmp_path: Path) -> None:
    folder = save(tmp_path, words(), bos_token="<s>")
    before = tokenizer_digest(folder)
    save(folder, words(), **{"bos_token": "<s>", **change})
    assert (tokenizer_digest(folder) != before) is is_other
    (folder / "tokenizer.model").write_bytes(b"not looked at")
    (folder / "vocab.json").write_text("{}")
    assert (tokenizer_digest(folder) != before) is is_other


def test_identity_is_not_of_how_a_tokenizer_was_last_called(tmp_path: Path) -> None:
    """Truncation and padding are saved, as by a training loop that leaves one of its folders with them."""
    folder = save(tmp_path, words(), bos_token="<s>")
    path, before = folder / "tokenizer.json", tokenizer_digest(folder)
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(64)
    tokenizer.save(str(path))
    assert tokenizer_digest(folder) == before
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(path))
    assert '"Fixed": 64' in path.read_text()
    assert tokenizer_digest(folder) == before
    tokenizer.add_tokens(["another"])
    tokenizer.save(str(path))
    assert tokenizer_digest(folder) != before
