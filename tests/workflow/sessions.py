"""What a session holds, to be compared bit for bit with that of another."""

from __future__ import annotations

from pathlib import Path

import h5py
import polars as pl


def contents(session: Path) -> dict[str, object]:
    """Return the content of every dataset and table of a session, by path."""
    found: dict[str, object] = {}
    for path in sorted(session.rglob("*.h5")):
        with h5py.File(path, "r") as file:

            def keep(name: str, item: h5py.Dataset | h5py.Group, path: Path = path) -> None:
                if isinstance(item, h5py.Dataset):
                    found[f"{path.relative_to(session)}:{name}"] = item[:].tobytes()

            file.visititems(keep)
    for path in sorted(session.rglob("*.parquet")):
        found[str(path.relative_to(session))] = pl.read_parquet(path)
    return found


def assert_same(ours: dict[str, object], theirs: dict[str, object]) -> None:
    """Compare two contents bit for bit, NaN included."""
    assert ours.keys() == theirs.keys()
    assert any(name.endswith(".parquet") for name in ours)
    assert any("log_ratio" in name for name in ours)
    for name, value in theirs.items():
        same = ours[name].equals(value, null_equal=True) if isinstance(value, pl.DataFrame) else ours[name] == value
        assert same, name


def assert_same_contents(session: Path, reference: Path) -> None:
    """Compare two sessions bit for bit, NaN included."""
    assert_same(contents(session), contents(reference))
