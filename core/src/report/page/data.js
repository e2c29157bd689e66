// The runs, what the user has chosen, and curves over the chosen axis.

const DATA = JSON.parse(byId("data").textContent);

function summed(differences) {
  let sum = 0;
  return Float64Array.from(differences, difference => sum += difference);
}

function curvesOf({x, metrics, tokens, time}) {
  const axes = x.map(summed);
  const curves = new Map();
  for (const [name, [axis, values, recorded]] of Object.entries(metrics))
    curves.set(name, {steps: axes[axis], values: Float64Array.from(values, Number), recorded});
  return {curves, clocks: {tokens: [summed(tokens[0]), tokens[1]], time: [summed(time[0]), time[1]]}};
}

const RUNS = DATA.runs.map(({about, curves}, index) =>
  ({...about, ...curvesOf(curves), index, cache: new Map(), label: about.name}));

// Runs of the same name in different folders get a number.
const NAMES = new Map();
for (const run of RUNS) {
  const count = (NAMES.get(run.name) || 0) + 1;
  NAMES.set(run.name, count);
  if (count > 1) run.label = `${run.name} (${count})`;
}

const state = {
  axis: "step", smoothing: 0, logY: false, clip: true, zoom: null, cursor: null,
  visible: new Set(RUNS.map(run => run.index)), highlight: null, theme: "light",
};
const listeners = [];
const onChange = listener => listeners.push(listener);

let scheduled = false;
// Applies changes and redraws once per frame.
function update(changes = {}) {
  Object.assign(state, changes);
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    for (const listener of listeners) listener();
  });
}

const visibleRuns = () => RUNS.filter(run => state.visible.has(run.index));
const colorOf = run => COLORS[state.theme][run.index % 8];

// The index of the value in sorted `values` that is nearest to x.
function nearestIndex(values, x) {
  let low = 0, high = values.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < x) low = middle + 1; else high = middle;
  }
  return low > 0 && x - values[low - 1] < values[low] - x ? low - 1 : low;
}

// Tokens or seconds at a step, linear between the known ones.
function atStep([steps, values], step) {
  if (!steps.length) return NaN;
  let i = nearestIndex(steps, step);
  if (steps[i] > step && i > 0) --i;
  if (i >= steps.length - 1) i = steps.length - 2;
  if (i < 0) return values[0];
  return values[i] + (values[i + 1] - values[i]) * (step - steps[i]) / (steps[i + 1] - steps[i]);
}

const AXES = {
  step: {title: "Step", format: formatNumber, of: (run, step) => step},
  tokens: {title: "Tokens", format: formatNumber, of: (run, step) => atStep(run.clocks.tokens, step)},
  flops: {title: "FLOPs", format: formatNumber, of: (run, step) => atStep(run.clocks.tokens, step) * run.flops_per_token},
  time: {title: "Time", format: formatDuration, of: (run, step) => atStep(run.clocks.time, step)},
};
const axisIsKnown = axis => RUNS.some(run => [...run.curves.values()].some(curve => Number.isFinite(AXES[axis].of(run, curve.steps[0]))));

// Exponential moving average whose weight depends on the distance in steps, without the bias of its start.
function smoothed(steps, values, smoothing) {
  const result = new Float64Array(values.length);
  const width = (steps[steps.length - 1] - steps[0]) * 0.1 * smoothing ** 2 || 1;
  let sum = 0, weight = 0, before = steps[0];
  for (let i = 0; i < values.length; ++i) {
    if (!Number.isFinite(values[i])) { result[i] = values[i]; continue; }
    const kept = Math.exp(-(steps[i] - before) / width);
    const added = i > 0 ? 1 - kept || 1e-9 : 1;
    sum = sum * kept + values[i] * added;
    weight = weight * kept + added;
    before = steps[i];
    result[i] = sum / weight;
  }
  return result;
}

// {xs, ys, raw} of a run's metric over the chosen axis; null if it has none. ys is smoothed.
function curveOf(run, metric) {
  const curve = run.curves.get(metric);
  if (!curve || !curve.steps.length) return null;
  const key = `${state.axis} ${state.smoothing} ${metric}`;
  let found = run.cache.get(key);
  if (!found) {
    const xs = Float64Array.from(curve.steps, step => AXES[state.axis].of(run, step));
    const ys = state.smoothing > 0 ? smoothed(curve.steps, curve.values, state.smoothing) : curve.values;
    found = {xs, ys, raw: curve.values, steps: curve.steps, recorded: curve.recorded};
    if (run.cache.size > 400) run.cache.clear();
    run.cache.set(key, found);
  }
  return Number.isFinite(found.xs[0]) ? found : null;
}

// The range of the axis over all visible runs, so that all charts have the same one.
function fullRange() {
  let low = Infinity, high = -Infinity;
  for (const run of visibleRuns())
    for (const {steps} of run.curves.values()) {
      const first = AXES[state.axis].of(run, steps[0]), last = AXES[state.axis].of(run, steps[steps.length - 1]);
      if (first < low) low = first;
      if (last > high) high = last;
    }
  return low < high ? [low, high] : low === high ? [low, low + 1] : [0, 1];
}

const rangeShown = () => state.zoom || fullRange();

function zoomBy(factor, center) {
  const full = fullRange(), [low, high] = rangeShown();
  const middle = center ?? (low + high) / 2;
  const zoom = [Math.max(full[0], middle - (middle - low) * factor), Math.min(full[1], middle + (high - middle) * factor)];
  update({zoom: zoom[0] <= full[0] && zoom[1] >= full[1] ? null : zoom[1] - zoom[0] > (full[1] - full[0]) * 1e-5 ? zoom : state.zoom});
}
