"""What is said of a study before it starts, against what it then takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import NOT_COUNTED, ROOT, Workflow, study

from id_scaling.cli.costs import Contexts, contexts_of, count_jobs, n_submissions, rows_of
from id_scaling.cli.main import main
from id_scaling.cli.model_size import shape_of
from id_scaling.cli.plan import duration, report, scaled
from id_scaling.models.modules import SiteRequest
from id_scaling.sources import bundled
from id_scaling.storage.layout import weights_folder
from id_scaling.storage.records import write_record
from id_scaling.study.study import EXTRACT_MINUTES, Study

LLAMA = SiteRequest(None, ("block", "attn", "mlp"), ("emb", "unemb"), None)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand where the study's folder is, as its paths are relative to it."""
    monkeypatch.chdir(tmp_path)


def save_config(folder: Path, **config: Any) -> Path:
    """Write a model's config and nothing else of it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def contexts(config: dict[str, Any]) -> Contexts | None:
    """Return how many contexts the first shard of a study is said to give."""
    made = Study(config)
    run = made.runs[0]
    return contexts_of(made, run)


# ---- contexts, bytes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_saved", [False, True])
@pytest.mark.workflow
def test_bytes_are_those_of_the_run(tmp_path: Path, tiny_llama: Path, text_folder: Path, is_saved: bool) -> None:
    """To 10 %: of a run this small some 5 % is what HDF5 adds."""
    saved = {"save_cache_tensors": is_saved, "save_mean_tensors": is_saved, "save_fp": "float32"}
    saved |= {"save_positions": list(range(-40, 0)), "clouds": ["context", "position"]} if is_saved else {}
    config = study(tiny_llama, text_folder, cacheing_config={"save_IDs_list": ["mle"], **saved})
    workflow = Workflow(tmp_path, config)
    workflow.run()
    [row], [manifest] = rows_of(Study(config)), (workflow.session / "runs").rglob("manifest.json")
    n_contexts = json.loads(manifest.read_text())["n_contexts"]
    assert row.contexts == [Contexts(n_contexts)]
    [cost] = row.costs
    sizes = {path: path.stat().st_size for path in manifest.parent.rglob("*") if path.is_file()}
    assert cost.disk == pytest.approx(sum(sizes.values()), rel=0.1)
    assert cost.largest == pytest.approx(max(sizes.values()), rel=0.1)
    assert cost.is_done
    assert "1 run extracted already" in report(Study(config), 100, 1)


def test_contexts_have_a_bound_where_documents_and_chunks_have_one(tiny_llama: Path) -> None:
    config = study(tiny_llama, Path("owner/texts"), dataset_config__max_dataset_size=7)
    assert contexts(config) == (14, "≤")


@pytest.mark.parametrize(("max_contexts", "expected"), [(5, 5), (100, 14)])
def test_contexts_are_no_more_than_are_asked_for(max_contexts: int, expected: int, tiny_llama: Path) -> None:
    changes = {"dataset_config__max_dataset_size": 7, "dataset_config__max_contexts": max_contexts}
    assert contexts(study(tiny_llama, Path("owner/texts"), **changes)) == (expected, "≤")


def test_contexts_of_a_local_shard_are_known_from_its_size(tmp_path: Path, tiny_llama: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "0.txt").write_text("a" * 64 * 4 * 9)
    config = study(tiny_llama, tmp_path / "texts", dataset_config__max_dataset_size=1000)
    assert contexts(config) == (9, "≈")
    assert "4 bytes a token" in report(Study(config), 100, 1)


def test_contexts_of_the_hub_without_a_bound_are_unknown_and_the_report_says_what_to_do(tiny_llama: Path) -> None:
    config = study(tiny_llama, Path("owner/texts"))
    assert contexts(config) is None
    text = report(Study(config), 100, 1)
    assert re.search(r"unknown: \S+: how many contexts its shards give; set\s+max_contexts", text)
    assert "the rest   unknown" in text


@pytest.mark.workflow
def test_contexts_cut_under_other_settings_do_not_count(tmp_path: Path, tiny_llama: Path, text_folder: Path) -> None:
    config = study(tiny_llama, text_folder, dataset_config__max_dataset_size=5)
    Workflow(tmp_path, config).run("--until", "chunk_dataset")
    assert contexts(config).sign == ""
    assert contexts(study(tiny_llama, text_folder, dataset_config__max_dataset_size=4)).sign != ""


# ---- models ------------------------------------------------------------------------------------------------------


def test_flops_of_a_llama_are_those_of_its_products(tiny_llama: Path) -> None:
    """2 x weights x tokens of each matrix, and 2 x 2 x tokens² x width of attention."""
    n_tokens, width, inner, layers, n_shared = 64, 32, 64, 2, 2
    n_vocabulary = json.loads((tiny_llama / "config.json").read_text())["vocab_size"]
    of_layer = 2 * width * width + 2 * width * (n_shared * 8) + 3 * width * inner
    weights = layers * of_layer + width * n_vocabulary
    attention = layers * 4 * n_tokens**2 * width
    shape = shape_of(tiny_llama, LLAMA, [n_tokens])
    assert shape.is_counted
    # Versions of torch may count the angles of positions, too.
    assert shape.forward[n_tokens] == pytest.approx(2 * weights * n_tokens + attention, rel=1e-3)
    norms = (2 * layers + 1) * width
    assert shape.n_parameters == weights + width * n_vocabulary + norms


def test_widths_are_those_of_the_modules(tiny_llama: Path) -> None:
    mapping = {"up": "model.layers.{layer}.mlp.up_proj", "unemb": "model.norm"}
    shape = shape_of(tiny_llama, SiteRequest(None, ("up",), ("unemb",), mapping), [64])
    assert {(site.module, site.layer): width for site, width in shape.widths.items()} == {
        ("up", 0): 64,
        ("up", 1): 64,
        ("unemb", None): 32,
    }


def test_experts_are_not_counted_but_said_to_be_all_used(tmp_path: Path, text_folder: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "num_local_experts": 4, "vocab_size": 100, "max_position_embeddings": 128}
    folder = save_config(tmp_path / "model", model_type="mixtral", **sizes, **more)
    shape = shape_of(folder, LLAMA, [64])
    assert (shape.is_counted, shape.forward[64]) == (False, 2 * shape.n_parameters * 64)


def test_embedded_default_is_known_before_anything_is_prepared(capsys: pytest.CaptureFixture) -> None:
    """134,515,008 is what is published of SmolLM2-135M."""
    assert main(["plan", str(ROOT / "config" / "config.yaml")]) == 0
    text = capsys.readouterr().out
    assert re.search(r"smollm2-135m-instruct +135 M +30 +92 +1 +≤ 24 ", text)
    assert "538 MB to fetch or make in resources" in text  # 4 bytes a parameter
    assert "prepare_model 1" in text


def test_config_of_the_embedded_model_is_that_of_the_prepared_one(resources: Path) -> None:
    config = json.loads((resources / "smollm2-135m-instruct" / "config.json").read_text())
    expected = bundled.config_of("smollm2-135m-instruct")
    assert {key: config[key] for key in expected} == expected


def test_models_to_be_trained_are_known_before_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """562,176 + 1,063,296 + 2,511,360 parameters of 4 bytes at 6 checkpoints: 99.3 MB."""
    monkeypatch.chdir(tmp_path)
    assert main(["plan", str(ROOT / "config" / "training.yaml")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(r"sotu-neox-160 2.51 M 6 20 6 ≤ 24 ", text)
    assert "99.3 MB to fetch or train in resources" in text
    assert (
        "prepare_dataset 1, train_tokenizer 1, train_model 3, fetch_dataset 1, fetch_model 18, fetch_tokenizer 1"
        in text
    )
    assert "sotu-neox-64, sotu-neox-96, sotu-neox-160: trained first" in text
    # 18 extractions, 18 groups of estimates, 4 trainings; chunk, summarize, plot
    assert "43 submissions" in text


def planned_offline(cache: Path) -> str:
    """Return the report on Pythia without a network."""
    code = "import sys; from id_scaling.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "plan", str(ROOT / "config" / "pythia.yaml")]
    environment = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    return done.stdout


def test_models_of_the_hub_are_unknown_without_network_and_the_rest_is_shown(tmp_path: Path) -> None:
    text = planned_offline(tmp_path / "empty")
    assert "pythia: 1,232 runs, 23,427 jobs" in text
    assert "2,474 submissions" in text
    assert "at least 2.7 h at 4 s each" in text
    assert "unknown: model EleutherAI/pythia-70m at step0, model" in text
    assert "unset it where there is a network" in " ".join(text.split())


def test_totals_are_lower_bounds_where_one_model_alone_is_known(tmp_path: Path) -> None:
    """Its config is in the hub's cache at one checkpoint."""
    repository = tmp_path / "hf" / "hub" / "models--EleutherAI--pythia-70m"
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8}
    save_config(repository / "snapshots" / ("0" * 40), model_type="gpt_neox", vocab_size=50304, **sizes)
    (repository / "refs").mkdir()
    (repository / "refs" / "step1000").write_text("0" * 40)
    text = planned_offline(tmp_path / "hf")
    assert re.search(r"pythia-70m +70.4 M +6 +19 +154 +≤ 200 ", text)
    assert re.search(r"^disk +at least \d", text, flags=re.MULTILINE)
    assert re.search(r"^weights +at least 43.4 GB to fetch", text, flags=re.MULTILINE)  # 154 x 70.4 M x 4 bytes
    assert "where those of a run go when it is extracted" in text
    assert "unknown: model EleutherAI/pythia-160m" in text


def test_of_a_model_of_the_hub_the_settings_alone_are_fetched_and_weights_are_as_large_as_the_hub_says(
    tmp_path: Path, tiny_llama: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two checkpoints, one of them fetched already."""
    files = [SimpleNamespace(rfilename=name, size=1000) for name in ("model.safetensors", "pytorch_model.bin")]
    asked = []

    def snapshot_download(*_: str, allow_patterns: list[str], **__: str) -> str:
        asked.append(allow_patterns)
        return str(tiny_llama)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(siblings=files))
    config = study(Path("owner/model"), text_folder, model_config__model_checkpoint=["step0", "step1"])
    [row] = rows_of(Study(config))
    assert {pattern for patterns in asked for pattern in patterns} == {"*.json", "*.model", "*.txt"}
    assert row.weights.n_bytes == 2 * 1000
    # Its identity is no weights; those that are there for a run are.
    write_record(Study(config).identity_path("owner--model", "step1"), {"path": None})
    assert rows_of(Study(config))[0].weights.n_bytes == 2 * 1000
    [run] = [one for one in Study(config).runs if one.checkpoint == "step1"]
    weights_folder(Path(Study(config).session), run).mkdir(parents=True)
    assert rows_of(Study(config))[0].weights.n_bytes == 1000


# ---- jobs --------------------------------------------------------------------------------------------------------


def test_jobs_of_models_to_be_trained_are_those_of_a_dry_run(tmp_path: Path) -> None:
    """`tests/workflow/test_dag.py` compares those of the other studies."""
    config = yaml.safe_load((ROOT / "config" / "training.yaml").read_text())
    assert count_jobs(Study(config)) == Workflow(tmp_path, config).planned()


def test_text_that_a_model_is_trained_on_is_prepared_whatever_is_studied(tmp_path: Path, text_folder: Path) -> None:
    config = study("sotu-neox-64", text_folder, model_config__model_checkpoint=["step0"])
    jobs = count_jobs(Study(config))
    assert {rule: jobs[rule] for rule in ("prepare_dataset", "train_tokenizer", "train_model")} == dict.fromkeys(
        ("prepare_dataset", "train_tokenizer", "train_model"), 1
    )
    assert jobs == Workflow(tmp_path, config).planned()


def test_jobs_and_submissions_of_several_runs_are_those_of_a_dry_run(workflow: Workflow) -> None:
    workflow.config["dataset_config"]["dataset_subset"] = [0, 1]
    workflow.write()
    workflow.profile, workflow.options = "slurm", ()
    output = workflow.run("--dry-run")
    table = re.findall(r"^(\w+) +(\d+)$", output, flags=re.MULTILINE)
    jobs = {rule: int(number) for rule, number in table if rule not in NOT_COUNTED}
    assert count_jobs(Study(workflow.config)) == jobs
    # What fetches is local, and so is what links the tables of a batch.
    submitted = re.findall(r"^rule (?!fetch_|all:|estimate_dimension:)(\w+):$", output, flags=re.MULTILINE)
    assert submitted.count("estimate_batch") == 2
    assert n_submissions(Study(workflow.config)) == len(submitted) == 2 + 2 + 2 + 1 + 1


def test_the_estimates_of_a_run_are_one_submission_however_many_tables_they_are(workflow: Workflow) -> None:
    workflow.config["cacheing_config"]["save_IDs_list"] = [f"mle_k{k}" for k in range(4, 33)]
    made = Study(workflow.config)
    assert count_jobs(made)["estimate_dimension"] == 5 * 29
    # Of cutting, the extraction, its estimates, the summary and the figures.
    assert n_submissions(made) == 1 + 1 + 1 + 1 + 1


def test_jobs_and_submissions_of_controls_are_those_of_a_dry_run(workflow: Workflow) -> None:
    """Two shards: each is cut once, for `none` and for both of the others."""
    workflow.config["dataset_config"]["dataset_subset"] = [0, 1]
    workflow.config["controls"] = ["none", "shuffle-1", "shuffle-5"]
    workflow.write()
    made = Study(workflow.config)
    assert count_jobs(made) == workflow.planned()
    assert {rule: count_jobs(made)[rule] for rule in ("chunk_dataset", "shuffle_contexts", "extract_activations")} == {
        "chunk_dataset": 2,
        "shuffle_contexts": 4,
        "extract_activations": 6,
    }
    # Of cutting, shuffling, extractions, groups of estimates, the summary and the figures.
    assert n_submissions(made) == 2 + 4 + 6 + 6 + 1 + 1


@pytest.mark.workflow
def test_a_control_alone_is_counted_with_the_plain_contexts_it_is_made_of(workflow: Workflow) -> None:
    workflow.config["controls"] = "shuffle-2"
    workflow.write()
    assert count_jobs(Study(workflow.config)) == workflow.planned()
    workflow.run("--until", "chunk_dataset")
    [row] = rows_of(Study(workflow.config))
    assert [one.sign for one in row.contexts] == [""]


def test_study_without_estimates_ends_with_its_runs(tmp_path: Path, tiny_llama: Path, text_folder: Path) -> None:
    config = study(tiny_llama, text_folder, cacheing_config__save_IDs=False)
    assert count_jobs(Study(config)) == Workflow(tmp_path, config).planned()
    assert n_submissions(Study(config)) == 2


# ---- warnings, words ---------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_a_warning_and_no_error(
    tmp_path: Path, tiny_llama: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study(tiny_llama, text_folder)))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, 1000))
    assert main(["plan", "study.yaml"]) == 0
    found = re.search(r"WARNING: the disk is too small: (.*) needed, 1 kB free", capsys.readouterr().out)
    assert found[1].endswith("MB")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, 1e15))
    assert main(["plan", "study.yaml"]) == 0
    assert "WARNING" not in capsys.readouterr().out


def test_clouds_of_all_contexts_cost_the_square_of_these(tiny_llama: Path, text_folder: Path) -> None:
    """Of 32 dimensions at 2 x 3 + 2 sites; a scaled view takes five products."""
    kept = {"save_mean_tensors": True, "clouds": ["mean"], "save_IDs_list": ["mle"]}
    costs = []
    for views in ({"one": {}, "few": {"decimate": 30}}, {"one": {}, "scaled": {"preprocess": "standardised"}}):
        [row] = rows_of(Study(study(tiny_llama, text_folder, cacheing_config={**kept, "views": views})))
        ([cost], [contexts_of_run]) = row.costs, row.contexts
        costs.append(cost.of_run / contexts_of_run.number**2 / 32)
    assert costs == [8, 48]


def test_each_length_has_costs_of_its_own_which_are_those_of_it_alone(tiny_llama: Path, text_folder: Path) -> None:
    both = Study(study(tiny_llama, text_folder, ctx_len=[32, 128]))
    [row] = rows_of(both)
    alone = [rows_of(Study(study(tiny_llama, text_folder, ctx_len=n)))[0] for n in (32, 128)]
    assert row.costs == [cost for one in alone for cost in one.costs]
    assert [part.costs for part in row.by_length()] == [one.costs for one in alone]
    said = report(both, 100, 1)
    # Of a name, the length, what the model is, how many runs, and how many contexts each has.
    table = re.findall(r"tiny-llama +([\d,]+) +\S+ k +2 +8 +1 +≈ (\d+) ", said)
    assert [int(n) for n, _ in table] == [32, 128]
    assert int(table[0][1]) == pytest.approx(4 * int(table[1][1]), abs=4)
    assert "ctx_len" not in report(Study(study(tiny_llama, text_folder)), 100, 1)


def test_jobs_and_submissions_of_several_lengths_are_those_of_a_dry_run(workflow: Workflow) -> None:
    workflow.config |= {"ctx_len": [48, 64], "controls": ["none", "shuffle-1"]}
    workflow.write()
    assert count_jobs(Study(workflow.config)) == workflow.planned()
    # Of cutting, shuffling, extractions, groups of estimates, the summary and the figures.
    assert n_submissions(Study(workflow.config)) == 2 + 2 + 4 + 4 + 1 + 1


def test_a_run_longer_than_its_job_may_take_is_a_warning(tiny_llama: Path, text_folder: Path) -> None:
    made = Study(study(tiny_llama, text_folder))
    [row] = rows_of(made)
    flops = row.costs[0].forward + row.costs[0].search
    limit = flops / (60 * EXTRACT_MINUTES) / 1e12
    assert "WARNING" not in report(made, 1.01 * limit, 1)
    assert "its job may take 12 h" in report(made, 0.99 * limit, 1)


def test_gpus_share_the_time(tiny_llama: Path, text_folder: Path) -> None:
    made = Study(study(tiny_llama, text_folder))
    seconds = sum(cost.forward + cost.search for cost in rows_of(made)[0].costs) / 1e12
    assert f"{duration(1e6 * seconds)} ({duration(1e6 * seconds / 4)} on 4 GPUs)" in report(made, 1e-6, 4)


@pytest.mark.parametrize(("option", "value"), [("--tflops", "0"), ("--tflops", "nan"), ("--gpus", "0")])
def test_devices_that_do_nothing_are_refused(option: str, value: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "study.yaml", option, value])
    assert f"found {value}" in capsys.readouterr().err


def test_numbers_have_three_digits_and_a_unit() -> None:
    assert [scaled(value, "B") for value in (0, 999, 999.6, 2.4149e9, 3e19)] == [
        "0 B",
        "999 B",
        "1 kB",
        "2.41 GB",
        "30 EB",
    ]
    assert [duration(seconds) for seconds in (0, 59, 60, 5400, 1e7)] == ["0.0 s", "59 s", "1.0 min", "1.5 h", "2,778 h"]
