// Small pieces that several parts of the page show: verdict badges, status badges, run swatches, formulas.

import { h } from "./dom.js";
import { number, ratio } from "./format.js";
import { VERDICTS } from "./palette.js";
import { known } from "./data.js";
import { slot } from "./state.js";

/** A verdict as sign and word. */
export function verdictBadge(verdict, { small = false } = {}) {
  if (!verdict) return h("span.no-verdict", {}, "no verdict");
  const { sign, word } = VERDICTS[verdict] ?? { sign: "?", word: verdict };
  const meaning = known.panels.verdicts[verdict] ?? "";
  return h(`span.badge.v-${verdict}${small ? ".small" : ""}`, { title: `${word}: ${meaning}` },
    h("span.sign", { "aria-hidden": "true" }, sign), small ? null : word);
}

/** A run's status as a dot and a word. */
export function statusBadge(status) {
  return h(`span.status.s-${status}`, {}, h("span.dot", { "aria-hidden": "true" }), status);
}

/** A square in the colour of a selected run. */
export function swatch(id) {
  return h(`span.swatch.run-${slot(id)}`, { "aria-hidden": "true" });
}

/** A law's latest numbers for a chip: "holds · 1.003". */
export function chipTitle(law) {
  const title = known.laws.get(law.law)?.title ?? law.law;
  const scope = law.scope ? ` (${law.scope})` : "";
  return `${title}${scope}: ${VERDICTS[law.verdict]?.word ?? law.verdict}, measured/predicted ${ratio(law.ratio)}`;
}

/** A formula from panels.json, where it was parsed from LaTeX: text, {var}, {sub}, {sup}, {root}, {over, under}. */
export function formula(nodes) {
  return (nodes ?? []).map((node) => {
    if (typeof node === "string") return node;
    if (node.sub) return h("sub", {}, formula(node.sub));
    if (node.sup) return h("sup", {}, formula(node.sup));
    if (node.var) return h("i", {}, node.var);
    if (node.root) return [" √", h("span.radicand", {}, formula(node.root))];
    return h("span.fraction", {}, h("span", {}, formula(node.over)), h("span", {}, formula(node.under)));
  });
}

/** The symbol of an observable; null where it has none. */
export function symbol(name) {
  const nodes = known.panels.symbols[name];
  return nodes?.length ? h("span.symbol", {}, formula(nodes)) : null;
}

/** A value with its unit: "12.3 examples". */
export function quantity(value, unit) {
  return unit ? `${number(value)} ${unit}` : number(value);
}
