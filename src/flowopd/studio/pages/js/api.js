// Questions to the studio. The token, where one is needed, stays in this tab.

const KEY = "flowopd-studio-token";
let ask = null;

/** What to do when the token is missing or wrong: a function that resolves to a new one. */
export function onTokenNeeded(act) {
  ask = act;
}

function headers(more) {
  const token = sessionStorage.getItem(KEY);
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

async function reach(path, options) {
  let answer = await fetch(`/api/${path}`, { cache: "no-store", ...options, headers: headers(options.headers) });
  while (answer.status === 401) {
    sessionStorage.setItem(KEY, await ask(await reason(answer)));
    answer = await fetch(`/api/${path}`, { cache: "no-store", ...options, headers: headers(options.headers) });
  }
  if (!answer.ok && answer.status !== 304) throw new Error(await reason(answer));
  return answer;
}

async function reason(answer) {
  try {
    return (await answer.json()).error ?? `status ${answer.status}`;
  } catch {
    return `the studio answered with status ${answer.status}`;
  }
}

const known = new Map();

/** JSON at a path. What has not changed since it was last asked for is the same object. */
export async function get(path, signal) {
  const before = known.get(path);
  const answer = await reach(path, { signal, headers: before ? { "If-None-Match": before.tag } : {} });
  if (answer.status === 304) return before.content;
  const content = await answer.json();
  const tag = answer.headers.get("ETag");
  if (tag) {
    known.delete(path);
    known.set(path, { tag, content });
    if (known.size > 40) known.delete(known.keys().next().value);
  }
  return content;
}

const posted = (content, signal) => ({
  method: "POST", body: JSON.stringify(content), signal, headers: { "Content-Type": "application/json" },
});

export const post = async (path, content) => (await reach(path, posted(content))).json();

/** A picture that is asked for by a question: its bytes, and the seconds it took. */
export async function drawn(path, content, signal) {
  const answer = await reach(path, posted(content, signal));
  return { blob: await answer.blob(), seconds: Number(answer.headers.get("X-Seconds")) };
}

/** Show the picture at a path in an image element. */
export async function showPicture(image, path) {
  showBlob(image, await (await reach(path, {})).blob());
}

/** Act when an element comes near the part of the page that is seen. */
export function whenSeen(element, act) {
  const observer = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    act();
  }, { rootMargin: "600px" });
  observer.observe(element);
}

/** Show these bytes in an image element; small pictures keep their pixels. */
export function showBlob(image, blob) {
  const url = URL.createObjectURL(blob);
  image.addEventListener("load", () => {
    image.toggleAttribute("data-large", image.naturalWidth > 256);
    URL.revokeObjectURL(url);
  }, { once: true });
  image.src = url;
}
