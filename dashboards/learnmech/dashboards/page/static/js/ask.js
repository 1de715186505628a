// The button that asks a running training to measure now, where one of its probes listens.

import * as api from "./api.js";
import { h, setText } from "./dom.js";

const ASKED = "asked; the answer comes with the next measurement";
const WAITS = "asked already; the training has not heard of it yet";
const SHOWN = 20000; // milliseconds that an answer stays: a few seconds until the training hears, and its measurement

export class Ask {
  constructor() {
    this.run = null;
    this.said = h("span.since", { role: "status" });
    this.button = h("button.toggle", { title: "Measure once with each probe that has on_demand()", onclick: () => this.ask() },
      "Measure now");
    this.element = h("div.ask", { hidden: true }, this.said, this.button); // stays, so that no redraw swallows a click
  }

  /** Stands beside this run; beside none for undefined. */
  show(run) {
    if (this.run?.id !== run?.id) this.say("");
    this.run = run;
    this.element.hidden = !(run?.status === "running" && run.context?.on_demand === true);
  }

  async ask() {
    const { id } = this.run;
    this.button.disabled = true;
    const text = await api.measure(id).then(({ waited }) => (waited ? WAITS : ASKED), (error) => [error.message, error.hint].filter(Boolean).join("; "));
    this.button.disabled = false;
    if (this.run?.id === id) this.say(text);
  }

  say(text) {
    clearTimeout(this.timer);
    setText(this.said, text);
    if (text) this.timer = setTimeout(() => this.say(""), SHOWN);
  }
}
