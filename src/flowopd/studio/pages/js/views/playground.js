// One prompt and seed through any models side by side, and blind comparisons.

import { drawn, get, showBlob } from "../api.js";
import { h, missing, note, put, settled } from "../dom.js";
import { title as named } from "../format.js";
import { state } from "../state.js";
import { duel } from "./blind.js";

export const title = "Playground";
export const heading = "Playground";
export const ofOneRun = true;

const FIRST_PROMPT = 'a red sign that says "K7"';
const wish = { prompt: null, seed: 0, steps: null, strength: 1 };

function card(model) {
  const image = h("img", { alt: "", hidden: true });
  const blank = h("span", { class: "blank" }, "waits");
  const took = h("small");
  const element = h("li", { class: model.name === "student" ? "own" : null }, image, blank, `${named(model.name)} `, took);
  return {
    element,
    wait() {
      element.classList.add("waiting");
    },
    waits: () => element.classList.contains("waiting"),
    show({ blob, seconds }) {
      element.classList.remove("waiting");
      blank.hidden = true;
      image.hidden = false;
      image.alt = `${wish.prompt}, by ${named(model.name)}`;
      showBlob(image, blob);
      took.textContent = seconds ? `drawn in ${seconds.toFixed(2)} s` : "drawn earlier, and kept";
    },
    fail(reason) {
      element.classList.remove("waiting");
      image.hidden = true;
      blank.hidden = false;
      blank.classList.add("wrong");
      blank.textContent = reason;
    },
  };
}

function field(label, input, output) {
  return h("label", null, h("span", null, label, output ? [" ", output] : null), input);
}

export function open(root, say) {
  const run = encodeURIComponent(state.focus);
  let drawing = null;
  let cards = new Map();

  async function draw(only = () => true) {
    drawing?.abort();
    const { signal } = (drawing = new AbortController());
    const todo = [...cards].filter(([model, one]) => only(model) || one.waits());
    todo.forEach(([, one]) => one.wait());
    for (const [model, one] of todo) {
      if (signal.aborted) return;
      const strength = model.adjustable ? wish.strength : 1;
      try {
        one.show(await drawn(`runs/${run}/draw`, { model: model.name, prompt: wish.prompt, seed: wish.seed, steps: wish.steps, strength }, signal));
      } catch (error) {
        if (error.name === "AbortError") return;
        one.fail(error.message);
      }
    }
  }

  function form(found, shelf) {
    const soon = settled(() => draw((model) => model.adjustable));
    const strength = h("b", null, wish.strength.toFixed(2));
    const steps = h("b", null, String(wish.steps));
    const prompt = h("input", { type: "text", value: wish.prompt, required: true, maxlength: 2000, list: "prompts" });
    const seed = h("input", { type: "number", value: String(wish.seed), min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, required: true });
    const redraw = () => {
      wish.prompt = prompt.value;
      wish.seed = Number(seed.value);
      if (prompt.value && seed.validity.valid) draw();
    };
    const later = settled(redraw, 400);
    const another = () => {
      seed.value = String(Math.floor(Math.random() * 1e6));
      redraw();
    };
    const slide = h("input", { type: "range", min: 0, max: 1.5, step: 0.05, value: String(wish.strength), oninput: (event) => {
      wish.strength = Number(event.target.value);
      strength.textContent = wish.strength.toFixed(2);
      soon();
    } });
    const stepping = h("input", { type: "range", min: 1, max: Math.max(30, found.steps), step: 1, value: String(wish.steps), oninput: (event) => {
      wish.steps = Number(event.target.value);
      steps.textContent = String(wish.steps);
      later();
    } });
    return h(
      "form", { class: "tools", onsubmit: (event) => { event.preventDefault(); redraw(); } },
      h("label", { class: "grow" }, "Prompt", prompt), h("datalist", { id: "prompts" }, shelf.map((value) => h("option", { value }))),
      field("Seed", seed), h("button", { type: "button", onclick: another }, "Another seed"),
      field("Strength of the adapter", slide, strength), field("Steps", stepping, steps),
      h("button", { class: "main" }, "Draw"),
    );
  }

  async function load() {
    put(root, note("Loading the models of this run; the first time takes some seconds."));
    let found;
    let shelf;
    try {
      [found, shelf] = await Promise.all([get(`runs/${run}/models`), get(`runs/${run}/pictures`).then((kept) => kept.rows.map((row) => row.prompt), () => [])]);
    } catch (error) {
      put(root, missing(error.message));
      return;
    }
    wish.prompt ??= shelf.at(-1) ?? FIRST_PROMPT;
    wish.steps ??= found.steps;
    const chosen = new Set(found.models.filter((model) => !model.name.startsWith("checkpoint:")));
    const grid = h("ol", { class: "shots big", "aria-label": "Pictures" });
    const show = () => {
      const before = cards;
      cards = new Map(found.models.filter((model) => chosen.has(model)).map((model) => [model, before.get(model) ?? card(model)]));
      put(grid, [...cards.values()].map((one) => one.element));
      return (model) => !before.has(model);
    };
    const boxes = found.models.map((model) => h("label", null, h("input", { type: "checkbox", checked: chosen.has(model), onchange: (event) => {
      if (event.target.checked) chosen.add(model);
      else chosen.delete(model);
      draw(show());
    } }), named(model.name)));
    put(
      root,
      note(`The same noise through every model, drawn as the evaluation does it (${found.sampler}, guidance ${found.guidance}, on ${found.device}). Strength 0 is the base, 1 the adapter as it is; the base and whole transformers have none. What stands in the prompt at first is an example: write your own.`),
      form(found, shelf), h("fieldset", { class: "checks" }, h("legend", null, "Models"), boxes), grid,
      h("h2", null, "Blind comparison"), duel(run, found, shelf, say),
    );
    show();
    draw();
  }
  load();
  return { close: () => drawing?.abort() };
}
