"""What the pages name exists: commands, options, keys, columns, files, packages; and their form is right."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from test_documentation import keys_of
from test_imports import ALLOWED

from id_scaling.cli.documentation import keys_table
from id_scaling.cli.main import _parser
from id_scaling.estimators.registry import GRAMMAR, definition_of
from id_scaling.results.columns import COLUMNS
from id_scaling.study.config import Config

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "config" / "README.md", ROOT / "profiles" / "README.md"]
GENERATED = re.compile(r"<!-- (\w+) -->.*?<!-- end of \1 -->", flags=re.DOTALL)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
# Names of others, in code on our pages: keys of schedulers, of Snakemake and its plugin, of tokenizers.
FOREIGN = {
    "lsf_queue",
    "lsf_project",
    "lsf_extra",
    "slurm_account",
    "slurm_extra",
    "gpu_model",
    "mem_mb",
    "oom_kill",
    "add_bos_token",
    "flash_attention_2",
}
MOST_WORDS, MOST_LINES = 1200, 280


def prose(page: Path) -> str:
    """Return a page without its generated table and its fenced blocks."""
    return BLOCK.sub("", GENERATED.sub("", page.read_text()))


def commands(page: Path) -> list[str]:
    """Return the command lines of a page, in blocks and in code."""
    text = page.read_text()
    lines = [line for _, block in BLOCK.findall(text) for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))
    return [line.split(" #")[0].strip() for line in lines]


def sources() -> str:
    """Return the text of all that is ours and can be named."""
    files = [*(ROOT / "id_scaling").rglob("*.py"), *(ROOT / "workflow").rglob("*.smk"), *ROOT.glob("profiles/*/*.yaml")]
    return "\n".join(file.read_text() for file in [*files, ROOT / "workflow" / "Snakefile"])


SOURCES = set(re.findall(r"\w+", sources())) | {name for name, _, _ in COLUMNS}
FORMS = {rule.form for rule in GRAMMAR} | {"drop_top_C", "drop_top_3"}


def is_estimator(name: str) -> bool:
    """Return whether a name is in the grammar."""
    return any(rule.parameters(name) is not None for rule in GRAMMAR)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_name_in_code_exists(page: Path) -> None:
    names = {name for code in re.findall(r"`([^`\n]+)`", prose(page)) for name in re.findall(r"^[a-z]\w*_\w+$", code)}
    unknown = {name for name in names if name not in SOURCES | FORMS | FOREIGN and not is_estimator(name)}
    assert unknown == set()


def test_a_name_that_does_not_exist_is_noticed() -> None:
    assert "save_cache_tensor" not in SOURCES | FORMS | FOREIGN
    assert not is_estimator("twoNN_10")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_ours_parses(page: Path) -> None:
    choices = _parser()._subparsers._group_actions[0].choices
    for line in commands(page):
        for verb, rest in re.findall(r"(?:python -m id_scaling|^id_scaling) ([a-z-]+)(.*)", line):
            assert verb in choices, f"{page}: {line}"
            options = [word.split("=")[0] for word in shlex.split(rest) if word.startswith("--")]
            assert set(options) <= set(choices[verb]._option_string_actions), f"{page}: {line}"
        for module in re.findall(r"python -m (tests[\w.]+)", line):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), f"{page}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_of_ours_is_there(page: Path) -> None:
    places = r"(?:id_scaling|tests|workflow|config|profiles|docs|\.ci)/[\w./-]*\w"
    for name in re.findall(rf"(?<![\w/.-]){places}", page.read_text()):
        if name not in {"config/my-study.yaml", "profiles/default"} and not name.endswith("/profile.yaml"):
            assert (ROOT / name).exists() or list(ROOT.glob(f"{name}*")), f"{page}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_example_of_a_configuration_has_keys_that_exist(page: Path) -> None:
    keys = set(re.findall(r"^\| `([\w.]+)` \|", keys_table(), flags=re.MULTILINE))
    leaves = {part for key in keys for part in key.split(".")}
    for language, block in BLOCK.findall(page.read_text()):
        example = yaml.safe_load(block) if language == "yaml" else {}
        if set(example) & set(Config.model_fields) or set(example) & {"model_config", "cacheing_config"}:
            named = {part for key in keys_of(example) for part in key.split(".")[:2]}
            assert named <= leaves, f"{page}: {named - leaves}"
    if page.name != "cluster.md":  # its keys are of Snakemake
        for key in re.findall(r"`([\w.]+): [^`\n]+`", prose(page)):
            known = leaves | {"failed", "stale", "__use_yte__"}
            assert set(key.split(".")) <= known, f"{page}: {key}"


def test_every_estimator_in_an_example_exists() -> None:
    for page in PAGES:
        for names in re.findall(r"save_IDs_list: \[(.*?)\]", page.read_text()):
            for name in names.split(", "):
                definition_of(name)


def test_the_readme_begins_with_the_two_commands_and_is_short() -> None:
    """Others read the first two blocks: the main job, the tests."""
    text = (ROOT / "README.md").read_text()
    blocks = [block for _, block in BLOCK.findall(text)]
    assert all(block.count("\n") == 1 and block.startswith("python3 -m venv .venv && ") for block in blocks[:2])
    assert blocks[0].endswith(".venv/bin/snakemake --profile profiles/local\n")
    assert blocks[1].endswith(".venv/bin/python -m pytest\n")
    assert len(text.split()) <= MOST_WORDS
    assert blocks[0] in (ROOT / "docs" / "quickstart.md").read_text(), "the quickstart has another command"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_is_of_a_length_that_is_read(page: Path) -> None:
    assert GENERATED.sub("", page.read_text()).count("\n") <= MOST_LINES


def test_links_lead_to_files_and_headings() -> None:
    """As on GitHub: relative to the page; MkDocs checks its own."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text())):
            if not target.startswith("http"):
                name, _, anchor = target.partition("#")
                file = page.parent / name if name else page
                assert file.exists(), f"{page}: {target}"
                headings = re.findall(r"^#+ (.*)", file.read_text(), flags=re.MULTILINE) if anchor else []
                assert not anchor or anchor in map(slug, headings), f"{page}: {target}"


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_architecture_shows_the_imports_that_are_allowed() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text().split("| package |")[1].split("\n\n")[0]
    rows = [line.split("|")[1:4] for line in table.splitlines()[2:]]
    shown = {package.strip(" `"): set(re.findall(r"`([\w.]+)`", arrows)) for package, _, arrows in rows}
    assert shown == {**{package: entries - {package} for package, entries in ALLOWED.items()}, "errors": set()}
    order = list(shown)
    for package, entries in shown.items():
        below = [entry for entry in entries if order.index(entry.split(".")[0]) <= order.index(package)]
        assert below == [], f"{package} may import from rows that are not below its own"


def test_the_version_is_one() -> None:
    import id_scaling

    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == id_scaling.__version__
    assert f"## {id_scaling.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_continuous_integration_runs_what_has_to_hold() -> None:
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["checks"]["steps"]
    assert any(step.get("run", "").endswith(".ci/run") for step in steps)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {hook["id"] for hook in hooks} == {"ruff-check", "ruff-format", "snakefmt"}
