// Controls that several panels share: legend, scale button, scope list, the text that explains a panel.

import { formula } from "./badge.js";
import { fill, h } from "./dom.js";
import { choice, flip } from "./state.js";

/** What the strokes mean; only what is on the plot is named. */
export function legend(element, entries, { zone = false, band = "± one standard error", predicted = "predicted", measured = "measured", layers = [], intervals = [] } = {}) {
  const has = (role) => entries.some((entry) => entry.roles[role]);
  const key = (kind, text, style = {}) => h("span.key", {}, h(`span.stroke.${kind}`, { "aria-hidden": "true", style }), text);
  const of = new Set(entries.map((entry) => entry.id)).size === 1 ? ".run-of" : ""; // one run: its colour
  fill(element,
    key(`measured${of}`, measured),
    byLook(layers.filter(({ role }) => has(role))).map(([look, text]) => key(`${look}${of}`, text)),
    intervals.filter(({ role }) => has(`${role}_upper`) && has(`${role}_lower`)).map(({ label, strength }) => key("band", label, { opacity: 0.15 + 1.5 * strength })),
    has("upper") ? key("band", band) : null,
    has("predicted") ? key("predicted", predicted) : null,
    zone && has("zone_upper") ? key("zone", "tolerance of the law") : null);
}

/** Layers of one look share a key: [look, "a, b" or "first to last"]. */
function byLook(layers) {
  const labels = new Map();
  for (const { look, label } of layers) labels.set(look, new Set([...(labels.get(look) ?? []), label]));
  return [...labels].map(([look, set]) => {
    const names = [...set];
    return [look, names.length > 2 ? `${names[0]} to ${names[names.length - 1]}` : names.join(", ")];
  });
}

/** The y axis of a panel: as declared, or the other one when the reader switched. */
export function yScale(panel) {
  if ((panel.scale === "log") === choice.flipped.has(panel.id)) return "linear";
  return panel.signed ? "symlog" : "log";
}

/** The button that switches a panel between its declared y scale and the other one. */
export function scaleButton(panel) {
  const title = panel.signed ? "Logarithmic y axis on both sides of zero" : "Logarithmic y axis";
  return h("button.toggle", { "aria-pressed": String(yScale(panel) !== "linear"), title, onclick: () => flip(panel.id) }, "log y");
}

/** A list of scopes: whole model, tensors, ... */
export function scopeSelect(scopes, current, pick) {
  return h("select.scope", { "aria-label": "Scope", title: "Which part of the model", onchange: (event) => pick(event.target.value) },
    scopes.map(({ scope, label }) => h("option", { value: scope, selected: scope === current }, label)));
}

/** Text with `code`, and with arXiv numbers turned into links (nothing is loaded until the reader clicks). */
export function prose(text) {
  return text.split(/(`[^`]+`|arXiv \d{4}\.\d{4,5})/).map((part) => {
    if (part.startsWith("`")) return h("code", {}, part.slice(1, -1));
    const match = /^arXiv (\S+)$/.exec(part);
    return match ? h("a", { href: `https://arxiv.org/abs/${match[1]}`, target: "_blank", rel: "noreferrer" }, part) : part;
  });
}

/** The folded explanation of a panel. */
export function about(panel, law) {
  const row = (name, ...content) => [h("dt", {}, name), h("dd", {}, ...content)];
  const tolerance = law?.tolerance;
  return h("details.about", {}, h("summary", {}, "About this panel"),
    h("dl", {},
      row("What it shows", prose(panel.shows)),
      panel.formula?.length ? row("Formula", h("span.formula", {}, formula(panel.formula))) : null,
      tolerance ? row("Tolerance", `measured / predicted from ${tolerance.lower} to ${tolerance.upper}: ${tolerance.origin}`) : null,
      law ? row("Needs", [...law.measures, ...law.needs].map((name) => h("code", {}, name))) : null,
      row("Does not apply when", prose(panel.fails)),
      row("Source", prose(panel.source))));
}
