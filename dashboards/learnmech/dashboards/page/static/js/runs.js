// The list of runs: status, progress, verdicts at a glance; a click shows a run, its box lays it over the others.

import { chipTitle, statusBadge, verdictBadge } from "./badge.js";
import { known, look } from "./data.js";
import { fill, h, setText } from "./dom.js";
import { ago, count, duration, moment } from "./format.js";
import { summarize } from "./summary.js";
import { LIMIT, announce, choice, select, slot, toggle } from "./state.js";

const ORDER = { running: 0, stalled: 1 }; // what is going on comes first

export class RunList {
  constructor() {
    this.filter = "";
    this.rows = new Map(); // run id -> parts of its row
    this.search = h("input", { type: "search", placeholder: "Filter runs", "aria-label": "Filter runs by name, project, status or tag",
      oninput: (event) => {
        this.filter = event.target.value.toLowerCase();
        this.show();
      } });
    this.total = h("span.total");
    this.body = h("div.run-list", { role: "list" });
    this.element = h("aside.sidebar", { "aria-label": "Runs" },
      h("div.sidebar-head", {}, h("h2", {}, "Runs"), this.total), this.search, this.body);
    // Verdicts are not part of the list: they are fetched for the rows that can be seen.
    this.seen = new IntersectionObserver((items) => {
      for (const { target, isIntersecting } of items) {
        const row = this.rows.get(target.dataset.id);
        if (!row) continue;
        row.visible = isIntersecting;
        this.wantVerdicts(target.dataset.id);
      }
    });
  }

  wantVerdicts(id) {
    const row = this.rows.get(id);
    const revision = known.runs.get(id)?.revision;
    if (!row?.visible || row.asked === revision) return;
    row.asked = revision;
    if (known.details.get(id)?.revision !== revision) look(id);
  }

  matching() {
    const words = this.filter.split(/\s+/).filter(Boolean);
    const text = (run) => `${run.name} ${run.project} ${run.status} ${run.id} ${Object.entries(run.tags ?? {}).flat().join(" ")}`.toLowerCase();
    return [...known.runs.values()]
      .filter((run) => words.every((word) => text(run).includes(word)))
      .sort((a, b) => (ORDER[a.status] ?? 2) - (ORDER[b.status] ?? 2) || b.created - a.created);
  }

  /** Draws the list; rows that stay keep their elements, so that nothing flickers under the pointer. */
  show() {
    const runs = this.matching();
    setText(this.total, this.filter ? `${runs.length} of ${known.runs.size}` : `${known.runs.size}`);
    const there = new Set(runs.map((run) => run.id));
    for (const [id, row] of this.rows) {
      if (there.has(id)) continue;
      this.seen.unobserve(row.element);
      this.rows.delete(id);
    }
    const elements = runs.map((run) => {
      if (!this.rows.has(run.id)) this.rows.set(run.id, this.row(run.id));
      this.update(run);
      return this.rows.get(run.id).element;
    });
    if (!elements.length) {
      fill(this.body, h("p.empty-note", {}, known.runs.size ? "No run matches." : "No runs yet."));
    } else if (elements.length !== this.body.children.length || elements.some((e, i) => this.body.children[i] !== e)) {
      fill(this.body, elements);
    }
  }

  row(id) {
    const name = h("span.run-name");
    const project = h("span.project");
    const status = h("span");
    const progress = h("span.progress");
    const chips = h("span.chips");
    const box = h("input", { type: "checkbox", "aria-label": "Show in the picture", title: "Lay over the runs that are shown",
      onclick: () => {
        if (!toggle(id)) {
          box.checked = false;
          announce("notice", `${LIMIT} runs fit in one picture: take one out first.`);
        }
      } });
    const button = h("button.run-button", { onclick: (event) => (event.ctrlKey || event.metaKey ? toggle(id) : select([id])) },
      h("span.run-top", {}, name, chips), h("span.run-bottom", {}, status, progress), project);
    const element = h("div.run", { role: "listitem", dataset: { id } }, h("label.pick", {}, box, h("span.swatch")), button);
    this.seen.observe(element);
    return { element, name, project, status, progress, chips, box, button, visible: false, asked: null };
  }

  update(run) {
    const row = this.rows.get(run.id);
    setText(row.name, run.name);
    row.name.title = `${run.name}\n${run.id}\nstarted ${moment(run.created)}`;
    setText(row.project, `${run.project === "default" ? "" : `${run.project} · `}${count(run.points)} points`);
    if (row.statusShown !== run.status) {
      row.statusShown = run.status;
      fill(row.status, statusBadge(run.status));
    }
    row.status.title = `${run.status} since ${moment(run.since)}`;
    const since = run.status === "running" ? `for ${duration(Date.now() / 1000 - run.since)}` : ago(run.since);
    setText(row.progress, `${since} · step ${count(run.last_step)}`);
    const chosen = choice.selected.includes(run.id);
    row.element.classList.toggle("chosen", chosen);
    row.box.checked = chosen;
    row.button.setAttribute("aria-pressed", String(chosen));
    row.element.querySelector(".swatch").className = `swatch${chosen ? ` run-${slot(run.id)}` : ""}`;
    this.wantVerdicts(run.id);
    this.showChips(run.id);
  }

  /** One small badge per law: the worst verdict among its scopes that says something. */
  showChips(id) {
    const row = this.rows.get(id);
    const laws = known.details.get(id)?.laws;
    if (!row || !laws) return;
    const worst = summarize(laws);
    const shape = JSON.stringify(worst.map((law) => [law.law, law.verdict, law.ratio]));
    if (row.chipsShown === shape) return;
    row.chipsShown = shape;
    fill(row.chips, worst.map((law) => {
      const badge = verdictBadge(law.verdict, { small: true });
      badge.title = chipTitle(law);
      badge.setAttribute("role", "img");
      badge.setAttribute("aria-label", chipTitle(law));
      return badge;
    }));
  }
}
