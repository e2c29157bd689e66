// Text below the charts: messages, samples, settings and provenance.

function panel(title, id, ...children) {
  return el("section", {class: "panel", id}, el("div", {class: "panel-head"}, el("h2", {}, title)), ...children);
}

// Creates the content when it is opened for the first time.
function details(summary, open, content) {
  const element = el("details", {open}, el("summary", {}, ...[].concat(summary)));
  const fill = () => element.open && element.children.length === 1 && element.append(content());
  element.addEventListener("toggle", fill);
  fill();
  return element;
}

const runTitle = run => [swatch(run), el("span", {class: "name"}, run.label)];

// Why runs failed, damaged files, and warnings from the logs.
function messagesPanel() {
  const parts = [];
  for (const run of RUNS) {
    const errors = [...run.problems, ...(run.message ? [run.message] : [])];
    const total = errors.length + run.messages.length;
    if (!total) continue;
    const count = el("span", {class: "note"}, `${total} message${total > 1 ? "s" : ""}`);
    const list = () => el("ul", {class: "messages"}, ...errors.map(text => el("li", {class: "bad"}, text)), ...run.messages.map(text => el("li", {}, text)));
    parts.push(details([...runTitle(run), badge(run.state, BADGES[run.state]), count], RUNS.length === 1, list));
  }
  return parts.length ? panel("Messages", "messages", ...parts) : null;
}

// The newest samples of the visible runs next to each other.
function samplesPanel() {
  const having = RUNS.filter(run => run.samples.length);
  if (!having.length) return null;
  const cards = having.map(run => {
    const text = el("pre", {tabindex: "0"});
    const show = index => text.replaceChildren(run.samples[index].text);
    const last = run.samples.length - 1;
    const choice = el("select", {"aria-label": `Sample of ${run.label}`, onchange: () => show(Number(choice.value))},
      ...run.samples.map((sample, i) => el("option", {value: i, selected: i === last}, sample.file.replace(/^step-0*(?=\d)/, "step "))));
    show(last);
    const card = el("article", {class: "sample"}, el("h3", {}, ...runTitle(run), choice), text);
    onChange(() => card.hidden = !state.visible.has(run.index));
    return card;
  });
  return panel("Samples", "samples", el("div", {class: "samples"}, ...cards));
}

function table(head, rows) {
  return el("div", {class: "scroller", tabindex: "0", role: "region", "aria-label": head.map(cell => cell.textContent || cell).join(", ").slice(0, 80)},
    el("table", {class: "plain"}, el("thead", {}, el("tr", {}, ...head.map(cell => el("th", {}, cell)))),
      el("tbody", {}, ...rows.map(([name, ...values]) => el("tr", {}, el("th", {scope: "row"}, name), ...values.map(value => el("td", {}, value)))))));
}

// Settings that differ, with one column per run, or per value if there are many runs.
function settingsPanel() {
  const {common, differing} = DATA.settings, parts = [];
  if (differing.length && RUNS.length <= 12)
    parts.push(table(["Setting", ...RUNS.map(run => el("span", {}, swatch(run), run.label))], differing.map(setting => [setting.key, ...RUNS.map(run => settingOf(setting, run) || "–")])));
  else if (differing.length)
    parts.push(table(["Setting", "Values and number of runs"], differing.map(setting => [setting.key, valueCounts(setting)])));
  else if (RUNS.length > 1)
    parts.push(el("p", {class: "note"}, "All runs have the same settings."));
  if (common.length)
    parts.push(details(RUNS.length > 1 ? `${common.length} settings that are the same in all runs` : `${common.length} settings`, false, () => table(["Setting", "Value"], common)));
  return panel(RUNS.length > 1 ? "Differing settings" : "Settings", "settings", ...parts);
}

function valueCounts(setting) {
  const counts = setting.values.map((value, i) => [value, setting.of.filter(of => of === i).length]);
  const absent = setting.of.filter(of => of < 0).length;
  if (absent) counts.push(["–", absent]);
  return counts.map(([value, count]) => `${value} (${count})`).join(", ");
}

function provenancePanel() {
  const parts = RUNS.map(run => details(runTitle(run), RUNS.length === 1, () => table(["", "Value"], run.provenance)));
  return panel("Provenance", "provenance", ...parts);
}
