// Puts the page together.

// Sections of the metrics that all runs have. Those of a component have a section with its name.
const SECTIONS = [
  ["Loss", /^val\/|^train\/(.*_)?loss$/],
  ["Optimisation", /^(train|attention)\//],
  ["Components", null],
  ["Throughput and memory", /^(throughput|memory|data)\//],
];

function sectionOf(metric) {
  const found = SECTIONS.find(([, pattern]) => pattern && pattern.test(metric));
  return found ? found[0] : metric.split("/")[0];
}

// The metrics of each section, in the order of the page.
function bySection(metrics) {
  const names = new Map();
  for (const metric of metrics) names.set(sectionOf(metric), [...names.get(sectionOf(metric)) || [], metric]);
  const others = [...names.keys()].filter(title => !SECTIONS.some(([known]) => known === title)).sort();
  return SECTIONS.flatMap(([title, pattern]) => pattern ? [title] : others).filter(title => names.has(title)).map(title => [title, names.get(title)]);
}

// Splits metrics into single ones and families such as moe/load_max/LAYER.
function familiesOf(metrics) {
  const families = new Map();
  for (const metric of metrics) {
    const at = metric.lastIndexOf("/") + 1, prefix = metric.slice(0, at);
    if (prefix.split("/").length < 3) continue;
    families.set(prefix, [...families.get(prefix) || [], metric.slice(at)]);
  }
  for (const [prefix, members] of families)
    if (members.length < 2 || !members.some(member => /^\d+$/.test(member))) families.delete(prefix);
    else members.sort((a, b) => a.localeCompare(b, undefined, {numeric: true}));
  const inFamily = metric => families.has(metric.slice(0, metric.lastIndexOf("/") + 1));
  return {families, singles: metrics.filter(metric => !inFamily(metric))};
}

function chartsOf(metrics) {
  const {families, singles} = familiesOf(metrics), found = [];
  // With many runs, the two losses would hide each other.
  const both = singles.includes("train/loss") && singles.includes("val/loss") && RUNS.length <= 12;
  for (const metric of singles) {
    if (both && metric === "val/loss") continue;
    const main = both && metric === "train/loss";
    const card = new CurveChart(main ? "Loss" : metric, main ? ["train/loss", "val/loss"] : [metric], main ? "train/loss as lines, val/loss with dots" : "");
    if (metric === "train/loss" || metric === "val/loss") card.element.classList.add("wide", "tall");
    found.push(card);
  }
  for (const [prefix, members] of families) found.push(new HeatMap(prefix.slice(0, -1), prefix, members));
  return found;
}

function chartSections() {
  const metrics = [...new Set(RUNS.flatMap(run => [...run.curves.keys()]))].sort();
  const order = metric => ["train/loss", "val/loss", "train/grad_norm", "throughput/tokens_per_s"].indexOf(metric);
  const sections = [];
  for (const [title, names] of bySection(metrics)) {
    names.sort((a, b) => (order(a) < 0) - (order(b) < 0) || order(a) - order(b));
    const found = chartsOf(names);
    for (const card of found) card.element.words = (card.title + " " + (card.metrics || []).join(" ")).toLowerCase();
    sections.push(el("section", {class: "group", id: "group-" + sections.length}, el("h2", {}, title), el("div", {class: "grid"}, ...found.map(card => card.element))));
  }
  return sections;
}

function segmented(label, choices, chosen, choose) {
  const buttons = choices.map(([value, text, usable]) => el("button", {type: "button", "aria-pressed": String(value === chosen), disabled: !usable,
    title: usable ? null : "not known for these runs",
    onclick: () => {
      for (const button of buttons) button.setAttribute("aria-pressed", String(button.value === value));
      choose(value);
    }}, text));
  buttons.forEach((button, i) => button.value = choices[i][0]);
  return el("span", {class: "segmented", role: "group", "aria-label": label}, ...buttons);
}

function check(text, checked, change) {
  const box = el("input", {type: "checkbox", checked, onchange: () => change(box.checked)});
  return el("label", {class: "choice"}, box, text);
}

function filterCharts(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  for (const group of document.querySelectorAll(".group")) {
    for (const card of group.querySelectorAll(".card")) card.hidden = !words.every(word => card.words.includes(word));
    group.hidden = !group.querySelector(".card:not([hidden])");
  }
}

function toolbar() {
  const axes = Object.entries(AXES).map(([value, {title}]) => [value, title, axisIsKnown(value)]);
  const slider = el("input", {type: "range", min: "0", max: "1", step: "0.01", value: "0", "aria-label": "Smoothing", oninput: () => update({smoothing: Number(slider.value)})});
  const reset = el("button", {type: "button", class: "reset", onclick: () => update({zoom: null}), title: "Show the whole range (double click, or 0)"}, "Reset zoom");
  onChange(() => reset.disabled = !state.zoom);
  reset.disabled = true;
  const filter = el("input", {type: "search", placeholder: "Filter charts", "aria-label": "Filter charts by metric", oninput: () => filterCharts(filter.value)});
  return el("div", {class: "toolbar", role: "toolbar", "aria-label": "Charts"},
    segmented("Horizontal axis", axes, "step", axis => update({axis, zoom: null})),
    el("label", {class: "choice"}, "Smoothing", slider),
    check("Log scale", false, logY => update({logY})),
    check("Clip outliers", true, clip => update({clip})),
    el("span", {class: "zoom"}, el("button", {type: "button", title: "Zoom out (-)", "aria-label": "Zoom out", onclick: () => zoomBy(2)}, "−"), el("button", {type: "button", title: "Zoom in (+)", "aria-label": "Zoom in", onclick: () => zoomBy(0.5)}, "+"), reset),
    filter);
}

const systemTheme = matchMedia("(prefers-color-scheme: dark)");

// Follows the system's theme until the user chooses one.
function applyTheme(chosen) {
  const theme = chosen || (systemTheme.matches ? "dark" : "light");
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "Light theme" : "Dark theme";
  update({theme});
  for (const sample of document.querySelectorAll(".swatch")) sample.style.color = colorOf(sample.run);
}

function start() {
  let chosen = null;
  byId("title").textContent = DATA.title;
  byId("written").textContent = `written ${DATA.written.replace("T", " ").replace("Z", " UTC")}`;
  byId("theme").addEventListener("click", () => applyTheme(chosen = state.theme === "dark" ? "light" : "dark"));
  systemTheme.addEventListener("change", () => applyTheme(chosen));
  state.theme = systemTheme.matches ? "dark" : "light";
  document.documentElement.dataset.theme = state.theme;
  const reduced = RUNS.some(run => [...run.curves.values()].some(curve => curve.recorded > curve.steps.length));
  const sections = chartSections(), parts = [messagesPanel(), samplesPanel(), settingsPanel(), provenancePanel()].filter(Boolean);
  byId("content").append(new RunTable().element, toolbar(), ...sections, ...parts);
  for (const part of [...sections, ...parts])
    byId("nav").append(el("a", {href: "#" + part.id}, part.querySelector("h2").textContent));
  if (reduced) byId("reduced").hidden = false;
  onChange(() => { for (const chart of charts) if (chart.inView) chart.draw(); });
  applyTheme(null);
}

start();
