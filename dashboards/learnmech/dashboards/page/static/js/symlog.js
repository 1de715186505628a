// A y axis that is logarithmic on both sides of zero and linear near it: asinh(y / threshold).

const DECADES = 4; // shown on each side of the linear part at most: a Lanczos solver resolves no more of a spectrum
const SPACE = 20; // pixels between two ticks at least

/** Where the axis turns linear: the power of ten at or below the middle size of the values, but within DECADES of the largest. */
export function threshold(columns) {
  const sizes = columns.flatMap((column) => column.filter((v) => v !== null && v !== undefined && v !== 0)).map(Math.abs).sort((a, b) => a - b);
  if (!sizes.length) return 1;
  const lowest = sizes[sizes.length - 1] * 10 ** -DECADES;
  return 10 ** Math.floor(Math.log10(Math.max(sizes[sizes.length >> 1], lowest)) + 1e-9);
}

/** The range around values from `low` to `high`, with room. */
export function symRange(low, high, linear) {
  if (low > high) return [-1, 1];
  const [a, b] = [Math.asinh(low / linear), Math.asinh(high / linear)];
  const room = Math.max((b - a) * 0.05, 0.1);
  return [linear * Math.sinh(a - room), linear * Math.sinh(b + room)];
}

/** Ticks: zero and powers of ten on both sides, with 2 and 5 or 3 between them where there is room; none too close to zero. */
export function symTicks(min, max, height, linear) {
  const place = (v) => Math.asinh(v / linear);
  const scale = height / (place(max) - place(min)); // pixels
  const [first, last] = [Math.round(Math.log10(linear)), Math.ceil(Math.log10(Math.max(Math.abs(min), Math.abs(max))))];
  const within = (factors, every) => {
    const sizes = [];
    for (let e = first; e <= last; e += 1) if (e % every === 0) for (const factor of factors) sizes.push(Number(`${factor}e${e}`));
    const apart = sizes.filter((v) => place(v) * scale >= SPACE);
    return [...apart.map((v) => -v).reverse(), 0, ...apart].filter((v) => v >= min && v <= max);
  };
  const choices = [within([1, 2, 5], 1), within([1, 3], 1), ...[1, 2, 3, 5, 10].map((every) => within([1], every))];
  return choices.find((ticks) => ticks.every((v, i) => !i || (place(v) - place(ticks[i - 1])) * scale >= SPACE)) ?? [];
}
