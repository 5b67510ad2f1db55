"""Figures of sessions in which something is missing, and which of much they show."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import altair as alt
import numpy as np
import polars as pl
import pytest
import scipy.integrate
import vl_convert
from conftest import save_text, save_tiny_llama, study
from verbs import run_study

from id_scaling.neighbors.find import Neighbors
from id_scaling.neighbors.views import leading_view
from id_scaling.plots.catalog import FIGURES
from id_scaling.plots.caveats import remarks
from id_scaling.plots.page import as_script
from id_scaling.plots.render import OF_SESSION, OF_SUMMARY, chart_of, plot
from id_scaling.plots.scales import _by_scale, _stored
from id_scaling.plots.training import scaling_law
from id_scaling.results.load import load_contexts, load_summary, load_tokens
from id_scaling.results.text_table import readable

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
    config["batch_size"] = 12
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
        # Of smaller weights a token is next to the same wherever it is, and some clouds are `near_copies`.
        save_tiny_llama(folder / "model" / name, seed, initializer_range=0.2)
    config = study(folder / "model", save_text(folder / "text"), session_path=str(folder / "session"))
    config |= {"batch_size": 12, "ctx_len": [128, 40], "controls": ["none", "shuffle-1"]}
    config["model_config"]["model_checkpoint"] = checkpoints
    modules = {"module_inblock_keys": ["block"], "module_outblock_keys": []}
    origin = {"skip_first_tokens": 0, "duplicates": "keep"}
    views = {"default": {}, "origin": origin, "of-30": {"decimate": 30}, "of-39": {"decimate": 39, "draws": 2}}
    config["cacheing_config"] = {**modules, "save_IDs_list": ["mle", "twoNN_f10"], "views": views}
    return run_study(config)


@pytest.fixture(scope="module")
def plain(session: Path) -> dict[str, str]:
    """Every figure of the session as text."""
    return {name: drawn(name, load_summary(session), session) for name in NAMES}


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
    assert (True, "6 runs have tokens whose loss is not a number, so figures do not show their mean loss.") in remarks(
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
        "7 contexts of 5 documents; 128 tokens per context",
        "12 contexts of 6 documents; 40 tokens per context",
    ]


def test_intervals_of_correlations_are_a_band_where_there_are_some(session: Path) -> None:
    """Of six documents there are none; an empty area is a warning of Vega's."""
    summary = load_summary(session)
    assert '"y2": {"field": "spearman_loss_high"' not in drawn("id_against_loss", summary, session)
    known = summary.with_columns(spearman_loss_low=pl.lit(-0.5), spearman_loss_high=pl.lit(0.5))
    assert '"y2": {"field": "spearman_loss_high"' in drawn("id_against_loss", known, session)


def test_of_one_length_nothing_is_said(plain: dict[str, str]) -> None:
    assert [name for name in NAMES if "64 tokens" in plain[name]] == []


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
        "mle_harmonic_k": list(range(4, 33)),
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


def planted(n_sizes: int, alpha: float, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Return sizes, and losses that fall with them as a power law with noise."""
    random = np.random.default_rng(1)
    sizes = 10 ** random.uniform(6, 9, n_sizes)
    return sizes, 20 * sizes**-alpha * np.exp(noise * random.standard_normal(n_sizes))


@pytest.mark.parametrize(("n_sizes", "alpha"), [(5, 0.12), (7, 0.12), (7, 0.4), (12, 0.05)])
def test_a_scaling_law_is_the_least_squares_line_with_students_interval(n_sizes: int, alpha: float) -> None:
    """Against the normal equations, with the quantile of Student's distribution from its density, integrated."""
    sizes, losses = planted(n_sizes, alpha, 0.03)
    law = scaling_law(np.repeat(sizes, 3), np.repeat(losses, 3))  # a row for each estimator, say
    x, y = np.log(sizes), np.log(losses)
    design = np.stack([x, np.ones(n_sizes)], axis=1)
    inverse = np.linalg.inv(design.T @ design)
    slope, intercept = inverse @ design.T @ y
    n_free = n_sizes - 2
    stderr = np.sqrt(inverse[0, 0] * ((y - slope * x - intercept) ** 2).sum() / n_free)
    assert (law.alpha, law.stderr) == (pytest.approx(-slope), pytest.approx(stderr))
    assert (law.n_sizes, law.n_points) == (n_sizes, n_sizes)
    low, high = law.interval
    assert (low + high) / 2 == pytest.approx(-slope)
    quantile = (high - low) / (2 * stderr)
    inside, _ = scipy.integrate.quad(lambda t: (1 + t * t / n_free) ** (-(n_free + 1) / 2), 0, quantile)
    beyond, _ = scipy.integrate.quad(lambda t: (1 + t * t / n_free) ** (-(n_free + 1) / 2), quantile, np.inf)
    assert inside / (inside + beyond) == pytest.approx(0.95, rel=1e-6)
    assert law.dimension == pytest.approx(4 / law.alpha)
    assert law.dimension_interval == pytest.approx((4 / high, 4 / low))


def test_the_interval_of_a_planted_exponent_covers_it_95_times_in_100() -> None:
    """Of 2000 laws of five sizes: binomial noise is 0.5 %, and 1.96 standard errors would cover 85.5 %."""
    random, sizes, alpha = np.random.default_rng(0), 10 ** np.linspace(6, 9, 5), 0.1
    laws = (scaling_law(sizes, sizes**-alpha * np.exp(0.02 * random.standard_normal(5))) for _ in range(2000))
    covered = np.mean([low <= alpha <= high for low, high in (law.interval for law in laws)])
    assert covered == pytest.approx(0.95, abs=0.02)


def test_a_scaling_law_needs_five_sizes_with_a_loss() -> None:
    sizes, losses = planted(7, 0.12, 0.03)
    with_unknown = scaling_law(np.append(sizes, [1e5, np.nan]), np.append(losses, [np.nan, 2.0]))
    assert with_unknown == scaling_law(sizes, losses)
    assert scaling_law(sizes[[0, 1, 2, 3, 3]], losses[:5]) is None  # four sizes
    same_size = scaling_law(np.append(sizes, sizes[0]), np.append(losses, losses[0] + 0.01))
    assert (same_size.n_sizes, same_size.n_points) == (7, 8)


def test_an_exponent_that_may_be_nought_has_a_dimension_without_an_upper_end() -> None:
    sizes, losses = planted(5, 0.01, 0.2)
    law = scaling_law(sizes, losses)
    assert law.interval[0] < 0 < law.interval[1]
    rising = scaling_law(sizes, sizes**0.1)
    assert np.isnan([rising.dimension, *rising.dimension_interval]).all()
    assert "the loss does not fall, so no 4/α" in str(rising)
    sizes = 10.0 ** np.arange(5, 10)
    falling = scaling_law(sizes, sizes**-0.01 * np.exp(0.1 * np.array([1, -1, 1, -1, 1])))
    assert falling.alpha > 0 > falling.interval[0]
    assert falling.dimension_interval == (pytest.approx(4 / falling.interval[1]), np.inf)


def of_sizes(session: Path, losses: list[float | None], clouds: tuple[str, ...] = ("mean",)) -> dict:
    """Return the figure of models of 1, 10, 100 … million parameters that have these losses, and clouds of a run."""
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
    summary = pl.concat(models)
    of_run = summary.filter(pl.col("layer") < 2).with_columns(
        level=pl.lit("run"), mean=pl.col("mean") + pl.col("layer")
    )
    of_clouds = [of_run.with_columns(cloud=pl.lit(cloud)) for cloud in clouds]
    chart = chart_of("id_by_size", pl.concat([summary, *of_clouds]), session)
    alt.Chart.from_dict(json.loads(as_script(chart)), validate=True)
    return chart


def rows_of(chart: dict) -> list[dict]:
    """Return the titled rows of panels of a figure of several grids."""
    return [row for grid in chart["vconcat"] for row in grid["vconcat"]]


def marks_of(row: dict) -> dict[str, dict]:
    """Return the marks of each panel of a row, by its title and their type."""
    marks = {}
    for panel in row["hconcat"]:
        flat = [layer for outer in panel["layer"] for layer in outer.get("layer", [outer])]
        marks[panel["title"]] = {layer["mark"]["type"]: layer["mark"] for layer in flat}
    return marks


def test_a_scaling_law_stands_next_to_clouds_of_the_last_block_alone(session: Path) -> None:
    chart = of_sizes(session, [8 * 10 ** (-0.25 * power) for power in range(5)])
    largest, last = rows_of(chart)
    assert not any("rule" in marks for marks in marks_of(largest).values())
    said = last["title"]["subtitle"][1]
    assert said == "loss ~ N^−α over 5 sizes, α = 0.25, 95% interval 0.25 to 0.25 (Student, 3 degrees of freedom)"
    assert marks_of(last)["mle"]["text"]["text"] == "4/α = 16.0 (16.0 to 16.0)"
    assert {"rule", "rect"} <= marks_of(last)["mle"].keys()
    # Eight times all dimensions: a line would flatten them.
    assert marks_of(last)["pca_90"]["text"]["text"] == "4/α = 16.0 (16.0 to 16.0), far above"
    assert not {"rule", "rect"} & marks_of(last)["pca_90"].keys()
    rows = [row for rows in chart["datasets"].values() for row in rows if "four_over_alpha" in row]
    assert {row["layer"] for row in rows} == {1}  # the last of two
    assert {row["mean"] for row in rows if row["estimator"] == "mle"} == {6.0}
    assert all(row["four_over_alpha"] == pytest.approx(16) for row in rows)


def test_sizes_are_parameters_without_embeddings_on_the_axis_and_in_the_fit(session: Path) -> None:
    chart = of_sizes(session, [8 * 10 ** (-0.25 * power) for power in range(5)])
    assert {of["field"] for of in encodings(chart, "x") if "field" in of} == {"n_counted"}
    rows = [row for rows in chart["datasets"].values() for row in rows]
    assert {row["n_counted"] for row in rows} == {10 ** (6 + power) for power in range(5)}


@pytest.mark.parametrize(
    ("losses", "clouds"),
    [([4.0, 3.0, 2.5, 2.0], ("mean",)), ([4.0, 3.0, 2.5, 2.0, None], ("mean",)), ([5.0, 4.0, 3.0, 2.5, 2.0], ())],
)
def test_no_law_is_drawn_of_four_sizes_or_without_clouds_of_all_contexts(losses, clouds, session: Path) -> None:
    chart = of_sizes(session, losses, clouds)
    assert len(rows_of(chart)) == 1
    assert "4/α" not in json.dumps(chart, ensure_ascii=False)


def test_losses_that_do_not_fall_imply_nothing(session: Path) -> None:
    chart = of_sizes(session, [3.0, 3.1, 3.2, 3.3, 3.4], ("mean", "position"))
    _, last = rows_of(chart)
    assert last["title"]["subtitle"][1].endswith("; the loss does not fall, so no 4/α")
    assert "rule" not in marks_of(last)["mle"]
    assert "NaN" not in as_script(chart)


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


def said_of(summary: pl.DataFrame, words: str) -> list[tuple[bool | None, str]]:
    """Return the remarks that hold some words."""
    return [remark for remark in remarks(summary) if words in remark[1]]


def test_means_that_are_too_low_for_their_points_are_those_below_their_equivalent(session: Path) -> None:
    """Whatever their size: 12 from 128 points is of 20 dimensions, 20 from a million would not be low."""
    is_mle = pl.col("estimator") == "mle"
    summary = load_summary(session).with_columns(
        mean=pl.when(is_mle).then(12.1).otherwise(20.0),
        value_gaussian_equivalent=pl.when(is_mle).then(20.0).otherwise(21.0),
        equivalent_status=pl.lit("ok"),
    )
    n_mle, n_rows = (len(summary.filter(rows, view="default")) for rows in (is_mle, pl.lit(True)))
    ((is_doubt, said),) = said_of(summary, "of their Gaussian equivalent")
    assert is_doubt
    assert said.startswith(f"{n_mle} of {n_rows} means are below 0.9 of their Gaussian equivalent: ")
    ((is_doubt, said),) = said_of(summary.filter(~is_mle), "of their Gaussian equivalent")
    assert is_doubt is False
    assert said == f"0 of {n_rows - n_mle} means are below 0.9 of their Gaussian equivalent."
    unknown = summary.with_columns(
        value_gaussian_equivalent=pl.lit(None, pl.Float64), equivalent_status=pl.lit("out_of_range")
    )
    ((is_doubt, said),) = said_of(unknown, "of their Gaussian equivalent")
    assert (
        said
        == f"0 of 0 means are below 0.9 of their Gaussian equivalent; {n_rows} more are outside what was simulated."
    )


def test_equivalents_of_one_cloud_that_disagree_reject_a_gaussian(session: Path) -> None:
    is_mle = pl.col("estimator") == "mle"
    for factor, n_apart in ((1.4, 0), (1.6, 1)):
        summary = load_summary(session).drop("equivalents_rejected", strict=False)
        summary = summary.with_columns(
            value_gaussian_equivalent=pl.when(is_mle & (pl.col("layer") == 0)).then(5.0 * factor).otherwise(5.0)
        )
        n_sites = len(summary.filter(view="default", estimator="mle"))
        n_runs = summary.select("checkpoint", "control").unique().height
        ((is_doubt, said),) = said_of(summary, "by several estimators")
        assert said.startswith(f"At {n_apart * n_runs} of {n_sites} sites, the Gaussian equivalents of one cloud")
        assert is_doubt == (n_apart > 0)


def test_sites_that_the_summary_says_are_rejected_are_counted(session: Path) -> None:
    """Whatever the numbers are: an equivalent that is out of range has none."""
    at_first = (pl.col("estimator") == "mle") & (pl.col("layer") == 0)
    summary = load_summary(session).with_columns(
        value_gaussian_equivalent=pl.lit(5.0),
        equivalents_rejected=pl.when(at_first).then(pl.lit("gaussian, ball")).otherwise(pl.lit("ball")),
    )
    n_sites = len(summary.filter(view="default", estimator="mle"))
    n_runs = summary.select("checkpoint", "control").unique().height
    ((is_doubt, said),) = said_of(summary, "by several estimators")
    assert is_doubt
    assert said.startswith(f"At {n_runs} of {n_sites} sites")


def test_rows_whose_mean_a_few_points_carry_are_named(session: Path) -> None:
    share = pl.when(estimator="mle", layer=1).then(0.51).when(estimator="mle").then(0.2)
    summary = load_summary(session).with_columns(top_share=share.cast(pl.Float64))
    n_rows = len(summary.filter(view="default", estimator="mle"))
    n_runs = summary.select("checkpoint", "control").unique().height
    ((is_doubt, said),) = said_of(summary, "largest local dimensions")
    assert is_doubt
    assert said.startswith(f"mle: in {n_runs} of {n_rows} rows, the tenth of points")
    assert "block of layer 1 51%" in said
    assert "block of layer 0" not in said
    ((is_doubt, said),) = said_of(summary.with_columns(top_share=pl.lit(0.15)).filter(estimator="mle"), "largest local")
    assert (is_doubt, said[:8]) == (False, "mle: in ")
    none = pl.lit(None, pl.Float64)
    assert said_of(summary.with_columns(top_share=none), "largest local dimensions") == []
    assert said_of(summary.drop("top_share"), "largest local dimensions") == []


def test_a_count_of_significant_correlations_is_neither_good_nor_bad(session: Path) -> None:
    for q in (0.001, 0.9):
        # A floor below 0.05, which six documents do not have.
        summary = load_summary(session).with_columns(q_loss=pl.lit(q), q_loss_floor=pl.lit(0.001))
        ((is_doubt, said),) = said_of(summary, "correlations with loss")
        assert is_doubt is None
        n_rows = len(summary.filter(view="default"))
        assert said.startswith(f"{n_rows if q < 0.05 else 0} of {n_rows} correlations")


def test_the_smallest_attainable_q_is_said_where_no_effect_could_be_significant(session: Path) -> None:
    few = load_summary(session).with_columns(q_loss=pl.lit(0.2), p_loss_maxt=pl.lit(0.04), q_loss_floor=pl.lit(0.092))
    ((is_doubt, said),) = said_of(few, "correlations with loss")
    assert is_doubt
    assert "a single effect, however large, has q ≥ 0.092 at best" in said
    n_rows = len(few.filter(view="default"))
    assert f"{n_rows} have p < 0.05 by max-T" in said
    ((is_doubt, said),) = said_of(few.with_columns(q_loss_floor=pl.lit(0.001)), "correlations with loss")
    assert is_doubt is None
    assert "at best" not in said
    older = few.drop("q_loss_floor", "p_loss_maxt")
    ((is_doubt, said),) = said_of(older, "correlations with loss")
    assert said.endswith("have q < 0.05 (Benjamini and Hochberg 1995).")


def test_rows_of_several_dtypes_or_devices_are_said_in_report_and_figures(session: Path, plain: dict[str, str]) -> None:
    summary = load_summary(session)
    assert said_of(summary, "mixed") == []
    is_first = pl.col("checkpoint") == "step0"
    mixed = summary.with_columns(
        dtype=pl.when(is_first).then(pl.lit("bfloat16")).otherwise("dtype"),
        device=pl.when(is_first).then(pl.lit("cuda")).otherwise("device"),
    )
    words = "mixed dtype bfloat16, float32; device cpu, cuda"
    ((is_doubt, said),) = said_of(mixed, "mixed")
    assert is_doubt
    assert words in said
    several = {"id_by_layer", "estimator_agreement", "id_by_step", "id_by_layer_and_step", "loss_by_position"}
    for name in NAMES:
        assert (words in as_script(chart_of(name, mixed, session))) == (name in several), name
        assert "mixed" not in plain[name], name
    assert f"warning: {words}" in readable(mixed).splitlines()[1]
    assert "warning" not in readable(summary)


def test_equal_tokens_at_the_embedding_under_a_view_that_keeps_them_are_no_doubt(session: Path) -> None:
    of_view = pl.col("view") == "window-9"
    summary = load_summary(session).with_columns(
        module=pl.when(pl.col("module") == "unemb").then(pl.lit("emb")).otherwise("module"),
        duplicates=pl.when(of_view).then(pl.lit("keep")).otherwise("duplicates"),
    )
    failed = of_view & (pl.col("module") == "emb")
    expected = summary.with_columns(
        n_failed=pl.when(failed).then(2).otherwise("n_failed"),
        statuses=pl.when(failed).then(pl.lit("degenerate: 2")).otherwise("statuses"),
    )
    ((is_doubt, said),) = said_of(expected, "View window-9")
    assert is_doubt is None
    assert "are expected, at `emb`" in said
    others = expected.with_columns(n_failed=pl.when(of_view).then(2).otherwise("n_failed"))
    ((is_doubt, _),) = said_of(others, "View window-9")
    assert is_doubt is True


PATTERN = "a [b] [!c]*?"


def test_a_session_whose_path_is_like_a_pattern_is_read_and_drawn(session: Path, tmp_path: Path) -> None:
    """A folder that the pattern would match has other content."""
    copy = shutil.copytree(session, tmp_path / PATTERN / "session")
    (tmp_path / "a b dx1").mkdir()
    plot(copy, [copy / "figures" / "id_by_scale.svg", copy / "report.html"])
    assert (copy / "report.html").stat().st_size > 1000
    summary = load_summary(session)
    for figure in OF_SESSION:
        name = figure.__name__
        assert as_script(chart_of(name, summary, copy)) == as_script(chart_of(name, summary, session)), name
    assert load_summary(copy).equals(load_summary(session), null_equal=True)
    for load in (load_contexts, load_tokens):
        assert load(copy).equals(load(session), null_equal=True)


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
import vl_convert
from id_scaling.plots.render import plot
vl_convert.svg_to_png = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
plot(Path(sys.argv[1]), [Path(output) for output in sys.argv[2:]])
"""


@pytest.mark.parametrize("end", ["error", "kill"])
def test_figures_and_report_are_replaced_as_one_set_or_not_at_all(
    end: str, session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture is the last but the report: a page and a drawing are complete when it fails."""
    outputs = [tmp_path / name for name in ("id_by_layer.html", "id_by_layer.svg", "id_by_layer.png", "report.html")]
    for output in outputs:
        output.write_text("old")

    def fail(*_: object, **__: object) -> None:
        raise OSError("no memory")

    if end == "error":
        monkeypatch.setattr(vl_convert, "svg_to_png", fail)
        with pytest.raises(OSError, match="no memory"):
            plot(session, outputs)
        assert sorted(tmp_path.iterdir()) == sorted(outputs)
    else:
        killed = subprocess.run([sys.executable, "-c", KILLED_WRITER, session, *outputs], check=False)
        assert killed.returncode == -signal.SIGKILL
    assert {output.read_text() for output in outputs} == {"old"}
    monkeypatch.undo()
    plot(session, outputs)
    assert all(output.stat().st_size > 1000 for output in outputs)


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
    for facts_of_others in (
        {**facts, "tokens_sha256": "of another"},
        {key: value for key, value in facts.items() if key != "tokens_sha256"},
    ):
        write_table(contexts, table.with_columns(pl.col("document_id").reverse()), facts_of_others)
        with pytest.raises(StoreError, match=r"contexts\.parquet: not the contexts that were extracted"):
            load_contexts(session, control="none")
    # Of the same facts, and changed since it was written.
    table.with_columns(pl.col("document_id").reverse()).write_parquet(
        contexts, metadata=pl.read_parquet_metadata(contexts)
    )
    with pytest.raises(StoreError, match=r"contexts\.parquet: "):
        load_contexts(session, control="none")
    contexts.write_bytes(content)
    assert len(load_contexts(session, control="none"))
