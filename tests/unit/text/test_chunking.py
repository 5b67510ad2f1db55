"""Contexts: the same of every format, cut exactly, and broken shards named."""

from __future__ import annotations

import datetime
import gzip
import hashlib
import json
import re
import struct
import zlib
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import WORDS, random_text, save_tokenizer

from id_scaling.errors import InputError
from id_scaling.runtime.logging import LOG, Progress
from id_scaling.text import readers as records
from id_scaling.text import tokenization as tokens
from id_scaling.text.chunking import Chunking, _batches, chunk_dataset, cut
from id_scaling.text.readers import Document
from id_scaling.text.tokenization import MOST_WHOLE

IDS = {word: number for number, word in enumerate(WORDS, start=1)}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer whose ids are a word's place in `WORDS`, from 1."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return folder


def save_bos_tokenizer(folder: Path, is_added: bool) -> Path:
    """Save the same tokenizer with `<s>` and `</s>` known, and put around a text when `is_added`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<unk>", *WORDS, "<s>", "</s>"])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if is_added:
        special = [(word, vocabulary[word]) for word in ("<s>", "</s>")]
        made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


def chunk(shard: Path | list[Path], tokenizer: Path, **options: Any) -> pl.DataFrame:
    """Return the contexts of a shard of 8 tokens each, unless `options` say otherwise."""
    files = shard if isinstance(shard, list) else [shard]
    chunking = Chunking(**{"ctx_len": 8, "min_chunks": 1, "max_chunks": None, "max_documents": None, **options})
    output = files[0].parent / "out" / "contexts.parquet"
    chunk_dataset(files, tokenizer, chunking, {}, output)
    return pl.read_parquet(output)


def expected(texts: list[str], names: list[str], size: int = 8) -> list[dict[str, Any]]:
    """Return the contexts that whole chunks of `size` tokens of each text make, in order."""
    tokens = [[IDS.get(word, 0) for word in text.split()] for text in texts]
    rows = [
        {
            "document": document,
            "document_id": names[document],
            "chunk": chunk,
            "token_start": chunk * size,
            "token_stop": (chunk + 1) * size,
            "input_ids": tokens[document][chunk * size : (chunk + 1) * size],
        }
        for document in range(len(texts))
        for chunk in range(len(tokens[document]) // size)
    ]
    return [{"context": number, **row} for number, row in enumerate(rows)]


def write_lines(path: Path, records: list[Any]) -> Path:
    """Write JSON lines; bytes are written as they are."""
    lines = [one if isinstance(one, bytes) else json.dumps(one, ensure_ascii=False).encode() for one in records]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


# ---- formats ---------------------------------------------------------------------------------------------------

TEXTS = [random_text(20 + 5 * number, seed=number) for number in range(70)]
# Characters that end a line for some readers, and more than one byte a character.
TEXTS[1] = "the of\u2028and to\nin that é 🙂 it is was for\r\non are as with his"
NAMES = [f"d{number:02d}" for number in range(len(TEXTS))]
RECORDS = [{"id": name, "text": text, "other": 1} for name, text in zip(NAMES, TEXTS, strict=True)]


def as_parquet(folder: Path) -> list[Path]:
    pq.write_table(pa.Table.from_pylist(RECORDS), folder / "0.parquet", row_group_size=13)
    return [folder / "0.parquet"]


def as_dictionary_parquet(folder: Path) -> list[Path]:
    table = pa.table({"text": pa.array(TEXTS).dictionary_encode(), "id": pa.array(NAMES, pa.large_string())})
    pq.write_table(table, folder / "0.parquet")
    return [folder / "0.parquet"]


def as_jsonl(folder: Path) -> list[Path]:
    return [write_lines(folder / "0.jsonl", RECORDS)]


def as_gzip(folder: Path) -> list[Path]:
    (folder / "0.jsonl.gz").write_bytes(gzip.compress(write_lines(folder / "plain", RECORDS).read_bytes()))
    return [folder / "0.jsonl.gz"]


def as_zstandard(folder: Path) -> list[Path]:
    with pa.CompressedOutputStream(str(folder / "0.jsonl.zst"), "zstd") as stream:
        stream.write(write_lines(folder / "plain", RECORDS).read_bytes())
    return [folder / "0.jsonl.zst"]


def as_zstandard_frames(folder: Path) -> list[Path]:
    frames = []
    for number, half in enumerate((RECORDS[:30], RECORDS[30:])):
        with pa.CompressedOutputStream(str(folder / f"frame{number}"), "zstd") as stream:
            stream.write(write_lines(folder / "plain", half).read_bytes())
        frames.append((folder / f"frame{number}").read_bytes())
    (folder / "0.jsonl.zst").write_bytes(b"".join(frames))
    return [folder / "0.jsonl.zst"]


def zstandard_frame(content: bytes, window_log: int) -> bytes:
    """Return a frame of one raw block that declares a window, as RFC 8878 (2021) has it: no size, no checksum."""
    assert len(content) < 2**17  # the largest block
    block = int.to_bytes(1 | len(content) << 3, 3, "little")  # the last one
    return b"\x28\xb5\x2f\xfd" + bytes([0, (window_log - 10) << 3]) + block + content


def as_zstandard_of_a_long_window(folder: Path) -> list[Path]:
    """As `zstd --long=31` writes it."""
    content = write_lines(folder / "plain", RECORDS).read_bytes()
    (folder / "0.jsonl.zst").write_bytes(zstandard_frame(content, window_log=31))
    return [folder / "0.jsonl.zst"]


def with_mark(write: Callable) -> Callable:
    """Return what writes the same behind a byte order mark of UTF-8."""

    def marked(folder: Path) -> list[Path]:
        files = write(folder)
        for file in files:
            content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            content = b"\xef\xbb\xbf" + content
            file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
        return files

    marked.__name__ = f"{write.__name__}_with_mark"
    return marked


def as_text(folder: Path) -> list[Path]:
    for name, text in zip(NAMES, TEXTS, strict=True):
        (folder / f"{name}.txt").write_bytes(text.encode())
    return sorted(folder.glob("*.txt"))


@pytest.mark.parametrize(
    "write",
    [
        as_parquet,
        as_dictionary_parquet,
        as_jsonl,
        as_gzip,
        as_zstandard,
        as_zstandard_frames,
        as_zstandard_of_a_long_window,
        as_text,
        *map(with_mark, (as_jsonl, as_gzip, as_text)),
    ],
)
def test_every_format_gives_the_same_contexts(write: Callable, tmp_path: Path, tokenizer: Path) -> None:
    found, others = (
        chunk(write(tmp_path), tokenizer),
        None if "text" in write.__name__ or write is as_dictionary_parquet else '{"other":1}',
    )
    assert found.drop("metadata").to_dicts() == expected(TEXTS, NAMES)
    assert found["metadata"].unique().to_list() == [others]


# ---- cutting ---------------------------------------------------------------------------------------------------

# Documents of 3, 11, 4, 0 and 13 tokens, which are 1 to 13 from the start.
DOCUMENTS = [" ".join(WORDS[:length]) for length in (3, 11, 4, 0, 13)]


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A shard of the five documents."""
    rows = [{"id": f"d{number}", "text": text} for number, text in enumerate(DOCUMENTS)]
    return write_lines(tmp_path / "0.jsonl", rows)


def places(contexts: pl.DataFrame) -> list[tuple]:
    """Return (document, chunk, token_start, token_stop) of each context."""
    return contexts.select("document", "chunk", "token_start", "token_stop").rows()


def test_documents_are_cut_from_their_first_token_without_gaps_and_without_their_tail(
    documents: Path, tokenizer: Path
) -> None:
    contexts = chunk(documents, tokenizer, ctx_len=4)
    assert contexts["input_ids"].to_list() == [
        [1, 2, 3, 4],
        [5, 6, 7, 8],
        [1, 2, 3, 4],
        [1, 2, 3, 4],
        [5, 6, 7, 8],
        [9, 10, 11, 12],
    ]
    assert places(contexts) == [(1, 0, 0, 4), (1, 1, 4, 8), (2, 0, 0, 4), (4, 0, 0, 4), (4, 1, 4, 8), (4, 2, 8, 12)]
    assert contexts["context"].to_list() == list(range(6))
    assert contexts["document_id"].to_list() == ["d1", "d1", "d2", "d4", "d4", "d4"]


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({"min_chunks": 2}, {1: 2, 4: 3}),
        ({"min_chunks": 3}, {4: 3}),
        ({"max_chunks": 1}, {1: 1, 2: 1, 4: 1}),
        ({"max_chunks": 2}, {1: 2, 2: 1, 4: 2}),
        ({"min_chunks": 2, "max_chunks": 2}, {1: 2, 4: 2}),
        ({"max_documents": 3}, {1: 2, 2: 1}),
        ({"max_documents": 2}, {1: 2}),
        ({"max_documents": 99}, {1: 2, 2: 1, 4: 3}),
        ({"max_contexts": 4}, {1: 2, 2: 1, 4: 1}),
        ({"max_contexts": 3}, {1: 2, 2: 1}),
        ({"max_contexts": 1}, {1: 1}),
        ({"max_contexts": 3, "min_chunks": 2, "max_chunks": 2}, {1: 2, 4: 1}),
        ({"max_contexts": 99}, {1: 2, 2: 1, 4: 3}),
    ],
    ids=str,
)
def test_filters_take_whole_documents_and_first_chunks(
    options: dict, counts: dict, documents: Path, tokenizer: Path
) -> None:
    found = places(chunk(documents, tokenizer, ctx_len=4, **options))
    every = {1: 2, 2: 1, 4: 3}
    assert all(count <= every[document] for document, count in counts.items())
    assert found == [
        (document, number, 4 * number, 4 * number + 4) for document in counts for number in range(counts[document])
    ]


def test_context_starts_with_the_token_that_the_tokenizer_puts_before_a_text(documents: Path, tmp_path: Path) -> None:
    contexts = chunk(documents, save_bos_tokenizer(tmp_path / "bos", is_added=True), ctx_len=5)
    bos = len(WORDS) + 1
    assert contexts["input_ids"].to_list() == [
        [bos, 1, 2, 3, 4],
        [bos, 5, 6, 7, 8],
        [bos, 1, 2, 3, 4],
        [bos, 1, 2, 3, 4],
        [bos, 5, 6, 7, 8],
        [bos, 9, 10, 11, 12],
    ]
    assert places(contexts) == [(1, 0, 0, 4), (1, 1, 4, 8), (2, 0, 0, 4), (4, 0, 0, 4), (4, 1, 4, 8), (4, 2, 8, 12)]


@pytest.mark.parametrize(("bos", "expected"), [(None, [7, 8, 9]), (0, [0, 7, 8]), (5, [5, 7, 8])])
def test_the_token_before_a_context_may_have_any_number(bos: int | None, expected: list[int]) -> None:
    (context, *_) = cut(Document(0, "d", "", None), np.arange(7, 20), bos, Chunking(3, 1, None, None))
    assert context["input_ids"].tolist() == expected
    assert context["token_stop"] == 3 - (bos is not None)


def test_token_that_a_tokenizer_only_knows_is_not_put_before_a_text(documents: Path, tmp_path: Path) -> None:
    contexts = chunk(documents, save_bos_tokenizer(tmp_path / "bos", is_added=False), ctx_len=5)
    assert contexts["input_ids"].to_list() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]


@pytest.mark.parametrize(
    ("is_added", "add_bos", "has_bos"), [(True, "never", False), (False, "always", True), (True, "auto", True)]
)
def test_context_starts_with_the_token_where_that_is_asked_for(
    is_added: bool, add_bos: str, has_bos: bool, documents: Path, tmp_path: Path
) -> None:
    contexts = chunk(documents, save_bos_tokenizer(tmp_path / "bos", is_added), ctx_len=5, add_bos=add_bos)
    bos = len(WORDS) + 1
    assert [ids[0] == bos for ids in contexts["input_ids"]] == [has_bos] * len(contexts)
    facts = json.loads(pl.read_parquet_metadata(tmp_path / "out" / "contexts.parquet")["id_scaling"])
    assert facts["bos"] == (bos if has_bos else None)


@pytest.mark.slow
def test_effect_of_the_token_on_the_perplexity_of_a_real_model(resources: Path, tmp_path: Path) -> None:
    """Its tokenizer's own convention is none; with the token it does a little worse, not another thing altogether."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = resources / "smollm2-135m-instruct"
    ids = {}
    for add_bos in ("auto", "never", "always"):
        output, chunking = tmp_path / f"{add_bos}.parquet", Chunking(512, 2, 2, None, max_contexts=4, add_bos=add_bos)
        chunk_dataset([resources / "sotu" / "0000.parquet"], folder, chunking, {}, output)
        ids[add_bos] = torch.tensor(pl.read_parquet(output)["input_ids"].to_list())
    assert ids["auto"].equal(ids["never"])
    assert ids["always"][:, 0].tolist() == [1] * 4
    # What follows the token is the text, from its beginning.
    assert ids["always"][::2, 1:].equal(ids["never"][::2, :-1])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    perplexities = []
    for add_bos in ("never", "always"):
        with torch.inference_mode():
            scores = model(ids[add_bos]).logits[:, 1:-1].log_softmax(-1).gather(-1, ids[add_bos][:, 2:, None])
        perplexities.append((-scores.mean()).exp().item())
    assert perplexities == pytest.approx([20.10, 20.76], abs=0.02)


def test_document_without_an_id_is_known_by_its_number(tmp_path: Path, tokenizer: Path) -> None:
    text = " ".join(WORDS[:8])
    rows = [{"text": text, "id": "a", "key": 7}, {"text": text}, {"text": text, "id": None, "key": 9}]
    shard = write_lines(tmp_path / "0.jsonl", rows)
    assert chunk(shard, tokenizer)["document_id"].to_list() == ["a", "1", "2"]
    assert chunk(shard, tokenizer, id_column="key")["document_id"].to_list() == ["7", "1", "9"]


def test_text_is_read_from_the_named_column(tmp_path: Path, tokenizer: Path) -> None:
    rows = [{"text": " ".join(WORDS[:8]), "body": " ".join(WORDS[8:16])}]
    for shard in (write_lines(tmp_path / "0.jsonl", rows), tmp_path / "0.parquet"):
        if shard.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), shard)
        assert chunk(shard, tokenizer, text_column="body")["input_ids"].to_list() == [list(range(9, 17))]


def test_file_says_what_it_was_made_of(documents: Path, tokenizer: Path, tmp_path: Path) -> None:
    output = tmp_path / "contexts.parquet"
    chunk_dataset([documents], tokenizer, Chunking(4, 1, None, None), {"shard_sha256": "abc"}, output)
    table = pl.read_parquet(output)
    of_tokens, of_documents = hashlib.sha256(), hashlib.sha256()
    for row in table.iter_rows(named=True):
        of_document = [row[name] for name in table.columns if name not in ("context", "input_ids")]
        texts = json.dumps(of_document, separators=(",", ":")).encode()
        for taken, content in ((of_tokens, struct.pack("<4i", *row["input_ids"])), (of_documents, texts)):
            taken.update(struct.pack("<Q", len(content)) + content)
    assert json.loads(pl.read_parquet_metadata(output)["id_scaling"]) == {
        "shard_sha256": "abc",
        "bos": None,
        "tokenizer": "tokenizer.json",
        "tokens_sha256": of_tokens.hexdigest(),
        "documents_sha256": of_documents.hexdigest(),
        "n_records": 5,
        "n_broken": 0,
    }


# ---- metadata --------------------------------------------------------------------------------------------------


def metadata_of(shard: Path, tokenizer: Path, **options: Any) -> list[Any]:
    """Return the metadata of each context, decoded."""
    return [text and json.loads(text) for text in chunk(shard, tokenizer, **options)["metadata"]]


def test_other_fields_of_a_record_come_along_with_each_of_its_contexts(tmp_path: Path, tokenizer: Path) -> None:
    text = " ".join(WORDS[:17])
    rows = [
        {"text": text, "id": "a", "meta": {"pile_set_name": "Books é", "n": [1, None]}, "b": 1.5, "a": True},
        {"text": text, "id": "b"},
        {"text": text, "score": 1},
    ]
    shard = write_lines(tmp_path / "0.jsonl", rows)
    first = {"meta": {"pile_set_name": "Books é", "n": [1, None]}, "b": 1.5, "a": True}
    assert metadata_of(shard, tokenizer) == [first, first, None, None, {"score": 1}, {"score": 1}]
    # The fields that hold text and id are those that are named.
    assert metadata_of(shard, tokenizer, id_column="score")[0] == {**first, "id": "a"}
    canonical = chunk(shard, tokenizer)["metadata"][0]
    assert canonical == json.dumps(first, sort_keys=True, separators=(",", ":"))


def test_values_that_json_has_not_are_text(tmp_path: Path, tokenizer: Path) -> None:
    moment = datetime.datetime(2024, 5, 6, 7, 8, 9)
    row = {
        "text": " ".join(WORDS[:8]),
        "raw": b"ab\xff",
        "moment": moment,
        "day": moment.date(),
        "share": float("nan"),
        "inner": {"moment": moment, "raw": b"c", "most": float("inf"), "sum": Decimal("1.50")},
    }
    table = pa.Table.from_pylist([row])
    nano = pa.array([1_700_000_000_000_000_001], pa.timestamp("ns", "UTC"))
    pq.write_table(table.append_column("nano", nano), tmp_path / "0.parquet")
    assert metadata_of(tmp_path / "0.parquet", tokenizer) == [
        {
            "raw": "ab\\xff",
            "moment": "2024-05-06 07:08:09.000000",
            "day": "2024-05-06",
            "share": "nan",
            "inner": {"moment": "2024-05-06 07:08:09", "raw": "c", "most": "inf", "sum": "1.50"},
            "nano": "2023-11-14 22:13:20.000000001Z",
        }
    ]


def test_field_that_is_too_long_is_left_out_and_said_once(
    tmp_path: Path, tokenizer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = " ".join(WORDS[:8])
    rows = [{"text": text, "page": "x" * 9_998, "n": 1}, *[{"text": text, "page": "x" * 9_999, "n": 2}] * 2]
    found = metadata_of(write_lines(tmp_path / "0.jsonl", rows), tokenizer)
    assert found == [{"page": "x" * 9_998, "n": 1}, {"n": 2}, {"n": 2}]
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert said == ["field 'page' is left out of the metadata where it is longer than 10000 characters"]


def test_id_and_metadata_with_half_a_character_are_kept(tmp_path: Path, tokenizer: Path) -> None:
    row = {"text": " ".join(WORDS[:8]), "id": "a\ud800", "b\ud800": "c\ud800"}
    shard = tmp_path / "0.jsonl"
    shard.write_text(json.dumps(row))
    assert metadata_of(shard, tokenizer) == [{"b\ud800": "c\ud800"}]
    assert chunk(shard, tokenizer)["document_id"].to_list() == ["a\\ud800"]


# ---- long shards, long documents ---------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [{"max_contexts": 2}, {"max_documents": 2}])
def test_no_more_of_a_shard_is_read_than_is_asked_for(extra: dict, tmp_path: Path, tokenizer: Path) -> None:
    """What follows is broken, in the same batch and beyond, and then no zstandard at all."""
    shard = tmp_path / "0.jsonl.zst"
    with pa.CompressedOutputStream(str(shard), "zstd") as stream:
        stream.write(write_lines(tmp_path / "plain", [*GOOD, *[b"x" * 1000] * 50_000]).read_bytes())
    shard.write_bytes(shard.read_bytes() + b"no frame")
    assert len(chunk(shard, tokenizer, **extra)) == 2
    with pytest.raises(InputError):
        chunk(shard, tokenizer)


@pytest.mark.parametrize(
    ("options", "n_tokens"),
    [
        ({"max_chunks": 1}, 100),
        ({"max_contexts": 2}, 100),
        ({"max_contexts": 1, "min_chunks": 30}, 300),
        ({"max_chunks": 30, "max_contexts": 99}, 300),
        ({}, 1000),
    ],
    ids=str,
)
def test_no_more_of_a_long_document_is_tokenised_than_is_asked_for(
    options: dict, n_tokens: int, tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a batch of pieces: here of a hundred tokens, five characters each."""
    sizes = {"MOST_WHOLE": 400, "PIECE": 500, "OVERLAP": 50, "PIECES_A_BATCH": 1}
    for name, value in sizes.items():
        monkeypatch.setattr(tokens, name, value)
    taken, real = [], tokens.TextTokenizer.tokens
    monkeypatch.setattr(tokens.TextTokenizer, "tokens", lambda *given: taken.append(len(given[2])) or real(*given))
    shard = write_lines(tmp_path / "0.jsonl", [{"text": "that " * 1000}])
    contexts = chunk(shard, tokenizer, **options)
    assert contexts["input_ids"].explode().unique().to_list() == [IDS["that"]]
    # One piece more, as the next is needed to know where the last one ends.
    assert sum(taken) == min(n_tokens // 100 + 1, 10)


def test_broken_record_stops_the_run_at_once_where_none_may_be(tmp_path: Path, tokenizer: Path) -> None:
    shard = tmp_path / "0.jsonl.zst"
    with pa.CompressedOutputStream(str(shard), "zstd") as stream:
        stream.write(write_lines(tmp_path / "plain", [b"nonsense", *GOOD * 50_000]).read_bytes())
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"^1 of 1024 records are broken"):
        chunk(shard, tokenizer)
    with pytest.raises(InputError, match="damaged or cut short"):
        chunk(shard, tokenizer, max_broken_share=0.5)


def test_broken_records_of_one_batch_may_be_few_of_the_whole(tmp_path: Path, tokenizer: Path) -> None:
    shard = write_lines(tmp_path / "0.jsonl", [*[b"nonsense"] * 1000, *GOOD * 2000])
    assert len(chunk(shard, tokenizer, max_broken_share=0.2)) == 4000


@pytest.mark.parametrize("write", [as_parquet, as_jsonl, as_gzip, as_zstandard, as_text])
def test_share_of_a_shard_that_was_read_grows_to_the_whole(write: Callable, tmp_path: Path) -> None:
    shard = records.Shard(write(tmp_path), "text", "id")
    shares = [shard.share for _ in shard.records()]
    assert shares == sorted(shares)
    assert shard.share == 1
    # Lines are decoded some at a time, and a text file counts once it is left.
    assert write not in (as_parquet, as_text) or 0.2 < shares[len(shares) // 2] < 0.6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "cut context 12 (100% of the whole), "),
        ({"max_documents": 16}, "cut context 8 (100% of the whole), "),
        ({"max_contexts": 4}, "cut context 4 (100% of the whole), "),
    ],
    ids=str,
)
def test_progress_is_of_what_is_asked_for(
    options: dict, said: str, tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 24 documents every other one is long enough; eight are tokenised at once."""
    said_so_far: list[str] = []
    monkeypatch.setattr(Progress, "SECONDS_BETWEEN", 0)
    monkeypatch.setattr("id_scaling.text.chunking.MOST_RECORDS", 8)
    monkeypatch.setattr(LOG, "info", lambda words, *values: said_so_far.append(words % values))
    chunk(write_lines(tmp_path / "0.jsonl", [GOOD[0], {"text": "the"}] * 12), tokenizer, **options)
    steps = [words for words in said_so_far if words.startswith("cut context")]
    assert steps[-1].startswith(said)
    assert len(steps) == {12: 3, 8: 2, 4: 1}[int(said.split()[2])]


@pytest.mark.parametrize(("length", "n_rows"), [(10, 64), (2**17, 8), (2**21, 1)])
def test_rows_that_are_read_at_once_are_as_many_as_they_are_short(length: int, n_rows: int, tmp_path: Path) -> None:
    texts = ["the " * (length // 4) for _ in range(2)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "0.parquet", use_dictionary=False)
    with pq.ParquetFile(tmp_path / "0.parquet") as file:
        assert n_rows // 2 <= records._rows_a_batch(file) <= n_rows


def test_texts_that_are_tokenised_together_are_of_a_bounded_length() -> None:
    lengths = [*[10] * 5000, MOST_WHOLE, 3 * MOST_WHOLE, 3 * MOST_WHOLE, MOST_WHOLE // 2, MOST_WHOLE // 2, 1]
    records = [Document(number, "", "x" * length, None) for number, length in enumerate(lengths)]
    batches = [[len(record.text) for record in batch] for batch in _batches(records)]
    assert [length for batch in batches for length in batch] == lengths
    assert all(sum(batch) <= MOST_WHOLE or len(batch) == 1 for batch in batches)
    assert [len(batch) for batch in batches] == [1024] * 4 + [904, 1, 1, 1, 2, 1]


@pytest.mark.parametrize("kind", ["line", "line at the end", "text of a row", "text file"])
def test_record_longer_than_is_allowed_is_broken_and_the_next_one_read(
    kind: str, tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MOST_BYTES", 1000)
    monkeypatch.setattr(records, "BUFFER", 64)
    long = {"id": "long", "text": "the " * 400}
    if kind == "text of a row":
        pq.write_table(pa.Table.from_pylist([GOOD[0], long, GOOD[1]]), tmp_path / "0.parquet")
        shard, where = tmp_path / "0.parquet", "0.parquet row 1: 'text' is"
    elif kind == "text file":
        for name, record in zip("abc", (GOOD[0], long, GOOD[1]), strict=True):
            (tmp_path / f"{name}.txt").write_text(record["text"])
        shard, where = sorted(tmp_path.glob("*.txt")), "b.txt:"
    else:
        rows = [GOOD[0], long, GOOD[1]] if kind == "line" else [*GOOD, long]
        shard = write_lines(tmp_path / "0.jsonl", rows)
        shard.write_bytes(shard.read_bytes()[:-1])
        where = f"0.jsonl line {rows.index(long) + 1}:"
    with pytest.raises(InputError, match=f"1 of 3 records are broken.*{re.escape(where)} longer than 1000 bytes"):
        chunk(shard, tokenizer)
    assert len(chunk(shard, tokenizer, max_broken_share=0.5)) == 2


# Prints the peak of memory, in MB, after each shard that is read, or read and cut, one after another.
PEAKS = """
import re, sys
from pathlib import Path
from id_scaling.text.chunking import Chunking, chunk_dataset
from id_scaling.text.readers import Shard
tokenizer, output, *shards = map(Path, sys.argv[1:])
for shard in shards:
    if tokenizer.is_dir():
        chunk_dataset([shard], tokenizer, Chunking(64, 1, None, None), {}, output)
    for record in Shard([shard], "text", "id").records():
        pass
    print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
"""
on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from Linux")


def shards_of(folder: Path, n_texts: int) -> list[Path]:
    """Write the same texts as parquet of one row group, and as JSON lines, compressed and not."""
    texts = [random_text(1000, seed) for seed in range(10)]
    rows = [{"text": texts[number % 10], "meta": {"n": number}} for number in range(n_texts)]
    plain, packed, table = (folder / f"{n_texts}{suffix}" for suffix in (".jsonl", ".jsonl.zst", ".parquet"))
    with pa.CompressedOutputStream(str(packed), "zstd") as stream:
        stream.write(write_lines(plain, rows).read_bytes())
    pq.write_table(pa.Table.from_pylist(rows), table, compression="none", use_dictionary=False)
    return [table, packed, plain]


@on_linux
@pytest.mark.parametrize(("is_cut", "n_texts", "most"), [(False, (2500, 25_000), 40), (True, (500, 5000), 40)])
@pytest.mark.slow
def test_memory_does_not_grow_with_the_shard(
    is_cut: bool, n_texts: tuple[int, int], most: float, tmp_path: Path, tokenizer: Path, python: Any
) -> None:
    """Ten times the text: at most 40 MB more, what allocators keep, of 100 MB that are read, and of 20 that are cut.

    Tokens and rows of 20 MB of text are some 200 MB.
    """
    small, large = (shards_of(tmp_path, n) for n in n_texts)
    process = python(PEAKS, tokenizer if is_cut else "-", tmp_path / "contexts.parquet", *small, *large)
    peaks = [float(line) for line in process.communicate()[0].split()]
    assert process.returncode == 0
    assert peaks[-1] - peaks[2] < most, peaks


@on_linux
@pytest.mark.slow
def test_document_of_fifty_megabytes_is_cut_in_bounded_memory(tmp_path: Path, tokenizer: Path, python: Any) -> None:
    """The line, its text and its tokens are 200 MB; tokenised whole, it takes 6 GB."""
    text = random_text(100_000, 0)
    long = " ".join([text] * (50_000_000 // len(text)))
    small, large = (
        write_lines(tmp_path / f"{name}.jsonl", [{"text": one}]) for name, one in (("small", text), ("large", long))
    )
    process = python(PEAKS, tokenizer, tmp_path / "contexts.parquet", small, large)
    peaks = [float(line) for line in process.communicate()[0].split()]
    assert process.returncode == 0
    assert peaks[1] - peaks[0] < 600, peaks
    tokens = pl.read_parquet(tmp_path / "contexts.parquet")["input_ids"].explode().to_list()
    assert tokens == [IDS[word] for word in long.split()][: len(tokens)]
    assert len(tokens) > len(long.split()) - 64


# ---- broken records --------------------------------------------------------------------------------------------

GOOD = [{"id": "a", "text": " ".join(WORDS[:9])}, {"id": "b", "text": " ".join(WORDS[9:20])}]
BROKEN = [
    pytest.param(b'{"text": "the \xff of"}', "not UTF-8 at byte 14", id="not UTF-8"),
    pytest.param(b'{"text": "the of"', "not JSON", id="not JSON"),
    pytest.param({"id": "x", "body": "the"}, "no 'text' (dataset_config.text_column); it has id, body", id="no text"),
    pytest.param({"text": None}, "'text' is NoneType, expected text", id="null"),
    pytest.param({"text": 3}, "'text' is int, expected text", id="number"),
    pytest.param({"text": ["the"]}, "'text' is list, expected text", id="list"),
    pytest.param(["the"], "no 'text'", id="no mapping"),
    pytest.param(b'{"text": "the", "x": ' + b"[" * 500 + b"NaN" + b"]" * 500 + b"}", "too deep", id="deep"),
    pytest.param(b'{"text": "the", "x": ' + b"[" * 99_999 + b"]" * 99_999 + b"}", "not JSON that can", id="deeper"),
    # Half of a pair of code units: JSON can write it, UTF-8 and so no tokenizer can read it.
    pytest.param({"text": "the \ud800 of"}, "'text'", id="half a character"),
]


def with_broken(folder: Path, broken: Any) -> Path:
    """Write a shard whose second of three records is broken."""
    if isinstance(broken, dict):
        broken = json.dumps(broken).encode()
    return write_lines(folder / "0.jsonl", [GOOD[0], broken, GOOD[1]])


@pytest.mark.parametrize(("broken", "what"), BROKEN)
def test_broken_record_is_counted_and_named(broken: Any, what: str, tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(InputError) as caught:
        chunk(with_broken(tmp_path, broken), tokenizer)
    message = str(caught.value)
    assert message.startswith("1 of 3 records are broken")
    assert "dataset_config.max_broken_share" in message
    assert "0.jsonl line 2: " in message
    assert what in message


@pytest.mark.parametrize(("broken", "what"), BROKEN)
def test_allowed_share_of_broken_records_leaves_the_contexts_of_the_others(
    broken: Any, what: str, tmp_path: Path, tokenizer: Path
) -> None:
    contexts = chunk(with_broken(tmp_path, broken), tokenizer, max_broken_share=0.4)
    assert contexts["input_ids"].to_list() == [list(range(1, 9)), list(range(10, 18))]
    assert contexts["document_id"].to_list() == ["a", "b"]


@pytest.mark.parametrize(("broken", "what"), BROKEN)
def test_document_keeps_its_number_in_the_shard_behind_a_broken_record(
    broken: Any, what: str, tmp_path: Path, tokenizer: Path
) -> None:
    contexts = chunk(with_broken(tmp_path, broken), tokenizer, max_broken_share=0.4)
    assert contexts["document"].to_list() == [0, 2]


@pytest.mark.parametrize(("share", "is_allowed"), [(0.25, True), (0.24, False), (1.0, True)])
def test_share_counts_all_records_read(share: float, is_allowed: bool, tmp_path: Path, tokenizer: Path) -> None:
    shard = write_lines(tmp_path / "0.jsonl", [*GOOD, b"nonsense", GOOD[0]])
    if is_allowed:
        assert len(chunk(shard, tokenizer, max_broken_share=share)) == 3
    else:
        with pytest.raises(InputError, match=r"1 of 4 records are broken, allowed is a share of 0\.24"):
            chunk(shard, tokenizer, max_broken_share=share)


def test_records_beyond_the_documents_read_may_be_broken(tmp_path: Path, tokenizer: Path) -> None:
    shard = write_lines(tmp_path / "0.jsonl", [*GOOD, b"nonsense"])
    assert len(chunk(shard, tokenizer, max_documents=2)) == 2


def test_first_few_of_many_broken_records_are_named(tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(InputError, match=r"^9 of 10 records are broken") as caught:
        chunk(write_lines(tmp_path / "0.jsonl", [GOOD[0], *[b"nonsense"] * 9]), tokenizer)
    message = str(caught.value)
    assert [f"line {number}:" in message for number in (2, 6, 7)] == [True, True, False]
    assert message.endswith("; …")


def test_broken_row_of_a_parquet_file_is_named(tmp_path: Path, tokenizer: Path) -> None:
    texts = ["the"] * 70 + [None]
    pq.write_table(pa.table({"text": texts}), tmp_path / "0.parquet")
    with pytest.raises(InputError, match=r"1 of 71 records are broken.*0\.parquet row 70: 'text' is NoneType"):
        chunk(tmp_path / "0.parquet", tokenizer)


def test_text_of_a_parquet_file_that_is_not_utf8_is_named(tmp_path: Path, tokenizer: Path) -> None:
    raw = pa.array([GOOD[0]["text"].encode(), b"the \xff of"])
    texts = pa.StringArray.from_buffers(len(raw), *raw.buffers()[1:])
    pq.write_table(pa.table({"text": texts}), tmp_path / "0.parquet")
    with pytest.raises(InputError, match=r"0\.parquet row 1: not UTF-8"):
        chunk(tmp_path / "0.parquet", tokenizer)


def test_text_file_that_is_not_utf8_is_named(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"the \xff")
    (tmp_path / "b.txt").write_text(" ".join(WORDS[:8]))
    with pytest.raises(InputError, match=r"1 of 2 records are broken.*a\.txt: not UTF-8 at byte 4"):
        chunk(sorted(tmp_path.glob("*.txt")), tokenizer)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("name", ["0.jsonl", "0.jsonl.gz", "0.txt"])
def test_a_byte_order_mark_of_another_encoding_is_said(
    encoding: str, name: str, tmp_path: Path, tokenizer: Path
) -> None:
    text = write_lines(tmp_path / "plain", RECORDS).read_text()
    content = (text if encoding in ("utf-16", "utf-32") else f"\ufeff{text}").encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(InputError, match=rf"{name}: starts with a byte order mark of UTF-16 or UTF-32, .*iconv"):
        chunk(tmp_path / name, tokenizer, max_broken_share=1.0)


def test_a_mark_at_the_start_of_any_line_is_no_text(tmp_path: Path, tokenizer: Path) -> None:
    """As files have it that were put behind each other."""
    content = b"\xef\xbb\xbf" + write_lines(tmp_path / "plain", GOOD).read_bytes()
    (tmp_path / "0.jsonl").write_bytes(content * 2)
    once = chunk(write_lines(tmp_path / "once.jsonl", GOOD), tokenizer)
    assert chunk(tmp_path / "0.jsonl", tokenizer)["input_ids"].to_list() == once["input_ids"].to_list() * 2


def test_a_window_that_zstandard_does_not_read_is_said(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "0.jsonl.zst").write_bytes(zstandard_frame(b"{}", window_log=32))
    with pytest.raises(InputError, match="needs a window of more than 2147483648 bytes"):
        chunk(tmp_path / "0.jsonl.zst", tokenizer)


# ---- damaged files ---------------------------------------------------------------------------------------------


def spoiled(folder: Path, kind: str) -> Path:
    """Write a shard of one format and damage it."""
    write, damage = {
        "gzip cut short": (as_gzip, lambda raw: raw[: len(raw) // 2]),
        # The first byte behind the ten of the header: its block type does not exist.
        "gzip with a wrong block": (as_gzip, lambda raw: raw[:10] + b"\xff" + raw[11:]),
        "gzip with a wrong checksum": (as_gzip, lambda raw: raw[:-8] + bytes([raw[-8] ^ 255]) + raw[-7:]),
        "not gzip": (as_gzip, lambda raw: b"plain text"),
        "zstandard cut short": (as_zstandard, lambda raw: raw[: len(raw) // 2]),
        "zstandard without its last bytes": (as_zstandard, lambda raw: raw[:-3]),
        "not zstandard": (as_zstandard, lambda raw: b"plain text"),
        "parquet cut short": (as_parquet, lambda raw: raw[: len(raw) // 2]),
        "not parquet": (as_parquet, lambda raw: b"plain text"),
        # Behind the four bytes of magic and the first page's header.
        "parquet with a wrong page": (
            as_parquet,
            lambda raw: raw[:100] + bytes(byte ^ 255 for byte in raw[100:150]) + raw[150:],
        ),
    }[kind]
    (path,) = write(folder)
    path.write_bytes(damage(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "gzip cut short",
        "gzip with a wrong block",
        "gzip with a wrong checksum",
        "not gzip",
        "zstandard cut short",
        "zstandard without its last bytes",
        "not zstandard",
        "parquet cut short",
        "not parquet",
        "parquet with a wrong page",
    ],
)
def test_damaged_file_is_named_with_what_to_do(kind: str, tmp_path: Path, tokenizer: Path) -> None:
    path = spoiled(tmp_path, kind)
    with pytest.raises(InputError) as caught:
        chunk(path, tokenizer)
    assert str(path) in str(caught.value)
    assert "fetch or write it again" in str(caught.value)


def test_damage_of_the_wrong_gzip_block_is_one_that_zlib_finds(tmp_path: Path) -> None:
    path = spoiled(tmp_path, "gzip with a wrong block")
    with pytest.raises(zlib.error, match="block type"):
        gzip.decompress(path.read_bytes())


def test_parquet_without_the_text_column_lists_its_columns(tmp_path: Path, tokenizer: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "Text": ["the"], "year": [1]}), tmp_path / "0.parquet")
    with pytest.raises(InputError) as caught:
        chunk(tmp_path / "0.parquet", tokenizer)
    message = str(caught.value)
    for part in ("0.parquet", "found columns id, Text, year", "'text' (dataset_config.text_column)", "mean 'Text'"):
        assert part in message


@pytest.mark.parametrize(("options", "needed"), [({"ctx_len": 14}, 14), ({"ctx_len": 5, "min_chunks": 3}, 15)], ids=str)
def test_no_document_long_enough_names_the_longest_and_the_need(
    options: dict, needed: int, documents: Path, tokenizer: Path
) -> None:
    with pytest.raises(InputError, match=f"needs {needed} tokens, the longest of 5 has 13; lower") as caught:
        chunk(documents, tokenizer, **options)
    assert f"ctx_len {options['ctx_len']} " in str(caught.value)


def test_need_counts_the_token_put_before_a_text(documents: Path, tmp_path: Path) -> None:
    bos = save_bos_tokenizer(tmp_path / "bos", is_added=True)
    assert len(chunk(documents, bos, ctx_len=14)) == 1
    with pytest.raises(InputError, match="needs 14 tokens, the longest of 5 has 13"):
        chunk(documents, bos, ctx_len=15)


def test_shard_without_a_document_says_so(tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(InputError, match="the shard has no document"):
        chunk(write_lines(tmp_path / "0.jsonl", []), tokenizer)


@pytest.mark.parametrize(
    "records", [[GOOD[0], b"nonsense"], [{"text": "the"}], []], ids=["broken record", "too short", "no document"]
)
def test_error_leaves_no_file_and_keeps_an_older_one(records: list, tmp_path: Path, tokenizer: Path) -> None:
    shard = write_lines(tmp_path / "0.jsonl", records)
    output = tmp_path / "out" / "contexts.parquet"
    with pytest.raises(InputError):
        chunk(shard, tokenizer)
    assert list(output.parent.iterdir()) == []
    output.write_text("older")
    with pytest.raises(InputError):
        chunk(shard, tokenizer)
    assert [path.name for path in output.parent.iterdir()] == ["contexts.parquet"]
    assert output.read_text() == "older"
