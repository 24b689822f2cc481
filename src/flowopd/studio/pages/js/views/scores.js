// What every model gained and forgot against the base.

import { get } from "../api.js";
import { h, missing, note, put, wide } from "../dom.js";
import { averageFirst, number, percent, signed, title as named } from "../format.js";
import { state } from "../state.js";

export const title = "Forgetting";
export const heading = "What was gained, and what was forgotten";
export const ofOneRun = true;

const head = (first, labels) => h("thead", null, h("tr", null, h("th", { scope: "col", class: "name" }, first), labels.map((label) => h("th", { scope: "col" }, label))));
const own = (model) => (model === "student" ? "own" : null);

function change(one) {
  if (!one) return h("td", null, "–");
  const [difference, tint, clear] = one;
  if (!clear) return h("td", { class: "level" }, signed(difference));
  return h("td", { class: difference > 0 ? "up" : "down", style: { "--tint": String(tint) } }, signed(difference));
}

function estimate(one, best) {
  if (!one) return h("td", null, "–");
  const text = number(one[0]);
  return h("td", null, one[0] === best ? h("b", null, text) : text, h("small", null, `${number(one[1])} to ${number(one[2])}`));
}

const shareOf = (share, reason) => (share === null && reason ? h("td", { class: "reason" }, reason) : h("td", null, percent(share)));

function tables(found) {
  const metrics = averageFirst(found.metrics);
  const best = Object.fromEntries(metrics.map((metric) => [metric, Math.max(...Object.values(found.models).map((row) => row[metric]?.[0] ?? -Infinity))]));
  const closed = Object.entries(found.gap_closed);
  return [
    note("Change of the mean from the base: green is better, orange is worse, deeper is more within its column. Grey and without a tint: the interval overlaps the base's, or there are too few prompts."),
    Object.keys(found.changes).length
      ? wide(h("table", { class: "cells" }, head("model", metrics), h("tbody", null, Object.entries(found.changes).map(([model, row]) => h("tr", { class: own(model) }, h("th", { scope: "row" }, named(model)), metrics.map((metric) => change(row[metric])))))))
      : missing("The results have no base to compare with, or nothing besides it."),
    h("h2", null, "Scores"),
    note("Mean, and 95 % interval over prompts; larger is better."),
    wide(h("table", { class: "full" }, head("model", metrics), h("tbody", null, Object.entries(found.models).map(([model, row]) => h("tr", { class: own(model) }, h("th", { scope: "row" }, named(model)), metrics.map((metric) => estimate(row[metric], best[metric]))))))),
    closed.length ? [
      h("h2", null, "Gap closed"),
      note("(student − base) / (expert − base) on the expert's own metric: 0 % is the base, 100 % the expert."),
      wide(h("table", null, head("metric", ["share", "expert"]), h("tbody", null, closed.map(([metric, share]) => h("tr", null, h("th", { scope: "row" }, metric), shareOf(share, found.reasons[metric]), h("td", null, found.owners[metric] ?? "–")))))),
    ] : null,
  ];
}

export function open(root, say) {
  let before;

  async function update() {
    try {
      const found = await get(`runs/${encodeURIComponent(state.focus)}/scores`);
      const text = JSON.stringify(found);
      if (text === before) return;
      before = text;
      put(root, found ? tables(found) : missing("This run was not evaluated yet: ", h("code", null, "flowopd eval"), "."));
    } catch (error) {
      say(error.message, true);
    }
  }
  update();
  return { update };
}
