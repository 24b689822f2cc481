// Elements without a framework. Text is always text: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else if (name === "value" || name === "checked" || name === "disabled") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An HTML element: h("p", {class: "note"}, "text", other). */
export const h = (tag, props, ...children) => fill(document.createElement(tag), props, children);

/** An SVG element. */
export const s = (tag, props, ...children) => fill(document.createElementNS(SVG, tag), props, children);

/** Put these in place of what an element holds. */
export function put(element, ...children) {
  element.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
}

/** Draw anew what is inside an element; what had the focus by its data-key has it again. */
export function keepingFocus(element, draw) {
  const key = element.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  draw();
  if (key !== undefined) element.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

export const note = (...text) => h("p", { class: "note" }, ...text);
export const missing = (...text) => h("p", { class: "missing" }, ...text);

/** A table that scrolls by itself where the page is narrow. */
export const wide = (table) => h("div", { class: "wide", tabindex: "0", "data-key": "table", role: "region", "aria-label": "table, scrolls sideways" }, table);

/** A labelled select: choices are values, or [value, text]. */
export function choice(label, choices, value, onchange) {
  const options = choices.map((one) => (Array.isArray(one) ? one : [one, one]));
  const select = h("select", { "data-key": label, onchange: () => onchange(select.value) }, options.map(([v, text]) => h("option", { value: v }, text)));
  if (options.some(([v]) => v === value)) select.value = value;
  return h("label", null, label, select);
}

/** Call later, and only for the last of calls that follow each other closely. */
export function settled(act, wait = 150) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...args), wait);
  };
}
