// The panel of one law: measured beside predicted, their ratio, the verdict now and its history.

import { formula } from "./badge.js";
import { Chart } from "./chart.js";
import { known, lawsOf, watch } from "./data.js";
import { fill, h, setText } from "./dom.js";
import { isRelative, makeEntry } from "./entries.js";
import { AXES } from "./format.js";
import { legend, scaleButton, scopeSelect, about, yScale } from "./controls.js";
import { markersFor } from "./events.js";
import { mostTelling } from "./summary.js";
import { reading, showReadings } from "./readout.js";
import { choice, setScope } from "./state.js";
import { Strip } from "./strip.js";

export class LawCard {
  constructor(panel) {
    this.panel = panel;
    this.stops = new Map(); // run id -> stop watching
    this.columns = new Map(); // run id -> columns
    this.cursor = null;
    this.open = null; // whether the reader opened the plots of a law that does not apply
    this.build();
  }

  build() {
    const { panel } = this;
    this.controls = h("div.controls");
    this.plots = h("div.plots");
    this.main = h("div.plot");
    this.companion = h("div.plot");
    this.strip = new Strip();
    this.legend = h("div.legend");
    this.aside = h("div.readings", { "aria-live": "off" });
    this.note = h("p.empty-note");
    this.plots.append(this.legend, this.main, h("div.plot-title", {}, panel.companion.title), this.companion, this.strip.element, this.note);
    this.element = h("section.card.law", { id: `law-${panel.id}`, "aria-label": panel.title },
      h("header", {}, h("div", {}, h("h3", {}, panel.title), h("p.question", {}, panel.question)), this.controls),
      h("div.law-body", {}, this.plots, this.aside),
      about(panel, known.laws.get(panel.name)));
    const stepped = panel.stepped;
    this.chart = new Chart(this.main, { height: 230, labels: false, stepped });
    this.ratio = new Chart(this.companion, { height: 128, compactly: true, marksMissing: false, rules: panel.companion.rules, include: panel.companion.rules, stepped });
  }

  /** Follows the selection, the axis and the scope: watches the right curves and draws. */
  sync() {
    const found = choice.selected.flatMap((id) => lawsOf(id).filter((l) => l.law === this.panel.name).map((l) => ({ ...l, id })));
    const scopes = [...new Set(found.map((l) => l.scope))];
    const wanted = choice.scopes.get(this.panel.id);
    const picked = choice.selected.join();
    // The scope that was shown stays while the runs stay, even when another becomes more telling: a plot must not jump.
    const stays = this.picked === picked && found.some((l) => l.scope === this.scope && l.verdict !== "not_applicable");
    if (scopes.includes(wanted)) this.scope = wanted;
    else if (!stays) this.scope = mostTelling(found)?.scope ?? "";
    this.picked = picked;
    const named = (scope) => ({ scope, label: `${scope || "whole model"}${found.every((l) => l.scope !== scope || l.verdict === "not_applicable") ? " (not applicable)" : ""}` });
    fill(this.controls, scopes.length > 1 ? scopeSelect(scopes.map(named), this.scope, (s) => setScope(this.panel.id, s)) : null,
      scaleButton(this.panel));
    const key = (id) => JSON.stringify([id, this.scope, choice.x, isRelative()]);
    const judged = choice.selected.filter((id) => found.some((l) => l.id === id && l.scope === this.scope));
    const keep = new Set(judged.map(key));
    for (const [old, { stop }] of this.stops) {
      if (keep.has(old)) continue;
      stop();
      this.stops.delete(old);
      this.columns.delete(JSON.parse(old)[0]);
    }
    for (const id of judged) {
      if (this.stops.has(key(id))) continue;
      this.columns.delete(id);
      const spec = { id, kind: "residuals", name: this.panel.name, scope: this.scope, x: choice.x };
      const handle = { stop: () => {} };
      this.stops.set(key(id), handle);
      handle.stop = watch(spec, (columns) => {
        this.columns.set(id, columns);
        this.draw();
      });
    }
    this.draw();
  }

  /** What the runs in the picture say now. */
  shown() {
    return choice.selected.map((id) => ({
      id,
      columns: this.columns.get(id),
      current: lawsOf(id).find((l) => l.law === this.panel.name && l.scope === this.scope),
    })).filter(({ columns, current }) => columns?.step?.length || current);
  }

  draw() {
    const shown = this.shown();
    const alone = choice.selected.length === 1;
    const idle = shown.length > 0 && shown.every(({ columns, current }) =>
      current?.verdict === "not_applicable" && !columns?.predicted?.some((p) => p !== null));
    const folded = idle && !this.open;
    this.element.classList.toggle("folded", folded);
    this.element.classList.toggle("none", shown.length === 0);
    const base = { xKind: choice.x, relative: isRelative(), markers: markersFor(choice.selected) };
    const entries = shown.map(({ id, columns }) => makeEntry(id, columns, this.panel.curves, { zone: alone }));
    this.entries = new Map(entries.map((entry) => [entry.id, entry]));
    if (!folded) {
      this.chart.show({ ...base, y: yScale(this.panel), entries });
      this.ratio.show({ ...base, y: "linear", entries: shown.map(({ id, columns }, i) => makeEntry(id, columns, this.panel.companion.curves, { zone: i === 0 })) });
      this.strip.show(shown.filter(({ columns }) => columns?.step?.length).map(({ id, columns }) =>
        ({ id, x: this.entries.get(id).x, verdict: columns.verdict, reason: columns.reason })));
    }
    legend(this.legend, entries, { zone: true, band: this.panel.error });
    this.explain(shown, folded);
    this.point(this.cursor);
  }

  explain(shown, folded) {
    const law = known.laws.get(this.panel.name);
    if (!shown.length) {
      const needs = [...(law?.measures ?? []), ...(law?.needs ?? [])].join(", ");
      setText(this.note, `No verdict yet. This law compares ${needs || "measurements"} once they are recorded.`);
    } else if (!folded && shown.every(({ columns }) => columns && !columns.step.length)) {
      setText(this.note, `Nothing is recorded on this axis: these runs do not count ${AXES[choice.x].label.toLowerCase()}.`);
    } else setText(this.note, "");
    this.element.querySelector(".unfold")?.remove();
    if (folded) {
      this.element.querySelector(".law-body").append(h("button.unfold", { onclick: () => {
        this.open = true;
        this.draw();
      } }, "Show the measurements"));
    }
  }

  /** Shows the numbers at x, or the latest when x is null. */
  point(x) {
    this.cursor = x;
    const readings = this.shown().map((run) => reading({ ...run, entry: this.entries.get(run.id) }, x));
    showReadings(this.aside, readings, known.laws.get(this.panel.name));
  }

  destroy() {
    for (const { stop } of this.stops.values()) stop();
    this.chart.destroy();
    this.ratio.destroy();
    this.strip.destroy();
  }
}

/** The formula of a law for a heading. */
export function lawFormula(panel) {
  return h("span.formula", {}, formula(panel.formula));
}
