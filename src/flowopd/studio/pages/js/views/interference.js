// How the experts' weight changes lie to each other.

import { get } from "../api.js";
import { h, missing, note, put, wide } from "../dom.js";
import { number, signed } from "../format.js";
import { state } from "../state.js";

export const title = "Interference";
export const heading = "Interference between the experts";
export const ofOneRun = true;

const tint = (value, largest) => ({ class: value > 0 ? "up" : "down", style: { "--tint": String(Math.abs(value) / (largest || 1)) } });

function together(found) {
  const { names, cosines, norms } = found;
  return h(
    "table", { class: "cells" },
    h("caption", null, "Cosine of the weight changes of two experts over all layers, and the size of each"),
    h("thead", null, h("tr", null, h("th", { scope: "col" }, "expert"), names.map((name) => h("th", { scope: "col" }, name)), h("th", { scope: "col" }, "norm"))),
    h("tbody", null, names.map((name, i) => h("tr", null, h("th", { scope: "row" }, name), names.map((_, j) => (i === j ? h("td", { class: "level" }, "1") : h("td", tint(cosines[i][j], 1), signed(cosines[i][j])))), h("td", null, number(norms[i]))))),
  );
}

function byModule(found) {
  const pairs = found.names.flatMap((name, i) => found.names.slice(i + 1).map((other) => `${name} · ${other}`));
  const largest = Math.max(1e-9, ...found.modules.flatMap((module) => module.cosines.map(Math.abs)));
  const row = (module) => h("tr", null, h("th", { scope: "row" }, module.name), module.cosines.map((value) => h("td", tint(value, largest), signed(value))), module.norms.map((value) => h("td", null, number(value))));
  return h(
    "table", { class: "cells" },
    h("caption", null, `Layer by layer; the deepest tint is a cosine of ${number(largest)}`),
    h("thead", null, h("tr", null, h("th", { scope: "col" }, "layer"), pairs.map((pair) => h("th", { scope: "col" }, pair)), found.names.map((name) => h("th", { scope: "col" }, `norm of ${name}`)))),
    h("tbody", null, found.modules.map(row)),
  );
}

export function open(root, say) {
  async function load() {
    try {
      const found = await get(`runs/${encodeURIComponent(state.focus)}/interference`);
      if (!found) put(root, missing("This run has no merge of its experts (coldstart/merge.json): the cold start makes one, ", h("code", null, "coldstart: {kind: merge}"), "."));
      else put(root, note("1 pulls the same way (green), 0 does not touch, below 0 pulls apart (orange). Experts that pull apart lose in a merge; distillation does not add their weights."), wide(together(found)), found.modules.length ? [h("h2", null, "By layer"), wide(byModule(found))] : null);
    } catch (error) {
      say(error.message, true);
    }
  }
  load();
  return {};
}
