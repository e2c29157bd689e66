// The table of runs, which selects what the charts show.

const BADGES = {finished: "good", running: "busy", failed: "bad", crashed: "bad", damaged: "bad"};

// A sample of the run's line, so that the table is the legend of all charts.
function swatch(run) {
  const sample = byId("swatch").content.firstElementChild.cloneNode(true);
  sample.firstElementChild.setAttribute("stroke-dasharray", dashOf(run.index).join(" ") || "none");
  sample.run = run;
  sample.style.color = colorOf(run);
  return sample;
}

function badge(text, kind) {
  return el("span", {class: `badge ${kind || ""}`}, text);
}

function faultBadges({faults, problems}) {
  const badges = [];
  if (faults.not_finite) badges.push(badge(`NaN × ${faults.not_finite}`, "bad"));
  if (faults.skipped) badges.push(badge(`${faults.skipped} skipped`, "warn"));
  if (faults.alarms) badges.push(badge(`${formatNumber(faults.alarms)} alarm${faults.alarms === 1 ? "" : "s"}`, "warn"));
  if (problems.length) badges.push(badge("damaged files", "bad"));
  return badges;
}

const metricAt = (part, key) => run => run[part] ? Number(run[part][key] ?? NaN) : null;
const SETTINGS_SHOWN = 8;

// The value of a differing setting in a run; "" if it has none.
function settingOf(setting, run) {
  const at = setting.of[run.index];
  return at < 0 ? "" : setting.values[at];
}

// {title, value: what to sort by, text or cells: what to show}
function columns() {
  const found = [
    {title: "Run", value: run => run.label, left: true, cells: run => [swatch(run), el("span", {class: "name"}, run.label), only(run)]},
    {title: "State", value: run => run.state, left: true, cells: run => [badge(run.state, BADGES[run.state]), ...faultBadges(run)]},
    {title: "Step", value: run => run.step, text: run => run.steps ? `${formatNumber(run.step)} / ${formatNumber(run.steps)}` : formatNumber(run.step)},
    {title: "Tokens", value: run => run.tokens, text: run => formatNumber(run.tokens)},
    {title: "Train loss", value: metricAt("train", "last"), text: run => formatLoss(metricAt("train", "last")(run))},
    {title: "Val loss", value: metricAt("val", "last"), text: run => formatLoss(metricAt("val", "last")(run))},
    {title: "Best val", value: metricAt("val", "best"), text: run => formatLoss(metricAt("val", "best")(run))},
    {title: "Tokens/s", value: run => run.rate, text: run => formatNumber(run.rate)},
    {title: "Duration", value: run => run.duration, text: run => formatDuration(run.duration)},
    {title: "Parameters", value: run => run.parameters, text: run => formatNumber(run.parameters)},
  ].filter(column => column.left || RUNS.some(run => column.value(run) != null));
  for (const setting of shownSettings())
    found.push({title: setting.key, setting: true, left: true, value: run => settingOf(setting, run), text: run => settingOf(setting, run) || "–"});
  return found;
}

// The settings that get a column: first those that most experiments are about. Options that only some
// runs have belong to another component, which is shown itself.
function shownSettings() {
  const order = [/\.plugin$/, /^train\.seed$/, /\.lr$/, /^model\.|^train\./];
  const rank = ({key}) => (order.findIndex(pattern => pattern.test(key)) + order.length + 1) % (order.length + 1);
  return DATA.settings.differing.filter(({key, of}) => !["name", "output"].includes(key) && (key.endsWith(".plugin") || !of.includes(-1)))
    .sort((a, b) => rank(a) - rank(b)).slice(0, SETTINGS_SHOWN);
}

function only(run) {
  if (RUNS.length < 2) return null;
  return el("button", {class: "only", title: "Show only this run", "aria-label": `Show only ${run.label}`,
    onclick: event => { event.stopPropagation(); update({visible: new Set([run.index])}); }}, "only");
}

class RunTable {
  constructor() {
    this.columns = columns();
    this.sorted = null;
    this.descending = false;
    this.all = el("input", {type: "checkbox", "aria-label": "Show all runs", onchange: () => this.toggleAll()});
    this.head = el("tr", {}, el("th", {class: "check"}, this.all), ...this.columns.map(column => this.header(column)));
    this.rows = RUNS.map(run => this.row(run));
    this.body = el("tbody", {}, ...this.rows);
    this.filter = el("input", {type: "search", placeholder: "Filter runs", "aria-label": "Filter runs by name, state or setting", oninput: () => this.applyFilter()});
    const scroller = el("div", {class: "scroller", tabindex: "0", role: "region", "aria-label": "Runs"}, el("table", {class: "runs"}, el("thead", {}, this.head), this.body));
    this.element = el("section", {class: "panel", id: "runs"}, el("div", {class: "panel-head"}, el("h2", {}, RUNS.length === 1 ? "Run" : `${RUNS.length} runs`), RUNS.length > 5 ? this.filter : null), scroller);
    onChange(() => this.refresh());
    this.refresh();
  }

  header(column) {
    const button = el("button", {onclick: () => this.sortBy(column), title: column.title}, column.setting ? column.title.replace(/^(model|train)\./, "") : column.title);
    column.header = el("th", {class: column.left ? "left" : "", "aria-sort": "none"}, button);
    return column.header;
  }

  row(run) {
    const box = el("input", {type: "checkbox", "aria-label": `Show ${run.label}`, onchange: () => this.toggle(run, box.checked)});
    const cells = this.columns.map(column => el("td", {class: column.left ? "left" : "number", title: column.setting ? column.text(run) : null}, ...(column.cells ? column.cells(run) : [column.text(run)])));
    const row = el("tr", {
      onpointerenter: event => event.pointerType === "mouse" && RUNS.length > 1 && update({highlight: run.index}),
      onpointerleave: () => state.highlight != null && update({highlight: null}),
    }, el("td", {class: "check"}, box), ...cells);
    Object.assign(row, {run, box, words: [run.label, run.state, run.experiment, ...DATA.settings.differing.map(setting => `${setting.key}=${settingOf(setting, run)}`)].join(" ").toLowerCase()});
    return row;
  }

  toggle(run, shown) {
    const visible = new Set(state.visible);
    if (shown) visible.add(run.index); else visible.delete(run.index);
    update({visible});
  }

  toggleAll() {
    const listed = this.rows.filter(row => !row.hidden).map(row => row.run.index);
    update({visible: new Set(this.all.checked ? listed : [])});
  }

  applyFilter() {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of this.rows) row.hidden = !words.every(word => row.words.includes(word));
    update({visible: new Set(this.rows.filter(row => !row.hidden).map(row => row.run.index))});
  }

  sortBy(column) {
    this.descending = this.sorted === column && !this.descending;
    this.sorted = column;
    const rank = row => column.value(row.run), unknown = value => value == null || value === "" || Number.isNaN(value);
    const compare = (a, b) => typeof a === "string" ? a.localeCompare(b, undefined, {numeric: true}) : a - b;
    this.rows.sort((a, b) => {
      const [x, y] = [rank(a), rank(b)];
      if (unknown(x) || unknown(y)) return unknown(x) - unknown(y);
      return this.descending ? compare(y, x) : compare(x, y);
    });
    for (const other of this.columns) other.header.setAttribute("aria-sort", other !== column ? "none" : this.descending ? "descending" : "ascending");
    this.body.replaceChildren(...this.rows);
  }

  refresh() {
    for (const row of this.rows) {
      row.box.checked = state.visible.has(row.run.index);
      row.classList.toggle("off", !row.box.checked);
    }
    this.all.checked = state.visible.size === RUNS.length;
    this.all.indeterminate = state.visible.size > 0 && !this.all.checked;
  }
}
