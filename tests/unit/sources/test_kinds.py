"""Which kind of source a name is: the kind that takes it, what each kind answers, and what a further kind needs."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest
from conftest import study

import id_scaling
from id_scaling.errors import InputError
from id_scaling.models.modules import SiteRequest
from id_scaling.sources import bundled, gguf, hub, kinds, local, untrained
from id_scaling.sources.base import ModelSource, resolve_dataset, resolve_model, resolve_tokenizer
from id_scaling.sources.models import fetch_model, weights_folder_of
from id_scaling.storage.records import read_record
from id_scaling.study.study import Study

PACKAGE = Path(id_scaling.__file__).parent
# What modules outside `sources` may import from a module of a kind. Untrained weights are a step of a training too.
HELPERS = {"local": {"expanded"}, "untrained": {"seed_of"}}
LOCAL_FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def clone(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that tests are in: a model in `mine`, a GGUF file, and folders named as what is of another kind."""
    shutil.copytree(tiny_llama, tmp_path / "mine")
    shutil.copytree(tiny_llama, tmp_path / "mine" / "random-init")
    shutil.copytree(tiny_llama, tmp_path / "sotu-neox-64")
    shutil.copytree(tiny_llama, tmp_path / "folder.gguf")
    (tmp_path / "file.gguf").touch()
    (tmp_path / "sotu").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "0.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "checkpoint", "kind", "is_remote", "is_made", "files"),
    [
        ("mine", "main", local.LocalModel, False, False, [f"mine/{name}" for name in LOCAL_FILES]),
        ("./mine", "main", local.LocalModel, False, False, [f"mine/{name}" for name in LOCAL_FILES]),
        ("file.gguf", "main", gguf.GgufModel, False, True, ["file.gguf"]),
        ("owner/model", "main", hub.HubModel, True, False, []),
        ("owner/model", "step1000", hub.HubModel, True, False, []),
        # Untrained weights come before what exists under their name, and need what a job prepares first.
        ("mine", "random-init", untrained.UntrainedModel, False, True, []),
        ("owner/model", "random-init-3", untrained.UntrainedModel, False, True, []),
        (
            "sotu-neox-64",
            "random-init",
            untrained.UntrainedModel,
            False,
            True,
            ["resources/sotu-neox-64/step0/model.safetensors"],
        ),
        # A bundled name comes before a folder of that name.
        (
            "sotu-neox-64",
            "step4",
            bundled.BundledModel,
            False,
            False,
            ["resources/sotu-neox-64/step4/model.safetensors"],
        ),
        (
            "smollm2-135m-instruct",
            "main",
            bundled.BundledModel,
            False,
            False,
            ["resources/smollm2-135m-instruct/model.safetensors"],
        ),
    ],
)
def test_a_model_is_of_one_kind(
    name: str, checkpoint: str, kind: type, is_remote: bool, is_made: bool, files: list[str], clone: Path
) -> None:
    source = resolve_model(name, checkpoint)
    assert (type(source), source.is_remote, source.is_made) == (kind, is_remote, is_made)
    assert list(map(str, source.input_files(allow_pickle=False))) == files


@pytest.mark.parametrize(
    ("name", "checkpoint", "kind", "words"),
    [
        ("./nothing", "main", local.LocalModel, "nothing is not a folder"),
        ("mine", "step1", local.LocalModel, "no config.json in mine/step1"),
        ("owner/nothing.gguf", "main", gguf.GgufModel, "nothing.gguf is not a file"),
        # A name that ends so is a GGUF file, whatever is there under it and whatever its checkpoint is called.
        ("folder.gguf", "main", gguf.GgufModel, "folder.gguf is not a file"),
        ("file.gguf", "random-init", gguf.GgufModel, "its checkpoint is 'main', found 'random-init'"),
        ("./nothing", "random-init", untrained.UntrainedModel, "nothing is not a folder"),
        ("sotu-neox-64", "step3", bundled.BundledModel, "found 'step3'"),
        ("sotu-neox", "main", bundled.BundledModel, "sotu-neox is a tokenizer"),
    ],
)
def test_a_missing_model_is_said_when_its_files_are_asked_for(
    name: str, checkpoint: str, kind: type, words: str, clone: Path
) -> None:
    source = resolve_model(name, checkpoint)
    assert type(source) is kind
    for ask in (source.folder, lambda: source.input_files(allow_pickle=False), lambda: source.config_folder(clone)):
        with pytest.raises(InputError, match=words):
            ask()


@pytest.mark.parametrize(
    ("name", "kind", "folder", "files"),
    [
        ("mine", local.LocalTokenizer, "mine", []),
        ("file.gguf", gguf.GgufTokenizer, None, ["file.gguf"]),
        ("owner/model", hub.HubTokenizer, None, []),
        # All models that are trained here share one.
        ("sotu-neox-64", bundled.BundledTokenizer, "resources/sotu-neox", ["resources/sotu-neox/tokenizer.json"]),
        ("sotu-neox", bundled.BundledTokenizer, "resources/sotu-neox", ["resources/sotu-neox/tokenizer.json"]),
    ],
)
def test_a_tokenizer_is_of_one_kind(name: str, kind: type, folder: str | None, files: list[str], clone: Path) -> None:
    source = resolve_tokenizer(name)
    assert type(source) is kind
    assert source.folder() == (folder and Path(folder))
    assert list(map(str, source.input_files())) == files


@pytest.mark.parametrize(
    ("name", "kind", "is_remote", "files"),
    [
        ("texts", local.LocalDataset, False, ["texts/0.jsonl"]),
        ("./te*/*.jsonl", local.LocalDataset, False, ["texts/0.jsonl"]),
        ("owner/texts/*.jsonl", hub.HubDataset, True, []),
        # A bundled name comes before a folder of that name.
        ("sotu", bundled.BundledDataset, False, ["resources/sotu/0000.parquet"]),
    ],
)
def test_a_dataset_is_of_one_kind(name: str, kind: type, is_remote: bool, files: list[str], clone: Path) -> None:
    source = resolve_dataset(name)
    assert (type(source), source.is_remote) == (kind, is_remote)
    assert list(map(str, source.shard(0))) == files


class ArchivedModel(ModelSource):
    """A kind that the package does not have: `archive:NAME` is the folder of this name in `root`."""

    root: Path

    @classmethod
    def has_name(cls, name: str, checkpoint: str) -> bool:
        return name.startswith("archive:")

    def folder(self) -> Path:
        return self.root / self.name.removeprefix("archive:")

    def config_folder(self, aside: Path) -> Path:
        return self.folder()

    def input_files(self, allow_pickle: bool) -> list[Path]:
        return [self.folder() / "model.safetensors"]


def test_a_further_kind_needs_its_class_and_its_line(
    tiny_llama: Path, text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = study(Path("archive:tiny-llama"), text_folder, model_config__tokenizer=str(tiny_llama))
    unknown = Study(config)
    assert unknown.is_on_hub(next(iter(unknown.models)), "main")

    monkeypatch.setattr(kinds, "MODELS", (ArchivedModel, *kinds.MODELS))
    monkeypatch.setattr(ArchivedModel, "root", tiny_llama.parent, raising=False)
    made = Study(config)
    made.check()
    (model,), output = made.models, tmp_path / "identity.json"
    assert not made.is_on_hub(model, "main")
    assert made.model_files(model, "main") == [str(tiny_llama / "model.safetensors")]
    fetch_model("archive:tiny-llama", "main", SiteRequest(None, ("block",), (), None), 64, output)
    assert read_record(output)["path"] == str(tiny_llama)
    assert weights_folder_of(output) == tiny_llama


def imports_of_kinds(path: Path) -> set[str]:
    """Return what a module imports from the modules of kinds, but for HELPERS and what prepares bundled models."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("id_scaling.sources"):
            kind = node.module.removeprefix("id_scaling.sources").lstrip(".")
            imported = {alias.name for alias in node.names}
            if not kind:
                names |= imported & {"gguf", "hub", "kinds", "local", "untrained"}
            elif kind == "bundled":
                names |= imported & {"BundledModel", "BundledTokenizer", "BundledDataset"}
            elif kind in ("gguf", "hub", "kinds", "local", "untrained"):
                names |= imported - HELPERS.get(kind, set())
    return names


def test_no_module_outside_sources_asks_for_a_kind(tmp_path: Path) -> None:
    outside = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "sources"]
    assert {str(path): names for path in outside if (names := imports_of_kinds(path))} == {}
    (tmp_path / "module.py").write_text("from id_scaling.sources.local import expanded, looks_local\n")
    assert imports_of_kinds(tmp_path / "module.py") == {"looks_local"}
