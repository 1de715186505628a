// From the collector's columns to what a chart draws.

import { known } from "./data.js";
import { choice } from "./state.js";

const EMPTY = { step: [], x: [] };

/** Whether x is counted from each run's start: several runs on one time axis say nothing otherwise. */
export function isRelative() {
  return choice.x === "time" && choice.selected.length > 1;
}

function xOf(id, columns) {
  if (!isRelative()) return columns.x;
  const start = known.runs.get(id)?.created ?? columns.x[0] ?? 0;
  return columns.x.map((x) => Math.max(0, x - start));
}

const some = (values) => Boolean(values?.some((value) => value !== null && value !== undefined));

/** A column with gaps where the collector has a number that says nothing: its error bar is too wide. */
function trusted(name, columns) {
  const values = columns[name] ?? [];
  if (name !== "value" || !columns.status?.includes("undetermined")) return values;
  return values.map((value, i) => (columns.status[i] === "undetermined" ? null : value));
}

/** The values of a declared curve: (column + sign * error) / divisor, null where one of them is missing. */
function valuesOf(curve, columns) {
  const base = trusted(curve.column, columns);
  const error = curve.error ? columns[curve.error] : null;
  const divisor = curve.divisor ? (columns[curve.divisor] ?? []) : null;
  if (!error && !divisor) return base;
  return base.map((value, i) => {
    if (value === null || value === undefined) return value;
    const shifted = value + curve.sign * (error?.[i] ?? 0);
    return divisor ? (divisor[i] ? shifted / divisor[i] : null) : shifted;
  });
}

/**
 * The entry of one run for a chart, from the curves that its panel declares. Curves that rest on a column without a single
 * value are left out; so is the tolerance zone unless `zone` is true.
 */
export function makeEntry(id, columns, curves, { zone = false } = {}) {
  const c = columns ?? EMPTY;
  const roles = {};
  for (const curve of curves) {
    const needed = [curve.column, curve.error, curve.divisor].filter(Boolean);
    if (curve.role !== "measured" && !needed.every((name) => some(c[name]))) continue;
    if (curve.role.startsWith("zone") && !zone) continue;
    roles[curve.role] = valuesOf(curve, c);
  }
  if (roles.measured && !roles.upper && isThinned(c)) {
    roles.upper = c.upper; // no error bars: the smallest and largest value of each bucket
    roles.lower = c.lower;
  }
  return { id, x: xOf(id, c), roles };
}

/** Whether points stand for buckets of several measurements. */
export function isThinned(columns) {
  return Boolean(columns?.value && columns.upper?.some((upper, i) => upper !== null && upper !== undefined && upper > columns.lower[i]));
}

/** A hyperparameter recorded on change, as a line over a measured curve's x: the value in force there, or `over` divided by it. */
export function held(x, reference, over = 0) {
  const values = [];
  let next = 0;
  let current;
  for (const position of x) {
    while (next < (reference?.x.length ?? 0) && reference.x[next] <= position) {
      current = over && reference.value[next] ? over / reference.value[next] : reference.value[next];
      next += 1;
    }
    values.push(current);
  }
  return values;
}

/** The row of sorted `xs` nearest to `x`, -1 if there is none. */
export function nearestRow(xs, x) {
  if (!xs.length) return -1;
  let [low, high] = [0, xs.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle;
    else high = middle;
  }
  return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
}
