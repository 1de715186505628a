// What the reader chose, kept in the address's hash, and a small bus that tells who must redraw.

export const LIMIT = 8; // runs shown at once: as many colours as can be told apart

const listeners = new Map();

/** Calls `listener` whenever `topic` is announced; returns a function that stops it. */
export function on(topic, listener) {
  if (!listeners.has(topic)) listeners.set(topic, new Set());
  listeners.get(topic).add(listener);
  return () => listeners.get(topic).delete(listener);
}

/** Announces a topic: runs, run, selection, axis, scale, scope, pins, zoom, cursor, theme. */
export function announce(topic, detail) {
  for (const listener of [...(listeners.get(topic) ?? [])]) listener(detail);
}

export const choice = {
  selected: [], // run ids, in the order they were picked
  x: "step",
  flipped: new Set(), // panels whose y axis is not on its declared scale
  scopes: new Map(), // panel -> scope
  pins: [], // "observable|scope"
  zoom: null, // [from, to] on the x axis
};

const slots = new Map(); // run id -> colour slot, sticky while the run is selected

/** The colour slot of a selected run. */
export function slot(id) {
  return slots.get(id) ?? 0;
}

function assignSlots() {
  for (const id of [...slots.keys()]) if (!choice.selected.includes(id)) slots.delete(id);
  for (const id of choice.selected) {
    if (slots.has(id)) continue;
    const taken = new Set(slots.values());
    let free = 0;
    while (taken.has(free)) free += 1;
    slots.set(id, free);
  }
}

/** Reads the hash; what it does not say stays as it was. */
export function readHash() {
  const query = new URLSearchParams(location.hash.slice(1));
  const list = (name) => (query.get(name) ? query.get(name).split(",").map(decodeURIComponent) : []);
  choice.selected = [...new Set(list("run"))].slice(0, LIMIT);
  choice.x = ["step", "samples", "tokens", "time"].includes(query.get("x")) ? query.get("x") : "step";
  choice.flipped = new Set(list("flip"));
  choice.pins = [...new Set(list("pin"))];
  choice.scopes = new Map(list("scope").map((entry) => [entry.split(":", 1)[0], entry.slice(entry.indexOf(":") + 1)]));
  slots.clear(); // an address always gives the same colours
  assignSlots();
}

function writeHash() {
  const query = new URLSearchParams();
  const put = (name, entries) => entries.length && query.set(name, entries.map(encodeURIComponent).join(","));
  put("run", choice.selected);
  if (choice.x !== "step") query.set("x", choice.x);
  put("flip", [...choice.flipped]);
  put("scope", [...choice.scopes].map(([panel, scope]) => `${panel}:${scope}`));
  put("pin", choice.pins);
  history.replaceState(null, "", `#${query}`);
}

/** Shows these runs. */
export function select(ids) {
  choice.selected = [...new Set(ids)].slice(0, LIMIT);
  choice.zoom = null;
  assignSlots();
  writeHash();
  announce("selection");
}

/** Adds a run to the picture or takes it out; says whether there was room. */
export function toggle(id) {
  const there = choice.selected.includes(id);
  if (!there && choice.selected.length >= LIMIT) return false;
  select(there ? choice.selected.filter((other) => other !== id) : [...choice.selected, id]);
  return true;
}

/** Changes one entry of the choice and announces it. */
export function choose(entry, value, topic) {
  choice[entry] = value;
  writeHash();
  announce(topic);
}

/** Switches a panel between linear and logarithmic y. */
export function flip(panel) {
  if (!choice.flipped.delete(panel)) choice.flipped.add(panel);
  writeHash();
  announce("scale", panel);
}

/** Shows another scope of a panel. */
export function setScope(panel, scope) {
  choice.scopes.set(panel, scope);
  writeHash();
  announce("scope", panel);
}
