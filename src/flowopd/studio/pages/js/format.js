// Numbers and names for readers.

const digits = (value) => (Math.abs(value) < 10 ? 3 : 2);
export const number = (value) => (value === null || value === undefined ? "–" : value.toFixed(digits(value)));
export const signed = (value) => (value < 0 ? "−" : "+") + number(Math.abs(value));
export const percent = (share) => (share === null || share === undefined ? "–" : `${Math.round(100 * share)} %`);

/** A number of any size in few characters: 0.0187, 1.2e-6, 12,300. */
export function compact(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(1);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
}

/** A model's name: "teacher:ocr" is the "ocr expert". */
export function title(model) {
  if (model.startsWith("teacher:")) return `${model.slice(8)} expert`;
  if (model.startsWith("checkpoint:")) {
    const [stage, step] = model.slice(11).split(/\/(?=[^/]*$)/);
    return `${stage}, after ${step} updates`;
  }
  return model.replaceAll("_", " ");
}

/** Names of metrics, that of their average first. */
export const averageFirst = (metrics) => [...metrics].sort((a, b) => (b === "average") - (a === "average"));

const UNITS = [["d", "h", 86400, 3600], ["h", "min", 3600, 60], ["min", "s", 60, 1]];

/** Two units of a time: 4 min 53 s. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "…";
  const whole = Math.round(seconds);
  const [unit, small, size, part] = UNITS.find((one) => whole >= one[2]) ?? [];
  return unit ? `${Math.floor(whole / size)} ${unit} ${Math.floor((whole % size) / part)} ${small}` : `${whole} s`;
}

/** How long ago a moment (seconds since 1970) was. */
export function ago(moment) {
  const seconds = Math.max(0, Date.now() / 1000 - moment);
  const [unit, , size] = UNITS.find((one) => seconds >= one[2]) ?? [];
  return unit ? `${Math.floor(seconds / size)} ${unit} ago` : "just now";
}

export const colour = (index) => `var(--s${index % 8})`;
