// The page of clipray. The hash of the URL says what is searched for: every action writes the
// hash, and the page is drawn from it. So a search can be shared as a link, and "back" works.

const PAGE = 30;
const MOST = 300;
const MAX_TEXT = 2000;
const MIB = 2 ** 20;
const MAX_IMAGE_BYTES = 20 * MIB;
const MAX_IMAGES = 20; // kept for "back"
const SHRINK_BYTES = 4 * MIB;
const SHRINK_SIDE = 1024; // models see a few hundred pixels; more is only upload time
const LESS_WEIGHT = -0.5;
const SERVER_READS = /^image\/(jpeg|png|webp|gif|bmp|tiff)$/;
const NOTHING = { text: "", image: "", like: "", less: [] };

const page = Object.fromEntries([...document.querySelectorAll("[id]")].map((e) => [e.id, e]));
const findButtons = [...document.querySelectorAll("[name=find]")];
const images = new Map(); // token → {name, url}: a link cannot carry an image, only name it
const seen = new Map(); // key → match, so that chips can show more than a key

let indices = [];
let query = { ...NOTHING };
let shown = { matches: [], reply: null };
let running = new AbortController();

// ---- what is searched for ------------------------------------------------------------------

function readHash() {
  const fields = new URLSearchParams(location.hash.slice(1));
  const index = indices.find(({ name }) => name === fields.get("index")) ?? indices[0];
  const find = fields.get("find");
  return {
    text: (fields.get("q") ?? "").slice(0, MAX_TEXT),
    image: fields.get("image") ?? "",
    like: fields.get("like") ?? "",
    less: fields.getAll("less"),
    index: index.name,
    find: Object.hasOwn(index.modalities, find) ? find : firstOf(index),
    threshold: Math.min(1, Math.max(0, Number(fields.get("min")) || 0)),
  };
}

function hashOf({ text, image, like, less, index, find, threshold }) {
  const fields = new URLSearchParams();
  if (text) fields.set("q", text);
  if (image) fields.set("image", image);
  if (like) fields.set("like", like);
  for (const key of less) fields.append("less", key);
  if (index !== indices[0].name) fields.set("index", index);
  if (find !== firstOf(indexNamed(index))) fields.set("find", find);
  if (threshold) fields.set("min", threshold);
  return `#${fields}`;
}

// Takes the words in the box along, so that no action loses what was typed but not yet sent.
function go(changes, { replace = false } = {}) {
  if (!indices.length) return;
  const wanted = { ...query, text: page.box.value.trim(), ...changes };
  if (!images.has(wanted.image)) wanted.image = ""; // came with a link, which cannot carry it
  const hash = hashOf(wanted);
  if (hash !== (location.hash || "#")) {
    const url = hash === "#" ? location.pathname + location.search : hash;
    history[replace ? "replaceState" : "pushState"](null, "", url);
  }
  load();
}

function load() {
  if (!indices.length) return;
  query = readHash();
  showQuery();
  search();
}

function indexNamed(name) {
  return indices.find((index) => index.name === name);
}

function firstOf(index) {
  return Object.hasOwn(index.modalities, "image") ? "image" : Object.keys(index.modalities)[0];
}

function requestFor(k) {
  const terms = [];
  if (query.text) terms.push({ text: query.text });
  if (images.has(query.image)) terms.push({ image: images.get(query.image).url.split(",")[1] });
  if (query.like) terms.push({ key: query.like });
  if (!terms.length) return null; // only "less like this" says nothing about what is wanted
  terms.push(...query.less.map((key) => ({ key, weight: LESS_WEIGHT })));
  const { columns } = indexNamed(query.index).modalities[query.find];
  return {
    ...(terms.length > 1 ? { query: terms } : terms[0]),
    index: query.index,
    modality: query.find,
    k,
    ...(query.threshold && { threshold: query.threshold }),
    columns: ["caption"].filter((name) => columns.includes(name)),
  };
}

// ---- asking the server ---------------------------------------------------------------------

async function ask(path, body, signal) {
  const post = { method: "POST", headers: { "content-type": "application/json" } };
  const options = body && { ...post, body: JSON.stringify(body) };
  const response = await fetch(path, { signal, ...options }).catch(() => {
    throw new Error("The server cannot be reached.");
  });
  const reply = await response.json().catch(() => null);
  if (response.ok && reply) return reply;
  const { type, message } = reply?.error ?? {};
  const error = new Error(message ?? `The server answered with status ${response.status}.`);
  throw Object.assign(error, { type });
}

async function search(k = PAGE) {
  running.abort();
  const { signal } = (running = new AbortController());
  const first = k === PAGE;
  observer.disconnect();
  page.error.hidden = true;
  const request = requestFor(k);
  if (!request) return showHint();
  setBusy(true, first);
  try {
    const reply = await ask("search", request, signal);
    if (!signal.aborted) showReply(reply, k, request);
  } catch (error) {
    if (signal.aborted) return;
    if (first) clearResults();
    showError(error, () => search(k));
  } finally {
    if (!signal.aborted) setBusy(false);
  }
}

async function start() {
  page.error.hidden = true;
  setBusy(true);
  try {
    const reply = await ask("indices");
    indices = reply.indices;
    setBusy(false);
    page.about.textContent = `Model ${reply.model}`;
    page.index.replaceChildren(...indices.map(({ name }) => new Option(name, name)));
    page["index-choice"].hidden = indices.length < 2;
    if (!indices.length) throw new Error("No index is served here yet.");
    load();
  } catch (error) {
    showError(error, start);
  }
}

// ---- drawing -------------------------------------------------------------------------------

function setBusy(busy, stale = false) {
  page.main.setAttribute("aria-busy", busy);
  page.results.classList.toggle("stale", stale);
  if (stale) page.status.textContent = "Searching…";
}

function showQuery() {
  const { modalities } = indexNamed(query.index);
  page.box.value = query.text;
  page.box.placeholder = query.image || query.like ? "Add words" : "Type words";
  page.index.value = query.index;
  page["find-choice"].hidden = Object.keys(modalities).length < 2;
  for (const button of findButtons) button.checked = button.value === query.find;
  page.threshold.value = query.threshold;
  page["threshold-value"].textContent = query.threshold ? query.threshold.toFixed(2) : "off";
  page.chips.replaceChildren(...chips());
  page.chips.hidden = !page.chips.children.length;
  document.title = query.text ? `${query.text} – clipray` : "clipray";
}

function chips() {
  const list = [];
  if (query.image) {
    const gone = { name: "not part of this link, give it again" };
    const { name, url } = images.get(query.image) ?? gone;
    list.push(chipOf("Image", name, url, { image: "" }));
  }
  if (query.like) list.push(keyChip("More like", query.like, { like: "" }));
  for (const key of query.less) {
    list.push(keyChip("Less like", key, { less: query.less.filter((other) => other !== key) }));
  }
  return list;
}

function keyChip(kind, key, without) {
  const match = seen.get(key);
  const chip = chipOf(kind, match?.caption || key, match && imageUrl(match, 256), without);
  chip.title = key;
  return chip;
}

function chipOf(kind, label, picture, without) {
  const chip = page.chip.content.firstElementChild.cloneNode(true);
  const [image, kindPart, labelPart, remove] = chip.children;
  image.addEventListener("error", () => image.remove()); // such as TIFF, which browsers cannot show
  if (picture) image.src = picture;
  else image.remove();
  kindPart.textContent = kind;
  labelPart.textContent = label;
  remove.setAttribute("aria-label", `Remove “${kind} ${label}”`);
  remove.addEventListener("click", () => { go(without); page.box.focus(); });
  return chip;
}

function clearResults() {
  shown = { matches: [], reply: null };
  page.results.replaceChildren();
  for (const name of ["degraded", "hint", "no-match", "download"]) page[name].hidden = true;
  page.status.textContent = page.end.textContent = "";
}

function showHint() {
  const rows = indexNamed(query.index).modalities[query.find].rows;
  clearResults();
  setBusy(false);
  page["hint-title"].textContent = `Search ${plural(rows, query.find)} by words or by image`;
  page.hint.hidden = false;
}

function showReply(reply, k, request) {
  const inResults = page.results.contains(document.activeElement);
  if (k === PAGE) {
    clearResults();
    page.results.classList.toggle("texts", query.find === "text");
    scrollTo(0, 0);
  }
  // A larger k can order an approximate index's matches anew; cards that are seen stay put.
  const have = new Set(shown.matches.map(({ id }) => id));
  const added = reply.matches.filter(({ id }) => !have.has(id));
  for (const match of added) seen.set(match.key, match);
  shown = { matches: [...shown.matches, ...added], reply, request };
  page.results.append(...added.map(cardOf));
  if (k === PAGE && inResults) focusCard(0); // the focused button is gone
  showSummary(reply);
  const complete = reply.matches.length < k || k >= MOST;
  if (!complete) observer.observe(page.end); // fires at once where the end is already in view
  else if (k >= MOST) page.end.textContent = `These are the best ${MOST}.`;
  else if (shown.matches.length) page.end.textContent = "No more matches.";
}

function showSummary({ coverage, degraded, version, took_ms: took }) {
  const count = shown.matches.length;
  const rows = coverage.rows_searched.toLocaleString("en");
  page.status.textContent =
    `${plural(count, "match", "matches")} in ${query.index}, version ${version} · ` +
    `${rows} rows searched · ${took.total.toFixed(1)} ms`;
  const steps = Object.entries(took).map(([step, ms]) => `${step} ${ms.toFixed(1)} ms`);
  page.status.title = steps.join(", ");
  page.degraded.hidden = !degraded;
  page.degraded.textContent =
    `Only ${coverage.shards_ok} of ${coverage.shards_total} shards answered: ` +
    `${rows} of ${coverage.rows_total.toLocaleString("en")} rows were searched, ` +
    "so matches may be missing.";
  page.download.hidden = !count;
  page["no-match"].hidden = count > 0;
  page["threshold-off"].hidden = !query.threshold;
  page["no-match-why"].textContent = query.threshold
    ? `Nothing has a score of ${query.threshold.toFixed(2)} or more.`
    : "The index has nothing to show for this query.";
}

function cardOf(match) {
  const card = page.card.content.firstElementChild.cloneNode(true);
  const [link, caption, score, { children: [more, less] }] = card.children;
  const [picture] = link.children;
  const words = match.caption || match.key;
  link.href = imageUrl(match);
  picture.alt = words;
  picture.addEventListener("error", () => card.classList.add("no-picture"));
  picture.src = imageUrl(match, 256);
  caption.textContent = words;
  caption.title = match.caption ? `${match.caption}\n${match.key}` : match.key;
  score.textContent = match.score.toFixed(3);
  more.setAttribute("aria-label", `More like this: ${words}`);
  more.addEventListener("click", () => go({ ...NOTHING, like: match.key }));
  less.setAttribute("aria-label", `Less like this: ${words}`);
  less.addEventListener("click", () => go({ less: [...new Set([...query.less, match.key])] }));
  return card;
}

function imageUrl({ id }, size) {
  return `images/${encodeURIComponent(query.index)}/${id}${size ? `?size=${size}` : ""}`;
}

function showError(error, again) {
  setBusy(false);
  const type = error.type ? ` (${error.type})` : "";
  page["error-message"].textContent = error.message + type;
  page.retry.hidden = !again;
  page.retry.onclick = again;
  page.error.hidden = false;
}

function plural(count, word, words = `${word}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? word : words}`;
}

// ---- images from the person ----------------------------------------------------------------

async function takeImage(file) {
  try {
    if (!file?.type.startsWith("image/")) throw new Error("This is not an image file.");
    const url = await dataUrl(await smallEnough(file));
    const token = Date.now().toString(36); // must not mean another image in another window
    images.set(token, { name: file.name || "pasted", url });
    if (images.size > MAX_IMAGES) images.delete(images.keys().next().value);
    go({ ...NOTHING, image: token });
    page.box.focus({ preventScroll: true });
  } catch (error) {
    showError(error);
  }
}

// Large images, and formats that only the browser knows, go out as a smaller JPEG.
async function smallEnough(file) {
  const asIs = file.size <= SHRINK_BYTES && SERVER_READS.test(file.type);
  const blob = asIs ? file : await shrink(file).catch(() => file);
  if (blob.size <= MAX_IMAGE_BYTES) return blob;
  throw new Error(`The image has ${(blob.size / MIB).toFixed(1)} MiB; at most 20 MiB can be sent.`);
}

async function shrink(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, SHRINK_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // as the server does with transparency
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
}

function dataUrl(blob) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new Error("The image cannot be read."));
    reader.readAsDataURL(blob);
  });
}

function saveResults() {
  const { request, matches, reply: { version, coverage, degraded } } = shown;
  const results = { request, version, coverage, degraded, matches };
  const nameOnly = (key, value) => (key === "image" ? images.get(query.image)?.name : value);
  const json = JSON.stringify(results, nameOnly, 2); // the bytes of an image are no result
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([json], { type: "application/json" }));
  link.download = `clipray-${query.index}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000); // the download must have begun
}

// ---- keys ----------------------------------------------------------------------------------

function focusCard(at) {
  const controls = page.results.children[at]?.querySelectorAll("a, button") ?? [];
  [...controls].find((control) => control.offsetParent)?.focus();
}

function moveBetweenCards(event) {
  const cards = [...page.results.children];
  if (event.target === page.box && event.key === "ArrowDown" && cards.length) {
    event.preventDefault();
    return focusCard(0);
  }
  const at = cards.indexOf(event.target.closest(".card"));
  if (at < 0) return;
  const columns = cards.filter(({ offsetTop }) => offsetTop === cards[0].offsetTop).length;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  const to = at + steps[event.key];
  event.preventDefault();
  if (to < 0) page.box.focus();
  else focusCard(Math.min(to, cards.length - 1));
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.key === "/" && event.target !== page.box) {
    event.preventDefault();
    page.box.focus();
    page.box.select();
  } else if (event.key === "Escape" && event.target !== page.index) {
    event.preventDefault();
    go(NOTHING);
    page.box.focus();
  } else if (event.key.startsWith("Arrow")) moveBetweenCards(event);
}

// ---- wiring --------------------------------------------------------------------------------

const observer = new IntersectionObserver(
  ([end]) => end.isIntersecting && search((shown.request?.k ?? 0) + PAGE),
  { rootMargin: "600px" }, // ask before the person reaches the end
);

function onDrag(event) {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  const leftWindow = event.type === "dragleave" && !event.relatedTarget;
  page.drop.hidden = event.type === "drop" || leftWindow;
  if (event.type === "drop") takeImage(event.dataTransfer.files[0]);
}

page.form.addEventListener("submit", (event) => { event.preventDefault(); go({}); });
page.file.addEventListener("change", () => {
  if (page.file.files.length) takeImage(page.file.files[0]);
  page.file.value = ""; // the same file can be picked again
});
page.index.addEventListener("change", () => {
  go({ index: page.index.value, like: "", less: [] }); // a key means nothing in another index
});
for (const button of findButtons) {
  button.addEventListener("change", () => go({ find: button.value }));
}
let settled;
page.threshold.addEventListener("input", () => {
  const threshold = Number(page.threshold.value);
  page["threshold-value"].textContent = threshold ? threshold.toFixed(2) : "off";
  clearTimeout(settled);
  settled = setTimeout(() => go({ threshold }, { replace: true }), 150);
});
page["threshold-off"].addEventListener("click", () => go({ threshold: 0 }));
page.download.addEventListener("click", saveResults);
for (const type of ["dragenter", "dragover", "dragleave", "drop"]) addEventListener(type, onDrag);
addEventListener("paste", (event) => {
  const file = event.clipboardData?.files[0];
  if (!file) return;
  event.preventDefault();
  takeImage(file);
});
addEventListener("keydown", onKey);
addEventListener("popstate", load);
start();
