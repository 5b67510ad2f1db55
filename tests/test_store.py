"""The store of a run: whole from its parts, and never read when it is damaged or another's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest

from id_scaling.errors import StoreError
from id_scaling.estimators.registry import get_estimator
from id_scaling.models.modules import Site
from id_scaling.neighbors.find import find_neighbors
from id_scaling.neighbors.statistics import names_of
from id_scaling.neighbors.views import View
from id_scaling.results.estimates import estimate_run
from id_scaling.runtime.atomic_files import canonical_json, sha256
from id_scaling.storage.layer_writer import (
    CONTEXTS_A_PART,
    MARGIN,
    TOKENS_FILE,
    PartWriter,
    assemble,
    drop_parts,
    file_of,
    is_made_with,
    plan_parts,
)
from id_scaling.storage.records import write_record

SITES = [Site("block", 0, "net.0"), Site("mlp", 0, "net.0.mlp"), Site("block", 1, "net.1"), Site("emb", None, "wte")]
NAMES = ["layer_00.h5", "layer_01.h5", "outblock.h5"]
MADE_WITH = {"digest": "d1", "settings": {"ctx_len": 5, "views": ["v"]}}


def arrays_of(site: Site, n_contexts: int) -> dict[str, np.ndarray]:
    """Return random arrays of one site, each with contexts in front, of every type that is stored."""
    rng = np.random.default_rng([SITES.index(site), n_contexts])
    return {
        "v/r1": rng.normal(size=(n_contexts, 5)),
        "v/log_ratio": rng.normal(size=(n_contexts, 5, 3)).astype(np.float32),
        "v/statistics": rng.normal(size=(n_contexts, 2)),
        "activations": rng.normal(size=(n_contexts, 5, 4)).astype(np.float16),
    }


def write_parts(folder: Path, n_contexts: int, batch_size: int) -> list[Path]:
    """Write the parts of random arrays, some contexts at a time."""
    parts = []
    for part in plan_parts(n_contexts):
        parts.append(folder / f"contexts_{part.start:07d}")
        with PartWriter(parts[-1], len(part)) as writer:
            for first in range(0, len(part), batch_size):
                rows = slice(part.start + first, min(part.start + first + batch_size, part.stop))
                for site in SITES:
                    arrays = arrays_of(site, n_contexts)
                    writer.write_site(site, first, {name: values[rows] for name, values in arrays.items()})
                loss = np.arange(n_contexts * 5, dtype=np.float32).reshape(n_contexts, 5)
                writer.write_tokens(first, {"loss": loss[rows]})
    return parts


def assert_holds(path: Path, sites: list[Site], n_contexts: int) -> None:
    """Assert that a layer file holds the arrays written, and nothing more."""
    with h5py.File(path, "r") as file:
        found: list[str] = []
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        expected = {
            f"{site.module}/{name}": values for site in sites for name, values in arrays_of(site, n_contexts).items()
        }
        assert sorted(found) == sorted(expected)
        for name, values in expected.items():
            assert file[name].dtype == values.dtype
            np.testing.assert_array_equal(file[name][:], values)


# ---- parts and layer files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_contexts", [1, 7, 8, 9, 16, 30])
def test_parts_cover_every_context_once_in_order(n_contexts: int) -> None:
    parts = plan_parts(n_contexts)
    assert [context for part in parts for context in part] == list(range(n_contexts))
    assert {len(part) for part in parts[:-1]} <= {CONTEXTS_A_PART}


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("n_contexts", [1, 8, 19])
def test_assembled_files_hold_what_was_written(n_contexts: int, batch_size: int, tmp_path: Path) -> None:
    parts = write_parts(tmp_path / "parts", n_contexts, batch_size)
    for name in NAMES:
        assemble(parts, name, tmp_path / name, MADE_WITH)
        assert_holds(tmp_path / name, [site for site in SITES if file_of(site.layer) == name], n_contexts)
    assert [sorted(file.name for file in part.iterdir()) for part in parts] == [[TOKENS_FILE]] * len(parts)


def test_every_dataset_is_chunked_by_context_and_carries_checksums(tmp_path: Path) -> None:
    parts = write_parts(tmp_path / "parts", 9, 4)
    assemble(parts, "layer_00.h5", tmp_path / "layer_00.h5", MADE_WITH)
    seen = []

    def look(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            seen.append(name)
            assert item.fletcher32
            assert item.chunks == (1, *item.shape[1:])

    with h5py.File(tmp_path / "layer_00.h5", "r") as file:
        file.visititems(look)
    assert len(seen) == 8


def test_layer_file_says_what_it_was_made_with(tmp_path: Path) -> None:
    parts = write_parts(tmp_path / "parts", 2, 2)
    assemble(parts, "outblock.h5", tmp_path / "outblock.h5", MADE_WITH)
    with h5py.File(tmp_path / "outblock.h5", "r") as file:
        assert dict(file.attrs) == {"digest": "d1", "settings": canonical_json(MADE_WITH["settings"])}
    assert is_made_with(tmp_path / "outblock.h5", MADE_WITH)
    assert not is_made_with(tmp_path / "outblock.h5", {**MADE_WITH, "digest": "d2"})
    assert not is_made_with(tmp_path / "outblock.h5", {"weights": "w"})
    assert not is_made_with(tmp_path / "layer_00.h5", MADE_WITH)


def test_error_in_a_part_leaves_no_part(tmp_path: Path) -> None:
    def fail() -> None:
        with PartWriter(tmp_path / "part", 2) as writer:
            writer.write_site(SITES[0], 0, {"v/r1": np.zeros((1, 5))})
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_interrupted_assembly_goes_on(tmp_path: Path) -> None:
    parts = write_parts(tmp_path / "parts", 19, 4)
    assemble(parts, NAMES[0], tmp_path / NAMES[0], MADE_WITH)
    # Killed between a finished layer file and the removal of its pieces: some are gone, some are not.
    (parts[1] / NAMES[0]).write_bytes(b"left behind")
    finished = (tmp_path / NAMES[0]).read_bytes()
    for name in NAMES:
        assemble(parts, name, tmp_path / name, MADE_WITH)
    assert (tmp_path / NAMES[0]).read_bytes() == finished
    assert not (parts[1] / NAMES[0]).exists()
    for name in NAMES:
        assert_holds(tmp_path / name, [site for site in SITES if file_of(site.layer) == name], 19)


def test_assembly_that_fails_leaves_its_pieces_and_no_file(tmp_path: Path) -> None:
    parts = write_parts(tmp_path / "parts", 19, 4)
    piece = parts[2] / NAMES[0]
    whole = piece.read_bytes()
    piece.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match="truncated"):
        assemble(parts, NAMES[0], tmp_path / NAMES[0], MADE_WITH)
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]
    piece.write_bytes(whole)
    assemble(parts, NAMES[0], tmp_path / NAMES[0], MADE_WITH)
    assert_holds(tmp_path / NAMES[0], SITES[:2], 19)


def test_file_of_other_settings_is_made_anew(tmp_path: Path) -> None:
    assemble(write_parts(tmp_path / "old", 2, 2), NAMES[0], tmp_path / NAMES[0], {"digest": "d0"})
    assemble(write_parts(tmp_path / "new", 9, 2), NAMES[0], tmp_path / NAMES[0], MADE_WITH)
    assert_holds(tmp_path / NAMES[0], SITES[:2], 9)


def test_dropped_parts_are_gone_and_may_be_dropped_again(tmp_path: Path) -> None:
    write_parts(tmp_path / "parts", 2, 2)
    for _ in range(2):
        drop_parts(tmp_path / "parts")
        assert not (tmp_path / "parts").exists()


# ---- precision -------------------------------------------------------------------------------------------------

LARGE = 1e6  # beyond float16, whose largest number is 65504


@pytest.mark.parametrize(
    ("values", "save_fp", "dtype"),
    [
        ([1.0, -2.5], "float16", "float16"),
        ([65504.0], "float16", "float16"),
        ([1.0, LARGE], "float16", "float32"),
        ([-LARGE, np.nan], "float16", "float32"),
        ([np.inf, LARGE], "float16", "float32"),
        # Nothing is lost of what is infinite already.
        ([np.inf, -np.inf, 1.0], "float16", "float16"),
        ([np.nan, 1.0], "float16", "float16"),
        ([LARGE], "float32", "float32"),
        ([LARGE], "float64", "float64"),
    ],
)
def test_values_beyond_the_precision_are_saved_in_float32(values: list[float], save_fp: str, dtype: str) -> None:
    from id_scaling.extraction.compute import rounded

    given = np.array(values, dtype=np.float32)
    found = rounded(given, save_fp)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.astype(np.float64), given.astype(dtype).astype(np.float64))
    assert np.isfinite(found).tolist() == np.isfinite(given).tolist()


@pytest.mark.parametrize("wide", [0, 1, 2], ids=["first batch wide", "second batch wide", "last batch wide"])
def test_one_wide_batch_widens_the_whole_site_and_loses_nothing(wide: int, tmp_path: Path) -> None:
    batches = [np.full((1, 5, 4), 1.5 + batch, np.float16) for batch in range(3)]
    batches[wide] = np.full((1, 5, 4), LARGE, np.float32)
    with PartWriter(tmp_path / "part", 3) as writer:
        for first, batch in enumerate(batches):
            writer.write_site(SITES[0], first, {"activations": batch})
    with h5py.File(tmp_path / "part" / "layer_00.h5", "r") as file:
        found = file["block/activations"]
        assert (found.dtype, found.chunks, found.fletcher32) == (np.float32, (1, 5, 4), True)
        np.testing.assert_array_equal(found[:, 0, 0], [LARGE if batch == wide else 1.5 + batch for batch in range(3)])


def test_one_wide_part_widens_the_layer_file_and_loses_nothing(tmp_path: Path) -> None:
    values = [np.float16(1.5), np.float32(LARGE), np.float16(-2.5)]
    parts = [tmp_path / str(number) for number in range(3)]
    for part, value in zip(parts, values, strict=True):
        with PartWriter(part, 2) as writer:
            writer.write_site(SITES[0], 0, {"activations": np.full((2, 5, 4), value, value.dtype)})
    assemble(parts, "layer_00.h5", tmp_path / "layer_00.h5", MADE_WITH)
    with h5py.File(tmp_path / "layer_00.h5", "r") as file:
        assert file["block/activations"].dtype == np.float32
        np.testing.assert_array_equal(file["block/activations"][:, 0, 0], [1.5, 1.5, LARGE, LARGE, -2.5, -2.5])


# ---- reading a store -------------------------------------------------------------------------------------------

RANKS = tuple(range(1, 22))


class Store:
    """A store of three clouds at one site, and its manifest."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.manifest = folder, folder / "layer_00.h5", folder / "manifest.json"
        clouds = np.random.default_rng(0).normal(size=(3, 30, 3)).astype(np.float32)
        found = [find_neighbors(cloud, [View()], RANKS)[0] for cloud in clouds]
        with PartWriter(folder / "part", len(clouds)) as writer:
            arrays = {
                "default/r1": np.stack([one.r1 for one in found]),
                "default/log_ratio": np.stack([one.log_ratio for one in found]).astype(np.float32),
                "default/statistics": np.array([list(one.statistics.values()) for one in found]),
                "activations": clouds,
            }
            writer.write_site(SITES[0], 0, arrays)
        assemble([folder / "part"], self.path.name, self.path, {"digest": "d1"})
        self.write_manifest()

    def write_manifest(self, **changes: Any) -> None:
        """Write the manifest of what is there; `changes` replace its keys."""
        files = {self.path.name: {"bytes": self.path.stat().st_size, "sha256": sha256(self.path)}}
        sites = [[site.module, site.layer, site.path] for site in SITES[:1]]
        known = {"digest": "d1", "sites": sites, "n_contexts": 3, "files": files}
        known |= {
            "ranks": list(RANKS),
            "statistics": list(names_of(())),
            "settings": {"views": {"default": vars(View())}, "sites": {}},
        }
        write_record(self.manifest, {**known, **changes})

    def estimate(self, name: str = "mle", has_local: bool = False) -> pl.DataFrame:
        """Return the table of one estimator."""
        output = self.folder / f"{name}.parquet"
        output.unlink(missing_ok=True)
        settings = {"views": ["default"], "clouds": ["context"], "has_local": has_local, "max_seconds": 60.0}
        estimate_run(self.manifest, "block", get_estimator(name), settings, output, 1)
        return pl.read_parquet(output)

    def flip(self, position: int) -> None:
        """Turn over the bits of one byte of the layer file."""
        with self.path.open("r+b") as file:
            file.seek(position)
            (byte,) = file.read(1)
            file.seek(position)
            file.write(bytes([byte ^ 0xFF]))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store to be damaged."""
    return Store(tmp_path)


def test_store_that_is_whole_is_read(store: Store) -> None:
    table = store.estimate()
    assert table["status"].to_list() == ["ok"] * 3
    # Clouds of 29 Gaussian points in three dimensions.
    assert table["value"].is_between(1.5, 6).all()


@pytest.mark.parametrize(
    ("dataset", "estimator"),
    [
        ("default/r1", "mle"),
        ("default/log_ratio", "mind_ml"),
        ("default/statistics", "twoNN_f10"),
        ("activations", "skdim_lPCA"),
    ],
)
def test_one_wrong_byte_of_the_data_is_found(dataset: str, estimator: str, store: Store) -> None:
    with h5py.File(store.path, "r") as file:
        chunk = file[f"block/{dataset}"].id.get_chunk_info(1)
    store.flip(chunk.byte_offset + chunk.size // 2)
    with pytest.raises(StoreError) as caught:
        store.estimate(estimator)
    message = str(caught.value)
    assert message.startswith(f"{store.path}: ")
    assert f"rm {store.manifest} && snakemake … all {store.manifest}" in message
    assert not (store.folder / f"{estimator}.parquet").exists()


def test_wrong_byte_anywhere_is_found_or_without_effect(store: Store) -> None:
    """The structure of a file can be damaged as its data can; 150 places are tried."""
    expected = store.estimate()

    def outcome() -> str:
        try:
            return "fine" if store.estimate().equals(expected) else "another table"
        except StoreError as error:
            return "fine" if str(store.path) in str(error) else repr(error)
        except (KeyError, OSError, ValueError, RuntimeError) as error:
            return repr(error)

    outcomes = {}
    for position in np.random.default_rng(0).choice(store.path.stat().st_size, 150, replace=False).tolist():
        store.flip(position)
        outcomes[position] = outcome()
        store.flip(position)
    assert {position: found for position, found in outcomes.items() if found != "fine"} == {}
    assert store.estimate().equals(expected)


def cut_short(store: Store) -> None:
    store.path.write_bytes(store.path.read_bytes()[:-100])


def of_another_extraction(store: Store) -> None:
    store.write_manifest(digest="d2")


def with_another_digest_of_one_length(store: Store) -> None:
    with h5py.File(store.path, "r+") as file:
        file.attrs["digest"] = "d9"


def without_a_digest(store: Store) -> None:
    with h5py.File(store.path, "r+") as file:
        del file.attrs["digest"]
    store.write_manifest()


def by_a_link(link: Any) -> Any:
    """Return what puts a link in the place of a dataset."""

    def damage(store: Store) -> None:
        with h5py.File(store.path, "r+") as file:
            del file["block/default/r1"]
            file["block/default/r1"] = link
        store.write_manifest()

    return damage


def by_raw_bytes_of_another_file(store: Store) -> None:
    with h5py.File(store.path, "r+") as file:
        del file["block/default/r1"]
        file.create_dataset("block/default/r1", (3, 30), np.float64, external=[("/etc/passwd", 0, 3 * 30 * 8)])
    store.write_manifest()


def by_a_view_of_another_file(store: Store) -> None:
    layout = h5py.VirtualLayout((3, 30), np.float64)
    layout[:] = h5py.VirtualSource("other.h5", "r1", (3, 30))
    with h5py.File(store.path, "r+") as file:
        del file["block/default/r1"]
        file.create_virtual_dataset("block/default/r1", layout)
    store.write_manifest()


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (by_a_link(h5py.ExternalLink("other.h5", "r1")), "/block/default/r1 stands in another file"),
        (by_a_link(h5py.SoftLink("/elsewhere")), "/block/default/r1 stands in another file"),
        (by_raw_bytes_of_another_file, "/block/default/r1 stands in another file"),
        (by_a_view_of_another_file, "/block/default/r1 stands in another file"),
        (cut_short, r"found \d+ bytes, the manifest says \d+"),
        (lambda store: store.path.unlink(), "missing, though the manifest names it"),
        (of_another_extraction, "made by another extraction than its manifest"),
        (with_another_digest_of_one_length, "."),
        (without_a_digest, "."),
    ],
    ids=[
        "link",
        "soft link",
        "raw bytes",
        "virtual",
        "cut short",
        "missing",
        "other manifest",
        "other file",
        "no digest",
    ],
)
def test_file_that_is_not_the_manifests_is_refused_with_what_to_do(damage: Any, what: str, store: Store) -> None:
    damage(store)
    with pytest.raises(StoreError, match=what) as caught:
        store.estimate()
    assert str(store.path) in str(caught.value)
    assert f"rm {store.manifest} && snakemake … all {store.manifest}" in str(caught.value)


@pytest.mark.parametrize("name", ["mle", "mom_k10", "tle"])
def test_local_ids_are_one_a_token_and_average_to_the_estimate(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    table = store.estimate(name, has_local=True)
    assert table["local"].list.len().to_list() == [30, 30, 30]
    assert table["local"].list.first().to_list() == [None] * 3  # the token that the view leaves out
    np.testing.assert_allclose(table["local"].list.mean(), table["value"], rtol=1e-12)
    assert "local" not in store.estimate(name).columns


def test_room_is_wanted_for_all_that_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = []
    monkeypatch.setattr(
        "id_scaling.storage.layer_writer.require_room", lambda _, n_bytes, __: wanted.append(n_bytes - MARGIN)
    )
    one = np.zeros((1, 10))  # 80 bytes a context
    with PartWriter(tmp_path / "part", 4) as writer:
        writer.write_site(Site("block", 0, ""), 0, {"a": one})
        writer.write_site(Site("block", 1, ""), 0, {"a": one})
        writer.write_site(Site("block", 0, ""), 1, {"a": one})
        writer.write_tokens(0, {"loss": one})
    assert wanted == [320, 240 + 320, 160 + 240 + 320]
