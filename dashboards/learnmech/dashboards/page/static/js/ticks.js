// Axes of the plots: how x is labelled in steps, counts, time of day or seconds since the start.

import { AXES, calendar, clock, compact, number } from "./format.js";
import { symRange, symTicks } from "./symlog.js";

const SECONDS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400, 172800, 604800];
const COUNTS = [1, 2, 5].flatMap((m) => Array.from({ length: 15 }, (_, e) => m * 10 ** e)).sort((a, b) => a - b);

/** Options of the x axis; `relative` means seconds since each run's start. Without labels the grid stays the same. */
export function xAxis(kind, relative, colours, { labels = true } = {}) {
  const axis = {
    stroke: colours.muted,
    font: colours.font,
    grid: { stroke: colours.grid, width: 1 },
    ticks: { stroke: colours.grid, width: 1, size: 4 },
    size: labels ? 26 : 12,
    gap: 4,
    ...spacing(kind, relative),
  };
  if (!labels) return { ...axis, values: (_, splits) => splits.map(() => "") };
  const name = kind === "time" && relative ? "time since the run's start" : AXES[kind].axis;
  return { ...axis, label: name, labelFont: colours.font, labelSize: 17, labelGap: 0 };
}

function spacing(kind, relative) {
  if (kind !== "time") return { space: 76, incrs: COUNTS, values: (_, splits) => splits.map((v) => (v === null ? "" : compact(v))) };
  if (relative) return { space: 76, incrs: SECONDS, values: (_, splits) => splits.map(clock) };
  // uPlot places calendar ticks itself; only their words are ours
  return { space: 96, values: (_u, splits, _axis, _space, incr) => splits.map((s) => calendar(s, incr)) };
}

/** Ticks of the x axis of what is not drawn by uPlot: [{x, text}], `width` pixels for `from` to `to`. */
export function xTicks(kind, relative, from, to, width) {
  const most = Math.max(1, Math.floor(width / (kind === "time" && !relative ? 96 : 76)));
  const steps = kind === "time" ? SECONDS : COUNTS;
  const step = steps.find((size) => (to - from) / size <= most) ?? steps[steps.length - 1];
  const text = kind === "time" ? (relative ? clock : (x) => calendar(x, step)) : compact;
  const first = Math.ceil(from / step);
  return Array.from({ length: Math.max(0, Math.floor(to / step) - first + 1) }, (_, i) => (first + i) * step).map((x) => ({ x, text: text(x) }));
}

/** Options of the y axis. */
export function yAxis(colours, { y, linear, compactly = false }) {
  const ticks = {
    log: (u, _axis, min, max) => logTicks(min, max, u.bbox.height / devicePixelRatio),
    symlog: (u, _axis, min, max) => symTicks(min, max, u.bbox.height / devicePixelRatio, linear),
  }[y];
  return {
    scale: "y",
    stroke: colours.muted,
    font: colours.font,
    grid: { stroke: colours.grid, width: 1 },
    ticks: { stroke: colours.grid, width: 1, size: 4 },
    size: 62,
    gap: 4,
    space: ticks ? 22 : compactly ? 26 : 34,
    values: (_, splits) => splits.map((v) => (v === null || v === undefined ? "" : number(v, 5))),
    ...(ticks ? { splits: ticks, filter: (_, splits) => splits } : {}),
  };
}

/** Ticks of a logarithmic axis: decades, then 1-2-5, then evenly spaced round numbers when less than half a decade is shown. */
export function logTicks(min, max, height) {
  const most = Math.max(2, Math.floor(height / 24));
  const [low, high] = [Math.floor(Math.log10(min)), Math.ceil(Math.log10(max))];
  const within = (factors, every) => {
    const ticks = [];
    for (let e = low; e <= high; e += 1) {
      if (e % every === 0) for (const factor of factors) ticks.push(Number(`${factor}e${e}`));
    }
    return ticks.filter((tick) => tick >= min && tick <= max);
  };
  const choices = [within([1, 2, 5], 1), within([1, 3], 1), ...[1, 2, 3, 5, 10].map((every) => within([1], every))];
  const fitting = choices.filter((ticks) => ticks.length <= most);
  if (fitting[0]?.length >= 3) return fitting[0];
  const step = niceStep((max - min) / Math.min(5, most));
  const even = [];
  for (let tick = Math.ceil(min / step) * step; tick <= max; tick += step) even.push(Number(tick.toPrecision(12)));
  return even.length > (fitting[0]?.length ?? 0) ? even : fitting[0] ?? [];
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
}

/**
 * The range of y. Lines decide it; an error band may stretch it by at most 60 % of the lines' own span on each side, so that
 * one wild error bar does not flatten everything else.
 */
export function yRange(lines, bands, from, to, { y, linear, include = [] }) {
  const log = y === "log";
  let [low, high] = extent(lines, from, to, log);
  for (const value of include) {
    if (log && value <= 0) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (y === "symlog") return symRange(low, high, linear);
  if (low > high) return log ? [0.1, 10] : [0, 1];
  const [bandLow, bandHigh] = extent(bands, from, to, log);
  if (log) {
    const reach = Math.max(3, (high / low) ** 0.6);
    const [a, b] = [Math.max(Math.min(low, bandLow), low / reach), Math.min(Math.max(high, bandHigh), high * reach)];
    const room = Math.max(1.08, (b / a) ** 0.04);
    return [a / room, b * room];
  }
  const span = high - low || Math.abs(high) * 0.2 || 1;
  const a = Math.max(Math.min(low, bandLow), low - 0.6 * span);
  const b = Math.min(Math.max(high, bandHigh), high + 0.6 * span);
  const room = (b - a || span) * 0.06;
  return [a >= 0 && a - room < 0 ? 0 : a - room, b + room];
}

function extent(columns, from, to, log) {
  let [low, high] = [Infinity, -Infinity];
  for (const column of columns) {
    for (let i = from; i <= to; i += 1) {
      const value = column[i];
      if (value === null || value === undefined || (log && value <= 0)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return [low, high];
}
