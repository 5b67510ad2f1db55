const KEYS = ["model", "checkpoint", "module", "estimator"];
const chosen = {};

function isChosen(row) {
  const isAccepted = key => !chosen[key] || row[key] == null || (key === "estimator" && row[key] === "loss");
  return KEYS.every(key => isAccepted(key) || String(row[key]) === chosen[key]);
}

function filtered(spec) {
  const copy = structuredClone(spec);
  for (const name in copy.datasets) copy.datasets[name] = copy.datasets[name].filter(isChosen);
  return pruned(copy, copy.datasets, undefined);
}

// Return the figure without panels that have no data; null if none is left.
function pruned(node, datasets, inherited) {
  const name = node.data && node.data.name || inherited;
  for (const kind of ["vconcat", "hconcat"]) {
    if (!node[kind]) continue;
    node[kind] = node[kind].map(child => pruned(child, datasets, name)).filter(Boolean);
    return node[kind].length ? node : null;
  }
  const names = [name, ...(node.layer || []).map(layer => layer.data && layer.data.name)].filter(Boolean);
  return names.some(dataset => (datasets[dataset] || []).some(row => row.zero === undefined)) ? node : null;
}

async function draw(name) {
  const place = document.getElementById("figure-" + name);
  const spec = filtered(SPECS[name]);
  if (!spec) {
    place.replaceChildren("This figure has no data for this selection. A figure of a single run shows the first model.");
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
  const distinct = new Set();
  for (const spec of Object.values(SPECS))
    for (const rows of Object.values(spec.datasets))
      for (const row of rows) if (row[key] != null && row[key] !== "loss") distinct.add(String(row[key]));
  return [...distinct];
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
  const quoted = value => /[",\n]/.test(value) ? '"' + String(value).replaceAll('"', '""') + '"' : value;
  const cell = value => value == null ? "" : quoted(value);
  return [columns, ...rows.map(row => columns.map(column => row[column]))]
    .map(row => row.map(cell).join(",")).join("\n") + "\n";
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
