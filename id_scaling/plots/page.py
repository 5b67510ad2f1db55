"""Pages that need no network: of one figure, and the report, with what its filters and downloads do."""

from __future__ import annotations

import json
from functools import cache

import vl_convert


@cache
def libraries() -> str:
    """Return the scripts that draw figures."""
    return vl_convert.javascript_bundle().replace("</script", "<\\/script")


def as_script(value: object) -> str:
    """Return a value as JSON that may stand in a script, whatever text is in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def page_of(name: str, specification: dict) -> str:
    """Return a page of one figure."""
    return FIGURE.format(title=name, libraries=libraries(), spec=as_script(specification))


FIGURE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title><link rel="icon" href="data:,"></head>
<body><div id="figure"></div>
<script>{libraries}</script>
<script>vegaEmbed("#figure", {spec}, {{renderer: "svg", downloadFileName: "{title}"}});</script>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light; --ink: #1c1c1c; --quiet: #5c5c5c; --line: #d8d8d8; --wash: #f6f6f4; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 16px/1.5 system-ui, sans-serif; }
main, header { max-width: 76rem; margin: 0 auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 1.5rem 0 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .25rem; }
p { max-width: 46rem; margin: .25rem 0 .75rem; }
.quiet { color: var(--quiet); }
.filters { position: sticky; top: 0; z-index: 2; background: var(--wash); border-bottom: 1px solid var(--line);
  padding: .5rem 1rem; display: flex; flex-wrap: wrap; gap: .5rem 1rem; }
.filters label { display: flex; flex-direction: column; font-size: .8rem; color: var(--quiet); }
select, button { font: inherit; font-size: .9rem; max-width: 16rem; padding: .2rem .4rem; background: #fff;
  border: 1px solid var(--line); border-radius: 4px; color: var(--ink); }
button { cursor: pointer; }
.wide { overflow-x: auto; }
.figure { min-height: 2rem; }
table { border-collapse: collapse; font-size: .9rem; margin: .5rem 0 1rem; }
th, td { text-align: left; vertical-align: top; padding: .2rem .75rem .2rem 0; border-bottom: 1px solid var(--line); }
li { max-width: 46rem; margin: .3rem 0; }
li.doubt::marker { content: "⚠ "; }
li.fine::marker { content: "✓ "; }
li.fact::marker { content: "• "; }
nav.contents { columns: 2; margin: .5rem 0 1rem; }
nav.contents a { color: inherit; display: block; }
@media (max-width: 40rem) { nav.contents { columns: 1; } body { font-size: 15px; } .filters { position: static; } }
"""

# SPECS is a specification for each figure, with its data.
SCRIPT = """
const KEYS = ["model", "checkpoint", "module", "estimator"];
const chosen = {};

function isChosen(row) {
  const isAnyway = key => !chosen[key] || row[key] == null || (key === "estimator" && row[key] === "loss");
  return KEYS.every(key => isAnyway(key) || String(row[key]) === chosen[key]);
}

function filtered(spec) {
  const copy = structuredClone(spec);
  for (const name in copy.datasets) copy.datasets[name] = copy.datasets[name].filter(isChosen);
  return pruned(copy, copy.datasets, undefined);
}

// Without the panels that have no data.
function pruned(node, datasets, inherited) {
  const name = node.data && node.data.name || inherited;
  for (const kind of ["vconcat", "hconcat"]) {
    if (!node[kind]) continue;
    node[kind] = node[kind].map(child => pruned(child, datasets, name)).filter(Boolean);
    return node[kind].length ? node : null;
  }
  const names = [name, ...(node.layer || []).map(layer => layer.data && layer.data.name)].filter(Boolean);
  return names.some(one => (datasets[one] || []).some(row => row.zero === undefined)) ? node : null;
}

async function draw(name) {
  const place = document.getElementById("figure-" + name);
  const spec = filtered(SPECS[name]);
  if (!spec) {
    place.replaceChildren("Nothing of this selection is in this figure. One of a single run shows the first model.");
    place.dataset.drawn = "empty";
    return;
  }
  const options = {renderer: "svg", actions: {export: true, source: false, compiled: false, editor: false}};
  await vegaEmbed(place, spec, {...options, downloadFileName: name});
  place.dataset.drawn = "figure";
}

function drawAll() {
  return Promise.all(Object.keys(SPECS).map(draw));
}

function values(key) {
  const found = new Set();
  for (const spec of Object.values(SPECS))
    for (const rows of Object.values(spec.datasets))
      for (const row of rows) if (row[key] != null && row[key] !== "loss") found.add(String(row[key]));
  return [...found];
}

function addFilter(key) {
  const label = document.createElement("label"), select = document.createElement("select");
  select.id = "filter-" + key;
  select.append(new Option("all", ""), ...values(key).map(value => new Option(value, value)));
  select.addEventListener("change", () => { chosen[key] = select.value; document.body.dataset.ready = "";
    drawAll().then(() => { document.body.dataset.ready = "yes"; }); });
  label.append(key, select);
  document.getElementById("filters").append(label);
}

function csv(rows) {
  const columns = [...new Set(rows.flatMap(row => Object.keys(row)))];
  const quoted = value => /[",\\n]/.test(value) ? '"' + String(value).replaceAll('"', '""') + '"' : value;
  const cell = value => value == null ? "" : quoted(value);
  return [columns, ...rows.map(row => columns.map(column => row[column]))]
    .map(row => row.map(cell).join(",")).join("\\n") + "\\n";
}

function download(name) {
  const rows = Object.values(SPECS[name].datasets).flat().filter(row => row.zero === undefined).filter(isChosen);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv(rows)], {type: "text/csv"}));
  link.download = name + ".csv";
  link.click();
  URL.revokeObjectURL(link.href);
}

KEYS.forEach(addFilter);
for (const button of document.querySelectorAll("button[data-figure]"))
  button.addEventListener("click", () => download(button.dataset.figure));
drawAll().then(() => { document.body.dataset.ready = "yes"; });
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1>
<p class="quiet">Intrinsic dimension of in-context representation manifolds. This page needs no network.</p></header>
<div class="filters" id="filters"></div>
<main>
<nav class="contents" aria-label="Contents">{contents}</nav>
{sections}
</main>
<script>{libraries}</script>
<script>const SPECS = {specs};
{script}</script>
</body>
</html>
"""
