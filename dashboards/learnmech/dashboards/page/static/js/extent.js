// One x range for every plot on the page: what the plots hold together, or what the reader zoomed to.

import { announce, choice } from "./state.js";

const plots = new Map(); // plot -> [from, to] of its own data
let frame = null;

/** Tells the data range of a plot; null when it has none or is gone. */
export function report(plot, range) {
  if (range) plots.set(plot, range);
  else plots.delete(plot);
  frame ??= requestAnimationFrame(() => {
    frame = null;
    for (const each of plots.keys()) each.applyRange();
  });
}

/** The range that every plot shows now. */
export function shownRange() {
  if (choice.zoom) return choice.zoom;
  let [from, to] = [Infinity, -Infinity];
  for (const [a, b] of plots.values()) {
    from = Math.min(from, a);
    to = Math.max(to, b);
  }
  if (from > to) return [0, 1];
  if (from === to) return [from - 0.5, to + 0.5];
  return [from, to];
}

/** Zooms every plot; null shows everything again. */
export function zoomTo(range) {
  choice.zoom = range;
  for (const plot of plots.keys()) plot.applyRange();
  announce("zoom");
}
