"""What is known before a job is said before a job: layers, fields of documents, columns of shards, points of clouds."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import save_text, study
from verbs import run_study

from id_scaling.cli.main import main
from id_scaling.errors import ConfigError, InputError
from id_scaling.models.modules import request_of, resolve_sites
from id_scaling.results.load import load_summary
from id_scaling.storage.records import read_record
from id_scaling.study.study import Study
from id_scaling.text.readers import Broken, Document, Shard, zstd

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
