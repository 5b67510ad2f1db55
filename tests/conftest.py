"""What tests share: a tiny random model, a small text, a study of both, and a way to run the workflow."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from id_scaling.runtime.logging import LOG

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).parent.parent

# Of tests/workflow, what the default tier has too: one study end to end, and dry runs.
EVERYDAY = ("test_end_to_end", "test_dag")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of tests/workflow as their tier."""
    for item in items:
        if ROOT / "tests" / "workflow" in item.path.parents and item.path.stem not in EVERYDAY:
            item.add_marker(pytest.mark.workflow)


COMMON = (
    "the of and to in that it is was for on are as with his they at be this from have or by one had not but what all "
    "were when we there can an your which their said if do will each about how up out them then she many some so these "
    "would other into has more her two like him see time could no make than first been its who now people my made"
)
WORDS = COMMON.split()


def random_text(n_words: int, seed: int) -> str:
    """Return words drawn with frequencies that fall like those of a language."""
    weights = 1 / np.arange(1, len(WORDS) + 1)
    draw = np.random.default_rng(seed).choice(WORDS, size=n_words, p=weights / weights.sum())
    return " ".join(draw)


def save_tokenizer(folder: Path) -> int:
    """Save a word-level tokenizer of `WORDS`; return the size of its vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    return len(vocabulary)


def save_tiny_llama(folder: Path, seed: int = 0, n_layers: int = 2, initializer_range: float = 0.02) -> Path:
    """Save a random Llama of width 32 with its tokenizer, as transformers saves a model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=save_tokenizer(folder),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=initializer_range,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_text(folder: Path, n_shards: int = 1, n_documents: int = 6) -> Path:
    """Save shards of documents as JSON lines, `00.jsonl` and on."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(n_shards):
        rows = [
            {"id": f"d{number}", "text": random_text(100 + 40 * number, seed=100 * shard + number)}
            for number in range(n_documents)
        ]
        (folder / f"{shard:02d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def touch(folder: Path) -> None:
    """Make every file of a folder look changed just now, and in another order."""
    for number, path in enumerate(sorted(folder.iterdir())):
        os.utime(path, (2e9 - number, 2e9 - number))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama; not to be changed."""
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two shards of documents; not to be changed."""
    return save_text(tmp_path_factory.mktemp("texts") / "words", n_shards=2)


def study(model: Path, text: Path, **changes: Any) -> dict[str, Any]:
    """Return the configuration of a small study; `changes` replace keys, dotted by `__`."""
    config: dict[str, Any] = {
        "session_name": "tiny",
        "model_config": {"model_name": str(model)},
        "dataset_config": {
            "dataset_name": str(text),
            "dataset_subset": [0],
            "filter_and_chunk_config": {"max_chunks_from_a_document": 2},
        },
        "ctx_len": 64,
        "batch_size": 2,
        "cacheing_config": {"save_IDs_list": ["mle", "mind_ml", "twoNN_f10"]},
    }
    for dotted, value in changes.items():
        *parents, key = dotted.split("__")
        section = config
        for parent in parents:
            section = section.setdefault(parent, {})
        section[key] = value
    return config


# Targets, and what computes tables that a job each links.
NOT_COUNTED = ("all", "extract_all", "estimate_all", "estimate_batch", "total")


class Workflow:
    """A folder in which a study runs: its configuration, and Snakemake's view of it."""

    profile, options = "local", ("--cores", "2")

    def __init__(self, folder: Path, config: dict[str, Any], root: Path = ROOT) -> None:
        self.folder, self.root, self.config = folder, root, config
        self.write()

    def write(self) -> None:
        """Write the configuration."""
        (self.folder / "study.yaml").write_text(yaml.safe_dump(self.config))

    def command(self, *arguments: str) -> list[str]:
        """Return the command that runs Snakemake here, under the profile and its options."""
        profile = self.root / "profiles" / self.profile
        places = ["--snakefile", str(self.root / "Snakefile"), "--directory", str(self.folder)]
        named = ["--configfile", str(self.folder / "study.yaml"), "--profile", str(profile)]
        # The script, not `python -m`, which would put this process's folder before the environment's.
        snakemake = str(Path(sys.executable).parent / "snakemake")
        return [snakemake, *places, *named, *self.options, *arguments]

    def run(self, *arguments: str, is_ok: bool = True) -> str:
        """Run Snakemake and return what it says; it must succeed, or fail when not `is_ok`."""
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, check=False, env=self.environment()
        )
        output = done.stdout + done.stderr
        assert (done.returncode == 0) == is_ok, output
        return output

    def environment(self) -> dict[str, str]:
        """Return the environment: the package of `root`, whatever is installed."""
        return {**os.environ, "PYTHONPATH": str(self.root)}

    def planned(self, *arguments: str) -> dict[str, int]:
        """Return how many jobs of each rule a dry run plans, without `all` and what computes tables to be linked."""
        output = self.run(*arguments, "--dry-run", "--quiet", "rules")
        rows = re.findall(r"^(\w+)\s+(\d+)$", output, flags=re.MULTILINE)
        return {rule: int(count) for rule, count in rows if rule not in NOT_COUNTED}

    @property
    def session(self) -> Path:
        """The folder of the session."""
        return self.folder / "results" / self.config["session_name"]


@pytest.fixture(autouse=True, scope="module")
def log() -> Iterator[None]:
    """Leave the package's log as it was: a verb that runs in this process gives it a handler."""
    before = LOG.handlers[:], LOG.level, LOG.propagate
    yield
    LOG.handlers[:], LOG.level, LOG.propagate = before


@pytest.fixture
def workflow(tmp_path: Path, tiny_llama: Path, text_folder: Path) -> Workflow:
    """A small study in an empty folder, not yet run."""
    return Workflow(tmp_path, study(tiny_llama, text_folder))


@pytest.fixture(scope="session")
def resources() -> Path:
    """The embedded model and texts, prepared once in the folder where the workflow keeps them."""
    from id_scaling.runtime.locks import leased

    folder = ROOT / "resources"
    with leased(folder):
        for verb, name in (("prepare-model", "smollm2-135m-instruct"), ("prepare-dataset", "sotu")):
            if not (folder / name).is_dir():
                command = [sys.executable, "-m", "id_scaling", verb, "--output", str(folder / name)]
                subprocess.run(command, check=True)
    return folder


@pytest.fixture
def python() -> Iterator[Any]:
    """Start Python code in processes of their own; none outlives the test."""
    started = []

    def start(code: str, *arguments: Any) -> subprocess.Popen:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
