// Colours: runs by slot (Okabe-Ito, told apart by colour-blind readers), verdicts with a sign and a word besides the colour.

import { LIMIT } from "./state.js";

/** The value of a CSS custom property in the theme that is on. */
export function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** The colour of a run's slot. */
export function runColour(slot) {
  return css(`--run-${slot % LIMIT}`);
}

/** A colour with an opacity from 0 to 1, for canvas. */
export function translucent(colour, opacity) {
  const hex = colour.replace("#", "");
  const [r, g, b] = [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16));
  return `rgba(${r},${g},${b},${opacity})`;
}

/** Sign, word and CSS class of each verdict. */
export const VERDICTS = {
  holds: { sign: "✓", word: "holds" },
  deviates: { sign: "!", word: "deviates" },
  undetermined: { sign: "?", word: "undetermined" },
  not_applicable: { sign: "–", word: "not applicable" },
  sub_edge: { sign: "↓", word: "below the edge" },
};

/** Sign, word and CSS class of each run status. */
export const STATUSES = {
  running: "running",
  finished: "finished",
  failed: "failed",
  stalled: "stalled",
};
