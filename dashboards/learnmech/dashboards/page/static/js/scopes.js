// The parts of a model that an observable was measured in: what kind they are of, and in which order they are read.

const NATURAL = new Intl.Collator("en", { numeric: true }); // blocks.2 before blocks.10
const APART = new Set(["", "scale_invariant"]); // the whole, and a set across the model: no part among others

/** The kind of a scope among `all` scopes of its observable; null for the whole model. `plain` is what most are called. */
export function kindOf(scope, all, plain) {
  if (APART.has(scope)) return null;
  if (scope.startsWith("type:")) return "types";
  if (scope.startsWith("group:")) return "parameter groups";
  if (scope.startsWith("symmetry:") && scope.includes("/")) return "kinds by block";
  if (plain !== "blocks") return plain;
  const parts = scope.split(".");
  return parts.some((_, i) => i > 0 && all.has(parts.slice(0, i).join("."))) ? "tensors" : plain;
}

/** The scopes by kind, in the order of `plain` first: Map of kind -> scopes in natural order. */
export function byKind(scopes, plain) {
  const all = new Set(scopes);
  const found = new Map([[plain, []]]);
  for (const scope of [...all].sort(NATURAL.compare)) {
    const kind = kindOf(scope, all, plain);
    if (kind && !found.has(kind)) found.set(kind, []);
    found.get(kind)?.push(scope);
  }
  return new Map([...found].filter(([, members]) => members.length));
}

/** What a row is called beside others of its kind. */
export function shortName(scope) {
  return scope.replace(/^(type|group|symmetry):/, (prefix) => (prefix === "group:" ? "group " : "")).replaceAll("_", " ");
}
