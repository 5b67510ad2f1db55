"""Figures of sessions in which something is missing, and which of much they show."""

from __future__ import annotations

import json
import re
from pathlib import Path

import altair as alt
import numpy as np
import polars as pl
import pytest
import scipy.stats
from conftest import save_text, save_tiny_llama, study
from verbs import run_study

from id_scaling.neighbors.find import Neighbors
from id_scaling.neighbors.views import leading_view
from id_scaling.plots.catalog import FIGURES
from id_scaling.plots.caveats import remarks
from id_scaling.plots.page import as_script
from id_scaling.plots.render import OF_SUMMARY, chart_of
from id_scaling.plots.scales import _by_scale, _stored
from id_scaling.plots.training import scaling_law
from id_scaling.results.load import load_contexts, load_summary

VIEWS = {
    "default": {},
    "window-5": {"exclude_window": 5},
    "window-9": {"exclude_window": 9},
    "half": {"decimate": 30, "draws": 2},
    "gaussian": {"null_cloud": "gaussian"},
}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session of one model at two steps and a last checkpoint, some estimates of which have no error."""
    folder = tmp_path_factory.mktemp("plots")
    checkpoints = ["step0", "final", "step10"]
    for seed, name in enumerate(checkpoints):
        save_tiny_llama(folder / "model" / name, seed)
    config = study(folder / "model", save_text(folder / "text"), session_path=str(folder / "session"))
    config["model_config"]["model_checkpoint"] = checkpoints
    config["controls"] = ["shuffle-1", "none"]
    config["cacheing_config"] = {
        "module_inblock_keys": ["block"],
        "module_outblock_keys": ["unemb"],
        "save_IDs_list": ["mle", "mle_k8", "gride_n4", "twoNN_f10", "pca_90"],
        "cloud_statistics": ["moments", "spectrum"],
        "save_local_IDs": True,
        "views": VIEWS,
    }
    return run_study(config)


@pytest.fixture(scope="module")
def of_lengths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session of two checkpoints, two lengths and two controls; the last length is the shorter."""
    folder = tmp_path_factory.mktemp("lengths")
    checkpoints = ["step0", "step10"]
    for seed, name in enumerate(checkpoints):
        save_tiny_llama(folder / "model" / name, seed)
    config = study(folder / "model", save_text(folder / "text"), session_path=str(folder / "session"))
    config |= {"ctx_len": [128, 40], "controls": ["none", "shuffle-1"]}
    config["model_config"]["model_checkpoint"] = checkpoints
    modules = {"module_inblock_keys": ["block"], "module_outblock_keys": []}
    origin = {"skip_first_tokens": 0, "duplicates": "keep"}
    views = {"default": {}, "origin": origin, "of-30": {"decimate": 30}, "of-39": {"decimate": 39, "draws": 2}}
    config["cacheing_config"] = {**modules, "save_IDs_list": ["mle", "twoNN_f10"], "views": views}
    return run_study(config)


def drawn(name: str, summary: pl.DataFrame, session: Path) -> str:
    """Return a figure as text, which holds no number that is not finite."""
    text = as_script(chart_of(name, summary, session))
    alt.Chart.from_dict(json.loads(text), validate=True)
    return text


NAMES = [figure.name for figure in FIGURES]


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_without_data_says_so(name: str, session: Path) -> None:
    summary = load_summary(session).with_columns(mean=pl.lit(None, pl.Float64))
    assert "Nothing to show: no estimate has a mean" in drawn(name, summary, session)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_number_is_in_no_figure(name: str, session: Path) -> None:
    summary = load_summary(session).with_columns(mean_loss=pl.lit(float("nan")), sd=pl.lit(float("inf")))
    assert "NaN" not in drawn(name, summary, session)
    assert (True, "6 runs have tokens whose loss is no number, so no mean loss; their figures lack it.") in remarks(
        summary
    )


@pytest.mark.parametrize("name", [draw.__name__ for draw in OF_SUMMARY])
def test_a_study_of_a_control_alone_and_of_sites_outside_the_blocks_is_drawn(name: str, session: Path) -> None:
    summary = load_summary(session).filter(control="shuffle-1", module="unemb")
    assert "Nothing to show" not in drawn(name, summary, session)


def test_lengths_are_lines_of_the_last_checkpoint_of_plain_text(of_lengths: Path) -> None:
    summary = load_summary(of_lengths)
    chart = chart_of("id_by_length", summary, of_lengths)
    rows = [row for rows in chart["datasets"].values() for row in rows]
    # Of a context of 40 tokens 39 count: as many as all lengths can have.
    expected = summary.filter(pl.col("view").is_in(["default", "of-39-0"]), checkpoint="step10", control="none")
    columns = ["view", "estimator", "layer", "ctx_len", "mean"]
    assert sorted(tuple(row[key] for key in columns) for row in rows) == sorted(expected.select(columns).rows())
    assert "view 'of-39-0', 39 points at every length" in json.dumps(chart)
    (title,) = {row["run"] for row in rows}
    assert title == f"{summary['model'][0]} · step10 · {summary['dataset'][0]} · 0 · none"
    assert "1 of 4 runs" in json.dumps(chart)
    assert {tuple(one["scale"]["domain"]) for one in encodings(chart, "color")} == {(40, 128)}


def views_shown(summary: pl.DataFrame, session: Path) -> set[str]:
    """Return the views in the figure of lengths."""
    chart = chart_of("id_by_length", summary, session)
    shown = {row["view"] for rows in chart["datasets"].values() for row in rows}
    assert ("at every length" in json.dumps(chart)) == (len(shown) > 1)
    return shown


def test_lengths_are_compared_at_the_most_points_that_their_contexts_have(of_lengths: Path) -> None:
    summary = load_summary(of_lengths)
    is_short = pl.col("view").str.starts_with("of-39") & (pl.col("ctx_len") == 40)
    failed = pl.when(is_short).then(1).otherwise("n_failed").alias("n_failed")
    assert views_shown(summary.with_columns(failed), of_lengths) == {"default", "of-30"}
    assert views_shown(summary.filter(view="default"), of_lengths) == {"default"}
    drawn = summary.filter(pl.col("view").str.starts_with("of-39"))
    assert views_shown(drawn, of_lengths) == {"of-39-0"}  # the leading view draws itself


def encodings(chart: object, channel: str) -> list[dict]:
    """Return the encodings of a channel, wherever they stand in a chart."""
    parts = chart.values() if isinstance(chart, dict) else chart if isinstance(chart, list) else []
    own = [chart["encoding"][channel]] if isinstance(chart, dict) and channel in chart.get("encoding", {}) else []
    return own + [one for part in parts for one in encodings(part, channel)]


OF_ONE_LENGTH = ["id_by_control", "id_by_view", "id_by_n_points", "id_by_step", "id_by_layer_and_step", "id_by_size"]


@pytest.mark.parametrize("name", [*OF_ONE_LENGTH, "id_against_loss", "twonn_fit"])
def test_a_figure_that_joins_runs_is_of_the_largest_length_which_its_title_names(name: str, of_lengths: Path) -> None:
    summary = load_summary(of_lengths)
    text = drawn(name, summary, of_lengths)
    assert "0 · 128 tokens" in text
    assert "40 tokens" not in text
    of_largest = chart_of(name, summary.filter(ctx_len=128), of_lengths)["datasets"].values()
    found = chart_of(name, summary, of_lengths)["datasets"].values()
    plain = {"run", "text", "others"}  # what is said of a run
    assert [[{k: v for k, v in row.items() if k not in plain} for row in rows] for rows in found] == [
        [{k: v for k, v in row.items() if k not in plain} for row in rows] for rows in of_largest
    ]


def test_figures_of_several_runs_have_a_row_or_a_line_for_each_length(of_lengths: Path) -> None:
    summary = load_summary(of_lengths)
    for name in ("id_by_layer", "estimator_agreement", "loss_by_position"):
        chart = chart_of(name, summary, of_lengths)
        runs = {row["run"] for rows in chart["datasets"].values() for row in rows}
        said = {run.partition(" · 0 · ")[2] for run in runs}
        assert said == {f"{n} tokens · {control}" for n in (40, 128) for control in ("none", "shuffle-1")}


def test_ranks_are_those_of_the_points_of_each_length(of_lengths: Path) -> None:
    """To half the points, but to 32 at least."""
    manifests = of_lengths.glob("runs/*/step0/*/*/*/none/manifest.json")
    ranks = {int(path.parts[-3]): json.loads(path.read_text())["ranks"] for path in manifests}
    assert ranks == {40: [*range(1, 33)], 128: [*range(1, 33), 64]}


def test_the_report_counts_the_contexts_of_each_length(of_lengths: Path) -> None:
    """A document of 100 to 300 words has two chunks of 40 tokens at most, and from 128 words on one of 128."""
    report = (of_lengths / "report.html").read_text()
    assert re.findall(r"shards 0: ([^<]*)<", report) == [
        "7 contexts of 5 documents; 128 tokens a context",
        "12 contexts of 6 documents; 40 tokens a context",
    ]


def test_intervals_of_correlations_are_a_band_where_there_are_some(session: Path) -> None:
    """Of six documents there are none; an empty area is a warning of Vega's."""
    summary = load_summary(session)
    assert '"y2": {"field": "spearman_loss_high"' not in drawn("id_against_loss", summary, session)
    known = summary.with_columns(spearman_loss_low=pl.lit(-0.5), spearman_loss_high=pl.lit(0.5))
    assert '"y2": {"field": "spearman_loss_high"' in drawn("id_against_loss", known, session)


def test_of_one_length_nothing_is_said(session: Path) -> None:
    for name in NAMES:
        assert "64 tokens" not in drawn(name, load_summary(session), session)


def test_the_leading_view_is_no_null_and_has_estimates_or_not(session: Path) -> None:
    assert leading_view({"gaussian": "gaussian", "z": "none", "main": "none"}) == "main"
    assert leading_view({"gaussian": "gaussian"}) == "gaussian"
    summary = load_summary(session)
    is_default = pl.col("view") == "default"
    without = summary.with_columns(mean=pl.when(~is_default).then("mean"))
    assert "Nothing to show" in drawn("id_by_layer", without, session)


def test_views_whose_names_end_in_numbers_are_not_draws(session: Path) -> None:
    chart = chart_of("id_by_view", load_summary(session), session)
    rows = [row for rows in chart["datasets"].values() for row in rows]
    assert {row["view"] for row in rows} == {"default", "gaussian", "half", "window-5", "window-9"}
    assert {row["name"] for row in rows if row["view"] == "half"} == {"half-0", "half-1"}


@pytest.mark.parametrize("name", ["id_by_view", "id_against_loss", "id_by_n_points", "id_by_size"])
def test_a_figure_of_one_run_is_of_plain_text_and_the_last_checkpoint(name: str, session: Path) -> None:
    """The one whose step is not known comes after all."""
    chart = chart_of(name, load_summary(session), session)
    rows = [row for rows in chart["datasets"].values() for row in rows if "checkpoint" in row]
    assert {row["checkpoint"] for row in rows} == {"final"}
    assert {row["control"] for row in rows if "control" in row} <= {"none"}
    known = load_summary(session).filter(pl.col("training_step").is_not_null())
    rows = [row for rows in chart_of(name, known, session)["datasets"].values() for row in rows]
    assert {row["checkpoint"] for row in rows if "checkpoint" in row} == {"step10"}


def test_the_slope_of_the_fit_is_the_dimension_of_twonn(session: Path) -> None:
    chart = chart_of("twonn_fit", load_summary(session), session)
    titles = [panel["title"] for panel in chart["vconcat"][0]["hconcat"]]
    rows = load_contexts(session, checkpoint="final", control="none", estimator="twoNN_f10", module="block")
    rows = rows.filter(view="default", context=0).sort("layer")
    assert titles == [f"layer {layer}, slope {value:.2f}" for layer, value in rows.select("layer", "value").iter_rows()]
    points = [row for of in chart["datasets"].values() for row in of]
    assert all(row["line"] == pytest.approx(row["log_mu"] * rows["value"][0], rel=1e-5) for row in points[:40])


def curves_of(session: Path) -> pl.DataFrame:
    """Return the rows behind the curves of scale."""
    datasets = chart_of("id_by_scale", load_summary(session), session)["datasets"]
    return pl.concat(pl.DataFrame(rows) for rows in datasets.values())


def test_curves_of_scale_pass_through_the_means_of_named_estimators(session: Path) -> None:
    """All contexts are in both: there are 11."""
    curves = curves_of(session)
    summary = load_summary(session).filter(checkpoint="final", control="none", view="default", module="block")
    named = {"mle": ("mle_k", 20), "mle_k8": ("mle_k", 8), "gride_n4": ("gride_n", 4), "twoNN_f10": ("twoNN_f", 10)}
    for estimator, (kind, scale) in named.items():
        found = curves.filter(kind=kind, scale=scale).sort("layer")
        expected = summary.filter(estimator=estimator).sort("layer")
        assert len(found) == 2
        for key in ("layer", "mean", "sd", "n_contexts"):
            assert found[key].to_list() == pytest.approx(expected[key].to_list(), rel=1e-9), (estimator, key)


def test_curves_of_scale_show_what_is_stored_and_has_estimates(session: Path) -> None:
    """Neighbors 1 to 32 of 20 to 63 points that count: a scale n needs 3 n, a k one more, in every context shown."""
    scales = curves_of(session).group_by("kind").agg(pl.col("scale").unique().sort())
    assert dict(scales.iter_rows()) == {
        "gride_n": list(range(1, 17)),
        "twoNN_f": list(range(0, 100, 10)),
        "mle_k": list(range(4, 33)),
    }
    made = {kind: [scale for scale, _ in of_kind] for kind, of_kind in _stored((1, 2, 4, 5)).items()}
    assert made == {"gride_n": [1, 2], "twoNN_f": [*range(0, 100, 10)]}


def test_a_cloud_without_an_estimate_is_in_no_curve(session: Path) -> None:
    log_ratio = np.sort(np.random.default_rng(0).random((3, 40, 4)), axis=2)
    log_ratio[..., 0], log_ratio[0] = 0, np.nan
    statistics = {"n_used": np.array([0.0, 40, 40]), "n_nonfinite": np.array([5.0, 0, 0])}
    r1 = np.where(np.isnan(log_ratio[..., 1]), np.nan, 1.0)
    curve = _by_scale(Neighbors((1, 2, 3, 4), r1, log_ratio, statistics), 7)
    assert set(curve["n_contexts"]) == {2}
    mean = (40 - 1) / log_ratio[1:, :, 1].sum(axis=1)  # TwoNN by maximum likelihood, in closed form
    (row,) = curve.filter(kind="gride_n", scale=1).to_dicts()
    assert (row["mean"], row["sd"]) == pytest.approx((mean.mean(), mean.std(ddof=1)))


@pytest.mark.parametrize("name", ["id_by_scale", "twonn_fit"])
def test_a_layer_file_of_another_extraction_is_not_drawn(name: str, session: Path) -> None:
    from id_scaling.errors import StoreError

    path, other = (next(session.glob(f"runs/*/{name}/*/*/*/none/layer_00.h5")) for name in ("final", "step0"))
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    with pytest.raises(StoreError, match=r"layer_00\.h5: made by another extraction than its manifest"):
        chart_of(name, load_summary(session), session)
    path.write_bytes(content)


def test_the_line_of_losses_over_sizes_is_that_of_scipy() -> None:
    random = np.random.default_rng(1)
    sizes = 10 ** random.uniform(6, 9, 7)
    losses = 20 * sizes**-0.12 * np.exp(0.03 * random.standard_normal(7))
    expected = scipy.stats.linregress(np.log(sizes), np.log(losses))
    law = scaling_law(np.repeat(sizes, 3), np.repeat(losses, 3))  # a row for each estimator, say
    assert (law.alpha, law.stderr, law.n_sizes) == (pytest.approx(-expected.slope), pytest.approx(expected.stderr), 7)
    assert law.dimension == pytest.approx(4 / 0.12, rel=0.2)
    with_unknown = scaling_law(np.append(sizes, [1e5, np.nan]), np.append(losses, [np.nan, 2.0]))
    assert with_unknown == scaling_law(sizes, losses)
    assert scaling_law(sizes[[0, 1, 1]], losses[:3]) is None  # two sizes


def of_sizes(session: Path, losses: list[float | None]) -> tuple[dict, str]:
    """Return the figure of models of 1, 10, 100 … million parameters that have these losses, and its subtitle."""
    one = load_summary(session).filter(checkpoint="final", control="none", view="default")
    models = [
        one.with_columns(
            model=pl.lit(f"m{power}"),
            n_parameters=pl.lit(10 ** (6 + power) + 500, pl.Int64),
            n_embedding_parameters=pl.lit(500, pl.Int64),
            mean_loss=pl.lit(loss, pl.Float64),
            mean=pl.when(estimator="mle").then(5.0).otherwise(1.0),
        )
        for power, loss in enumerate(losses)
    ]
    chart = chart_of("id_by_size", pl.concat(models), session)
    alt.Chart.from_dict(chart, validate=True)
    return chart, chart["vconcat"][0]["title"]["subtitle"]


def test_a_scaling_law_implies_a_dimension_in_each_panel(session: Path) -> None:
    chart, said = of_sizes(session, [8 * 10 ** (-0.25 * power) for power in range(3)])
    assert "; loss ~ N^−α, α = 0.25 ± " in said
    rows = [row for rows in chart["datasets"].values() for row in rows]
    assert all(row["four_over_alpha"] == pytest.approx(16) for row in rows)
    marks = {}
    for panel in chart["vconcat"][0]["hconcat"]:
        flat = [layer for outer in panel["layer"] for layer in outer.get("layer", [outer])]
        marks[panel["title"]] = {layer["mark"]["type"]: layer["mark"] for layer in flat}
    assert marks["mle"]["text"]["text"] == "4/α = 16.0, from 3 sizes"
    assert "rule" in marks["mle"]
    # Sixteen times all means: a line would flatten them.
    assert marks["pca_90"]["text"]["text"] == "4/α = 16.0 (far above), from 3 sizes"
    assert "rule" not in marks["pca_90"]


@pytest.mark.parametrize(
    ("losses", "words"),
    [([3.0, 2.5], ""), ([3.0, 2.5, None], ""), ([3.0, 3.1, 3.2], "; no 4/α: over 3 sizes the loss does not fall")],
)
def test_without_a_loss_that_falls_over_three_sizes_nothing_is_implied(losses, words: str, session: Path) -> None:
    chart, said = of_sizes(session, losses)
    assert said.endswith(" · none" + words)
    assert '"type": "rule"' not in json.dumps(chart)
    assert "far above" not in json.dumps(chart)


def test_checkpoints_without_a_step_are_counted(session: Path) -> None:
    assert "2 checkpoints, 1 more without a known step" in drawn("id_by_step", load_summary(session), session)


def test_a_heat_map_of_many_checkpoints_and_layers_is_drawn_each_estimator_in_colours_of_its_own(session: Path) -> None:
    one = load_summary(session).filter(view="default", checkpoint="step10", module="block", layer=0, control="none")
    grid = [
        one.with_columns(checkpoint=pl.lit(f"step{s}"), training_step=pl.lit(s, pl.Int64), layer=pl.lit(k, pl.Int64))
        for s in range(154)
        for k in range(36)
    ]
    alt.data_transformers.disable_max_rows()
    chart = chart_of("id_by_layer_and_step", pl.concat(grid), session)
    (row,) = chart["vconcat"]
    assert row["resolve"] == {"scale": {"color": "independent"}}
    assert {len(chart["datasets"][panel["data"]["name"]]) for panel in row["hconcat"]} == {154 * 36}


def test_clouds_of_other_views_without_an_estimate_are_said(session: Path) -> None:
    failed = pl.when(pl.col("view") == "window-9").then(2).otherwise("n_failed")
    said = [words for is_doubt, words in remarks(load_summary(session).with_columns(n_failed=failed)) if is_doubt]
    assert any(words.startswith("View window-9: ") and "clouds have no estimate" in words for words in said)


def test_means_above_what_points_can_tell_are_of_estimators_from_distances_alone(session: Path) -> None:
    summary = load_summary(session).with_columns(mean=pl.when(estimator="pca_90").then(40.0).otherwise(3.0))
    said = [words for _, words in remarks(summary) if "are above 15" in words]
    n_rows = summary.filter(pl.col("estimator") != "pca_90", view="default").height
    assert said == [f"0 of {n_rows} means of estimators from distances are above 15."]


def test_rows_of_contexts_are_of_one_extraction(session: Path) -> None:
    from id_scaling.errors import StoreError
    from id_scaling.storage.records import read_table, write_table

    path = next(session.glob("runs/*/step0/*/*/*/none/ids/block/mle.parquet"))
    content = path.read_bytes()
    table, facts = read_table(path)
    assert "local" in table.columns
    assert "local" not in load_contexts(session, checkpoint="step0").columns
    write_table(path, table, {**facts, "manifest": "of another"})
    with pytest.raises(StoreError, match=r"mle\.parquet: of another extraction than its run's"):
        load_contexts(session, checkpoint="step0")
    path.write_bytes(content)
    contexts = next(session.glob("contexts/*/*/*/*/none/contexts.parquet"))
    content = contexts.read_bytes()
    table, facts = read_table(contexts)
    write_table(contexts, table.with_columns(pl.col("document_id").reverse()), facts)
    with pytest.raises(StoreError, match=r"contexts\.parquet: not the contexts that were extracted"):
        load_contexts(session, control="none")
    contexts.write_bytes(content)
