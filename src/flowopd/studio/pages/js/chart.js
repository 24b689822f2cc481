// Line charts and heat maps in SVG, read by eye, by pointer and by keyboard.

import { h, put, s } from "./dom.js";
import { compact } from "./format.js";

const MARGIN = { top: 10, right: 12, bottom: 30, left: 52 };

/** About `count` round numbers within [low, high]. */
export function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** Round numbers within [low, high] for a logarithmic axis; of a short range, evenly spaced ones. */
export function powers(low, high) {
  const all = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    all.push(...[1, 2, 5].map((factor) => factor * 10 ** power));
  }
  const within = all.filter((one) => one >= low && one <= high);
  if (within.length < 3) return ticks(low, high, 5);
  return within.length > 6 ? within.filter((one) => Number.isInteger(Math.round(1e6 * Math.log10(one)) / 1e6)) : within;
}

/** Where a value lies between the ends of an axis, 0 to 1. */
function scale([low, high], log) {
  const map = log ? Math.log : (value) => value;
  const [from, to] = [map(low), map(high)];
  return (value) => (map(value) - from) / (to - from || 1);
}

function extent(values, log) {
  const fit = values.filter((value) => value !== null && (!log || value > 0));
  const [low, high] = [fit.reduce((a, b) => Math.min(a, b), Infinity), fit.reduce((a, b) => Math.max(a, b), -Infinity)];
  if (!(low <= high)) return log ? [0.1, 1] : [0, 1];
  if (low < high) return [low, high];
  return log ? [low / 2, high * 2] : [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
}

/**
 * Lines {name, colour, steps, mean, low, high} over updates; `log` for the height.
 * Returns {element, show(lines, log)}: showing again keeps the reader's place.
 */
export function lineChart(label, unit) {
  const svg = s("svg", { height: 260, "aria-hidden": "true" });
  const readout = h("p", { class: "readout", "aria-live": "polite" });
  const element = h("div", { class: "chart", tabindex: "0", role: "group", "aria-label": `${label}; arrow keys read its values` }, svg, readout);
  let lines = [];
  let log = false;
  let at = null;
  let axes = null;

  function draw() {
    const width = Math.max(240, element.clientWidth);
    const height = 260;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const x = extent(lines.flatMap((line) => [line.steps[0], line.steps.at(-1)]), false);
    const y = extent(lines.flatMap((line) => [...(line.low ?? line.mean), ...(line.high ?? line.mean)]), log);
    const [across, up] = [scale(x, false), scale(y, log)];
    axes = {
      x: (value) => MARGIN.left + across(value) * (width - MARGIN.left - MARGIN.right),
      y: (value) => height - MARGIN.bottom - up(value) * (height - MARGIN.top - MARGIN.bottom),
      width, height,
    };
    const rows = (log ? powers(...y) : ticks(...y, 5)).map((value) => [
      s("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: axes.y(value), y2: axes.y(value) }),
      s("text", { x: MARGIN.left - 6, y: axes.y(value) + 4, "text-anchor": "end" }, compact(value)),
    ]);
    const columns = ticks(...x, width / 110).map((value) => s("text", { x: axes.x(value), y: height - 12, "text-anchor": "middle" }, compact(value)));
    put(svg, rows, columns, s("text", { x: width - MARGIN.right, y: height - 1, "text-anchor": "end" }, unit), lines.map(line => path(line)), cursor());
  }

  const fit = (value) => value !== null && (!log || value > 0);

  function path(line) {
    const points = line.steps.map((step, i) => [step, i]).filter(([, i]) => fit(line.mean[i]));
    const middle = points.map(([step, i]) => `${axes.x(step).toFixed(1)},${axes.y(line.mean[i]).toFixed(1)}`).join(" ");
    const drawn = [s("polyline", { class: "line", points: middle, style: { stroke: line.colour } })];
    if (line.low) {
      const ranged = points.filter(([, i]) => fit(line.low[i]) && fit(line.high[i]));
      const edge = (side, list) => list.map(([step, i]) => `${axes.x(step).toFixed(1)},${axes.y(line[side][i]).toFixed(1)}`);
      const band = [...edge("high", ranged), ...edge("low", [...ranged].reverse())].join(" ");
      drawn.unshift(s("polygon", { class: "band", points: band, style: { fill: line.colour } }));
    }
    if (points.length === 1) drawn.push(s("circle", { cx: axes.x(points[0][0]), cy: axes.y(line.mean[points[0][1]]), r: 3, style: { fill: line.colour } }));
    return drawn;
  }

  const cursor = () => at !== null && s("line", { class: "cursor", x1: axes.x(at), x2: axes.x(at), y1: MARGIN.top, y2: axes.height - MARGIN.bottom });

  const nearest = (line) => line.steps.reduce((best, step, i) => (Math.abs(step - at) < Math.abs(line.steps[best] - at) ? i : best), 0);

  function read() {
    const items = at === null ? [] : lines.map((line) => {
      const i = nearest(line);
      const range = line.low && line.low[i] !== line.high[i] ? ` (${compact(line.low[i])} to ${compact(line.high[i])})` : "";
      return h("span", null, h("span", { class: "swatch", style: { "--colour": line.colour } }), ` ${line.name} ${compact(line.mean[i])}${range}`);
    });
    put(readout, at === null ? [] : h("b", null, `update ${Math.round(at)}`), items);
  }

  function move(to) {
    at = to;
    draw();
    read();
  }

  svg.addEventListener("pointermove", (event) => {
    if (!axes || !lines.length) return;
    const wanted = event.clientX - svg.getBoundingClientRect().left;
    const steps = lines.flatMap((line) => line.steps);
    move(steps.reduce((best, step) => (Math.abs(axes.x(step) - wanted) < Math.abs(axes.x(best) - wanted) ? step : best), steps[0]));
  });
  element.addEventListener("keydown", (event) => {
    const steps = [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
    const here = at === null ? -1 : steps.findIndex((step) => step >= at);
    const jump = Math.max(1, Math.round(steps.length / 10));
    const moves = { ArrowRight: here + 1, ArrowLeft: here - 1, PageDown: here + jump, PageUp: here - jump, Home: 0, End: steps.length - 1 };
    if (!(event.key in moves) || !steps.length) return;
    event.preventDefault();
    move(steps[Math.max(0, Math.min(steps.length - 1, moves[event.key]))]);
  });
  new ResizeObserver(() => lines.length && draw()).observe(element);

  function show(next, isLog) {
    [lines, log] = [next, isLog];
    draw();
    read();
  }
  return { element, show };
}

/** A heat map (rows, columns) on a shared scale: a stronger colour is more, nothing where there is no value. */
export function heatMap(rows, largest, describe) {
  const readout = h("p", { class: "readout" });
  const height = rows.length * 16 + 4;
  const svg = s("svg", { height, "aria-hidden": "true" });
  const element = h("div", null, svg, readout);

  function draw() {
    const width = Math.max(200, element.clientWidth);
    const cell = (width - 30) / Math.max(1, rows[0]?.length ?? 0);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    put(svg, rows.map((row, i) => [
      s("text", { x: 22, y: i * 16 + 12, "text-anchor": "end" }, String(i)),
      row.map((value, j) => value !== null && s("rect", {
        x: 28 + j * cell, y: i * 16, width: Math.max(0.5, cell - 0.6), height: 15,
        style: { fill: "var(--s0)", "fill-opacity": String(0.05 + (value > 0 ? 0.95 * Math.sqrt(value / (largest || 1)) : 0)) },
        onpointerenter: () => put(readout, describe(i, j, value)),
      })),
    ]));
  }
  new ResizeObserver(draw).observe(element);
  return element;
}
