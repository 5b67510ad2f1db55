"""Published profiles beside ours, on a stand-in for the models that are too large for here."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from conftest import ROOT, study
from scipy import stats
from verbs import run_study

from id_scaling.cli.main import main
from id_scaling.cli.reproduce import compared, read_reproduction, report, run
from id_scaling.results.load import load_contexts, load_summary
from id_scaling.study.study import Study

TOKENS_2025 = ROOT / "config" / "reproduce" / "tokens-2025.yaml"


@pytest.fixture(scope="module")
def made(tiny_llama: Path, text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A reproduction whose protocol has been run: of a stand-in for the models of `tokens-2025`."""
    said = yaml.safe_load(TOKENS_2025.read_text())
    folder = tmp_path_factory.mktemp("reproduce")
    protocol = study(tiny_llama, text_folder, session_path=str(folder / "session"), controls=["none", "shuffle-5"])
    protocol["cacheing_config"] = said["protocol"]["cacheing_config"]
    run_study(protocol)
    profiles = [
        {"model": str(tiny_llama), "control": "none", "estimator": "twoNN_ml", "mean": [3.0, 9.0]},
        {"model": str(tiny_llama), "control": "shuffle-5", "estimator": "gride_n2", "mean": [4.0, 5.0]},
    ]
    losses = {str(tiny_llama): [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
    published = {"view": "published", "n_contexts": 50, "profiles": profiles, "losses": losses}
    return {"protocol": protocol, "published": published}


def save(made: dict[str, Any], folder: Path, **changes: Any) -> Path:
    """Save a reproduction, with parts of what was published replaced."""
    path = folder / "reproduction.yaml"
    path.write_text(yaml.safe_dump({**made, "published": {**made["published"], **changes}}))
    return path


def test_ours_stand_beside_theirs(made: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["reproduce", str(save(made, tmp_path)), "--no-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    rows = load_contexts(made["protocol"]["session_path"], control="none", estimator="twoNN_ml")
    rows = rows.filter(view="published", status="ok")
    # Hidden state 1 is the first block's output, 2, the last, that of the final norm.
    values = [rows.filter(module="block", layer=0)["value"], rows.filter(module="unemb")["value"]]
    at = said.index(next(line for line in said if "none · twoNN_ml" in line))
    for number, (line, ours, theirs) in enumerate(zip(said[at + 2 : at + 4], values, (3.0, 9.0), strict=True), 1):
        # The test of two means with one spread, of which theirs is of 50.
        z = (ours.mean() - theirs) / (ours.std() * (1 / len(ours) + 1 / 50) ** 0.5)
        expected = [str(number), f"{ours.mean():.2f}", f"{theirs:.2f}", f"{ours.mean() - theirs:.2f}", f"{z:.1f}"]
        assert line.split() == expected
        assert z == pytest.approx(
            stats.ttest_ind_from_stats(ours.mean(), ours.std(), len(ours), theirs, ours.std(), 50).statistic, rel=1e-9
        )
    losses = said[next(n for n, line in enumerate(said) if "shuffle-5 · loss" in line) + 1].split()
    assert losses[1] == "6.00"
    assert "2.00" not in {line.split()[1] for line in said if len(line.split()) == 3}  # shuffle-1 was not run


def test_a_mean_that_is_not_there_is_a_dash(made: dict, tmp_path: Path) -> None:
    summary = load_summary(made["protocol"]["session_path"]).with_columns(mean=pl.lit(None, pl.Float64))
    said = report(compared(summary, made["published"])).splitlines()
    at = said.index(next(line for line in said if "none · twoNN_ml" in line))
    assert said[at].endswith("no estimate of ours")
    assert said[at + 2].split() == ["1", "–", "3.00", "–", "–"]


def test_a_profile_of_another_depth_is_refused(made: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    profiles = [{**made["published"]["profiles"][0], "mean": [1.0, 2.0, 3.0]}]
    assert main(["reproduce", str(save(made, tmp_path, profiles=profiles)), "--no-run"]) == 1
    assert "3 hidden states are published, found 2" in capsys.readouterr().err


def test_the_protocol_is_what_snakemake_runs(made: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def note(command: list[str], check: bool) -> subprocess.CompletedProcess:
        seen.append((command, yaml.safe_load(Path(command[-1]).read_text())))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", note)
    ours = Study(made["protocol"])
    run(ours, "profiles/slurm")
    ((command, config),) = seen
    assert command[1:-1] == ["-m", "snakemake", "--profile", "profiles/slurm", "--configfile"]
    theirs = Study(config)
    assert [theirs.extract_settings(one) for one in theirs.runs] == [ours.extract_settings(one) for one in ours.runs]
    assert theirs.summarize_settings() == ours.summarize_settings()


def test_the_protocol_of_tokens_2025_is_a_study_of_the_models_asked_for() -> None:
    whole, published = read_reproduction(TOKENS_2025, yaml.safe_load(TOKENS_2025.read_text()), None)
    assert len(whole.runs) == 3 * 6
    assert {profile["model"] for profile in published["profiles"]} == set(published["losses"])
    assert [len(profile["mean"]) for profile in published["profiles"]] == [32] * 5
    one, published = read_reproduction(TOKENS_2025, yaml.safe_load(TOKENS_2025.read_text()), ["EleutherAI/pythia-6.9b"])
    assert [model.model_name for model in one.models.values()] == ["EleutherAI/pythia-6.9b"]
    assert len(published["profiles"]) == 3


def test_a_protocol_of_several_lengths_is_refused(made: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = save({**made, "protocol": {**made["protocol"], "ctx_len": [64, 96]}}, tmp_path)
    assert main(["reproduce", str(path), "--no-run"]) == 1
    assert "protocol.ctx_len: found 64, 96, expected one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1", "found a, expected the keys protocol and published"),
        ("- a", "found no mapping of keys, expected a configuration"),
        ("{", "cannot be read as YAML"),
    ],
)
def test_a_file_of_something_else_is_refused(text: str, words: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "other.yaml").write_text(text)
    assert main(["reproduce", str(tmp_path / "other.yaml")]) == 1
    assert words in capsys.readouterr().err


def test_a_model_that_is_not_of_the_paper_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert main(["reproduce", str(TOKENS_2025), "--only", "gpt2"]) == 1
    assert "--only: gpt2 is no model of" in capsys.readouterr().err
