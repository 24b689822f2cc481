// The frame: pages by address, the run that is looked at, and one clock that asks what is new.

import { onTokenNeeded } from "./api.js";
import { h, put } from "./dom.js";
import { byId, newest, refresh, state } from "./state.js";
import * as curves from "./views/curves.js";
import * as gaps from "./views/gaps.js";
import * as interference from "./views/interference.js";
import * as pictures from "./views/pictures.js";
import * as playground from "./views/playground.js";
import * as runs from "./views/runs.js";
import * as scores from "./views/scores.js";

const VIEWS = { runs, curves, pictures, gaps, forgetting: scores, interference, playground };
const EVERY = 1000;
const BEHIND = 150;

const main = document.getElementById("main");
const status = document.getElementById("status");
const focus = document.getElementById("focus");
const focusRun = document.getElementById("focus-run");
let current = null;
let shown = "";

function route() {
  const [name, query] = location.hash.replace(/^#\/?/, "").split("?");
  return { name: name in VIEWS ? name : "runs", run: new URLSearchParams(query ?? "").get("run") };
}

const address = (name) => (state.focus && VIEWS[name].ofOneRun ? `#/${name}?run=${encodeURIComponent(state.focus)}` : `#/${name}`);

function frame(name) {
  put(
    document.getElementById("pages"),
    Object.entries(VIEWS).map(([key, view]) => h("a", { href: address(key), "aria-current": key === name ? "page" : null }, view.title)),
  );
  focus.hidden = !VIEWS[name].ofOneRun || state.runs.length === 0;
  put(focusRun, newest().map((run) => h("option", { value: run.id }, run.name)));
  focusRun.value = state.focus ?? "";
}

function open(moved) {
  const { name, run } = route();
  if (byId(run)) state.focus = run;
  frame(name);
  const key = VIEWS[name].ofOneRun ? `${name} ${state.focus}` : name;
  if (key === shown) return;
  current?.close?.();
  shown = key;
  document.title = `${VIEWS[name].title} – flowopd studio`;
  const heading = h("h1", { tabindex: "-1" }, VIEWS[name].heading);
  const root = h("div");
  put(main, heading, root);
  if (moved) heading.focus();
  current = state.runs.length || !VIEWS[name].ofOneRun ? VIEWS[name].open(root, say) : null;
}

/** A line for everybody, read aloud; an error stays until the next answer. */
function say(text, wrong = false) {
  status.classList.toggle("wrong", wrong);
  if (status.textContent !== text) status.textContent = text;
}

async function tick() {
  let wait = EVERY;
  if (!document.hidden) {
    try {
      const before = state.runs.length;
      const fresh = await refresh();
      if (before === 0 && state.runs.length) shown = "";
      if (fresh) {
        open(false);
        await current?.update?.();
      }
      if (state.behind) say(`reading metrics: ${(state.behind / 2 ** 20).toFixed(0)} MB to go`);
      else if (!status.classList.contains("wrong") || fresh) say("");
      wait = state.behind ? BEHIND : EVERY;
    } catch (error) {
      say(error instanceof TypeError ? "the studio does not answer; start it again: flowopd studio" : error.message, true);
    }
  }
  setTimeout(tick, wait);
}

function askForToken(reason) {
  return new Promise((resolve) => {
    const input = h("input", { type: "password", autocomplete: "off", required: true });
    const form = h("form", { method: "dialog" }, h("p", null, reason), h("label", { class: "field" }, "Token", input), h("p", null, h("button", { class: "main" }, "Open")));
    const dialog = h("dialog", { "aria-label": "Token" }, form);
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(input.value);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

onTokenNeeded(askForToken);
addEventListener("hashchange", () => open(true));
focusRun.addEventListener("change", () => {
  location.hash = `#/${route().name}?run=${encodeURIComponent(focusRun.value)}`;
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
tick();
