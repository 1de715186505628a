// The page: fetches what is known, puts the parts together, and follows the collector's stream.

import * as api from "./api.js";
import { Board } from "./board.js";
import { known, loadRuns, look, patch, refreshAll } from "./data.js";
import { fill, h, throttle } from "./dom.js";
import { EventList, loadEvents } from "./events.js";
import { Explorer } from "./explorer.js";
import { LawCard } from "./law.js";
import { askForToken } from "./login.js";
import { MapCard } from "./map.js";
import { ObservableCard } from "./observable.js";
import { RunList } from "./runs.js";
import { announce, choice, on, readHash, select, toggle } from "./state.js";
import { follow } from "./stream.js";
import { Toolbar, makeHeader } from "./toolbar.js";
import { welcome } from "./welcome.js";

const REFRESH = 30000; // milliseconds between two looks at the list when nothing was announced: "5 min ago" moves on

class Page {
  constructor() {
    this.header = makeHeader();
    this.list = new RunList();
    this.board = new Board();
    this.toolbar = new Toolbar();
    this.explorer = new Explorer();
    this.events = new EventList();
    this.laws = known.panels.laws.map((panel) => new LawCard(panel));
    this.sections = known.panels.sections.map(({ id, title, panels }) =>
      ({ id, title, cards: panels.map((panel) => (panel.rows ? new MapCard(panel) : new ObservableCard(panel))) }));
    this.observed = this.sections.flatMap(({ cards }) => cards);
    this.welcome = h("div");
    this.content = h("div.content", {}, this.board.element, this.toolbar.element,
      h("section.laws", { id: "laws" }, this.laws.map((card) => card.element)),
      this.sections.map(({ id, title, cards }) => h("section.observed", { id }, h("div.section-head", {}, h("h2", {}, title)),
        h("div.grid", {}, cards.map((card) => card.element)))),
      this.explorer.element, this.events.element);
    this.notices = h("div.notices", { role: "status" });
    document.querySelector(".site-header").append(this.header.right);
    document.querySelector("main").replaceChildren(this.list.element, h("div.main", {}, this.welcome, this.content), this.notices);
  }

  listen() {
    on("runs", () => this.showRuns());
    on("run", (id) => {
      this.list.showChips(id);
      if (choice.selected.includes(id)) this.syncSoon();
    });
    on("selection", () => {
      for (const id of choice.selected) if (known.runs.has(id) && !known.details.has(id)) look(id);
      this.showRuns();
      this.sync();
      loadEvents();
    });
    on("axis", () => {
      this.toolbar.show();
      this.sync();
    });
    on("scale", () => this.sync());
    on("scope", () => this.sync());
    on("pins", () => this.explorer.sync());
    on("zoom", () => this.toolbar.show());
    on("events", () => {
      this.events.show();
      for (const card of [...this.laws, ...this.observed, ...this.explorer.panels()]) card.draw();
    });
    on("cursor", (x) => this.point(x));
    on("theme", () => this.explorer.sync());
    on("notice", (text) => this.notice(text));
    this.syncSoon = throttle(() => this.sync(), 400);
    this.eventsSoon = throttle(() => loadEvents(), 2000);
    window.addEventListener("hashchange", () => {
      readHash();
      announce("axis");
      announce("selection");
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      globalThis.learnmechTheme.apply();
      announce("theme");
    });
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) return;
      this.reload();
      refreshAll();
    });
  }

  showRuns() {
    this.list.show();
    this.board.show();
    const shown = choice.selected.some((id) => known.runs.has(id));
    this.content.hidden = !shown;
    fill(this.welcome, shown ? null : welcome());
  }

  sync() {
    this.board.show();
    this.toolbar.show();
    for (const card of this.laws) card.sync();
    for (const card of this.observed) card.sync();
    this.explorer.sync();
    this.events.show();
  }

  point(x) {
    this.pointed = x;
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      for (const card of [...this.laws, ...this.observed, ...this.explorer.panels()]) card.point(this.pointed);
    });
  }

  /** Fetches the list; picks a run when the reader has picked none, and tells of runs that are new. */
  async reload({ first = false } = {}) {
    try {
      const fresh = await loadRuns();
      if (first) readHash(); // an address typed meanwhile: its event may still be on the way, and `select` writes over it
      if (!choice.selected.some((id) => known.runs.has(id))) {
        const [best] = this.list.matching();
        if (best) select([best.id]);
      } else if (!first) {
        for (const run of fresh.slice(0, 3)) this.announceRun(run);
      }
      this.eventsSoon();
    } catch (error) {
      this.notice(`${error.message} ${error.hint ?? ""}`);
    }
  }

  announceRun(run) {
    const close = this.notice(h("span", {}, "New run ", h("strong", {}, run.name), ". ",
      h("button.link", { onclick: () => { select([run.id]); close(); } }, "Show it"), " or ",
      h("button.link", { onclick: () => { toggle(run.id); close(); } }, "lay it over"), "."), 20000);
  }

  notice(content, milliseconds = 6000) {
    const note = h("div.notice", {}, content);
    const close = () => note.remove();
    note.append(h("button.icon", { "aria-label": "Close", onclick: close }, "×"));
    this.notices.append(note);
    setTimeout(close, milliseconds);
    return close;
  }

  async run() {
    this.listen();
    await this.reload({ first: true });
    announce("selection");
    const reloadSoon = throttle(() => this.reload(), 2500);
    let was = "connecting";
    follow((news) => {
      patch(news.runs);
      reloadSoon(); // points and last_seen are not part of the news
    }, (state) => {
      this.header.setConnection(state);
      if (state === "live" && was === "lost") {
        this.reload();
        refreshAll();
      }
      was = state;
    });
    setInterval(() => this.reload(), REFRESH);
  }
}

async function start() {
  api.onUnauthorized(askForToken);
  const panels = fetch(api.address("page/panels.json")).then((response) => response.json());
  const [declared, laws, observables] = await Promise.all([panels, api.laws(), api.observables()]);
  known.panels = declared;
  known.laws = new Map(laws.map((law) => [law.name, law]));
  known.observables = new Map(observables.map((observable) => [observable.name, observable]));
  readHash(); // here, with nothing awaited before `listen`: an address typed while the page loads is not overlooked
  await new Page().run();
}

start().catch((error) => {
  document.querySelector("main").replaceChildren(h("p.failure", {}, `The page could not start: ${error.message} ${error.hint ?? ""}`));
});
