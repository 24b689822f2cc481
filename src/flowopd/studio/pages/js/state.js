// What the whole page knows: the runs, those that are compared, the one that is looked at.

import { get } from "./api.js";

export const state = { runs: [], behind: 0, chosen: new Set(), focus: null };

const CHOSEN = "flowopd-studio-chosen";
const FIRST = 8;
let started = false;

/** Ask for the runs; true if anything is new. */
export async function refresh() {
  const before = state.runs;
  const answer = await get("runs");
  state.runs = answer.runs;
  state.behind = answer.behind;
  if (!started && state.runs.length) {
    const kept = JSON.parse(sessionStorage.getItem(CHOSEN) ?? "null");
    const ids = kept?.filter((id) => byId(id)) ?? [];
    state.chosen = new Set(ids.length ? ids : newest().slice(0, FIRST).map((run) => run.id));
    started = true;
  }
  if (!byId(state.focus)) state.focus = newest()[0]?.id ?? null;
  return before !== state.runs || state.behind > 0;
}

export const byId = (id) => state.runs.find((run) => run.id === id);
export const newest = () => [...state.runs].sort((a, b) => b.changed - a.changed);

/** The runs that are compared, in the table's order. */
export const compared = () => state.runs.filter((run) => state.chosen.has(run.id));

export function choose(id, on) {
  if (on) state.chosen.add(id);
  else state.chosen.delete(id);
  sessionStorage.setItem(CHOSEN, JSON.stringify([...state.chosen]));
}

/** The place of a run in the table, which gives it its colour everywhere. */
export const place = (id) => state.runs.findIndex((run) => run.id === id);
