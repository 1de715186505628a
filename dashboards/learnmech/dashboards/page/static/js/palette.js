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

const VIRIDIS = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"]; // van der Walt and Smith 2015, CC0

/** The colours of a map from low to high: viridis, or the theme's that turn, with brown at the end to look at, "low" or "high". */
export function mapColours(concern) {
  if (!concern) return VIRIDIS;
  const colours = [0, 1, 2, 3, 4].map((place) => css(`--turn-${place}`));
  return concern === "low" ? colours : colours.reverse();
}

/** The colour at a place from 0 to 1 between evenly spaced colours. */
export function between(colours, place) {
  const at = Math.min(Math.max(place, 0), 1) * (colours.length - 1);
  const first = Math.min(Math.floor(at), colours.length - 2);
  const parts = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const [a, b] = [parts(colours[first]), parts(colours[first + 1])];
  return `rgb(${a.map((value, i) => Math.round(value + (b[i] - value) * (at - first))).join(",")})`;
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
