"""A stored file that was damaged: found by what reads it and by `check`, and mended by the command that is named."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from conftest import Workflow, save_text, save_tiny_llama, study
from sessions import assert_same_contents

from id_scaling.cli.check import Finding, check_session, report
from id_scaling.cli.main import main
from id_scaling.errors import StoreError
from id_scaling.results.load import load_summary
from id_scaling.runtime.logging import LOG
from id_scaling.storage.layout import run_folder
from id_scaling.storage.records import MARK, read_note, read_record, read_table, write_record, write_table
from id_scaling.study.study import Study

# Each kind of stored file, and the verb that reads it.
READERS = {
    "datasets/*/*/identity.json": "chunk",
    "tokenizers/*/identity.json": "chunk",
    "contexts/*/*/*/*/*/contexts.parquet": "extract",
    "models/*/*/identity.json": "extract",
    "runs/*/step0/*/*/*/*/manifest.json": "estimate",
    "runs/*/step0/*/*/*/*/layer_00.h5": "estimate",
    "runs/*/step0/*/*/*/*/tokens.parquet": "summarize",
    "runs/*/step0/*/*/*/*/ids/mlp/mle.parquet": "summarize",
    "summary.parquet": "plot",
}
FOUND_BY_CHECK_ALONE = (
    "runs/*/step0/*/*/*/*/outblock.h5",
    "runs/*/*/*/*/*/*/tokens.h5",
    "summary.csv",
    "summary.txt",
    "report.html",
    "figures/*.html",
    "figures/*.svg",
    "figures/*.png",
    "figures/manifest.json",
)

GPU = {"dtype": "bfloat16", "device": "cuda"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """A session of two checkpoints, run to its end; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    for seed, checkpoint in enumerate(("step0", "step1")):
        save_tiny_llama(folder / "model" / checkpoint, seed)
    config = study(folder / "model", save_text(folder / "text"), model_config__model_checkpoint=["step0", "step1"])
    config["cacheing_config"] |= {"module_inblock_keys": ["mlp"], "module_outblock_keys": ["emb"]}
    config["cacheing_config"]["save_IDs_list"] = ["mle"]
    workflow = Workflow(folder, config)
    workflow.run()
    return workflow


@pytest.fixture
def session(whole: Workflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workflow:
    """A copy of that session, in the current directory, to be damaged."""
    shutil.copytree(whole.folder, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return Workflow(tmp_path / "copy", json.loads(json.dumps(whole.config)))


def call(arguments: list[str]) -> int:
    """Return the exit status of a verb, which logs to the standard error of now."""
    LOG.handlers.clear()
    return main(arguments)


def one(session: Workflow, pattern: str) -> Path:
    """Return the first file of a kind, as the workflow names it."""
    return next(iter(sorted(Path("results/tiny").glob(pattern))))


def flip(path: Path, place: int | None = None) -> None:
    """Turn over one byte of a file: in its middle, but never in the mark by which its checksum is found."""
    content = bytearray(path.read_bytes())
    mark = content.rfind(MARK)
    if place is None:
        place = len(content) // 2
        place = mark - 1 if mark <= place < mark + len(MARK) else place
    content[place] ^= 0xFF
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Leave the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def arguments_of(verb: str, session: Workflow) -> list[str]:
    """Return the arguments with which the workflow calls a verb for the first checkpoint."""
    jobs, run = Study(session.config), Study(session.config).runs[0]
    folder = run_folder(Path("results/tiny"), run)
    contexts = str(one(session, "contexts/*/*/*/*/*/contexts.parquet"))
    tokenizer = jobs.tokenizer_of(run.model)
    options = {
        "chunk": {
            "settings": jobs.contexts_settings(run),
            "execution": jobs.chunk_execution(run.dataset),
            "shard": f"results/tiny/datasets/{run.dataset}/0/identity.json",
            "tokenizer": f"results/tiny/tokenizers/{tokenizer}/identity.json",
            "output": contexts,
        },
        "extract": {
            "settings": jobs.extract_settings(run),
            "execution": jobs.extract_execution(run.model),
            "contexts": contexts,
            "model": f"results/tiny/models/{run.model}/{run.checkpoint}/identity.json",
            "output": f"{folder}/manifest.json",
        },
        "estimate": {
            "settings": jobs.estimate_settings(run, "mlp", "mle"),
            "manifest": f"{folder}/manifest.json",
            "output": f"{folder}/ids/mlp/mle.parquet",
        },
        "summarize": {
            "settings": jobs.summarize_settings(),
            "session": "results/tiny",
            **{kind: f"results/tiny/summary.{kind}" for kind in ("parquet", "csv")},
            "text": "results/tiny/summary.txt",
        },
        "plot": {
            "settings": jobs.plot_settings(),
            "session": "results/tiny",
            "output": [*jobs.figures(), jobs.report()],
            "record": "results/tiny/figures/manifest.json",
        },
    }
    lists = {key: value if isinstance(value, list) else [value] for key, value in options[verb].items()}
    return [verb, *(part for key, values in lists.items() for part in (f"--{key}", *values))]


def found(session: Workflow, kind: str) -> dict[str, str]:
    """Return what `check` finds of a kind, by path."""
    return {str(one.path): one.words for one in check_session(Study(session.config)) if one.kind == kind}


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize("pattern", READERS)
def test_what_reads_a_damaged_file_names_it_and_what_mends_it(
    session: Workflow, pattern: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture
):
    arguments = arguments_of(READERS[pattern], session)
    assert call(arguments) == 0
    path = one(session, pattern)
    damage(path)
    capsys.readouterr()
    assert call(arguments) == 1
    said = capsys.readouterr().err
    assert str(path) in said
    target = path.with_name("manifest.json") if path.suffix == ".h5" else path
    assert f"rm {target} && snakemake … all {target} " in said
    assert "Traceback" not in said
    # A file that was cut may have lost its checksum, as a file of an older version has none.
    without = found(session, "stale") if damage is cut else {}
    assert list(found(session, "damaged") | without) == [str(path)]


@pytest.mark.parametrize("pattern", FOUND_BY_CHECK_ALONE)
def test_check_finds_damage_in_files_that_nothing_reads(session: Workflow, pattern: str):
    flip(one(session, pattern))
    assert list(found(session, "damaged")) == [str(one(session, pattern))]


def test_check_finds_damage_in_every_file_of_a_session(session: Workflow):
    """All but logs, benchmarks, and what weights and leases leave: nothing else is there that is not verified."""
    # A hash of a source that is noted in a damaged file is taken again.
    excepted = {"logs", "benchmarks", ".source_hashes"}
    paths = [path for path in sorted(Path("results/tiny").rglob("*")) if path.is_file()]
    paths = [path for path in paths if not excepted & set(path.parts) and path.name != ".lease"]
    assert {".csv", ".txt", ".html", ".svg", ".png", ".json", ".parquet", ".h5"} == {path.suffix for path in paths}
    by_kind = {(path.suffix, path.name if path.suffix != ".h5" else "", len(path.parts)): path for path in paths}
    for path in by_kind.values():
        before = path.read_bytes()
        flip(path)
        assert list(found(session, "damaged")) == [str(path)]
        path.write_bytes(before)


@pytest.mark.parametrize("pattern", ["models/*/step0/identity.json", "summary.parquet"])
def test_a_flip_in_the_mark_of_a_checksum_leaves_a_file_without_one(session: Workflow, pattern: str):
    """As an older version does."""
    path = one(session, pattern)
    flip(path, path.read_bytes().rfind(MARK))
    assert not found(session, "damaged")
    assert found(session, "stale")[str(path)] == "holds no checksum: cut short, or written by an older version"


def test_a_whole_session_is_whole(session: Workflow, capsys: pytest.CaptureFixture):
    """Though clouds of `emb` under the view `origin` are degenerate: equal tokens are equal points there."""
    table, _ = read_table(one(session, "runs/*/step0/*/*/*/*/ids/emb/mle.parquet"))
    assert set(table.filter(view="origin")["status"]) == {"degenerate"}
    assert set(table.filter(pl.col("view") != "origin")["status"]) == {"ok"}
    assert call(["check", "study.yaml"]) == 0
    assert capsys.readouterr().out == (
        "0 damaged, 0 stale, 0 missing, 0 suspicious\n"
        "results/tiny: whole (logs, benchmarks and weights of the hub are not checked)\n"
    )


def test_the_command_that_check_ends_with_mends_everything(whole: Workflow, session: Workflow):
    """What is between the sources and the summary, which stays: Snakemake makes that again only when asked for it."""
    for pattern in (*READERS, "runs/*/step1/*/*/*/*/outblock.h5", "summary.csv"):
        if pattern != "summary.parquet":
            flip(one(session, pattern))
    options = session.command()[1:]
    *_, mend, _ = report(check_session(Study(session.config)), options).splitlines()
    command = mend.removeprefix("to mend ")
    assert "…" not in command
    # As in an activated environment.
    environment = session.environment()
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    subprocess.run(command, shell=True, check=True, capture_output=True, env=environment)
    assert report(check_session(Study(session.config))) == "0 damaged, 0 stale, 0 missing, 0 suspicious"
    assert_same_contents(session.session, whole.session)
    assert session.planned() == {}


def test_sources_that_are_others_now_are_found(session: Workflow, whole: Workflow):
    """The model and the text are where they were when they were read."""
    identities = [one(session, f"{kind}/identity.json") for kind in ("models/*/step0", "datasets/*/0")]
    model, shard = whole.folder / "model" / "step0" / "model.safetensors", whole.folder / "text" / "00.jsonl"
    before = {path: path.read_bytes() for path in (model, shard)}
    try:
        for path in before:
            path.write_bytes(before[path] + b"\n")
        stale = found(session, "stale")
    finally:
        for path, content in before.items():
            path.write_bytes(content)
    assert {path: words for path, words in stale.items() if "identity" in path} == {
        str(identity): f"made from other {what}"
        for identity, what in zip(identities, ("weights", "content"), strict=True)
    }


def test_files_of_an_older_version_are_stale_and_a_summary_is_read_when_asked(session: Workflow):
    path = one(session, "summary.parquet")
    table = pl.read_parquet(path)
    table.write_parquet(path)
    assert found(session, "stale") == {str(path): "holds no checksum: cut short, or written by an older version"}
    with pytest.raises(StoreError, match="holds no checksum"):
        load_summary("results/tiny")
    assert load_summary("results/tiny", verify=False).equals(table, null_equal=True)


def test_figures_that_are_gone_are_missing(session: Workflow):
    one(session, "figures/id_by_layer.png").unlink()
    assert list(found(session, "missing")) == ["results/tiny/figures/id_by_layer.png"]


def test_missing_files_are_found(session: Workflow, capsys: pytest.CaptureFixture):
    shutil.rmtree("results/tiny/runs")
    assert call(["check", "study.yaml"]) == 1
    # Of each of two runs the manifest, the tokens and the tables of two modules.
    assert "0 damaged, 0 stale, 8 missing, 0 suspicious\nresults/tiny: not whole" in capsys.readouterr().out


def test_files_of_other_settings_are_stale(session: Workflow):
    """Another view: what it changes is named, and what it does not change is not."""
    session.config["cacheing_config"]["views"] = {"default": {"skip_first_tokens": 2}}
    stale = found(session, "stale")
    manifests = {path: words for path, words in stale.items() if path.endswith("manifest.json")}
    figures = manifests.pop(str(session.session.relative_to(session.folder) / "figures/manifest.json"))
    assert list(manifests.values()) == ["made with other views"] * 2
    assert figures == "made from other summary"
    assert not any("identity.json" in path or "contexts.parquet" in path for path in stale)


def test_tables_of_another_extraction_are_stale(session: Workflow):
    manifest = one(session, "runs/*/step0/*/*/*/*/manifest.json")
    write_record(manifest, {**read_record(manifest), "digest": "another"})
    stale = found(session, "stale")
    assert {path.rsplit("/", 1)[1]: words for path, words in stale.items()} == {
        "mle.parquet": "made from another extraction of these settings",
        "tokens.parquet": "made by another extraction than its manifest",
    }
    assert len(stale) == 3


def test_runs_of_other_weights_and_contexts_are_stale(session: Workflow):
    manifest = one(session, "runs/*/step0/*/*/*/*/manifest.json")
    record = read_record(manifest)
    write_record(manifest, {**record, "made_from": {**record["made_from"], "weights": "w", "contexts": "c"}})
    words = [finding.words for finding in check_session(Study(session.config)) if finding.path == manifest]
    assert words == ["made from other contexts, weights"]


def test_two_checkpoints_of_the_same_weights_are_suspicious(session: Workflow):
    """A revision that was ignored, or the final model under every step's name."""
    first, second = (one(session, f"runs/*/{step}/*/*/*/*/manifest.json") for step in ("step0", "step1"))
    write_record(second, {**read_record(second), "weights": read_record(first)["weights"]})
    assert found(session, "suspicious") == {str(second): f"the same weights, and the same contexts, as {first}"}


def test_losses_of_no_working_model_are_suspicious(session: Workflow):
    path = one(session, "runs/*/step0/*/*/*/*/tokens.parquet")
    table, facts = read_table(path)
    write_table(path, table.with_columns(pl.col("loss") + 10), facts)
    assert "guessing among" in found(session, "suspicious")[str(path)]
    write_table(path, table.with_columns(pl.when(pl.col("context") > 0).then("loss")), facts)
    assert "is not a finite number" in found(session, "suspicious")[str(path)]


def test_estimates_that_fail_often_or_are_impossible_are_suspicious(session: Workflow):
    path = one(session, "runs/*/step0/*/*/*/*/ids/mlp/mle.parquet")
    table, facts = read_table(path)
    status = pl.when(pl.col("context") < 5).then(pl.lit("degenerate")).otherwise("status").alias("status")
    write_table(path, table.with_columns(status, pl.lit(-1.0).alias("value")), facts)
    words = [finding.words for finding in check_session(Study(session.config)) if finding.path == path]
    assert [re.sub(r"\d+", "N", word) for word in words] == [
        "N of N clouds are not ok: N degenerate",
        "N IDs are ok and not a positive number",
    ]


def test_other_failures_at_the_embedding_are_suspicious(session: Workflow):
    path = one(session, "runs/*/step0/*/*/*/*/ids/emb/mle.parquet")
    table, facts = read_table(path)
    for view, status in (("default", "degenerate"), ("origin", "nonfinite")):
        changed = pl.when(view=view).then(pl.lit(status)).otherwise("status").alias("status")
        write_table(path, table.with_columns(changed), facts)
        assert f" {status}" in found(session, "suspicious")[str(path)]


def test_rows_of_several_dtypes_and_devices_are_suspicious(session: Workflow):
    """As where a run was repeated on another machine, whose `auto` is another dtype."""
    path = one(session, "summary.parquet")
    table, facts = read_table(path)
    of_first = [pl.when(checkpoint="step0").then(pl.lit(value)).otherwise(key).alias(key) for key, value in GPU.items()]
    write_table(path, table.with_columns(of_first), facts, files=read_note(path, "files"))
    words = "mixed dtype bfloat16, float32; device cpu, cuda: differences between rows may come from precision"
    assert found(session, "suspicious")[str(path)].startswith(words)


def test_what_was_left_behind_is_suspicious(session: Workflow):
    run = one(session, "runs/*/step0/*/*/*/*/")
    (run / "parts" / "key").mkdir(parents=True)
    session.config["model_config"]["model_checkpoint"] = ["step0"]
    suspicious = found(session, "suspicious")
    assert set(suspicious.values()) == {
        "an extraction that is going on, or was cut short",
        "a run that this study does not ask for",
    }


def test_a_long_report_is_cut_and_counted():
    findings = [Finding("missing", Path(f"f{number}"), "not there") for number in range(30)]
    lines = report([*findings, Finding("damaged", Path("g"), "cut")]).splitlines()
    assert lines[0] == "damaged    g: cut"
    assert lines[-2:] == ["missing    … and 10 more", "1 damaged, 0 stale, 30 missing, 0 suspicious"]
    assert len(lines) == 1 + 20 + 2


@pytest.mark.parametrize("n_there", [103, 40, 0])
def test_many_files_are_mended_in_turns_and_those_that_are_there_are_removed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_there: int
):
    monkeypatch.chdir(tmp_path)
    names = [f"f{number}" for number in range(100, 203)]
    for name in names[:n_there]:
        Path(name).touch()
    *_, mend, _ = report([Finding("missing", Path(name), "not there", Path(name)) for name in names]).splitlines()
    remove = f"rm -f {' '.join(names[: min(n_there, 100)])} && " if n_there else ""
    assert mend == f"to mend    {remove}snakemake all {' '.join(names[:100])}; then check again, for 3 more"


def test_an_extraction_cut_short_goes_on_though_what_it_knew_of_the_model_is_damaged(
    session: Workflow, whole: Workflow, monkeypatch: pytest.MonkeyPatch
):
    """All parts are there and no layer file is: the model is loaded again, and nothing is computed again."""
    arguments = arguments_of("extract", session)
    run = one(session, "runs/*/step0/*/*/*/*/")
    for path in (*run.glob("*.h5"), run / "manifest.json"):
        path.unlink()

    def stop(*_: object) -> None:
        raise StoreError("stopped before its layer files")

    with monkeypatch.context() as stopped:
        stopped.setattr("id_scaling.extraction.run._assemble", stop)
        assert call(arguments) == 1
    (facts,) = run.glob("parts/*/facts.json")
    flip(facts)
    monkeypatch.setattr("id_scaling.extraction.run._extract_missing", lambda run, ids, parts, *_: parts == [] or stop())
    assert call(arguments) == 0
    assert_same_contents(session.session, whole.session)
