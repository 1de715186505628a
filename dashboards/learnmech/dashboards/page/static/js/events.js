// What happened in the runs: a list, and marks on the plots.

import * as api from "./api.js";
import { swatch } from "./badge.js";
import { known } from "./data.js";
import { fill, h } from "./dom.js";
import { isRelative } from "./entries.js";
import { count, moment, timeOfDay } from "./format.js";
import { announce, choice } from "./state.js";

const MARKED = new Set(["hyperparameter_changed", "gap", "probe_failed", "probe_disabled", "run_failed", "run_started"]);
const MOST_MARKS = 24; // a learning-rate schedule changes at every step: no marks then
const MOST_ROWS = 200;
const SIMILAR = 4; // from so many events of one kind in a row on, one line stands for all

const events = new Map(); // run id -> events
const revisions = new Map(); // run id -> revision they were fetched at

/** Fetches the events of the selected runs whose revision moved; announces "events". */
export async function loadEvents() {
  const due = choice.selected.filter((id) => known.runs.has(id) && revisions.get(id) !== known.runs.get(id).revision);
  if (!due.length) return;
  await Promise.all(due.map(async (id) => {
    revisions.set(id, known.runs.get(id).revision);
    try {
      events.set(id, await api.events(id));
    } catch (error) {
      revisions.delete(id);
      console.warn(`events of ${id}:`, error.message);
    }
  }));
  announce("events");
}

/** Marks for the plots: [{x, severity}] on the axis in use; counts of samples or tokens are not known for events. */
export function markersFor(ids) {
  if (choice.x !== "step" && choice.x !== "time") return [];
  const marks = ids.flatMap((id) => {
    const start = known.runs.get(id)?.created ?? 0;
    return (events.get(id) ?? [])
      .filter((event) => MARKED.has(event.kind) && !(event.kind === "run_started" && event.step === 0))
      .map((event) => ({
        x: choice.x === "step" ? event.step : event.time - (isRelative() ? start : 0),
        severity: event.severity,
        key: `${event.kind}|${event.step}`,
      }))
      .filter((mark) => choice.x === "time" || mark.x > 0);
  });
  const distinct = [...new Map(marks.map((mark) => [mark.key, mark])).values()];
  return distinct.length > MOST_MARKS ? distinct.filter((mark) => mark.severity !== "info").slice(-MOST_MARKS) : distinct;
}

export class EventList {
  constructor() {
    this.body = h("div.events");
    this.element = h("section", { id: "events" }, h("div.section-head", {}, h("h2", {}, "Events")), h("div.card", {}, this.body));
  }

  show() {
    const all = choice.selected.flatMap((id) => (events.get(id) ?? []).map((event) => ({ ...event, id })));
    all.sort((a, b) => b.time - a.time || b.step - a.step);
    const rows = condense(all).slice(0, MOST_ROWS);
    if (!rows.length) {
      fill(this.body, h("p.empty-note", {}, "No events."));
      return;
    }
    fill(this.body, rows.map(({ event, times, first }) => h(`div.event.e-${event.severity}`, {},
      h("span.event-time", { title: moment(event.time) }, timeOfDay(event.time)),
      h("span.event-step", {}, times > 1 ? `steps ${count(first.step)}–${count(event.step)}` : `step ${count(event.step)}`),
      choice.selected.length > 1 ? swatch(event.id) : null,
      h("span.event-kind", {}, event.kind.replaceAll("_", " ") + (times > 1 ? ` ×${times}` : "")),
      h("span.event-message", {}, event.message))));
  }
}

/** Folds long rows of one kind (newest first) into one line. */
function condense(sorted) {
  const rows = [];
  for (let i = 0; i < sorted.length;) {
    let end = i + 1;
    while (end < sorted.length && sorted[end].kind === sorted[i].kind && sorted[end].id === sorted[i].id) end += 1;
    if (end - i >= SIMILAR) rows.push({ event: sorted[i], times: end - i, first: sorted[end - 1] });
    else for (let j = i; j < end; j += 1) rows.push({ event: sorted[j], times: 1, first: sorted[j] });
    i = end;
  }
  return rows;
}
