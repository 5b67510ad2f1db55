"""HTML pages that need no network: templates filled with figures and the scripts that draw them."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from string import Template

import vl_convert

from id_scaling.plots import templates


@cache
def libraries() -> str:
    """Return the JavaScript libraries that draw figures."""
    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # the stub requires what the function does not
    return bundle.replace("</script", "<\\/script")


def as_script(value: object) -> str:
    """Return a value as JSON that is safe inside a script element, whatever text it holds."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def figure_page(name: str, specification: dict) -> str:
    """Return the page of one figure."""
    return _filled("figure.html", title=name, spec=as_script(specification))


def report_page(title: str, contents: str, sections: str, specifications: object) -> str:
    """Return the page of the report.

    Parameters
    ----------
    title, contents, sections : str
        HTML with escaped text.
    specifications : object
        The specification of each figure with its data, by name; the script of the page reads it as `SPECS`.
    """
    return _filled(
        "report.html",
        title=title,
        contents=contents,
        sections=sections,
        specs=as_script(specifications),
        style=_template("report.css"),
        script=_template("report.js"),
    )


def _filled(name: str, **values: str) -> str:
    """Return a template with a value for each placeholder."""
    return Template(_template(name)).substitute(values, libraries=libraries())


def _template(name: str) -> str:
    """Return the text of a template."""
    return resources.files(templates).joinpath(name).read_text(encoding="utf-8")
