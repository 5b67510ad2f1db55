"""The generated documentation: the JSON schema of the configuration, and tables of keys and columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from id_scaling.results.columns import COLUMNS
from id_scaling.study.config import Config, sections

SCHEMA = Path("workflow/schemas/config.schema.json")
PAGES = {"keys": Path("docs/configuration.md"), "columns": Path("docs/columns.md")}


def write_all(root: Path) -> None:
    """Write the schema, and the tables between their marks in the pages that hold them."""
    (root / SCHEMA).write_text(schema())
    for mark, page in PAGES.items():
        path = root / page
        path.write_text(with_table(path.read_text(), mark))


def schema() -> str:
    """Return the JSON schema of the configuration."""
    return json.dumps(Config.model_json_schema(), indent=1, ensure_ascii=False) + "\n"


def with_table(page: str, mark: str) -> str:
    """Return a page with the current table between `<!-- mark -->` and `<!-- end of mark -->`."""
    table = {"keys": keys_table, "columns": columns_table}[mark]()
    start, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    before, rest = page.split(start)
    return f"{before}{start}\n\n{table}\n{end}{rest.split(end)[1]}"


def keys_table() -> str:
    """Return the table of every configuration key: default and meaning."""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for prefix, section in sections():
        # What a stage declares precedes what the section adds; what has to be given precedes both.
        for name, field in sorted(section.model_fields.items(), key=lambda item: not item[1].is_required()):
            key = f"{prefix}{field.alias or name}"
            default = "required" if field.is_required() else f"`{_plain(field.get_default(call_default_factory=True))}`"
            default = default.replace("`None`", "").replace("`see below`", "see below")
            lines.append(f"| `{key}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


def columns_table() -> str:
    """Return the table of the summary's columns: unit and meaning."""
    lines = ["| column | unit | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {unit} | {meaning} |" for name, unit, meaning in COLUMNS]
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> str:
    """Return a default as it would stand in YAML."""
    if hasattr(value, "model_dump"):
        return "see below"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_plain_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(str, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _plain_flow(section: Any) -> str:
    """Return a section as a YAML flow mapping."""
    return "{" + ", ".join(f"{key}: {value}" for key, value in section.model_dump(exclude_defaults=True).items()) + "}"
