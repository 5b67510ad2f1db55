"""File systems without locks, as NFS and Lustre may be: whole studies run, and notebooks read what they wrote."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, save_text, save_tiny_llama

COMPILER = shutil.which("cc") or shutil.which("gcc")
STUDY = """
import sys
from pathlib import Path
from conftest import study
from verbs import run_study
folder = Path(sys.argv[1])
config = study(folder / "model", folder / "text", session_path=str(folder / "session"))
config["cacheing_config"] |= {"save_IDs_list": ["mle"], "module_inblock_keys": ["block"], "module_outblock_keys": []}
session = run_study(config)
import h5py
for path in session.rglob("layer_00.h5"):  # as a notebook opens it, after this package was imported
    with h5py.File(path) as file:
        print(*file, "read")
import id_scaling
print(len(id_scaling.load_contexts(session)) > 0)
"""
OPENS = "import h5py, sys; h5py.File(sys.argv[1], 'w')"


@pytest.fixture(scope="module")
def no_locks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that, preloaded, has every lock fail."""
    if COMPILER is None or not sys.platform.startswith("linux"):
        pytest.skip("a C compiler and Linux are needed to stand for a file system without locks")
    library = tmp_path_factory.mktemp("no_locks") / "no_locks.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, Path(__file__).with_name("no_locks.c")], check=True)
    return library


def run(library: Path, number: int, code: str, *arguments: Path, **variables: str) -> subprocess.CompletedProcess:
    """Run Python code where locks fail with an error of this number."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    preloaded = {"LD_PRELOAD": str(library), "NOLOCK_ERRNO": str(number), "PYTHONPATH": path, **variables}
    environment = {key: value for key, value in os.environ.items() if key != "HDF5_USE_FILE_LOCKING"} | preloaded
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
    )


# ENOLCK, EAGAIN, EOPNOTSUPP, and ENOTSUPP of the kernel, which NFS and Lustre were seen to answer with.
@pytest.mark.parametrize("number", [37, 11, 95, 524])
def test_a_plain_open_fails_there(number: int, no_locks: Path, tmp_path: Path) -> None:
    """The guard of the next test: without what this package does, HDF5 refuses."""
    done = run(no_locks, number, OPENS, tmp_path / "a.h5")
    assert f"unable to lock file, errno = {number}" in done.stderr


@pytest.mark.parametrize("number", [37, 11, 95, 524])
def test_this_packages_files_open_there(number: int, no_locks: Path, tmp_path: Path) -> None:
    code = "import sys; from id_scaling.storage.checksums import open_hdf5; open_hdf5(sys.argv[1], 'w').close()"
    done = run(no_locks, number, code, tmp_path / "a.h5", HDF5_USE_FILE_LOCKING="BEST_EFFORT")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_whole_study_runs_there(no_locks: Path, tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "model")
    save_text(tmp_path / "text")
    done = run(no_locks, 37, STUDY, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["block read", "True"]
