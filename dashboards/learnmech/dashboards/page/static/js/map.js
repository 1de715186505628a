// The panel of one observable in all parts of a model: a map, with the parts to look at first where there are many.

import { swatch, symbol } from "./badge.js";
import { about, scaleButton, scopeSelect, yScale } from "./controls.js";
import { known, seriesOf, watch } from "./data.js";
import { fill, h, setText } from "./dom.js";
import { isRelative, makeEntry } from "./entries.js";
import { unit } from "./format.js";
import { Heat } from "./heat.js";
import { byKind, shortName } from "./scopes.js";
import { choice, setScope } from "./state.js";

const FIRST = 16; // rows shown of many: as many as a glance takes in
const TALL = 24; // rows from which a map takes the whole width
const POINTS = 240; // per row: a cell is then at least a pixel and a half wide
const CURVES = [{ role: "measured", column: "value", error: "", sign: 0, divisor: "" }];

const near = new IntersectionObserver((items) => {
  for (const { target, isIntersecting } of items) if (isIntersecting) cards.get(target)?.wake();
}, { rootMargin: "600px" });
const cards = new WeakMap();

export class MapCard {
  /** `panel`: as in panels.json, with `rows`, what its parts are called. */
  constructor(panel) {
    this.panel = panel;
    this.stops = new Map();
    this.columns = new Map(); // "run|scope" -> columns
    this.awake = false;
    this.controls = h("div.controls");
    this.note = h("p.empty-note");
    this.heat = new Heat({ turn: panel.rules[0], lowest: panel.lowest });
    const title = h("div", {}, h("h3", {}, panel.title), h("p.question", {}, panel.question));
    this.name = h("div.values");
    this.element = h("section.card.observable.none", { id: `panel-${panel.id}`, "aria-label": panel.title },
      h("header", {}, title, this.controls), this.name, this.heat.element, this.note, about(panel, null));
    cards.set(this.element, this);
    near.observe(this.element);
  }

  /** Fetches what is shown, now that it comes near to the screen. */
  wake() {
    near.unobserve(this.element);
    this.awake = true;
    this.sync();
  }

  seriesOf(id) {
    return seriesOf(id).filter((series) => series.observable === this.panel.name);
  }

  /** The scopes to show, in natural order, of those of the kind that the reader chose. */
  chosen() {
    const kinds = byKind(choice.selected.flatMap((id) => this.seriesOf(id).map((series) => series.scope)), this.panel.rows);
    const [wish, all] = (choice.scopes.get(this.panel.id) ?? "").split("|");
    const kind = kinds.has(wish) ? wish : [...kinds.keys()][0];
    const scopes = kinds.get(kind) ?? [];
    const many = scopes.length > FIRST;
    return { kinds, kind, many, all: Boolean(all), total: scopes.length, scopes: many && !all ? this.first(scopes) : scopes };
  }

  /** The scopes with the lowest (or highest) newest values. */
  first(scopes) {
    const sign = this.panel.lowest ? 1 : -1;
    const place = new Map(scopes.map((scope) => [scope, Infinity]));
    for (const { scope, value, status } of choice.selected.flatMap((id) => this.seriesOf(id))) {
      if (place.has(scope) && value !== null && status !== "undetermined") place.set(scope, Math.min(place.get(scope), sign * value));
    }
    const best = new Set([...scopes].sort((a, b) => place.get(a) - place.get(b)).slice(0, FIRST));
    return scopes.filter((scope) => best.has(scope));
  }

  sync() {
    const { kinds, kind, many, all, total, scopes } = this.chosen();
    this.scopes = scopes;
    this.element.classList.toggle("none", !scopes.length);
    this.element.classList.toggle("wide", scopes.length > TALL);
    const say = (next, whole) => setScope(this.panel.id, whole ? `${next}|all` : next);
    fill(this.controls,
      kinds.size > 1 ? scopeSelect([...kinds.keys()].map((name) => ({ scope: name, label: name })), kind, (next) => say(next, all)) : null,
      many ? h("button.toggle", { "aria-pressed": String(all), title: `Show all ${total}, or the ${FIRST} with the ${this.order()} newest values`,
        onclick: () => say(kind, !all) }, `all ${total}`) : null,
      scaleButton(this.panel));
    const suffix = unit(this.panel.unit);
    fill(this.name, symbol(this.panel.name), suffix ? h("span.unit", {}, `in ${suffix}`) : null,
      h("span.also", {}, many && !all ? `the ${FIRST} ${this.order()} of ${total} ${kind}` : `${total} ${kind ?? ""}`));
    const wishes = new Map();
    if (this.awake) {
      for (const id of choice.selected) {
        const there = new Set(this.seriesOf(id).map((series) => series.scope));
        for (const scope of scopes) if (there.has(scope)) wishes.set(JSON.stringify([id, scope, choice.x]), { id, scope });
      }
    }
    for (const [key, stop] of this.stops) {
      if (wishes.has(key)) continue;
      stop();
      this.stops.delete(key);
      const [id, scope] = JSON.parse(key);
      this.columns.delete(`${id}|${scope}`);
    }
    for (const [key, { id, scope }] of wishes) {
      if (this.stops.has(key)) continue;
      this.stops.set(key, () => {});
      this.stops.set(key, watch({ id, kind: "observations", name: this.panel.name, scope, x: choice.x, points: POINTS }, (columns) => {
        this.columns.set(`${id}|${scope}`, columns);
        this.soon();
      }));
    }
    this.draw();
  }

  order() {
    return this.panel.lowest ? "lowest" : "highest";
  }

  /** Draws once for all rows that come in one answer. */
  soon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  draw() {
    if (!this.scopes) return;
    const runs = choice.selected.filter((id) => this.scopes.some((scope) => this.columns.has(`${id}|${scope}`)));
    const rows = runs.flatMap((id) => [
      ...(runs.length > 1 ? [{ head: true, swatch: swatch(id), label: known.runs.get(id)?.name ?? id }] : []),
      ...this.scopes.filter((scope) => this.columns.has(`${id}|${scope}`)).map((scope) => {
        const columns = this.columns.get(`${id}|${scope}`);
        const { x, roles } = makeEntry(id, columns, CURVES);
        return { label: shortName(scope), title: scope, x, values: roles.measured, status: columns.status ?? [] };
      }),
    ]);
    const measured = rows.some((row) => row.x?.length);
    setText(this.note, this.awake && runs.length && !measured ? "Nothing is recorded on this axis." : "");
    this.heat.show({ rows, log: yScale(this.panel) !== "linear", xKind: choice.x, relative: isRelative() });
  }

  /** Shows the values at x, or the latest when x is null. */
  point(x) {
    this.heat.point(x);
  }

  destroy() {
    for (const stop of this.stops.values()) stop();
    this.heat.destroy();
  }
}
