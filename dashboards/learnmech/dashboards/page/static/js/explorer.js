// Everything that was measured, as a list with sparklines; a click plots a series.

import { swatch, symbol } from "./badge.js";
import { known, seriesOf } from "./data.js";
import { fill, h } from "./dom.js";
import { count, number, unit } from "./format.js";
import { OBSERVED, ObservableCard } from "./observable.js";
import { sparkline } from "./sparkline.js";
import { choice, choose } from "./state.js";

const OPEN_LIMIT = 6; // groups with more scopes than this start folded

const pinKey = (observable, scope) => `${observable}|${scope}`;

export class Explorer {
  constructor() {
    this.filter = "";
    this.cards = new Map();
    this.stops = [];
    this.unfolded = new Set();
    this.shape = "";
    this.cells = [];
    this.pins = h("div.grid");
    this.list = h("div.series");
    this.search = h("input", { type: "search", placeholder: "Filter by observable, unit or tensor", "aria-label": "Filter observables",
      oninput: (event) => {
        this.filter = event.target.value.toLowerCase();
        this.sync();
      } });
    this.element = h("section.explorer", { id: "observables" },
      h("div.section-head", {}, h("h2", {}, "Observables"), this.search),
      this.pins, h("div.card", {}, this.list));
  }

  /** Rows of the list: one per observable and scope, with the selected run that has it. */
  rows() {
    const found = new Map();
    for (const id of choice.selected) {
      for (const series of seriesOf(id)) {
        const key = pinKey(series.observable, series.scope);
        if (!found.has(key)) found.set(key, { ...series, id, key });
      }
    }
    const words = this.filter.split(/\s+/).filter(Boolean);
    const text = (row) => `${row.observable} ${row.scope} ${known.observables.get(row.observable)?.description ?? ""}`.toLowerCase();
    return [...found.values()].filter((row) => words.every((word) => text(row).includes(word)));
  }

  sync() {
    this.syncPins();
    const rows = this.rows();
    const shape = JSON.stringify([rows.map((row) => [row.key, row.id]), choice.selected, choice.pins, [...this.unfolded], this.filter]);
    if (shape !== this.shape) {
      this.shape = shape;
      this.build(rows);
    }
    const latest = new Map(rows.map((row) => [row.key, row]));
    for (const { key, value, points } of this.cells) {
      const row = latest.get(key);
      if (!row) continue;
      value.textContent = row.value === null && row.status !== "ok" ? row.status.replaceAll("_", " ") : number(row.value);
      points.textContent = row.count === 1 ? `at step ${count(row.last_step)}` : `${count(row.count)} points, last at step ${count(row.last_step)}`;
    }
  }

  build(rows) {
    for (const stop of this.stops) stop();
    this.stops = [];
    this.cells = [];
    if (!rows.length) {
      fill(this.list, h("p.empty-note", {}, choice.selected.length ? "Nothing matches." : "Pick a run to see what it measured."));
      return;
    }
    const isGiven = (row) => known.observables.get(row.observable)?.kind === "hyperparameter";
    const part = (title, members) => (members.length ? [h("h3.part", {}, title),
      [...groupBy(members)].map(([observable, scopes]) => this.group(observable, scopes))] : null);
    fill(this.list, part("Measured", rows.filter((row) => !isGiven(row))), this.given(rows.filter(isGiven)));
  }

  /** Hyperparameters: a value each, seldom a curve; those of single tensors are folded away. */
  given(rows) {
    if (!rows.length) return null;
    const folded = [...groupBy(rows)].map(([observable, members]) => this.fold(observable, members, 2));
    return [h("h3.part", {}, "Hyperparameters in force"),
      h("div.given", {}, folded.map(({ visible, more }) => [visible.map((row) => this.givenRow(row)), more]))];
  }

  givenRow(row) {
    const value = h("span.last");
    const points = h("span.points");
    this.cells.push({ key: row.key, value, points });
    const name = h("span.given-name", { title: known.observables.get(row.observable)?.description },
      row.observable.replaceAll("_", " "), " ", symbol(row.observable), row.scope ? h("span.unit", {}, row.scope) : null);
    return this.button(row, name, value, points);
  }

  /** The scopes of an observable, the whole model first, and a button for those that do not fit. */
  fold(observable, members, limit) {
    const sorted = [...members].sort((a, b) => (a.scope === "" ? -1 : b.scope === "" ? 1 : a.scope.localeCompare(b.scope)));
    const folded = sorted.length > limit && !this.unfolded.has(observable) && !this.filter;
    const visible = folded ? sorted.slice(0, 1) : sorted;
    const more = folded ? h("button.more", { onclick: () => {
      this.unfolded.add(observable);
      this.sync();
    } }, `and ${sorted.length - 1} more scopes of ${observable}`) : null;
    return { visible, more };
  }

  group(observable, members) {
    const declared = known.observables.get(observable);
    const { visible, more } = this.fold(observable, members, OPEN_LIMIT);
    return h("div.group", {},
      h("div.group-head", { title: declared?.description ?? "A free-form observable of the user's." },
        symbol(observable), h("span.name", {}, observable), h("span.unit", {}, unit(declared?.unit))),
      h("div.group-rows", {}, visible.map((row) => this.row(row, declared)),
        more));
  }

  row(row, declared) {
    const canvas = h("canvas.spark", { "aria-hidden": "true" });
    const value = h("span.last");
    const points = h("span.points");
    this.cells.push({ key: row.key, value, points });
    this.stops.push(sparkline(canvas, row.id, row, declared?.scale === "log"));
    return this.button(row, h("span.scope-name", {}, row.scope || "whole model"), canvas, value, points);
  }

  /** A row that plots its series and takes the plot away again. */
  button(row, ...content) {
    const pinned = choice.pins.includes(row.key);
    return h("button.series-row", {
      "aria-pressed": String(pinned), title: pinned ? "Remove the plot" : "Plot it",
      onclick: () => choose("pins", pinned ? choice.pins.filter((p) => p !== row.key) : [...choice.pins, row.key], "pins"),
    }, choice.selected.length > 1 ? swatch(row.id) : null, ...content);
  }

  syncPins() {
    for (const [key, card] of this.cards) {
      if (choice.pins.includes(key)) continue;
      card.destroy();
      card.element.remove();
      this.cards.delete(key);
    }
    for (const key of choice.pins) {
      if (!this.cards.has(key)) this.cards.set(key, this.pin(key));
      this.cards.get(key).sync();
    }
  }

  pin(key) {
    const [observable, scope] = [key.slice(0, key.indexOf("|")), key.slice(key.indexOf("|") + 1)];
    const declared = known.observables.get(observable);
    const panel = { id: `pin:${key}`, title: scope ? `${observable} · ${scope}` : observable, question: declared?.description ?? "",
      name: observable, scope, curves: OBSERVED, unit: declared?.unit ?? "1", scale: declared?.scale ?? "linear", pinned: true,
      error: declared?.error === "residual bound" ? "± residual bound" : "± one standard error" };
    const card = new ObservableCard(panel, () => choose("pins", choice.pins.filter((p) => p !== key), "pins"));
    this.pins.append(card.element);
    return card;
  }

  /** The pinned panels, for the shared cursor. */
  panels() {
    return [...this.cards.values()];
  }
}

function groupBy(rows) {
  const groups = new Map();
  for (const row of rows) groups.set(row.observable, [...(groups.get(row.observable) ?? []), row]);
  return groups;
}
