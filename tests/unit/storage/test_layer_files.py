"""The store of a run: whole from its parts, and never read when it is damaged or another's."""

from __future__ import annotations

import json
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
from id_scaling.neighbors.precision import exceeds, rounded
from id_scaling.neighbors.statistics import names_of
from id_scaling.neighbors.views import View
from id_scaling.results.estimates import estimate_run
from id_scaling.runtime.atomic_files import canonical_json, sha256
from id_scaling.storage.checksums import row_checksums, write_index
from id_scaling.storage.layer_reader import reading
from id_scaling.storage.layer_writer import (
    CONTEXTS_A_PART,
    MARGIN,
    PART_RECORD,
    TOKENS_FILE,
    DamagedPartError,
    assemble,
    drop_parts,
    drop_pieces,
    find_damage,
    is_as_recorded,
    plan_parts,
    writing_part,
)
from id_scaling.storage.layout import LAYOUT_VERSION, file_of
from id_scaling.storage.records import write_record

SITES = [Site("block", 0, "net.0"), Site("mlp", 0, "net.0.mlp"), Site("block", 1, "net.1"), Site("emb", None, "wte")]
NAMES = ["layer_00.h5", "layer_01.h5", "outblock.h5"]
MADE_WITH = {"layout": LAYOUT_VERSION, "digest": "d1", "settings": {"ctx_len": 5, "views": ["v"]}}


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
        with writing_part(parts[-1], len(part)) as writer:
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
        drop_pieces(parts, name)
        assert_holds(tmp_path / name, [site for site in SITES if file_of(site.layer) == name], n_contexts)
    assert [sorted(file.name for file in part.iterdir()) for part in parts] == [[PART_RECORD, TOKENS_FILE]] * len(parts)


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
        found = dict(file.attrs)
    assert set(json.loads(found.pop("checksums"))) == {f"emb/{name}" for name in arrays_of(SITES[3], 2)}
    assert found == {"layout": str(LAYOUT_VERSION), "digest": "d1", "settings": canonical_json(MADE_WITH["settings"])}


def test_error_in_a_part_leaves_no_part(tmp_path: Path) -> None:
    def fail() -> None:
        with writing_part(tmp_path / "part", 2) as writer:
            writer.write_site(SITES[0], 0, {"v/r1": np.zeros((1, 5))})
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_assembled_file_is_told_from_any_other(tmp_path: Path) -> None:
    path = tmp_path / NAMES[0]
    record = assemble(write_parts(tmp_path / "parts", 9, 4), path.name, path, MADE_WITH)
    assert is_as_recorded(path, record)
    assert not is_as_recorded(tmp_path / NAMES[1], record)
    whole = path.read_bytes()
    for position in range(0, len(whole), 97):
        path.write_bytes(flipped(whole, position))
        assert not is_as_recorded(path, record)


def flipped(content: bytes, position: int) -> bytes:
    """Return content with the bits of one byte turned over."""
    return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]


@pytest.mark.parametrize("is_cut", [False, True])
def test_damaged_part_is_found_and_assembled_into_no_file(is_cut: bool, tmp_path: Path) -> None:
    parts = write_parts(tmp_path / "parts", 19, 4)
    piece = parts[2] / NAMES[0]
    whole = piece.read_bytes()
    piece.write_bytes(whole[: len(whole) // 2] if is_cut else flipped(whole, len(whole) // 2))
    with pytest.raises(DamagedPartError, match=r"contexts_0000016: damaged \(layer_00.h5 is not as it was written\)"):
        assemble(parts, NAMES[0], tmp_path / NAMES[0], MADE_WITH)
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]
    piece.write_bytes(whole)
    assemble(parts, NAMES[0], tmp_path / NAMES[0], MADE_WITH)
    assert_holds(tmp_path / NAMES[0], SITES[:2], 19)


def test_damage_of_a_part_is_that_of_any_file_that_is_still_needed(tmp_path: Path) -> None:
    part = write_parts(tmp_path, 2, 2)[0]
    assert find_damage(part) is None
    drop_pieces([part], NAMES[0])
    assert find_damage(part) == "layer_00.h5 is not there"
    assert find_damage(part, without=[NAMES[0]]) is None
    record = (part / PART_RECORD).read_bytes()
    (part / PART_RECORD).write_bytes(flipped(record, len(record) // 2))
    assert find_damage(part, without=[NAMES[0]]).startswith("part.json: ")
    (part / PART_RECORD).unlink()
    assert find_damage(part, without=[NAMES[0]]) == "part.json: not there"


def test_part_under_the_name_of_another_is_damaged(tmp_path: Path) -> None:
    first, second, _ = write_parts(tmp_path, 19, 8)
    second.rename(tmp_path / "aside")
    first.rename(second)
    assert find_damage(second) == "its record is that of contexts_0000000"


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
    given = np.array([values], dtype=np.float32)
    found = rounded(given, save_fp)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.astype(np.float64), given.astype(dtype).astype(np.float64))
    assert np.isfinite(found).tolist() == np.isfinite(given).tolist()


def test_what_is_rounded_depends_on_the_cloud_and_not_on_its_batch() -> None:
    clouds = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    clouds[2, 3, 1] = LARGE
    whole = rounded(clouds, "float16")
    assert whole.dtype == np.float32
    assert exceeds(clouds, "float16").tolist() == exceeds(whole, "float16").tolist() == [False, False, True, False]
    for number, cloud in enumerate(clouds):
        np.testing.assert_array_equal(whole[number : number + 1], rounded(cloud[None], "float16"))
        np.testing.assert_array_equal(whole[number], cloud if number == 2 else cloud.astype(np.float16))


@pytest.mark.parametrize("wide", [0, 1, 2], ids=["first batch wide", "second batch wide", "last batch wide"])
def test_one_wide_batch_widens_the_whole_site_and_loses_nothing(wide: int, tmp_path: Path) -> None:
    batches = [np.full((1, 5, 4), 1.5 + batch, np.float16) for batch in range(3)]
    batches[wide] = np.full((1, 5, 4), LARGE, np.float32)
    with writing_part(tmp_path / "part", 3) as writer:
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
        with writing_part(part, 2) as writer:
            writer.write_site(SITES[0], 0, {"activations": np.full((2, 5, 4), value, value.dtype)})
    assemble(parts, "layer_00.h5", tmp_path / "layer_00.h5", MADE_WITH)
    with h5py.File(tmp_path / "layer_00.h5", "r") as file:
        assert file["block/activations"].dtype == np.float32
        np.testing.assert_array_equal(file["block/activations"][:, 0, 0], [1.5, 1.5, LARGE, LARGE, -2.5, -2.5])


# ---- reading a store -------------------------------------------------------------------------------------------

RANKS = tuple(range(1, 22))
REQUEST = {"layers": [0], "inblock": ["block"], "outblock": [], "mapping": None, "views": {}}


class Store:
    """A store of three clouds at one site, and its manifest."""

    def __init__(self, folder: Path, largest: float = 1.0, save_fp: str = "float32") -> None:
        self.save_fp = save_fp
        self.folder, self.path, self.manifest = folder, folder / "layer_00.h5", folder / "manifest.json"
        clouds = np.random.default_rng(0).normal(size=(3, 30, 3)).astype(np.float32)
        clouds[1, 7, 2] *= largest
        found = [find_neighbors(cloud, [View()], RANKS)[0] for cloud in clouds]
        with writing_part(folder / "part", len(clouds)) as writer:
            arrays = {
                "default/r1": np.stack([one.r1 for one in found]),
                "default/log_ratio": np.stack([one.log_ratio for one in found]).astype(np.float32),
                "default/statistics": np.array([list(one.statistics.values()) for one in found]),
                "activations": rounded(clouds, save_fp),
            }
            writer.write_site(SITES[0], 0, arrays)
        made_with = {"layout": LAYOUT_VERSION, "digest": "d1"}
        self.entry = assemble([folder / "part"], self.path.name, self.path, made_with)
        self.write_manifest()

    def write_manifest(self, **changes: Any) -> None:
        """Write the manifest of what is there; `changes` replace its keys."""
        files = {self.path.name: {**self.entry, "bytes": self.path.stat().st_size, "sha256": sha256(self.path)}}
        sites = [[site.module, site.layer, site.path] for site in SITES[:1]]
        known = {
            "layout": LAYOUT_VERSION,
            "digest": "d1",
            "made_from": {},
            "sites": sites,
            "n_contexts": 3,
            "files": files,
        }
        known |= {
            "ranks": list(RANKS),
            "statistics": list(names_of(())),
            "made_from": {},
            "n_layers": 2,
            "settings": {"views": {"default": vars(View())}, "sites": REQUEST, "save_fp": self.save_fp},
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


@pytest.mark.parametrize(
    ("save_fp", "expected"), [("float32", ["float32"] * 3), ("float16", ["float16", "float32", "float16"])]
)
def test_tables_say_in_which_precision_each_cloud_was_saved(save_fp: str, expected: list[str], tmp_path: Path) -> None:
    store = Store(tmp_path, largest=LARGE, save_fp=save_fp)
    assert store.estimate("skdim_lPCA")["save_fp"].to_list() == expected
    assert store.estimate("mle")["save_fp"].to_list() == [None] * 3  # neighbors are of what the model made


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


def in_every_chunk(store: Store, change: Any) -> None:
    """Change the bytes of each chunk of `r1` as they lie in the file, its Fletcher-32 checksum included."""
    with h5py.File(store.path, "r+") as file:
        dataset = file["block/default/r1"].id
        infos = [dataset.get_chunk_info(number) for number in range(dataset.get_num_chunks())]
    content = bytearray(store.path.read_bytes())
    for info in infos:
        place = slice(info.byte_offset, info.byte_offset + info.size)
        content[place] = change(bytes(content[place]))
    store.path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "is_seen_by_hdf5"),
    [(lambda chunk: bytes(len(chunk)), False), (lambda chunk: chunk[:-1] + b"\0", True)],
    ids=["zeroed with its checksum", "another checksum"],
)
def test_damage_that_fletcher_32_does_not_see_is_found(change: Any, is_seen_by_hdf5: bool, store: Store) -> None:
    in_every_chunk(store, change)
    if not is_seen_by_hdf5:
        with h5py.File(store.path, "r") as file:
            assert (file["block/default/r1"][:] == 0).all()
    with pytest.raises(StoreError, match=r"layer_00\.h5: damaged .*; remove it and ask for it"):
        store.estimate()


def test_words_of_ones_for_words_of_zeros_are_found(tmp_path: Path) -> None:
    """Fletcher-32 counts modulo 65,535, for which 0000 and ffff are one number."""
    values = np.arange(48, dtype=np.float32).reshape(2, 4, 6)  # begins with two words of zeros
    path = tmp_path / "layer_00.h5"
    with writing_part(tmp_path / "part", 2) as writer:
        writer.write_site(SITES[0], 0, {"activations": values})
    manifest = {"files": {path.name: assemble([tmp_path / "part"], path.name, path, MADE_WITH)}}
    with h5py.File(path, "r") as file:
        info = file["block/activations"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[info.byte_offset : info.byte_offset + 2] = b"\xff\xff"
    path.write_bytes(content)
    with h5py.File(path, "r") as file:  # a denormal number, and no error
        assert file["block/activations"][0, 0, 0] == np.float32(65535 * 2.0**-149)
    with reading(path, manifest) as file:
        np.testing.assert_array_equal(file.read("block/activations", range(1, 2)), values[1:])
    with pytest.raises(StoreError, match="values of block/activations are not those"), reading(path, manifest) as file:
        file.read("block/activations", range(2))


def test_values_of_another_place_are_found(store: Store) -> None:
    """Chunks that are whole, of other contexts: checksums that lie next to values would not tell."""
    with h5py.File(store.path, "r+") as file:
        r1 = file["block/default/r1"]
        r1[:] = r1[:][::-1]
    store.write_manifest()
    with pytest.raises(StoreError, match="values of block/default/r1 are not those that were written"):
        store.estimate()


@pytest.mark.parametrize(
    ("has_index", "what"),
    [(False, "checksums of block/default/r1 are not those"), (True, "index of its checksums is not the one")],
)
def test_values_and_their_checksums_of_another_extraction_are_found(has_index: bool, what: str, store: Store) -> None:
    with h5py.File(store.path, "r+") as file:
        r1 = file["block/default/r1"]
        r1[:] *= 2
        r1.attrs["checksums"] = row_checksums(r1[:], r1.chunks[-1])
        if has_index:
            write_index(file)
    store.write_manifest()
    with pytest.raises(StoreError, match=what):
        store.estimate()


def test_another_type_of_the_same_bytes_is_found(store: Store) -> None:
    with h5py.File(store.path, "r+") as file:
        values, table = file["block/default/r1"][:], file["block/default/r1"].attrs["checksums"]
        del file["block/default/r1"]
        swapped = file.create_dataset("block/default/r1", data=values.view(">f8"), chunks=(1, 30), fletcher32=True)
        swapped.attrs["checksums"] = table
    store.write_manifest()
    with pytest.raises(StoreError, match=r"r1 is >f8 .*, but <f8 .* was written"):
        store.estimate()


@pytest.mark.parametrize("layout", [None, LAYOUT_VERSION + 1])
def test_another_storage_layout_is_refused_with_what_to_do(layout: int | None, store: Store) -> None:
    store.write_manifest(layout=layout)
    with pytest.raises(StoreError, match=r"found storage layout .*, expected 1: written by another version") as caught:
        store.estimate()
    assert f"rm {store.manifest} && snakemake" in str(caught.value)


@pytest.mark.parametrize("columns", [slice(0), slice(3), slice(5, 13), slice(11, 12), slice(12, 24), slice(None)])
@pytest.mark.parametrize("rows", [range(3), range(1, 2), range(0, 3, 2)])
def test_some_contexts_and_ranks_are_those_of_the_whole(rows: range, columns: slice, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 5, 30)).astype(np.float32)
    path = tmp_path / "layer_00.h5"
    with writing_part(tmp_path / "part", 3) as writer:
        writer.write_site(SITES[0], 0, {"v/log_ratio": values})
    manifest = {"files": {path.name: assemble([tmp_path / "part"], path.name, path, MADE_WITH)}}
    with reading(path, manifest) as file:
        found = file.read("block/v/log_ratio", rows, columns)
    np.testing.assert_array_equal(found, values[list(rows)][..., columns])


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
        (by_a_link(h5py.ExternalLink("other.h5", "r1")), "/block/default/r1 is a link, or its data is in another file"),
        (by_a_link(h5py.SoftLink("/elsewhere")), "/block/default/r1 is a link, or its data is in another file"),
        (by_raw_bytes_of_another_file, "/block/default/r1 is a link, or its data is in another file"),
        (by_a_view_of_another_file, "/block/default/r1 is a link, or its data is in another file"),
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
    with writing_part(tmp_path / "part", 4) as writer:
        writer.write_site(Site("block", 0, ""), 0, {"a": one})
        writer.write_site(Site("block", 1, ""), 0, {"a": one})
        writer.write_site(Site("block", 0, ""), 1, {"a": one})
        writer.write_tokens(0, {"loss": one})
    assert wanted == [320, 240 + 320, 160 + 240 + 320]
