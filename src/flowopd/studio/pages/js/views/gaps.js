// Where along the path the student still differs from each expert, and how that shrinks.

import { get } from "../api.js";
import { heatMap } from "../chart.js";
import { h, missing, note, put, wide } from "../dom.js";
import { compact } from "../format.js";
import { state } from "../state.js";

export const title = "Gaps";
export const heading = "Gap by expert and step of the path";
export const ofOneRun = true;

const mean = (values) => {
  const there = values.filter((value) => value !== null);
  return there.length ? there.reduce((a, b) => a + b, 0) / there.length : null;
};

function byStep(values, span) {
  const labels = Object.keys(values);
  const means = labels.map((label) => values[label].map((row) => mean(row.slice(...span))));
  return { labels, means, largest: Math.max(0, ...means.flat().filter((value) => value !== null)) };
}

function table(caption, { labels, means }, largest) {
  const steps = means[0]?.map((_, step) => step) ?? [];
  const cell = (value) => h("td", { class: value === null ? "level" : "up", style: { "--tint": String(value > 0 ? Math.sqrt(value / (largest || 1)) : 0) } }, compact(value));
  return h(
    "table", { class: "cells" }, h("caption", null, caption),
    h("thead", null, h("tr", null, h("th", { scope: "col" }, "expert"), steps.map((step) => h("th", { scope: "col" }, `step ${step}`)))),
    h("tbody", null, labels.map((label, i) => h("tr", null, h("th", { scope: "row" }, label), means[i].map(cell)))),
  );
}

export function open(root, say) {
  let before = null;

  async function update() {
    let answer;
    try {
      answer = await get(`runs/${encodeURIComponent(state.focus)}/gaps`);
    } catch (error) {
      say(error.message, true);
      return;
    }
    if (answer === before) return;
    before = answer;
    const labels = Object.keys(answer.values);
    if (!labels.length) {
      put(root, missing(answer.behind ? "Reading the metrics of this run." : "This run has not written gaps by step (gap/LABEL/STEP); distillation does."));
      return;
    }
    const bins = answer.updates.length;
    const tenth = Math.ceil(bins / 10);
    const [first, last] = [byStep(answer.values, [0, tenth]), byStep(answer.values, [-tenth])];
    const largest = Math.max(first.largest, last.largest);
    const peak = Math.max(...labels.flatMap((label) => answer.values[label].flat()).filter((value) => value !== null));
    put(
      root,
      note("Mean squared difference between the velocities of student and expert at the student's own states. Step 0 is noise. A stronger colour is a larger gap, on one scale for all experts."),
      h("h2", null, "Over the updates"),
      h("div", { class: "charts" }, labels.map((label) => h("figure", null, h("figcaption", null, `${label}: steps down, updates ${Math.round(answer.updates[0])} to ${Math.round(answer.updates.at(-1))} across`),
        heatMap(answer.values[label], peak, (i, j, value) => `${label}, step ${i}, update ${Math.round(answer.updates[j])}: ${compact(value)}`)))),
      h("h2", null, "In numbers"),
      wide(table("The first tenth of updates", first, largest)), h("p"), wide(table("The last tenth of updates", last, largest)),
    );
  }
  update();
  return { update };
}
