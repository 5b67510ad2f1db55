"""A small trained tokenizer of every kind that language models use, and a folder that holds one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import random_text
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from id_scaling.sources.tokenizers import PROBES

SPECIAL = ["<unk>", "<s>", "</s>", "<|endoftext|>", "[PAD]"]
TRAINED_ON = [*PROBES, *(random_text(300, seed) for seed in range(4)), "x < y > z [a] | PAD endoftext s unk </p>"]


def trained(tokenizer: Tokenizer, kind: type, **options: Any) -> Tokenizer:
    """Train a tokenizer on the probes and some English words."""
    trainer = kind(vocab_size=400, special_tokens=SPECIAL, show_progress=False, **options)
    tokenizer.train_from_iterator(TRAINED_ON, trainer)
    return tokenizer


def byte_level() -> Tokenizer:
    """As GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return trained(tokenizer, trainers.BpeTrainer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def byte_level_split() -> Tokenizer:
    """As Llama 3 and Qwen: a pattern of its own, digits by three, vocabulary before merges."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    return trained(tokenizer, trainers.BpeTrainer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def spaces_marked() -> Tokenizer:
    """As Llama 2 and Gemma: byte-pair merges over a text whose spaces are marked, with no words before."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    written = json.loads(trained(tokenizer, trainers.BpeTrainer).to_str())
    made = Tokenizer.from_str(json.dumps({**written, "pre_tokenizer": None}))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return made


def metaspace() -> Tokenizer:
    """Byte-pair merges within words that start with a mark."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return trained(tokenizer, trainers.BpeTrainer)


def unigram() -> Tokenizer:
    """As T5 and XGLM: pieces with probabilities, among which are the control tokens."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\n", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return trained(tokenizer, trainers.UnigramTrainer, unk_token="<unk>")


def word_piece() -> Tokenizer:
    """As BERT, but that words are split at spaces, so that a control token may be a word."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return trained(tokenizer, trainers.WordPieceTrainer)


def words() -> Tokenizer:
    """Whole words."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return trained(tokenizer, trainers.WordLevelTrainer)


KINDS: dict[str, Callable[[], Tokenizer]] = {
    make.__name__: make for make in (byte_level, byte_level_split, spaces_marked, metaspace, unigram, word_piece, words)
}


def save(folder: Path, tokenizer: Tokenizer, model_type: str = "llama", **config: Any) -> Path:
    """Save a model folder without weights: a config, a tokenizer, and what its config says."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
