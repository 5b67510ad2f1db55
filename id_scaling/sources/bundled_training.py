"""A small GPT-NeoX and its tokenizer, trained on shards of text and kept as checkpoints at some of its steps.

A training is a function of its settings and its texts, to the last bit on one kind of processor: it runs on one thread,
weights are drawn from one seed, and so is the order of the texts, which all widths see alike. A killed one goes on
from its last checkpoint and ends in the same bits. Checkpoints appear under their names once all of them are made.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from id_scaling.errors import InputError
from id_scaling.models.mkl_workaround import settle_vector_functions
from id_scaling.runtime.atomic_files import digest, sha256, sweep, writing, writing_folder
from id_scaling.runtime.locks import leased
from id_scaling.runtime.logging import LOG

SEED = 0
# Contexts of an update.
BATCH = 8
# Of AdamW: the highest learning rate, the updates that lead up to it, decay of weights; and the longest gradient.
PEAK, WARM_UP, DECAY, LONGEST = 3e-3, 16, 0.1, 1.0
END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
STATE = "state.safetensors"


def train_tokenizer(shards: Sequence[Path], vocab_size: int, folder: Path) -> None:
    """Write a byte-level BPE of the texts in `shards` to `folder`; its first token stands between documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(shards), trainer)
    with writing_folder(folder) as whole:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT).save_pretrained(whole)
    LOG.info("wrote a tokenizer of %d tokens to %s", tokenizer.get_vocab_size(), folder)


def train_model(shards: Sequence[Path], tokenizer: Path, settings: Mapping[str, Any], folder: Path) -> None:
    """Train a GPT-NeoX and write its checkpoints to `folder`, as `step0`, `step1` and on.

    Parameters
    ----------
    shards : sequence of Path
        Parquet files with a column `text`.
    tokenizer : Path
        Folder of a tokenizer that `train_tokenizer` wrote.
    settings : mapping
        `config`, the options of transformers' `GPTNeoXConfig`, of as many positions as a context has tokens; `steps`,
        after how many updates a checkpoint is kept, rising, the last of them the end. What else stands in it is what
        tells this training from others.

    Raises
    ------
    InputError
        The texts are too short for one update.
    """
    config, steps = settings["config"], settings["steps"]
    inputs = [sha256(path) for path in (*shards, *(tokenizer / name for name in TOKENIZER_FILES))]
    versions = [version(name) for name in ("torch", "transformers", "tokenizers")]
    kept = folder.with_name(f".{folder.name}.training")
    contexts = read_contexts(shards, tokenizer, config["max_position_embeddings"])
    with leased(folder), _on_one_thread():
        _Training(config, tokenizer, kept, digest([settings, inputs, versions])).run(contexts, steps)
        # Copied, not moved: what a job that is cut short has under a final name is removed by Snakemake.
        for step in steps:
            with writing_folder(folder / _called(step)) as whole:
                shutil.copytree(kept / _called(step), whole, dirs_exist_ok=True)
        # The state first: without it a removal that is cut short is no training to go on from.
        (kept / STATE).unlink()
        shutil.rmtree(kept)
    LOG.info("wrote %d checkpoints to %s", len(steps), folder)


def read_contexts(shards: Sequence[Path], tokenizer: Path, n_tokens: int) -> torch.Tensor:
    """Return the documents of `shards`, one after the other, as contexts: (contexts, n_tokens) int64."""
    reader = Tokenizer.from_file(str(tokenizer / TOKENIZER_FILES[0]))
    end = reader.token_to_id(END_OF_TEXT)
    tokens = np.concatenate([[*document.ids, end] for document in reader.encode_batch(list(_texts(shards)))])
    n_contexts = len(tokens) // n_tokens
    if n_contexts < BATCH:
        raise InputError(
            f"{', '.join(map(str, shards))}: found {len(tokens)} tokens, expected the {BATCH * n_tokens} of one "
            "update at least; name more or longer texts"
        )
    return torch.from_numpy(tokens[: n_contexts * n_tokens].reshape(n_contexts, n_tokens))


def learning_rate(step: int, n_steps: int) -> float:
    """Return the learning rate of the update after `step`: in a line up to the peak, along a cosine down to zero."""
    return PEAK * min(1.0, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / n_steps)) / 2


class _Training:
    """A model and its optimizer, and the folder in which checkpoints and the state to go on from are kept."""

    def __init__(self, config: Mapping[str, Any], tokenizer: Path, kept: Path, made_of: str) -> None:
        self.tokenizer, self.kept, self.made_of = tokenizer, kept, made_of
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            # Not a field of this config: a keyword of all.
            self.model = GPTNeoXForCausalLM(GPTNeoXConfig(**config, attn_implementation="sdpa"))  # type: ignore[call-arg]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=DECAY)

    def run(self, contexts: torch.Tensor, steps: Sequence[int]) -> None:
        """Make all checkpoints, from where a killed training of the same stopped."""
        order = torch.randperm(len(contexts), generator=torch.Generator().manual_seed(SEED))
        for step in range(self._resume(), steps[-1]):
            if step in steps:
                self._keep(step)
            batch = contexts[order[torch.arange(step * BATCH, (step + 1) * BATCH) % len(order)]]
            loss = self._update(batch, learning_rate(step, steps[-1]))
            LOG.log(logging.INFO if step in steps else logging.DEBUG, "step %d: loss %.3f", step, loss)
        self._keep(steps[-1])

    def _update(self, batch: torch.Tensor, rate: float) -> float:
        """Update the weights once; return the loss before it."""
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad()
        loss = self.model(batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), LONGEST)
        self.optimizer.step()
        return loss.item()

    def _keep(self, step: int) -> None:
        """Write a checkpoint, and then the state from which the training goes on; at step 0 there is none yet."""
        with writing_folder(self.kept / _called(step)) as whole:
            self.model.save_pretrained(whole)
            for name in TOKENIZER_FILES:
                shutil.copy(self.tokenizer / name, whole)
        if step > 0:
            with writing(self.kept / STATE) as aside:
                save_file(self._tensors(), aside, {"step": str(step), "made_of": self.made_of})

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of the model and of its optimizer, by names that tell them apart."""
        of_optimizer = self.optimizer.state_dict()["state"]
        return {f"model {name}": tensor for name, tensor in self.model.state_dict().items()} | {
            f"{number} {name}": tensor for number, tensors in of_optimizer.items() for name, tensor in tensors.items()
        }

    def _resume(self) -> int:
        """Take up the state of a killed training of the same, if there is one; return its step."""
        sweep(self.kept)
        if not (self.kept / STATE).is_file():
            return 0
        found: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        with safe_open(self.kept / STATE, "pt") as state:
            facts = state.metadata()
            for name in state.keys():  # noqa: SIM118  it is no mapping
                of, name_there = name.split(" ")
                # A copy, aligned as tensors are: kernels may add in another order what is not.
                found[of][name_there] = state.get_tensor(name).clone()
        if facts["made_of"] != self.made_of:
            LOG.info("%s: another training left it; beginning anew", self.kept)
            shutil.rmtree(self.kept)
            return 0
        self.model.load_state_dict(found.pop("model"))
        of_optimizer = {int(number): tensors for number, tensors in found.items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": of_optimizer})
        LOG.info("going on from step %s", facts["step"])
        return int(facts["step"])


@contextmanager
def _on_one_thread() -> Iterator[None]:
    """Compute on one thread, so that sums are added in one order however many cores there are."""
    transformers_logging.disable_progress_bar()
    settle_vector_functions()
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _texts(shards: Sequence[Path]) -> Iterator[str]:
    """Yield the texts of parquet files in order."""
    for shard in shards:
        yield from pl.read_parquet(shard, columns=["text"], glob=False)["text"]


def _called(step: int) -> str:
    """Return the name of the checkpoint at a step."""
    return f"step{step}"
