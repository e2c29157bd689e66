// Metrics of many layers or experts over time, one row each.

// A shortened curve alternates between the extremes of ranges. Colours show their average.
function averaged(curve) {
  if (!curve || curve.recorded <= curve.steps.length) return curve;
  const ys = curve.ys.map((y, i) => {
    const near = curve.ys.slice(Math.max(0, i - 1), i + 3).filter(Number.isFinite);
    return Number.isFinite(y) ? near.reduce((sum, value) => sum + value, 0) / near.length : y;
  });
  return {...curve, ys};
}

class HeatMap extends Card {
  constructor(title, prefix, members) {
    super(title);
    this.prefix = prefix;
    this.members = members;
    this.format = formatterOf(prefix);
    this.plot.style.height = Math.max(120, Math.min(520, members.length * 18 + MARGIN.top + MARGIN.bottom + 26)) + "px";
    this.select = el("select", {"aria-label": `Run of ${title}`, onchange: () => { this.chosen = Number(this.select.value); this.draw(); }});
    this.tools.append(this.select);
  }

  // The run that is shown: the highlighted one, the chosen one, or the first that has these metrics.
  run(candidates) {
    const of = index => candidates.find(run => run.index === index);
    return of(state.highlight) || of(this.chosen) || candidates[0];
  }

  fillSelect(candidates, run) {
    const key = candidates.map(candidate => candidate.index).join();
    if (this.selectKey !== key) {
      this.selectKey = key;
      this.select.replaceChildren(...candidates.map(candidate => el("option", {value: candidate.index}, candidate.label)));
      this.select.hidden = RUNS.length < 2;
    }
    if (run) this.select.value = run.index;
  }

  rows(run) {
    return this.members.map(member => ({member, curve: run && averaged(curveOf(run, this.prefix + member))}));
  }

  draw() {
    const [width, height] = this.size();
    if (width < 20) return;
    const candidates = visibleRuns().filter(run => this.members.some(member => run.curves.has(this.prefix + member)));
    const run = this.run(candidates);
    this.fillSelect(candidates, run);
    this.plot.classList.toggle("empty", !run);
    this.scale = new Scale(width, height - 26, rangeShown(), [0, 1], false);
    this.shown = this.rows(run);
    const context = fitted(this.canvas, width, height);
    context.font = "11px system-ui, sans-serif";
    this.setColors();
    this.shown.forEach((row, i) => this.drawRow(context, row, i));
    drawXAxis(context, this.scale, {muted: theme("--muted")});
    this.drawLegend(context, width, height);
    this.drawHover();
  }

  // Chooses the range of colours: logarithmic if the values differ by a factor of more than 100.
  setColors() {
    const values = [];
    for (const {curve} of this.shown)
      if (curve) for (let i = 0; i < curve.xs.length; ++i)
        if (curve.xs[i] >= this.scale.x[0] && curve.xs[i] <= this.scale.x[1] && Number.isFinite(curve.ys[i])) values.push(curve.ys[i]);
    const sorted = Float64Array.from(values).sort();
    const at = share => sorted.length ? sorted[Math.round(share * (sorted.length - 1))] : 0;
    this.range = state.clip ? [at(0.01), at(0.99)] : [at(0), at(1)];
    this.log = this.range[0] > 0 && this.range[1] / this.range[0] > 100;
  }

  share(value) {
    const at = this.log ? Math.log : x => x, [low, high] = this.range.map(at);
    return high > low ? (at(value) - low) / (high - low) : 0;
  }

  rowBox(i) {
    const height = this.scale.plotHeight / this.members.length;
    return [MARGIN.top + i * height, height];
  }

  drawRow(context, {member, curve}, i) {
    const [top, height] = this.rowBox(i), gap = height > 6 ? 1 : 0;
    context.fillStyle = theme("--muted");
    context.textAlign = "right";
    context.textBaseline = "middle";
    if (height >= 11 || i % Math.ceil(11 / height) === 0) context.fillText(fittingText(context, member, MARGIN.left - 9), MARGIN.left - 7, top + height / 2);
    if (!curve) return;
    const {xs, ys} = curve, right = this.scale.width - MARGIN.right;
    for (let j = 0; j < xs.length; ++j) {
      const from = this.scale.px(j ? (xs[j - 1] + xs[j]) / 2 : xs[j]);
      const to = this.scale.px(j + 1 < xs.length ? (xs[j] + xs[j + 1]) / 2 : xs[j]) + 0.7;
      if (to < MARGIN.left || from > right) continue;
      const start = Math.max(from, MARGIN.left);
      context.fillStyle = Number.isFinite(ys[j]) ? rampColor(this.share(ys[j])) : theme("--bad");
      context.fillRect(start, top, Math.min(to, right) - start, height - gap);
    }
  }

  drawLegend(context, width, height) {
    const [low, high] = this.range.map(this.format), top = height - 14;
    context.textBaseline = "middle";
    context.fillStyle = theme("--muted");
    context.textAlign = "left";
    context.fillText(low, MARGIN.left, top + 4);
    const left = MARGIN.left + context.measureText(low).width + 8;
    for (let i = 0; i < 100; ++i) {
      context.fillStyle = rampColor(i / 99);
      context.fillRect(left + i, top, 1.5, 9);
    }
    context.fillStyle = theme("--muted");
    context.fillText(high + (this.log ? "  (logarithmic)" : ""), left + 110, top + 4);
  }

  rowsAt(x) {
    const rows = [];
    for (const {member, curve} of this.shown || []) {
      if (!curve || x > curve.xs[curve.xs.length - 1]) continue;
      const i = nearestIndex(curve.xs, x);
      rows.push({label: member, member, y: curve.ys[i], step: curve.steps[i], text: this.format(curve.ys[i])});
    }
    const pointed = this.at ? Math.floor((this.at[1] - MARGIN.top) / this.rowBox(0)[1]) : 0;
    return rows.sort((a, b) => Math.abs(this.members.indexOf(a.member) - pointed) - Math.abs(this.members.indexOf(b.member) - pointed));
  }

  drawHover() {
    const context = this.drawCursor();
    if (context && this.at) showTooltip(this, this.rowsAt(state.cursor).slice(0, 5));
  }
}
