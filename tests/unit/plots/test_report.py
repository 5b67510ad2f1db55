"""The report of a session in a browser without a network: every figure is drawn, and filters and downloads work."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from conftest import save_text, save_tiny_llama, study
from playwright.sync_api import Browser, Page, sync_playwright
from verbs import run_study

from id_scaling.plots.catalog import FIGURES
from id_scaling.plots.render import plot
from id_scaling.results.load import load_contexts, load_summary

# The id of a document, and what a page would do that holds it as other than text; a model's name.
AMPERSAND = 'a & b\'s "c"'
HOSTILE = "</script><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"
LOCAL = ("file:", "blob:", "data:")
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
VIEWS = {"default": {}, "one_per_token": {"duplicates": "one_per_token"}, "half": {"decimate": 30, "draws": 2}}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session with all figures: two models at two steps, two lengths, two controls, three views."""
    folder = tmp_path_factory.mktemp("report")
    models = [folder / "small", folder / AMPERSAND]
    for model, n_layers in zip(models, (2, 3), strict=True):
        for seed, step in enumerate(("step0", "step10")):
            save_tiny_llama(model / step, seed, n_layers)
    steps, text = ["step0", "step10"], save_text(folder / "text", n_documents=20)
    lines = (text / "00.jsonl").read_text().splitlines()
    lines[3] = json.dumps({**json.loads(lines[3]), "id": HOSTILE})
    (text / "00.jsonl").write_text("\n".join(lines) + "\n")
    config = study(
        models[0],
        text,
        model_config=[{"model_name": str(model), "model_checkpoint": steps} for model in models],
        session_path=str(folder / "session"),
        batch_size=20,
        ctx_len=[96, 64],  # under `default` 95 points, and 63, fewer than were simulated for equivalents
        controls=["none", "shuffle-1"],
        cacheing_config__views=VIEWS,
    )
    config["dataset_config"]["filter_and_chunk_config"] = {"max_chunks_from_a_document": 1}
    config["cacheing_config"] |= {"save_IDs_list": ["mle", "twoNN_f10"], "module_outblock_keys": ["unemb"]}
    config["cacheing_config"]["module_inblock_keys"] = ["block", "mlp"]
    return run_study(config)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium. Without one tests are skipped; they fail where CI is true."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("no Chromium to test with: not installed")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Browser, session: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The report, drawn, in a browser that is offline; it may say nothing on its console."""
    width, height = WIDTHS[getattr(request, "param", "desktop")]
    context = browser.new_context(viewport={"width": width, "height": height}, offline=True, accept_downloads=True)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith(LOCAL) else said.append(asked.url))
    page.goto((session / "report.html").as_uri())
    drawn(page)
    yield page
    context.close()
    assert said == []


def drawn(page: Page) -> None:
    """Wait until all figures are drawn."""
    page.wait_for_selector("body[data-ready=yes]", timeout=60_000)


def choose(page: Page, key: str, value: str) -> None:
    """Choose a value of a filter."""
    page.select_option(f"#filter-{key}", value)
    drawn(page)


def texts(page: Page, figure: str) -> list[str]:
    """Return the texts in a figure: titles, axes, legends."""
    return page.locator(f"#figure-{figure} svg text").all_text_contents()


@pytest.mark.parametrize("opened", WIDTHS, indirect=True)
def test_every_figure_is_drawn_and_nothing_is_wider_than_the_page(opened: Page) -> None:
    for figure in FIGURES:
        place = opened.locator(f"#figure-{figure.name}")
        assert place.get_attribute("data-drawn") == "figure", figure.name
        marks = place.locator("svg .mark-line path, svg .mark-symbol path, svg .mark-rect path")
        assert marks.count() > 5, figure.name
        assert opened.get_by_role("heading", name=figure.question).count() == 1
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_no_text_of_a_figure_lies_on_another(opened: Page) -> None:
    """Titles, and labels of one axis: whole pixels of one box in another."""
    overlaps = opened.evaluate(
        """() => [...document.querySelectorAll('.figure svg')].flatMap(svg => {
            const boxes = [...svg.querySelectorAll('text')].filter(text => text.textContent.trim()
              && getComputedStyle(text).opacity !== '0' && text.getAttribute('opacity') !== '0')
              .map(text => [text.textContent, text.getBoundingClientRect()]);
            return boxes.flatMap(([one, a], i) => boxes.slice(i + 1).filter(([, b]) =>
              Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2 &&
              Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4).map(([other]) => one + ' | ' + other));
        })"""
    )
    assert overlaps == []


def test_filters_leave_what_they_name_in_every_figure(opened: Page) -> None:
    assert {"mle", "twoNN_f10"} <= set(texts(opened, "id_by_layer"))
    choose(opened, "estimator", "mle")
    found = texts(opened, "id_by_layer")
    assert "mle" in found
    assert "twoNN_f10" not in found
    assert len([text for text in found if text == "step0" or " · step0 · " in text]) == 4  # two models, two controls
    choose(opened, "checkpoint", "step10")
    assert not any("step0" in text for text in texts(opened, "id_by_layer"))
    choose(opened, "module", "mlp")
    assert opened.locator("#figure-id_against_loss").get_attribute("data-drawn") == "figure"
    choose(opened, "module", "unemb")
    assert opened.locator("#figure-id_by_step").inner_text() == (
        "This figure has no data for this selection. A figure of a single run shows the first model."
    )
    for key in ("module", "checkpoint", "estimator"):
        choose(opened, key, "")
    assert {"mle", "twoNN_f10"} <= set(texts(opened, "id_by_layer"))


def is_second_row(summary: pl.DataFrame) -> pl.Expr:
    """Return which rows are those of the leading run with one point per token."""
    is_leading = (pl.col("model") == summary["model"][0]) & (pl.col("checkpoint") == "step10")
    is_leading &= pl.col("ctx_len") == summary["ctx_len"].max()
    return is_leading & (pl.col("control") == "none") & (pl.col("view") == "one_per_token")


def test_the_leading_run_is_shown_with_one_point_per_token_on_the_same_axes(session: Path) -> None:
    from id_scaling.plots.depth import id_by_layer

    summary = load_summary(session)
    chart = id_by_layer(summary)
    views = [row["title"]["subtitle"].split("'")[1] for row in chart["vconcat"]]
    assert views == ["default"] * 3 + ["one_per_token"] + ["default"] * 5  # controls stand beneath their plain text
    above, below = chart["vconcat"][2:4]
    assert (
        above["title"]["text"]
        == below["title"]["text"]
        == f"{summary['model'][0]} · step10 · {summary['dataset'][0]} · 0 · 96 tokens · none"
    )
    domains = [
        [layer["encoding"]["y"]["scale"]["domain"] for panel in row["hconcat"] for layer in panel["layer"]]
        for row in (above, below)
    ]
    assert domains[0] == domains[1]
    shown = [row for panel in below["hconcat"] for row in chart["datasets"][panel["data"]["name"]]]
    expected = summary.filter(pl.col("group").is_null(), is_second_row(summary))
    assert sorted(row["mean"] for row in shown) == pytest.approx(sorted(expected["mean"]))
    alone = id_by_layer(summary.filter(view="one_per_token"))
    assert len(alone["vconcat"]) == 8


def test_data_of_a_figure_are_downloaded_as_they_are_filtered(opened: Page, session: Path, tmp_path: Path) -> None:
    choose(opened, "estimator", "mle")
    with opened.expect_download() as download:
        opened.click("button[data-figure=id_by_length]")
    download.value.save_as(tmp_path / "data.csv")
    rows = list(csv.DictReader((tmp_path / "data.csv").read_text().splitlines()))
    summary = load_summary(session).filter(pl.col("group").is_null(), estimator="mle")
    run = load_summary(session).filter(
        pl.col("group").is_null(), checkpoint="step10", control="none", model=summary["model"][0]
    )
    failed = dict(run.group_by("view").agg(pl.col("n_failed").sum()).iter_rows())
    few = next(view for view in sorted(failed) if view.startswith("half") and failed[view] <= failed["default"])
    summary = summary.filter(pl.col("view").is_in(["default", few]))  # all points, and as many at every length
    of = summary.filter(pl.col("layer").is_not_null(), checkpoint="step10", control="none", model=summary["model"][0])
    assert download.value.suggested_filename == "id_by_length.csv"
    assert sorted(float(row["mean"]) for row in rows) == pytest.approx(sorted(of["mean"]))
    assert {row["model"] for row in rows} == set(of["model"])


def test_names_are_text(opened: Page) -> None:
    assert AMPERSAND in opened.title()
    assert opened.locator("img").count() == 0
    assert any(AMPERSAND in text for text in texts(opened, "id_by_layer"))
    ids = opened.evaluate("Object.values(SPECS.id_against_loss.datasets).flat().map(row => row.document_id)")
    assert HOSTILE in ids


def test_the_page_says_what_was_run_and_what_to_doubt(opened: Page, session: Path) -> None:
    what, trust = opened.locator("#what").inner_text(), opened.locator("#trust").inner_text()
    for words in ("step0, step10", "none, shuffle-1", "20 contexts of 20 documents", "decimate 30, draw 1"):
        assert words in what, words
    summary = load_summary(session).filter(view="default", estimator="mle")
    n_clouds = summary["n_contexts"].sum()
    assert f"mle: 0 of {n_clouds:,} clouds have no estimate." in trust
    assert "Each row has at least 20 documents; intervals: bootstrap." in trust
    # Of both estimators, at contexts of 96 tokens; those of 64 have too few points for an equivalent.
    means, equivalent = load_summary(session).filter(view="default"), pl.col("value_gaussian_equivalent")
    known, unknown = (means.filter(ctx_len=length) for length in (96, 64))
    assert known["mean"].is_not_null().all()
    assert known["value_gaussian_equivalent"].is_not_null().all()
    assert unknown["value_gaussian_equivalent"].is_null().all()
    n_low = known.filter(pl.col("mean") < 0.9 * equivalent).height
    assert 0 < n_low < len(known)
    assert f"{n_low} of {len(known)} means are below 0.9 of their Gaussian equivalent" in trust
    assert f"; {len(unknown)} more are outside what was simulated." in trust
    assert "of nearest neighbors are the same token" in trust


def test_every_figure_stands_alone_too(browser: Browser, session: Path) -> None:
    context = browser.new_context(offline=True)
    for figure in FIGURES:
        page, said = context.new_page(), []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.goto((session / "figures" / f"{figure.name}.html").as_uri())
        page.wait_for_selector("#figure svg")
        assert said == []
        page.close()
        assert (session / "figures" / f"{figure.name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (session / "figures" / f"{figure.name}.svg").read_text()[:200]
    context.close()


def test_a_sweep_over_many_checkpoints_has_figures_of_a_few_runs(session: Path, tmp_path: Path) -> None:
    """154 checkpoints, as Pythia has."""
    summary = load_summary(session)
    one = summary.filter(pl.col("model") == summary["model"][0], checkpoint="step10", ctx_len=96, control="none")
    steps = [0, *(2**power for power in range(10)), *range(1000, 144000, 1000)]
    many = [one.with_columns(checkpoint=pl.lit(f"step{step}"), training_step=pl.lit(step, pl.Int64)) for step in steps]
    from id_scaling.plots.render import OF_SUMMARY

    charts = {draw.__name__: draw(pl.concat(many)) for draw in OF_SUMMARY}
    assert len(charts["id_by_layer"]["vconcat"]) == 8 + 1  # the last, which leads, with one point per token too
    titles = [row["title"] for row in charts["id_by_layer"]["vconcat"]]
    assert all("8 of 154 runs, evenly spread" in title["subtitle"] for title in titles)
    assert " · step0 · " in titles[0]["text"]
    assert " · step143000 · " in titles[-1]["text"]
    of_steps = [row for rows in charts["id_by_step"]["datasets"].values() for row in rows]
    assert len({row["training_step"] for row in of_steps}) == 154


def test_contexts_of_the_scatter_are_those_of_the_strongest_correlation(session: Path) -> None:
    from id_scaling.plots.loss import id_against_loss

    summary = load_summary(session)
    drawn_ = id_against_loss(summary, session)
    points = [row for rows in drawn_["datasets"].values() for row in rows if row.get("panel", "").startswith("mle")]
    of = summary.filter(pl.col("group").is_null(), view="default", estimator="mle", module="block")
    of = of.filter(model=points[0]["model"], checkpoint="step10", ctx_len=96, control="none")
    strongest = of.sort(pl.col("spearman_loss").abs()).row(-1, named=True)
    assert {row["layer"] for row in points} == {strongest["layer"]}
    axes = {key: strongest[key] for key in ("model", "checkpoint", "ctx_len", "control", "module", "estimator")}
    contexts = load_contexts(session, **axes).filter(view="default", layer=strongest["layer"], status="ok")
    assert sorted(row["value"] for row in points) == pytest.approx(sorted(contexts["value"]))


def test_a_figure_that_is_not_asked_for_is_not_drawn(session: Path, tmp_path: Path) -> None:
    plot(session, [tmp_path / "id_by_layer.svg"])
    assert [path.name for path in tmp_path.iterdir()] == ["id_by_layer.svg"]
