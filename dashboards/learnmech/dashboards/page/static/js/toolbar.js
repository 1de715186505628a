// The bar that stays in view: x axis, zoom, sections, theme, connection.

import { jump } from "./board.js";
import { known } from "./data.js";
import { fill, h, setText } from "./dom.js";
import { AXES } from "./format.js";
import { announce, choice, choose } from "./state.js";
import { zoomTo } from "./extent.js";

const STATES = { live: "live", connecting: "connecting", lost: "connection lost, trying again" };
const THEMES = ["system", "light", "dark"];
const SIGNS = { system: "◐", light: "☀", dark: "☾" };

/** The header of the page with the connection's state and the theme. */
export function makeHeader() {
  const theme = globalThis.learnmechTheme;
  const word = h("span");
  const connection = h("span.connection", { role: "status" }, h("span.dot", { "aria-hidden": "true" }), word);
  const button = h("button.icon", { onclick: () => {
    theme.choose(THEMES[(THEMES.indexOf(theme.chosen()) + 1) % THEMES.length]);
    label();
    announce("theme");
  } });
  const label = () => {
    setText(button, SIGNS[theme.chosen()] ?? SIGNS.system);
    button.title = `Colours: ${theme.chosen()}`;
    button.setAttribute("aria-label", button.title);
  };
  label();
  const setConnection = (state) => {
    setText(word, STATES[state]);
    connection.className = `connection c-${state}`;
  };
  setConnection("connecting");
  return { right: h("div.header-right", {}, connection, h("a.quiet", { href: "docs", target: "_blank", rel: "noreferrer" }, "API"), button), setConnection };
}

export class Toolbar {
  constructor() {
    this.axes = h("div.segmented", { role: "group", "aria-label": "x axis" });
    this.reset = h("button.quiet", { hidden: true, onclick: () => zoomTo(null) }, "Reset zoom");
    const section = (id, name) => h("a", { href: `#${id}`, onclick: (event) => jump(event, id) }, name);
    this.element = h("nav.toolbar", { "aria-label": "View" },
      h("div.sections", {}, section("laws", "Laws"), known.panels.sections.map(({ id, title }) => section(id, title)),
        section("observables", "Observables"), section("events", "Events")),
      this.reset, h("span.axis-word", {}, "x axis"), this.axes);
    this.show();
  }

  show() {
    fill(this.axes, Object.entries(AXES).map(([name, { label }]) =>
      h("button", { "aria-pressed": String(choice.x === name), onclick: () => {
        choice.zoom = null;
        choose("x", name, "axis");
      } }, label)));
    this.reset.hidden = choice.zoom === null;
  }
}
