// The panel of one observable: value with its band, beside another observable where the declaration names one.

import { swatch, symbol } from "./badge.js";
import { Chart } from "./chart.js";
import { about, legend, scaleButton, scopeSelect } from "./controls.js";
import { known, seriesOf, watch } from "./data.js";
import { fill, h, setText } from "./dom.js";
import { held, isRelative, isThinned, makeEntry, nearestRow } from "./entries.js";
import { markersFor } from "./events.js";
import { AXES, number, unit, withError } from "./format.js";
import { choice, setScope } from "./state.js";

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
    this.columns = new Map(); // "run|role" -> columns
    this.cursor = null;
    this.controls = h("div.controls");
    this.values = h("div.values");
    this.legend = h("div.legend");
    this.main = h("div.plot");
    this.note = h("p.empty-note");
    const title = h("div", {}, h("h3", {}, panel.title), panel.question ? h("p.question", {}, panel.question) : null);
    this.element = h("section.card.observable", { id: `panel-${panel.id}`, "aria-label": panel.title },
      h("header", {}, title, this.controls), this.values, this.main, this.legend, this.note,
      panel.shows ? about(panel, null) : null);
    this.chart = new Chart(this.main, { height: 190, stepped: Boolean(panel.stepped) });
  }

  /** The scopes in which the shown runs have this observable. */
  scopes() {
    const found = choice.selected.flatMap((id) => seriesOf(id).filter((s) => s.observable === this.panel.name).map((s) => s.scope));
    return [...new Set(found)];
  }

  sync() {
    const scopes = this.panel.pinned ? [this.panel.scope] : this.scopes();
    const wanted = choice.scopes.get(this.panel.id) ?? this.panel.scope;
    this.scope = scopes.includes(wanted) ? wanted : (scopes[0] ?? "");
    fill(this.controls,
      scopes.length > 1 ? scopeSelect(scopes.map((scope) => ({ scope, label: scope || "whole model" })), this.scope, (s) => setScope(this.panel.id, s)) : null,
      scaleButton(this.panel),
      this.remove ? h("button.icon", { title: "Remove this plot", "aria-label": `Remove ${this.panel.title}`, onclick: this.remove }, "×") : null);
    const wishes = new Map();
    for (const id of choice.selected) {
      const wish = (role, name, scope) => {
        if (!seriesOf(id).some((s) => s.observable === name && s.scope === scope)) return;
        wishes.set(JSON.stringify([id, role, name, scope, choice.x, isRelative()]), { id, role, name, scope });
      };
      wish("measured", this.panel.name, this.scope);
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
      if (reference?.x.length) entry.roles.predicted = held(this.columns.get(`${id}|measured`).x, reference);
      return entry;
    });
    const log = (this.panel.scale === "log") !== choice.flipped.has(this.panel.id);
    this.chart.show({ xKind: choice.x, relative: isRelative(), log, entries: this.entries, markers: markersFor(choice.selected) });
    const thinned = ids.some((id) => isThinned(this.columns.get(`${id}|measured`)));
    legend(this.legend, this.entries, {
      measured: this.panel.name, predicted: this.panel.reference?.label ?? "",
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
      const missing = columns.value[row] === null ? columns.status?.[row] ?? "no value" : null;
      return h("span.value", { title: x === null ? "latest" : AXES[choice.x].at(entry.x[row]) },
        this.entries.length > 1 ? swatch(entry.id) : null,
        missing ? h("span.missing", {}, missing.replaceAll("_", " ")) : withError(columns.value[row], columns.stderr?.[row]),
        suffix && !missing ? h("span.unit", {}, suffix) : null,
        entry.roles.predicted ? h("span.unit", {}, ` against ${number(entry.roles.predicted[row])}`) : null);
    }));
  }

  destroy() {
    for (const stop of this.stops.values()) stop();
    this.chart.destroy();
  }
}
