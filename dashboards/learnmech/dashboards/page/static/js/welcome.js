// What a reader sees before there is any run, or when the address names a run that this store does not have.

import { known } from "./data.js";
import { h } from "./dom.js";
import { choice } from "./state.js";

/** The text in place of the panels. */
export function welcome() {
  if (known.runs.size) {
    const lost = choice.selected.length > 0;
    return h("div.card.welcome", {}, h("h1", {}, lost ? "That run is not in this store" : "Pick a run"),
      h("p", {}, lost
        ? "The address names a run that the collector does not have. It may be in another database."
        : "Choose a run on the left. Its box lays it over the others."));
  }
  const here = location.origin;
  return h("div.card.welcome", {}, h("h1", {}, "No runs yet"),
    h("p", {}, "This page shows what a training run measures beside what learning mechanics predicts for it. It fills itself as soon as a run sends something here; there is no need to reload."),
    h("h2", {}, "Try it"),
    h("pre", {}, h("code", {}, "learnmech demo")),
    h("h2", {}, "Or watch your own training"),
    h("pre", {}, h("code", {}, [
      "from learnmech.probes.lightning import MechanicsMonitor",
      "",
      `monitor = MechanicsMonitor(sink="${here}", run="my run")`,
      "trainer = Trainer(callbacks=[monitor])",
    ].join("\n"))),
    h("pre", {}, h("code", {}, [
      "from learnmech.probes import Recorder",
      "",
      `sink = "${here}"`,
      "with Recorder(model, optimizer, loss_fn, sink=sink, run=\"my run\") as recorder:",
      "    for batch in batches:",
      "        ...  # your training step",
      "        recorder.after_step(batch)",
    ].join("\n"))));
}
