// Requests to the service, with a key where it asks for one. The key lives as long as the tab.

const NAME = "clipray-key";
const held = new Map(); // picture → what ends its request and frees its bytes

let key = stored((storage) => storage.getItem(NAME)) ?? "";

export class Refusal extends Error {
  constructor(message, { type, status, wait } = {}) {
    super(message);
    Object.assign(this, { type, status, wait });
  }
}

export async function ask(path, body, signal) {
  const post = { method: "POST", headers: { "content-type": "application/json" } };
  const response = await send(path, { signal, ...(body && { ...post, body: JSON.stringify(body) }) });
  const reply = await response.text().then(parse).catch(() => null);
  if (response.ok && reply) return reply;
  const { status } = response;
  const { type, message } = reply?.error ?? {};
  const wait = Number(response.headers.get("retry-after")); // a date, which is rare, is NaN
  throw new Refusal(message ?? `The service answered with status ${status}.`, { type, status, wait });
}

export function hasKey() {
  return key !== "";
}

export function useKey(given) {
  key = given;
  stored((storage) => (key ? storage.setItem(NAME, key) : storage.removeItem(NAME)));
}

// The address of a picture cannot carry a key, so with one its bytes are fetched.
export async function showPicture(picture, path) {
  if (!hasKey()) {
    picture.src = path;
    return;
  }
  const hold = new AbortController();
  held.set(picture, hold);
  try {
    const response = await send(path, { signal: hold.signal });
    if (!response.ok) throw new Refusal(`Status ${response.status}`);
    const bytes = await response.blob();
    hold.signal.throwIfAborted();
    const url = URL.createObjectURL(bytes);
    hold.signal.addEventListener("abort", () => URL.revokeObjectURL(url));
    picture.src = url;
  } catch {
    if (!hold.signal.aborted) picture.dispatchEvent(new Event("error"));
  }
}

export function letGo(container) {
  for (const [picture, hold] of held) {
    if (!container.contains(picture)) continue;
    hold.abort();
    held.delete(picture);
  }
}

function send(path, { headers, ...options }) {
  const access = key && { authorization: `Bearer ${key}` };
  return fetch(path, { ...options, headers: { ...headers, ...access } }).catch(() => {
    throw new Refusal("The service cannot be reached.");
  });
}

// Whole numbers that JavaScript would round stay as they were written.
function parse(text) {
  return JSON.parse(text, (name, value, context) => {
    const rounded = typeof value === "number" && Math.abs(value) > Number.MAX_SAFE_INTEGER;
    return rounded && context?.source ? context.source : value;
  });
}

function stored(act) {
  try {
    return act(sessionStorage);
  } catch { // a browser that keeps nothing
    return null;
  }
}
