// The runs side by side.

import { h, keepingFocus, missing, note, put, wide } from "../dom.js";
import { ago, averageFirst, colour, compact, duration, number, percent } from "../format.js";
import { choose, place, state } from "../state.js";

export const title = "Runs";
export const heading = "Runs";

const mean = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : null);
const closed = (run) => mean(Object.values(run.gap_closed).filter((share) => share !== null));
const score = (metric) => ({
  key: metric, label: metric, value: (run) => run.scores[metric]?.[0] ?? null,
  cell: (run) => (run.scores[metric] ? [number(run.scores[metric][0]), h("small", null, `± ${number((run.scores[metric][2] - run.scores[metric][1]) / 2)}`)] : "–"),
});

const LEFT = [
  { key: "state", label: "state", name: true, value: (run) => run.state, cell: (run) => h("span", { class: `state ${run.state}` }, run.state) },
  { key: "closed", label: "gap closed", value: closed, cell: (run) => percent(closed(run)) },
];
const RIGHT = [
  { key: "stage", label: "stage", name: true, value: (run) => run.stage ?? "", cell: (run) => run.stage ?? "–" },
  { key: "updates", label: "updates", value: (run) => run.updates, cell: (run) => (run.updates === null ? "–" : [run.updates.toLocaleString("en"), run.planned ? h("small", null, `of ${run.planned.toLocaleString("en")}`) : null]) },
  { key: "gap", label: "gap", value: (run) => run.gap, cell: (run) => compact(run.gap) },
  { key: "seconds", label: "time", value: (run) => run.seconds, cell: (run) => duration(run.seconds) },
  { key: "changed", label: "last written", value: (run) => run.changed, cell: (run) => ago(run.changed) },
];
const NAME = { key: "name", label: "run", name: true, value: (run) => run.name };

let order = { key: "changed", down: true };

const metrics = () => averageFirst([...new Set(state.runs.flatMap((run) => Object.keys(run.scores)))]);

function sorted(columns) {
  const { value } = columns.find((column) => column.key === order.key) ?? NAME;
  const sign = order.down ? -1 : 1;
  return [...state.runs].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
  });
}

function row(run, columns) {
  const check = h("input", { type: "checkbox", checked: state.chosen.has(run.id), "aria-label": `compare ${run.name}`, "data-key": `compare ${run.id}`, onchange: (event) => choose(run.id, event.target.checked) });
  const link = h("a", { href: `#/playground?run=${encodeURIComponent(run.id)}`, "data-key": `open ${run.id}` }, run.name);
  const faults = run.faults.map((fault) => h("small", null, fault));
  return h(
    "tr", null,
    h("td", null, check),
    h("th", { scope: "row" }, h("span", { class: "swatch", style: { "--colour": colour(place(run.id)) } }), " ", link, h("small", null, run.model && run.model !== "student" ? `scores of ${run.model}` : null), faults),
    columns.slice(1).map((column) => h("td", { class: column.name ? "name" : null }, column.cell(run))),
  );
}

function head(column, redraw) {
  const sort = order.key === column.key ? (order.down ? "descending" : "ascending") : null;
  const press = () => {
    order = { key: column.key, down: order.key === column.key ? !order.down : !column.name };
    redraw();
  };
  return h("th", { scope: "col", class: column.name ? "name" : null, "aria-sort": sort }, h("button", { type: "button", "data-key": `sort ${column.key}`, onclick: press }, column.label));
}

export function open(root) {
  function draw() {
    if (!state.runs.length) {
      put(root, missing("There is no run here yet. Start one, and it appears: ", h("code", null, "flowopd demo"), "."));
      return;
    }
    const columns = [NAME, ...LEFT, ...metrics().map(score), ...RIGHT];
    const table = h(
      "table", { class: "full" },
      h("caption", null, `${state.runs.length} ${state.runs.length === 1 ? "run" : "runs"}; scores are the student's, with half of the 95 % interval.`),
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "compare"), columns.map((column) => head(column, draw)))),
      h("tbody", null, sorted(columns).map((run) => row(run, columns))),
    );
    keepingFocus(root, () => put(root, note("Those that are ticked are drawn together under Curves. A run's name opens its playground."), wide(table)));
  }
  draw();
  return { update: draw };
}
