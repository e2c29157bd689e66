// Elements, numbers and colours.

// Creates an element. Text from runs only ever becomes a text node or an attribute of no meaning.
function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter(child => child != null));
  return element;
}

const byId = id => document.getElementById(id);

function trimmed(text) {
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

// "0.6171", "12.3k", "4.5M", "1.2e-5"
function formatNumber(value) {
  if (value == null || Number.isNaN(value)) return value == null ? "–" : "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e18 || size < 1e-4) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  for (const [unit, suffix] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]])
    if (size >= unit) return trimmed((value / Math.min(unit, unit === 1e4 ? 1e3 : unit)).toPrecision(3)) + suffix;
  return size >= 1000 ? trimmed(value.toFixed(0)) : trimmed(value.toPrecision(4));
}

const formatLoss = value => value == null ? "–" : Number.isFinite(value) && Math.abs(value) < 1e4 ? value.toFixed(4) : formatNumber(value);

function formatBytes(value) {
  for (const [unit, suffix] of [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]])
    if (Math.abs(value) >= unit) return trimmed((value / unit).toPrecision(3)) + " " + suffix;
  return formatNumber(value) + " B";
}

// "34 ms", "5.2 s", "3m20s", "1h02m", "2d05h"
function formatDuration(seconds) {
  if (seconds == null || !Number.isFinite(seconds)) return "–";
  const two = value => String(Math.floor(value)).padStart(2, "0");
  if (seconds < 0.9995 && seconds > 0) return Math.round(seconds * 1000) + " ms";
  if (seconds < 60) return trimmed(seconds.toFixed(1)) + " s";
  if (seconds < 3600) return Math.floor(seconds / 60) + "m" + two(seconds % 60) + "s";
  if (seconds < 86400) return Math.floor(seconds / 3600) + "h" + two(seconds % 3600 / 60) + "m";
  return Math.floor(seconds / 86400) + "d" + two(seconds % 86400 / 3600) + "h";
}

const formatterOf = metric => /bytes/.test(metric) ? formatBytes : /loss/.test(metric) ? formatLoss : formatNumber;

// Colours that remain distinct with red-green and blue-yellow colour blindness (after Okabe and Ito).
// After eight runs the line style changes as well.
const COLORS = {
  light: ["#0072b2", "#d55e00", "#00866a", "#b0478c", "#2f9bdb", "#b87a00", "#6a4fa3", "#5f6368"],
  dark: ["#5aa9e6", "#ff8f4a", "#3ccfa4", "#f0a0d0", "#9bd4ff", "#f5c04a", "#b9a2f2", "#b4b8bd"],
};
const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3]];
const dashOf = index => DASHES[Math.floor(index / 8) % DASHES.length];

// Cividis: equally readable with and without colour vision, and monotonic in lightness.
const RAMP = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"]
  .map(color => [1, 3, 5].map(at => parseInt(color.slice(at, at + 2), 16)));

function rampColor(share) {
  const at = Math.max(0, Math.min(1, share)) * (RAMP.length - 1);
  const low = Math.min(RAMP.length - 2, Math.floor(at));
  const mixed = RAMP[low].map((value, i) => Math.round(value + (RAMP[low + 1][i] - value) * (at - low)));
  return `rgb(${mixed})`;
}
