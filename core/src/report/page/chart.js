// A chart of one or two metrics over all visible runs.

const charts = [];

// Draws a card's chart when it scrolls into view and after changes while it is in view.
const inView = new IntersectionObserver(entries => {
  for (const {target, isIntersecting} of entries) {
    target.chart.inView = isIntersecting;
    if (isIntersecting) target.chart.draw();
  }
}, {rootMargin: "200px"});

const resized = new ResizeObserver(entries => {
  for (const {target} of entries) if (target.chart.inView) target.chart.draw();
});

// The element and behaviour that curves and heat maps share: title, cursor, zoom and keys.
class Card {
  constructor(title, note) {
    this.note = el("span", {class: "note"}, note || "");
    this.tools = el("span", {class: "tools"});
    this.canvas = el("canvas", {});
    this.overlay = el("canvas", {class: "overlay", tabindex: "0", role: "img", "aria-label": `${title}: chart. Arrow keys move the cursor, + and - zoom, 0 shows everything.`});
    this.plot = el("div", {class: "plot"}, this.canvas, this.overlay);
    const wide = el("button", {class: "icon", title: "Wide or narrow", "aria-label": `Resize ${title}`, "aria-pressed": "false",
      onclick: () => wide.setAttribute("aria-pressed", String(this.element.classList.toggle("wide")))}, "⤢");
    this.element = el("section", {class: "card"}, el("h3", {}, el("span", {class: "title"}, title), this.note, this.tools, wide), this.plot);
    this.plot.chart = this;
    this.title = title;
    this.listen();
    inView.observe(this.plot);
    resized.observe(this.plot);
    charts.push(this);
  }

  listen() {
    const overlay = this.overlay;
    overlay.addEventListener("pointerdown", event => {
      if (event.pointerType !== "mouse" || event.button) return;
      this.drag = [event.offsetX, event.offsetX];
      overlay.setPointerCapture(event.pointerId);
    });
    overlay.addEventListener("pointermove", event => {
      if (this.drag) this.drag[1] = event.offsetX;
      this.point([event.offsetX, event.offsetY]);
    });
    overlay.addEventListener("pointerup", () => this.endDrag());
    overlay.addEventListener("pointerleave", () => this.drag || this.leave());
    overlay.addEventListener("blur", () => this.leave());
    overlay.addEventListener("dblclick", () => update({zoom: null}));
    overlay.addEventListener("keydown", event => this.key(event));
  }

  point(at) {
    if (!this.scale) return;
    this.at = at;
    moveCursor(this, this.scale.fromPixel(at[0]));
  }

  leave() {
    this.at = null;
    moveCursor(null, null);
  }

  endDrag() {
    const drag = this.drag;
    this.drag = null;
    if (!drag || Math.abs(drag[1] - drag[0]) < 6) return drawCursors();
    const [low, high] = [Math.min(...drag), Math.max(...drag)].map(px => this.scale.fromPixel(px));
    const shown = rangeShown();
    update({zoom: [Math.max(low, shown[0]), Math.min(high, shown[1])]});
  }

  key(event) {
    const [low, high] = rangeShown(), step = (high - low) * (event.shiftKey ? 0.1 : 0.01);
    const x = state.cursor ?? (low + high) / 2;
    const actions = {
      ArrowLeft: () => this.pointAt(Math.max(low, x - step)),
      ArrowRight: () => this.pointAt(Math.min(high, x + step)),
      Home: () => this.pointAt(low),
      End: () => this.pointAt(high),
      "+": () => zoomBy(0.5, x), "=": () => zoomBy(0.5, x), "-": () => zoomBy(2, x),
      0: () => update({zoom: null}), Escape: () => { update({zoom: null}); this.leave(); },
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }

  pointAt(x) {
    if (this.scale) this.point([this.scale.px(x), MARGIN.top + this.scale.plotHeight / 2]);
    byId("spoken").textContent = this.rowsAt(x).map(row => `${row.label} ${row.text}`).join(", ");
  }

  size() {
    return [this.plot.clientWidth, this.plot.clientHeight];
  }

  drawSelection(context) {
    if (!this.drag) return;
    context.fillStyle = theme("--selection");
    context.fillRect(Math.min(...this.drag), MARGIN.top, Math.abs(this.drag[1] - this.drag[0]), this.scale.plotHeight);
  }

  // Draws the vertical line at the cursor, and returns the context.
  drawCursor() {
    const context = fitted(this.overlay, ...this.size());
    if (!this.scale) return null;
    this.drawSelection(context);
    const px = this.scale.px(state.cursor);
    if (state.cursor == null || px < MARGIN.left || px > this.scale.width - MARGIN.right) return null;
    context.strokeStyle = theme("--muted");
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(Math.round(px) + 0.5, MARGIN.top);
    context.lineTo(Math.round(px) + 0.5, this.scale.height - MARGIN.bottom);
    context.stroke();
    return context;
  }
}

class CurveChart extends Card {
  constructor(title, metrics, note) {
    super(title, note);
    this.metrics = metrics;
    this.format = formatterOf(metrics[0]);
  }

  // The visible curves that exist, the highlighted run last.
  curves() {
    const found = [];
    for (const run of visibleRuns())
      for (const [i, metric] of this.metrics.entries()) {
        const curve = curveOf(run, metric);
        if (curve) found.push({run, metric, dots: i > 0, ...curve});
      }
    return found.sort((a, b) => (a.run.index === state.highlight) - (b.run.index === state.highlight));
  }

  draw() {
    const [width, height] = this.size();
    if (width < 20) return;
    const curves = this.curves(), x = rangeShown();
    this.shown = curves;
    this.plot.classList.toggle("empty", !curves.length);
    const values = [];
    for (const {xs, ys} of curves)
      for (let i = 0; i < xs.length; ++i) if (xs[i] >= x[0] && xs[i] <= x[1]) values.push(ys[i]);
    this.scale = new Scale(width, height, x, rangeOfY(values, state.logY, state.clip), state.logY);
    const context = fitted(this.canvas, width, height);
    drawAxes(context, this.scale, this.format);
    context.save();
    clipToPlot(context, this.scale);
    context.lineJoin = "round";
    for (const curve of curves) this.drawCurve(context, curve, curves.length);
    context.restore();
    this.drawHover();
  }

  drawCurve(context, {run, xs, ys, raw, dots}, count) {
    const highlighted = state.highlight === run.index, faded = state.highlight != null && !highlighted;
    context.strokeStyle = context.fillStyle = colorOf(run);
    context.setLineDash(dashOf(run.index));
    if (state.smoothing > 0 && count <= 12 && !faded && !dots) {
      context.globalAlpha = 0.2;
      context.lineWidth = 1;
      strokeCurve(context, this.scale, xs, raw);
    }
    context.globalAlpha = faded ? 0.2 : count > 24 && !highlighted ? 0.6 : 1;
    context.lineWidth = dots ? 1 : highlighted ? 2.6 : count > 24 ? 1.1 : 1.6;
    if (dots) context.setLineDash([3, 3]);
    strokeCurve(context, this.scale, xs, dots ? raw : ys);
    if (dots && xs.length <= 60)
      for (let i = 0; i < xs.length; ++i) if (Number.isFinite(raw[i])) dot(context, this.scale.px(xs[i]), this.scale.py(raw[i]), 3);
    markBroken(context, this.scale, xs, raw);
    context.globalAlpha = 1;
  }

  // What the curves have near x, nearest to the pointer first.
  rowsAt(x) {
    const rows = [];
    for (const curve of this.shown || []) {
      const {run, metric, xs, ys, raw, steps} = curve;
      if (x < xs[0] - 1e-9 || x > xs[xs.length - 1] + (rangeShown()[1] - rangeShown()[0]) * 0.02) continue;
      const i = nearestIndex(xs, x), y = ys[i];
      const label = this.metrics.length > 1 ? `${run.label} ${metric.split("/")[0]}` : run.label;
      rows.push({run, label, x: xs[i], y, step: steps[i], text: this.format(Number.isFinite(raw[i]) ? y : raw[i])});
    }
    const py = this.at ? this.at[1] : 0;
    const distance = row => Number.isFinite(row.y) ? Math.abs(this.scale.py(row.y) - py) : 1e9;
    return rows.sort((a, b) => distance(a) - distance(b));
  }

  drawHover() {
    const context = this.drawCursor();
    if (!context) return;
    const rows = this.rowsAt(state.cursor);
    for (const row of rows.slice(0, 40)) {
      const py = this.scale.py(row.y);
      if (!(py >= MARGIN.top - 4 && py <= this.scale.height - MARGIN.bottom + 4)) continue;
      context.fillStyle = theme("--card");
      dot(context, this.scale.px(row.x), py, 4.5);
      context.fillStyle = colorOf(row.run);
      dot(context, this.scale.px(row.x), py, 3);
    }
    if (this.at) showTooltip(this, rows);
  }
}

function drawCursors() {
  for (const chart of charts) if (chart.inView) chart.drawHover();
}

function moveCursor(chart, x) {
  state.cursor = x;
  if (!chart) byId("tooltip").hidden = true;
  requestAnimationFrame(drawCursors);
}

const TOOLTIP_ROWS = 10;

// Shows the values of the nearest curves next to the pointer.
function showTooltip(chart, rows) {
  const tooltip = byId("tooltip"), axis = AXES[state.axis];
  const head = el("div", {class: "head"}, state.axis === "step" && rows.length ? `step ${rows[0].step}` : `${axis.title} ${axis.format(state.cursor)}`);
  if (state.axis !== "step" && rows.length) head.append(` · step ${rows[0].step}`);
  const nearest = rows.slice(0, TOOLTIP_ROWS).sort((a, b) => b.y - a.y);
  tooltip.replaceChildren(head, ...nearest.map(row => el("div", {class: row === rows[0] && rows.length > 1 ? "row nearest" : "row"},
    row.run ? swatch(row.run) : null, el("span", {class: "name"}, row.label), el("b", {}, row.text))));
  if (rows.length > TOOLTIP_ROWS) tooltip.append(el("div", {class: "head"}, `and ${rows.length - TOOLTIP_ROWS} more`));
  tooltip.hidden = false;
  const box = chart.plot.getBoundingClientRect(), size = tooltip.getBoundingClientRect();
  const left = box.left + chart.at[0] + 16, top = box.top + chart.at[1] + 12;
  const x = left + size.width > innerWidth - 8 ? box.left + chart.at[0] - size.width - 16 : left;
  tooltip.style.left = Math.max(4, Math.min(x, innerWidth - size.width - 4)) + "px";
  tooltip.style.top = Math.max(4, Math.min(top, innerHeight - size.height - 8)) + "px";
}
