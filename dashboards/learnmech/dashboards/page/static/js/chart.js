// One uPlot plot: any number of runs, each with its measured line, error band, dashed prediction and tolerance zone.

import { css, runColour, translucent } from "./palette.js";
import { drawMarks } from "./marks.js";
import { report, shownRange, zoomTo } from "./extent.js";
import { threshold } from "./symlog.js";
import { xAxis, yAxis, yRange } from "./ticks.js";
import { announce, on, slot } from "./state.js";

const uPlot = globalThis.uPlot;
const NEAR = 40; // CSS pixels within which the cursor finds a neighbouring point
const DASH = [7, 5];
const DOTS = [2, 4];
const BANDED = 0.22; // opacity of an error band
const EXPAND = 2; // a gap reaches to the neighbouring values, however many steps of other series lie within it

/**
 * A plot in `host`.
 *
 * `options`: {height, labels (of the x axis), compactly, include (y values that must be visible), rules (fixed horizontal lines),
 * stepped (predictions hold until they change), marksMissing, layers, intervals (as panels.json has them)}. `show(view)` draws
 * {entries, xKind, relative, y ("linear", "log", "symlog"), markers}, where an entry is {id, x, roles: {measured, lower, upper,
 * predicted, zone_lower, zone_upper: arrays or absent}, colour?}. A run may have further entries, with the roles of layers and
 * intervals: "layer_1", "interval_1_upper" and so on.
 */
export class Chart {
  constructor(host, options) {
    this.host = host;
    this.options = { height: 220, labels: true, marksMissing: true, include: [], rules: [], layers: [], intervals: [], ...options };
    const ends = ({ role }) => [`${role}_upper`, `${role}_lower`];
    const { layers, intervals } = this.options;
    this.looks = new Map(layers.map((layer) => [layer.role, layer.look]));
    this.edges = new Set(intervals.flatMap(ends)); // they decide the range like lines do
    this.order = ["zone_upper", "zone_lower", ...this.edges, ...layers.flatMap(ends), "upper", "lower",
      ...this.looks.keys(), "predicted", "measured"]; // drawn in this order
    this.view = null;
    this.plot = null;
    this.shape = "";
    this.resize = new ResizeObserver(() => this.fit());
    this.resize.observe(host);
    this.stopTheme = on("theme", () => this.rebuild());
  }

  /** Draws a view; the plot is made anew only when its structure changed. */
  show(view) {
    this.view = view;
    this.linear = view.y === "symlog" ? threshold(view.entries.flatMap((e) => Object.values(e.roles))) : 0;
    const shape = JSON.stringify([view.xKind, view.relative, view.y, this.linear,
      view.entries.map((e) => [e.id, slot(e.id), e.colour, Object.keys(e.roles)])]);
    if (shape !== this.shape || !this.plot) {
      this.shape = shape;
      this.rebuild();
      return;
    }
    this.columns = this.align();
    this.plot.setData(this.columns, false);
    this.reportRange();
    this.applyRange();
  }

  rebuild() {
    this.plot?.destroy();
    this.plot = null;
    if (!this.view || this.host.clientWidth === 0) { // drawn when the host gets a size
      report(this, null);
      return;
    }
    this.lines = this.layout();
    this.columns = this.align();
    this.plot = new uPlot(this.settings(), this.columns, this.host);
    this.plot.over.addEventListener("dblclick", () => zoomTo(null));
    this.reportRange();
    this.applyRange();
  }

  fit() {
    const width = this.host.clientWidth;
    if (!width) return;
    if (!this.plot) this.rebuild();
    else if (this.plot.width !== width) this.plot.setSize({ width, height: this.options.height });
  }

  destroy() {
    this.resize.disconnect();
    this.stopTheme();
    this.plot?.destroy();
    this.plot = null;
    report(this, null);
  }

  /** The lines in drawing order: [{entry index, role}]. */
  layout() {
    return this.order.flatMap((role) =>
      this.view.entries.flatMap((entry, index) => (entry.roles[role] ? [{ index, role, id: entry.id }] : [])));
  }

  /** The aligned table that uPlot wants; a null stays an honest gap, a step that only another run has stays undefined. */
  align() {
    const { entries, y } = this.view;
    const positive = (role, entry) => {
      const values = entry.roles[role];
      if (y !== "log") return values;
      const floor = role === "lower" || role === "zone_lower" ? entry.roles.measured ?? values : null;
      return values.map((v, i) => (v > 0 || v === null || v === undefined ? v : floor?.[i] > 0 ? floor[i] * 1e-3 : null));
    };
    if (!this.lines.length) return [[]];
    const tables = entries.map((entry, index) =>
      [entry.x, ...this.lines.filter((line) => line.index === index).map((line) => positive(line.role, entry))]);
    const joined = tables.length === 1 ? tables[0] : uPlot.join(tables, tables.map((table) => table.map(() => EXPAND)));
    // join() keeps each run's lines together; put them back into drawing order
    let column = 1;
    const place = new Map();
    entries.forEach((_, index) => this.lines.forEach((line, i) => line.index === index && place.set(i, column++)));
    return [joined[0], ...this.lines.map((_, i) => joined[place.get(i)])];
  }

  settings() {
    const { xKind, relative, y } = this.view;
    const colours = { muted: css("--muted"), grid: css("--grid"), font: `11px ${css("--font")}` };
    return {
      width: this.host.clientWidth,
      height: this.options.height,
      padding: [10, 14, this.options.labels ? 0 : 4, 0],
      legend: { show: false },
      scales: {
        x: { time: xKind === "time" && !relative, range: () => shownRange() },
        y: { distr: { linear: 1, log: 3, symlog: 4 }[y], asinh: this.linear || 1, range: (u) => this.rangeOfY(u) },
      },
      axes: [
        xAxis(xKind, relative, colours, { labels: this.options.labels }),
        yAxis(colours, { y, linear: this.linear, compactly: this.options.compactly }),
      ],
      series: [{}, ...this.lines.map((line) => this.series(line))],
      bands: this.bands(),
      cursor: {
        sync: { key: "learnmech", scales: ["x", null], setSeries: false },
        drag: { x: true, y: false, setScale: false, dist: 6 },
        points: { size: 7, width: 1.5, fill: () => css("--surface") },
        y: false,
        dataIdx: (u, series, index) => nearest(u, series, index),
      },
      hooks: {
        draw: [(u) => drawMarks(u, this)],
        setSelect: [(u) => this.selected(u)],
        setCursor: [(u) => this.pointed(u)],
        ready: [(u) => this.listen(u)],
      },
    };
  }

  /** The spaces that are filled, each between two lines of one run. */
  bands() {
    const share = this.isAlone() ? 1 : 0.6; // fans of several runs lie on each other
    const at = (id, role) => 1 + this.lines.findIndex((line) => line.id === id && line.role === role);
    const fills = [["zone", () => css("--zone")],
      ...this.options.intervals.map(({ role, strength }) => [role, (index) => translucent(this.colour(index), share * strength)]),
      ...["", ...this.looks.keys()].map((role) => [role, (index) => translucent(this.colour(index), BANDED)])];
    return fills.flatMap(([name, fill]) => {
      const [upper, lower] = ["upper", "lower"].map((end) => (name ? `${name}_${end}` : end));
      return this.lines.filter((line) => line.role === upper && at(line.id, lower))
        .map((line) => ({ series: [at(line.id, upper), at(line.id, lower)], fill: fill(line.index) }));
    });
  }

  isAlone() {
    return new Set(this.view.entries.map((entry) => entry.id)).size === 1;
  }

  colour(index) {
    const entry = this.view.entries[index];
    return entry.colour ?? runColour(slot(entry.id));
  }

  series({ index, role }) {
    const colour = this.colour(index);
    if (role === "measured") {
      return { stroke: colour, width: 1.8, points: { size: 4, fill: colour, width: 0 } };
    }
    if (role === "predicted") {
      const stepped = this.options.stepped ? { paths: uPlot.paths.stepped({ align: 1 }) } : {};
      return { stroke: this.isAlone() ? css("--predicted") : colour, width: 1.6, dash: DASH, points: { show: false }, ...stepped };
    }
    if (this.looks.has(role)) return layerSeries(this.looks.get(role), colour);
    const stepped = this.options.stepped && role.startsWith("zone") ? { paths: uPlot.paths.stepped({ align: 1 }) } : {};
    return { stroke: "transparent", width: 0, points: { show: false }, ...stepped };
  }

  rangeOfY(u) {
    const [from, to] = u.series[0].idxs ?? [0, this.columns[0].length - 1];
    const pick = (test) => this.lines.map((line, i) => (test(line.role) ? this.columns[i + 1] : null)).filter(Boolean);
    const isLine = (role) => role === "measured" || role === "predicted" || this.looks.has(role) || this.edges.has(role);
    return yRange(pick(isLine), pick((role) => !isLine(role)), from ?? 0, to ?? -1,
      { y: this.view.y, linear: this.linear, include: this.options.include });
  }

  reportRange() {
    const x = this.columns[0];
    report(this, x.length ? [x[0], x[x.length - 1]] : null);
  }

  applyRange() {
    if (!this.plot) return;
    const [min, max] = shownRange();
    this.plot.batch(() => this.plot.setScale("x", { min, max }));
  }

  selected(u) {
    const { left, width } = u.select;
    if (width < 6) return;
    u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    if (this.hovered) zoomTo([u.posToVal(left, "x"), u.posToVal(left + width, "x")]);
  }

  listen(u) {
    u.over.addEventListener("mouseenter", () => { this.hovered = true; });
    u.over.addEventListener("mouseleave", () => {
      this.hovered = false;
      announce("cursor", null);
    });
  }

  pointed(u) {
    if (this.hovered && u.cursor.left >= 0) announce("cursor", u.posToVal(u.cursor.left, "x"));
  }
}

/** A further line of a run, in the run's colour. */
function layerSeries(look, colour) {
  const dash = { dashed: DASH, dotted: DOTS }[look];
  return { stroke: look === "faint" ? translucent(colour, 0.5) : colour, width: look === "faint" ? 1.2 : 1.5, points: { show: false },
    ...(dash ? { dash } : {}) };
}

/** The nearest index with a value, so that runs measured at different steps all answer to one cursor. */
function nearest(u, series, index) {
  if (series === 0) return index;
  const [xs, values] = [u.data[0], u.data[series]];
  if (values[index] !== undefined) return index;
  const reach = (i) => (i < 0 || i >= xs.length ? Infinity : Math.abs(u.valToPos(xs[i], "x") - u.valToPos(xs[index], "x")));
  for (let step = 1; step < xs.length; step += 1) {
    const [left, right] = [reach(index - step), reach(index + step)];
    if (left > NEAR && right > NEAR) return null;
    if (left <= right && values[index - step] !== undefined) return index - step;
    if (values[index + step] !== undefined && right <= NEAR) return index + step;
    if (left <= NEAR && values[index - step] !== undefined) return index - step;
  }
  return null;
}
