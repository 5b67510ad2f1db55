"""A killed extraction whose files were damaged since: the same numbers after the same command, or one clear error."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
import torch
from conftest import save_text, save_tiny_llama, study
from verbs import Session

from id_scaling.cli.main import main
from id_scaling.errors import StoreError
from id_scaling.extraction import run as module
from id_scaling.extraction.compute import ModelRun
from id_scaling.runtime import atomic_files
from id_scaling.storage.progress import read_progress
from id_scaling.storage.records import read_record

FLIPS_A_FILE = 20


class Killed(BaseException):
    """A kill, after which nothing of ours runs: no `except Exception` sees it."""


class RememberingRun(ModelRun):
    """The tiny model, loaded once, which computes each batch once: what is tested is what becomes of its numbers."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.batches: dict[bytes, tuple[list, dict[str, np.ndarray]]] = {}

    def extract_batch(self, input_ids: torch.Tensor, write_site: Any) -> dict[str, np.ndarray]:
        key = input_ids.numpy().tobytes()
        if key not in self.batches:
            sites: list = []
            scores = super().extract_batch(input_ids, lambda *of_site: sites.append(of_site))
            self.batches[key] = sites, scores
        sites, scores = self.batches[key]
        for site, arrays in sites:
            write_site(site, arrays)
        return scores


class Extraction:
    """An extraction of a tiny model, and its run folder as kills leave it at some moments."""

    def __init__(self, folder: Path) -> None:
        model = save_tiny_llama(folder / "model", n_layers=1)
        text = save_text(folder / "text", n_documents=6)
        config = study(model, text, cacheing_config__save_cache_tensors=True, cacheing_config__save_fp="float32")
        config["cacheing_config"] |= {"module_inblock_keys": ["block"], "module_outblock_keys": ["unemb"]}
        self.session = Session(folder, config)
        self.folder = Path(self.session.paths["manifest"]).parent
        self.expected = contents(self.folder)
        self.states = {
            "parts": self.killed_before("assemble", 0),
            "one layer file": self.killed_before("assemble", 1),
            "unpublished": self.killed_before("_publish", 0),
        }

    def killed_before(self, name: str, n_calls: int) -> Path:
        """Return a copy of the run folder of an extraction that is killed when it calls a function once more."""
        shutil.rmtree(self.folder)
        function, calls = getattr(module, name), []

        def kill(*arguments: Any) -> Any:
            calls.append(name)
            if len(calls) > n_calls:
                raise Killed
            return function(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, kill)
            with pytest.raises(Killed):
                self.extract()
        return Path(shutil.copytree(self.folder, self.folder.with_name(f"killed before {name} {n_calls}")))

    def extract(self) -> int:
        """Run the verb; return its exit status."""
        study, paths = self.session.study, self.session.paths
        inputs = [part for name in ("contexts", "model") for part in (f"--{name}", paths[name])]
        options = ["--execution", study.extract_execution(self.session.run.model), "--threads", "1"]
        settings = study.extract_settings(self.session.run)
        return main(["extract", "--settings", settings, *inputs, *options, "--output", paths["manifest"]])

    def restore(self, state: str) -> list[Path]:
        """Put the run folder back to a state; return its files."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.states[state], self.folder)
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


def contents(folder: Path) -> dict[str, Any]:
    """Return what the files of a published run hold: datasets, tables, and what the manifest says of them."""
    found: dict[str, Any] = {"tokens": pl.read_parquet(folder / "tokens.parquet")}
    manifest = read_record(folder / "manifest.json")
    for name, entry in manifest.pop("files").items():
        assert module.is_as_recorded(folder / name, entry)
        with h5py.File(folder / name, "r") as file:
            file.visititems(
                lambda path, item, name=name: (
                    found.update({f"{name}/{path}": item[:].tobytes()}) if isinstance(item, h5py.Dataset) else None
                )
            )
    return {**found, "manifest": manifest}


def are_equal(some: dict[str, Any], others: dict[str, Any]) -> bool:
    """Return whether the contents of two runs are equal to the last bit."""
    tables = some["tokens"], others["tokens"]
    return tables[0].equals(tables[1]) and {**some, "tokens": None} == {**others, "tokens": None}


@pytest.fixture(scope="module")
def extraction(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Extraction]:
    """An extraction of two parts."""
    loaded: list[RememberingRun] = []

    def load(*arguments: Any) -> RememberingRun:
        if not loaded:
            loaded.append(RememberingRun(*arguments))
        return loaded[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ModelRun", load)
        patch.setattr(atomic_files, "sync", lambda _: None)  # no machine is switched off here, and there are many files
        yield Extraction(tmp_path_factory.mktemp("parts"))


def flip(path: Path, position: int) -> None:
    """Turn over the bits of one byte of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def test_states_hold_what_a_kill_leaves(extraction: Extraction) -> None:
    names = {
        state: {str(path.relative_to(extraction.folder)).split("/")[-1] for path in extraction.restore(state)}
        for state in extraction.states
    }
    of_part = {"part.json", "layer_00.h5", "outblock.h5", "tokens.h5"}
    assert names["parts"] == {*of_part, "facts.json", "progress.json"}
    assert names["one layer file"] == {*of_part, "facts.json", "progress.json", "assembled.json"}
    assert names["unpublished"] == {*of_part, "facts.json", "progress.json", "assembled.json"}


@pytest.mark.parametrize("state", ["parts", "one layer file", "unpublished"])
def test_undamaged_files_are_not_computed_again(
    state: str, extraction: Extraction, caplog: pytest.LogCaptureFixture
) -> None:
    extraction.restore(state)
    assert extraction.extract() == 0
    assert "extracted context" not in caplog.text
    assert are_equal(contents(extraction.folder), extraction.expected)


@pytest.mark.parametrize("state", ["parts", "one layer file", "unpublished"])
def test_flipped_byte_of_any_file_changes_no_number(state: str, extraction: Extraction) -> None:
    """The extraction goes on after a flip of the middle byte of each file; the next test has more flips."""
    wrong = []
    for path, size in [(path, path.stat().st_size) for path in extraction.restore(state)]:
        extraction.restore(state)
        flip(path, size // 2)
        if extraction.extract() != 0 or not are_equal(contents(extraction.folder), extraction.expected):
            wrong.append(str(path.relative_to(extraction.folder)))
        assert not (extraction.folder / "parts").exists()
    assert wrong == []


def sound_files(folder: Path) -> set[str]:
    """Return the files of a cut extraction that the next one takes for sound."""
    (parts,) = (folder / "parts").iterdir()
    assembled = module._read_assembled(folder, parts.name)
    sound = {name for name in ("facts.json", "progress.json") if is_sealed(parts / name)}
    if is_sealed(folder / module.ASSEMBLED):
        sound |= {module.ASSEMBLED, *assembled["files"]}
    for part in parts.glob("contexts_*"):
        if module.find_damage(part, without=assembled["files"]) is None:
            sound |= {f"{part.name}/{path.name}" for path in part.iterdir()}
    return sound


def is_sealed(path: Path) -> bool:
    """Return whether a record is as it was written."""
    try:
        return bool(read_record(path))
    except StoreError:
        return False


@pytest.mark.parametrize("state", ["parts", "one layer file", "unpublished"])
def test_every_flipped_byte_is_seen(state: str, extraction: Extraction) -> None:
    """Some 400 flips in all, of the bytes at the ends of each file and of random ones between."""
    rng, files = np.random.default_rng(0), extraction.restore(state)
    (parts,) = (extraction.folder / "parts").iterdir()
    names = {path: str(path.relative_to(parts if parts in path.parents else extraction.folder)) for path in files}
    assert sound_files(extraction.folder) == set(names.values())
    for path, name in names.items():
        size = path.stat().st_size
        for position in [0, size - 1, *rng.integers(size, size=FLIPS_A_FILE - 2).tolist()]:
            flip(path, position)
            assert name not in sound_files(extraction.folder), (name, position)
            flip(path, position)


@pytest.mark.parametrize("change", ["cut", "emptied", "removed"])
@pytest.mark.parametrize("state", ["parts", "one layer file", "unpublished"])
def test_cut_and_removed_files_change_no_number(state: str, change: str, extraction: Extraction) -> None:
    wrong = []
    for path in extraction.restore(state):
        extraction.restore(state)
        if change == "removed":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: -100 if change == "cut" else 0])
        if extraction.extract() != 0 or not are_equal(contents(extraction.folder), extraction.expected):
            wrong.append(str(path.relative_to(extraction.folder)))
    assert wrong == []


def test_progress_is_noted_next_to_the_parts_and_goes_with_them(extraction: Extraction) -> None:
    extraction.restore("parts")
    note = read_progress(extraction.folder / "parts", since=0)
    assert (note.done, note.total) == (11, 11)
    assert note.pace > 0
    assert read_progress(extraction.folder / "parts", since=note.time + 1) is None
    assert extraction.extract() == 0
    assert list(extraction.folder.rglob("progress.json")) == []


def test_progress_that_cannot_be_noted_stops_no_extraction(
    extraction: Extraction, caplog: pytest.LogCaptureFixture
) -> None:
    extraction.restore("parts")
    (parts,) = (extraction.folder / "parts").iterdir()
    (parts / "progress.json").unlink()
    (parts / "progress.json").mkdir()
    assert extraction.extract() == 0
    assert "progress.json: not written: " in caplog.text
    assert are_equal(contents(extraction.folder), extraction.expected)


def test_damaged_part_is_named_and_only_it_is_computed_again(
    extraction: Extraction, caplog: pytest.LogCaptureFixture
) -> None:
    extraction.restore("parts")
    (parts,) = (extraction.folder / "parts").iterdir()
    flip(parts / "contexts_0000008" / "tokens.h5", 1000)
    assert extraction.extract() == 0
    log = caplog.text
    damaged = "contexts_0000008: damaged (tokens.h5 is not as it was written): its 3 contexts are computed again"
    assert damaged in log
    assert "11 contexts of 64 tokens, 8 already extracted" in log


def test_part_damaged_between_its_writing_and_the_assembly_is_computed_again(
    extraction: Extraction,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture,
) -> None:
    extraction.restore("parts")
    assemble, n_damaged = module.assemble, 0

    def damage_first(parts: list[Path], name: str, *arguments: Any) -> Any:
        nonlocal n_damaged
        if name == "outblock.h5" and n_damaged < n_to_damage:
            n_damaged += 1
            flip(parts[1] / name, 2000)
        return assemble(parts, name, *arguments)

    monkeypatch.setattr(module, "assemble", damage_first)
    n_to_damage = 1
    assert extraction.extract() == 0
    assert "contexts_0000008: damaged (outblock.h5 is not as it was written)" in caplog.text
    assert are_equal(contents(extraction.folder), extraction.expected)
    extraction.restore("parts")
    n_damaged, n_to_damage = 0, 100  # a disk that damages whatever is written to it
    assert extraction.extract() == 1
    assert "parts were damaged 3 times between their writing and their reading; look at the disk" in (
        capsys.readouterr().err
    )
