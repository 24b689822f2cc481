// The pictures that a run keeps, and one prompt through its checkpoints.

import { drawn, get, showBlob, showPicture, whenSeen } from "../api.js";
import { h, missing, note, put } from "../dom.js";
import { title as named } from "../format.js";
import { state } from "../state.js";

export const title = "Pictures";
export const heading = "Pictures";
export const ofOneRun = true;

const STARTS = ["merge", "sft"];

function kept(run, path, alt, label, own) {
  const image = h("img", { alt });
  const wrong = (error) => image.replaceWith(h("span", { class: "blank wrong" }, error.message));
  whenSeen(image, () => showPicture(image, `runs/${run}/picture?path=${encodeURIComponent(path)}`).catch(wrong));
  return h("li", { class: own ? "own" : null }, image, label);
}

function wall(run, found) {
  return found.rows.map((row) => h(
    "figure", null, h("figcaption", null, row.prompt),
    h("ol", { class: "shots" }, found.models.map((model) => (row.pictures[model]
      ? kept(run, row.pictures[model], `${row.prompt}, by ${named(model)}`, named(model), model === "student")
      : h("li", null, h("span", { class: "blank" }, "no picture"), named(model))))),
  ));
}

/** A form that draws one prompt by everything from the cold start over the checkpoints to the student. */
function overTime(run, prompts, say, alive) {
  const prompt = h("input", { type: "text", value: prompts[0] ?? "", required: true, maxlength: 2000, list: "wall-prompts" });
  const strip = h("ol", { class: "shots big" });
  const button = h("button", { class: "main" }, "Draw");

  async function draw(event) {
    event.preventDefault();
    button.disabled = true;
    say("loading the models of this run");
    try {
      const { models, steps } = await get(`runs/${run}/models`);
      const names = models.map((model) => model.name);
      const path = [...names.filter((name) => STARTS.includes(name)), ...names.filter((name) => name.startsWith("checkpoint:distill/")), ...names.filter((name) => name === "student")];
      put(strip, path.length ? [] : h("li", null, "This run has neither a cold start nor checkpoints of a distillation."));
      for (const model of path) {
        if (!alive()) return;
        const image = h("img", { alt: `${prompt.value}, by ${named(model)}` });
        showBlob(image, (await drawn(`runs/${run}/draw`, { model, prompt: prompt.value, seed: 0, steps })).blob);
        strip.append(h("li", { class: model === "student" ? "own" : null }, image, named(model)));
      }
      say("");
    } catch (error) {
      say(error.message, true);
    } finally {
      button.disabled = false;
    }
  }
  return [
    h("form", { class: "tools", onsubmit: draw }, h("label", { class: "grow" }, "Prompt", prompt), h("datalist", { id: "wall-prompts" }, prompts.map((value) => h("option", { value }))), button),
    strip,
  ];
}

export function open(root, say) {
  const run = encodeURIComponent(state.focus);
  let open_ = true;

  async function load() {
    try {
      const found = await get(`runs/${run}/pictures`);
      const others = Object.entries(found.others);
      put(
        root,
        h("h2", null, "Over time"),
        note("Training itself keeps no pictures, but checkpoints can draw: one prompt and seed 0 from the cold start over the checkpoints that were kept to the student."),
        overTime(run, found.rows.map((row) => row.prompt), say, () => open_),
        h("h2", null, "The wall"),
        found.rows.length ? [note("One prompt and seed through every model, drawn by the evaluation."), wall(run, found)] : missing("samples/index.json is missing: the evaluation draws the wall."),
        others.map(([folder, paths]) => [h("h2", null, folder === "." ? "In the run's folder" : folder), h("ol", { class: "shots big" }, paths.map((path) => kept(run, path, path, path.split("/").at(-1))))]),
      );
    } catch (error) {
      say(error.message, true);
    }
  }
  load();
  return { close: () => { open_ = false; } };
}
