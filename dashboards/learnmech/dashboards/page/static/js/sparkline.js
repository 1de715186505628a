// A word-sized plot of one series, fetched when it scrolls into view.

import { watch } from "./data.js";
import { css, runColour } from "./palette.js";
import { slot } from "./state.js";

const POINTS = 60;
const waiting = new WeakMap();
const seen = new IntersectionObserver((items) => {
  for (const { target, isIntersecting } of items) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    waiting.get(target)?.();
  }
}, { rootMargin: "120px" });

/** Draws `series` of run `id` into a canvas once it is visible; returns a function that stops it. */
export function sparkline(canvas, id, { observable, scope }, log) {
  let stop = () => {};
  waiting.set(canvas, () => {
    stop = watch({ id, kind: "observations", name: observable, scope, x: "step", points: POINTS }, (columns) => draw(canvas, id, columns, log));
  });
  seen.observe(canvas);
  return () => {
    seen.unobserve(canvas);
    waiting.delete(canvas);
    stop();
  };
}

function draw(canvas, id, { step, value = [] }, log) {
  const scale = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth || 120, canvas.clientHeight || 24];
  canvas.width = width * scale;
  canvas.height = height * scale;
  const ys = value.map((v) => (v === null || v === undefined || (log && v <= 0) ? null : log ? Math.log(v) : v));
  const finite = ys.filter((y) => y !== null);
  if (!finite.length) return;
  const [low, high] = [Math.min(...finite), Math.max(...finite)];
  const [first, last] = [step[0], step[step.length - 1]];
  const px = (x) => (last === first ? width / 2 : 2 + ((x - first) / (last - first)) * (width - 6));
  const py = (y) => (high === low ? height / 2 : height - 3 - ((y - low) / (high - low)) * (height - 6));
  const ink = canvas.getContext("2d");
  ink.scale(scale, scale);
  ink.strokeStyle = ink.fillStyle = runColour(slot(id)) || css("--muted");
  ink.lineWidth = 1.3;
  ink.lineJoin = "round";
  ink.beginPath();
  let pen = false;
  ys.forEach((y, i) => {
    if (y === null) pen = false;
    else {
      if (pen) ink.lineTo(px(step[i]), py(y));
      else ink.moveTo(px(step[i]), py(y));
      pen = true;
    }
  });
  ink.stroke();
  const end = ys.length - 1;
  if (ys[end] !== null) {
    ink.beginPath();
    ink.arc(px(step[end]), py(ys[end]), 2, 0, 7);
    ink.fill();
  }
}
