"""Names of a configuration that become paths: refused by their key, or plain, apart and inside the session."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import study
from hypothesis import example, given, settings
from hypothesis import strategies as st

from id_scaling.errors import ConfigError, InputError
from id_scaling.sources.base import resolve_dataset, resolve_model, resolve_tokenizer
from id_scaling.storage.layout import Run, ids_path, slug
from id_scaling.study.study import Study

many = settings(max_examples=300, deadline=None, derandomize=True)

NASTY = [
    "../x",
    "a/../../x",
    "/etc/passwd",
    "-rf",
    "--help",
    "~/x",
    ".",
    "..",
    "...",
    "a.",
    "CON",
    "a b",
    " a",
    "it's",
    'say "x"',
    "a;touch pwned",
    "$(touch pwned)",
    "`touch pwned`",
    "a&b|c>d",
    "*?[a]",
    "{wildcards}",
    "<session>",
    "a\nb",
    "a\r",
    "a\x00b",
    "a\x1b[31mb",
    "a\x9b31mb",
    "a\u2028b",
    "a\ud800b",
    "x" * 300,
    "x" * 301,
    "é" * 150,
    "x/" * 150,
    "模型-😀",
    "a,b=c",
    "%j",
    "a\\b",
    "a--b",
    "https://user:password@host/x",
    "",
]
# What shells, paths, globs, Snakemake and terminals read.
READ = "aB0_-./~ '\"$`;&|<>(){}[]*?!#%\\,=:\n\r\t\x00\x1b\x85\u2028é模"
HOSTILE = st.one_of(
    st.sampled_from(NASTY),
    st.text(min_size=1, max_size=60),
    st.text(
        st.sampled_from("aB0_-./~ '\"$`;&|<>(){}[]*?!#%\\,=:\n\r\t\x00\x1b\x85\u2028é模"), min_size=1, max_size=300
    ),
)

# (key as messages name it, changes that put a name under it)
KEYS = {
    "session_name": lambda name: {"session_name": name},
    "session_path": lambda name: {"session_path": name},
    "model_config.model_name": lambda name: {"model_config__model_name": name},
    "model_config.model_checkpoint": lambda name: {"model_config__model_checkpoint": [name, "main"]},
    "model_config.tokenizer": lambda name: {"model_config__tokenizer": name},
    "model_config.module_name_mapping": lambda name: {"model_config__module_name_mapping": {name: "a.{layer}"}},
    "dataset_config.dataset_name": lambda name: {"dataset_config__dataset_name": name},
    "cacheing_config.module_inblock_keys": lambda name: {"cacheing_config__module_inblock_keys": [name]},
    "cacheing_config.module_outblock_keys": lambda name: {"cacheing_config__module_outblock_keys": [name]},
    "cacheing_config.save_IDs_list": lambda name: {"cacheing_config__save_IDs_list": [name]},
    "cacheing_config.views": lambda name: {"cacheing_config__views": {name: {}}},
}
PLAIN = r"[A-Za-z0-9_][A-Za-z0-9._-]*"


def made_or_refused(changes: dict[str, Any]) -> tuple[Study | None, str]:
    """Return the study with these changes, or the one error that it gives."""
    try:
        return Study(study("m", "t", **changes)), ""
    except ConfigError as error:
        return None, str(error)


def folders_of(made: Study) -> list[str]:
    """Return what the rules make of a study's names: all files of all runs, relative to the session."""
    files = [*made.targets(), *made.manifests(), *made.tables()]
    files += [f"{made.session}/models/{name}/identity.json" for name in made.models]
    files += [f"{made.session}/tokenizers/{name}/identity.json" for name in made.tokenizers]
    files += [f"{made.session}/datasets/{name}/0/identity.json" for name in made.datasets]
    assert all(file.startswith(f"{made.session}/") for file in files)
    return [file.removeprefix(f"{made.session}/") for file in files]


@pytest.mark.parametrize("key", KEYS)
@many
@given(name=HOSTILE)
def test_name_is_refused_by_its_key_or_becomes_plain_folders(key: str, name: str) -> None:
    made, refusal = made_or_refused(KEYS[key](name))
    if made is None:
        assert key in refusal
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", refusal)
        return
    for part in {part for file in folders_of(made) for part in file.split("/")}:
        assert re.fullmatch(PLAIN, part), part
        assert len(part) <= 120
    # A name that a command takes for an option, a wildcard of Snakemake's, a line end, a part no file system holds.
    assert not re.match(r"-|\.\.?$", made.session) or key == "session_path"
    assert not re.search(r"^-|[{}<>\x00-\x1f\x7f-\x9f\u2028\u2029]", made.session)
    assert all(len(part.encode()) <= 255 for part in made.session.split("/"))


@pytest.mark.parametrize("key", KEYS)
def test_names_that_leave_their_folder_are_refused_or_hashed(key: str) -> None:
    """The most usual attacks, one by one, and that a plain name is taken."""
    names = ("../x", "a/../../x", "/x", "a\nb", "a{b}", "plain")
    taken = {name for name in names if made_or_refused(KEYS[key](name))[0]}
    kinds = {"plain"}
    if key in ("model_config.model_name", "model_config.tokenizer", "dataset_config.dataset_name", "session_path"):
        kinds |= {"../x", "a/../../x", "/x"}  # a path that a user means, which stands in the session by a hash
    assert taken == (set() if key == "cacheing_config.save_IDs_list" else kinds)


@many
@given(name=HOSTILE, other=HOSTILE)
@example(name="a/b", other="a--b")
@example(name="./x", other=slug("./x"))
@example(name="x" * 70, other="x" * 71)
@example(name="a b", other="a  b")
def test_slugs_of_different_names_are_different(name: str, other: str) -> None:
    pair = [text.encode("utf-8", "replace").decode() or "a" for text in (name, other)]
    if pair[0] != pair[1]:
        assert slug(pair[0]) != slug(pair[1])
    made = slug(pair[0])
    assert re.fullmatch(PLAIN, made)
    assert len(made) <= 65
    assert made == pair[0] or slug(made) != made  # no name is the slug of another


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model_config": [{"model_name": "Owner/m"}, {"model_name": "owner/M"}]}, "model_config.model_name"),
        ({"model_config__model_checkpoint": ["Step1", "step1"]}, "model_config.model_checkpoint"),
        ({"dataset_config": [{"dataset_name": "T"}, {"dataset_name": "t"}]}, "dataset_config.dataset_name"),
        ({"cacheing_config__module_inblock_keys": ["Mlp", "mlp"]}, "cacheing_config.module_inblock_keys"),
        (
            {"cacheing_config__module_inblock_keys": ["Emb"], "cacheing_config__module_outblock_keys": ["emb"]},
            "module_outblock_keys",
        ),
    ],
    ids=str,
)
def test_names_that_differ_in_case_alone_are_refused(changes: dict[str, Any], key: str) -> None:
    """Some file systems would keep both in one folder."""
    with pytest.raises(ConfigError, match="where case does not count; rename one") as caught:
        Study(study("m", "t", **changes))
    assert key in str(caught.value)


@many
@given(names=st.lists(st.tuples(HOSTILE, HOSTILE, HOSTILE), min_size=2, max_size=4))
def test_every_run_has_a_folder_of_its_own_which_names_it(names: list[tuple[str, str, str]]) -> None:
    runs = {Run(slug(m), slug(c), slug(d), n, 64, "none") for n, (m, c, d) in enumerate(_encodable(names))}
    paths = {str(ids_path(Path("s"), run, "block", "mle")): run for run in runs}
    assert len(paths) == len(runs)
    for path, run in paths.items():
        found = re.fullmatch(r"s/runs/([^/]+)/([^/]+)/([^/]+)/(\d+)/64/([^/]+)/ids/block/mle\.parquet", path)
        assert Run(found[1], found[2], found[3], int(found[4]), 64, found[5]) == run


@many
@given(name=HOSTILE)
def test_names_that_are_no_paths_reach_the_job_unchanged(name: str) -> None:
    """As one JSON text of ASCII, which no shell splits into lines."""
    changes = {f"dataset_config__{key}": name for key in ("text_column", "id_column")}
    changes["model_config__module_name_mapping"] = {"block": name}
    made, refusal = made_or_refused(changes)
    if made is None:
        for key in ("dataset_config.text_column", "dataset_config.id_column", "model_config.module_name_mapping.block"):
            assert key in refusal
        return
    chunking = made.contexts_settings(made.runs[0])
    assert chunking.isascii()
    assert chunking.isprintable()
    assert json.loads(chunking)["chunking"]["text_column"] == name
    assert json.loads(chunking)["chunking"]["id_column"] == name
    checked = made.fetch_model_execution("m")
    assert checked.isascii()
    assert checked.isprintable()
    assert json.loads(checked)["sites"]["mapping"] == {"block": name}


def test_names_of_a_job_fit_one_folder_name_of_slurms_logs() -> None:
    """Slurm's plugin joins all names of a job, or of a group of jobs, to one."""
    longest = max((slug("x" * n) for n in range(1, 301)), key=len)
    group = f"group_estimate_{longest}_{longest}_{longest}_{10**9}_none"
    assert len(group) <= 255
    assert len(slug("o" * 40 + "/" + "m" * 40)) <= 65


@pytest.mark.parametrize(
    "find",
    [
        lambda name, folder: resolve_model(f"./{name}", "main").folder(),
        lambda name, folder: resolve_model(str(folder), name).folder(),
        lambda name, folder: resolve_tokenizer(f"./{name}").folder(),
        lambda name, folder: resolve_dataset(f"./{name}").shard(0),
    ],
    ids=["model", "checkpoint", "tokenizer", "dataset"],
)
@pytest.mark.parametrize("name", ["x" * 298, "é" * 200])
def test_name_too_long_for_a_file_system_is_said_to_be_missing(find: Any, name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=name):
        find(name, tmp_path)


@pytest.mark.parametrize("name", [".", "x/..", "/", "//", "~no-such-user/x", "./~no-such-user"])
def test_session_is_a_folder_of_its_own(name: str) -> None:
    with pytest.raises(ConfigError, match=r"session_path: found .*, (but there is no such user|expected a folder)"):
        Study(study("m", "t", session_path=name))


@pytest.mark.parametrize("name", ["{x}.jsonl", "<session>.jsonl", "a<b.jsonl"])
def test_file_of_a_dataset_whose_name_snakemake_would_read_is_refused_before_any_job(
    name: str, tiny_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "00.jsonl").write_text("{}")
    Study(study(tiny_llama, tmp_path)).check()
    (tmp_path / "00.jsonl").rename(tmp_path / name)
    with pytest.raises(InputError, match="braces or angle brackets"):
        Study(study(tiny_llama, tmp_path)).check()


@pytest.mark.parametrize(("name", "session"), [("//x", "/x"), ("a//b/../c/", "a/c"), ("./a", "a"), ("../a", "../a")])
def test_session_has_one_spelling(name: str, session: str) -> None:
    """Snakemake compares paths as texts."""
    assert Study(study("m", "t", session_path=name)).session == session


def test_path_with_home_in_it_stays_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/it's me")
    assert Study(study("m", "t", session_path="~/a b")).session == os.path.normpath("/users/it's me/a b")


def _encodable(names: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return names without half characters, which no configuration holds."""
    return [tuple(name.encode("utf-8", "replace").decode() or "a" for name in group) for group in names]
