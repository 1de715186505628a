// What the collector knows, cached and kept fresh: runs, their laws and series, and the curves that are on the screen.

import * as api from "./api.js";
import { makeQueue } from "./dom.js";
import { announce, choice } from "./state.js";

const POINTS = 1500; // points asked for per curve: more than a plot has pixels
const PAUSE = 1000; // milliseconds between two looks at the same curve or run that is shown
const LONG_PAUSE = 10000; // and at a sparkline, or at a run that is only in the list, for its verdicts
const LOT = 20000; // most points that the collector gives in one answer
const LONG = 6000; // characters of an address that every proxy passes
const MOMENT = 30; // milliseconds in which wishes come together
const SMALL = 200; // a curve of so few points is a sparkline: fetched whole, and seldom

export const known = {
  runs: new Map(), // id -> row of /v1/runs
  details: new Map(), // id -> row of /v1/runs/{id} with laws and series
  laws: new Map(), // name -> law of /v1/laws
  observables: new Map(), // name -> observable of /v1/observables
  panels: { laws: [], sections: [], symbols: {}, verdicts: {} }, // panels.json
};

const queue = makeQueue(4);
const curves = new Map(); // key -> curve
const wanted = new Map(); // run, axis and points -> wishes that go into the next request
const looking = new Map(); // run id -> {busy, again}: one request per run in flight, the newest wish remembered

/** Fetches the run list; announces "runs". */
export async function loadRuns() {
  const rows = await api.runs();
  const before = known.runs;
  known.runs = new Map(rows.map((row) => [row.id, row]));
  for (const row of rows) {
    const old = before.get(row.id);
    if (old && (old.revision !== row.revision || old.status !== row.status)) changed(row.id, old, row);
  }
  announce("runs");
  return rows.filter((row) => !before.has(row.id));
}

/** Takes the news of one stream message; returns whether the list has to be fetched again. */
export function patch(news) {
  let unknown = false;
  for (const item of news) {
    const row = known.runs.get(item.id);
    if (!row) {
      unknown = true;
      continue;
    }
    const old = { ...row };
    Object.assign(row, item);
    if (old.revision !== row.revision || old.status !== row.status) changed(row.id, old, row);
  }
  announce("runs");
  return unknown;
}

function changed(id, old, row) {
  if (document.hidden) return; // everything is fetched again when the tab comes to the front
  // A rewind (resume from a checkpoint) or an end: what is on the screen may be superseded, so fetch it whole.
  const whole = old.attempts !== row.attempts || row.last_step < old.last_step || old.status !== row.status;
  if (known.details.has(id)) look(id);
  for (const curve of curves.values()) if (curve.id === id) refresh(curve, whole);
}

/** Fetches a run's laws and series unless that is under way; announces "run" with its id. */
export function look(id) {
  const state = looking.get(id) ?? { busy: false, again: false };
  looking.set(id, state);
  if (state.busy) {
    state.again = true;
    return;
  }
  state.busy = true;
  queue(() => api.run(id))
    .then((detail) => {
      known.details.set(id, detail);
      announce("run", id);
    })
    .catch((error) => console.warn(`run ${id}:`, error.message))
    .finally(() => setTimeout(() => {
      state.busy = false;
      if (state.again) {
        state.again = false;
        look(id);
      }
    }, choice.selected.includes(id) ? PAUSE : LONG_PAUSE));
}

/** The laws of a run as the collector judged them, [] before they are known. */
export function lawsOf(id) {
  return known.details.get(id)?.laws ?? [];
}

/** The series of a run, [] before they are known. */
export function seriesOf(id) {
  return known.details.get(id)?.series ?? [];
}

/**
 * Keeps a curve on the screen: fetched now, extended whenever the run moves. `listener(columns)` gets every new state.
 * Returns a function that lets go of it.
 */
export function watch({ id, kind, name, scope, x, points = POINTS }, listener) {
  const key = JSON.stringify([id, kind, name, scope, x, points]);
  let curve = curves.get(key);
  if (!curve) {
    curve = { id, kind, name, scope, x, points, columns: null, watchers: new Set(), busy: false, again: null };
    curves.set(key, curve);
  }
  curve.watchers.add(listener);
  if (curve.columns) listener(curve.columns);
  else refresh(curve, true);
  return () => {
    curve.watchers.delete(listener);
    if (!curve.watchers.size) curves.delete(key);
  };
}

function refresh(curve, whole) {
  if (curve.busy) {
    curve.again = whole || curve.again === true;
    return;
  }
  curve.busy = true;
  const have = curve.columns?.step?.length ?? 0;
  const all = whole || !have || have > 2 * curve.points || curve.points < SMALL;
  const after = all ? undefined : curve.columns.step[have - 1];
  fetchColumns(curve, after)
    .then((fresh) => {
      const news = onlyWithX(fresh);
      if (!all && !news.step.length) return;
      curve.columns = all ? news : append(curve.columns, news);
      for (const listener of curve.watchers) listener(curve.columns);
    })
    .catch((error) => {
      if (error.status === 404 && !curve.columns) for (const listener of curve.watchers) listener({ step: [], x: [] });
      else console.warn(`${curve.kind} ${curve.name}:`, error.message);
    })
    .finally(() => setTimeout(() => {
      curve.busy = false;
      if (curve.again !== null) {
        const wish = curve.again;
        curve.again = null;
        if (curve.watchers.size) refresh(curve, wish);
      }
    }, curve.points < SMALL ? LONG_PAUSE : PAUSE));
}

function fetchColumns(curve, after) {
  if (curve.kind === "observations") return together(curve, after);
  return queue(() => api.columns(curve.id, curve.kind, curve.name, curve.scope, curve.x, after, curve.points));
}

/** Asks for a curve in one request with the others of its run that are wanted in the same moment. */
function together({ id, name, scope, x, points }, after = -1) {
  const key = JSON.stringify([id, x, points]);
  return new Promise((resolve, reject) => {
    if (!wanted.has(key)) {
      wanted.set(key, []);
      setTimeout(() => {
        for (const lot of lots(wanted.get(key), points)) {
          queue(() => api.curves(id, lot, x, points))
            .then((found) => lot.forEach((wish, i) => wish.resolve(found[i])), (error) => lot.forEach((wish) => wish.reject(error)));
        }
        wanted.delete(key);
      }, MOMENT);
    }
    wanted.get(key).push({ name, scope, after, resolve, reject });
  });
}

/** Cuts wishes into what one request may ask for. */
function lots(wishes, points) {
  const found = [];
  let length = LONG;
  for (const wish of wishes) {
    const own = encodeURIComponent(wish.name + wish.scope + wish.after).length + 32;
    length += own;
    if (length > LONG || found[found.length - 1].length * points + points > LOT) {
      found.push([]);
      length = own;
    }
    found[found.length - 1].push(wish);
  }
  return found;
}

/** Drops the rows without an x (a run that does not count tokens has none on that axis). */
function onlyWithX(columns) {
  if (!columns.x.includes(null)) return columns;
  const keep = columns.x.map((x) => x !== null);
  return Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, values.filter((_, i) => keep[i])]));
}

function append(old, news) {
  const from = old.step[old.step.length - 1];
  const keep = news.step.map((step) => step > from);
  return Object.fromEntries(
    Object.entries(old).map(([name, values]) => [name, values.concat((news[name] ?? []).filter((_, i) => keep[i]))]),
  );
}

/** Fetches every curve on the screen again, whole: after the connection was lost or the tab slept. */
export function refreshAll() {
  for (const curve of curves.values()) refresh(curve, true);
  for (const id of known.details.keys()) look(id);
}
