"""The whole pipeline on the embedded model and texts, cut small, and its numbers against scikit-dimension."""

from __future__ import annotations

import base64
import json
import re
import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
import torch
import yaml
from conftest import ROOT, Workflow

import id_scaling
from id_scaling.results.columns import COLUMNS


@pytest.fixture(scope="module")
def real(resources: Path, tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """The embedded default on 3 contexts of 256 tokens, all 92 sites, clouds kept in float32; run to its end."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "resources").symlink_to(resources)
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    config["dataset_config"]["max_dataset_size"] = 3
    config["dataset_config"]["filter_and_chunk_config"]["max_chunks_from_a_document"] = 1
    config["dataset_config"]["filter_and_chunk_config"]["min_chunks_from_a_document"] = 1
    config["ctx_len"] = 256
    config["cacheing_config"] |= {"save_cache_tensors": True, "save_fp": "float32"}
    workflow = Workflow(folder, config)
    workflow.output = workflow.run()
    return workflow


def run_folder(workflow: Workflow) -> Path:
    return next(workflow.session.glob("runs/*/*/*/*/*/*"))


def test_the_second_run_does_nothing(real: Workflow):
    assert real.planned() == {}
    assert "Nothing to be done" in real.run()


def test_the_end_says_what_came_out_and_where(real: Workflow):
    assert "Mean intrinsic dimension by layer" in real.output
    for file in ("summary.parquet", "figures/id_by_layer.html"):
        assert f"results/default/{file}" in real.output
        assert (real.session / file).stat().st_size > 0
    assert (real.session / "figures" / "id_by_layer.png").read_bytes().startswith(b"\x89PNG")


def said_in(page: str, name: str) -> Any:
    """Return what a report of Snakemake says under a name."""
    found = re.search(rf'<script id="[a-z-]+">\s*var {name} = ', page)
    return json.JSONDecoder().raw_decode(page, found.end())[0]


def test_the_report_of_snakemake_holds_summary_figures_and_report(real: Workflow):
    real.run("--report", "whole.html")
    page = (real.folder / "whole.html").read_text()
    held = said_in(page, "results")
    summary, report = "results/default/summary.csv", "results/default/report.html"
    figures = {str(path.relative_to(real.folder)) for path in real.session.glob("figures/*.png")}
    assert len(figures) > 3
    of_category = {name: {*chain(*of.values())} for name, of in said_in(page, "categories").items()}
    assert of_category == {"Summary": {summary}, "Figures": figures, "Report": {report}}
    assert held.keys() == {summary, report} | figures
    for path, one in held.items():
        assert base64.b64decode(one["data_uri"].partition(";base64,")[2]) == (real.folder / path).read_bytes(), path
        words = "One row per model" if path == summary else "how far" if path == report else "A figure of the session"
        assert words in one["caption"], path
    assert "in-context representation manifolds: session default." in said_in(page, "workflow_desc")
    assert not re.search(r"<(script|link)[^>]+(src|href)=.?http", page)


def test_the_summary_has_a_row_for_every_site_view_and_estimator(real: Workflow):
    summary = id_scaling.load_summary(real.session)
    assert summary.columns == [name for name, _, _ in COLUMNS]
    assert len(summary) == (30 * 3 + 2) * 3 * 4
    assert summary["n_contexts"].unique().to_list() == [3]
    default = summary.filter(pl.col("view") == "default")
    assert default["n_failed"].sum() == 0
    assert default["mean"].is_finite().all()
    # Repeated tokens have equal embeddings: where they are kept, no estimator here has an answer.
    kept = summary.filter((pl.col("view") == "origin") & (pl.col("module") == "emb"))
    assert kept["mean"].is_null().all()
    assert kept["statuses"].unique().to_list() == ["degenerate: 3"]
    # Where they are equal, one point per token is one of each set of equal points; later they differ.
    per_token, distinct = (summary.filter(view=view, estimator="twoNN_f10") for view in ("one_per_token", "default"))
    assert per_token.filter(module="emb")["mean"].equals(distinct.filter(module="emb")["mean"])
    assert (per_token.filter(module="block")["n_used"] < distinct.filter(module="block")["n_used"]).all()
    assert summary["mean_loss"].unique().item() == pytest.approx(3.2, abs=0.5)
    assert pl.read_csv(real.session / "summary.csv").height == len(summary)


def clouds(real: Workflow):
    """Yield (layer, module, context, tokens, cloud) of all that was saved."""
    for path in sorted([*run_folder(real).glob("layer_*.h5"), run_folder(real) / "outblock.h5"]):
        layer = None if path.stem == "outblock" else int(path.stem.removeprefix("layer_"))
        with h5py.File(path, "r") as file:
            for module, group in file.items():
                for context, cloud in enumerate(group["activations"][:]):
                    yield layer, module, context, cloud


def test_every_estimate_is_that_of_scikit_dimension_on_the_saved_clouds(real: Workflow):
    """Under the same policy, points 1 to 255 with equal ones once; 1e-5 allows float32 storage of ratios."""
    with warnings.catch_warnings():
        from skdim.id import MLE, MiND_ML, TwoNN

    tables = pl.concat([pl.read_parquet(path) for path in run_folder(real).glob("ids/*/*.parquet")])
    ours = {
        (row["layer"], row["module"], row["context"], row["estimator"]): row["value"]
        for row in tables.filter(pl.col("view") == "default").iter_rows(named=True)
    }
    n_compared = 0
    for layer, module, context, cloud in clouds(real):
        assert np.isfinite(cloud).all()
        points = np.unique(cloud[1:], axis=0).astype(np.float64)
        theirs = {"mle": MLE().fit_transform(points), "twoNN_f10": TwoNN().fit_transform(points)}
        mind = MiND_ML(k=20, D=500).fit_transform(points)
        if mind >= 4:  # below that scikit-dimension's optimiser can stick at its start
            theirs["mind_ml"] = mind
        for name, value in theirs.items():
            assert ours[layer, module, context, name] == pytest.approx(value, rel=1e-5), (layer, module, context, name)
            n_compared += 1
    assert n_compared > 2 * 92 * 3


def test_saved_clouds_and_means_are_what_the_model_gives(real: Workflow):
    from id_scaling.models.loading import last_hidden, load_model, watching
    from id_scaling.models.modules import SiteRequest, resolve_sites

    identity = json.loads(next(real.session.glob("models/*/*/identity.json")).read_text())
    model = load_model(Path(identity["path"]), torch.float32, torch.device("cpu"), use_accelerator=False)
    contexts = pl.read_parquet(next(real.session.rglob("contexts.parquet")))
    input_ids = torch.tensor(contexts["input_ids"].to_list())
    found = {}
    sites = resolve_sites(SiteRequest((0, 29), ("block", "mlp"), (), None), "llama", 30)
    with torch.inference_mode(), watching(model, sites, found.__setitem__):
        last_hidden(model, input_ids)
    for site, values in found.items():
        with h5py.File(run_folder(real) / f"layer_{site.layer:02d}.h5", "r") as file:
            saved, mean = file[site.module]["activations"][:], file[site.module]["mean"][:]
        # Batches of another size may add in another order.
        np.testing.assert_allclose(saved, values.numpy(), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(mean, values.mean(dim=1).numpy(), rtol=1e-3, atol=1e-3)


def test_tokens_join_contexts_and_estimates(real: Workflow):
    tokens = pl.read_parquet(run_folder(real) / "tokens.parquet")
    contexts = pl.read_parquet(next(real.session.rglob("contexts.parquet")))
    assert tokens.height == 3 * 256
    assert tokens["token"].to_list() == contexts["input_ids"].explode().to_list()
    assert tokens.filter(pl.col("position") > 0)["loss"].is_finite().all()
    assert (tokens.filter(pl.col("position") > 0)["entropy"] >= 0).all()
    assert contexts["document_id"].n_unique() == 3
