"""Names that shells and Snakemake read as something else, through the real rules: each is one argument, unchanged."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from conftest import Workflow, study
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import id_scaling
from id_scaling.cli.main import main
from id_scaling.runtime.logging import LOG
from id_scaling.storage.layout import slug
from id_scaling.study.study import Study

# Folders that a file system takes and a configuration allows: anything but '/', control characters, '{}' and '<>'.
LETTERS = "aB0_-.~ '\"$`;&|()[]*?!#%\\,=:@^+é模😀"
FOLDERS = st.text(st.sampled_from(LETTERS), min_size=1, max_size=40).filter(lambda name: name.strip(".") != "")
SESSIONS = FOLDERS.filter(lambda name: name[0] not in "-~")
NASTY = [
    "sp ace  two",
    'it\'s "quoted"',
    "a;touch pwned;",
    "$(touch pwned)",
    "`touch pwned`",
    "a&touch pwned&|cat",
    "*",
    "-rf",
    "--output=x",
    "%j#~!",
    "back\\slash\\",
    "naïve-模型-😀",
    "\\$(touch pwned)",
    "'; touch pwned; '",
    "a,b=c",
    "x" * 150,
]
few = settings(
    max_examples=2,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
RECORDER = """#!/bin/bash
[ "${0##*/}" = tee ] && cat > /dev/null
printf '%s\\0' "${0##*/}" "$@" $'\\n' >> "$RECORD"
[ "${0##*/}" != cmp ]  # no table was staged
"""
PROGRAMS = ("id_scaling", "tee", "cmp")


def hostile_study(folder: Path, names: list[str], model: Path, text: Path, session: str) -> dict[str, Any]:
    """Return a study of models, checkpoints, datasets and columns with these names, and lay out their folders."""
    for kind in ("models", "checkpoints"):
        (folder / kind).mkdir()
        for name in names:
            (folder / kind / name).symlink_to(model)
    for name in names[:2]:
        (folder / "texts" / name).mkdir(parents=True)
        (folder / "texts" / name / "00.jsonl").write_text(json.dumps({name: "the of"}) + "\n")
    models = [{"model_name": str(folder / "models" / name)} for name in names[::2]]
    models.append({"model_name": str(folder / "checkpoints"), "model_checkpoint": names[1::2]})
    models.append({"model_name": "owner/model", "model_checkpoint": "a-revision", "tokenizer": str(model)})
    datasets = [{"dataset_name": str(folder / "texts" / name), "text_column": name} for name in names[:2]]
    config = study(model, text, model_config=models, dataset_config=datasets, session_path=session)
    config["controls"] = ["none", "shuffle-1"]
    config["cacheing_config"] = {
        "save_IDs_list": ["mle"],
        "module_inblock_keys": ["block"],
        "module_outblock_keys": [],
    }
    return config


def commands(output: str) -> list[str]:
    """Return the commands of the jobs of a dry run."""
    return re.findall(r"^Shell command: \n(.*?)\n\s*$", output, flags=re.MULTILINE | re.DOTALL)


def recorded(folder: Path, jobs: list[str]) -> list[list[str]]:
    """Run commands with programs that only note their arguments; return what each was called with."""
    programs, record, here = folder / "bin", folder / "record", folder / "here"
    programs.mkdir()
    here.mkdir()
    for name in PROGRAMS:
        (programs / name).write_text(RECORDER)
        (programs / name).chmod(0o755)
    (folder / "jobs.sh").write_text("set -euo pipefail\nto_terminal() { cat; }\n" + "\n".join(jobs))
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "RECORD": str(record)}
    subprocess.run(["bash", str(folder / "jobs.sh")], check=True, cwd=here, env=environment)
    assert list(here.iterdir()) == []  # nothing but what the programs would write
    return [call.split("\0") for call in record.read_text().split("\0\n\0")[:-1]]


def settings_expected(made: Study) -> dict[str, set[str]]:
    """Return the settings of all jobs of a study, by verb."""
    checkpoints = [(model, slug(name)) for model, entry in made.models.items() for name in entry.model_checkpoint]
    tokenizers = {made.tokenizer_of(model) for model in made.models}
    return {
        "fetch-model": {made.fetch_model_settings(*names) for names in checkpoints},
        "fetch-tokenizer": {made.fetch_tokenizer_settings(name) for name in tokenizers},
        "fetch-dataset": {made.fetch_dataset_settings(name, "0") for name in made.datasets},
        "fetch-weights": {""},
        "chunk": {made.contexts_settings(run) for run in made.runs if run.control == "none"},
        "shuffle": {made.contexts_settings(run) for run in made.runs if run.control == "shuffle-1"},
        "extract": {made.extract_settings(run) for run in made.runs},
        "estimate-batch": {made.batch_settings(run, [("block", "mle")]) for run in made.runs},
        "estimate": {made.estimate_settings(run, "block", "mle") for run in made.runs},
        "summarize": {made.summarize_settings()},
        "plot": {made.plot_settings()},
    }


def check_paths(session: str, paths: list[str]) -> None:
    """Check that paths of a command are plain folders and files inside the session."""
    for path in paths:
        assert path == session or path.startswith(f"{session}/")
        assert re.fullmatch(r"(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*", path.removeprefix(session))


@few
@given(names=st.lists(FOLDERS, min_size=5, max_size=5, unique_by=str.lower), session=SESSIONS)
@example(names=NASTY, session="a 'b\" $(touch pwned);`touch pwned`/-é*\\")
def test_every_hostile_name_is_one_argument_of_the_real_commands(
    names: list[str], session: str, tiny_llama: Path, text_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    config = hostile_study(folder, names, tiny_llama, text_folder, session)
    output = Workflow(folder, config).run("--dry-run", "--printshellcmds")
    jobs, made = commands(output), Study(config)
    n_planned = int(re.search(r"^total +(\d+)$", output, flags=re.MULTILINE)[1])
    calls = recorded(folder, jobs)
    found: dict[str, set[str]] = {}
    for program, *arguments in calls:
        if program == "tee":
            assert len(arguments) == 1
            check_paths(made.session, arguments)
            continue
        if program == "cmp":  # of a table's job, which links what a batch staged
            assert arguments[0] == "-s"
            assert len(arguments) == 3
            check_paths(made.session, arguments[1:])
            continue
        verb, *options = arguments
        if verb == "extract" and options[options.index("--weights") + 1].startswith("--"):
            options.remove("--weights")  # with nothing: those of a local model are where they are
        if verb == "plot":  # its figures are one after the other
            assert options[:6:2] == ["--settings", "--session", "--output"]
            assert options[-2] == "--record"
            check_paths(made.session, [options[3], *options[5:-2], options[-1]])
            options = options[:2]
        given_ = dict(zip(options[::2], options[1::2], strict=True))
        found.setdefault(verb, set()).add(given_.pop("--settings", ""))
        not_paths = ("--threads", "--execution")
        check_paths(made.session, [value for flag, value in given_.items() if flag not in not_paths])
        assert all(flag.startswith("--") for flag in given_)
    assert found == settings_expected(made)
    n_calls = Counter(program for program, *_ in calls)
    n_jobs = n_planned - 1  # `all` has no command
    assert n_calls == {"id_scaling": n_jobs, "tee": n_jobs, "cmp": len(made.runs)}
    assert len(jobs) == n_jobs


def test_argument_that_a_shell_splits_is_noticed(tmp_path: Path) -> None:
    calls = recorded(tmp_path, ["id_scaling a b 'c d' 2>&1 | tee $(echo x y)"])
    assert sorted(calls) == [["id_scaling", "a", "b", "c d"], ["tee", "x", "y"]]


def test_model_of_a_hostile_name_gives_the_numbers_of_a_plain_one(
    tiny_llama: Path, text_folder: Path, tmp_path: Path
) -> None:
    name = 'it\'s; "a" $(touch pwned) `touch pwned` & -x*é\\'
    model = Path(shutil.copytree(tiny_llama, tmp_path / name / f"model {name}"))
    text = Path(shutil.copytree(text_folder, tmp_path / name / f"-text {name}"))
    models = [{"model_name": str(folder), "tokenizer": str(model)} for folder in (model, tiny_llama)]
    config = study(model, text, model_config=models, session_path=f"out {name}/é {name}")
    config["allow_identical_checkpoints"] = True
    config["cacheing_config"] = {"save_IDs_list": ["mle"], "module_outblock_keys": [], "module_inblock_keys": ["block"]}
    workflow = Workflow(tmp_path, config)
    workflow.run()
    session = tmp_path / config["session_path"]
    summary = pl.read_parquet(session / "summary.parquet")
    assert summary["dataset"].unique().to_list() == [str(text)]
    hostile, plain = (summary.filter(pl.col("model") == str(folder)).drop("model") for folder in (model, tiny_llama))
    assert len(hostile) == 2 * 3  # layers and views
    assert hostile.equals(plain)
    assert (session / "figures" / "id_by_layer.png").stat().st_size > 0
    assert list(tmp_path.rglob("*pwned")) == []
    assert workflow.planned() == {}


def test_session_whose_name_is_a_pattern_of_a_glob_works_everywhere(
    tiny_llama: Path,
    text_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Next to one whose files the pattern matches, and which nothing may read."""
    monkeypatch.chdir(tmp_path)
    session = "results/a[1]*?"
    config = study(tiny_llama, text_folder, session_path=session)
    config["cacheing_config"] = {"save_IDs_list": ["mle"], "module_outblock_keys": [], "module_inblock_keys": ["block"]}
    workflow = Workflow(tmp_path, config)
    workflow.run()
    shutil.copytree(session, "results/a1xx")
    for path in Path("results/a1xx").rglob("*.parquet"):
        path.write_bytes(b"another session's")
    assert len(id_scaling.load_summary(session)) == 2 * 3  # layers and views
    contexts = id_scaling.load_contexts(session, view="default", layer=1)
    assert len(id_scaling.load_tokens(session)) == 64 * len(contexts)
    assert (Path(session) / "figures/twonn_fit.png").stat().st_size > 0
    for verb in ("status", "check", "plan", "validate"):
        capsys.readouterr()
        LOG.handlers.clear()
        assert main([verb, "study.yaml"]) == 0
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        assert verb not in ("status", "check") or session in said.out
    assert workflow.planned() == {}


REFUSED = {
    "a line end in a model": ({"model_config__model_name": "./a\nb"}, "model_config.model_name"),
    "a checkpoint outside": ({"model_config__model_checkpoint": "../x"}, "model_config.model_checkpoint"),
    "a module key": ({"cacheing_config__module_inblock_keys": ["$(touch pwned)"]}, "module_inblock_keys[0]"),
    "a view": ({"cacheing_config__views": {"../x": {}}}, "cacheing_config.views"),
    "a session": ({"session_path": "-x"}, "session_path"),
    "braces": ({"dataset_config__dataset_name": "./{dataset}"}, "dataset_config.dataset_name"),
    "Snakemake's own key": ({"pathvars": {"session": "/elsewhere"}}, "pathvars is not a key"),
}


def test_what_is_refused_is_said_by_its_key_before_any_job(tiny_llama: Path, text_folder: Path, tmp_path: Path) -> None:
    """All at once, in one message."""
    changes = {key: value for wrong, _ in REFUSED.values() for key, value in wrong.items()}
    output = Workflow(tmp_path, study(tiny_llama, text_folder, **changes)).run(is_ok=False)
    assert [key for _, key in REFUSED.values() if key not in output] == []
    assert "Traceback" not in output
    assert sorted(path.name for path in tmp_path.iterdir()) in (["study.yaml"], [".snakemake", "study.yaml"])


def test_secrets_are_nowhere_in_what_a_study_writes_or_says(
    tiny_llama: Path, text_folder: Path, tmp_path: Path
) -> None:
    """With a token in the environment and in a file, and a hub whose address holds a password."""
    token, password = "hf_" + "Secret" * 6, "s3cret-pass"
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "token").write_text(token)
    environment = {"HF_TOKEN": token, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
    environment["HF_ENDPOINT"] = f"http://user:{password}@127.0.0.1:9"
    here = tmp_path / "study"
    here.mkdir()
    pickled = shutil.copytree(tiny_llama, tmp_path / "pickled")  # which goes its way through the rules here too
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    models = [
        {"model_name": str(pickled), "allow_pickle": True},
        {"model_name": "owner/model", "tokenizer": str(pickled)},
    ]
    workflow = Workflow(here, study(tiny_llama, text_folder, model_config=models, verbose=True))
    command = workflow.command("extract_all", "--verbose", "--printshellcmds", "--show-failed-logs")
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**workflow.environment(), **environment}
    )
    assert done.returncode == 1
    assert "owner/model at main: not in the local cache" in done.stdout + done.stderr
    assert len(list(workflow.session.glob("runs/*/*/*/*/*/*/manifest.json"))) == 1
    assert "pytorch_model.bin: pickled weights" in done.stdout + done.stderr
    files = [path for path in here.rglob("*") if path.is_file()]
    assert {".log", ".parquet", ".h5", ".json"} <= {path.suffix for path in files}
    written = b"".join(path.read_bytes() for path in files) + (done.stdout + done.stderr).encode()
    assert token.encode() not in written
    assert password.encode() not in written
