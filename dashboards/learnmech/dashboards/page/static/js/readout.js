// The numbers beside a law's plot: the verdict now with its reason and advice, or the numbers under the cursor.

import { swatch, verdictBadge } from "./badge.js";
import { known } from "./data.js";
import { fill, h } from "./dom.js";
import { AXES, count, number, ratio, unit, withError } from "./format.js";
import { nearestRow } from "./entries.js";
import { choice } from "./state.js";

/** What to show of one run: its numbers under the cursor at x, else the collector's latest verdict. */
export function reading({ id, entry, columns, current }, cursor) {
  if (cursor !== null && columns?.step?.length) {
    const row = nearestRow(entry.x, cursor);
    return {
      id,
      when: AXES[choice.x].at(entry.x[row]),
      since: null,
      verdict: columns.verdict[row],
      reason: columns.reason?.[row] ?? "",
      measured: columns.measured[row],
      stderr: columns.measured_stderr?.[row],
      predicted: columns.predicted[row],
      ratio: columns.ratio[row],
    };
  }
  const last = columns?.step?.length ? columns.step.length - 1 : -1;
  if (!current && last < 0) return { id, when: "", verdict: null, reason: "" };
  return {
    id,
    when: "now",
    since: current?.since_step,
    step: current?.step ?? columns.step[last],
    verdict: current?.verdict ?? columns.verdict[last],
    reason: current?.reason ?? columns.reason[last],
    measured: current?.measured ?? columns?.measured?.[last],
    stderr: current?.measured_stderr ?? columns?.measured_stderr?.[last],
    predicted: current?.predicted ?? columns?.predicted?.[last],
    ratio: current?.ratio ?? columns?.ratio?.[last],
  };
}

/** Fills the column beside the plot. */
export function showReadings(element, readings, law) {
  if (readings.length === 1) fill(element, single(readings[0], law));
  else fill(element, readings.map((r) => several(r)));
}

function when(r) {
  if (!r.when) return "";
  if (r.when !== "now") return `at ${r.when}`;
  return r.since === null || r.since === undefined ? "now" : `since step ${count(r.since)}`;
}

function single(r, law) {
  const advice = r.verdict && r.when === "now" ? law?.advice?.[r.verdict] : "";
  const suffix = unit(known.observables.get(law?.measures?.[0])?.unit);
  const row = (name, value) => [h("dt", {}, name), h("dd", {}, value, value === "–" ? null : h("span.unit", {}, suffix))];
  return [
    h("div.verdict-line", {}, verdictBadge(r.verdict), h("span.since", {}, when(r))),
    r.ratio === null || r.ratio === undefined ? null
      : h("div.ratio-line", {}, h("span.ratio", {}, ratio(r.ratio)), h("span.caption", {}, "measured / predicted")),
    h("dl.numbers", {}, row("measured", withError(r.measured, r.stderr)), row("predicted", number(r.predicted))),
    r.reason ? h("p.reason", {}, r.reason) : null,
    advice ? h("p.advice", {}, h("strong", {}, "What to do. "), advice) : null,
  ];
}

function several(r) {
  const name = known.runs.get(r.id)?.name ?? r.id;
  return h("div.reading", { title: r.reason },
    h("div.reading-head", {}, swatch(r.id), h("span.run-name", { title: name }, name), verdictBadge(r.verdict)),
    h("div.reading-body", {}, h("span.ratio", {}, ratio(r.ratio)), h("span.since", {}, when(r))),
    h("div.reading-body", {}, `${withError(r.measured, r.stderr)} measured, ${number(r.predicted)} predicted`));
}
