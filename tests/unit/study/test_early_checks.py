"""What is known before a job is said before a job: layers, fields of documents, columns of shards, points of clouds."""

from __future__ import annotations

import gzip
import json
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import save_text, study
from tokenizer_kinds import (
    TRAINED_ON,
    byte_level,
    byte_level_split,
    metaspace,
    spaces_marked,
    unigram,
    word_piece,
    words,
)
from tokenizer_kinds import save as save_kind
from tokenizers import AddedToken, Tokenizer
from verbs import run_study

from id_scaling.cli.main import main
from id_scaling.errors import ConfigError, InputError
from id_scaling.models.modules import request_of, resolve_sites
from id_scaling.results.load import load_summary
from id_scaling.sources.tokenizers import fetch_tokenizer
from id_scaling.storage.layout import identity_path
from id_scaling.storage.records import read_record, write_record
from id_scaling.storage.tokenizers import check_readable
from id_scaling.study.study import Study
from id_scaling.text.readers import Broken, Document, Shard, zstd
from id_scaling.text.token_range import check_range, unknown_token
from id_scaling.text.tokenization import load_tokenizer

RECORDS = [
    {"id": f"d{n}", "text": "the of", "kind": n % 2, "meta": {"set": "a", "deep": {"x": None}}} for n in range(9)
]


def save_shard(folder: Path, suffix: str, records: list[dict[str, Any]]) -> Path:
    """Save records as a shard of a format."""
    path = folder / f"shard{suffix}"
    if suffix == ".parquet":
        pl.DataFrame(records).write_parquet(path)
    elif suffix == ".txt":
        path.write_text("the of")
    else:
        content = "".join(json.dumps(record) + "\n" for record in records).encode()
        compress = {".jsonl.gz": gzip.compress, ".jsonl.zst": zstd.compress}.get(suffix, bytes)
        path.write_bytes(compress(content))
    return path


def checked(model: Path, shard: Path, **keys: Any) -> None:
    """Check a study of a shard as `validate` does."""
    config = study(model, shard)
    config["dataset_config"] |= keys
    Study(config).check()


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("key", ["kind", "meta.set", "meta", "meta.deep.x"])
def test_field_that_documents_have_is_taken(tmp_path: Path, tiny_llama: Path, suffix: str, key: str) -> None:
    checked(tiny_llama, save_shard(tmp_path, suffix, RECORDS), group_by=[key])


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".txt"])
@pytest.mark.parametrize("key", ["kindd", "meta.sett", "kind.set", "text", "id"])
def test_field_that_no_document_has_is_refused(tmp_path: Path, tiny_llama: Path, suffix: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"group_by: no document of .*{suffix} has '{key}'; .* they have") as caught:
        checked(
            tiny_llama, save_shard(tmp_path, suffix, RECORDS), group_by=["kind", key] if suffix != ".txt" else [key]
        )
    assert str(caught.value).endswith(
        "they have nothing" if suffix == ".txt" else "they have kind, meta.deep.x, meta.set"
    )


def test_field_that_only_a_later_document_has_is_for_the_contexts_to_tell(tmp_path: Path, tiny_llama: Path) -> None:
    """Of a long shard only the beginning is read; of one that is read to its end, or as far as asked, all is known."""
    late = [*RECORDS * 200, {"id": "last", "text": "the", "late": 1}]
    shard = save_shard(tmp_path, ".jsonl", late)
    checked(tiny_llama, shard, group_by=["late"])
    checked(tiny_llama, shard, group_by=["late"], max_dataset_size=len(late))
    with pytest.raises(ConfigError, match=r"no document of .* has 'late'"):
        checked(tiny_llama, shard, group_by=["late"], max_dataset_size=500)


def test_field_is_looked_for_only_where_a_summary_is_made(tmp_path: Path, tiny_llama: Path) -> None:
    config = study(tiny_llama, save_shard(tmp_path, ".jsonl", RECORDS), cacheing_config__save_IDs=False)
    config["dataset_config"]["group_by"] = ["kindd"]
    Study(config).check()


SUFFIXES = [".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("group_by", [[], ["kind"], ["kindd"]])
@pytest.mark.parametrize("column", ["txt", "kind", "meta"])
def test_column_that_holds_no_texts_is_refused_before_fields_are_looked_for(
    tmp_path: Path, tiny_llama: Path, suffix: str, group_by: list[str], column: str
) -> None:
    shard = save_shard(tmp_path, suffix, RECORDS)
    with pytest.raises(InputError) as caught:
        checked(tiny_llama, shard, text_column=column, group_by=group_by)
    words, columns = str(caught.value), "id, text, kind, meta"
    assert words.startswith(f"{shard}: found columns {columns}, expected {column!r}")
    assert f"(dataset_config.text_column of {shard}); name the column that holds the text; " in words
    assert ("did you mean 'text'?" in words) == (column == "txt")
    kinds = {".parquet": {"kind": "int64", "meta": "struct<"}}
    of_json = {"kind": "a number", "meta": "an object"}
    assert f"to be text, not {kinds.get(suffix, of_json).get(column, '')}" in words or column == "txt"


def test_all_places_that_check_a_study_say_so(tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture) -> None:
    config = study(tiny_llama, save_shard(tmp_path, ".jsonl", RECORDS))
    config["dataset_config"]["text_column"] = "txt"
    (tmp_path / "study.yaml").write_text(json.dumps(config))
    for verb in ("validate", "plan"):
        assert main([verb, str(tmp_path / "study.yaml")]) == 1
        assert "expected 'txt' (dataset_config.text_column of" in capsys.readouterr().err


def test_column_is_refused_only_where_no_record_can_have_a_text_in_it(tmp_path: Path, tiny_llama: Path) -> None:
    """What is in the beginning of a long shard is not in all of it; a record without a text may be allowed."""
    without = [{"id": f"w{n}", "body": "the of"} for n in range(2000)]
    checked(tiny_llama, save_shard(tmp_path, ".jsonl", [*without[:3], *RECORDS]))  # for the job, which names the three
    checked(tiny_llama, save_shard(tmp_path, ".jsonl", [{"id": "x", "text": None}, *RECORDS]))
    late = save_shard(tmp_path, ".jsonl", [*without, *RECORDS])
    checked(tiny_llama, late, max_broken_share=0.999)
    with pytest.raises(InputError, match="found columns id, body, expected 'text'"):
        checked(tiny_llama, late)  # the first record is an error already
    with pytest.raises(InputError, match="found columns id, body, expected 'text'"):
        checked(tiny_llama, save_shard(tmp_path, ".jsonl", without[:9]), max_broken_share=0.999)


def test_column_of_what_is_no_record_is_not_blamed(tmp_path: Path, tiny_llama: Path) -> None:
    """Nor is a field that no document has where there is no document: the job says what is wrong."""
    for content in (b"", b"not JSON\n", b"[1]\n", b'{"text": "\\ud800"}\n'):
        (tmp_path / "shard.jsonl").write_bytes(content)
        checked(tiny_llama, tmp_path / "shard.jsonl", group_by=["kind"])


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()), pa.date32()],
    ids=str,
)
def test_column_of_any_kind_of_text_is_taken(tmp_path: Path, tiny_llama: Path, kind: pa.DataType) -> None:
    """As what reads it makes text of it; dates too."""
    values = pa.array([0], pa.int32()).cast(kind) if kind == pa.date32() else pa.array(["the of"], kind)
    pq.write_table(pa.table({"text": values}), tmp_path / "shard.parquet")
    checked(tiny_llama, tmp_path / "shard.parquet")
    (document,) = Shard([tmp_path / "shard.parquet"], "text", "id").records()
    assert isinstance(document, Document)


@pytest.mark.parametrize(
    "values",
    [[1], [1.5], [True], [b"the"], [["the"]], [{"a": "the"}], [None], [Decimal("1.5")]],
    ids=str,
)
def test_column_of_a_kind_that_is_no_text_is_refused(tmp_path: Path, tiny_llama: Path, values: list[Any]) -> None:
    pq.write_table(pa.table({"text": values, "body": ["the of"]}), tmp_path / "shard.parquet")
    with pytest.raises(InputError, match=r"found columns text, body, expected 'text' to be text, not "):
        checked(tiny_llama, tmp_path / "shard.parquet")
    (broken,) = Shard([tmp_path / "shard.parquet"], "text", "id").records()
    assert isinstance(broken, Broken)


def test_damaged_parquet_shard_is_refused(tmp_path: Path, tiny_llama: Path) -> None:
    shard = save_shard(tmp_path, ".parquet", RECORDS)
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(InputError, match="not a readable parquet file"):
        checked(tiny_llama, shard)


SPELLED = [([1], [-1]), ([1], {"last": 1}), ([0], {"first": 1}), ([0], {"every": 2}), ([0, 1], [-2, 1])]


@pytest.mark.parametrize(("plain", "spelled"), SPELLED)
def test_settings_of_a_local_model_do_not_depend_on_how_layers_are_spelled(
    tiny_llama: Path, text_folder: Path, plain: list[int], spelled: Any
) -> None:
    views = {"default": {}, "one": {"decimate": 40, "layers": spelled}}
    same = {"default": {}, "one": {"decimate": 40, "layers": plain}}
    made, again = (
        Study(study(tiny_llama, text_folder, cacheing_config__layer_idx_list=layers, cacheing_config__views=of_view))
        for layers, of_view in ((plain, same), (spelled, views))
    )
    run = made.runs[0]
    assert made.extract_settings(run) == again.extract_settings(run)
    assert made.fetch_model_settings(run.model, run.checkpoint) == again.fetch_model_settings(run.model, run.checkpoint)
    assert made.summarize_settings() == again.summarize_settings()


def test_settings_of_a_hub_model_are_what_the_configuration_says(text_folder: Path) -> None:
    """Its layers are known once it is fetched; settings that changed then would make it stale."""
    config = study(Path("owner/model"), text_folder, cacheing_config__layer_idx_list={"last": 2})
    sites = Study(config).sites(next(iter(Study(config).models)))
    assert sites["layers"] == {"last": 2}
    assert [site.layer for site in resolve_sites(request_of(sites), "llama", 7) if site.module == "block"] == [5, 6]


def test_last_layer_is_read_and_estimated(tmp_path: Path, tiny_llama: Path, text_folder: Path) -> None:
    """And an estimator of more points than a context has is `too_few_points` there, a number of a cloud of the run."""
    text = save_text(tmp_path / "text", n_documents=40)
    config = study(tiny_llama, text, session_path=str(tmp_path / "session"))
    config["cacheing_config"] = {
        "layer_idx_list": {"last": 1},
        "module_inblock_keys": ["block"],
        "module_outblock_keys": [],
        "save_IDs_list": ["mle", "gride_n24", "mle_k60"],  # the last is a mean of local values
        "save_positions": [-1],
        "clouds": ["context", "position"],
        "views": {"default": {}, "there": {"duplicates": "keep", "layers": [-1]}},
    }
    config["ctx_len"] = 48
    session = run_study(config)
    manifest = read_record(next(session.glob("runs/*/*/*/*/*/*/manifest.json")))
    assert [layer for _, layer, _ in manifest["sites"]] == [1]
    summary = load_summary(session)
    assert set(summary["view"]) == {"default", "there"}
    for name in ("gride_n24", "mle_k60"):
        wide = summary.filter(estimator=name, view="default").sort("cloud")
        assert wide["cloud"].to_list() == ["context", "position"]
        assert wide["mean"].is_null().to_list() == [True, False]
        assert wide["n_failed"].to_list() == [wide["n_contexts"][0], 0]
        assert "too_few_points" in wide["statuses"][0]
    assert summary.filter(estimator="mle", view="default", cloud="context")["mean"][0] > 0


# ---- tokenizers ------------------------------------------------------------------------------------------------


def with_tokenizer(model: Path, folder: Path, added: list[AddedToken], **config: Any) -> Path:
    """Copy a model that knows as many tokens as it has words, and add tokens to its tokenizer."""
    shutil.copytree(model, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(added)
    tokenizer.save(str(folder / "tokenizer.json"))
    written = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**written, **config}))
    return folder


PADDING, BEGIN, WORD = (AddedToken("[PAD]", special=True), AddedToken("<s>", special=True), AddedToken("zebra"))


def outcome(study_: dict[str, Any]) -> str:
    """Return what is said of a study before any job; nothing where it is taken."""
    try:
        Study(study_).check()
    except InputError as error:
        return str(error)
    return ""


def said_by_fetch(config: dict[str, Any], capsys: pytest.CaptureFixture, verb: str, output: Path) -> str:
    """Return the error of the first job that fetches a model or a tokenizer; nothing where it ends well."""
    made = Study(config)
    (run,) = made.runs
    settings, execution = {
        "fetch-model": (made.fetch_model_settings(run.model, run.checkpoint), made.fetch_model_execution(run.model)),
        "fetch-tokenizer": (
            made.fetch_tokenizer_settings(made.tokenizer_of(run.model)),
            made.fetch_tokenizer_execution(),
        ),
    }[verb]
    capsys.readouterr()
    code = main([verb, "--settings", settings, "--execution", execution, "--output", str(output)])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == code
    return "".join(errors)


@pytest.mark.parametrize(
    ("added", "named", "add_bos", "words"),
    [
        ([], {}, "auto", ""),
        ([], {}, "always", "no beginning-of-sequence token, but add_bos is 'always'; set add_bos: auto"),
        ([], {"bos_token": "the"}, "always", ""),
        ([], {"bos_token": "<s>"}, "always", "no beginning-of-sequence token"),  # named, but not there
        ([PADDING], {"pad_token": "[PAD]"}, "auto", ""),
        ([BEGIN], {"bos_token": "<s>"}, "auto", ""),  # a text does not become it, nor does it stand before one
        ([BEGIN], {"bos_token": "<s>"}, "always", "makes token {} of '<s>', but the model knows {} tokens"),
        ([BEGIN], {"bos_token": "<s>", "add_bos_token": True}, "auto", "makes token {} of '<s>'"),
        ([BEGIN], {"bos_token": "<s>", "add_bos_token": True}, "never", ""),
        ([PADDING, WORD], {"pad_token": "[PAD]"}, "auto", "makes token {1} of 'zebra'"),
    ],
)
def test_tokenizer_that_is_none_for_its_model_is_refused_before_any_job_and_by_the_fetch(
    tmp_path: Path,
    tiny_llama: Path,
    text_folder: Path,
    capsys: pytest.CaptureFixture,
    added: list[AddedToken],
    named: dict[str, Any],
    add_bos: str,
    words: str,
) -> None:
    model = with_tokenizer(tiny_llama, tmp_path / "model", added, **named)
    config = study(model, text_folder, add_bos=add_bos, session_path=str(tmp_path / "session"))
    n_known = json.loads((model / "config.json").read_text())["vocab_size"]
    is_of_model = "makes token" in words
    expected = words.replace("{1}", str(n_known + 1)).format(n_known, n_known)
    found = outcome(config)
    assert expected in found
    assert bool(found) == bool(words)
    assert str(model) in found or not words
    for verb, is_refused in (("fetch-tokenizer", bool(words) and not is_of_model), ("fetch-model", is_of_model)):
        said = said_by_fetch(config, capsys, verb, tmp_path / verb / "identity.json")
        assert (expected in said) == is_refused or not words
        assert bool(said) == is_refused


def test_tokenizer_named_for_a_model_must_be_one_that_it_knows(
    tmp_path: Path, tiny_llama: Path, text_folder: Path
) -> None:
    other = with_tokenizer(tiny_llama, tmp_path / "other", [WORD])
    config = study(tiny_llama, text_folder, model_config__tokenizer=str(other))
    assert f"{tiny_llama} at main: the tokenizer in {other} makes token " in outcome(config)
    assert "name the tokenizer that it was trained with in model_config.tokenizer" in outcome(config)


def test_size_of_a_tokenizer_that_was_fetched_is_not_counted_again(
    tmp_path: Path, tiny_llama: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_tokenizer(tiny_llama, tmp_path / "model", [PADDING], pad_token="[PAD]")
    config = study(model, text_folder, session_path=str(tmp_path / "session"))
    made = Study(config)
    path = identity_path(tmp_path / "session", "tokenizers", made.tokenizer_of(made.runs[0].model))
    fetch_tokenizer(str(model), path)
    assert read_record(path)["n_tokens"] == json.loads((model / "config.json").read_text())["vocab_size"] + 1
    monkeypatch.setattr("id_scaling.study.tokenizer_checks.check_readable", lambda folder: pytest.fail("read again"))
    assert outcome(config) == ""


def test_what_was_fetched_of_the_hub_is_held_against_each_other(
    tmp_path: Path, tiny_llama: Path, text_folder: Path
) -> None:
    """Of a checkpoint whose name in paths is another one, too."""
    session, checkpoint = tmp_path / "session", "stage2--step7"
    folder = with_tokenizer(tiny_llama, tmp_path / "hub", [WORD])
    config = study(Path("owner/model"), text_folder, session_path=str(session))
    config["model_config"]["model_checkpoint"] = checkpoint
    run = Study(config).runs[0]
    assert run.checkpoint != checkpoint
    n_known = json.loads((folder / "config.json").read_text())["vocab_size"]
    architecture = {"model_type": "llama", "n_layers": 2, "width": 32, "vocab_size": n_known, "max_positions": 128}
    identity = {"architecture": architecture, "weights_sha256": "w", "commit": "0" * 40}
    write_record(identity_path(session, "models", run.model, run.checkpoint), identity)
    assert outcome(config) == ""
    fetched = {"model_name": "owner/model", "path": str(folder), "sha256": "s", "n_tokens": n_known + 1}
    write_record(identity_path(session, "tokenizers", "owner--model"), fetched)
    words = f"owner/model at {checkpoint}: the tokenizer in {folder} makes token {n_known} of 'zebra'"
    assert outcome(config).startswith(words)


def test_checkpoints_of_one_model_with_several_tokenizers_are_refused(
    tmp_path: Path, tiny_llama: Path, text_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    """Unless the tokenizer to use is named, and one that is read the same is the same."""
    names = ["step0", "step1", "random-init"]
    with_tokenizer(tiny_llama, tmp_path / "model" / "step0", [])
    other = with_tokenizer(tiny_llama, tmp_path / "model" / "step1", [], model_max_length=7)
    config = study(tmp_path / "model", text_folder, model_config__model_checkpoint=names)
    config |= {"allow_identical_checkpoints": True, "session_path": str(tmp_path / "session")}
    assert outcome(config) == ""
    shutil.rmtree(other)
    with_tokenizer(tiny_llama, other, [], bos_token="the")
    words = (
        f"{tmp_path}/model at step1: its tokenizer, in {other}, is not the one in {tmp_path}/model/step0, which cuts"
    )
    assert words in outcome(config)
    of_one = {**config, "model_config": {**config["model_config"], "model_checkpoint": "step1"}}
    assert words in outcome(of_one)  # text is cut by the first checkpoint's
    assert words in said_by_fetch(of_one, capsys, "fetch-model", tmp_path / "fetched" / "identity.json")
    config["model_config"]["tokenizer"] = str(tiny_llama)
    assert outcome(config) == ""


@pytest.mark.parametrize("make", [byte_level, byte_level_split, spaces_marked, metaspace, unigram, word_piece, words])
def test_every_token_of_a_text_is_found_where_the_model_knows_one_fewer(tmp_path: Path, make: Any) -> None:
    """Whatever the kind of tokenizer: of texts that it was trained on, the largest token is one that texts become."""
    folder = save_kind(tmp_path, make())
    made = load_tokenizer(folder)
    largest = max(token for text in TRAINED_ON for token in made.encode([text])[0])
    n_tokens = check_readable(folder)
    check_range(folder, n_tokens, "never")
    with pytest.raises(InputError, match="makes token"):
        check_range(folder, largest, "never")
    token, text = unknown_token(made, None, largest, n_tokens)
    assert token >= largest
    assert token in made.encode([text])[0]
    assert unknown_token(made, None, n_tokens, n_tokens) is None


def test_tokenizer_in_the_cache_of_the_hub_is_looked_at(
    tmp_path: Path, tiny_llama: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that is not there is for the job that fetches it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = study(Path("owner/model"), text_folder, add_bos="always")
    assert outcome(config) == ""
    commit = "0" * 40
    folder = tmp_path / "models--owner--model"
    shutil.copytree(tiny_llama, folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    assert "no beginning-of-sequence token, but add_bos is 'always'" in outcome(config)
    assert outcome({**config, "add_bos": "auto"}) == ""
