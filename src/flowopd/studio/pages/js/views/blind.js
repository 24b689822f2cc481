// Two pictures, their makers hidden until one is picked; the picks are counted.

import { get, post, showPicture } from "../api.js";
import { choice, h, note, put, wide } from "../dom.js";
import { percent, title as named } from "../format.js";

const KEYS = { 1: "left", 2: "right", 0: "tie" };

function tally({ pairs, faults }) {
  if (!pairs.length) return note("Nothing was compared yet.");
  const row = (pair) => h(
    "tr", null, h("th", { scope: "row" }, `${named(pair.first)} over ${named(pair.second)}`),
    h("td", null, String(pair.wins)), h("td", null, String(pair.losses)), h("td", null, String(pair.ties)),
    h("td", null, pair.share === null ? "–" : [percent(pair.share), h("small", null, `${percent(pair.interval[0])} to ${percent(pair.interval[1])}`)]),
    h("td", null, pair.p === null ? "–" : pair.p.toFixed(pair.p < 0.01 ? 4 : 2)),
  );
  return [
    wide(h("table", null, h("caption", null, "Picks so far, kept in preferences.jsonl of the run. Share among decided picks with its 95 % interval (Wilson); p is the chance of a split this uneven between equals (binomial)."),
      h("thead", null, h("tr", null, ["pair", "won", "lost", "ties", "share", "p"].map((label) => h("th", { scope: "col" }, label)))), h("tbody", null, pairs.map(row)))),
    faults ? note(`${faults} lines of the file are no picks and were passed over.`) : null,
  ];
}

/** The blind comparison of a run's models. */
export function duel(run, found, prompts, say) {
  const names = found.models.map((model) => [model.name, named(model.name)]);
  const asked = { first: names.find(([name]) => name === "merge")?.[0] ?? names[0][0], second: names.find(([name]) => name === "student")?.[0] ?? names.at(-1)[0] };
  const own = h("input", { type: "text", maxlength: 2000, placeholder: prompts.length ? "one of the wall's prompts, at random" : "what to draw" });
  const stage = h("div");
  const counted = h("div");
  let trial = null;

  const anyPrompt = () => own.value || prompts[Math.floor(Math.random() * prompts.length)];
  const next = h("button", { type: "button", class: "main", onclick: ask }, "Show a pair");

  async function ask() {
    const prompt = anyPrompt();
    if (!prompt) {
      own.focus();
      say("give a prompt for the comparison", true);
      return;
    }
    next.disabled = true;
    try {
      const question = { models: [asked.first, asked.second], prompt, seed: Math.floor(Math.random() * 1e9), steps: found.steps };
      ({ trial } = await post(`runs/${run}/trials`, question));
      await shown(trial, prompt);
      say("");
    } catch (error) {
      say(error.message, true);
    } finally {
      next.disabled = false;
    }
  }

  async function shown(name, prompt) {
    const sides = ["left", "right"].map((side, i) => {
      const image = h("img", { alt: `${side} picture of: ${prompt}` });
      const caption = h("span", null, side === "left" ? "Left (1)" : "Right (2)");
      return { image, caption, button: h("button", { type: "button", "data-side": side, onclick: () => pick(name, side), "aria-keyshortcuts": String(i + 1) }, image, caption) };
    });
    await Promise.all(sides.map(({ image, button }) => showPicture(image, `trials/${name}/${button.dataset.side}.png`)));
    const tie = h("button", { type: "button", "data-side": "tie", onclick: () => pick(name, "tie"), "aria-keyshortcuts": "0" }, "Equally good (0)");
    put(stage, h("p", null, `Which fits better: “${prompt}”`), h("div", { class: "duel" }, sides.map((side) => side.button)), tie);
    stage.sides = sides;
    sides[0].button.focus();
  }

  async function pick(name, choice_) {
    if (trial !== name) return;
    trial = null;
    try {
      const told = await post(`trials/${name}`, { choice: choice_ });
      stage.sides.forEach(({ caption, button }) => {
        caption.textContent = named(told[button.dataset.side]);
        button.toggleAttribute("data-chosen", told.chosen === told[button.dataset.side]);
      });
      stage.querySelectorAll("button").forEach((button) => { button.disabled = true; });
      put(counted, tally(told));
      say(told.chosen ? `you picked ${named(told.chosen)}` : "a tie");
      next.textContent = "Show another pair";
      next.focus();
    } catch (error) {
      say(error.message, true);
    }
  }

  const area = h("section", { "aria-label": "Blind comparison", onkeydown: (event) => {
    if (trial && event.key in KEYS && event.target.tagName !== "INPUT") pick(trial, KEYS[event.key]);
  } },
  note(`Two pictures of one prompt and seed, in an order that nobody knows. Pick the better one; only then the makers are told. They are drawn as the evaluation draws, in ${found.steps} steps and with every adapter at strength 1, wherever the sliders above stand.`),
  h("div", { class: "tools" }, choice("One", names, asked.first, (value) => { asked.first = value; }), choice("against", names, asked.second, (value) => { asked.second = value; }), h("label", { class: "grow" }, "Prompt", own), next),
  stage, counted);
  get(`runs/${run}/preferences`).then((found_) => put(counted, tally(found_)), (error) => say(error.message, true));
  return area;
}
