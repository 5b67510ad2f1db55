"""The configuration: what it takes, and what it says of what it cannot take."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from conftest import ROOT, study
from pydantic import BaseModel, ValidationError

from id_scaling.errors import ConfigError
from id_scaling.runtime.settings import setting
from id_scaling.study.config import Config, parse
from id_scaling.study.declared_keys import section_of, values_of
from id_scaling.text.chunk_options import Chunking

HEAD = "the configuration cannot be used:\n"


def small(**changes: Any) -> dict[str, Any]:
    """Return a valid small configuration; `changes` replace keys, dotted by `__`."""
    return study(Path("m"), Path("t"), **changes)


def without(dotted: str) -> dict[str, Any]:
    """Return a valid small configuration without one key."""
    config = small()
    *parents, key = dotted.split(".")
    section = config
    for parent in parents:
        section = section[parent]
    del section[key]
    return config


def problems(config: dict[str, Any]) -> list[str]:
    """Return the lines of the one error that a configuration gives."""
    with pytest.raises(ConfigError) as caught:
        parse(config)
    message = str(caught.value)
    assert message.startswith(HEAD)
    return [line.removeprefix("  ") for line in message.removeprefix(HEAD).split("\n")]


# ---- what is taken ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "config").glob("*.yaml")))
def test_configurations_that_come_with_the_project_are_valid(name: str) -> None:
    assert isinstance(parse(yaml.safe_load((ROOT / "config" / name).read_text())), Config)


@pytest.mark.parametrize("spelling", ["standardised", "standardized"])
def test_both_spellings_of_a_scaling_are_one_setting(spelling: str) -> None:
    views = {"default": {}, "scaled": {"preprocess": spelling}}
    config = parse(small(cacheing_config__views=views))
    assert config.cacheing_config.drawn_views["scaled"].preprocess == "standardised"


def test_name_with_the_default_k_is_stored_as_the_plain_one() -> None:
    config = parse(small(cacheing_config__save_IDs_list=["mle_k20", "mle_harmonic_k20", "mom_k20"]))
    assert config.cacheing_config.save_IDs_list == ["mle", "mle_harmonic", "mom_k20"]
    assert "mle is there more than once" in problems(small(cacheing_config__save_IDs_list=["mle", "mle_k20"]))[0]


def test_dictionary_of_the_documented_study_means_what_it_says() -> None:
    config = parse(yaml.safe_load((ROOT / "config" / "llama2-7b.yaml").read_text()))
    model, dataset, cacheing = config.models[0], config.datasets[0], config.cacheing_config
    assert (model.model_name, model.model_checkpoint) == ("meta-llama/Llama-2-7b-hf", ["main"])
    assert model.use_accelerator
    assert model.module_name_mapping["attn"] == "model.layers.{layer}.self_attn"
    assert (dataset.dataset_subset, dataset.max_dataset_size) == ([0], 10000)
    assert dataset.filter_and_chunk_config.min_chunks_from_a_document == 5
    assert (config.ctx_len, config.batch_size, config.multiprocessing_num_cpus) == ([1024], 2, 25)
    assert cacheing.layer_idx_list == [0, 1, 2, 5]
    assert cacheing.save_fp == "float16"
    assert cacheing.save_cache_tensors
    assert cacheing.save_IDs_list == ["mle_harmonic", "mle", "mind_ml", "twoNN_f10"]


@pytest.mark.parametrize(
    ("scalar", "listed"),
    [
        ({"model_config__model_checkpoint": "step1"}, {"model_config__model_checkpoint": ["step1"]}),
        ({"dataset_config__dataset_subset": 3}, {"dataset_config__dataset_subset": [3]}),
        ({"ctx_len": 96}, {"ctx_len": [96]}),
        ({"model_config": {"model_name": "m"}}, {"model_config": [{"model_name": "m"}]}),
        ({"dataset_config": {"dataset_name": "t"}}, {"dataset_config": [{"dataset_name": "t"}]}),
        ({"cacheing_config__save_fp": "torch.float16"}, {"cacheing_config__save_fp": "float16"}),
        ({"model_config__dtype": "torch.bfloat16"}, {"model_config__dtype": "bfloat16"}),
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_two_ways_to_write_it_are_one_configuration(scalar: dict, listed: dict) -> None:
    assert parse(small(**scalar)) == parse(small(**listed))
    assert parse(small(**scalar)) != parse(small(batch_size=7, **scalar))


def test_position_has_one_number_whatever_way_it_is_named() -> None:
    positions = parse(small(cacheing_config__save_positions=[-1, 0, 5])).cacheing_config.positions_in(64)
    assert positions == parse(small(cacheing_config__save_positions=[5, 63, -64])).cacheing_config.positions_in(64)
    assert positions == [0, 5, 63]


def test_layers_of_a_view_are_those_of_each_of_its_draws() -> None:
    views = {"default": {}, "half": {"decimate": 40, "draws": 2, "layers": [3, 1]}}
    cacheing = parse(small(cacheing_config__views=views)).cacheing_config
    assert cacheing.view_layers == {"half-0": [1, 3], "half-1": [1, 3]}
    assert list(cacheing.drawn_views) == ["default", "half-0", "half-1"]


def test_clouds_of_a_run_alone_need_nothing_that_is_stored_of_contexts() -> None:
    """Whose points are stored, so that neighbors of all ranks can be found."""
    changes = {"cacheing_config__save_IDs_list": ["phd", "mle_k50", "pca_90"], "cacheing_config__save_positions": [-1]}
    alone = parse(small(**changes, cacheing_config__clouds=["position"]))
    assert alone.cacheing_config.clouds == ["position"]
    assert problems(small(**changes, cacheing_config__clouds=["context", "position"]))


def test_estimator_of_more_points_than_a_context_has_is_meant_for_clouds_of_runs() -> None:
    """A context of 64 tokens has no 96 points; 96 contexts have."""
    changes = {"cacheing_config__save_IDs_list": ["mle", "gride_n32"], "cacheing_config__save_positions": [-1]}
    for clouds in (["position"], ["context", "position"]):
        assert parse(small(**changes, cacheing_config__clouds=clouds))
        (line,) = problems(small(**changes, cacheing_config__clouds=clouds, dataset_config__max_contexts=95))
        assert "gride_n32 needs at least 96 points, but clouds of all contexts of a run have 95" in line
    (line,) = problems(small(**changes, cacheing_config__clouds=["context"]))
    assert "gride_n32 needs at least 96 points, but ctx_len 64 leaves 63" in line
    # What contexts are long enough for is to be stored for them.
    changes["cacheing_config__save_IDs_list"] = ["gride_n24"]
    (line,) = problems(small(**changes, cacheing_config__clouds=["context", "position"], ctx_len=200))
    assert "cacheing_config.neighbor_ranks: gride_n24 needs the ranks 24, 48" in line


def test_whole_number_is_taken_where_a_number_is_meant() -> None:
    assert parse(small(dataset_config__max_broken_share=1)).datasets[0].max_broken_share == 1.0


def test_key_with_two_spellings_means_the_same_in_both() -> None:
    config = small(cacheing_config__save_mean_tensors=True)
    other = {"caching_config" if key == "cacheing_config" else key: value for key, value in config.items()}
    assert "caching_config" in other
    assert parse(other) == parse(config)
    assert parse(other).cacheing_config.save_mean_tensors


def test_values_of_declared_keys_are_those_of_the_class_that_declares_them() -> None:
    """Whatever the names of the keys, and the sections that they are in."""
    changes = {f"{CHUNKS}__max_chunks_from_a_document": 7, "dataset_config__text_column": "body", "add_bos": "never"}
    config = parse(small(**changes))
    (dataset,) = config.datasets
    sections = {
        "": config,
        "dataset_config": dataset,
    }
    chunking = values_of(Chunking, sections)
    assert (chunking["max_chunks"], chunking["text_column"], chunking["add_bos"]) == (7, "body", "never")
    assert values_of(Chunking, sections, is_execution=True) == {"max_broken_share": 0.0}
    assert {*chunking, "max_broken_share", "ctx_len"} == {field.name for field in fields(Chunking)}


def test_setting_that_a_class_declares_is_a_key() -> None:
    @dataclass(frozen=True)
    class Options:
        ctx_len: int
        size: int = setting(3, meaning="how large", ge=2)
        way: Literal["up", "down"] = setting("up", meaning="where to", key="inner.direction")

    outer, inner = section_of(Options), section_of(Options, "inner")
    assert outer().model_dump() == {"size": 3}
    assert outer.model_fields["size"].description == "how large"
    assert inner(direction="down").model_dump() == {"direction": "down"}
    for section, value in ((outer, {"size": 1}), (inner, {"direction": "left"}), (inner, {"way": "up"})):
        with pytest.raises(ValidationError):
            section(**value)


def test_parsing_leaves_what_it_is_given_as_it_was() -> None:
    config = small(model_config__model_checkpoint="step1", cacheing_config__save_fp="torch.float16")
    before = copy.deepcopy(config)
    parse(config)
    assert config == before


def test_no_value_can_be_set_anew() -> None:
    config = parse(small())
    sections: list[BaseModel] = [
        config,
        config.models[0],
        config.datasets[0],
        config.datasets[0].filter_and_chunk_config,
        config.cacheing_config,
        config.cacheing_config.views["default"],
    ]
    for section in sections:
        for name in type(section).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(section, name, getattr(section, name))


# ---- what is refused -------------------------------------------------------------------------------------------

CHUNKS = "dataset_config__filter_and_chunk_config"

# (changes, dotted key, words of the message: what was found and what is allowed)
UNKNOWN_KEYS = [
    ({"sesion_name": "x"}, "sesion_name", "'session_name'"),
    ({"model_config__model_nam": "x"}, "model_config.model_nam", "'model_name'"),
    ({"cacheing_config__save_ID": True}, "cacheing_config.save_ID", "'save_IDs'"),
    (
        {f"{CHUNKS}__max_chunks": 3},
        "dataset_config.filter_and_chunk_config.max_chunks",
        "'max_chunks_from_a_document'",
    ),
    (
        {"cacheing_config__views": {"mine": {"duplicate": "keep"}}},
        "cacheing_config.views.mine.duplicate",
        "'duplicates'",
    ),
    (
        {"model_config": [{"model_name": "a"}, {"model_name": "b", "model_check": "x"}]},
        "model_config[1].model_check",
        "'model_checkpoint'",
    ),
]

MISSING_KEYS = [
    ("session_name", "name of the session"),
    ("model_config", "a model, or a list"),
    ("dataset_config", "a dataset, or a list"),
    ("model_config.model_name", "a local folder"),
    ("dataset_config.dataset_name", "a folder of shards"),
]

WRONG_VALUES = [
    ({"ctx_len": "1024"}, "ctx_len", ["'1024' (text)", "integer"]),
    ({"ctx_len": True}, "ctx_len", ["True (a yes/no value)", "integer"]),
    ({"ctx_len": 64.5}, "ctx_len", ["64.5 (a number)", "integer"]),
    ({"ctx_len": 3}, "ctx_len", ["found 3", "greater than or equal to 4"]),
    ({"ctx_len": None}, "ctx_len", ["(nothing)", "integer"]),
    ({"ctx_len": []}, "ctx_len", ["[] (a list)", "at least one"]),
    ({"ctx_len": [64, 3]}, "ctx_len[1]", ["found 3", "greater than or equal to 4"]),
    ({"ctx_len": [64, "128"]}, "ctx_len[1]", ["'128' (text)", "integer"]),
    ({"batch_size": 0}, "batch_size", ["found 0", "greater than or equal to 1"]),
    ({"multiprocessing": "yes"}, "multiprocessing", ["'yes' (text)", "boolean"]),
    ({"session_name": False}, "session_name", ["False (a yes/no value)", "quote"]),
    ({"session_name": "a/b"}, "session_name", ["'a/b' (text)", "expected"]),
    ({"session_name": ".."}, "session_name", ["'..' (text)", "expected"]),
    ({"session_name": "a b"}, "session_name", ["'a b' (text)", "expected"]),
    ({"session_name": ""}, "session_name", ["'' (text)", "expected"]),
    ({"session_name": "x" * 101}, "session_name", ["xxx", "100"]),
    ({"session_path": "a\nb"}, "session_path", [r"'a\nb' (text)", "expected"]),
    ({"model_config": "llama"}, "model_config", ["'llama' (text)", "expected a"]),
    ({"model_config": []}, "model_config", ["[] (a list)", "expected"]),
    ({"model_config__model_name": 7}, "model_config.model_name", ["7 (a whole number)", "quotes"]),
    ({"model_config__model_checkpoint": 143000}, "model_config.model_checkpoint", ["143000", "quotes"]),
    ({"model_config__use_accelerator": 1}, "model_config.use_accelerator", ["found 1", "boolean"]),
    ({"model_config__dtype": "float64"}, "model_config.dtype", ["'float64'", "'bfloat16'"]),
    ({"model_config__module_name_mapping": "atuo"}, "model_config.module_name_mapping", ["'atuo'", "'auto'"]),
    ({"model_config__module_name_mapping": {"a": 1}}, "model_config.module_name_mapping.a", ["found 1 (a", "expected"]),
    ({"dataset_config": None}, "dataset_config", ["(nothing)", "expected a"]),
    ({"dataset_config__dataset_subset": -1}, "dataset_config.dataset_subset", ["found -1", "equal to 0"]),
    ({"dataset_config__dataset_subset": "0"}, "dataset_config.dataset_subset", ["'0' (text)", "integer"]),
    ({"dataset_config__dataset_subset": []}, "dataset_config.dataset_subset", ["[] (a list)", "expected"]),
    ({"dataset_config__max_dataset_size": 0}, "dataset_config.max_dataset_size", ["found 0", "equal to 1"]),
    ({"dataset_config__max_contexts": 0}, "dataset_config.max_contexts", ["found 0", "equal to 1"]),
    ({"dataset_config__group_by": "meta.set"}, "dataset_config.group_by", ["'meta.set' (text)", "list"]),
    ({"add_bos": "alway"}, "add_bos", ["'alway' (text)", "'auto', 'always' or 'never'"]),
    ({"add_bos": False}, "add_bos", ["False (a yes/no value)", "'auto', 'always' or 'never'"]),
    ({"dataset_config__max_broken_share": 1.5}, "dataset_config.max_broken_share", ["1.5", "equal to 1"]),
    ({"dataset_config__max_broken_share": float("nan")}, "dataset_config.max_broken_share", ["nan", "expected"]),
    (
        {CHUNKS: {"min_chunks_from_a_document": 5, "max_chunks_from_a_document": 2}},
        "dataset_config.filter_and_chunk_config",
        ["max_chunks_from_a_document is 2", "min_chunks_from_a_document, 5"],
    ),
    ({"cacheing_config": None}, "cacheing_config", ["(nothing)", "expected a"]),
    ({"cacheing_config__save_fp": "float8"}, "cacheing_config.save_fp", ["'float8'", "'float16'", "'float64'"]),
    ({"cacheing_config__save_IDs": "no"}, "cacheing_config.save_IDs", ["'no' (text)", "boolean"]),
    ({"cacheing_config__save_IDs_list": "mle"}, "cacheing_config.save_IDs_list", ["'mle' (text)", "list"]),
    ({"cacheing_config__layer_idx_list": "al"}, "cacheing_config.layer_idx_list", ["'al'", "'all'", "list"]),
    (
        {"cacheing_config__layer_idx_list": {"last": 2, "first": 1}},
        "cacheing_config.layer_idx_list",
        ["several", "one of first, last and every"],
    ),
    ({"cacheing_config__layer_idx_list": {"lst": 2}}, "cacheing_config.layer_idx_list.lst", ["not a key", "'last'"]),
    (
        {"cacheing_config__layer_idx_list": {"last": 0}},
        "cacheing_config.layer_idx_list.last",
        ["found 0", "equal to 1"],
    ),
    ({"cacheing_config__layer_idx_list": ["1"]}, "cacheing_config.layer_idx_list[0]", ["'1' (text)", "integer"]),
    ({"cacheing_config__neighbor_ranks": "defalt"}, "cacheing_config.neighbor_ranks", ["'default'", "list"]),
    ({"cacheing_config__neighbor_ranks": ["1-50"]}, "cacheing_config.neighbor_ranks[0]", ["'1-50'", "integer"]),
    ({"cacheing_config__neighbor_ranks": "1-50"}, "cacheing_config.neighbor_ranks", ["'1-50'", "a list"]),
    ({"cacheing_config__neighbor_ranks": [0, 2]}, "cacheing_config.neighbor_ranks[0]", ["found 0", "equal to 1"]),
    ({"cacheing_config__views": {}}, "cacheing_config.views", ["found none", "at least one"]),
    ({"cacheing_config__views": None}, "cacheing_config.views", ["(nothing)", "expected a"]),
    (
        {"cacheing_config__views": {"mine": {"skip_first_tokens": -1}}},
        "cacheing_config.views.mine.skip_first_tokens",
        ["found -1", "equal to 0"],
    ),
    (
        {"cacheing_config__views": {"literal": {"duplicates": "kep"}}},
        "cacheing_config.views.literal.duplicates",
        ["'kep'", "'keep'"],
    ),
    (
        {"cacheing_config__views": {"mine": {"preprocess": "drop_top_0"}}},
        "cacheing_config.views.mine.preprocess",
        ["'drop_top_0'", "drop_top_"],
    ),
    (
        {"cacheing_config__views": {"mine": {"draws": 3}}},
        "cacheing_config.views.mine",
        ["draws: found 3", "nothing of the view is random"],
    ),
    ({"cacheing_config__save_positions": -1}, "cacheing_config.save_positions", ["found -1", "list"]),
    ({"cacheing_config__save_positions": ["-1"]}, "cacheing_config.save_positions[0]", ["'-1' (text)", "integer"]),
    ({"cacheing_config__clouds": []}, "cacheing_config.clouds", ["[] (a list)", "at least one"]),
    ({"cacheing_config__clouds": ["means"]}, "cacheing_config.clouds[0]", ["'means'", "'mean'", "'position'"]),
    (
        {"cacheing_config__views": {"default": {}, "mine": {"layers": "al"}}},
        "cacheing_config.views.mine.layers",
        ["'al'", "'all'", "list"],
    ),
    (
        {"cacheing_config__views": {"default": {}, "mine": {"layers": []}}},
        "cacheing_config.views.mine.layers",
        ["[] (a list)", "at least one"],
    ),
    (
        {"cacheing_config__views": {"a": {"decimate": 50, "draws": 2}, "a-1": {}}},
        "cacheing_config.views",
        ["a-1: a draw of another view has that name"],
    ),
]

# What one entry cannot say alone.
OF_RUN_ALONE = {"cacheing_config__clouds": ["mean"], "cacheing_config__save_mean_tensors": True}

INCONSISTENT = [
    (
        {**OF_RUN_ALONE, "cacheing_config__views": {"mine": {"skip_first_tokens": 63}}},
        "cacheing_config.views.mine.skip_first_tokens",
        ["found 63", "ctx_len 64 leaves 1 points; skip fewer"],
    ),
    (
        {**OF_RUN_ALONE, "cacheing_config__views": {"default": {}, "mine": {"decimate": 500}}},
        "cacheing_config.views.mine.decimate",
        ["found 500", "leaves 63 points to draw from; draw fewer"],
    ),
    (
        {"cacheing_config__save_IDs_list": ["mle", "twoN_f10"]},
        "cacheing_config.save_IDs_list",
        ["'twoN_f10' is not an estimator", "did you mean 'twoNN_f10'"],
    ),
    (
        {"cacheing_config__save_IDs_list": ["skdim_TLEE"]},
        "cacheing_config.save_IDs_list",
        ["'skdim_TLEE' is not an estimator", "'TLE'"],
    ),
    (
        {"cacheing_config__save_IDs_list": ["skdim_TLE"]},
        "cacheing_config.save_IDs_list",
        ["skdim_TLE needs saved clouds", "save_cache_tensors: true, which extracts again"],
    ),
    (
        {"cacheing_config__neighbor_ranks": [1, 2, 21], "cacheing_config__save_IDs_list": ["mind_ml", "mle"]},
        "cacheing_config.neighbor_ranks",
        ["mle needs the ranks 1-20, found 1, 2, 21;", "([1, 2, 3], not 1-3)", "extracts again", "'default' is 1 to 32"],
    ),
    (
        {"cacheing_config__neighbor_ranks": list(range(1, 21)), "cacheing_config__save_IDs_list": ["mind_ml"]},
        "cacheing_config.neighbor_ranks",
        ["mind_ml needs the ranks 21, found 1-20;", "'default' is 1 to 32"],
    ),
    (
        {"ctx_len": 21, "cacheing_config__save_IDs_list": ["mle"]},
        "cacheing_config.save_IDs_list",
        ["mle needs at least 21 points", "ctx_len 21 leaves 20", "'default'", "raise ctx_len"],
    ),
    (
        {"ctx_len": 22, "cacheing_config__save_IDs_list": ["mle", "mind_ml"]},
        "cacheing_config.save_IDs_list",
        ["mind_ml needs at least 22 points", "ctx_len 22 leaves 21", "raise ctx_len"],
    ),
    # Of several lengths the one that is too short is named.
    (
        {"ctx_len": [64, 21, 96], "cacheing_config__save_IDs_list": ["mle"]},
        "cacheing_config.save_IDs_list",
        ["mle needs at least 21 points", "ctx_len 21 leaves 20"],
    ),
    (
        {"ctx_len": [512, 200], "cacheing_config__save_IDs_list": ["gride_n64"]},
        "cacheing_config.neighbor_ranks",
        ["gride_n64 needs the ranks 64, 128, found 1-32, 64;", "half the 200 points of ctx_len 200"],
    ),
    (
        {"ctx_len": [128, 64], "cacheing_config__views": {"mine": {"decimate": 90}}},
        "cacheing_config.views.mine.decimate",
        ["found 90", "ctx_len 64 leaves 63 points"],
    ),
    (
        {"ctx_len": [128, 64], "cacheing_config__views": {"mine": {"preprocess": "drop_top_62"}}},
        "cacheing_config.views.mine.preprocess",
        ["of 63 points no more components are left (ctx_len 64)"],
    ),
    (
        {"cacheing_config__views": {"mine": {"exclude_window": 25}}, "cacheing_config__save_IDs_list": ["mle"]},
        "cacheing_config.save_IDs_list",
        ["mle needs at least 21 points", "leaves 13 under the view 'mine'"],
    ),
    (
        {"cacheing_config__views": {"mine": {"decimate": 90}}, "cacheing_config__save_IDs_list": ["mle"]},
        "cacheing_config.views.mine.decimate",
        ["found 90", "leaves 63 points", "draw fewer"],
    ),
    (
        {"cacheing_config__views": {"mine": {"preprocess": "drop_top_62"}}},
        "cacheing_config.views.mine.preprocess",
        ["found drop_top_62", "of 63 points no more components are left"],
    ),
    (
        {
            "cacheing_config__views": {"mine": {"null_cloud": "gaussian"}},
            "cacheing_config__save_IDs_list": ["tle"],
            "cacheing_config__save_cache_tensors": True,
        },
        "cacheing_config.views.mine.null_cloud",
        ["tle reads saved clouds", "session of their own"],
    ),
    (
        {"cacheing_config__clouds": ["context", "mean"]},
        "cacheing_config.clouds",
        ["mean needs the centres of contexts", "set save_mean_tensors: true, which extracts again", "leave the cloud"],
    ),
    (
        {"cacheing_config__clouds": ["position"], "cacheing_config__save_mean_tensors": True},
        "cacheing_config.clouds",
        ["position needs the tokens at some positions", "save_positions", "extracts again"],
    ),
    (
        {
            "cacheing_config__clouds": ["context", "mean"],
            "cacheing_config__save_mean_tensors": True,
            "cacheing_config__views": {
                "half": {"decimate": 40},
                "token": {"duplicates": "one_per_token"},
                "window": {"exclude_window": 2},
                "one": {"layers": [1]},
            },
        },
        "cacheing_config.clouds",
        ["mean needs a view for points that are contexts", "of all layers", "duplicates: distinct or keep"],
    ),
    (
        {"cacheing_config__save_positions": [64]},
        "cacheing_config.save_positions",
        ["found 64", "a context has 64 tokens (ctx_len)", "-64 to 63"],
    ),
    ({"cacheing_config__save_positions": [-65]}, "cacheing_config.save_positions", ["found -65", "-64 to 63"]),
    (
        {"cacheing_config__save_positions": [63, -1]},
        "cacheing_config.save_positions",
        ["-1 and 63 are one position of 64 tokens", "name it once"],
    ),
    ({"cacheing_config__save_positions": [2, 2]}, "cacheing_config.save_positions", ["2", "more than once"]),
    ({"cacheing_config__clouds": ["context"] * 2}, "cacheing_config.clouds", ["context", "more than once"]),
    (
        {
            "cacheing_config__views": {"default": {}, "mine": {"layers": [5, 1]}},
            "cacheing_config__layer_idx_list": [1, 0],
        },
        "cacheing_config.views.mine.layers",
        ["found layer 5", "layer_idx_list has 0, 1", "add it there, which extracts again"],
    ),
    (
        {
            "cacheing_config__views": {"default": {}, "mine": {"layers": [5]}},
            "cacheing_config__module_inblock_keys": [],
        },
        "cacheing_config.views.mine.layers",
        ["found [5] (a list)", "module_inblock_keys is empty"],
    ),
    (
        {"cacheing_config__views": {"default": {}, "mine": {"layers": [5, 5]}}},
        "cacheing_config.views.mine.layers",
        ["5", "more than once"],
    ),
    (
        {"cacheing_config__views": {"mine": {"layers": [1]}}},
        "cacheing_config.views",
        ["layers of its own for each view", "one at least with layers: all"],
    ),
    ({"cacheing_config__layer_idx_list": [2, 0, 2]}, "cacheing_config.layer_idx_list", ["2", "more than once"]),
    ({"cacheing_config__module_inblock_keys": ["a", "a"]}, "cacheing_config.module_inblock_keys", ["a", "once"]),
    ({"cacheing_config__module_outblock_keys": ["a", "a"]}, "cacheing_config.module_outblock_keys", ["a", "once"]),
    ({"cacheing_config__save_IDs_list": ["mle", "mle"]}, "cacheing_config.save_IDs_list", ["mle", "once"]),
    ({"cacheing_config__neighbor_ranks": [1, 2, 2]}, "cacheing_config.neighbor_ranks", ["2", "more than once"]),
    # Each would be run, and counted, twice.
    ({"dataset_config__dataset_subset": [0, 0]}, "dataset_config.dataset_subset", ["0", "once"]),
    ({"ctx_len": [64, 96, 64]}, "ctx_len", ["64 is there more than once"]),
    ({"dataset_config__group_by": ["a", "a"]}, "dataset_config.group_by", ["a", "once"]),
    ({"model_config__model_checkpoint": ["a", "a"]}, "model_config.model_checkpoint", ["a", "once"]),
    (
        {"cacheing_config__module_inblock_keys": ["a"], "cacheing_config__module_outblock_keys": ["a"]},
        "cacheing_config.module_",
        ["a", "once"],
    ),
    # A module key is a folder of the session, a view a group beside `mean`, `positions` and `activations`.
    ({"cacheing_config__module_inblock_keys": ["../x"]}, "cacheing_config.module_inblock_keys", ["'../x'"]),
    ({"cacheing_config__module_outblock_keys": ["a/b"]}, "cacheing_config.module_outblock_keys", ["'a/b'"]),
    ({"cacheing_config__module_inblock_keys": [".."]}, "cacheing_config.module_inblock_keys", ["'..'"]),
    ({"cacheing_config__views": {"a/b": {}}}, "cacheing_config.views", ["a/b"]),
    ({"cacheing_config__views": {".": {}}}, "cacheing_config.views", ["'.'"]),
    ({"cacheing_config__views": {"mean": {}}}, "cacheing_config.views", ["mean"]),
    ({"cacheing_config__views": {"positions": {}}}, "cacheing_config.views", ["positions"]),
]


def cases(table: list[tuple]) -> list:
    """Return a table's rows as cases named by what is changed."""
    return [pytest.param(*row, id=str(row[0])[:70]) for row in table]


@pytest.mark.parametrize(("changes", "key", "words"), cases(UNKNOWN_KEYS))
def test_unknown_key_is_refused_with_the_nearest_name(changes: dict, key: str, words: str) -> None:
    lines = problems(small(**changes))
    assert len(lines) == 1
    assert lines[0].startswith(f"{key} is not a key; did you mean ")
    assert words in lines[0]


@pytest.mark.parametrize(("key", "words"), cases(MISSING_KEYS))
def test_missing_key_is_named_with_what_it_is(key: str, words: str) -> None:
    (line,) = problems(without(key))
    assert line.startswith(f"{key} is missing; expected ")
    assert words in line


@pytest.mark.parametrize(("changes", "key", "words"), cases([*WRONG_VALUES, *INCONSISTENT]))
def test_wrong_value_is_refused_with_what_was_found_and_what_is_allowed(
    changes: dict, key: str, words: list[str]
) -> None:
    of_key = [line for line in problems(small(**changes)) if line.startswith(key)]
    assert of_key
    assert [word for word in words if not any(word in line for line in of_key)] == []


@pytest.mark.parametrize(("ranks", "is_number"), [("1e2", True), ("32", True), ("1-50", False), ("1..50", False)])
def test_text_that_is_no_number_is_not_said_to_be_one(ranks: str, is_number: bool) -> None:
    (line,) = problems(small(cacheing_config__neighbor_ranks=[ranks]))
    assert ("YAML reads numbers" in line) == is_number


@pytest.mark.parametrize(("changes", "key", "words"), cases([*UNKNOWN_KEYS, *WRONG_VALUES]))
def test_message_is_in_the_words_of_the_configuration(changes: dict, key: str, words: Any) -> None:
    # What the library that validates says of its own types, in its own phrases ("String should match pattern …").
    internals = (
        "literal[",
        "function-",
        "constrained-",
        "dict[",
        "instance of",
        "after validation",
        "Value error",
        " should ",
    )
    text = "\n".join(problems(small(**changes)))
    assert [word for word in internals if word in text] == []


@pytest.mark.parametrize(("changes", "key", "words"), cases(WRONG_VALUES))
def test_one_wrong_value_is_one_line(changes: dict, key: str, words: list[str]) -> None:
    assert len(problems(small(**changes))) == 1


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 0}, {"ctx_len": 3}, {"dataset_config__max_broken_share": 1.5}, {"ctx_len": 64.5}],
    ids=str,
)
def test_quotes_are_not_advised_for_a_number_where_a_number_is_meant(changes: dict) -> None:
    (line,) = problems(small(**changes))
    assert "quotes" not in line


@pytest.mark.parametrize(
    ("text", "key", "advice"),
    [
        ("dataset_config: {dataset_name: t, max_broken_share: 1e-3}", "dataset_config.max_broken_share", "1.0e-3"),
        ("dataset_config: {dataset_name: t, text_column: no}", "dataset_config.text_column", "quote them"),
        ("session_name: on", "session_name", "quote them"),
        ("session_name: 2024", "session_name", "put quotes around it"),
    ],
)
def test_what_yaml_reads_unexpectedly_comes_with_advice(text: str, key: str, advice: str) -> None:
    (line,) = problems({**small(), **yaml.safe_load(text)})
    assert line.startswith(f"{key}: found ")
    assert advice in line


def test_key_in_both_of_its_spellings_is_one_error() -> None:
    (line,) = problems({**small(), "caching_config": {}})
    assert line == "caching_config: found next to cacheing_config, which is the same key; keep one of them"


def test_problem_is_named_in_the_spelling_that_was_given() -> None:
    config = small(cacheing_config__save_fp="float8", cacheing_config__sav="x")
    config["caching_config"] = config.pop("cacheing_config")
    lines = sorted(problems(config))
    assert lines[0].startswith("caching_config.sav is not a key; did you mean ")
    assert lines[1].startswith("caching_config.save_fp: found 'float8'")


def test_all_problems_are_said_at_once() -> None:
    config = small(
        ctx_len="1024", batch_size=0, sesion="x", model_config__model_nam="y", cacheing_config__save_fp="float8"
    )
    del config["dataset_config"]["dataset_name"]
    keys = [
        "batch_size:",
        "cacheing_config.save_fp:",
        "ctx_len:",
        "dataset_config.dataset_name is missing",
        "model_config.model_nam is not a key",
        "sesion is not a key",
    ]
    lines = sorted(problems(config))
    assert len(lines) == len(keys)
    assert [line.startswith(key) for line, key in zip(lines, keys, strict=True)] == [True] * len(keys)


def test_key_that_is_not_text_is_named() -> None:
    (line,) = problems({**small(), 1: "x"})
    assert line.startswith("1")


def test_model_configurations_stand_under_the_documented_key_alone() -> None:
    config = small()
    config["models"] = config.pop("model_config")
    assert any("'model_config'" in line for line in problems(config))
