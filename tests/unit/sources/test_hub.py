"""The hub for real: its own client, in processes of their own, against a server on this machine."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Workflow, save_tiny_llama, study
from hub_server import Hub, environment, files_of

from id_scaling.cli.main import main
from id_scaling.errors import ResourceError
from id_scaling.sources.hub_client import download_settings
from id_scaling.storage.records import read_record
from id_scaling.study.study import Study

TOKEN = "hf_" + "Token" * 6
NEEDED = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
UNNEEDED = {
    "README.md": b"# a model",
    "modeling.py": b"raise SystemExit",
    "consolidated.safetensors": b"the same weights in another format",
    "pytorch_model.bin": b"the same weights, pickled",
    "onnx/model.onnx": b"and again",
    "onnx/config.json": b"{}",
    "original/model.safetensors": b"and again",
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An empty hub."""
    with Hub() as server:
        yield server


@pytest.fixture(scope="module")
def early(tiny_llama: Path) -> dict[str, bytes]:
    """The files of a model."""
    return files_of(tiny_llama)


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the model with other weights."""
    return files_of(save_tiny_llama(tmp_path_factory.mktemp("late"), seed=1))


class Fetcher:
    """Runs the verbs that fetch, as rules do, with one cache."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub, self.folder = hub, folder

    def run(self, verb: str, output: Path, *options: str, **more: str) -> str:
        """Run a verb and return its log; it ends without a traceback, and with an error alone if there is no output."""
        command = [sys.executable, "-m", "id_scaling", verb, *options, "--output", str(output), "--verbose"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment(self.hub, self.folder, **more)
        )
        assert "Traceback" not in done.stderr
        assert (done.returncode == 0) == output.exists(), done.stderr
        assert TOKEN not in done.stdout + done.stderr
        return done.stderr

    def model(self, revision: str, keep: bool = True, **options: Any) -> dict[str, Any] | str:
        """Return the identity of a revision of `owner/model` once its weights are there, or the error."""
        identity = self.identity(revision, **options)
        if isinstance(identity, str):
            return identity
        assert identity["path"] is None
        more = {key: value for key, value in options.items() if key.isupper()}
        return self.weights(revision, keep, **more) or {**identity, "path": str(self.weights_folder(revision))}

    def weights_folder(self, revision: str, subset: int = 0) -> Path:
        """Return where the weights of a revision of `owner/model` lie for a run."""
        return self.folder / "weights" / "model" / revision / "texts" / str(subset) / "64" / "none"

    def weights(self, revision: str, keep: bool = False, subset: int = 0, **more: str) -> str | None:
        """Bring the weights of a revision of `owner/model`; return the error, if there is one."""
        output, identity = self.weights_folder(revision, subset), self.folder / "models/model" / revision
        shutil.rmtree(output, ignore_errors=True)
        execution = json.dumps({"keep": keep})
        options = ["--model", str(identity / "identity.json"), "--execution", execution]
        said = self.run("fetch-weights", output, *options, **more)
        return None if output.exists() else said

    def identity(
        self, revision: str, unlike: tuple[str, ...] = (), layers: Any = None, allow_pickle: bool = False, **more: str
    ) -> dict[str, Any] | str:
        """Return the identity of a revision of `owner/model`, or the error."""
        output = self.folder / "models" / "model" / revision / "identity.json"
        output.unlink(missing_ok=True)
        sites = {"layers": layers, "inblock": ["block"], "outblock": [], "mapping": None}
        settings = {"model_name": "owner/model", "checkpoint": revision}
        execution = {"unlike": [*unlike, revision], "ctx_len": 64, "sites": sites, "allow_pickle": allow_pickle}
        execution |= {"add_bos": "auto", "is_own_tokenizer": True}
        said = self.run(
            "fetch-model",
            output,
            "--settings",
            json.dumps(settings),
            "--execution",
            json.dumps(execution),
            **more,
        )
        return read_record(output) if output.exists() else said

    def dataset(self, name: str, subset: int, **more: str) -> dict[str, Any] | str:
        """Return the identity of a shard, or the error."""
        output = self.folder / "shard.json"
        said = self.run(
            "fetch-dataset", output, "--settings", json.dumps({"dataset_name": name, "subset": subset}), **more
        )
        return read_record(output) if output.exists() else said


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path) -> Fetcher:
    """Fetching from the hub."""
    return Fetcher(hub, tmp_path)


def hash_of(files: dict[str, bytes], name: str = "model.safetensors") -> str:
    return hashlib.sha256(files[name]).hexdigest()


# ---- what is fetched -------------------------------------------------------------------------------------------


def test_branch_and_tag_are_two_commits_with_weights_of_their_own(
    hub: Hub, fetch: Fetcher, early: dict[str, bytes], late: dict[str, bytes]
) -> None:
    repository = hub.repository("owner/model")
    commits = [repository.commit({**early, **UNNEEDED}, tag="step1"), repository.commit({**late, **UNNEEDED})]
    found = [fetch.model("step1"), fetch.model("main", unlike=("step1",))]
    assert [one["commit"] for one in found] == commits
    for one, files in zip(found, (early, late), strict=True):
        assert (Path(one["path"]) / "model.safetensors").read_bytes() == files["model.safetensors"]
        assert (Path(one["path"]) / "config.json").read_bytes() == files["config.json"]
    assert [one["weights"] for one in found] == [{"model.safetensors": hash_of(files)} for files in (early, late)]
    assert found[0]["weights_sha256"] != found[1]["weights_sha256"]
    # Nothing twice, and of what is equal in both commits nothing twice either: the cache is by content.
    assert hub.downloads() == sorted([*NEEDED, "model.safetensors"])


def test_branch_that_moved_is_another_commit_once_it_is_fetched_again(
    hub: Hub, fetch: Fetcher, early: dict[str, bytes], late: dict[str, bytes]
) -> None:
    repository = hub.repository("owner/model")
    repository.commit(early)
    before = fetch.model("main")
    moved = repository.commit(late)
    after = fetch.model("main")
    assert (after["commit"], after["weights"]) == (moved, {"model.safetensors": hash_of(late)})
    # A commit is one for good.
    again = fetch.model(before["commit"])
    assert again["settings"] == {**before["settings"], "checkpoint": before["commit"]}
    asked = {key: before[key] for key in ("checkpoint", "settings", "path")}
    assert {**again, **asked} == before


def test_revision_without_a_tokenizer_has_that_of_main(hub: Hub, fetch: Fetcher, early: dict[str, bytes]) -> None:
    repository = hub.repository("owner/model")
    repository.commit({name: content for name, content in early.items() if "tokenizer" not in name}, tag="step1")
    repository.commit(early)
    assert fetch.model("step1")["tokenizer_sha256"] == fetch.model("main")["tokenizer_sha256"]


def test_of_shards_just_those_are_downloaded_that_the_index_names(
    hub: Hub, fetch: Fetcher, early: dict[str, bytes], late: dict[str, bytes]
) -> None:
    shards = {"model-1.safetensors": early["model.safetensors"], "model-2.safetensors": late["model.safetensors"]}
    index = json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}).encode()
    files = {**early, **shards, "model.safetensors.index.json": index, **UNNEEDED}
    del files["model.safetensors"]
    hub.repository("owner/model").commit(files)
    assert fetch.model("main")["weights"] == {name: hash_of(shards, name) for name in shards}
    assert [name for name in hub.downloads() if not name.endswith(".json")] == sorted(shards)


def test_pickles_are_downloaded_only_where_they_are_allowed_and_there_is_nothing_else(
    hub: Hub, fetch: Fetcher, early: dict[str, bytes]
) -> None:
    repository = hub.repository("owner/model")
    repository.commit({**early, **UNNEEDED})
    assert list(fetch.model("main", allow_pickle=True)["weights"]) == ["model.safetensors"]
    repository.commit(
        {name: early.get(name, b"pickled") for name in (*NEEDED, *UNNEEDED) if name != "model.safetensors"}
    )
    assert "allow_pickle: true" in fetch.model("main")
    assert "pytorch_model.bin" not in hub.downloads()
    assert list(fetch.model("main", allow_pickle=True)["weights"]) == ["pytorch_model.bin"]
    assert hub.downloads().count("pytorch_model.bin") == 1


def test_weights_are_not_downloaded_for_a_study_that_the_model_does_not_fit(
    hub: Hub, fetch: Fetcher, early: dict[str, bytes]
) -> None:
    hub.repository("owner/model").commit(early)
    assert "layer 7" in fetch.model("main", layers=[7])
    assert "model.safetensors" not in hub.downloads()


def test_what_was_fetched_is_found_without_the_hub(hub: Hub, fetch: Fetcher, early: dict[str, bytes]) -> None:
    hub.repository("owner/model").commit({**early, **UNNEEDED})
    online = fetch.model("main")
    assert fetch.model("main", HF_HUB_OFFLINE="1") == online
    assert fetch.model("main", HF_ENDPOINT="http://127.0.0.1:9") == online


def test_shard_of_a_dataset_is_the_file_of_its_index(hub: Hub, fetch: Fetcher) -> None:
    shards = {f"data/{number:02d}.jsonl.gz": gzip.compress(b"{}" * number) for number in range(3)}
    commit = hub.repository("owner/texts", "dataset").commit({"LICENSE.txt": b"free", "README.md": b"#", **shards})
    found = fetch.dataset("owner/texts", 1)
    assert found["commit"] == commit
    assert found["files"] == {"01.jsonl.gz": hash_of(shards, "data/01.jsonl.gz")}
    # By the name, not the blob behind it: the ending says how it is read.
    assert [path.split("/")[-2:] for path in found["paths"]] == [["data", "01.jsonl.gz"]]
    assert hub.downloads() == ["data/01.jsonl.gz"]


TEXTS = {
    "README.md": b"# texts",
    "data/test-00000-of-00001.parquet": b"PAR1 test",
    "data/train-00000-of-00002.parquet": b"PAR1 train 0",
    "data/train-00001-of-00002.parquet": b"PAR1 train 1",
    "en/0000.parquet": b"PAR1 en 0",
    "en/0002.parquet": b"PAR1 en 2",
    "en/more/0000.parquet": b"PAR1 more",
}


@pytest.mark.parametrize(
    ("inside", "subset", "found"),
    [
        ("", 0, "data/test-00000-of-00001.parquet"),
        ("", 2, "data/train-00001-of-00002.parquet"),
        ("/data/train-*.parquet", 1, "data/train-00001-of-00002.parquet"),
        ("/en", 2, "en/0002.parquet"),
        ("/en/*", 0, "en/0000.parquet"),
        ("/**/more/*", 0, "en/more/0000.parquet"),
        ("/**/*-0000[01]-of-00002.*", 1, "data/train-00001-of-00002.parquet"),
        ("/en/**/*2.parquet", 2, "en/0002.parquet"),
        ("/data/train-00001-of-00002.parquet", 0, "data/train-00001-of-00002.parquet"),
    ],
)
def test_folder_or_glob_behind_the_name_says_which_files_are_shards(
    inside: str, subset: int, found: str, hub: Hub, fetch: Fetcher
) -> None:
    hub.repository("owner/texts", "dataset").commit(TEXTS)
    identity = fetch.dataset(f"owner/texts{inside}", subset)
    assert identity["paths"][0].endswith(found)
    assert hub.downloads() == [found]


def test_shards_of_several_folders_with_the_same_numbers_have_to_be_told_apart(hub: Hub, fetch: Fetcher) -> None:
    hub.repository("owner/texts", "dataset").commit({name: TEXTS[name] for name in TEXTS if name.startswith("en")})
    assert_said(
        fetch.dataset("owner/texts", 0), "shard 0 twice: en/0000.parquet, en/more/0000.parquet", "name the folder"
    )
    assert_said(fetch.dataset("owner/texts/fr", 0), "owner/texts/fr holds no shard", "hold such files: en, en/more")


DEAD = {"HF_ENDPOINT": "http://127.0.0.1:9"}  # nothing listens there
OFFLINE = {"HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize("reach", [OFFLINE, DEAD], ids=["offline", "no network"])
def test_shard_that_was_fetched_is_found_without_the_hub_and_no_other_taken_for_it(
    reach: dict[str, str], hub: Hub, fetch: Fetcher
) -> None:
    hub.repository("owner/texts", "dataset").commit(TEXTS)
    online = fetch.dataset("owner/texts/data/train-*", 1)
    assert fetch.dataset("owner/texts/data/train-*", 1, **reach) == online
    # By order it would be the first of those in the cache.
    (fetch.folder / "shard.json").unlink()
    assert_said(fetch.dataset("owner/texts/data/train-*", 0, **reach), "owner/texts", "not in the local cache")


@pytest.mark.parametrize(
    ("call", "warns"), [("snapshot_download({0!r}", False), ("hf_hub_download({0!r}, {1!r}", True)]
)
def test_dataset_that_the_hubs_own_client_downloaded_is_found_offline(
    call: str, warns: bool, hub: Hub, fetch: Fetcher
) -> None:
    hub.repository("owner/texts", "dataset").commit(TEXTS)
    code = (
        f"import huggingface_hub; huggingface_hub.{call.format('owner/texts', 'en/0002.parquet')}, repo_type='dataset')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment(hub, fetch.folder))
    said = fetch.run(
        "fetch-dataset",
        fetch.folder / "shard.json",
        "--settings",
        json.dumps({"dataset_name": "owner/texts/en", "subset": 2}),
        **OFFLINE,
    )
    assert read_record(fetch.folder / "shard.json")["files"] == {"0002.parquet": hash_of(TEXTS, "en/0002.parquet")}
    assert ("does not say what files it has" in said) == warns


# ---- what is said of what cannot be fetched --------------------------------------------------------------------


def assert_said(said: Any, *words: str) -> None:
    """Check that an error is one line with these words."""
    assert isinstance(said, str), said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said
    assert [word for word in words if word not in lines[0]] == [], lines[0]


def test_gated_model_says_where_to_accept_its_terms_and_comes_with_a_token(
    hub: Hub, fetch: Fetcher, early: dict[str, bytes]
) -> None:
    """Weights come from another host, which never sees the token."""
    hub.repository("owner/model", is_gated=True).commit(early)
    words = (
        "owner/model at main",
        "gated",
        f"accept its terms at {hub.address}/owner/model",
        "`hf auth login`",
        "HF_TOKEN",
    )
    assert_said(fetch.model("main"), *words)
    assert_said(fetch.model("main", HF_TOKEN=TOKEN), *words)
    hub.accepted.add(TOKEN)
    assert fetch.model("main", HF_TOKEN=TOKEN)["weights"] == {"model.safetensors": hash_of(early)}
    assert any("resolve" in line for line in hub.with_token)
    assert not any("large" in line for line in hub.with_token)


def test_gated_dataset_says_where_to_accept_its_terms(hub: Hub, fetch: Fetcher) -> None:
    hub.repository("owner/texts", "dataset", is_gated=True).commit({"00.parquet": b"PAR1"})
    assert_said(fetch.dataset("owner/texts", 0), "gated", f"{hub.address}/datasets/owner/texts", "`hf auth login`")


def test_missing_revision_is_said_with_those_there_are_the_nearest_first(
    hub: Hub, fetch: Fetcher, early: dict[str, bytes]
) -> None:
    repository = hub.repository("owner/model")
    for step in (0, 1000, 14000, 143000):
        repository.commit(early, branch=f"step{step}")
    repository.commit(early)
    repository.commit(early, tag="v1")
    near = "it has 6, the nearest first: step14000, step143000, step1000, step0, "
    assert_said(fetch.model("step1400"), "owner/model at step1400", "no such revision", near, "main", "v1")


@pytest.mark.parametrize("token", ["", TOKEN])
def test_missing_model_is_said(token: str, hub: Hub, fetch: Fetcher) -> None:
    words = ("owner/model at main", "not on the hub", "check the spelling", "`hf auth login`")
    assert_said(fetch.model("main", HF_TOKEN=token), *words)


def test_token_that_has_expired_is_said(hub: Hub, fetch: Fetcher, early: dict[str, bytes]) -> None:
    hub.repository("owner/model").commit(early)
    hub.expired.add(TOKEN)
    assert_said(fetch.model("main", HF_TOKEN=TOKEN), "refuses the token", "401", "`hf auth login` anew", "HF_TOKEN")


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("config.json", ["found no config.json", "expected a model folder"]),
        ("model.safetensors", ["found no model.safetensors nor an index"]),
    ],
)
def test_missing_file_is_said_and_no_other_tried(
    missing: str, words: list[str], hub: Hub, fetch: Fetcher, early: dict[str, bytes]
) -> None:
    files = {**early, **UNNEEDED}
    del files[missing], files["pytorch_model.bin"]
    commit = hub.repository("owner/model").commit(files)
    assert_said(fetch.model("main"), "owner--model", commit, *words)
    assert not any(name.endswith(".safetensors") for name in hub.downloads())


def test_missing_dataset_and_shard_are_said(hub: Hub, fetch: Fetcher) -> None:
    hub.repository("owner/texts", "dataset").commit({"a.parquet": b"a", "b.parquet": b"b", "LICENSE.txt": b"free"})
    assert_said(fetch.dataset("owner/texts", 2), "owner/texts has no shard 2; it has 2: a.parquet, b.parquet")
    assert_said(fetch.dataset("owner/none", 0), "dataset owner/none", "not on the hub", "check the spelling")


def test_hub_that_does_not_answer_is_said(hub: Hub, fetch: Fetcher) -> None:
    words = ("not in the local cache", "no answer", "ConnectError", "network", "local folder")
    assert_said(fetch.model("main", **DEAD), "owner/model at main", *words)
    assert_said(fetch.dataset("owner/texts", 0, **DEAD), "owner/texts", "ConnectError", "run again")


# ---- connections that break, caches that are damaged -----------------------------------------------------------


def test_connection_that_breaks_once_is_taken_up_again(hub: Hub, fetch: Fetcher, early: dict[str, bytes]) -> None:
    hub.repository("owner/model").commit(early)
    hub.breaks["model.safetensors"] = 1
    assert fetch.model("main")["weights"] == {"model.safetensors": hash_of(early)}
    assert hub.downloads().count("model.safetensors") == 2


def test_download_that_breaks_off_is_said_and_the_next_run_completes_it(
    hub: Hub, fetch: Fetcher, early: dict[str, bytes]
) -> None:
    hub.repository("owner/model").commit(early)
    hub.breaks["model.safetensors"] = float("inf")
    words = ("owner/model at", "did not answer to the end", "RemoteProtocolError", "run again: files that came whole")
    assert_said(fetch.model("main"), *words)
    hub.breaks.clear()
    hub.requests.clear()
    assert fetch.model("main")["weights"] == {"model.safetensors": hash_of(early)}
    assert hub.downloads() == ["model.safetensors"]


def test_full_disk_is_not_taken_for_a_hub_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path))

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ResourceError, match=f"{tmp_path}: No space left on device; make room"):
        download_settings("owner/model", "main")


def test_file_of_the_cache_that_is_damaged_is_said_and_comes_again_once_removed(
    hub: Hub, fetch: Fetcher, early: dict[str, bytes]
) -> None:
    hub.repository("owner/model").commit(early)
    blob = (Path(fetch.model("main")["path"]) / "model.safetensors").resolve()
    blob.chmod(0o600)
    blob.write_bytes(early["model.safetensors"][:-1] + b"\0")
    assert_said(fetch.model("main"), f"{blob}: damaged: its hash is not the hub's; it is removed, run again")
    assert fetch.model("main")["weights"] == {"model.safetensors": hash_of(early)}


def test_weights_that_are_not_kept_leave_nothing_in_the_cache(
    hub: Hub, fetch: Fetcher, early: dict[str, bytes]
) -> None:
    hub.repository("owner/model").commit(early)
    folder = Path(fetch.model("main", keep=False)["path"])
    assert hash_of({"model.safetensors": (folder / "model.safetensors").read_bytes()}) == hash_of(early)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*NEEDED, "weights.json"])
    assert not list((fetch.folder / "hf").rglob("*.safetensors"))
    # For another run they are linked, and what is in the cache already is not downloaded again either.
    hub.requests.clear()
    assert fetch.weights("main", subset=1) is None
    other = fetch.weights_folder("main", 1) / "model.safetensors"
    assert other.samefile(folder / "model.safetensors")
    assert hub.downloads() == []
    shutil.rmtree(folder)
    shutil.rmtree(other.parent)
    assert fetch.weights("main", keep=True) is None
    shutil.rmtree(folder)
    hub.requests.clear()
    assert fetch.weights("main") is None
    assert "model.safetensors" not in hub.downloads()


def test_weights_of_a_commit_that_a_branch_has_left_are_not_linked(
    hub: Hub, fetch: Fetcher, early: dict[str, bytes], late: dict[str, bytes]
) -> None:
    repository = hub.repository("owner/model")
    repository.commit(early)
    fetch.model("main", keep=False)
    repository.commit(late)
    identity = fetch.identity("main")
    assert fetch.weights("main", subset=1) is None
    content = (fetch.weights_folder("main", 1) / "model.safetensors").read_bytes()
    assert {"model.safetensors": hashlib.sha256(content).hexdigest()} == identity["weights"]
    # A folder that Snakemake was removing is not linked either.
    (fetch.weights_folder("main", 1) / "model.safetensors").unlink()
    assert fetch.weights("main", subset=2) is None
    assert (fetch.weights_folder("main", 2) / "model.safetensors").is_file()


def test_files_that_came_whole_are_kept_for_weights_that_are_not(
    hub: Hub, fetch: Fetcher, early: dict[str, bytes], late: dict[str, bytes]
) -> None:
    shards = {"model-1.safetensors": early["model.safetensors"], "model-2.safetensors": late["model.safetensors"]}
    index = json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}).encode()
    files = {**early, **shards, "model.safetensors.index.json": index}
    del files["model.safetensors"]
    hub.repository("owner/model").commit(files)
    hub.breaks["model-2.safetensors"] = float("inf")
    assert_said(fetch.model("main", keep=False), "did not answer to the end")
    hub.breaks.clear()
    hub.requests.clear()
    assert fetch.model("main", keep=False)["weights"] == {name: hash_of(shards, name) for name in shards}
    assert [name for name in hub.downloads() if name in shards] == ["model-2.safetensors"]


# ---- identical checkpoints -------------------------------------------------------------------------------------


def test_revision_with_the_weights_of_another_is_an_error_before_they_are_downloaded(
    hub: Hub, fetch: Fetcher, early: dict[str, bytes]
) -> None:
    repository = hub.repository("owner/model")
    repository.commit(early, branch="step1")
    # Another commit, and not the same files.
    repository.commit({**early, "README.md": b"the last step", "notes.txt": b"0"})
    fetch.model("step1")
    (fetch.folder / "hf").rename(fetch.folder / "elsewhere")  # so that the cache has nothing of them
    hub.requests.clear()
    words = (
        "owner/model at main",
        "to the last bit, those of owner/model at step1",
        "allow_identical_checkpoints: true",
    )
    assert_said(fetch.model("main", unlike=("step1",)), *words)
    assert "model.safetensors" not in hub.downloads()
    assert fetch.model("main")["weights"] == {"model.safetensors": hash_of(early)}


# ---- through the workflow --------------------------------------------------------------------------------------


class OnHub(Workflow):
    """A workflow for which the hub is a given one."""

    hub: Hub

    def environment(self) -> dict[str, str]:
        """Return the environment of the workflow."""
        return environment(self.hub, self.folder)


@pytest.fixture(scope="module")
def workflow(
    tmp_path_factory: pytest.TempPathFactory, early: dict[str, bytes], late: dict[str, bytes], text_folder: Path
) -> Iterator[OnHub]:
    """A study, fetched, of two revisions, a branch and a tag, on the second shard of a dataset of the hub."""
    config = study(Path("owner/model"), Path("owner/texts"), model_config__model_checkpoint=["step1", "main"])
    config["keep_weights"] = True
    config["dataset_config"]["dataset_subset"] = [1]
    config["cacheing_config"] |= {"module_inblock_keys": ["mlp"], "module_outblock_keys": []}
    made = OnHub(tmp_path_factory.mktemp("on-hub"), config)
    with Hub() as made.hub:
        repository = made.hub.repository("owner/model")
        repository.commit(early, tag="step1")
        repository.commit(late)
        texts = {f"{path.name}.gz": gzip.compress(path.read_bytes()) for path in text_folder.iterdir()}
        made.hub.repository("owner/texts", "dataset").commit({"LICENSE.txt": b"free", **texts})
        made.run("--until", "fetch_weights")
        yield made


@pytest.mark.workflow
def test_commits_stand_in_what_is_extracted(
    workflow: OnHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: None
) -> None:
    """The verbs of the rules that follow, in this process, which has no network: they need none."""
    made, session = Study(workflow.config), workflow.session
    monkeypatch.chdir(workflow.folder)
    contexts = str(tmp_path / "contexts.parquet")
    shard = str(session / "datasets/owner--texts/1/identity.json")
    tokenizer = str(session / "tokenizers/owner--model/identity.json")
    chunk = ["--settings", made.contexts_settings(made.runs[0]), "--shard", shard]
    chunk += ["--execution", made.chunk_execution(made.runs[0].dataset)]
    assert main(["chunk", *chunk, "--tokenizer", tokenizer, "--output", contexts]) == 0
    manifests = []
    for run in made.runs:
        manifests.append(tmp_path / run.checkpoint / "manifest.json")
        model = str(session / f"models/owner--model/{run.checkpoint}/identity.json")
        how = ["--settings", made.extract_settings(run), "--execution", made.extract_execution(run.model)]
        weights = str(session / f"weights/owner--model/{run.checkpoint}/owner--texts/1/64/none")
        given = ["--contexts", contexts, "--model", model, "--weights", weights, "--output", str(manifests[-1])]
        assert main(["extract", *how, *given]) == 0
    step1, last = map(read_record, manifests)
    repository = workflow.hub.repository("owner/model")
    assert [step1["commit"], last["commit"]] == [repository.tags["step1"], repository.branches["main"]]
    assert step1["weights"] != last["weights"]


@pytest.mark.workflow
def test_branch_that_moves_stays_one_commit_in_a_session_until_it_is_fetched_again(
    workflow: OnHub, early: dict[str, bytes]
) -> None:
    repository = workflow.hub.repository("owner/model")
    commits = {**repository.tags, **repository.branches}
    found = [read_record(path) for path in workflow.session.glob("models/*/*/identity.json")]
    assert {one["checkpoint"]: one["commit"] for one in found} == commits
    # To the weights of the other revision, so that an error tells that it is seen.
    repository.commit({**early, "README.md": b"moved"})
    n_before = workflow.hub.requests.total()
    assert workflow.planned("--until", "fetch_model") == {}
    assert workflow.hub.requests.total() == n_before
    identity = str((workflow.session / "models/owner--model/main/identity.json").relative_to(workflow.folder))
    said = workflow.run(identity, "--forcerun", "fetch_model", is_ok=False)
    assert "owner/model at main: its weights are, to the last bit, those of owner/model at step1" in said
