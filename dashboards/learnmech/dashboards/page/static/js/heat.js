// A map: one row for each part of a model, x as in the plots, colour for the value.

import { nearestRow } from "./entries.js";
import { report, shownRange } from "./extent.js";
import { fill, h } from "./dom.js";
import { number } from "./format.js";
import { between, css, mapColours } from "./palette.js";
import { announce, on } from "./state.js";
import { xTicks } from "./ticks.js";

const HEIGHTS = [[6, 22], [12, 18], [Infinity, 14]]; // of a row in pixels, for so many rows at most
const HEAD = 24; // pixels for the name of a run over its rows
const AXIS = 20; // and for the labels of x
const TAIL = 0.01; // share of the values beyond each end of the colours: one outlier does not bleach the rest
const LEAST = 0.3; // decades that colours span on each side of where they turn at least: a factor of two

export class Heat {
  /** `turn`: the value at which colours turn, if there is one; `lowest`: whether low values are those to look at first. */
  constructor({ turn, lowest }) {
    this.turn = turn;
    this.lowest = lowest;
    this.view = null;
    this.element = h("div.map");
    this.canvas = h("canvas");
    this.labels = h("div.map-labels");
    this.values = h("div.map-values");
    this.line = h("div.map-cursor", { hidden: true });
    this.scale = h("div.map-scale");
    fill(this.element, this.labels, h("div.map-canvas", {}, this.canvas, this.line), this.values, this.scale);
    this.resize = new ResizeObserver(() => this.draw());
    this.resize.observe(this.canvas.parentElement);
    this.stopTheme = on("theme", () => this.draw());
    this.canvas.addEventListener("mousemove", (event) => {
      const [from, to] = shownRange();
      announce("cursor", from + (event.offsetX / this.canvas.clientWidth) * (to - from));
      this.highlight(this.tops.findLastIndex((top) => top <= event.offsetY));
    });
    this.canvas.addEventListener("mouseleave", () => {
      announce("cursor", null);
      this.highlight(-1);
    });
  }

  /** Draws {rows, log, xKind, relative}, a row being {head} or {label, title, x, values, status, swatch?}. */
  show(view) {
    this.view = view;
    const rows = view.rows.filter((row) => !row.head);
    const height = HEIGHTS.find(([most]) => rows.length <= most)[1];
    this.heights = view.rows.map((row) => (row.head ? HEAD : height));
    this.tops = [0];
    for (const each of this.heights) this.tops.push(this.tops[this.tops.length - 1] + each);
    const xs = rows.flatMap((row) => (row.x.length ? [row.x[0], row.x[row.x.length - 1]] : []));
    report(this, xs.length ? [Math.min(...xs), Math.max(...xs)] : null);
    const size = (n) => ({ height: `${this.heights[n]}px` });
    fill(this.labels, view.rows.map((row, n) => h(row.head ? "div.map-head" : "div", { style: size(n), title: row.title ?? "" }, row.swatch, row.label)));
    this.cells = view.rows.map((row, n) => h("div", { style: size(n) }, row.head ? "" : "–"));
    fill(this.values, this.cells);
    this.span = this.range(rows);
    this.legend();
    this.draw();
  }

  /** What lies at the low end, in the middle and at the high end of the colours: logarithms on a logarithmic scale. */
  range(rows) {
    const place = this.placed();
    const found = rows.flatMap((row) => row.values.map(place)).filter((v) => v !== null && v !== -Infinity).sort((a, b) => a - b);
    if (!found.length) return [0, 0.5, 1];
    const at = (share) => found[Math.round(share * (found.length - 1))];
    const [low, high] = [at(TAIL), at(1 - TAIL)];
    if (this.turn === undefined) return [low, (low + high) / 2, high];
    const middle = place(this.turn);
    const least = this.view.log ? LEAST : LEAST * Math.abs(middle);
    return [Math.min(low, middle - least), middle, Math.max(high, middle + least)];
  }

  /** Where a value lies on the scale: null where there is none, -Infinity below a logarithmic one. */
  placed() {
    if (!this.view.log) return (v) => v ?? null;
    return (v) => (v === null || v === undefined ? null : v > 0 ? Math.log10(v) : -Infinity);
  }

  colours() {
    return mapColours(this.turn === undefined ? "" : this.lowest ? "low" : "high");
  }

  legend() {
    const [low, , high] = this.span;
    const text = (place) => number(this.view.log ? 10 ** place : place, 2);
    const gradient = this.colours().join(", ");
    fill(this.scale, h("span", {}, text(low)), h("span.map-bar", { style: { background: `linear-gradient(90deg, ${gradient})` } }), h("span", {}, text(high)),
      this.turn === undefined ? null : h("span", {}, `turning at ${number(this.turn, 2)}`),
      this.view.rows.some((row) => row.values?.some((v) => v === null)) ? h("span", {}, h("span.map-hatch", { "aria-hidden": "true" }), " no number") : null);
  }

  applyRange() {
    this.draw();
  }

  draw() {
    const width = this.canvas.parentElement.clientWidth;
    if (!this.view || !width) return;
    const ratio = devicePixelRatio;
    const rows = this.view.rows;
    const bottom = this.tops[rows.length];
    const height = bottom + AXIS;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.canvas.style.height = `${height}px`;
    const ink = this.canvas.getContext("2d");
    ink.scale(ratio, ratio);
    const [from, to] = shownRange();
    const px = (x) => ((x - from) / (to - from)) * width;
    this.ticks(ink, px, from, to, width, bottom);
    const colours = this.colours();
    const [low, middle, high] = this.span;
    const share = (at) => (at < middle ? 0.5 * (at - low) / (middle - low) : high > middle ? 0.5 + 0.5 * (at - middle) / (high - middle) : 0.5);
    const whole = (x) => Math.round(px(x) * ratio) / ratio; // cells meet at a pixel: no seam
    const place = this.placed();
    const hatches = { undetermined: hatch(ink, css("--muted")), other: hatch(ink, css("--deviates")) };
    rows.forEach((row, n) => {
      if (row.head) return;
      row.values.forEach((value, i) => {
        const [left, right] = [whole(row.x[i]), whole(ends(row.x, i))];
        if (right < 0 || left > width) return;
        const at = place(value);
        if (at === null) ink.fillStyle = hatches[row.status[i]] ?? hatches.other;
        else ink.fillStyle = between(colours, share(at));
        ink.fillRect(left, this.tops[n] + 0.5, Math.max(right - left, 1), this.heights[n] - 1);
      });
    });
    this.point(this.cursor ?? null);
  }

  ticks(ink, px, from, to, width, bottom) {
    ink.font = `11px ${css("--font")}`;
    ink.fillStyle = css("--muted");
    ink.textBaseline = "top";
    ink.textAlign = "center";
    for (const { x, text } of xTicks(this.view.xKind, this.view.relative, from, to, width)) {
      const half = ink.measureText(text).width / 2;
      ink.fillRect(px(x), bottom, 1, 4);
      ink.fillText(text, Math.min(Math.max(px(x), half), width - half), bottom + 6);
    }
  }

  highlight(row) {
    [...this.labels.children].forEach((label, n) => label.classList.toggle("here", n === row));
    this.cells?.forEach((cell, n) => cell.classList.toggle("here", n === row));
  }

  /** Shows the values at x, or the latest when x is null. */
  point(x) {
    this.cursor = x;
    if (!this.view) return;
    const [from, to] = shownRange();
    this.line.hidden = x === null || x < from || x > to;
    if (!this.line.hidden) this.line.style.left = `${(100 * (x - from)) / (to - from)}%`;
    this.view.rows.forEach((row, n) => {
      if (row.head) return;
      const at = x === null ? row.x.length - 1 : nearestRow(row.x, x);
      const value = row.values[at] ?? null;
      const cell = this.cells[n];
      cell.textContent = value === null ? "–" : number(value, 3);
      cell.title = value === null ? (row.status[at] ?? "not measured").replaceAll("_", " ") : "";
    });
  }

  destroy() {
    this.resize.disconnect();
    this.stopTheme();
    report(this, null);
  }
}

/** Where the cell of a measurement ends: at the next one, the last as wide as the one before. */
function ends(xs, i) {
  if (i + 1 < xs.length) return xs[i + 1];
  return xs[i] + (xs.length > 1 ? xs[i] - xs[i - 1] : 1);
}

function hatch(ink, colour) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 6;
  const pen = tile.getContext("2d");
  pen.strokeStyle = colour;
  pen.lineWidth = 1;
  for (const shift of [-6, 0, 6]) {
    pen.moveTo(shift, 6);
    pen.lineTo(shift + 6, 0);
  }
  pen.stroke();
  return ink.createPattern(tile, "repeat");
}
