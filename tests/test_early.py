"""What is known before a job is said before a job: layers, fields of documents, columns of shards, points of clouds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import save_text, study
from verbs import run_study

from id_scaling.errors import ConfigError, InputError
from id_scaling.models.modules import request_of, resolve_sites
from id_scaling.results.load import load_summary
from id_scaling.storage.records import read_record
from id_scaling.study.study import Study

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
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
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


def test_parquet_shard_without_the_column_of_texts_is_refused(tmp_path: Path, tiny_llama: Path) -> None:
    shard = save_shard(tmp_path, ".parquet", RECORDS)
    with pytest.raises(InputError, match=r"expected 'txt' \(dataset_config.text_column\); did you mean 'text'"):
        checked(tiny_llama, shard, text_column="txt")
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
