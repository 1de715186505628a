// The head of the page: which runs are shown, and in one line per run what every law says of it now.

import { Ask } from "./ask.js";
import { statusBadge, swatch, verdictBadge } from "./badge.js";
import { known, lawsOf } from "./data.js";
import { fill, h } from "./dom.js";
import { count, duration, moment, ratio } from "./format.js";
import { summarize } from "./summary.js";
import { choice, toggle } from "./state.js";

export class Board {
  constructor() {
    this.ask = new Ask();
    this.shown = h("div");
    this.element = h("div.board", {}, this.ask.element, this.shown);
  }

  show() {
    const runs = choice.selected.map((id) => known.runs.get(id)).filter(Boolean);
    this.ask.show(runs.length === 1 ? runs[0] : undefined);
    if (runs.length === 1) fill(this.shown, this.head(runs[0]), h("div.tiles", {}, this.tiles(runs[0].id)));
    else if (runs.length) fill(this.shown, this.table(runs));
    else fill(this.shown);
  }

  head(run) {
    const context = run.context ?? {};
    const facts = [
      ["status", [statusBadge(run.status), h("span.since", { title: moment(run.since) },
        run.status === "running" ? ` for ${duration(Date.now() / 1000 - run.since)}` : ` since ${moment(run.since)}`)]],
      ["step", count(run.last_step)],
      ["points", count(run.points)],
      ["started", moment(run.created)],
      run.attempts > 1 ? ["attempts", count(run.attempts)] : null,
      ...["optimizer", "parameters", "framework", "dtype", "device"].filter((key) => ["string", "number"].includes(typeof context[key]))
        .map((key) => [key, typeof context[key] === "number" ? count(context[key]) : context[key]]),
      ...Object.entries(run.tags ?? {}),
    ].filter(Boolean);
    return h("div.run-head", {},
      h("h1", {}, swatch(run.id), h("span", { title: run.id }, run.name),
        run.project === "default" ? null : h("span.project", {}, run.project)),
      h("dl.facts", {}, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))));
  }

  tiles(id) {
    const found = new Map(summarize(lawsOf(id)).map((law) => [law.law, law]));
    return known.panels.laws.map((panel) => {
      const law = found.get(panel.name);
      return h("a.tile", { href: `#law-${panel.id}`, onclick: (event) => jump(event, `law-${panel.id}`) },
        h("span.tile-title", {}, panel.title),
        h("span.tile-line", {}, verdictBadge(law?.verdict), law?.ratio ? h("span.ratio", {}, ratio(law.ratio)) : null),
        law?.scope && law.verdict !== "not_applicable" ? h("span.tile-scope", {}, law.scope.replaceAll("_", " ")) : null);
    });
  }

  table(runs) {
    const panels = known.panels.laws;
    return h("div.card.table-card", {}, h("table.verdicts", {},
      h("thead", {}, h("tr", {}, h("th", {}, `${runs.length} runs`), h("th", {}, "status"), h("th.right", {}, "step"),
        panels.map((panel) => h("th", {}, h("a", { href: `#law-${panel.id}`, onclick: (event) => jump(event, `law-${panel.id}`) }, panel.title))), h("th", {}))),
      h("tbody", {}, runs.map((run) => {
        const found = new Map(summarize(lawsOf(run.id)).map((law) => [law.law, law]));
        return h("tr", {}, h("td.name", { title: run.name }, swatch(run.id), run.name), h("td", {}, statusBadge(run.status)),
          h("td.right", {}, count(run.last_step)),
          panels.map((panel) => {
            const law = found.get(panel.name);
            return h("td", {}, h("span.cell", { title: law?.reason ?? "" }, verdictBadge(law?.verdict),
              law?.ratio ? h("span.ratio", {}, ratio(law.ratio)) : null));
          }),
          h("td.right", {}, h("button.icon", { title: "Take out of the picture", "aria-label": `Take ${run.name} out of the picture`,
            onclick: () => toggle(run.id) }, "×")));
      }))));
  }
}

/** Scrolls to a part of the page without touching the hash, which holds the selection. */
export function jump(event, id) {
  event.preventDefault();
  document.getElementById(id)?.scrollIntoView({ behavior: "smooth", block: "start" });
}
