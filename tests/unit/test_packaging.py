"""What an install resolves to: ranges, pins and the conda environment agree."""

from __future__ import annotations

import re
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from hatchling.build import build_wheel
from packaging.requirements import Requirement

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def name_of(requirement: str) -> str:
    """Return the name of a requirement as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", Requirement(requirement).name).lower()


def unportable(pins: list[str]) -> list[str]:
    """Return the lines that are no plain `name==version`: a local version, a URL, a path, a range."""
    return [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", pin)]


def test_every_pin_is_a_plain_version():
    assert unportable(PINS) == []


@pytest.mark.parametrize(
    "pin", ["torch==2.13.0+cpu", "torch @ https://example.org/torch.whl", "-e git+https://x/y#egg=y", "torch>=2"]
)
def test_a_pin_that_holds_on_one_machine_alone_is_noticed(pin: str):
    assert unportable([pin]) == [pin]


def test_torch_is_pinned_to_the_version_with_a_cpu_build():
    assert "torch==2.13.0" in PINS


def test_every_requirement_is_pinned_within_its_range():
    pinned = {name_of(pin): pin.split("==")[1] for pin in PINS}
    for requirement in [*PROJECT["dependencies"], *EXTRAS["workflow"], *EXTRAS["dev"]]:
        assert pinned[name_of(requirement)] in Requirement(requirement).specifier, requirement


def test_the_conda_environment_has_the_requirements_of_the_workflow():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(part["pip"] for part in environment["dependencies"] if isinstance(part, dict))
    assert sorted(pip) == sorted([*PROJECT["dependencies"], *EXTRAS["workflow"]])
    python = next(part for part in environment["dependencies"] if str(part).startswith("python"))
    assert python.removeprefix("python") == PROJECT["requires-python"]


def test_the_version_is_the_packages_own():
    import id_scaling

    assert id_scaling.__version__ == PROJECT["version"]


def test_a_wheel_has_every_file_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / build_wheel(str(tmp_path))) as wheel:
        packed = {name: wheel.read(name) for name in wheel.namelist() if name.startswith("id_scaling/")}
    files = (path for path in (ROOT / "id_scaling").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert packed == {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in files}
    assert "id_scaling/plots/templates/report.css" in packed


def test_no_file_speaks_of_the_machine_it_was_written_on():
    """Paths of a home folder, or of a temporary one, hold nowhere else."""
    suffixes = {".py", ".smk", ".md", ".yaml", ".yml", ".toml", ".txt", ".rst"}
    files = [path for path in ROOT.rglob("*") if path.suffix in suffixes or path.name == "Snakefile"]
    ours = [path for path in files if not {".venv", "results", "resources", ".snakemake"} & set(path.parts)]
    for path in ours:
        if path.name != "test_packaging.py":
            assert not re.search(r"/(home|root|tmp)/\w", path.read_text()), path
