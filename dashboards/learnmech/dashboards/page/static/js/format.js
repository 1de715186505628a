// Numbers, steps, durations and dates as people read them.

const SUPERSCRIPT = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

/** A measured number with `digits` significant digits; "–" where there is none. */
export function number(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) {
    const [mantissa, exponent] = value.toExponential(Math.max(0, digits - 2)).split("e");
    const power = String(Number(exponent)).replace(/./g, (c) => SUPERSCRIPT[c] ?? c);
    return minus(`${mantissa.replace(/\.?0+$/, "")}×10${power}`);
  }
  const text = size >= 1000 ? Math.round(value).toLocaleString("en-US") : String(Number(value.toPrecision(digits)));
  return minus(text);
}

/** A number with its error bar, both cut at the error's second digit. */
export function withError(value, error) {
  if (value === null || value === undefined) return "–";
  if (!error || !Number.isFinite(error) || Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3) {
    return error && Number.isFinite(error) ? `${number(value)} ± ${number(error, 2)}` : number(value);
  }
  const places = Math.min(6, Math.max(0, 1 - Math.floor(Math.log10(error))));
  if (error < 1e-6) return number(value);
  return minus(`${value.toFixed(places)} ± ${error.toFixed(places)}`);
}

/** A ratio: three decimals near one, fewer digits far away. */
export function ratio(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  return Math.abs(value) >= 0.1 && Math.abs(value) < 100 ? minus(value.toFixed(3)) : number(value, 3);
}

function minus(text) {
  return text.replace(/^-/, "−");
}

/** A count, exactly: 12,345. */
export function count(value) {
  return value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en-US");
}

/** A count for an axis: 12k, 3.4M. */
export function compact(value) {
  const size = Math.abs(value);
  for (const [limit, suffix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= limit) return minus(`${Number((value / limit).toPrecision(6))}${suffix}`);
  }
  return minus(String(Number(value.toPrecision(6))));
}

/** Seconds as "42 s", "3 min 5 s", "2 h 10 min", "3 d 4 h". */
export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return s % 60 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${s / 60} min`;
  if (s < 86400) return s % 3600 < 60 ? `${Math.floor(s / 3600)} h` : `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** Seconds on an axis: "0:05", "2:10", "1:02:03". */
export function clock(seconds) {
  if (seconds < 1 && seconds > 0) return `${Number(seconds.toPrecision(2))} s`;
  const s = Math.round(seconds);
  const parts = [Math.floor(s / 3600), Math.floor((s % 3600) / 60), s % 60];
  const two = (n) => String(n).padStart(2, "0");
  return parts[0] ? `${parts[0]}:${two(parts[1])}:${two(parts[2])}` : `${parts[1]}:${two(parts[2])}`;
}

/** A moment on an axis whose ticks are `spacing` seconds apart: "14:36:30", "14:36", "Nov 23". */
export function calendar(unix, spacing) {
  if (unix === null) return "";
  const date = new Date(unix * 1000);
  if (spacing >= 86400) return date.toLocaleDateString(undefined, { month: "short", day: "numeric" });
  const time = date.toLocaleTimeString(undefined, { hour12: false, hour: "2-digit", minute: "2-digit", ...(spacing < 60 ? { second: "2-digit" } : {}) });
  return spacing >= 3600 && date.getHours() === 0 ? calendar(unix, 86400) : time;
}

/** How long ago, roughly: "just now", "4 min ago". */
export function ago(unix) {
  if (!unix) return "–";
  const seconds = Date.now() / 1000 - unix;
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${Math.round(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

/** A moment: date and time on the reader's clock. */
export function moment(unix) {
  if (!unix) return "–";
  return new Date(unix * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

/** Time of day with seconds. */
export function timeOfDay(unix) {
  return new Date(unix * 1000).toLocaleTimeString(undefined, { hour12: false });
}

/** How the four x axes are called. */
export const AXES = {
  step: { label: "Step", axis: "optimizer steps", at: (x) => `step ${count(x)}` },
  samples: { label: "Samples", axis: "samples seen", at: (x) => `${count(x)} samples` },
  tokens: { label: "Tokens", axis: "tokens seen", at: (x) => `${count(x)} tokens` },
  time: { label: "Wall time", axis: "wall time", at: (x) => (x > 1e8 ? timeOfDay(x) : `${duration(x)} after the start`) },
};

/** A unit as people write it; pure numbers and "loss" need none beside a value. */
export function unit(name) {
  return { 1: "", loss: "", "loss^2": "", "loss^3": "", examples: "examples", s: "s", rad: "rad" }[name] ?? name ?? "";
}
