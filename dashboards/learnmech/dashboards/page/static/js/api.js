// The collector's HTTP interface. Addresses are relative to the page, so it also works below a path of a reverse proxy.

const KEY = "learnmech.token";
const base = new URL("./", document.baseURI);
let askForToken = null;
let pending = null;

/** What the collector answered instead of data. */
export class ApiError extends Error {
  constructor(status, body) {
    super(body?.error || `The collector answered with status ${status}.`);
    this.status = status;
    this.hint = body?.hint || "";
  }
}

/** Registers the dialog that asks for a token; it returns a promise of the token. */
export function onUnauthorized(ask) {
  askForToken = ask;
}

/** The headers of every request: the token, once there is one. */
export function headers() {
  const token = sessionStorage.getItem(KEY);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/** Asks for a token once, however many requests were refused meanwhile. */
export function authorize() {
  pending ??= askForToken(Boolean(sessionStorage.getItem(KEY)))
    .then((token) => sessionStorage.setItem(KEY, token))
    .finally(() => {
      pending = null;
    });
  return pending;
}

/** The address of an endpoint with its query; a list is repeated. */
export function address(path, query = {}) {
  const url = new URL(path, base);
  for (const [name, value] of Object.entries(query)) {
    if (value === undefined || value === null) continue;
    for (const one of [value].flat()) url.searchParams.append(name, one);
  }
  return url;
}

/** Fetches JSON; asks for a token on 401 and tries again. */
export async function get(path, query = {}, { signal, method = "GET" } = {}) {
  for (;;) {
    const sent = headers();
    const response = await fetch(address(path, query), { method, headers: { Accept: "application/json", ...sent }, signal });
    if (response.status === 401) {
      if (sent.Authorization === headers().Authorization) await authorize(); // else another request got a new one
      continue;
    }
    const body = await response.json().catch(() => null);
    if (!response.ok) throw new ApiError(response.status, body);
    return body;
  }
}

const at = (id) => `v1/runs/${encodeURIComponent(id)}`;

export const runs = () => get("v1/runs").then((body) => body.runs);
export const run = (id) => get(at(id));
export const laws = () => get("v1/laws").then((body) => body.laws ?? body);
export const observables = () => get("v1/observables").then((body) => body.observables ?? body);
export const events = (id) => get(`${at(id)}/events`).then((body) => body.events ?? body);

/** Asks a running run to measure now. */
export const measure = (id) => get(`${at(id)}/measure`, {}, { method: "POST" });

/** The columns of several curves of observables, in the order of `wishes`: [{name, scope, after}]. */
export function curves(id, wishes, x, points) {
  const each = (name) => wishes.map((wish) => wish[name]);
  const query = { observable: each("name"), scope: each("scope"), after_step: each("after"), x, points };
  return get(`${at(id)}/curves`, query).then((body) => body.curves.map(({ observable, scope, ...columns }) => columns));
}

/** The columns of one curve: kind is "residuals" (name = law) or "observations" (name = observable). */
export function columns(id, kind, name, scope, x, after, points) {
  const key = kind === "residuals" ? "law" : "observable";
  return get(`${at(id)}/${kind}`, { [key]: name, scope, x, after_step: after, points }).then((body) => body.columns ?? body);
}
