// The history of a law's verdict as a strip under its plot, aligned with the plot's x axis, one bar per run.

import { fill, h } from "./dom.js";
import { AXES } from "./format.js";
import { VERDICTS } from "./palette.js";
import { report, shownRange } from "./extent.js";
import { choice, slot } from "./state.js";

/** Joins rows of equal verdict: [{verdict, from, to, reason}]. */
export function segments(xs, verdicts, reasons) {
  const found = [];
  for (let i = 0; i < xs.length; i += 1) {
    const last = found[found.length - 1];
    if (last && last.verdict === verdicts[i]) {
      last.to = xs[i];
      last.reason = reasons?.[i] ?? last.reason;
    } else {
      if (last) last.to = xs[i];
      found.push({ verdict: verdicts[i], from: xs[i], to: xs[i], reason: reasons?.[i] ?? "" });
    }
  }
  return found;
}

export class Strip {
  constructor() {
    this.element = h("div.strip", { role: "img" });
    this.rows = [];
  }

  /** Draws rows of {id, x, verdict, reason}. */
  show(rows) {
    this.rows = rows.map(({ id, x, verdict, reason }) => ({ id, parts: segments(x, verdict, reason) }));
    const all = this.rows.flatMap((row) => row.parts);
    report(this, all.length ? [Math.min(...all.map((s) => s.from)), Math.max(...all.map((s) => s.to))] : null);
    this.element.setAttribute("aria-label", `Verdict history: ${this.rows.map((row) => describe(row.parts)).join("; ")}`);
    this.applyRange();
  }

  /** Redraws for the range in view; a segment says its verdict where the word fits. */
  applyRange() {
    const width = this.element.clientWidth;
    const wide = (share, { verdict }) => (share / 100) * width > 7 * (VERDICTS[verdict]?.word.length ?? 99) + 8;
    const [from, to] = shownRange();
    const percent = (x) => (100 * (Math.min(Math.max(x, from), to) - from)) / (to - from);
    fill(this.element, this.rows.map((row) =>
      h("div.bar", {},
        this.rows.length > 1 ? h(`span.swatch.run-${slot(row.id)}`, {}) : null,
        row.parts.filter((part) => part.to >= from && part.from <= to).map((part) =>
          h(`span.segment.v-${part.verdict}`, {
            title: `${VERDICTS[part.verdict]?.word ?? part.verdict}, ${AXES[choice.x].at(part.from)} to ` +
              `${AXES[choice.x].at(part.to)}\n${part.reason}`,
            style: { left: `${percent(part.from)}%`, width: `max(2px, ${percent(part.to) - percent(part.from)}%)` },
          }, wide(percent(part.to) - percent(part.from), part) ? VERDICTS[part.verdict]?.word : null)))));
  }

  destroy() {
    report(this, null);
  }
}

function describe(parts) {
  return parts.length ? parts.map((part) => VERDICTS[part.verdict]?.word ?? part.verdict).slice(-6).join(", then ") : "none";
}
