"""The summary of a session: what enters a mean, and what is never mixed."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars import selectors
from polars.testing import assert_frame_equal
from scipy.stats import false_discovery_control, rankdata, ttest_1samp

from id_scaling.errors import ConfigError, StoreError
from id_scaling.neighbors.views import DEFAULT_VIEWS
from id_scaling.plots.caveats import remarks
from id_scaling.plots.depth import id_by_layer
from id_scaling.plots.report import write_report
from id_scaling.plots.style import NothingToShowError
from id_scaling.results.columns import COLUMNS, COMPANIONS
from id_scaling.results.equivalent_tables import TABLES
from id_scaling.results.equivalents import DIMENSION, N_POINTS, equivalent
from id_scaling.results.estimates import SCHEMA
from id_scaling.results.load import load_contexts, load_summary, load_tokens
from id_scaling.results.permutations import N_FIRST
from id_scaling.results.summary import summarize
from id_scaling.results.text_table import readable
from id_scaling.results.uncertainty import mean_interval, rank_correlation
from id_scaling.runtime.atomic_files import digest
from id_scaling.runtime.logging import LOG
from id_scaling.storage import records as sealed
from id_scaling.storage.layout import Run, contexts_path, extraction_digest, ids_path, run_folder, runs_of
from id_scaling.storage.records import write_record
from id_scaling.text import documents as grouping
from id_scaling.text.documents import MOST_VALUES

VIEWS = {name: vars(view) for name, view in DEFAULT_VIEWS.items()}
EXTRACTION = {"code": "code-of-extract", "views": VIEWS, "positions": []}
SETTINGS: dict[str, Any] = {
    "models": [{"name": "owner--model", "checkpoints": ["main"]}],
    "datasets": [{"name": "words", "subsets": [0]}],
    "lengths": [64],
    "clouds": ["context"],
    "positions": {"64": []},
    "controls": ["none"],
    "group_by": {},
    "family_per": "run",
    "tokenizers": {"owner--model": "owner--tokenizer"},
    "extractions": {"owner--model": extraction_digest(EXTRACTION)},
    "modules": ["block", "emb"],
    "estimators": [["mle", "code-of-mle"]],
    "names": {
        "model": {"owner--model": "owner/model"},
        "checkpoint": {"main": "main", "step-1": "step/1"},
        "dataset": {"words": "./words"},
    },
}
VERSIONS = {"numpy": "2.1", "polars": "1.30"}
NAN = float("nan")

# (value, status) of each context, by (view, layer, module).
VALUES: dict[tuple, list[tuple[float, str]]] = {
    ("default", 0, "block"): [(3.0, "ok"), (5.0, "ok"), (10.0, "ok")],
    ("default", 1, "block"): [(4.0, "ok"), (NAN, "degenerate"), (NAN, "nonfinite"), (6.0, "ok"), (NAN, "degenerate")],
    ("default", None, "emb"): [(20.0, "saturated"), (7.0, "ok")],
    ("origin", 0, "block"): [(NAN, "degenerate"), (NAN, "degenerate")],
}


def table_of(module: str, estimator: str = "mle", values: dict | None = None) -> pl.DataFrame:
    """Return the ids table of a module."""
    rows = [
        {
            "view": view,
            "cloud": "context",
            "context": context,
            "layer": layer,
            "module": key,
            "estimator": estimator,
            "value": value,
            "stderr": value / 10,
            "status": status,
            "n_points": 63,
            "n_distinct": 60 + context,
            "n_nonfinite": 0,
            "n_used": 60,
            "median_r1": 1.0 + context,
            "tiny_r1": 0.1,
            "top_share": 0.2,
            "median_norm": 2.0,
            "participation_ratio": 3.0,
            "effective_rank": 3.5,
            "nn_same_token": 0.25,
            "nn_within_5": 0.5,
        }
        for (view, layer, key), clouds in (values or VALUES).items()
        if key == module
        for context, (value, status) in enumerate(clouds)
    ]
    return pl.DataFrame(rows, schema=SCHEMA)


# Of five contexts: of three documents, the last of which says nothing of itself.
METADATA = [
    *['{"lang":"en","meta":{"set":"Books","year":1946}}'] * 2,
    *['{"a.b":true,"lang":"en","meta":{"set":"Web"}}'] * 2,
    None,
]
DOCUMENTS = [0, 0, 1, 1, 2]
STARTS = [0, 64, 0, 64, 0]


def write_contexts_to(path: Path, contexts: pl.DataFrame) -> str:
    """Write contexts; return what a manifest says of them, which depends on their content here."""
    facts = {"settings": {}, "made_from": {}, "tokens_sha256": digest(contexts.write_csv()), "documents_sha256": "d"}
    sealed.write_table(path, contexts, facts)
    return facts["tokens_sha256"]


def write_contexts(session: Path, run: Run) -> str:
    """Write the contexts of a run, as far as a summary reads them; return their key."""
    path = contexts_path(session, run, SETTINGS["tokenizers"][run.model])
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"document": DOCUMENTS, "token_start": STARTS, "metadata": METADATA}
    columns |= {"document_id": list("aabbc"), "chunk": [start // 64 for start in STARTS]}
    columns |= {"token_stop": [start + 64 for start in STARTS]}
    return write_contexts_to(path, pl.DataFrame({"context": range(5), **columns}))


def write_these_contexts(session: Path, contexts: pl.DataFrame) -> None:
    """Write other contexts of the run, and have its manifest name them."""
    path = contexts_path(session, RUN, SETTINGS["tokenizers"][RUN.model])
    key, manifest = write_contexts_to(path, contexts), sealed.read_record(run_folder(session, RUN) / "manifest.json")
    write_record(run_folder(session, RUN) / "manifest.json", {**manifest, "contexts": key})


def write_run(session: Path, run: Run, digest: str = "d1", **versions: str) -> None:
    """Write manifest and tokens of a run."""
    folder = run_folder(session, run)
    folder.mkdir(parents=True)
    manifest = {
        "digest": digest,
        "contexts": write_contexts(session, run),
        "settings": EXTRACTION,
        "n_layers": 9,
        "sites": [["block", layer, ""] for layer in range(9)] + [["emb", None, ""]],
        "n_parameters": 70,
        "n_embedding_parameters": 20,
        "versions": {"torch": "2.6", **versions},
        "dtype": "float32",
        "device": "cpu",
    }
    write_record(folder / "manifest.json", manifest)
    tokens = {
        "context": [0, 0, 0, 1, 1, 1],
        "token": [5, 7, 7, 5, 6, 7],
        "position": [0, 1, 2, 0, 1, 2],
        # A first token has no loss; whatever stands there is left out.
        "loss": [NAN, 2.0, 4.0, NAN, 3.0, 7.0],
        "entropy": [99.0, 1.0, 2.0, 99.0, 3.0, 4.0],
    }
    sealed.write_table(folder / "tokens.parquet", pl.DataFrame(tokens), {"digest": digest})


def write_table(session: Path, run: Run, table: pl.DataFrame, **facts: Any) -> Path:
    """Write an ids table with what it says of how it was made."""
    path = ids_path(session, run, table["module"][0], table["estimator"][0])
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {"settings": {"code": "code-of-mle", "clouds": ["context"]}, "manifest": "d1", "versions": VERSIONS, **facts}
    sealed.write_table(path, table, made)
    return path


RUN = Run("owner--model", "main", "words", 0, 64, "none")


@pytest.fixture
def session(tmp_path: Path) -> Path:
    """A session of one run, made by hand."""
    write_run(tmp_path / "session", RUN)
    for module in SETTINGS["modules"]:
        write_table(tmp_path / "session", RUN, table_of(module))
    return tmp_path / "session"


def summary_of(session: Path, **changes: Any) -> pl.DataFrame:
    """Summarize a session and return the table."""
    outputs = [session / f"summary.{kind}" for kind in ("parquet", "csv", "txt")]
    summarize(session, {**SETTINGS, **changes}, *outputs)
    return load_summary(session)


def row_of(summary: pl.DataFrame, view: str, layer: int | None, module: str) -> dict[str, Any]:
    """Return one row."""
    is_it = (pl.col("view") == view) & (pl.col("module") == module) & pl.col("layer").eq_missing(layer)
    (row,) = summary.filter(is_it).to_dicts()
    return row


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The package's log, which goes no further once a verb has run in this process."""
    level = LOG.level
    LOG.setLevel(logging.DEBUG)
    LOG.addHandler(caplog.handler)
    yield caplog
    LOG.removeHandler(caplog.handler)
    LOG.setLevel(level)


def warned(log: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings in a log."""
    return sorted({record.getMessage() for record in log.records if record.levelno >= logging.WARNING})


# ---- numbers ---------------------------------------------------------------------------------------------------


def test_columns_are_those_documented_in_their_order(session: Path) -> None:
    assert summary_of(session).columns == [name for name, _, _ in COLUMNS]


def test_one_row_per_view_layer_and_module(session: Path) -> None:
    keys = summary_of(session).select("view", "layer", "module", "estimator", "cloud").rows()
    assert keys == [(*key, "mle", "context") for key in [*[k for k in VALUES if k[2] == "block"], *list(VALUES)[2:3]]]


def test_mean_median_and_sd_are_of_the_contexts_that_are_ok(session: Path) -> None:
    summary = summary_of(session)
    whole = row_of(summary, "default", 0, "block")
    # Of 3, 5 and 10: mean 6, median 5, squares 9 + 1 + 16 = 26 over two degrees of freedom.
    assert (whole["mean"], whole["median"]) == (6.0, 5.0)
    assert whole["sd"] == pytest.approx(13**0.5, rel=1e-15)
    assert whole["stderr"] == 0.5
    assert (whole["n_contexts"], whole["n_failed"], whole["statuses"]) == (3, 0, "")
    partial = row_of(summary, "default", 1, "block")
    assert (partial["mean"], partial["median"], partial["stderr"]) == (5.0, 5.0, 0.5)
    assert partial["sd"] == pytest.approx(2**0.5, rel=1e-15)


def test_statuses_that_are_not_ok_are_counted(session: Path) -> None:
    summary = summary_of(session)
    partial = row_of(summary, "default", 1, "block")
    assert (partial["n_contexts"], partial["n_failed"]) == (5, 3)
    assert partial["statuses"] == "degenerate: 2, nonfinite: 1"
    at_ceiling = row_of(summary, "default", None, "emb")
    assert (at_ceiling["mean"], at_ceiling["n_failed"], at_ceiling["statuses"]) == (7.0, 1, "saturated: 1")
    # One context has no spread.
    assert at_ceiling["sd"] is None


def test_site_without_an_estimate_has_no_number_and_keeps_its_row(session: Path) -> None:
    none = row_of(summary_of(session), "origin", 0, "block")
    assert [none[name] for name in ("mean", "median", "sd", "stderr")] == [None] * 4
    assert (none["n_contexts"], none["n_failed"], none["statuses"]) == (2, 2, "degenerate: 2")


def test_companions_are_means_over_the_contexts_that_are_ok(session: Path) -> None:
    """As the mean of the ID is: contexts 0 and 3 of five."""
    partial = row_of(summary_of(session), "default", 1, "block")
    assert (partial["n_points"], partial["n_distinct"], partial["n_used"]) == (63.0, 61.5, 60.0)
    assert (partial["median_r1"], partial["median_norm"], partial["participation_ratio"]) == (2.5, 2.0, 3.0)
    assert (partial["nn_same_token"], partial["nn_within_5"]) == (0.25, 0.5)
    assert (partial["tiny_r1"], partial["effective_rank"], partial["top_share"]) == (0.1, 3.5, 0.2)
    none = row_of(summary_of(session), "origin", 0, "block")
    assert [none[name] for name in COMPANIONS] == [None] * len(COMPANIONS)


def test_points_of_clouds_without_an_estimate_do_not_lower_the_mean_and_its_equivalent(session: Path) -> None:
    """78 clouds of 92 points and 66 of none: 92 points a mean and not 49.8, of which nothing was simulated."""
    values = {("default", 0, "block"): [(5.4, "ok")] * 78 + [(NAN, "too_few_points")] * 66}
    metadata = {"context": range(144), "document": range(144), "token_start": [0] * 144, "metadata": ["{}"] * 144}
    write_these_contexts(session, pl.DataFrame(metadata))
    table = table_of("block", "mle_harmonic", values)
    table = table.with_columns(n_used=pl.when(pl.col("status") == "ok").then(92).otherwise(0).cast(pl.Int64))
    write_table(session, RUN, table)
    (row,) = summary_of(session, modules=["block"], estimators=[["mle_harmonic", "code-of-mle"]]).to_dicts()
    assert (row["n_used"], row["n_contexts"], row["n_failed"]) == (92.0, 144, 66)
    assert row["value_gaussian_equivalent"] == equivalent(5.4, 92, "mle_harmonic", "gaussian")[0]
    assert row["equivalent_status"] == "ok"


def test_loss_and_entropy_leave_out_the_first_token_of_each_context(session: Path) -> None:
    summary = summary_of(session)
    assert summary["mean_loss"].unique().to_list() == [4.0]
    assert summary["mean_entropy"].unique().to_list() == [2.5]


def test_every_column_is_documented_in_the_file_itself(session: Path) -> None:
    summary = summary_of(session)
    said = json.loads(pl.read_parquet_metadata(session / "summary.parquet")["columns"])
    assert list(said) == summary.columns
    assert said["mean_loss"]["unit"] == "nats/token"
    assert all(column["meaning"] for column in said.values())


def test_depth_size_and_training_are_columns(session: Path) -> None:
    write_run(session, replace(RUN, checkpoint="step4"), digest="d2")
    for module in SETTINGS["modules"]:
        write_table(session, replace(RUN, checkpoint="step4"), table_of(module), manifest="d2")
    models = [{"name": "owner--model", "checkpoints": ["main", "step4"]}]
    summary = summary_of(session, models=models)
    depths = dict(summary.select(pl.coalesce(pl.col("layer").cast(str), "module"), "relative_depth").iter_rows())
    assert depths == {"0": pytest.approx(1 / 9), "1": pytest.approx(2 / 9), "emb": 0.0}  # of nine blocks
    assert summary["n_parameters"].unique().to_list() == [70]
    assert summary["n_embedding_parameters"].unique().to_list() == [20]
    of = dict(summary.select("checkpoint", pl.struct("training_step", "training_tokens")).iter_rows())
    assert {name: tuple(found.values()) for name, found in of.items()} == {"main": (None, None), "step4": (4, None)}


def test_rows_carry_the_names_of_the_configuration_and_the_settings_of_their_view(session: Path) -> None:
    summary = summary_of(session)
    names = summary.select("model", "checkpoint", "dataset", "subset", "ctx_len", "control").unique().rows()
    assert names == [("owner/model", "main", "./words", 0, 64, "none")]
    assert summary.select("dtype", "device").unique().rows() == [("float32", "cpu")]
    views = summary.select("view", "skip_first_tokens", "duplicates", "preprocess").unique(maintain_order=True).rows()
    assert sorted(views) == [("default", 1, "distinct", "raw"), ("origin", 0, "keep", "raw")]
    assert summary["versions"].unique().to_list() == ["extraction: torch 2.6; estimate: numpy 2.1, polars 1.30"]


def test_runs_are_the_product_of_the_axes() -> None:
    axes = {
        "models": [{"name": "a", "checkpoints": ["x", "y"]}, {"name": "b", "checkpoints": ["z"]}],
        "datasets": [{"name": "d", "subsets": [0, 2]}, {"name": "e", "subsets": [1]}],
        "lengths": [48, 64],
        "controls": ["none"],
    }
    expected = [
        Run(model, checkpoint, dataset, subset, ctx_len, "none")
        for model, checkpoint in (("a", "x"), ("a", "y"), ("b", "z"))
        for dataset, subset in (("d", 0), ("d", 2), ("e", 1))
        for ctx_len in (48, 64)
    ]
    found = list(runs_of(axes))
    assert sorted(found, key=str) == sorted(expected, key=str)


def test_every_run_and_estimator_of_the_session_is_in_the_summary(session: Path) -> None:
    other = Run("owner--model", "step-1", "words", 0, 64, "none")
    write_run(session, other)
    for run in (RUN, other):
        for module in SETTINGS["modules"]:
            write_table(session, run, table_of(module), settings={"code": "code-of-mle", "clouds": ["context"]})
            write_table(
                session, run, table_of(module, "mind_ml"), settings={"code": "code-of-mind", "clouds": ["context"]}
            )
    models = [{"name": "owner--model", "checkpoints": ["main", "step-1"]}]
    summary = summary_of(session, models=models, estimators=[["mle", "code-of-mle"], ["mind_ml", "code-of-mind"]])
    assert summary.group_by("checkpoint", "estimator").len().sort("checkpoint", "estimator").rows() == [
        ("main", "mind_ml", 4),
        ("main", "mle", 4),
        ("step/1", "mind_ml", 4),
        ("step/1", "mle", 4),
    ]


# ---- clouds of all contexts ------------------------------------------------------------------------------------


def with_clouds_of_run(session: Path, status: str = "ok") -> pl.DataFrame:
    """Add to the table of the blocks a row of the mean and one of a position; return the two."""
    (row,) = table_of("block").filter(layer=0, view="default", context=0).to_dicts()
    row |= {"context": None, "value": 4.0 if status == "ok" else NAN, "stderr": 0.25, "status": status}
    row |= {"n_points": 5, "n_used": 5, "nn_within_5": None}
    rows = [{**row, "cloud": "mean"}, {**row, "cloud": "position", "position": 63}]
    added = pl.DataFrame(rows, schema=SCHEMA)
    write_table(session, RUN, pl.concat([table_of("block"), added]))
    return added


def test_cloud_of_all_contexts_has_a_row_of_the_level_of_the_run(session: Path) -> None:
    plain = summary_of(session)
    with_clouds_of_run(session)
    summary = summary_of(session)
    assert summary.filter(level="context").equals(plain, null_equal=True)
    rows = summary.filter(level="run")
    assert rows.select("cloud", "position", "layer", "module").rows() == [
        ("mean", None, 0, "block"),
        ("position", 63, 0, "block"),
    ]
    for row in rows.to_dicts():
        assert (row["mean"], row["median"], row["sd"], row["stderr"]) == (4.0, 4.0, None, 0.25)
        assert (row["n_contexts"], row["n_failed"], row["n_used"], row["n_documents"]) == (1, 0, 5.0, 3)
        assert (row["interval"], row["skip_first_tokens"], row["duplicates"]) == ("one_cloud", None, "distinct")
        assert [row[name] for name in UNCERTAIN] == [None] * len(UNCERTAIN)
        assert (row["mean_loss"], row["relative_depth"]) == (4.0, pytest.approx(1 / 9))
        assert (row["nn_same_token"], row["nn_within_5"]) == (0.25, None)
        assert row["equivalent_status"] == "out_of_range"  # of five points


def test_cloud_of_all_contexts_without_an_estimate_is_counted(session: Path) -> None:
    with_clouds_of_run(session, "too_few_points")
    summary = summary_of(session)
    for cloud in ("mean", "position"):
        assert (True, f"Cloud `{cloud}`: 1 of 1 have no estimate: too_few_points.") in remarks(summary)
    for row in summary.filter(level="run").to_dicts():
        assert (row["mean"], row["n_contexts"], row["n_failed"], row["n_documents"]) == (None, 1, 1, 3)
        assert (row["statuses"], row["interval"]) == ("too_few_points: 1", "one_cloud")


def test_groups_and_figures_are_of_contexts_alone_and_text_says_what_is_not(session: Path) -> None:
    groups = {"words": ["lang", "meta.set"]}
    plain = summary_of(session, group_by=groups)
    with_clouds_of_run(session)
    summary = summary_of(session, group_by=groups)
    assert summary.filter(pl.col("group").is_not_null())["level"].unique().to_list() == ["context"]
    assert summary.filter(level="context").equals(plain, null_equal=True)
    assert len(summary) == len(plain) + 2
    lines = readable(summary).splitlines()
    start = lines.index("  one cloud of 5 contexts: mean")
    assert lines[start + 1].split() == ["block", "mle", "4.00", "0/1"]
    assert lines[start + 2] == "  one cloud of 5 contexts: position 63"
    assert lines[:start] + lines[start + 4 :] == readable(plain).splitlines()
    assert id_by_layer(summary) == id_by_layer(plain)
    assert remarks(summary) == remarks(plain)


def test_session_of_clouds_of_all_contexts_alone_is_summarized(session: Path) -> None:
    write_table(session, RUN, with_clouds_of_run(session))
    summary = summary_of(session, modules=["block"])
    assert summary["level"].to_list() == ["run", "run"]
    assert "one cloud of 5 contexts: mean\n  block   mle" in readable(summary)
    with pytest.raises(NothingToShowError, match="no cloud is of one context"):
        id_by_layer(summary)
    ((is_doubt, said),) = remarks(summary)
    assert is_doubt
    assert "No cloud is of one context" in said
    write_report(summary, {}, session / "report.html")
    assert "5 contexts of 3 documents" in (session / "report.html").read_text()


# ---- groups ----------------------------------------------------------------------------------------------------


def groups_of(summary: pl.DataFrame, key: str | None) -> dict[str | None, dict[str, Any]]:
    """Return the row of each value of a group, of the block 1 of five contexts."""
    is_it = (pl.col("view") == "default") & (pl.col("layer") == 1) & pl.col("group").eq_missing(key)
    return {row["group_value"]: row for row in summary.filter(is_it).to_dicts()}


def test_group_has_a_row_for_each_of_its_values_of_the_contexts_with_it(session: Path) -> None:
    """Contexts 0 and 1 are of Books, 2 and 3 of Web; 4, 5 and 6 in the values are ok, 1, 2 and 4 are not."""
    rows = groups_of(summary_of(session, group_by={"words": ["meta.set", "meta.year"]}), "meta.set")
    assert list(rows) == ["Books", "Web", None]
    assert [rows[value]["mean"] for value in rows] == [4.0, 6.0, None]
    assert [rows[value]["n_contexts"] for value in rows] == [2, 2, 1]
    assert [rows[value]["statuses"] for value in rows] == ["degenerate: 1", "nonfinite: 1", "degenerate: 1"]
    # Of the two contexts that have tokens: losses 2 and 4, and 3 and 7; both of Books.
    assert [rows[value]["mean_loss"] for value in rows] == [4.0, None, None]
    assert [rows[value]["median_r1"] for value in rows] == [1.0, 4.0, None]


def test_loss_and_entropy_of_a_group_are_of_its_contexts(session: Path) -> None:
    metadata = ['{"n":1}', '{"n":2}']
    table = pl.DataFrame({"context": range(2), "document": range(2), "token_start": [0, 0], "metadata": metadata})
    write_these_contexts(session, table)
    two = {("default", 1, "block"): [(3.0, "ok"), (5.0, "ok")], ("default", None, "emb"): [(1.0, "ok")] * 2}
    for module in SETTINGS["modules"]:
        write_table(session, RUN, table_of(module, values=two))
    rows = groups_of(summary_of(session, group_by={"words": ["n"]}), "n")
    found = {value: (row["mean"], row["mean_loss"], row["mean_entropy"]) for value, row in rows.items()}
    assert found == {"1": (3.0, 3.0, 1.5), "2": (5.0, 5.0, 3.5)}


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("lang", ["en", None]),
        ("meta.year", ["1946", None]),
        ("a.b", [None, "true"]),
        ("meta.set", ["Books", "Web", None]),
    ],
)
def test_values_are_text_and_a_document_without_the_field_has_none(key: str, values: list, session: Path) -> None:
    assert list(groups_of(summary_of(session, group_by={"words": [key]}), key)) == values


def test_rows_of_all_contexts_are_those_without_groups(session: Path) -> None:
    plain, grouped = summary_of(session), summary_of(session, group_by={"words": ["lang", "meta.set"]})
    assert grouped.filter(pl.col("group").is_null()).equals(plain, null_equal=True)
    assert plain["group_value"].null_count() == len(plain)
    assert grouped["group"].unique(maintain_order=True).to_list() == [None, "lang", "meta.set"]
    assert readable(grouped) == readable(plain)


def test_figure_is_of_all_contexts(session: Path) -> None:
    grouped = summary_of(session, group_by={"words": ["lang", "meta.set"]})
    assert id_by_layer(grouped) == id_by_layer(grouped.filter(pl.col("group").is_null()))


def test_key_that_no_record_has_names_those_there_are(session: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"group_by: no document of .*contexts\.parquet has 'meta\.sett'; .*meta\.set"
    ):
        summary_of(session, group_by={"words": ["lang", "meta.sett"]})
    with pytest.raises(
        ConfigError, match=r"'xxxxxx'; besides text and id they have a\.b, lang, meta\.set, meta\.year$"
    ):
        summary_of(session, group_by={"words": ["xxxxxx"]})
    assert not (session / "summary.parquet").exists()


@pytest.mark.parametrize("n_values", [MOST_VALUES, MOST_VALUES + 1])
def test_more_values_than_can_be_summarized_are_an_error(n_values: int, tmp_path: Path) -> None:
    path = tmp_path / "contexts.parquet"
    metadata = [f'{{"n":{number}}}' for number in range(n_values)]
    key = write_contexts_to(path, pl.DataFrame({"context": range(n_values), "metadata": metadata}))
    if n_values <= MOST_VALUES:
        (group,) = grouping.groups_of(path, key, ("n",))
        assert group["group_value"].n_unique() == n_values
        return
    with pytest.raises(ConfigError, match=r"'n' has 1001 values in .*contexts\.parquet, at most 1000"):
        grouping.groups_of(path, key, ("n",))


def test_contexts_that_are_not_those_of_the_extraction_are_refused(session: Path) -> None:
    path = contexts_path(session, RUN, SETTINGS["tokenizers"][RUN.model])
    write_contexts_to(path, pl.DataFrame({"context": range(5), "metadata": METADATA[::-1]}))
    words = r"contexts\.parquet: not the contexts that were extracted: .* run the workflow"
    for keys in ([], ["lang"]):
        with pytest.raises(StoreError, match=words):
            summary_of(session, group_by={"words": keys})
    path.unlink()
    with pytest.raises(StoreError, match=r"contexts\.parquet"):
        summary_of(session)


# ---- documents -------------------------------------------------------------------------------------------------

N_DOCUMENTS = 24


def write_documents(session: Path, run: Run = RUN, n_documents: int = N_DOCUMENTS) -> pl.DataFrame:
    """Write a run of documents of two contexts, which do not stand together; return the contexts."""
    random = np.random.default_rng(0)
    n = 2 * n_documents
    contexts = pl.DataFrame(
        {
            "context": range(n),
            "document": [number % n_documents for number in range(n)],
            "token_start": [64 * (number // n_documents) for number in range(n)],
            "metadata": [f'{{"half":{number % n_documents % 2}}}' for number in range(n)],
            "entropy": random.standard_normal(n),
            "loss": random.standard_normal(n),
        }
    )
    path = contexts_path(session, run, SETTINGS["tokenizers"][run.model])
    key = write_contexts_to(path, contexts.select("context", "document", "token_start", "metadata"))
    folder = run_folder(session, run)
    write_record(folder / "manifest.json", {**sealed.read_record(folder / "manifest.json"), "contexts": key})
    tokens = pl.concat(
        [
            contexts.select("context", "loss", "entropy", token=pl.lit(position), position=pl.lit(position))
            for position in (0, 1)
        ]
    )
    first = pl.when(pl.col("position") == 0).then(99.0)
    tokens = tokens.with_columns(first.otherwise(name).alias(name) for name in ("loss", "entropy"))
    sealed.write_table(folder / "tokens.parquet", tokens, {"digest": "d1"})
    values = {
        ("default", layer, "block"): [
            (float(value), "ok" if number % 9 or layer else "degenerate")
            for number, value in enumerate(10 + random.standard_normal(n) + layer * contexts["loss"].to_numpy())
        ]
        for layer in range(4)
    }
    values["default", None, "emb"] = [(5.0, "ok")] * n
    for module in SETTINGS["modules"]:
        write_table(session, run, table_of(module, values=values).sample(fraction=1, shuffle=True, seed=0))
    return contexts


UNCERTAIN = [name for name, _, _ in COLUMNS if name.split("_")[0] in {"ci", "spearman", "p", "q", "partial"}]


def test_uncertainty_is_of_the_contexts_that_are_ok_in_the_order_of_documents(session: Path) -> None:
    contexts = write_documents(session).sort("document", "context")
    summary = summary_of(session)
    tables = pl.concat([pl.read_parquet(ids_path(session, RUN, module, "mle")) for module in SETTINGS["modules"]])
    for row in summary.iter_rows(named=True):
        is_it = (pl.col("module") == row["module"]) & pl.col("layer").eq_missing(row["layer"])
        found = contexts.join(tables.filter(is_it, pl.col("status") == "ok"), on="context", maintain_order="left")
        assert row["n_documents"] == found["document"].n_unique() == N_DOCUMENTS
        assert row["interval"] == "bootstrap"
        assert row["mean"] == pytest.approx(found["value"].mean(), rel=1e-12)
        sizes = np.unique(found["document"], return_counts=True)[1]
        values = found["value"].to_numpy()[None]
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(np.ravel(mean_interval(values, sizes))), rel=1e-9)
        for score in ("loss", "entropy"):
            given = values, found[score].to_numpy()
            # Each context has as many different tokens here: its start alone says anything.
            partial = rank_correlation(*given, sizes, found["token_start"].to_numpy()[None].astype(float))
            expected = np.ravel([*rank_correlation(*given, sizes), *partial])
            kinds = [f"spearman_{score}", f"partial_{score}"]
            of_kind = [[kind, f"{kind}_low", f"{kind}_high", f"p_{kind.removeprefix('spearman_')}"] for kind in kinds]
            names = [name for names in of_kind for name in names]
            if row["module"] == "emb":
                assert [row[name] for name in names] == [None] * 8
            else:
                assert [row[name] for name in names] == pytest.approx(expected, rel=1e-9)
    assert row_of(summary, "default", 3, "block")["p_loss"] == 1 / (N_FIRST + 1)


def test_family_is_of_all_rows_of_a_group_view_cloud_and_estimator(session: Path) -> None:
    other = Run("owner--model", "step-1", "words", 0, 64, "none")
    write_run(session, other)
    for run in (RUN, other):
        write_documents(session, run)
    models = [{"name": "owner--model", "checkpoints": ["main", "step-1"]}]
    summary = summary_of(session, models=models, group_by={"words": ["half"]})
    for score, group in product(("loss", "entropy", "partial_loss"), (None, "half")):
        rows = summary.filter(pl.col("group").eq_missing(group))
        p, q = (rows[f"{kind}_{score}"] for kind in "pq")
        n_groups = 1 if group is None else 2 * (score in ("loss", "entropy"))
        assert len(p.drop_nulls()) == 2 * 4 * n_groups
        assert (p.is_null() == q.is_null()).all()
        if n_groups:  # half of 24 documents are too few for partial correlations
            assert q.drop_nulls().to_list() == pytest.approx(false_discovery_control(p.drop_nulls()), rel=1e-12)
            assert (q != p).any()


def test_one_more_checkpoint_changes_no_row_of_another_unless_families_are_of_more_than_a_run(session: Path) -> None:
    write_documents(session)
    alone = summary_of(session)
    other = replace(RUN, checkpoint="step-1")
    write_run(session, other)
    write_documents(session, other)
    models = [{"name": "owner--model", "checkpoints": ["main", "step-1"]}]
    families = ("run", "model", "study")
    of_run, of_model, of_study = (summary_of(session, models=models, family_per=per) for per in families)
    assert of_run.filter(checkpoint="main").equals(alone, null_equal=True)
    assert of_model.equals(of_study, null_equal=True)
    for test in ("loss", "partial_entropy"):
        rows, n = of_study.filter(pl.col(f"p_{test}").is_not_null()), 2 * 4
        assert rows[f"q_{test}"].to_list() == pytest.approx(false_discovery_control(rows[f"p_{test}"]), rel=1e-12)
        assert rows[f"q_{test}_floor"].to_list() == pytest.approx([n / (N_FIRST + 1)] * n, rel=1e-12)
        # The other run has the same documents, so the same permutations, and the same values.
        assert rows[f"p_{test}_maxt"].to_list() == of_run.filter(layer=pl.col("layer"))[f"p_{test}_maxt"].to_list()


def test_max_t_of_a_family_is_at_least_the_p_value_of_each_row(session: Path) -> None:
    write_documents(session)
    rows = summary_of(session).filter(pl.col("p_loss").is_not_null())
    assert len(rows) == 4
    for test in ("loss", "entropy", "partial_loss", "partial_entropy"):
        p, by_maximum = rows[f"p_{test}"], rows[f"p_{test}_maxt"]
        assert (by_maximum >= p).all()
        assert (by_maximum <= 4 * p + 0.01).all()  # Bonferroni's, but for chance in the permutations
    assert rows.filter(layer=3)["p_loss_maxt"].item() == 1 / (N_FIRST + 1)


def test_families_of_different_contexts_have_maxima_of_their_own(session: Path) -> None:
    """Of two views and two estimators, whose failures are not those of each other; each as if there were no other."""
    write_documents(session)
    table = pl.read_parquet(ids_path(session, RUN, "block", "mle"))
    status = pl.when(pl.col("context") % 5 == 0).then(pl.lit("degenerate")).otherwise("status")
    other = table.with_columns(view=pl.lit("origin"), status=status, value=-pl.col("value"))
    estimators = [["mle", "code-of-mle"], ["mle_k5", "code-of-mle"]]
    alone = {}
    for (name, code), views in product(estimators, ([table], [other], [other, table])):
        of_views = pl.concat(views).with_columns(
            estimator=pl.lit(name), value=pl.col("value").pow(1 + 2 * len(name[3:]))
        )
        write_table(session, RUN, of_views)
        if len(views) == 1:
            alone[of_views["view"][0], name] = summary_of(session, modules=["block"], estimators=[[name, code]])
    together = summary_of(session, modules=["block"], estimators=estimators)
    assert together["p_loss_maxt"].null_count() < len(together)
    for (view, name), only in alone.items():
        rows = together.filter(view=view, estimator=name)
        names = [column for column in UNCERTAIN if rows[column].dtype == pl.Float64]
        assert_frame_equal(rows.select("layer", *names), only.select("layer", *names), rel_tol=1e-12)


def test_few_documents_have_a_floor_of_q(session: Path) -> None:
    write_documents(session, n_documents=5)
    rows = summary_of(session).filter(pl.col("p_loss").is_not_null())
    assert sorted(rows["layer"]) == [1, 2, 3]  # the first has too few contexts in one document to exchange it
    assert rows["q_loss_floor"].to_list() == pytest.approx([3 / 120] * 3)
    # All three rows may be effects: 1/120 then, but for chance in 10,000 permutations.
    assert (rows["p_loss"] >= 0.7 / 120).all()
    assert (rows["q_loss"] >= 0.7 / 120).all()


def test_group_has_the_uncertainty_of_its_own_documents(session: Path) -> None:
    contexts = write_documents(session)
    rows = summary_of(session, group_by={"words": ["half"]}).filter(pl.col("layer") == 3)
    whole, even, odd = rows.iter_rows(named=True)
    assert [row["n_documents"] for row in (whole, even, odd)] == [24, 12, 12]
    assert [row["interval"] for row in (whole, even, odd)] == ["bootstrap", "t", "t"]
    values = pl.read_parquet(ids_path(session, RUN, "block", "mle")).filter(pl.col("layer") == 3)
    found = contexts.join(values, on="context").filter(pl.col("document") % 2 == 1)
    found = found.group_by("document").agg(pl.col("value").mean())
    # Documents have two contexts each, so that the mean is that of their means.
    student = ttest_1samp(found["value"], 0).confidence_interval()
    assert (odd["ci_low"], odd["ci_high"]) == pytest.approx((student.low, student.high), rel=1e-6)
    assert even["ci_low"] < even["mean"] < even["ci_high"]
    assert odd["spearman_loss_low"] is None
    assert odd["p_loss"] is not None


def test_sources_are_a_covariate_of_the_rows_of_all_contexts(session: Path) -> None:
    contexts = write_documents(session).sort("document", "context")
    grouped = {"group_by": {"words": ["half"]}}
    summaries = (summary_of(session, **of).filter(pl.col("group").is_null()) for of in ({}, grouped))
    plain, given = (row_of(summary, "default", 3, "block") for summary in summaries)
    values = pl.read_parquet(ids_path(session, RUN, "block", "mle")).filter(pl.col("layer") == 3)
    found = contexts.join(values, on="context", maintain_order="left")
    is_odd = found["document"] % 2 == 1
    design = np.column_stack([np.ones(len(found)), rankdata(found["token_start"]), is_odd])
    ranks = np.column_stack([rankdata(found["value"]), rankdata(found["loss"])])
    x, y = (ranks - design @ np.linalg.lstsq(design, ranks)[0]).T
    assert given["partial_loss"] == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-9)
    assert given["partial_loss"] != plain["partial_loss"]
    assert given["spearman_loss"] == plain["spearman_loss"]
    assert given["partial_loss_low"] < given["partial_loss"] < given["partial_loss_high"]


@pytest.mark.parametrize(("n_documents", "is_known"), [(20, False), (21, True)])
def test_a_source_takes_a_document(n_documents: int, is_known: bool, session: Path) -> None:
    write_documents(session, n_documents=n_documents)
    summary = summary_of(session, group_by={"words": ["half"]})
    row = row_of(summary.filter(pl.col("group").is_null()), "default", 1, "block")
    names = ["partial_loss", "partial_loss_low", "partial_loss_high", "p_partial_loss", "q_partial_loss"]
    assert [row[name] is not None for name in names] == [is_known] * 5


@pytest.mark.parametrize(("n_documents", "word"), [(4, "too_few_documents"), (5, "t"), (19, "t"), (20, "bootstrap")])
def test_number_of_documents_says_which_interval(n_documents: int, word: str, session: Path) -> None:
    write_documents(session, n_documents=n_documents)
    row = row_of(summary_of(session), "default", 1, "block")
    assert (row["n_documents"], row["interval"]) == (n_documents, word)
    assert (row["ci_low"] is None) == (row["p_loss"] is None) == (n_documents < 5)


def test_without_enough_documents_there_is_no_number(session: Path) -> None:
    summary = summary_of(session, group_by={"words": ["lang"]})
    assert summary["interval"].unique().to_list() == ["too_few_documents"]
    assert summary.select(UNCERTAIN).null_count().row(0) == (len(summary),) * len(UNCERTAIN)
    assert len(UNCERTAIN) == 30
    assert row_of(summary.filter(pl.col("group").is_null()), "default", 1, "block")["n_documents"] == 2
    assert row_of(summary.filter(pl.col("group").is_null()), "origin", 0, "block")["n_documents"] == 0


# ---- equivalents -----------------------------------------------------------------------------------------------


def equivalents_of(session: Path, means: dict[str, float], n_used: int = 512) -> dict[str, dict[str, Any]]:
    """Return the rows of one site of several estimators, by estimator."""
    for name, mean in means.items():
        table = table_of("block", name, {("default", 0, "block"): [(mean, "ok")] * 5})
        write_table(session, RUN, table.with_columns(n_used=pl.lit(n_used)))
    summary = summary_of(session, modules=["block"], estimators=[[name, "code-of-mle"] for name in means])
    return {row["estimator"]: row for row in summary.to_dicts()}


def test_estimators_that_agree_about_a_distribution_do_not_reject_it(session: Path) -> None:
    """Means of clouds of a Gaussian of 10 dimensions and 512 points, from the tables of simulations."""
    means = {name: TABLES[name]["gaussian"][N_POINTS.index(512)][DIMENSION.index(10)] for name in ("mle", "mind_ml")}
    for row in equivalents_of(session, means).values():
        assert row["value_gaussian_equivalent"] == pytest.approx(10, rel=1e-6)
        assert (row["equivalent_status"], row["equivalents_rejected"]) == ("ok", None)


def test_estimators_that_do_not_agree_reject_all_three(session: Path) -> None:
    """As at the first block of a model: 14.7, 2.5 and 1.6 are of no one Gaussian."""
    for row in equivalents_of(session, {"mle": 13.4, "mind_ml": 2.4, "twoNN_f10": 1.6}).values():
        assert row["value_gaussian_equivalent"] is not None
        assert (row["equivalent_status"], row["equivalents_rejected"]) == ("rejected", "gaussian, ball, sphere")


def test_equivalent_beyond_what_was_simulated_takes_part_by_its_bound(session: Path) -> None:
    rows = equivalents_of(session, {"mle": 13.4, "mind_ml": 0.5, "pca_90": 50.0})
    assert rows["mind_ml"]["equivalent_status"] == "out_of_range"
    assert rows["mle"]["equivalent_status"] == "rejected"
    assert rows["pca_90"]["equivalent_status"] == "not_calibrated"
    assert {row["equivalents_rejected"] for row in rows.values()} == {"gaussian, ball, sphere"}


def test_one_calibrated_estimator_rejects_nothing(session: Path) -> None:
    rows = equivalents_of(session, {"mle": 13.4, "pca_90": 2.0})
    assert {row["equivalents_rejected"] for row in rows.values()} == {None}


# ---- what is never mixed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "facts",
    [
        {"settings": {"code": "older", "clouds": ["context"]}},
        {"settings": {"code": "code-of-mle", "clouds": ["context", "mean"]}},
        {"manifest": "d0"},
    ],
    ids=["other code of the estimator", "other clouds", "another extraction"],
)
def test_table_that_is_not_the_sessions_is_refused(facts: dict, session: Path) -> None:
    path = write_table(session, RUN, table_of("emb"), **facts)
    with pytest.raises(StoreError) as caught:
        summary_of(session)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "remove it and ask for it: rm " in message
    assert not (session / "summary.parquet").exists()


def test_one_set_of_library_versions_is_no_warning(session: Path, warnings: pytest.LogCaptureFixture) -> None:
    summary_of(session)
    assert warned(warnings) == []


def test_mixed_versions_of_estimates_are_a_column_and_a_warning(
    session: Path, warnings: pytest.LogCaptureFixture
) -> None:
    write_table(session, RUN, table_of("emb"), versions={"numpy": "2.2", "polars": "1.30"})
    summary = summary_of(session)
    assert (
        row_of(summary, "default", None, "emb")["versions"] == "extraction: torch 2.6; estimate: numpy 2.2, polars 1.30"
    )
    assert (
        row_of(summary, "default", 0, "block")["versions"] == "extraction: torch 2.6; estimate: numpy 2.1, polars 1.30"
    )
    (warning,) = warned(warnings)
    assert "mixed library versions" in warning
    assert "numpy 2.2" in warning


@pytest.mark.parametrize("library", ["torch", "transformers", "numpy"])
def test_mixed_versions_of_extractions_are_a_column_and_a_warning(
    library: str, session: Path, warnings: pytest.LogCaptureFixture
) -> None:
    """Estimates are made by one version of numpy, the two extractions by two."""
    other = Run("owner--model", "step-1", "words", 0, 64, "none")
    write_run(session, other, **{library: "0.0.1"})
    for module in SETTINGS["modules"]:
        write_table(session, other, table_of(module))
    summary = summary_of(session, models=[{"name": "owner--model", "checkpoints": ["main", "step-1"]}])
    mixed = summary.filter(pl.col("versions").str.contains(f"{library} 0.0.1", literal=True))
    assert mixed["checkpoint"].unique().to_list() == ["step/1"]
    assert len(warned(warnings)) == 1


# ---- many inputs -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_forty_thousand_tables_are_one_summary(tmp_path: Path) -> None:
    """Twenty tables a run, the same in each: the runs after the first are links to its files."""
    modules, names = SETTINGS["modules"], [f"mle_k{k}" for k in range(21, 31)]
    n_runs = 40_000 // (len(modules) * len(names))
    write_run(tmp_path, RUN)
    for module, name in product(modules, names):
        write_table(tmp_path, RUN, table_of(module, estimator=name))
    checkpoints = ["main", *(f"step{step}" for step in range(1, n_runs))]
    for checkpoint in checkpoints[1:]:
        shutil.copytree(
            run_folder(tmp_path, RUN), run_folder(tmp_path, replace(RUN, checkpoint=checkpoint)), copy_function=os.link
        )
    models = [{"name": "owner--model", "checkpoints": checkpoints}]
    summary = summary_of(tmp_path, models=models, estimators=[[name, "code-of-mle"] for name in names])
    assert summary["checkpoint"].unique(maintain_order=True).to_list() == checkpoints
    first, *others = summary.drop("checkpoint", "training_step").iter_slices(len(VALUES) * len(names))
    assert len(others) == n_runs - 1
    assert all(other.equals(first, null_equal=True) for other in others)


# Prints the peak of memory, in MB, before and after a session is summarized.
PEAK = """
import json, re, sys
from pathlib import Path
from id_scaling.results.summary import summarize
import id_scaling.results.estimates
session, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
print(peak())
summarize(session, settings, *(session / f"summary.{kind}" for kind in ("parquet", "csv", "txt")))
print(peak())
"""


def write_much(session: Path, n_contexts: int, n_layers: int) -> None:
    """Write a run of many contexts of 16 tokens, with ids of each layer under two views."""
    write_run(session, RUN)
    none = pl.lit(None, pl.String)
    contexts = pl.DataFrame({"context": range(n_contexts)}).with_columns(
        document="context", token_start=pl.lit(0), metadata=none
    )
    write_these_contexts(session, contexts)
    n = pl.int_range(16 * n_contexts)
    scores = {"loss": (n * 0.7).sin(), "entropy": (n * 0.3).sin()}
    tokens = pl.select(context=n // 16, position=n % 16, token=n % 7, **scores)
    sealed.write_table(run_folder(session, RUN) / "tokens.parquet", tokens, {"digest": "d1"})
    (row,) = table_of("block").filter(layer=0, view="default", context=0).to_dicts()
    sites = [
        pl.DataFrame([row], schema=SCHEMA)
        .join(contexts.select("context"), how="cross")
        .with_columns(
            context="context_right",
            view=pl.lit(view),
            layer=pl.lit(layer, pl.Int64),
            value=5 + (pl.col("context_right") * (0.1 + layer)).sin(),
        )
        .select(*SCHEMA)
        for layer in range(n_layers)
        for view in VIEWS
    ]
    write_table(session, RUN, pl.concat(sites))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from Linux")
@pytest.mark.slow
def test_memory_does_not_grow_with_contexts_and_rows(tmp_path: Path, python: Any) -> None:
    """720,000 estimates and 320,000 tokens: 1.3 GB as tables, 0.25 GB a part at a time.

    Of 50,000 contexts, 12 layers, 3 views and 3 estimators it is 0.5 GB; all at once took 7 GB.
    """
    write_much(tmp_path, 20_000, 18)
    process = python(PEAK, tmp_path, json.dumps({**SETTINGS, "modules": ["block"]}))
    before, after = map(float, process.communicate()[0].split()[-2:])
    assert after - before < 500
    summary = load_summary(tmp_path)
    assert summary["n_contexts"].unique().to_list() == [20_000]
    ids = pl.read_parquet(ids_path(tmp_path, RUN, "block", "mle")).group_by("layer", "view").agg(pl.col("value").mean())
    found = summary.join(ids, on=["layer", "view"])
    assert found["mean"].to_numpy() == pytest.approx(found["value"].to_numpy(), rel=1e-12)


@pytest.mark.parametrize("rows_at_once", [1, 2, 3, 7, 1000])
def test_rows_are_the_same_however_many_are_read_at_once(
    rows_at_once: int, session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_documents(session)
    for name in ("block", "emb"):
        path = ids_path(session, RUN, name, "mle")
        table, facts = sealed.read_table(path)
        sealed.write_table(path, table.sort("layer", "context"), facts)
    tokens, facts = sealed.read_table(run_folder(session, RUN) / "tokens.parquet")
    sealed.write_table(run_folder(session, RUN) / "tokens.parquet", tokens.sort("context", "position"), facts)
    groups = {"words": ["half"]}
    at_once = summary_of(session, group_by=groups)
    monkeypatch.setattr("id_scaling.results.run_tables.ROWS_AT_ONCE", rows_at_once)
    monkeypatch.setattr("id_scaling.results.summary.ELEMENTS", 50 * rows_at_once)
    assert_frame_equal(summary_of(session, group_by=groups), at_once, rel_tol=1e-12)


def test_rows_of_a_site_that_do_not_stand_together_are_an_error(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_documents(session)
    monkeypatch.setattr("id_scaling.results.run_tables.ROWS_AT_ONCE", 10)
    with pytest.raises(StoreError, match=r"rows with the same .* are not next to each other; remove it"):
        summary_of(session)


# ---- files -----------------------------------------------------------------------------------------------------


def test_summary_is_read_back_with_its_settings(session: Path) -> None:
    summary = summary_of(session)
    assert load_summary(str(session)).equals(summary)
    assert sealed.summary_settings(sealed.read_table(session / "summary.parquet")[1]) == SETTINGS
    from_csv = pl.read_csv(session / "summary.csv")
    assert from_csv.columns == summary.columns
    assert from_csv["mean"].to_list() == summary["mean"].to_list()
    assert from_csv["layer"].to_list() == summary["layer"].to_list()


def test_readable_summary_has_means_by_depth_and_what_is_not_ok(session: Path) -> None:
    deep = {("default", layer, "block"): [(2.0 + layer, "ok")] for layer in range(9)}
    write_table(session, RUN, table_of("block", values=deep))
    text = readable(summary_of(session))
    assert (session / "summary.txt").read_text() == text
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.startswith("  ")}
    assert "owner/model · main · ./words · 0 · none: 9 layers, loss 4.000, entropy 2.500" in text
    assert lines["module"][2:] == [part for n in (0, 2, 4, 6, 8) for part in ("layer", str(n))] + [
        "outside",
        "not",
        "ok",
    ]
    # Layers 0, 2, 4, 6 and 8 of nine.
    assert lines["block"] == ["block", "mle", "2.00", "4.00", "6.00", "8.00", "10.00", "0/9"]
    assert lines["emb"] == ["emb", "mle", "7.00", "1/2"]


def test_extraction_of_other_code_or_settings_is_refused(session: Path) -> None:
    other = extraction_digest({**EXTRACTION, "code": "older"})
    with pytest.raises(StoreError, match=r"manifest\.json: made by another extraction .* ask for it: rm "):
        summary_of(session, extractions={"owner--model": other})
    with pytest.raises(StoreError, match=r"manifest\.json: made by another extraction .* ask for it: rm "):
        summary_of(session, positions={"64": [63]})


def test_companions_are_means_over_the_contexts_that_have_them(session: Path) -> None:
    table = table_of("block").with_columns(
        pl.when(pl.col("context") == 0).then(NAN).otherwise("median_r1").alias("median_r1")
    )
    write_table(session, RUN, table)
    of_row = table.filter((pl.col("view") == "default") & (pl.col("layer") == 0))["median_r1"]
    assert of_row.is_nan().any()
    assert row_of(summary_of(session), "default", 0, "block")["median_r1"] == of_row.drop_nans().mean()


def test_readable_summary_of_a_site_without_a_number_is_blank(session: Path) -> None:
    failed = {("default", layer, "block"): [(NAN, "nonfinite")] for layer in range(2)}
    write_table(session, RUN, table_of("block", values=failed))
    (line,) = [line for line in readable(summary_of(session)).splitlines() if line.startswith("  block")]
    assert line.split() == ["block", "mle", "2/2"]


def test_rows_of_contexts_of_a_session_that_has_none_or_is_older_are_refused(session: Path) -> None:
    summary_of(session, clouds=["context"])
    table, settings = sealed.read_table(session / "summary.parquet")
    sealed.write_table(session / "summary.parquet", table, {**settings, "clouds": ["mean"]})
    with pytest.raises(ConfigError, match="no cloud of one context"):
        load_contexts(session, view="default")
    del settings["lengths"]
    sealed.write_table(session / "summary.parquet", table, settings)
    with pytest.raises(StoreError, match=r"summary\.parquet: written by an older version; remove it"):
        load_contexts(session)


OUTPUTS = ["summary.csv", "summary.parquet", "summary.txt"]


def bytes_of(session: Path) -> list[bytes]:
    """Return the content of the three files of the summary."""
    return [(session / name).read_bytes() for name in OUTPUTS]


@pytest.mark.parametrize("failing", ["write_table", "readable", "writing_all"])
def test_summary_that_fails_leaves_the_old_one(failing: str, session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary_of(session)
    before = bytes_of(session)
    write_table(session, RUN, table_of("emb", values={("default", None, "emb"): [(9.0, "ok")]}))

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"id_scaling.results.summary.{failing}", fail)
    with pytest.raises(OSError, match="No space"):
        summary_of(session)
    assert bytes_of(session) == before
    assert sorted(path.name for path in session.iterdir() if path.is_file()) == OUTPUTS
    monkeypatch.undo()
    summary_of(session)
    assert all(new != old for new, old in zip(bytes_of(session), before, strict=True))


@pytest.mark.parametrize("load", [load_summary, load_contexts, load_tokens])
@pytest.mark.parametrize(
    ("keep", "words"), [(0, "holds no checksum"), (100, "holds no checksum"), (-200, "damaged|no checksum")]
)
def test_summary_that_is_cut_is_one_error(load: Any, keep: int, words: str, session: Path) -> None:
    summary_of(session)
    path = session / "summary.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StoreError, match=rf"summary\.parquet: .*({words}).*; remove it") as caught:
        load(session)
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match=r"summary\.parquet: damaged, or (of another|not written)"):
        load(session, verify=False)


def test_summary_without_a_checksum_is_read_only_when_asked(session: Path) -> None:
    summary = summary_of(session)
    path = session / "summary.parquet"
    summary.write_parquet(path, metadata={sealed.FACTS: json.dumps(SETTINGS)})
    for load in (load_summary, load_contexts, load_tokens):
        with pytest.raises(StoreError, match="holds no checksum"):
            load(session)
    assert load_summary(session, verify=False).equals(summary, null_equal=True)


def test_changed_number_is_an_error_unless_it_is_not_looked_for(session: Path) -> None:
    summary_of(session)
    path = ids_path(session, RUN, "emb", "mle")
    content = path.read_bytes()
    table, facts = sealed.read_table(path)
    table.with_columns(value=table["value"] + 1).write_parquet(path, metadata=sealed.table_metadata(facts))
    with pytest.raises(StoreError, match=r"mle\.parquet: damaged, or changed"):
        load_contexts(session, module="emb")
    path.write_bytes(content)
    summary_bytes = (session / "summary.parquet").read_bytes()
    (session / "summary.parquet").write_bytes(summary_bytes.replace(b"sha256:", b"sha256:0", 1)[: len(summary_bytes)])
    with pytest.raises(StoreError):
        load_summary(session)


def test_what_does_not_exist_is_null_and_what_came_out_wrong_makes_no_mean(session: Path) -> None:
    """A loss that the model gave as NaN is no number of the run, and is not left out of its mean in silence."""
    folder = run_folder(session, RUN)
    tokens, facts = sealed.read_table(folder / "tokens.parquet")
    of_first = pl.when(pl.col("position") > 0)
    tokens = tokens.with_columns(of_first.then(pl.col(name)).alias(name) for name in ("loss", "entropy"))
    sealed.write_table(folder / "tokens.parquet", tokens, facts)
    summary = summary_of(session)
    assert load_tokens(session)["loss"].mean() == summary["mean_loss"][0] == 4.0
    assert load_contexts(session, module="block")["value"].mean() == pytest.approx(28 / 5)
    for table in (summary, load_contexts(session), load_tokens(session)):
        assert not table.select(pl.any_horizontal(selectors.float().is_nan()).any()).item()
    assert "NaN" not in (session / "summary.csv").read_text()
    is_second = (pl.col("context") == 1) & (pl.col("position") == 1)
    wrong = tokens.with_columns(pl.when(is_second).then(NAN).otherwise("loss").alias("loss"))
    sealed.write_table(folder / "tokens.parquet", wrong, facts)
    summary = summary_of(session)
    assert (summary["mean_loss"].null_count(), summary["mean_entropy"][0]) == (len(summary), 2.5)
    assert "loss no number, entropy 2.500" in (session / "summary.txt").read_text()
    assert load_contexts(session, module="emb").sort("context")["loss"].to_list() == [3.0, None]


def test_session_without_a_summary_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"summary\.parquet: not there; run snakemake"):
        load_summary(tmp_path / "nowhere")
