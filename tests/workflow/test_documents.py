"""Several datasets in one study, one of them a glob, and the groups of their documents."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import Workflow, random_text, study

from id_scaling import load_contexts, load_summary, load_tokens
from id_scaling.errors import ConfigError, StoreError


def save_pile(folder: Path) -> None:
    """Save two shards with metadata as the Pile has it, in folders of their own."""
    for shard in range(2):
        rows = [
            {"text": random_text(150, seed=10 * shard + n), "meta": {"pile_set_name": name}, "year": 2000 + n}
            for n, name in enumerate(["Books", "Web", "Books", "Code"])
        ]
        (folder / f"part{shard}").mkdir(parents=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"part{shard}" / "x-train.jsonl.gz").write_bytes(gzip.compress(lines.encode()))


@pytest.fixture(scope="module")
def workflow(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Workflow:
    """A study of both shards of a glob and of a folder of texts, which has run to its end."""
    folder = tmp_path_factory.mktemp("documents")
    save_pile(folder / "pile")
    (folder / "texts").mkdir()
    (folder / "texts" / "one.txt").write_text(random_text(200, seed=5))
    config = study(tiny_llama, folder)
    config["dataset_config"] = [
        {
            "dataset_name": f"{folder}/pile/**/x-*.jsonl.gz",
            "dataset_subset": [0, 1],
            "max_contexts": 7,
            "group_by": ["meta.pile_set_name"],
        },
        {"dataset_name": str(folder / "texts")},
    ]
    config["cacheing_config"] |= {"module_inblock_keys": ["mlp"], "module_outblock_keys": ["unemb"]}
    config["cacheing_config"]["save_IDs_list"] = ["mle"]
    made = Workflow(folder, config)
    made.run()
    return made


def summary_of(workflow: Workflow) -> pl.DataFrame:
    """Return the rows of one site under one view."""
    summary = pl.read_parquet(workflow.session / "summary.parquet")
    return summary.filter((pl.col("view") == "default") & (pl.col("layer") == 0))


def grouped(workflow: Workflow, *keys: str) -> Workflow:
    """Return the study with other groups."""
    workflow.config["dataset_config"][0]["group_by"] = list(keys)
    workflow.write()
    return workflow


def test_every_dataset_and_shard_has_rows_and_its_groups_have_theirs(workflow: Workflow) -> None:
    columns = ["dataset", "subset", "group", "group_value", "n_contexts"]
    found = [(Path(row[0]).name, *row[1:]) for row in summary_of(workflow).select(columns).rows()]
    # Two contexts a document of 150 tokens and ctx_len 64, seven in all.
    of_shard = [(None, None, 7), *(("meta.pile_set_name", *one) for one in (("Books", 4), ("Web", 2), ("Code", 1)))]
    expected: list[Any] = [("x-*.jsonl.gz", shard, *row) for shard in (0, 1) for row in of_shard]
    assert found == [*expected, ("texts", 0, None, None, 3)]


def test_mean_of_all_contexts_is_that_of_the_groups(workflow: Workflow) -> None:
    rows = summary_of(workflow).filter((pl.col("subset") == 1) & pl.col("dataset").str.ends_with(".gz"))
    whole, groups = rows.filter(pl.col("group").is_null()), rows.filter(pl.col("group").is_not_null())
    for score in ("mean", "mean_loss", "mean_entropy"):
        weighted = (groups[score] * groups["n_contexts"]).sum() / groups["n_contexts"].sum()
        assert weighted == pytest.approx(whole[score][0], rel=1e-12)
        assert groups[score].n_unique() == 3


def test_rows_of_contexts_are_those_behind_the_summary(workflow: Workflow) -> None:
    contexts = load_contexts(workflow.session)
    summary = load_summary(workflow.session).filter(pl.col("group").is_null())
    keys = ["model", "dataset", "subset", "view", "layer", "module", "estimator"]
    scores = [pl.col("value").filter(status="ok").mean(), pl.col("loss", "entropy").mean(), pl.len()]
    found = contexts.group_by(keys).agg(scores).sort(keys)
    expected = summary.select(*keys, "mean", "mean_loss", "mean_entropy", "n_contexts").sort(keys)
    assert found.select(keys).equals(expected.select(keys))
    for ours, theirs in zip(found.columns[-4:], expected.columns[-4:], strict=True):
        assert found[ours].to_list() == pytest.approx(expected[theirs].to_list(), rel=1e-9)
    of_books = contexts.filter(pl.col("metadata").str.json_path_match("$.meta.pile_set_name") == "Books")
    assert set(of_books["document"]) == {0, 2}


def test_rows_of_contexts_are_read_of_some_axes_alone(workflow: Workflow) -> None:
    some = load_contexts(workflow.session, subset=1, estimator=["mle"])
    assert some["subset"].unique().to_list() == [1]
    everything = load_contexts(str(workflow.session))
    assert some.equals(everything.filter(subset=1), null_equal=True)
    assert load_contexts(workflow.session, view="origin", layer=np.int64(1))["layer"].unique().to_list() == [1]
    some = load_contexts(workflow.session, view="origin", layer=[1])
    assert some.equals(everything.filter(view="origin", layer=1), null_equal=True)
    assert len(some) == 7 + 7 + 3
    some = load_contexts(workflow.session, view=["origin", "default"], layer=[0, None])
    is_view = pl.col("view").is_in(["origin", "default"])
    assert some.equals(everything.filter(is_view, pl.col("layer").ne_missing(1)), null_equal=True)
    assert set(some["module"]) == {"mlp", "unemb"}
    with pytest.raises(ConfigError, match=r"the session has no view 'orign'; it has default, one_per_token, origin$"):
        load_contexts(workflow.session, view="orign")
    with pytest.raises(ConfigError, match=r"the session has no layer 2; it has 0, 1, None$"):
        load_contexts(workflow.session, layer=[0, 2])
    with pytest.raises(ConfigError, match=r"the session has no row with module 'unemb', layer 1; request fewer"):
        load_contexts(workflow.session, module="unemb", layer=1)
    with pytest.raises(ConfigError, match=r"the session has no module 'mpl'; it has mlp, unemb"):
        load_contexts(workflow.session, module="mpl")
    with pytest.raises(ConfigError, match=r"layers is not an axis of a session; expected one of model, checkpoint"):
        load_contexts(workflow.session, layers=3)
    with pytest.raises(ConfigError, match=r"module: found an empty list"):
        load_contexts(workflow.session, module=[])
    with pytest.raises(ConfigError, match=r"the session has no row with dataset .*texts', subset 1; request fewer"):
        load_contexts(workflow.session, dataset=str(workflow.folder / "texts"), subset=1)
    with pytest.raises(ConfigError, match=r"module is not an axis of tokens; expected some of model"):
        load_tokens(workflow.session, module="mlp")
    with pytest.raises(ConfigError, match=r"layer is not an axis of tokens; expected some of model"):
        load_tokens(workflow.session, layer=1)
    with pytest.raises(StoreError, match=r"summary\.parquet: not there; run snakemake"):
        load_contexts(workflow.folder)


def test_tokens_have_the_losses_of_the_summary(workflow: Workflow) -> None:
    tokens = load_tokens(workflow.session, subset=1).filter(pl.col("position") > 0)
    summary = load_summary(workflow.session).filter(pl.col("group").is_null(), subset=1)
    assert tokens["loss"].cast(pl.Float64).mean() == pytest.approx(summary["mean_loss"][0], rel=1e-12)
    assert tokens.group_by("context").len()["len"].unique().to_list() == [63]


def test_other_groups_make_the_summary_and_the_figures_again_and_nothing_else(workflow: Workflow) -> None:
    assert workflow.planned() == {}
    assert grouped(workflow, "year", "meta.pile_set_name").planned() == {"summarize": 1, "plot": 1}
    workflow.run()
    years = summary_of(workflow).filter((pl.col("group") == "year") & (pl.col("subset") == 0))
    assert years["group_value"].to_list() == ["2000", "2001", "2002", "2003"]
    assert workflow.planned() == {}


def test_group_that_no_document_has_is_one_error(workflow: Workflow) -> None:
    said = grouped(workflow, "meta.set").run(is_ok=False)
    assert "dataset_config.group_by: no document of " in said
    assert "localrule" not in said  # before any job
    assert "has 'meta.set'; besides text and id they have meta.pile_set_name, year" in said
