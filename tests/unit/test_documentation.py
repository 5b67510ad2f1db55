"""Generated documentation is what the code says now."""

from __future__ import annotations

import re

import jsonschema
import pytest
import yaml
from conftest import ROOT, study

from id_scaling.cli.documentation import PAGES, SCHEMA, columns_table, keys_table, schema, with_table
from id_scaling.estimators.registry import GRAMMAR
from id_scaling.models.modules import PRESETS
from id_scaling.results.columns import COLUMNS
from id_scaling.sources.shards import SUFFIXES
from id_scaling.study.config import Config

ANEW = "it is out of date: run `python -m id_scaling document`"


def test_schema_on_disk_is_that_of_the_configuration() -> None:
    assert (ROOT / SCHEMA).read_text() == schema(), f"{SCHEMA}: {ANEW}"


@pytest.mark.parametrize("mark", PAGES)
def test_tables_on_disk_are_those_of_the_code(mark: str) -> None:
    page = (ROOT / PAGES[mark]).read_text()
    for line in (f"<!-- {mark} -->", f"<!-- end of {mark} -->"):
        assert page.count(line) == 1, f"{PAGES[mark]}: the table stands between marks; found no single {line}"
    assert page == with_table(page, mark), f"{PAGES[mark]}: {ANEW}"


def test_table_is_made_anew_between_its_marks_alone() -> None:
    page = "Before.\n\n<!-- columns -->\nold\n<!-- end of columns -->\n\nAfter.\n"
    made = with_table(page, "columns")
    assert made == f"Before.\n\n<!-- columns -->\n\n{columns_table()}\n<!-- end of columns -->\n\nAfter.\n"
    assert with_table(made, "columns") == made


def test_every_key_of_the_configuration_has_a_row_and_a_meaning() -> None:
    rows = [line.split(" | ") for line in keys_table().splitlines()[2:]]
    keys = {row[0].removeprefix("| ").strip("`") for row in rows}
    assert {field.alias or name for name, field in Config.model_fields.items()} <= keys
    for config in ("config.yaml", "llama2-7b.yaml"):
        assert keys_of(yaml.safe_load((ROOT / "config" / config).read_text())) <= keys
    assert all(len(row) == 3 and len(row[2]) > 10 for row in rows)


def test_no_cell_of_a_table_holds_what_would_end_it() -> None:
    """A `|` ends a cell on GitHub, in code too."""
    assert {line.count("|") for line in (keys_table() + columns_table()).splitlines()} == {4}


def keys_of(config: dict, prefix: str = "") -> set[str]:
    """Return the dotted keys of a configuration; what stands in a mapping of module names is no key."""
    found = set()
    for key, value in config.items():
        found.add(f"{prefix}{key}")
        if isinstance(value, dict) and key != "module_name_mapping":
            found |= keys_of(value, f"{prefix}{key}.")
    return found


def test_every_column_of_the_summary_has_a_row() -> None:
    rows = columns_table().splitlines()[2:]
    assert [re.match(r"\| `(\w+)` \|", row)[1] for row in rows] == [name for name, _, _ in COLUMNS]


@pytest.mark.parametrize("config", ["config.yaml", "llama2-7b.yaml"])
def test_editors_accept_the_configurations_that_come_with_the_project(config: str) -> None:
    known = yaml.safe_load((ROOT / SCHEMA).read_text())
    jsonschema.validate(yaml.safe_load((ROOT / "config" / config).read_text()), known)


@pytest.mark.parametrize(
    "changes",
    [{"sesion": 1}, {"ctx_len": "64"}, {"model_config__model_nam": "x"}, {"cacheing_config__layer_idx_list": "al"}],
    ids=str,
)
def test_editors_mark_what_is_wrong(changes: dict) -> None:
    known = yaml.safe_load((ROOT / SCHEMA).read_text())
    config = study("m", "t")
    jsonschema.validate(config, known)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(study("m", "t", **changes), known)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_config": [{"model_name": "a"}, {"model_name": "b", "model_checkpoint": ["x", "y"]}]},
        {"dataset_config__dataset_subset": 3},
        {"model_config__module_name_mapping": {"block": "net.{layer}"}},
        {"cacheing_config__layer_idx_list": [0, 1], "cacheing_config__views": {"mine": {"duplicates": "keep"}}},
        {"cacheing_config__save_fp": "torch.float16"},
    ],
    ids=str,
)
def test_editors_accept_what_is_valid(changes: dict) -> None:
    config = study("m", "t", **changes)
    Config.model_validate(config)
    jsonschema.validate(config, yaml.safe_load((ROOT / SCHEMA).read_text()))


def test_editors_accept_either_spelling_of_a_key_but_not_both() -> None:
    known, config = yaml.safe_load((ROOT / SCHEMA).read_text()), study("m", "t")
    other = {"caching_config" if key == "cacheing_config" else key: value for key, value in config.items()}
    jsonschema.validate(other, known)
    for wrong in ({**config, **other}, {**other, "caching_config": {"save_fp": "float8"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, known)


def page(name: str) -> str:
    """Return a page of the documentation."""
    return (ROOT / "docs" / f"{name}.md").read_text()


def test_page_lists_the_architectures_that_have_a_preset() -> None:
    (listed,) = re.findall(r"`module_name_mapping: auto` knows these architectures:([\w\s,]+)\.", page("models"))
    assert sorted(re.findall(r"\w+", listed)) == sorted(PRESETS)


def test_page_lists_the_estimators_of_the_grammar() -> None:
    table = page("estimators").split("## Names")[1].split("## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == [rule.form for rule in GRAMMAR]


def test_page_has_a_section_of_every_method() -> None:
    names = re.findall(r"`(\w+)`", "".join(re.findall(r"^## .*", page("estimators"), flags=re.MULTILINE)))
    sections = {rule.module for rule in GRAMMAR if rule.form in names}
    assert sections == {rule.module for rule in GRAMMAR}


def test_page_lists_the_formats_of_shards() -> None:
    assert [suffix for suffix in SUFFIXES if f"`{suffix}`" not in page("datasets")] == []
