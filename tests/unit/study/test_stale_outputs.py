"""What is stale, by the records in the outputs: of a finished study that was copied, damaged, edited or changed."""

from __future__ import annotations

import copy
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from conftest import save_text, save_tiny_llama, study
from gguf_files import save_gguf
from verbs import do, run_study

from id_scaling.errors import StoreError
from id_scaling.results.inputs import documents_digest
from id_scaling.storage.context_hashes import RowHash
from id_scaling.storage.layout import contexts_path, ids_path, run_folder
from id_scaling.storage.records import read_record, read_table, write_record, write_table
from id_scaling.study import settings as study_settings
from id_scaling.study.staleness import MISSING, Staleness
from id_scaling.study.study import Study

ESTIMATORS = ["mle", "mind_ml", "twoNN_f10"]
# Modules of the study are block, attn, mlp, emb and unemb: 15 tables of a run.
MODULES = 5
BELOW_EXTRACTION = {"estimate": 15, "summary": 1, "figures": 1}
CHAIN = {"extract": 1, **BELOW_EXTRACTION}
ONE_ESTIMATOR = {**BELOW_EXTRACTION, "estimate": MODULES}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, its text, a configuration, and the finished session; not to be changed."""
    folder = tmp_path_factory.mktemp("built")
    save_tiny_llama(folder / "model" / "step0")
    save_text(folder / "text", n_shards=2)
    config = study(Path("model"), Path("text"))
    config["model_config"] = {"model_name": "./model", "model_checkpoint": ["step0"]}
    config["dataset_config"]["dataset_name"] = "./text"
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    before = Path.cwd()
    os.chdir(folder)
    try:
        run_study(config)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def copied(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The configuration of the finished study, in a copy of its folder that is the current folder."""
    shutil.copytree(built, tmp_path / "copy", copy_function=shutil.copy2)
    monkeypatch.chdir(tmp_path / "copy")
    return yaml.safe_load(Path("study.yaml").read_text())


def stale(config: dict[str, Any], **options: Any) -> dict[str, int]:
    """Return how many jobs of each stage have to run."""
    return dict(Counter(map(stage_of, Staleness(Study(copy.deepcopy(config)), **options).reasons)))


def stage_of(output: str) -> str:
    """Return the stage that makes an output."""
    path = Path(output)
    if path.name == "identity.json":
        return path.parts[2]
    named = {"contexts.parquet": "chunk", "summary.parquet": "summary"}
    return named.get(path.name) or (
        "estimate" if "ids" in path.parts else "figures" if "figures" in path.parts else "extract"
    )


def reasons(config: dict[str, Any]) -> dict[str, str]:
    """Return the first reason of each stage."""
    found: dict[str, str] = {}
    for output, reason in Staleness(Study(copy.deepcopy(config))).reasons.items():
        found.setdefault(stage_of(output), reason)
    return found


def path_of(config: dict[str, Any], kind: str) -> Path:
    """Return the contexts, the manifest or one table of the study's run."""
    jobs = Study(copy.deepcopy(config))
    (run,) = jobs.runs
    session = Path(jobs.session)
    return {
        "contexts": contexts_path(session, run, jobs.tokenizer_of(run.model)),
        "manifest": run_folder(session, run) / "manifest.json",
        "layer": run_folder(session, run) / "layer_01.h5",
        "tokens": run_folder(session, run) / "tokens.parquet",
        "table": ids_path(session, run, "mlp", "mle"),
    }[kind]


# ---- nothing ---------------------------------------------------------------------------------------------------


def test_nothing_is_stale_after_a_run(copied: dict[str, Any]) -> None:
    assert stale(copied) == {}


def test_a_session_copied_without_its_times_is_fresh(built: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(built, tmp_path / "copy", copy_function=shutil.copy)
    monkeypatch.chdir(tmp_path / "copy")
    assert stale(yaml.safe_load(Path("study.yaml").read_text())) == {}


def test_a_session_renamed_is_fresh(copied: dict[str, Any]) -> None:
    Path("results/tiny").rename("results/other")
    assert stale({**copied, "session_name": "other"}) == {}
    assert stale({**copied, "session_path": "results/other"}) == {}


def test_times_decide_nothing(copied: dict[str, Any]) -> None:
    for number, path in enumerate(sorted(Path().rglob("*"))):
        os.utime(path, (2e9 - number, 2e9 - number))
    assert stale(copied) == {}


def test_what_says_how_jobs_run_makes_nothing_stale(copied: dict[str, Any]) -> None:
    copied |= {"batch_size": 1, "multiprocessing": False, "multiprocessing_num_cpus": 2, "verbose": True}
    copied["model_config"]["use_accelerator"] = True
    copied["dataset_config"]["max_broken_share"] = 0.00
    assert stale({key: copied[key] for key in reversed(copied)}) == {}


def test_the_order_of_lists_of_sites_makes_no_estimate_stale(copied: dict[str, Any]) -> None:
    copied["cacheing_config"]["save_IDs_list"] = list(reversed(ESTIMATORS))
    # The order of rows and figures is the configuration's.
    assert stale(copied) == {"summary": 1, "figures": 1}


# ---- what is removed or replaced -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("table", {"estimate": 1, "summary": 1, "figures": 1}),
        ("layer", CHAIN),
        ("tokens", CHAIN),
        ("manifest", CHAIN),
        # What was made from them stays what it is.
        ("contexts", {"chunk": 1}),
    ],
)
def test_what_is_removed_is_made_again(kind: str, expected: dict, copied: dict[str, Any]) -> None:
    path_of(copied, kind).unlink()
    assert stale(copied) == expected


@pytest.mark.parametrize("kind", ["models", "tokenizers", "datasets"])
def test_an_identity_that_is_removed_makes_nothing_else_stale(kind: str, copied: dict[str, Any]) -> None:
    (path,) = Path("results/tiny", kind).rglob("identity.json")
    path.unlink()
    assert stale(copied) == {kind: 1}


@pytest.mark.parametrize(
    "name", ["summary.parquet", "summary.csv", "summary.txt", "report.html", "figures/id_by_layer.svg"]
)
def test_a_figure_or_a_text_that_is_removed_is_made_again(name: str, copied: dict[str, Any]) -> None:
    Path("results/tiny", name).unlink()
    assert stale(copied) == ({"summary": 1, "figures": 1} if "summary" in name else {"figures": 1})


def test_a_layer_file_that_is_cut_short_is_made_again(copied: dict[str, Any]) -> None:
    layer = path_of(copied, "layer")
    layer.write_bytes(layer.read_bytes()[:-1])
    assert stale(copied) == CHAIN
    assert "its manifest says" in reasons(copied)["extract"]


def replace_with_an_older_time(path: Path, content: bytes) -> None:
    """Write other content under the time that the file had, less a day, as a restored backup leaves it."""
    before = path.stat()
    assert content != path.read_bytes()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns - 86_400 * 10**9))


def test_a_shard_replaced_under_an_older_time_is_read_again(copied: dict[str, Any]) -> None:
    shard = Path("text/00.jsonl")
    replace_with_an_older_time(shard, shard.read_bytes().replace(b" the ", b" his ", 1))
    assert stale(copied) == {"datasets": 1, "chunk": 1, **CHAIN}
    assert reasons(copied)["datasets"] == "made from other content"
    assert reasons(copied)["chunk"] == "made from other shard"


def test_weights_replaced_under_an_older_time_are_read_again(copied: dict[str, Any]) -> None:
    weights = Path("model/step0/model.safetensors")
    replace_with_an_older_time(weights, weights.read_bytes()[:-1] + b"\x01")
    assert stale(copied) == {"models": 1, **CHAIN}
    assert reasons(copied)["extract"] == "made from other weights"


def test_a_config_with_another_number_is_read_again(copied: dict[str, Any]) -> None:
    path = Path("model/step0/config.json")
    replace_with_an_older_time(path, path.read_bytes().replace(b'"rms_norm_eps": 1e-06', b'"rms_norm_eps": 1e-05'))
    assert stale(copied) == {"models": 1, **CHAIN}


def test_a_tokenizer_that_is_replaced_cuts_the_text_again(copied: dict[str, Any]) -> None:
    path = Path("model/step0/tokenizer.json")
    replace_with_an_older_time(path, path.read_bytes().replace(b'"the"', b'"teh"', 1))
    assert stale(copied) == {"models": 1, "tokenizers": 1, "chunk": 1, **CHAIN}


def test_a_shard_that_the_study_does_not_read_is_no_matter(copied: dict[str, Any]) -> None:
    Path("text/01.jsonl").write_text("{}\n")
    assert stale(copied) == {}


def test_a_source_is_hashed_again_only_when_its_size_or_a_time_changed(copied: dict[str, Any], monkeypatch) -> None:
    monkeypatch.setattr("id_scaling.sources.file_hashes.SETTLED", 0.0)
    assert stale(copied) == {}
    hashed = []
    monkeypatch.setattr("id_scaling.sources.file_hashes.sha256", lambda path: hashed.append(path) or "other")
    assert stale(copied) == {}
    assert hashed == []
    Path("text/00.jsonl").touch()
    assert stale(copied) != {}
    assert [path.name for path in hashed] == ["00.jsonl"]
    assert stale(copied) != {}
    assert len(hashed) == 1


def test_a_record_of_another_extraction_is_seen(copied: dict[str, Any]) -> None:
    """As where an extraction was made again by other library versions, and its tables were not."""
    path, tokens = path_of(copied, "manifest"), path_of(copied, "tokens")
    write_record(path, {**read_record(path), "digest": "0" * 12})
    assert reasons(copied)["extract"] == f"{tokens} is of another extraction"
    write_table(tokens, read_table(tokens)[0], {"digest": "0" * 12})
    assert stale(copied) == BELOW_EXTRACTION
    assert reasons(copied)["estimate"] == "made from another extraction of these settings"


def test_a_summary_that_was_replaced_is_seen_by_its_figures(copied: dict[str, Any]) -> None:
    path = Path("results/tiny/summary.parquet")
    table, facts = read_table(path)
    write_table(path, table.with_columns(pl.col("mean") + 1), facts)
    assert stale(copied) == {"figures": 1}


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x00" * 100, None], ids=["empty", "no record", "zeros", "cut"])
@pytest.mark.parametrize("kind", ["contexts", "manifest", "table"])
def test_a_record_that_cannot_be_read_is_stale(kind: str, damage: bytes | None, copied: dict[str, Any]) -> None:
    path = path_of(copied, kind)
    path.write_bytes(path.read_bytes()[:-5] if damage is None else damage)
    stage = {"contexts": "chunk", "manifest": "extract", "table": "estimate"}[kind]
    expected = f"{path} is empty" if damage == b"" else "its record is of an older version, or damaged"
    assert reasons(copied)[stage] == expected


# ---- contexts that are cut again -----------------------------------------------------------------------------


def edit_contexts(path: Path, *changes: pl.Expr) -> None:
    """Write contexts as another version of a library would have cut them: the same settings, some other columns."""
    table, facts = read_table(path)
    table, (tokens, documents) = table.with_columns(*changes), (RowHash(), RowHash())
    for row in table.iter_rows(named=True):
        tokens.add_tokens(row["input_ids"])
        documents.add_document(row)
    hashes = {"tokens_sha256": tokens.hexdigest(), "documents_sha256": documents.hexdigest()}
    write_table(path, table, {**facts, **hashes})


def other_tokens() -> pl.Expr:
    """Return the tokens of contexts with another one in the last place of each."""
    return pl.concat_list(pl.col("input_ids").list.head(63), pl.lit(3, pl.Int32)).alias("input_ids")


def test_equal_contexts_cut_again_run_nothing_further(copied: dict[str, Any]) -> None:
    path = path_of(copied, "contexts")
    before = read_table(path)
    path.unlink()
    assert stale(copied) == {"chunk": 1}
    run_study(copied)
    assert read_table(path)[1] == before[1]
    assert stale(copied) == {}


def test_other_tokens_cut_with_the_same_settings_are_extracted(copied: dict[str, Any]) -> None:
    """As by another version of `tokenizers`: neither the settings nor the shard say it."""
    path = path_of(copied, "contexts")
    edit_contexts(path, other_tokens())
    assert stale(copied) == CHAIN
    assert reasons(copied)["extract"] == "made from other contexts"
    path_of(copied, "manifest").unlink()
    path_of(copied, "table").unlink()
    for table in path_of(copied, "manifest").parent.glob("ids/*/*"):
        table.unlink(missing_ok=True)
    for name in ("summary.parquet", "figures/manifest.json"):
        Path("results/tiny", name).unlink()
    run_study(copied)
    assert stale(copied) == {}


def test_other_documents_with_the_same_tokens_are_summarized_and_not_extracted(copied: dict[str, Any]) -> None:
    import id_scaling

    edit_contexts(path_of(copied, "contexts"), pl.lit("other").alias("document_id"))
    assert stale(copied) == {"summary": 1, "figures": 1}
    assert reasons(copied)["summary"] == "made from other documents"
    with pytest.raises(StoreError, match="stale: its contexts were cut again"):
        id_scaling.load_summary("results/tiny")


def test_tokens_of_shuffled_contexts_are_compared_too(copied: dict[str, Any]) -> None:
    copied["controls"] = ["none", "shuffle-1"]
    Path("results/tiny/summary.parquet").unlink()
    Path("results/tiny/figures/manifest.json").unlink()
    run_study(copied)
    assert stale(copied) == {}
    jobs = Study(copy.deepcopy(copied))
    plain, shuffled = (contexts_path(Path(jobs.session), run, jobs.tokenizer_of(run.model)) for run in jobs.runs)
    kept = {path: path.read_bytes() for path in (plain, shuffled)}
    plain.unlink()
    assert stale(copied) == {"chunk": 1}
    shuffled.unlink()
    assert stale(copied) == {"chunk": 2}
    plain.write_bytes(kept[plain])
    assert stale(copied) == {"chunk": 1}
    do("shuffle", shuffled, jobs.contexts_settings(jobs.runs[1]), contexts=plain)
    assert stale(copied) == {}
    # Only the documents: a shuffle is drawn by them.
    edit_contexts(plain, pl.lit("other").alias("document_id"))
    assert stale(copied) == {"chunk": 1, "extract": 1, "estimate": 15, "summary": 1, "figures": 1}
    plain.write_bytes(kept[plain])
    edit_contexts(shuffled, other_tokens())
    assert stale(copied) == CHAIN


def test_contexts_of_other_settings_with_the_same_tokens_are_read_but_not_extracted_again(
    copied: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """That they have the same tokens is known only once they are cut: then the job has nothing to compute."""
    copied["dataset_config"]["max_contexts"] = 1000
    assert stale(copied) == {"chunk": 1, **CHAIN}
    path_of(copied, "contexts").unlink()
    run_study(copied)
    assert stale(copied) == {}
    manifest = path_of(copied, "manifest")
    before = {path: path.stat().st_mtime_ns for path in manifest.parent.glob("*.h5")}
    digest_before = read_record(manifest)["digest"]
    manifest.unlink()
    with caplog.at_level("INFO", logger="id_scaling"):
        run_study(copied)
    assert read_record(manifest)["digest"] == digest_before
    assert {path: path.stat().st_mtime_ns for path in manifest.parent.glob("*.h5")} == before
    assert stale(copied) == {}


def test_a_tolerance_for_broken_records_cuts_again_only_where_they_are_too_many(copied: dict[str, Any]) -> None:
    """Of 7 records one is broken."""
    with open("text/00.jsonl", "a") as file:
        file.write("{\n")
    copied["dataset_config"]["max_broken_share"] = 0.5
    for name in ("datasets", "contexts"):
        shutil.rmtree(Path("results/tiny", name))
    path_of(copied, "manifest").unlink()
    run_study(copied)
    assert stale(copied) == {}
    for share, expected in ((0.5, {}), (0.2, {}), (0.1, {"chunk": 1}), (0.0, {"chunk": 1})):
        copied["dataset_config"]["max_broken_share"] = share
        assert stale(copied) == expected, share
        if expected:
            assert reasons(copied)["chunk"] == "1 of 7 records were broken, more than may be"


def test_the_order_of_checkpoints_and_datasets_is_one_in_all_comparisons(copied: dict[str, Any]) -> None:
    """Several of both: else a summary is stale as soon as it is made."""
    save_tiny_llama(Path("model/step1"), seed=1)
    save_text(Path("more"), n_documents=7)
    of_text = copied["dataset_config"]
    copied["dataset_config"] = [of_text, {**of_text, "dataset_name": "./more"}]
    copied["model_config"]["model_checkpoint"] = ["step0", "step1"]
    copied["cacheing_config"] |= {"save_IDs_list": ["mle"], "module_inblock_keys": []}
    copied["session_name"] = "crossed"
    run_study(copied)
    assert stale(copied) == {}


# ---- what is changed in the configuration ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dotted", "value", "expected"),
    [
        ("cacheing_config.save_IDs_list", [*ESTIMATORS, "mle_harmonic"], ONE_ESTIMATOR),
        ("cacheing_config.save_IDs_list", ["mle", "mind_ml"], {"summary": 1, "figures": 1}),
        ("cacheing_config.save_IDs_list", ["mle", "mind_ml", "twoNN_f20"], ONE_ESTIMATOR),
        ("dataset_config.max_dataset_size", 3, {"chunk": 1, **CHAIN}),
        ("dataset_config.dataset_subset", [0, 1], {"datasets": 1, "chunk": 1, **CHAIN}),
        ("ctx_len", [48, 64], {"chunk": 1, **CHAIN}),
        ("cacheing_config.neighbor_ranks", list(range(1, 23)), CHAIN),
        ("cacheing_config.save_cache_tensors", True, CHAIN),
        ("cacheing_config.save_fp", "float32", {}),
        # The model is not fetched again for other layers.
        ("cacheing_config.layer_idx_list", [1], CHAIN),
        ("cacheing_config.save_IDs", False, {}),
        ("dataset_config.group_by", [], {}),
    ],
    ids=str,
)
def test_just_what_a_key_changes_is_stale(dotted: str, value: Any, expected: dict, copied: dict[str, Any]) -> None:
    *parents, key = dotted.split(".")
    section = copied
    for parent in parents:
        section = section.setdefault(parent, {})
    section[key] = value
    assert stale(copied) == expected


def test_one_more_checkpoint_has_a_chain_of_its_own(copied: dict[str, Any]) -> None:
    save_tiny_llama(Path("model/step-more"), seed=1)
    copied["model_config"]["model_checkpoint"] = ["step-more", "step0"]
    assert stale(copied) == {"models": 1, **CHAIN}


def test_going_back_to_a_configuration_makes_its_outputs_fresh(copied: dict[str, Any]) -> None:
    """Those that were not replaced meanwhile."""
    before = copy.deepcopy(copied)
    copied["cacheing_config"]["save_IDs_list"] = ["mle", "mind_ml"]
    assert stale(copied) == {"summary": 1, "figures": 1}
    assert stale(before) == {}


def test_code_of_one_estimator_makes_its_tables_stale(copied: dict[str, Any], monkeypatch) -> None:
    known = study_settings.fingerprint

    def other(*modules: str) -> str:
        return "other code" if "id_scaling.estimators.twonn" in modules else known(*modules)

    monkeypatch.setattr(study_settings, "fingerprint", other)
    assert stale(copied) == {**BELOW_EXTRACTION, "estimate": MODULES}
    assert reasons(copied)["estimate"] == "made with other code"


# ---- forced jobs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("fetch_dataset", {"datasets": 1, "chunk": 1, **CHAIN}),
        ("fetch_model", {"models": 1, **CHAIN}),
        ("chunk_dataset", {"chunk": 1, **CHAIN}),
        ("extract_activations", CHAIN),
        ("estimate_dimension", BELOW_EXTRACTION),
        ("summarize", {"summary": 1, "figures": 1}),
        ("plot", {"figures": 1}),
    ],
)
def test_a_forced_job_and_all_that_follows_have_to_run(rule: str, expected: dict, copied: dict[str, Any]) -> None:
    assert stale(copied, is_forced=lambda name, outputs: name == rule) == expected


def test_what_was_never_made_is_missing_and_not_stale(tmp_path: Path, tiny_llama: Path, text_folder: Path) -> None:
    staleness = Staleness(Study(study(tiny_llama, text_folder, session_path=str(tmp_path / "session"))))
    assert staleness.stale == {}
    assert set(staleness.reasons.values()) == {MISSING}
    assert staleness.fresh == set()


def test_a_kept_summary_whose_tables_changed_is_called_stale_by_the_loader(copied: dict[str, Any]) -> None:
    import id_scaling

    assert len(id_scaling.load_summary("results/tiny"))
    path = path_of(copied, "table")
    table, facts = read_table(path)
    write_table(path, table, {**facts, "versions": {"numpy": "other"}})
    with pytest.raises(StoreError, match="stale: its tables were recomputed"):
        id_scaling.load_summary("results/tiny")
    assert len(id_scaling.load_summary("results/tiny", verify=False))
    shutil.rmtree("results/tiny/runs")
    assert len(id_scaling.load_summary("results/tiny"))


def test_weights_made_here_are_compared(copied: dict[str, Any]) -> None:
    """Untrained ones: where they are lost or changed they are made again, and what was made of them before is not."""
    copied["model_config"]["model_checkpoint"] = ["step0", "random-init-7"]
    run_study(copied)
    assert stale(copied) == {}
    (weights,) = Path("results/tiny/models").glob("*/random-init-7/weights/model.safetensors")
    content = weights.read_bytes()
    replace_with_an_older_time(weights, content[:-4] + b"\x00\x00\x00\x01")
    assert stale(copied) == {"models": 1}
    assert reasons(copied)["models"] == f"{weights} is not what was made"
    weights.unlink()
    assert stale(copied) == {"models": 1}
    weights.write_bytes(content)
    assert stale(copied) == {}


def test_an_identity_of_weights_made_here_that_is_removed_makes_nothing_else_stale(copied: dict[str, Any]) -> None:
    """Untrained ones come out the same from the same config."""
    copied["model_config"]["model_checkpoint"] = ["random-init-7"]
    copied["session_name"] = "untrained"
    run_study(copied)
    assert stale(copied) == {}
    (path,) = Path("results/untrained/models").glob("*/random-init-7/identity.json")
    before = read_record(path)
    shutil.rmtree(path.parent)
    assert stale(copied) == {"models": 1}
    run_study(copied)
    assert read_record(path) == before
    assert stale(copied) == {}
    config = Path("model/step0/config.json")
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert stale(copied) == {"models": 1, **CHAIN}
    path.unlink()
    assert stale(copied) == {"models": 1, **CHAIN}


def test_identities_of_a_gguf_file_that_are_removed_make_nothing_else_stale(
    copied: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("id_scaling.sources.cache.CACHE", Path("cache"))
    file = save_gguf(Path("model/step0"), Path("model/tiny.gguf"))
    copied["model_config"] = {"model_name": f"./{file}"}
    copied["session_name"] = "gguf"
    copied["cacheing_config"] |= {
        "save_IDs_list": ["mle"],
        "module_inblock_keys": [],
        "module_outblock_keys": ["unemb"],
    }
    run_study(copied)
    assert stale(copied) == {}
    for kinds in (["models"], ["tokenizers"], ["models", "tokenizers"]):
        for kind in kinds:
            shutil.rmtree(Path("results/gguf", kind))
        assert stale(copied) == dict.fromkeys(kinds, 1)
        run_study(copied)
        assert stale(copied) == {}
    shutil.rmtree("results/gguf/models")
    replace_with_an_older_time(file, file.read_bytes()[:-4] + b"\x00\x00\x00\x01")
    assert stale(copied) == {"models": 1, "tokenizers": 1, "chunk": 1, **CHAIN, "estimate": 1}


def test_pickled_weights_are_stale_only_where_they_may_not_be_read(copied: dict[str, Any]) -> None:
    """Safetensors are taken where there are some, so allowing pickles changes nothing."""
    copied["model_config"]["allow_pickle"] = True
    assert stale(copied) == {}
    (path,) = Path("results/tiny/models").rglob("identity.json")
    write_record(path, {**read_record(path), "is_pickled": True})
    assert stale(copied) == {}
    copied["model_config"]["allow_pickle"] = False
    assert stale(copied) == {"models": 1}
    assert reasons(copied)["models"] == "its weights are pickled, which allow_pickle does not allow"


def test_a_job_does_not_run_by_other_code_than_it_was_planned_with(copied: dict[str, Any], capsys) -> None:
    """As where the sources changed while it was queued."""
    from id_scaling.cli.main import main

    settings = Study(copied).plot_settings().replace('"code":"', '"code":"other')
    before = Path("results/tiny/report.html").read_bytes()
    options = ["--session=results/tiny", "--record=results/tiny/figures/manifest.json", "--output", "report.html"]
    assert main(["plot", "--settings", settings, *options]) == 1
    assert "plot: the code changed since this job was planned" in capsys.readouterr().err
    assert Path("results/tiny/report.html").read_bytes() == before


def test_contexts_of_an_older_version_say_nothing_of_their_documents(tmp_path: Path) -> None:
    """So a summary with tables of it is stale, which is an error of ours and no traceback."""
    path = tmp_path / "contexts.parquet"
    assert documents_digest(tmp_path, {path: {}}) != documents_digest(tmp_path, {path: {"documents_sha256": "d"}})
