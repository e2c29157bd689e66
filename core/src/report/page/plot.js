// Axes, grid and curves on a canvas.

const MARGIN = {left: 64, right: 12, top: 8, bottom: 24};

// About `count` round numbers between low and high.
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(factor => factor * power).find(candidate => candidate >= rough) || rough;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9 && found.length < 50; ++i)
    found.push(Math.abs(i * step) < step * 1e-6 ? 0 : i * step);
  return found;
}

function timeTicks(low, high, count) {
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
  const step = steps.find(candidate => (high - low) / candidate <= count);
  if (!step || high - low < 4) return ticks(low, high, count);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; ++i) found.push(i * step);
  return found;
}

function logTicks(low, high, count) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const every = Math.max(1, Math.ceil((last - first) / count));
  const factors = last - first <= 2 ? [1, 2, 3, 5, 7] : last - first <= 4 ? [1, 3] : [1];
  const found = [];
  for (let power = first; power <= last; power += every)
    for (const factor of factors) found.push(factor * 10 ** power);
  const inside = found.filter(value => value >= low * 0.999 && value <= high * 1.001);
  return inside.length > 1 ? inside : ticks(low, high, count);
}

// The range of y. Rare extremes, such as the first losses or a spike, may be left out.
function rangeOfY(values, log, clip) {
  const finite = Float64Array.from(values.filter(value => Number.isFinite(value) && (!log || value > 0))).sort();
  if (!finite.length) return log ? [0.1, 1] : [0, 1];
  let low = finite[0], high = finite[finite.length - 1];
  if (clip && finite.length > 20) {
    const at = share => finite[Math.round(share * (finite.length - 1))];
    const [inner, outer] = [at(0.02), at(0.95)];
    const room = log ? (outer / inner) ** 1.5 : (outer - inner) * 1.5;
    if (outer > inner) {
      high = Math.min(high, log ? outer * room : outer + room);
      low = Math.max(low, log ? inner / room : inner - room);
    }
  }
  if (log) return low === high ? [low / 2, high * 2] : [low / (high / low) ** 0.04, high * (high / low) ** 0.04];
  const pad = (high - low) * 0.05 || Math.abs(high) * 0.1 || 1;
  return [low >= 0 && low - pad < 0 ? 0 : low - pad, high + pad];
}

// Maps data to pixels and back.
class Scale {
  constructor(width, height, x, y, log) {
    Object.assign(this, {width, height, x, y, log});
    this.plotWidth = width - MARGIN.left - MARGIN.right;
    this.plotHeight = height - MARGIN.top - MARGIN.bottom;
    const at = log ? Math.log : value => value;
    [this.low, this.span] = [at(y[0]), at(y[1]) - at(y[0])];
  }
  px(x) { return MARGIN.left + (x - this.x[0]) / (this.x[1] - this.x[0]) * this.plotWidth; }
  py(y) {
    const share = ((this.log ? Math.log(y) : y) - this.low) / this.span;
    return MARGIN.top + (1 - share) * this.plotHeight;
  }
  fromPixel(px) { return this.x[0] + (px - MARGIN.left) / this.plotWidth * (this.x[1] - this.x[0]); }
}

const theme = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Fits a canvas to its element and the pixels of the screen, and returns its cleared context.
function fitted(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

function drawXAxis(context, scale, colors) {
  context.fillStyle = colors.muted;
  context.textBaseline = "top";
  const axis = AXES[state.axis];
  const count = Math.max(2, scale.plotWidth / 90);
  const positions = state.axis === "time" ? timeTicks(...scale.x, count) : ticks(...scale.x, count);
  for (const value of positions) {
    const px = scale.px(value), text = value === 0 ? "0" : axis.format(value);
    const half = context.measureText(text).width / 2;
    context.textAlign = "center";
    context.fillText(text, Math.min(px, scale.width - half - 2), scale.height - MARGIN.bottom + 7);
  }
}

// As few decimals as tell the ticks apart.
function tickText(values, format) {
  const texts = values.map(format);
  if (format !== formatLoss) return texts;
  return texts.every(text => text.endsWith("00")) ? texts.map(text => text.slice(0, -2))
    : texts.every(text => text.endsWith("0")) ? texts.map(text => text.slice(0, -1)) : texts;
}

function drawAxes(context, scale, format) {
  const colors = {muted: theme("--muted"), grid: theme("--grid"), line: theme("--line")};
  context.font = "11px system-ui, sans-serif";
  const count = Math.max(2, scale.plotHeight / 38);
  const values = scale.log ? logTicks(...scale.y, count) : ticks(...scale.y, count);
  const texts = tickText(values, format);
  context.textAlign = "right";
  context.textBaseline = "middle";
  context.lineWidth = 1;
  values.forEach((value, i) => {
    const py = Math.round(scale.py(value)) + 0.5;
    if (py < MARGIN.top - 1 || py > scale.height - MARGIN.bottom + 1) return;
    context.strokeStyle = colors.grid;
    context.beginPath();
    context.moveTo(MARGIN.left, py);
    context.lineTo(scale.width - MARGIN.right, py);
    context.stroke();
    context.fillStyle = colors.muted;
    context.fillText(texts[i], MARGIN.left - 7, py);
  });
  context.strokeStyle = colors.line;
  context.beginPath();
  context.moveTo(MARGIN.left, scale.height - MARGIN.bottom + 0.5);
  context.lineTo(scale.width - MARGIN.right, scale.height - MARGIN.bottom + 0.5);
  context.stroke();
  drawXAxis(context, scale, colors);
}

function clipToPlot(context, scale) {
  context.beginPath();
  context.rect(MARGIN.left, MARGIN.top - 4, scale.plotWidth, scale.plotHeight + 8);
  context.clip();
}

// Draws a line that is interrupted where values are not finite.
function strokeCurve(context, scale, xs, ys) {
  context.beginPath();
  let open = false;
  for (let i = 0; i < xs.length; ++i) {
    if (!Number.isFinite(ys[i]) || (scale.log && ys[i] <= 0)) { open = false; continue; }
    const px = scale.px(xs[i]), py = Math.max(-1e4, Math.min(1e4, scale.py(ys[i])));
    if (open) context.lineTo(px, py); else context.moveTo(px, py);
    open = true;
  }
  context.stroke();
}

function dot(context, px, py, radius) {
  context.beginPath();
  context.arc(px, py, radius, 0, 2 * Math.PI);
  context.fill();
}

// Shortens text to at most `width` pixels.
function fittingText(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let end = text.length - 1;
  while (end > 1 && context.measureText(text.slice(0, end) + "…").width > width) --end;
  return text.slice(0, end) + "…";
}

// Marks where values are NaN or infinite, with crosses at the bottom.
function markBroken(context, scale, xs, ys) {
  context.lineWidth = 1.5;
  context.setLineDash([]);
  const py = scale.height - MARGIN.bottom - 7;
  let before = -Infinity;
  for (let i = 0; i < xs.length; ++i) {
    const px = scale.px(xs[i]);
    if (Number.isFinite(ys[i]) || px - before < 8) continue;
    before = px;
    context.beginPath();
    context.moveTo(px - 3.5, py - 3.5);
    context.lineTo(px + 3.5, py + 3.5);
    context.moveTo(px - 3.5, py + 3.5);
    context.lineTo(px + 3.5, py - 3.5);
    context.stroke();
  }
}
