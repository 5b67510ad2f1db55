"""Text with its structure broken: which blocks, in which order, and that it is the same for whoever asks."""

from __future__ import annotations

import hashlib
import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from conftest import study
from hypothesis import given
from hypothesis import strategies as st

from id_scaling.cli.main import main
from id_scaling.errors import ConfigError, StoreError
from id_scaling.models.loading import load_model
from id_scaling.neighbors.views import View
from id_scaling.plots.depth import id_by_layer
from id_scaling.plots.style import SHOWN
from id_scaling.storage.context_hashes import content_of
from id_scaling.storage.layout import Run
from id_scaling.storage.records import key_of, read_table, write_table
from id_scaling.study.config import parse
from id_scaling.study.study import Study
from id_scaling.text import shuffling as controls
from id_scaling.text.chunking import Chunking, chunk_dataset
from id_scaling.text.shuffling import CONTROLS, shuffle_contexts, shuffled

BOS = 1


def blocks_of(found: np.ndarray) -> list[list[int]]:
    """Return the runs of consecutive numbers of a permuted range."""
    breaks = np.flatnonzero(np.diff(found) != 1) + 1
    return [part.tolist() for part in np.split(found, breaks)]


# ---- one context -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_tokens", "level", "expected"),
    [
        (8, 1, [[0, 1], [2, 3], [4, 5], [6, 7]]),
        (10, 1, [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]),
        (3, 1, [[0], [1], [2]]),
        (18, 2, [[0, 1], [2, 3], *([number] for number in range(4, 18))]),
    ],
)
def test_tokens_move_in_blocks_of_nearly_one_size(n_tokens: int, level: int, expected: list[list[int]]) -> None:
    """Over many contexts, the places where neighbors are parted are the bounds of the blocks, and no others."""
    parted = set()
    for chunk in range(200):
        found = shuffled(np.arange(n_tokens), level, "d", chunk)
        parted |= {int(number) for number in found[:-1][np.diff(found) != 1]} - {n_tokens - 1}
    assert sorted(parted) == [block[-1] for block in expected[:-1]]


@pytest.mark.parametrize(("level", "n_blocks"), [(1, 4), (2, 16), (3, 64), (4, 256), (5, 1024)])
def test_number_of_blocks_is_four_to_the_level(level: int, n_blocks: int) -> None:
    """In a random order of n blocks, of n - 1 pairs of neighbors about one stays together; here at most 6 of them."""
    found = blocks_of(shuffled(np.arange(1024), level, "d", 0))
    assert n_blocks - 6 <= len(found) <= n_blocks
    assert {len(block) % (1024 // n_blocks) for block in found} == {0}


def test_order_is_that_of_the_hash() -> None:
    digest = hashlib.shake_256(b'["d7",3,1,0]').digest(32)
    order = sorted(range(4), key=lambda block: int.from_bytes(digest[8 * block : 8 * block + 8], "little"))
    assert order != [0, 1, 2, 3]
    expected = [token for block in order for token in (2 * block, 2 * block + 1)]
    assert shuffled(np.arange(8), 1, "d7", 3).tolist() == expected


def test_blocks_never_keep_their_order() -> None:
    """Of two blocks half of all draws would."""
    for chunk in range(100):
        assert shuffled(np.array([5, 6]), 1, "d", chunk).tolist() == [6, 5]


def test_one_block_stays() -> None:
    assert shuffled(np.array([5]), 5, "d", 0).tolist() == [5]
    assert shuffled(np.arange(9), 0, "d", 0).tolist() == list(range(9))


def test_all_other_orders_are_as_likely() -> None:
    """Five of three blocks: chi squared, of 4 degrees of freedom, is above 23.5 once in ten thousand."""
    counts = Counter(tuple(shuffled(np.arange(3), 1, f"d{number}", 0)) for number in range(2000))
    assert len(counts) == 5
    assert sum((count - 400) ** 2 / 400 for count in counts.values()) < 23.5


@given(st.lists(st.integers(0, 50), min_size=1, max_size=200), st.integers(0, 5), st.text(), st.integers(0, 9))
def test_tokens_are_the_same_in_another_order(tokens: list[int], level: int, document_id: str, chunk: int) -> None:
    found = shuffled(np.array(tokens), level, document_id, chunk)
    assert sorted(found.tolist()) == sorted(tokens)
    assert np.array_equal(found, shuffled(np.array(tokens), level, document_id, chunk))
    places = shuffled(np.arange(len(tokens)), level, document_id, chunk)
    assert np.array_equal(found, np.array(tokens)[places])
    assert (places.tolist() == list(range(len(tokens)))) == (min(4**level, len(tokens)) == 1)


# ---- the table ---------------------------------------------------------------------------------------------------


def rows(n_documents: int, bos: int | None = BOS) -> list[dict]:
    """Return two contexts of 64 tokens for each document, with a token before them or without."""
    first = [] if bos is None else [bos]
    return [
        {
            "document": document,
            "document_id": f"d{document}",
            "chunk": chunk,
            "token_start": chunk * (64 - len(first)),
            "token_stop": (chunk + 1) * (64 - len(first)),
            "input_ids": [*first, *range(100 * document + 10, 100 * document + 74 - len(first))],
            "metadata": f'{{"year":{1900 + document}}}',
        }
        for document in range(n_documents)
        for chunk in range(2)
    ]


def write_contexts(path: Path, contexts: list[dict], bos: int | None = BOS) -> Path:
    """Write contexts as the workflow does, numbered as they stand."""
    numbered = [{"context": number, **row} for number, row in enumerate(contexts)]
    table = pl.DataFrame(numbered, schema_overrides={"input_ids": pl.List(pl.Int32)})
    made_from = {"shard": "a", "tokenizer": "b"}
    facts = {"settings": {"control": "none"}, "made_from": made_from, "bos": bos}
    facts |= {"tokens_sha256": str(table["input_ids"].to_list()), "documents_sha256": "d"}
    write_table(path, table, {**facts, "shard_sha256": "a", "tokenizer_sha256": "b"})
    return path


def of(source: Path, control: str) -> pl.DataFrame:
    """Return the contexts of a control."""
    output = source.parent / control / "contexts.parquet"
    shuffle_contexts(source, {"control": control}, output)
    return read_table(output)[0]


def texts(table: pl.DataFrame) -> dict[tuple, list[int]]:
    """Return tokens by document and chunk."""
    return {tuple(key): tokens for *key, tokens in table.select("document_id", "chunk", "input_ids").rows()}


@pytest.mark.parametrize("bos", [None, 0, BOS])
@pytest.mark.parametrize("control", CONTROLS[1:])
def test_all_but_the_order_of_tokens_stays(tmp_path: Path, control: str, bos: int | None) -> None:
    source = write_contexts(tmp_path / "contexts.parquet", rows(3, bos), bos)
    plain, found = read_table(source)[0], of(source, control)
    assert found.schema == plain.schema
    assert found.drop("input_ids").equals(plain.drop("input_ids"))
    n_fixed = int(bos is not None)
    for before, after in zip(plain["input_ids"].to_list(), found["input_ids"].to_list(), strict=True):
        assert after[:n_fixed] == before[:n_fixed]
        assert after != before
        assert sorted(after) == sorted(before)


def test_a_first_token_that_is_no_bos_moves(tmp_path: Path) -> None:
    """Of 12 contexts it stays first in one of 64, on average."""
    source = write_contexts(tmp_path / "contexts.parquet", rows(6, None), None)
    plain, found = (texts(table) for table in (read_table(source)[0], of(source, "shuffle-5")))
    assert sum(found[key][0] == plain[key][0] for key in plain) <= 2


def test_order_depends_on_the_context_and_on_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = texts(of(write_contexts(tmp_path / "a" / "contexts.parquet", rows(3)), "shuffle-3"))
    monkeypatch.setattr(controls, "BATCH", 3)
    turned = texts(of(write_contexts(tmp_path / "b" / "contexts.parquet", rows(8)[::-1]), "shuffle-3"))
    assert len(turned) == 16
    assert few == {key: turned[key] for key in few}


def test_contexts_and_levels_have_orders_of_their_own(tmp_path: Path) -> None:
    source = write_contexts(tmp_path / "contexts.parquet", rows(3))
    places = [
        tuple(np.argsort(np.argsort(tokens)))
        for control in CONTROLS[1:]
        for tokens in of(source, control)["input_ids"].to_list()
    ]
    assert len(set(places)) == len(places) == 5 * 6


def test_facts_name_the_control_its_rule_and_what_it_was_made_of(tmp_path: Path) -> None:
    source = write_contexts(tmp_path / "contexts.parquet", rows(1))
    of(source, "shuffle-2")
    facts = read_table(tmp_path / "shuffle-2" / "contexts.parquet")[1]
    assert facts["settings"] == {"control": "shuffle-2"}
    assert "min(4^2, tokens) blocks" in facts["rule"]
    assert facts["made_from"] == {"contexts": content_of(read_table(source)[1])}
    assert facts["plain"] == key_of(read_table(source)[1])
    assert (facts["bos"], facts["shard_sha256"], facts["tokenizer_sha256"]) == (BOS, "a", "b")


SHUFFLING = """
import sys, time
from id_scaling.cli.main import main
from id_scaling.text import shuffling
before = shuffling._shuffled_batch
def slowly(*given, **options):
    print("shuffling", flush=True)
    time.sleep(60)
    return before(*given, **options)
shuffling._shuffled_batch = slowly
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_killed_shuffle_left_is_removed(number: int, python: Any, tmp_path: Path) -> None:
    """At once where it is asked to end, and by the next run where it is killed."""
    source, output = write_contexts(tmp_path / "contexts.parquet", rows(2)), tmp_path / "out" / "contexts.parquet"
    arguments = ["shuffle", "--settings", '{"control": "shuffle-1"}', f"--contexts={source}", f"--output={output}"]
    process = python(SHUFFLING, *arguments)
    assert process.stdout.readline() == "shuffling\n"
    process.send_signal(number)
    process.wait(timeout=30)
    assert len(list(output.parent.iterdir())) == (number == signal.SIGKILL)
    assert main(arguments) == 0
    assert list(output.parent.iterdir()) == [output]


def test_damaged_contexts_are_refused(tmp_path: Path) -> None:
    source = write_contexts(tmp_path / "contexts.parquet", rows(1))
    content = bytearray(source.read_bytes())
    content[len(content) // 2] ^= 1
    source.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        of(source, "shuffle-2")
    assert not (tmp_path / "shuffle-2" / "contexts.parquet").exists()


# ---- the configuration -------------------------------------------------------------------------------------------


def test_text_is_plain_unless_a_control_is_asked_for() -> None:
    assert parse(study(Path("m"), Path("t"))).controls == ["none"]
    assert parse(study(Path("m"), Path("t"), controls="shuffle-3")).controls == ["shuffle-3"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            ["none", "shufle-1"],
            r"controls\[1\]: found 'shufle-1' \(text\), expected 'none', 'shuffle-1', .* or 'shuffle-5'",
        ),
        ("shuffle-6", r"controls: found 'shuffle-6' \(text\), expected 'none', 'shuffle-1'"),
        (["none", "shuffle-0"], r"controls\[1\]: found 'shuffle-0', which is the text as it is; write none"),
        (["none", "none"], r"controls: none is there more than once"),
        ([], r"controls: found \[\] \(a list\), expected at least one"),
        (None, r"controls: found None \(nothing\)"),
    ],
    ids=str,
)
def test_a_control_that_is_unknown_or_named_twice_is_refused(given: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(study(Path("m"), Path("t"), controls=given))


def test_each_control_is_a_run_beside_that_of_the_plain_text() -> None:
    plain = Study(study(Path("owner/m"), Path("owner/t")))
    both = Study(study(Path("owner/m"), Path("owner/t"), controls=["none", "shuffle-2"]))
    [run] = plain.runs
    assert both.runs == [run, Run(run.model, run.checkpoint, run.dataset, run.subset, 64, "shuffle-2")]
    assert both.contexts_settings(run) == plain.contexts_settings(run)
    assert both.extract_settings(run) == plain.extract_settings(run)
    assert json.loads(both.contexts_settings(both.runs[1]))["control"] == "shuffle-2"


# ---- the figure --------------------------------------------------------------------------------------------------


def summary(controls: tuple[str, ...]) -> pl.DataFrame:
    """Return a summary of two layers, in which each control has an ID of its own."""
    columns = {"model": "m", "checkpoint": "main", "dataset": "t", "subset": 0, "ctx_len": 64, "view": "default"}
    columns |= {"module": "block", "estimator": "mle", "sd": 1.0, "n_contexts": 3, "n_failed": 0, **vars(View())}
    columns |= {"level": "context"}
    table = [
        {**columns, "control": control, "layer": layer, "mean": 10.0 * (number + 1)}
        for number, control in enumerate(controls)
        for layer in range(2)
    ]
    others = {name: pl.lit(None) for name in SHOWN if name not in {*columns, "layer", "mean"}}
    return pl.DataFrame(table).with_columns(pl.lit(None, pl.String).alias("group"), **others)


def test_figure_has_a_panel_for_each_control_with_axes_of_one_height() -> None:
    drawn = id_by_layer(summary(("none", "shuffle-1", "shuffle-5")))
    titles = [row["title"]["text"] for row in drawn["vconcat"]]
    assert [title.split(" · ")[-1] for title in titles] == ["none", "shuffle-1", "shuffle-5"]
    for row, control in zip(drawn["vconcat"], ("none", "shuffle-1", "shuffle-5"), strict=True):
        [panel] = row["hconcat"]
        data = drawn["datasets"][panel["data"]["name"]]
        assert {point["control"] for point in data} == {control}
        scales = [layer["encoding"]["y"].get("scale") for layer in panel["layer"]]
        assert {tuple(scale["domain"]) for scale in scales} == {(0.0, 31.0)}


# ---- a model -----------------------------------------------------------------------------------------------------


def test_a_language_model_finds_shuffled_text_harder(tmp_path: Path, resources: Path) -> None:
    """SmolLM2 on two contexts of 128 tokens, of which the order of single tokens is permuted: 3.0 and 7.8 nats."""
    folder, source = resources / "smollm2-135m-instruct", tmp_path / "contexts.parquet"
    chunk_dataset(
        [resources / "sotu" / "0000.parquet"],
        folder,
        Chunking(128, 1, None, None, max_contexts=2),
        {"settings": {}, "made_from": {}},
        source,
    )
    model = load_model(folder, torch.float32, torch.device("cpu"), use_accelerator=False)
    losses = []
    for table in (read_table(source)[0], of(source, "shuffle-5")):
        input_ids = torch.tensor(table["input_ids"].to_list())
        with torch.inference_mode():
            losses.append(model(input_ids=input_ids, labels=input_ids).loss.item())
    assert losses[1] > losses[0] + 2
