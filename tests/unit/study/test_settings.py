"""Which stages' settings each key of the configuration changes: a change of a key runs these, and what follows them."""

from __future__ import annotations

import ast
import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import study
from test_fingerprint import edit, forget, module, package  # noqa: F401  the last is a fixture

from id_scaling.estimators.registry import GRAMMAR, definition_of
from id_scaling.study.config import sections
from id_scaling.study.fingerprint import ROOTS, fingerprint
from id_scaling.study.study import Study

FETCH, CONTEXTS, EXTRACTION = "fetch", "contexts", "extraction"
ESTIMATE, SUMMARY, FIGURES = "estimate", "summary", "figures"
EXTRACTED = {EXTRACTION, SUMMARY}  # a summary refuses estimates of other extractions than its own
CHAIN = {EXTRACTION, ESTIMATE, SUMMARY}  # of jobs that were not there before
TENSORS = {"cacheing_config.save_cache_tensors": True}
DECIMATED = {"cacheing_config.views": {"default": {"decimate": 40}, "origin": {}}}


@dataclass(frozen=True)
class Row:
    """Another value of a key, the stages whose settings it changes, and what else the configuration has to say."""

    value: Any
    stages: set[str]
    given: dict[str, Any] = field(default_factory=dict)


# What is said of how jobs run, or of what they refuse, is in no settings.
NOTHING: set[str] = set()
KEYS = {
    "session_name": Row("another", NOTHING),
    "session_path": Row("elsewhere", NOTHING),
    "ctx_len": Row([64, 128], {CONTEXTS, *CHAIN, FIGURES}),
    "add_bos": Row("never", {CONTEXTS}),
    "controls": Row(["none", "shuffle-1"], {CONTEXTS, *CHAIN, FIGURES}),
    "family_per": Row("study", {SUMMARY}),
    "batch_size": Row(1, NOTHING),
    "multiprocessing": Row(False, NOTHING, {"multiprocessing_num_cpus": 2}),
    "multiprocessing_num_cpus": Row(2, NOTHING),
    # Of estimators that read points.
    "max_seconds_per_cloud": Row(
        1.0, {ESTIMATE}, TENSORS | {"ctx_len": 128, "cacheing_config.save_IDs_list": ["phd_text"]}
    ),
    "allow_identical_checkpoints": Row(True, NOTHING),
    "keep_weights": Row(True, NOTHING),
    "verbose": Row(True, NOTHING),
    "model_config.model_name": Row("owner/other", {FETCH, CONTEXTS, *CHAIN}),
    "model_config.model_checkpoint": Row(["step1", "step2"], {FETCH, *CHAIN, FIGURES}),
    "model_config.use_accelerator": Row(True, NOTHING),
    "model_config.module_name_mapping": Row({"block": "a.{layer}", "unemb": "b"}, EXTRACTED),
    "model_config.tokenizer": Row("owner/other", {FETCH, CONTEXTS, SUMMARY}),
    "model_config.dtype": Row("float32", EXTRACTED),
    "model_config.allow_pickle": Row(True, NOTHING),
    "dataset_config.dataset_name": Row("owner/others", {FETCH, CONTEXTS, *CHAIN}),
    "dataset_config.dataset_subset": Row([0, 1], {FETCH, CONTEXTS, *CHAIN}),
    "dataset_config.max_dataset_size": Row(9, {CONTEXTS}),
    "dataset_config.max_contexts": Row(9, {CONTEXTS}),
    "dataset_config.text_column": Row("body", {CONTEXTS}),
    "dataset_config.id_column": Row("name", {CONTEXTS}),
    "dataset_config.max_broken_share": Row(0.5, NOTHING),
    "dataset_config.allow_special_tokens": Row(True, {CONTEXTS}),
    "dataset_config.group_by": Row(["year"], {SUMMARY}),
    "dataset_config.filter_and_chunk_config.min_chunks_from_a_document": Row(2, {CONTEXTS}),
    "dataset_config.filter_and_chunk_config.max_chunks_from_a_document": Row(3, {CONTEXTS}),
    "cacheing_config.layer_idx_list": Row([0, 1], EXTRACTED),
    "cacheing_config.module_inblock_keys": Row(["block", "mlp"], CHAIN),
    "cacheing_config.module_outblock_keys": Row([], CHAIN),
    "cacheing_config.save_fp": Row("float32", EXTRACTED, TENSORS),
    "cacheing_config.save_cache_tensors": Row(True, EXTRACTED),
    "cacheing_config.save_mean_tensors": Row(True, EXTRACTED),
    "cacheing_config.save_positions": Row([-1], EXTRACTED),
    "cacheing_config.save_IDs": Row(False, {ESTIMATE, SUMMARY, FIGURES}),
    "cacheing_config.save_IDs_list": Row(["mle", "mind_ml", "twoNN_f20"], {ESTIMATE, SUMMARY}),
    "cacheing_config.clouds": Row(
        ["context", "mean"], {ESTIMATE, SUMMARY}, {"cacheing_config.save_mean_tensors": True}
    ),
    "cacheing_config.save_local_IDs": Row(True, {ESTIMATE}),
    "cacheing_config.views": Row({"default": {}, "another": {}}, {EXTRACTION, ESTIMATE, SUMMARY}),
    "cacheing_config.cloud_statistics": Row(["moments"], EXTRACTED),
    "cacheing_config.neighbor_ranks": Row(list(range(1, 33)), EXTRACTED),
    "cacheing_config.views.default.skip_first_tokens": Row(2, EXTRACTED),
    "cacheing_config.views.default.duplicates": Row("keep", EXTRACTED),
    "cacheing_config.views.default.decimate": Row(40, EXTRACTED),
    "cacheing_config.views.default.draws": Row(2, {EXTRACTION, ESTIMATE, SUMMARY}, DECIMATED),
    "cacheing_config.views.default.preprocess": Row("unit_norm", EXTRACTED),
    "cacheing_config.views.default.exclude_window": Row(1, EXTRACTED),
    "cacheing_config.views.default.null_cloud": Row("gaussian", EXTRACTED),
    "cacheing_config.views.default.layers": Row([0], EXTRACTED),
}
SECTIONS = ("model_config", "dataset_config", "cacheing_config", "dataset_config.filter_and_chunk_config")


def base() -> dict[str, Any]:
    """Return a study of the hub's model and texts, which says each of its views."""
    config = study(Path("owner/model"), Path("owner/texts"))
    config["cacheing_config"] |= {
        "module_inblock_keys": ["block"],
        "module_outblock_keys": ["unemb"],
        "views": {"default": {}, "origin": {"skip_first_tokens": 0}},
    }
    return config


def put(config: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a key that is dotted inside sections."""
    *parents, key = dotted.split(".")
    for parent in parents:
        config = config.setdefault(parent, {})
    config[key] = copy.deepcopy(value)


def settings_of(config: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return the settings of every job, by its output in the session, by stage."""
    made = Study(copy.deepcopy(config))
    models = {(run.model, run.checkpoint) for run in made.runs}
    shards = {(run.dataset, str(run.subset)) for run in made.runs}
    return {
        FETCH: {
            **{f"models/{names}": made.fetch_model_settings(*names) for names in models},
            **{f"tokenizers/{name}": made.fetch_tokenizer_settings(name) for name in made.tokenizers},
            **{f"datasets/{names}": made.fetch_dataset_settings(*names) for names in shards},
        },
        # Models of one tokenizer and all their checkpoints share contexts.
        CONTEXTS: {
            f"{run.dataset} {run.subset} {made.tokenizer_of(run.model)} {run.ctx_len} {run.control}": settings
            for run in made.runs
            for settings in [made.contexts_settings(run)]
        },
        EXTRACTION: {f"{run}": made.extract_settings(run) for run in made.runs},
        ESTIMATE: {
            f"{run} {module} {name}": made.estimate_settings(run, module, name)
            for run in made.runs
            for module in made.modules
            for name in made.estimators
        },
        SUMMARY: {"summary": made.summarize_settings()} if made.estimators else {},
        FIGURES: {Path(path).name: made.plot_settings() for path in made.figures()} if made.estimators else {},
    }


def known_keys() -> Iterator[str]:
    """Yield every key of the configuration that is no section itself."""
    for prefix, section in sections():
        for name, value in section.model_fields.items():
            key = prefix + (value.alias or name)
            if key not in SECTIONS:
                yield key.replace("NAME", "default")


def test_every_key_has_a_row() -> None:
    assert sorted(KEYS) == sorted(known_keys())


@pytest.mark.parametrize("key", KEYS)
def test_a_key_changes_the_settings_of_just_the_stages_that_read_it(key: str) -> None:
    row, config = KEYS[key], base()
    for name, value in row.given.items():
        put(config, name, value)
    before = settings_of(config)
    put(config, key, row.value)
    after = settings_of(config)
    assert {stage for stage in before if before[stage] != after[stage]} == row.stages


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cacheing_config.save_IDs_list", ["twoNN_f10", "mind_ml", "mle_k20"]),
        ("cacheing_config.clouds", ["mean", "context"]),
        ("cacheing_config.module_inblock_keys", ["mlp", "block"]),
        ("cacheing_config.save_positions", [63, 0]),
        ("cacheing_config.cloud_statistics", ["overlap", "correlation", "shares", "cosine", "moments"]),
        ("cacheing_config.neighbor_ranks", list(range(33, 0, -1))),
        ("cacheing_config.layer_idx_list", [1, 0]),
        ("model_config.tokenizer", "owner/model"),
        ("controls", "none"),
        ("ctx_len", 64),
    ],
)
def test_another_spelling_of_a_value_changes_the_settings_of_no_run(key: str, value: Any) -> None:
    """Order is that of rows in the summary; of names for one thing, all are the same."""
    given = {
        "cacheing_config.save_mean_tensors": True,
        "cacheing_config.clouds": ["context", "mean"],
        "cacheing_config.module_inblock_keys": ["block", "mlp"],
        "cacheing_config.save_positions": [0, -1],
        "cacheing_config.neighbor_ranks": list(range(1, 34)),
        "cacheing_config.layer_idx_list": [0, 1],
    }
    config = base()
    for name, at_first in given.items():
        put(config, name, at_first)
    before = settings_of(config)
    put(config, key, value)
    after = settings_of(config)
    assert {stage for stage in before if before[stage] != after[stage]} <= {SUMMARY}


# ---- estimators ------------------------------------------------------------------------------------------------

NAMES = [rule.example for rule in GRAMMAR]
FAMILIES = sorted({rule.module for rule in GRAMMAR})


def of_estimators() -> dict[str, dict[str, Any]]:
    """Return the settings of a job of each form of names, as a study of all of them gives them now."""
    forget()
    config = base() | {"ctx_len": 512}
    put(config, "cacheing_config.save_cache_tensors", True)
    put(config, "cacheing_config.cloud_statistics", ["moments", "correlation", "spectrum"])
    put(config, "cacheing_config.neighbor_ranks", list(range(1, 65)))
    put(config, "cacheing_config.save_IDs_list", NAMES)
    made = Study(config)
    (run,) = made.runs
    return {name: json.loads(made.estimate_settings(run, "block", name)) for name in NAMES}


def test_settings_of_an_estimate_name_its_module_and_its_parameters() -> None:
    for name, settings in of_estimators().items():
        (rule,) = [rule for rule in GRAMMAR if rule.parameters(name) is not None]
        assert settings["parameters"] == rule.parameters(name)
        assert settings["code"] == fingerprint(*ROOTS["estimate"], f"id_scaling.estimators.{rule.module}")
    assert of_estimators()["gride_n8"]["parameters"] == {"scale": "8"}
    assert of_estimators()["mle_harmonic_k10"]["parameters"] == {"mean": "harmonic", "k": "10"}
    assert of_estimators()["local_pca_k50_v90"]["parameters"] == {"k": "50", "percent": "90"}


def numbers_of(source: str) -> list[ast.Constant]:
    """Return the numbers in a module: defaults of parameters, constants, and those in its functions."""
    nodes = ast.walk(ast.parse(source))
    return [node for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, int | float)]


def with_another_number(source: str, node: ast.Constant) -> str:
    """Return a source in which one number is another."""
    lines = source.splitlines(keepends=True)
    line = lines[node.lineno - 1].encode()
    other = repr(not node.value) if isinstance(node.value, bool) else repr(node.value + 1)
    lines[node.lineno - 1] = (line[: node.col_offset] + other.encode() + line[node.end_col_offset :]).decode()
    return "".join(lines)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_number_of_a_method_is_in_the_settings_of_its_estimates_only(family: str, package: Path) -> None:  # noqa: F811
    """So is the default of each parameter that a name leaves out, as the k of `mle`."""
    path = package / "estimators" / f"{family}.py"
    source = path.read_text()
    before = of_estimators()
    own = {name for name in NAMES if definition_of(name).module.endswith(f".{family}")}
    assert own
    for number in numbers_of(source):
        path.write_text(with_another_number(source, number))
        after = of_estimators()
        assert {name for name in NAMES if before[name] != after[name]} == own, ast.get_source_segment(source, number)


def test_the_search_for_numbers_finds_defaults_and_constants() -> None:
    source = "K = 20\n\n\ndef make(name, k=10, is_x=True):\n    return f(k, 0.5)\n"
    assert [number.value for number in numbers_of(source)] == [20, 10, True, 0.5]
    assert "k=11" in with_another_number(source, numbers_of(source)[1])


def test_a_method_that_settings_leave_out_is_noticed(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """The comparison above can fail: settings that forget the module of an estimator do not change with it."""
    monkeypatch.setattr("id_scaling.study.settings._estimate_roots", lambda estimator: list(ROOTS["estimate"]))
    before = of_estimators()
    edit(package / "estimators" / "mle.py", lambda text: text.replace("20", "21", 1))
    assert of_estimators() == before
    assert package == module.ROOT
