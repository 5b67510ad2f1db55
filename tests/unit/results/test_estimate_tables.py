"""Tables of estimates: what stands beside each, against what numpy makes of the clouds."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest
from conftest import study
from scipy.spatial.distance import pdist, squareform
from verbs import Session

from id_scaling.cli.main import main
from id_scaling.estimators.near_copies import tiny_share
from id_scaling.neighbors.find import Neighbors
from id_scaling.results.estimates import _medians


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, text_folder: Path) -> Session:
    """A session whose clouds and spectra are stored."""
    kept = {"save_cache_tensors": True, "save_fp": "float32", "cloud_statistics": ["moments", "spectrum"]}
    return Session(tmp_path_factory.mktemp("ids"), study(tiny_llama, text_folder, cacheing_config=kept))


def test_companions_are_those_of_the_clouds(session: Session, tmp_path: Path) -> None:
    assert main(session.estimate("block", "mle", tmp_path / "mle.parquet")) == 0
    table = pl.read_parquet(tmp_path / "mle.parquet").filter(view="origin", layer=1).sort("context")
    with h5py.File(Path(session.paths["manifest"]).parent / "layer_01.h5") as file:
        clouds = file["block/activations"][:].astype(np.float64)
    assert len(table) == len(clouds) > 2
    for row, cloud in zip(table.iter_rows(named=True), clouds, strict=True):
        distances = squareform(pdist(cloud))
        np.fill_diagonal(distances, np.inf)
        r1 = distances.min(axis=1)
        assert row["median_r1"] == pytest.approx(np.median(r1), rel=1e-5)
        assert row["tiny_r1"] == pytest.approx(np.mean(r1 < np.median(r1) / 100), abs=1e-12)
        shares = np.linalg.eigvalsh(np.cov(cloud.T))
        shares = shares[shares > 0] / shares[shares > 0].sum()
        assert row["effective_rank"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)


@pytest.mark.parametrize(
    ("r1", "median", "tiny"),
    [
        ([1.0, 2.0, 3.0, 0.02, 0.0199], 1.0, 0.0),
        ([1.0, 2.0, 3.0, 0.0099, 0.0], 1.0, 0.4),
        ([0.0, 0.0, 0.0, 1.0, np.nan], 0.0, 0.75),
        ([np.nan] * 5, np.nan, np.nan),
    ],
)
def test_a_nearest_neighbor_at_next_to_no_distance_is_counted(r1: list[float], median: float, tiny: float) -> None:
    rows = np.array([r1])
    neighbors = Neighbors((1,), rows, np.zeros((*rows.shape, 1)), {})
    np.testing.assert_array_equal([_medians(rows)[0], tiny_share(neighbors)[0]], [median, tiny])
