// Curves of several runs, live while they train.

import { get } from "../api.js";
import { lineChart } from "../chart.js";
import { choice, h, keepingFocus, missing, note, put, wide } from "../dom.js";
import { colour, compact } from "../format.js";
import { choose, compared, place, state } from "../state.js";

export const title = "Curves";
export const heading = "Curves";

const FIRST = ["gap", "reward", "loss"];
const picked = { stage: null, key: null, log: true };

const list = () => compared().map((run) => encodeURIComponent(run.id)).join(",");

export function open(root, say) {
  const chart = lineChart("Curves of the compared runs", "update");
  const tools = h("div", { class: "tools" });
  const runs = h("fieldset", { class: "checks" });
  const last = h("tbody");
  const table = h("table", null, h("caption", null, "The same as numbers"), h("thead", null, h("tr", null, ["run", "updates", "last", "smallest", "largest"].map((label) => h("th", { scope: "col" }, label)))), last);
  const hint = h("div");
  put(root, note("One quantity of the runs that are ticked. A band is the range where neighbouring updates were gathered into one point."), tools, h("figure", null, chart.element), hint, runs, wide(table));
  let keys = {};
  let shape = "";

  function controls() {
    const stages = Object.keys(keys);
    if (!stages.includes(picked.stage)) picked.stage = stages.includes("distill") ? "distill" : stages[0] ?? null;
    const names = keys[picked.stage] ?? [];
    if (!names.includes(picked.key)) picked.key = FIRST.find((key) => names.includes(key)) ?? names[0] ?? null;
    const fresh = JSON.stringify([keys, picked]);
    if (fresh === shape) return;
    shape = fresh;
    const again = (part) => (value) => {
      picked[part] = value;
      controls();
      fetchCurves();
    };
    const log = h("input", { type: "checkbox", checked: picked.log, "data-key": "log", onchange: (event) => again("log")(event.target.checked) });
    keepingFocus(tools, () => put(tools, choice("Stage", stages, picked.stage, again("stage")), choice("Quantity", names, picked.key, again("key")), h("label", { class: "check" }, log, "logarithmic")));
  }

  function chooser() {
    const boxes = state.runs.map((run) => {
      const change = (event) => {
        choose(run.id, event.target.checked);
        update();
      };
      return h("label", null, h("input", { type: "checkbox", checked: state.chosen.has(run.id), "data-key": run.id, onchange: change }), h("span", { class: "swatch", style: { "--colour": colour(place(run.id)) } }), run.name);
    });
    keepingFocus(runs, () => put(runs, h("legend", null, "Runs"), boxes));
  }

  async function fetchCurves() {
    if (!picked.stage || !picked.key || !compared().length) {
      show({});
      return;
    }
    const query = `curves?runs=${list()}&stage=${encodeURIComponent(picked.stage)}&key=${encodeURIComponent(picked.key)}`;
    try {
      show((await get(query)).curves);
    } catch (error) {
      say(error.message, true);
    }
  }

  function show(curves) {
    const lines = compared().filter((run) => curves[run.id]).map((run) => ({ name: run.name, colour: colour(place(run.id)), ...curves[run.id] }));
    chart.show(lines, picked.log);
    put(hint, lines.length ? [] : missing(compared().length ? "None of these runs has written this quantity yet." : "Tick a run to draw its curves."));
    put(last, lines.map((line) => {
      const ends = [line.mean.at(-1), Math.min(...(line.low ?? line.mean)), Math.max(...(line.high ?? line.mean))];
      return h("tr", null, h("th", { scope: "row" }, line.name), h("td", null, line.updates.toLocaleString("en")), ends.map((value) => h("td", null, compact(value))));
    }));
  }

  async function update() {
    chooser();
    try {
      keys = compared().length ? await get(`keys?runs=${list()}`) : {};
    } catch (error) {
      say(error.message, true);
    }
    controls();
    await fetchCurves();
  }
  update();
  return { update };
}
