// Which of a law's scopes speaks for it: the same answer in the list of runs, in the tiles and in the panel.

import { known } from "./data.js";

const WEIGHT = { deviates: 4, holds: 3, sub_edge: 2, undetermined: 1, not_applicable: 0 };
const WHOLE = new Set(["", "scale_invariant"]); // scopes that stand for many tensors

/** Of rows of one law: a deviation before a success before silence, and the whole before its parts. */
export function mostTelling(rows) {
  const weight = ({ verdict, scope }) => 2 * (WEIGHT[verdict] ?? 0) + (WHOLE.has(scope) ? 1 : 0);
  return rows.reduce((best, row) => (best === undefined || weight(row) > weight(best) ? row : best), undefined);
}

/** For each law, in the declared order, the row that speaks for it. */
export function summarize(laws) {
  const order = known.panels.laws.map((panel) => panel.name);
  const place = (name) => (order.includes(name) ? order.indexOf(name) : order.length);
  const names = [...new Set(laws.map((law) => law.law))].sort((a, b) => place(a) - place(b));
  return names.map((name) => mostTelling(laws.filter((law) => law.law === name)));
}
