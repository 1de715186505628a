// What is drawn over a plot besides its curves: rules, missing values and events.

import { css } from "./palette.js";

/** The draw hook of `Chart`. */
export function drawMarks(u, chart) {
  const { ctx, bbox } = u;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  drawRules(u, chart.options.rules);
  drawMarkers(u, chart.view.markers ?? []);
  if (chart.options.marksMissing) drawMissing(u, chart);
  ctx.restore();
}

function drawRules(u, rules) {
  const { ctx, bbox } = u;
  for (const y of rules) {
    const top = Math.round(u.valToPos(y, "y", true)) + 0.5;
    if (!Number.isFinite(top)) continue;
    ctx.strokeStyle = css("--predicted");
    ctx.lineWidth = 1.6 * devicePixelRatio;
    ctx.setLineDash([7, 5].map((n) => n * devicePixelRatio));
    ctx.beginPath();
    ctx.moveTo(bbox.left, top);
    ctx.lineTo(bbox.left + bbox.width, top);
    ctx.stroke();
  }
}

/** Events as dotted verticals with a small flag at the top. */
function drawMarkers(u, markers) {
  const { ctx, bbox } = u;
  const size = 5 * devicePixelRatio;
  for (const { x, severity } of markers) {
    const left = Math.round(u.valToPos(x, "x", true)) + 0.5;
    ctx.strokeStyle = ctx.fillStyle = css(severity === "error" ? "--deviates" : severity === "warning" ? "--undetermined" : "--muted");
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash([1, 3].map((n) => n * devicePixelRatio));
    ctx.beginPath();
    ctx.moveTo(left, bbox.top);
    ctx.lineTo(left, bbox.top + bbox.height);
    ctx.stroke();
    ctx.beginPath();
    ctx.moveTo(left - size, bbox.top);
    ctx.lineTo(left + size, bbox.top);
    ctx.lineTo(left, bbox.top + 1.4 * size);
    ctx.fill();
  }
}

/** A mark on the axis wherever a measurement has no finite value: the gap is shown, and shown to be one. */
function drawMissing(u, chart) {
  const { ctx, bbox } = u;
  const size = 3 * devicePixelRatio;
  const y = bbox.top + bbox.height - 2.4 * size;
  ctx.strokeStyle = css("--deviates");
  ctx.lineWidth = 1.4 * devicePixelRatio;
  ctx.setLineDash([]);
  ctx.beginPath();
  for (const { x, roles } of chart.view.entries) {
    const places = x.flatMap((at, i) => (roles.measured?.[i] === null ? [u.valToPos(at, "x", true)] : []));
    for (const [from, to] of joined(places, 3 * size)) {
      if (to - from < size) cross(ctx, from, y, size);
      else bracket(ctx, from, to, y, size);
    }
  }
  ctx.stroke();
}

/** Joins places closer than `reach`: [[from, to]]. */
function joined(places, reach) {
  const spans = [];
  for (const at of places) {
    const last = spans[spans.length - 1];
    if (last && at - last[1] < reach) last[1] = at;
    else spans.push([at, at]);
  }
  return spans;
}

function cross(ctx, x, y, size) {
  ctx.moveTo(x - size, y - size);
  ctx.lineTo(x + size, y + size);
  ctx.moveTo(x + size, y - size);
  ctx.lineTo(x - size, y + size);
}

function bracket(ctx, from, to, y, size) {
  ctx.moveTo(from, y - size);
  ctx.lineTo(from, y + size);
  ctx.moveTo(from, y);
  ctx.lineTo(to, y);
  ctx.moveTo(to, y - size);
  ctx.lineTo(to, y + size);
}
