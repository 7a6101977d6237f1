// Small charts of the last minutes: columns over time, stacked.

import { count, h, s } from "./page.js";

const W = 360, H = 120, LEFT = 36, RIGHT = 4, TOP = 10, BOTTOM = 20;
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString();

// The next number above with one digit that is not 0.
function round(most) {
  const unit = 10 ** Math.floor(Math.log10(most));
  return Math.ceil(most / unit) * unit;
}

// Draw `series`, [{ name, class, of(point) }] from the bottom up, of points that end at `time` after
// `seconds`. The axis has the last `minutes`, whether there are points of them or not.
export function columns(title, points, series, minutes) {
  const now = points.at(-1)?.time ?? 0, begin = now - 60 * minutes;
  const top = round(Math.max(...points.map((point) => series.reduce((sum, one) => sum + one.of(point), 0)), 1));
  const x = (time) => LEFT + Math.max(0, (time - begin) / (60 * minutes)) * (W - LEFT - RIGHT);
  const y = (value) => H - BOTTOM - (value / top) * (H - TOP - BOTTOM);
  const drawn = points.map((point) => {
    const left = x(point.time - point.seconds), width = Math.max(1, x(point.time) - left - 1);
    let below = 0;
    return s("g", null,
      s("title", null, `${clock(point.time)}: ${series.map((one) => `${count(one.of(point))} ${one.name}`).join(", ")}`),
      series.filter((one) => one.of(point) > 0).map((one) => {
        const from = y(below), to = y(below += one.of(point));
        return s("rect", { class: one.class, x: left, width, y: to, height: Math.max(1, from - to) });
      }));
  });
  const totals = series.map((one) => `${count(points.reduce((sum, point) => sum + one.of(point), 0))} ${one.name}`);
  const tick = (at, anchor, text) => s("text", { x: at, y: H - 5, "text-anchor": anchor }, text);
  const line = (value) => [
    s("line", { class: "axis", x1: LEFT, x2: W - RIGHT, y1: y(value), y2: y(value) }),
    s("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, count(value))];
  return h("figure", null,
    h("figcaption", null, title, series.length > 1 ? series.map((one) => h("span", { class: `key ${one.class}` }, one.name)) : null),
    s("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${title}, in the last ${minutes} minutes: ${totals.join(", ")}` },
      line(0), line(top), drawn,
      tick(LEFT, "start", `${minutes} min ago`), tick(W - RIGHT, "end", "now")));
}
