"""The command line: quick, plain in its errors, and a stage from one verb to the next."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from conftest import ROOT, study
from verbs import Session

from id_scaling.cli.main import VERBS, _shown, _size, main
from id_scaling.cli.status import BAR
from id_scaling.extraction import run as extract
from id_scaling.results.columns import COLUMNS
from id_scaling.runtime.logging import LOG
from id_scaling.storage.layout import Run
from id_scaling.study.study import Study

HEAVY = {"torch", "polars", "numpy", "pandas", "snakemake", "transformers", "h5py", "pyarrow", "pydantic", "yaml"}


def python(*arguments: Any, folder: Path = ROOT) -> subprocess.CompletedProcess:
    """Run Python in a process of its own."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


def seconds_of_children() -> float:
    """Return the processor time of processes that this one waited for: other work on the machine does not add to it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def imported(*arguments: Any) -> set[str]:
    """Return the top-level modules that a Python process imports."""
    done = python("-X", "importtime", *arguments)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}


# ---- help ------------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    assert imported("-m", "id_scaling", "--help") & HEAVY == set()


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_imports_nothing_heavy(verb: str) -> None:
    assert imported("-m", "id_scaling", verb, "--help") & HEAVY == set()


def test_list_of_imports_shows_what_is_heavy() -> None:
    assert {"numpy", "polars"} <= imported("-c", "import numpy, polars") & HEAVY


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert imported("-c", "import id_scaling; id_scaling.__all__") & HEAVY == set()


def test_status_of_thousands_of_jobs_is_quick_and_imports_little(tmp_path: Path) -> None:
    code = (
        "import sys; from id_scaling.cli.main import main; code = main(sys.argv[1:]); print(*sys.modules); exit(code)"
    )
    start = seconds_of_children()
    done = python("-c", code, "status", ROOT / "config/pythia.yaml", folder=tmp_path)
    seconds = seconds_of_children() - start
    assert done.returncode == 0, done.stderr
    *report, modules = done.stdout.splitlines()
    assert [line.split() for line in report if line.startswith("estimate")] == [
        ["estimate", f"[{'-' * BAR}]", "0", "0", "0", "0", "19,712"]
    ]
    names = {name.split(".")[0] for name in modules.split()}
    assert names & {"torch", "transformers", "polars", "pandas", "snakemake", "pyarrow"} == set()
    assert {"numpy", "pydantic"} <= names
    assert seconds < 4  # about two


def test_help_says_what_each_verb_does(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    # argparse breaks lines where they fit.
    text = " ".join(capsys.readouterr().out.split())
    assert [verb for verb, (run, _) in VERBS.items() if f"{verb} {run.__doc__}" not in text] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["estimate"], "--settings"),
        (
            ["plot", "--settings", "{}", "--session", "a", "--output", "b", "--record", "c", "--threads", "1"],
            "unrecognized arguments",
        ),
        (["fetch-tokenizer", "--settings", "{", "--output", "a"], "--settings"),
    ],
    ids=["no verb", "unknown verb", "missing option", "option of another verb", "settings that are no JSON"],
)
def test_wrong_command_line_is_exit_status_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


# ---- validate and describe -------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path, tiny_llama: Path, text_folder: Path) -> Path:
    """The file of a small study."""
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study(tiny_llama, text_folder)))
    return path


def test_valid_configuration_is_said_to_be_valid(config: Path) -> None:
    done = python("-m", "id_scaling", "validate", config)
    assert (done.returncode, done.stderr) == (0, "")
    # Two modules outside the blocks and three inside, three estimators, one run.
    assert done.stdout == f"{config}: valid; 1 run(s), 15 table(s) of estimates\n"


def assert_refused(done: subprocess.CompletedProcess, *words: str) -> None:
    """Assert that a command ended with one message of the package on standard error."""
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert [word for word in words if word not in done.stderr] == []


def test_a_reader_who_has_read_enough_is_no_error(config: Path) -> None:
    command = [sys.executable, "-m", "id_scaling", "validate", str(config)]
    asked = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    asked.stdout.close()
    assert (asked.stderr.read(), asked.wait()) == ("", 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ctx_len": "64"}, ["ctx_len: found '64' (text)"]),
        ({"ctx_len": 256}, ["ctx_len: found 256, but the model has 128 positions"]),
        ({"ctx_len": [64, 256, 96]}, ["ctx_len: found 256, but the model has 128 positions"]),
        ({"cacheing_config__layer_idx_list": [0, 5]}, ["found layer 5, but the model has 2 layers"]),
        ({"cacheing_config__module_inblock_keys": ["atn"]}, ["'atn'", "did you mean 'attn'"]),
        (
            {
                "model_config__module_name_mapping": {"block": "model.layers.{layer}.mpl"},
                "cacheing_config__module_inblock_keys": ["block"],
                "cacheing_config__module_outblock_keys": [],
            },
            ["no module 'model.layers.0.mpl'", "'model.layers.{layer}.mlp'"],
        ),
        ({"model_config__model_checkpoint": "step1"}, ["step1", "no config.json"]),
        ({"dataset_config__dataset_subset": [2]}, ["no shard 2", "00.jsonl, 01.jsonl"]),
    ],
    ids=["type", "positions", "positions of one of several lengths", "layer", "key", "path", "checkpoint", "shard"],
)
def test_configuration_that_cannot_run_is_refused_before_any_job(
    changes: dict,
    words: list[str],
    tmp_path: Path,
    tiny_llama: Path,
    text_folder: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study(tiny_llama, text_folder, **changes)))
    assert main(["validate", str(path)]) == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("error: ")
    assert [word for word in words if word not in found.err] == []


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "No such file"),
        (b"a: [", "YAML"),
        (b"- a\n- b\n", "mapping"),
        (b"", "mapping"),
        (b"session_name: caf\xe9\n", "YAML"),
    ],
    ids=["missing", "not YAML", "a list", "empty", "not UTF-8"],
)
def test_file_that_is_no_configuration_is_refused(
    content: bytes | None, word: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "study.yaml"
    if content is not None:
        path.write_bytes(content)
    assert main(["validate", str(path)]) == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith(f"error: {path}: ")
    assert word in found.err


def test_invalid_configuration_is_one_message_and_exit_status_1(config: Path) -> None:
    config.write_text(config.read_text() + "batch_siz: 2\n")
    assert_refused(python("-m", "id_scaling", "validate", config), "batch_siz is not a key", "'batch_size'")


def test_describe_says_what_a_model_has(tiny_llama: Path) -> None:
    done = python("-m", "id_scaling", "describe", tiny_llama)
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    for line in (
        "model_type: llama",
        "n_layers: 2",
        "width: 32",
        "max_positions: 128",
        "block: model.layers.{layer}",
        "attn: model.layers.{layer}.self_attn",
        "unemb: model.norm",
    ):
        assert line in lines


def test_describe_says_that_no_mapping_is_known(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = {"model_type": "other", "n_layer": 3, "n_embd": 8, "vocab_size": 9}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["describe", str(tmp_path)]) == 0
    assert "none is known; give the paths yourself" in capsys.readouterr().out


def test_describe_of_a_missing_model_is_one_message(tmp_path: Path) -> None:
    done = python("-m", "id_scaling", "describe", tmp_path / "nothing")
    assert_refused(done, "nothing is not a folder")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ([], "error: --checkpoint: {} holds checkpoints, not a model; choose from step0, step1\n"),
        (["--checkpoint", "step2"], "error: --checkpoint: found no config.json in {}/step2, expected a checkpoint "),
    ],
)
def test_describe_of_a_folder_of_checkpoints_names_its_option(
    tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture, option: list[str], words: str
) -> None:
    for step in ("step0", "step1"):
        (tmp_path / step).symlink_to(tiny_llama)
    assert main(["describe", str(tmp_path), *option]) == 1
    assert capsys.readouterr().err.startswith(words.format(tmp_path))
    assert main(["describe", str(tmp_path), "--checkpoint", "step1"]) == 0


# ---- the log of a job ------------------------------------------------------------------------------------------

SECRET = "hf_" + "Ab1" * 12


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a b\nc", "a b c"),
        (None, "null"),
        ({"a": [1, 0.5], "b": True}, '{"a":[1,0.5],"b":true}'),
        ("x" * 80, "x" * 80),
        ("x" * 81, "x" * 80 + "…"),
        ("x" * 70 + SECRET, "x" * 70 + "***"),
        (f"https://me:{SECRET}@host/model", "https://***@host/model"),
        ([Path("a"), Path("b")], '["a","b"]'),
        (Path("x" * 100), "x" * 100),
    ],
)
def test_settings_are_shown_on_one_line_cut_and_without_secrets(value: Any, shown: str) -> None:
    assert _shown(value) == shown


def test_log_of_a_job_begins_with_what_it_was_given_and_ends_with_what_it_wrote(
    tmp_path: Path, text_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    settings, output = json.dumps({"dataset_name": str(text_folder), "subset": 1}), tmp_path / "identity.json"
    LOG.handlers.clear()
    assert main(["fetch-dataset", "--settings", settings, "--output", str(output)]) == 0
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.split()[1:] == ["fetch-dataset", f"dataset_name={text_folder}", "subset=1", f"--output={output}"]
    assert last.split(maxsplit=1)[1] == f"wrote {output} ({output.stat().st_size} bytes)"


def test_what_was_written_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "of [1]"
    folder.mkdir()
    pl.DataFrame({"a": [1, 2, 3]}).write_parquet(folder / "a.parquet")
    (folder / "manifest.json").write_text('{"n_contexts": 24}')
    assert [_size(path) for path in (folder, folder / "a.parquet", folder / "manifest.json")] == [
        "2 files",
        "3 rows",
        "24 contexts",
    ]


def test_verbs_that_answer_log_nothing(config: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["status", str(config)]) == 0
    assert capsys.readouterr().err == ""


# ---- from one verb to the next ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, text_folder: Path) -> Session:
    """A study extracted by the verbs of the command line; not to be changed."""
    return Session(tmp_path_factory.mktemp("session"), study(tiny_llama, text_folder))


def test_verbs_hand_over_from_names_to_a_manifest(extracted: Session) -> None:
    contexts = pl.read_parquet(extracted.paths["contexts"])
    manifest = json.loads(Path(extracted.paths["manifest"]).read_text())
    assert manifest["n_contexts"] == len(contexts) > 0
    assert {len(ids) for ids in contexts["input_ids"]} == {64}
    folder = Path(extracted.paths["manifest"]).parent
    assert sorted(path.name for path in folder.glob("*.h5")) == sorted(manifest["files"])


@pytest.mark.parametrize(("stage", "is_kept"), [("ModelRun", False), ("_assemble", True), ("_publish", True)])
def test_an_extraction_says_how_far_it_is_wherever_it_ends(
    extracted: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, stage, is_kept
) -> None:
    def ended(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(extract, stage, ended)
    inputs = [part for name in ("contexts", "model") for part in (f"--{name}", extracted.paths[name])]
    settings = ["--settings", extracted.study.extract_settings(extracted.run), "--threads", "1"]
    settings += ["--execution", extracted.study.extract_execution(extracted.run.model)]
    assert main(["extract", *settings, *inputs, "--output", str(tmp_path / "run" / "manifest.json")]) == 128 + 15
    said, n = capsys.readouterr().err, len(pl.read_parquet(extracted.paths["contexts"]))
    assert f"ended with {n if is_kept else 0} of {n} contexts extracted; the next run goes on there" in said
    assert said.endswith("ended: the system asked for it (SIGTERM), as at the end of a job's time\n")


def command_with(made: Study, run: Run, verb: str, change: Callable[[dict[str, Any]], None]) -> list[str]:
    """Return a job's command whose settings and execution are changed, and whose files are not there."""
    module, estimator = made.modules[0], made.estimators[0]
    tokenizer = made.tokenizer_of(run.model)
    names = (run.dataset, str(run.subset), tokenizer, str(run.ctx_len))
    settings = {
        "train-tokenizer": made.train_tokenizer_settings,
        "train-model": lambda: made.train_model_settings("sotu-neox-64"),
        "fetch-model": lambda: made.fetch_model_settings(run.model, run.checkpoint),
        "fetch-weights": lambda: "{}",
        "fetch-tokenizer": lambda: made.fetch_tokenizer_settings(tokenizer),
        "fetch-dataset": lambda: made.fetch_dataset_settings(run.dataset, "0"),
        "chunk": lambda: made.chunk_settings(*names, "none"),
        "shuffle": lambda: made.shuffle_settings(*names, "shuffle-1"),
        "extract": lambda: made.extract_settings(run),
        "estimate": lambda: made.estimate_settings(run, module, estimator),
        "estimate-batch": lambda: made.batch_settings(run, [(module, estimator)]),
        "summarize": made.summarize_settings,
        "plot": made.plot_settings,
    }[verb]
    execution = {
        "fetch-model": lambda: made.fetch_model_execution(run.model),
        "fetch-weights": made.fetch_weights_execution,
        "fetch-tokenizer": made.fetch_tokenizer_execution,
        "chunk": lambda: made.chunk_execution(run.dataset),
        "extract": lambda: made.extract_execution(run.model),
        "estimate-batch": lambda: json.dumps({"n_threads": 1, "n_each": 1, "is_forced": False}),
    }.get(verb, lambda: "{}")
    told = {"settings": json.loads(settings()), "execution": json.loads(execution())}
    change(told)
    given = {option: ["missing/file"] for option in VERBS[verb][1]} | {"--threads": ["1"]}
    given |= {f"--{name}": [json.dumps(value)] for name, value in told.items()}
    options = [[option.replace("--outputs", "--output"), *given[option]] for option in VERBS[verb][1]]
    return [verb, *(part for option in options for part in option)]


def put(*path: str) -> Callable[[dict[str, Any]], None]:
    """Return the change that adds a key, `extra`, inside others."""

    def change(told: dict[str, Any]) -> None:
        for name in path:
            told = told[name]
        told["extra"] = 1

    return change


JOBS = [verb for verb, (_, options) in VERBS.items() if "--settings" in options]


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        *((verb, ("settings",)) for verb in JOBS),
        ("chunk", ("settings", "chunking")),
        ("extract", ("settings", "sites")),
        ("extract", ("settings", "views", "default")),
        ("fetch-model", ("execution", "sites")),
        *((verb, ("execution",)) for verb in ("fetch-model", "fetch-weights", "chunk", "extract", "estimate-batch")),
    ],
    ids=str,
)
def test_setting_that_a_job_does_not_know_is_refused(
    verb: str,
    path: tuple[str, ...],
    extracted: Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command_with(extracted.study, extracted.run, verb, put(*path))) == 1
    assert "found the setting 'extra', which is not known" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_setting_that_a_job_needs_is_missed(
    extracted: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for verb, path, key in (
        ("chunk", ("settings", "chunking"), "max_chunks"),
        ("extract", ("settings", "views", "default"), "decimate"),
        ("fetch-dataset", ("settings",), "subset"),
    ):

        def remove(told: dict[str, Any], path: tuple[str, ...] = path, key: str = key) -> None:
            for name in path:
                told = told[name]
            del told[key]

        assert main(command_with(extracted.study, extracted.run, verb, remove)) == 1
        assert f"the setting '{key}' is missing" in capsys.readouterr().err


def test_estimates_import_neither_torch_nor_pandas_nor_snakemake(extracted: Session, tmp_path: Path) -> None:
    output = tmp_path / "mle.parquet"
    code = (
        "import sys; from id_scaling.cli.main import main; code = main(sys.argv[1:]); print(*sys.modules); exit(code)"
    )
    done = python("-c", code, *extracted.estimate("block", "mle", output))
    assert done.returncode == 0, done.stderr
    names = {name.split(".")[0] for name in done.stdout.split()}
    assert names & {"torch", "transformers", "pandas", "snakemake", "pydantic", "numba", "scipy"} == set()
    # What the list would show of them, it shows of what is imported.
    assert {"numpy", "polars", "h5py"} <= names
    assert set(pl.read_parquet(output)["status"]) == {"ok"}


def test_extraction_that_is_gone_is_one_message(extracted: Session, tmp_path: Path) -> None:
    shutil.copy(extracted.paths["manifest"], tmp_path / "manifest.json")
    arguments = extracted.estimate("block", "mle", tmp_path / "mle.parquet")
    arguments[arguments.index("--manifest") + 1] = str(tmp_path / "manifest.json")
    done = python("-m", "id_scaling", *arguments)
    started, _, done.stderr = done.stderr.partition("\n")
    assert " estimate " in started
    assert_refused(done, "layer_00.h5: missing, though the manifest names it")


def test_model_without_a_tokenizer_runs_with_the_one_that_is_named(
    tmp_path: Path, tiny_llama: Path, text_folder: Path
) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    for path in model.glob("tokenizer*"):
        path.unlink()
    session = Session(tmp_path / "session", study(model, text_folder, model_config__tokenizer=str(tiny_llama)))
    assert Path(session.paths["manifest"]).is_file()


def test_summary_of_the_estimates_has_a_row_per_site_and_view(extracted: Session, tmp_path: Path) -> None:
    from id_scaling.storage.layout import contexts_path, ids_path, run_folder

    folder = run_folder(tmp_path, extracted.run)
    folder.parent.mkdir(parents=True)
    folder.symlink_to(Path(extracted.paths["manifest"]).parent)
    settings = extracted.study.summarize_settings()
    contexts = contexts_path(tmp_path, extracted.run, json.loads(settings)["tokenizers"][extracted.run.model])
    contexts.parent.mkdir(parents=True)
    contexts.symlink_to(extracted.paths["contexts"])
    for module in extracted.study.modules:
        for estimator in extracted.study.estimators:
            output = ids_path(tmp_path, extracted.run, module, estimator)
            output.parent.mkdir(parents=True, exist_ok=True)
            assert main(extracted.estimate(module, estimator, output)) == 0
    outputs = {kind: str(tmp_path / f"summary.{kind}") for kind in ("parquet", "csv", "text")}
    options = [part for kind, path in outputs.items() for part in (f"--{kind}", path)]
    assert main(["summarize", "--settings", settings, "--session", str(tmp_path), *options]) == 0
    summary = pl.read_parquet(outputs["parquet"])
    assert summary.columns == [name for name, _, _ in COLUMNS]
    # Three modules in two layers and two outside, three estimators, three views.
    assert len(summary) == (3 * 2 + 2) * 3 * 3
    assert summary.filter(pl.col("view") == "default")["n_failed"].sum() == 0
