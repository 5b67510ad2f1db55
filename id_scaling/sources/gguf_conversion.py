"""The model and the tokenizer of a GGUF file, converted to a folder as transformers saves them, in float32."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from id_scaling.errors import InputError, of_a_disk, shortened
from id_scaling.runtime.atomic_files import writing_folder
from id_scaling.runtime.logging import LOG
from id_scaling.sources.cache import cached_folder, cached_sha256
from id_scaling.sources.gguf_header import check_gguf, read_header

INSTEAD = "fetch it again, or name the model that it was made from"
# Part of the cache's key: to be raised where the files that are made of a GGUF file change.
CONVERSION = 2
# How a text is split into words before merges, as GGUF files name it (tokenizer.ggml.pre; the names are llama.cpp's,
# src/llama-vocab.cpp, 2025): as GPT-2 does, or so with each digit apart. transformers splits as GPT-2 does wherever it
# does not know the name. Files before 2024 have no name, or "default".
UNNAMED_SPLITS = (None, "default")
GPT2_SPLITS = (
    *("a.x-4.0", "gigachat", "gpt-2", "granite-docling", "jais", "jina-de", "jina-es", "jina-v1-en", "jina-v2-code"),
    *("jina-v2-de", "jina-v2-es", "mellum", "modern-bert", "mpt", "olmo", "phi-2", "roberta-bpe", "trillion"),
)
DIGIT_SPLITS = ("codeshell", "command-r", "exaone", "minerva-7b", "refact", "smollm", "starcoder")
# Fields of a GGUF file that change a model, or say that it is a part of one.
SAID_BEYOND = (".rope.scaling.type", ".rope.scaling.factor", ".rope.scale_linear", "split.count")


def gguf_model(path: Path, folder: Path) -> None:
    """Put the model and the tokenizer of a GGUF file into a folder; they are converted once for all sessions.

    Files are links to those in the cache where a file system can, so that they stay when the cache goes.
    """
    made = cached_folder("gguf-models", _cache_key(path), lambda content: _convert(path, content))
    with made as content, writing_folder(folder) as whole:
        shutil.copytree(content, whole, dirs_exist_ok=True, copy_function=_link)


@contextmanager
def gguf_settings(path: Path) -> Iterator[Path]:
    """Yield a folder with the config and the tokenizer of a GGUF file, which are read once for all sessions."""

    def fill(content: Path) -> None:
        LOG.info("reading the config and the tokenizer of %s, which may take a minute the first time", path)
        gguf_config(path).save_pretrained(content)
        gguf_tokenizer(path).save_pretrained(content)

    check_gguf(path)
    with cached_folder("gguf-settings", _cache_key(path), fill) as content:
        yield content


def _cache_key(path: Path) -> dict[str, Any]:
    """Return what decides on the files that are made of a GGUF file."""
    versions = {name: version(name) for name in ("gguf", "tokenizers", "torch", "transformers")}
    return {"sha256": cached_sha256(path), "conversion": CONVERSION, "versions": versions}


def _link(source: str, target: str) -> None:
    """Link a file, or copy it where the file system of the target is another one or has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def convert_gguf(path: Path, folder: Path) -> None:
    """Write the model of a GGUF file, its quantised weights as they are in float32, and its tokenizer.

    Raises
    ------
    InputError
        transformers cannot read it, or does not know its architecture.
    """
    with writing_folder(folder) as whole:
        _convert(path, whole)


def _convert(path: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file into a folder that is there."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    check_gguf(path)
    LOG.info("converting %s to safetensors, which may take minutes the first time", path.name)
    model, report = _read(AutoModelForCausalLM, path, dtype=torch.float32, output_loading_info=True)
    wrong = {key: sorted(map(str, names)) for key, names in report.items() if names}
    if wrong:
        raise InputError(f"{path}: its tensors are not those of its architecture: {wrong}; {INSTEAD}")
    _check_all_read(path, model)
    # The weights are plain float32 now; what says otherwise would keep them from being saved.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    gguf_tokenizer(path).save_pretrained(folder)


def _check_all_read(path: Path, model: Any) -> None:
    """Raise an InputError where a GGUF file says more of its model than transformers reads of it."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    names = {tensor.name for tensor in reader.tensors}
    fields = {name: field.contents() for name, field in reader.fields.items() if name.endswith(SAID_BEYOND)}
    beyond = [f"{name} = {value}" for name, value in fields.items() if value not in ("none", 0, 1)]
    beyond += sorted(name for name in names if name.startswith("rope_"))
    n_biases = sum(name.endswith(".bias") for name in names)
    if n_biases > sum(name.endswith(".bias") for name in model.state_dict()):
        beyond.append(f"{n_biases} biases")
    if beyond:
        raise InputError(f"{path}: transformers does not read {', '.join(beyond)} of it; {INSTEAD}")


def gguf_tokenizer(path: Path) -> Any:
    """Return the tokenizer of a GGUF file."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    made, split = _read(AutoTokenizer, path), read_header(path)[0].get("tokenizer.ggml.pre")
    if _is_split_as_gpt2(made) and split in DIGIT_SPLITS:
        digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    elif _is_split_as_gpt2(made) and split not in GPT2_SPLITS:
        LOG.warning(
            "%s: %s; its text is split as that of GPT-2, which its model may not have been trained with",
            path,
            "does not say how text is split into words" if split in UNNAMED_SPLITS else f"splits text as {split!r}",
        )
    return made


def check_split(path: Path, folder: Path) -> None:
    """Raise an InputError where the tokenizer in a folder splits text otherwise than its GGUF file says."""
    from tokenizers import Tokenizer, pre_tokenizers

    split = read_header(path)[0].get("tokenizer.ggml.pre")
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if isinstance(made.pre_tokenizer, pre_tokenizers.ByteLevel) and split not in (*UNNAMED_SPLITS, *GPT2_SPLITS):
        raise InputError(
            f"{path}: splits text into words as {split!r}, which transformers does not know; name the model that it "
            "was made from in model_config.tokenizer"
        )


def _is_split_as_gpt2(made: Any) -> bool:
    """Return whether a tokenizer of transformers splits text into words as that of GPT-2 does."""
    from tokenizers import pre_tokenizers

    return isinstance(made.backend_tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)


def gguf_config(path: Path) -> Any:
    """Return the config of the model of a GGUF file."""
    from transformers import AutoConfig

    return _read(AutoConfig, path)


def _read(kind: Any, path: Path, **options: Any) -> Any:
    """Return what transformers makes of a GGUF file alone, whatever lies beside it."""
    with TemporaryDirectory() as alone:
        (Path(alone) / path.name).symlink_to(path.resolve())
        try:
            return kind.from_pretrained(alone, gguf_file=path.name, trust_remote_code=False, **options)
        except Exception as error:  # code for files of others may raise anything: it becomes words
            words = f"transformers cannot read this GGUF file ({shortened(f'{type(error).__name__}: {error}')})"
            raise of_a_disk(error) or InputError(f"{path}: {words}; {INSTEAD}") from error
