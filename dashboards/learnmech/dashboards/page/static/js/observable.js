// The panel of one observable: value with its band, beside others and between others where the declaration names them.

import { swatch, symbol } from "./badge.js";
import { Chart } from "./chart.js";
import { about, legend, scaleButton, scopeSelect, yScale } from "./controls.js";
import { known, seriesOf, watch } from "./data.js";
import { fill, h, setText } from "./dom.js";
import { held, isRelative, isThinned, makeEntry, nearestRow } from "./entries.js";
import { markersFor } from "./events.js";
import { AXES, number, unit, withError } from "./format.js";
import { choice, setScope } from "./state.js";

const FEW = 4; // so many further lines have room for their values above the plot

/** The curves of an observable that no declared panel shows. */
export const OBSERVED = [
  { role: "upper", column: "value", error: "stderr", sign: 1, divisor: "" },
  { role: "lower", column: "value", error: "stderr", sign: -1, divisor: "" },
  { role: "measured", column: "value", error: "", sign: 0, divisor: "" },
];

export class ObservableCard {
  /** `panel`: {id, title, question?, observable, scope, reference?, unit, scale, ...}; `remove` takes a pinned panel away. */
  constructor(panel, remove = null) {
    this.panel = panel;
    this.remove = remove;
    this.stops = new Map();
    this.columns = new Map(); // "run|role" -> columns; a further series has the role "part_" and its place
    this.cursor = null;
    this.controls = h("div.controls");
    this.values = h("div.values");
    this.legend = h("div.legend");
    this.main = h("div.plot");
    this.note = h("p.empty-note");
    const title = h("div", {}, h("h3", {}, panel.title), panel.question ? h("p.question", {}, panel.question) : null);
    const { layers = [], intervals = [], rules = [] } = panel;
    this.element = h(`section.card.observable${intervals.length ? ".wide" : ""}`, { id: `panel-${panel.id}`, "aria-label": panel.title },
      h("header", {}, title, this.controls), this.values, this.main, this.legend, this.note,
      panel.shows ? about(panel, null) : null);
    this.chart = new Chart(this.main, { height: intervals.length ? 320 : 190, stepped: Boolean(panel.stepped), layers, intervals, rules, include: rules });
  }

  /** The scopes in which the shown runs have this observable. */
  scopes() {
    const found = choice.selected.flatMap((id) => seriesOf(id).filter((s) => s.observable === this.panel.name).map((s) => s.scope));
    return [...new Set(found)];
  }

  sync() {
    const scopes = this.panel.pinned || this.panel.fixed ? [this.panel.scope] : this.scopes();
    const wanted = choice.scopes.get(this.panel.id) ?? this.panel.scope;
    this.scope = scopes.includes(wanted) ? wanted : (scopes[0] ?? "");
    fill(this.controls,
      scopes.length > 1 ? scopeSelect(scopes.map((scope) => ({ scope, label: scope || "whole model" })), this.scope, (s) => setScope(this.panel.id, s)) : null,
      scaleButton(this.panel),
      this.remove ? h("button.icon", { title: "Remove this plot", "aria-label": `Remove ${this.panel.title}`, onclick: this.remove }, "×") : null);
    const wishes = new Map();
    for (const id of choice.selected) {
      const wish = (role, name, scope) => {
        const there = seriesOf(id).some((s) => s.observable === name && s.scope === scope);
        if (there) wishes.set(JSON.stringify([id, role, name, scope, choice.x, isRelative()]), { id, role, name, scope });
        return there;
      };
      if (!wish("measured", this.panel.name, this.scope)) continue;
      this.panel.parts?.forEach((part, i) => wish(`part_${i}`, part.name, part.scope ?? this.scope));
      if (this.panel.reference) wish("reference", this.panel.reference.name, this.panel.reference.scope);
    }
    for (const [key, stop] of this.stops) {
      if (wishes.has(key)) continue;
      stop();
      this.stops.delete(key);
      const [id, role] = JSON.parse(key);
      this.columns.delete(`${id}|${role}`);
    }
    for (const [key, { id, role, name, scope }] of wishes) {
      if (this.stops.has(key)) continue;
      this.stops.set(key, () => {});
      this.stops.set(key, watch({ id, kind: "observations", name, scope, x: choice.x }, (columns) => {
        this.columns.set(`${id}|${role}`, columns);
        this.draw();
      }));
    }
    this.draw();
  }

  draw() {
    const ids = choice.selected.filter((id) => this.columns.has(`${id}|measured`));
    this.entries = ids.map((id) => {
      const entry = makeEntry(id, this.columns.get(`${id}|measured`), this.panel.curves);
      const reference = this.columns.get(`${id}|reference`);
      if (reference?.x.length) entry.roles.predicted = held(this.columns.get(`${id}|measured`).x, reference, this.panel.reference.over);
      return entry;
    });
    this.further = ids.flatMap((id) => (this.panel.parts ?? []).map((part, i) => makeEntry(id, this.columns.get(`${id}|part_${i}`), part.curves)))
      .filter((entry) => Object.keys(entry.roles).length);
    const entries = [...this.entries, ...this.further];
    this.chart.show({ xKind: choice.x, relative: isRelative(), y: yScale(this.panel), entries, markers: markersFor(choice.selected) });
    const thinned = ids.some((id) => isThinned(this.columns.get(`${id}|measured`)));
    legend(this.legend, entries, {
      measured: this.panel.label || [this.panel.name, this.panel.scope && this.scope].filter(Boolean).join(" · "), layers: this.panel.layers, intervals: this.panel.intervals, predicted: this.panel.reference?.label ?? "",
      band: thinned && !ids.some((id) => this.columns.get(`${id}|measured`).stderr?.some((s) => s)) ? "smallest to largest per point" : this.panel.error ?? "± one standard error",
    });
    const empty = this.entries.every((entry) => !entry.x.length);
    const waits = choice.selected.some((id) => !known.details.has(id));
    this.element.classList.toggle("none", empty && !ids.length);
    if (!empty || waits) setText(this.note, "");
    else if (ids.length) setText(this.note, `Nothing is recorded on this axis: these runs do not count ${AXES[choice.x].label.toLowerCase()}.`);
    else setText(this.note, `Not recorded in ${choice.selected.length > 1 ? "these runs" : "this run"}.`);
    this.point(this.cursor);
  }

  /** Shows the values at x, or the latest when x is null. */
  point(x) {
    this.cursor = x;
    const suffix = unit(this.panel.unit);
    fill(this.values, symbol(this.panel.name), (this.entries ?? []).map((entry) => {
      const columns = this.columns.get(`${entry.id}|measured`);
      const row = x === null ? columns.step.length - 1 : nearestRow(entry.x, x);
      if (row < 0) return null;
      const bare = columns.value[row] === null;
      const missing = bare || columns.status?.[row] === "undetermined" ? columns.status?.[row] ?? "no value" : null;
      return h("span.value", { title: x === null ? "latest" : AXES[choice.x].at(entry.x[row]) },
        this.entries.length > 1 ? swatch(entry.id) : null,
        missing ? h("span.missing", {}, missing.replaceAll("_", " ")) : withError(columns.value[row], columns.stderr?.[row]),
        missing && !bare ? h("span.unit", {}, `(${withError(columns.value[row], columns.stderr?.[row])})`) : null,
        suffix && !missing ? h("span.unit", {}, suffix) : null,
        entry.roles.predicted ? h("span.unit", {}, ` against ${number(entry.roles.predicted[row])}`) : null);
    }), this.entries?.length === 1 ? this.alongside(x) : null);
  }

  /** The values of the few further lines of one run at x, and what the widest interval encloses. */
  alongside(x) {
    const at = (role) => {
      const entry = this.further.find(({ roles }) => roles[role]);
      if (!entry) return null;
      return entry.roles[role][x === null ? entry.x.length - 1 : nearestRow(entry.x, x)];
    };
    const { layers = [], intervals = [] } = this.panel;
    const found = new Map(layers.map(({ role, label }) => [label, at(role)]).filter(([, value]) => value !== null && value !== undefined));
    const [low, high] = intervals.length ? ["lower", "upper"].map((end) => at(`${intervals[0].role}_${end}`)) : [];
    return [low !== null && low !== undefined ? h("span.also", {}, `${intervals[0].label} from ${number(low, 3)} to ${number(high, 3)}`) : null,
      found.size <= FEW ? [...found].map(([label, value]) => h("span.also", {}, `${label} ${number(value)}`)) : null];
  }

  destroy() {
    for (const stop of this.stops.values()) stop();
    this.chart.destroy();
  }
}
