// The page of clipray. The hash of the URL says what is searched for: every action writes the
// hash, and the page is drawn from it. So a search can be shared as a link, and "back" works.

import { ask, hasKey, letGo, useKey } from "./api.js";
import { cardOf, focusCard, openDetails } from "./cards.js";
import { drawChips, drawFilterForm, seen } from "./chips.js";
import { listenForKeys } from "./keys.js";
import { page, plural } from "./page.js";
import {
  NOTHING, PAGE, fitting, hashOf, indexNames, modalitiesOf, readHash, requestFor, useIndices,
} from "./query.js";
import { images, keepImage } from "./upload.js";

const MOST = 300;

const findButtons = [...document.querySelectorAll("[name=find]")];

let query = null; // until it is known what is served
let shown = { matches: [], reply: null };
let running = new AbortController();

// ---- what is searched for ------------------------------------------------------------------

// Takes the words in the box along, so that no action loses what was typed but not yet sent.
function go(changes, { replace = false } = {}) {
  if (!query) return;
  const wanted = fitting({ ...query, text: page.box.value.trim(), ...changes });
  if (!images.has(wanted.image)) wanted.image = ""; // came with a link, which cannot carry it
  const hash = hashOf(wanted);
  if (hash !== (location.hash || "#")) {
    const url = hash === "#" ? location.pathname + location.search : hash;
    history[replace ? "replaceState" : "pushState"](null, "", url);
  }
  load();
}

function load() {
  if (!indexNames().length) return;
  const before = query?.index;
  query = readHash(location.hash);
  if (query.index !== before) seen.clear();
  page.dialog.close();
  drawQuery();
  search();
}

function startAgain() {
  go({ ...NOTHING, where: [], threshold: 0 });
  page.box.focus();
}

const onMatch = {
  more: ({ key }) => go({ ...NOTHING, like: key }),
  less: ({ key }) => go({ less: [...new Set([...query.less, key])] }),
  where: (condition) => go({ where: [...query.where, condition] }),
  open: (match) => openDetails(match, query, onMatch),
};

// ---- asking the service --------------------------------------------------------------------

async function start() {
  page.error.hidden = true;
  setBusy(true);
  try {
    const { indices, model } = await ask("indices");
    setBusy(false);
    useIndices(indices);
    page.gate.hidden = true;
    page.main.classList.remove("locked");
    page.forget.hidden = !hasKey();
    page.model.textContent = `Model ${model}`;
    page.index.replaceChildren(...indexNames().map((name) => new Option(name, name)));
    if (!indices.length) throw new Error("No index is served here yet.");
    load();
  } catch (error) {
    failed(error, start);
  }
}

async function search(k = PAGE) {
  running.abort();
  const { signal } = (running = new AbortController());
  const first = k === PAGE;
  observer.disconnect();
  page.error.hidden = true;
  const request = requestFor(query, k);
  if (!request) return showHint();
  setBusy(true, first);
  try {
    const reply = await ask("search", request, signal);
    if (!signal.aborted) showReply(reply, request);
  } catch (error) {
    if (signal.aborted) return;
    if (first) clearResults();
    failed(error, () => search(k));
  } finally {
    if (!signal.aborted) setBusy(false);
  }
}

function failed(error, again) {
  if (error.status === 401) askForKey();
  else showError(error, again);
}

function askForKey() {
  setBusy(false);
  clearResults();
  page["key-why"].textContent = hasKey()
    ? "The service does not accept this key."
    : "Whoever runs this service can give you one. It is kept until you close this tab.";
  page["key-why"].classList.toggle("failure", hasKey());
  useKey("");
  page.forget.hidden = true;
  page.main.classList.add("locked");
  page.gate.hidden = false;
  page["key-box"].select();
}

function forgetKey() {
  running.abort();
  useKey("");
  letGo(document);
  clearResults();
  start();
}

// ---- drawing -------------------------------------------------------------------------------

function setBusy(busy, stale = false) {
  page.main.setAttribute("aria-busy", busy);
  page.results.classList.toggle("stale", stale);
  if (stale) page.status.textContent = "Searching…";
}

function drawQuery() {
  const modalities = modalitiesOf(query.index);
  page.box.value = query.text;
  page.box.placeholder = query.image || query.like ? "Add words" : "Type words";
  const several = indexNames().length > 1;
  page.index.value = page["index-name"].textContent = query.index;
  page.index.hidden = !several;
  page["index-name"].hidden = several;
  page.version.textContent = `version ${modalities[query.find].version}`;
  page["find-choice"].hidden = Object.keys(modalities).length < 2;
  for (const button of findButtons) button.checked = button.value === query.find;
  page.threshold.value = query.threshold;
  page["threshold-value"].textContent = query.threshold ? query.threshold.toFixed(2) : "off";
  drawChips(query, go);
  drawFilterForm(query);
  document.title = query.text ? `${query.text} – clipray` : "clipray";
}

function clearResults() {
  shown = { matches: [], reply: null };
  letGo(page.results);
  page.results.replaceChildren();
  for (const name of ["degraded", "hint", "no-match", "download"]) page[name].hidden = true;
  page.status.textContent = page.status.title = page.end.textContent = "";
}

function showHint() {
  const { rows } = modalitiesOf(query.index)[query.find];
  clearResults();
  setBusy(false);
  page["hint-title"].textContent = `Search ${plural(rows, query.find)} by words or by image`;
  page.hint.hidden = false;
}

function showReply(reply, request) {
  const inResults = page.results.contains(document.activeElement);
  const first = request.k === PAGE;
  if (first || sourceOf(reply) !== sourceOf(shown.reply)) clearResults();
  if (first) {
    page.results.classList.toggle("texts", query.find === "text");
    scrollTo(0, 0);
  }
  // A larger k can order an approximate index's matches anew; cards that are seen stay put.
  const have = new Set(shown.matches.map(({ id }) => id));
  const added = reply.matches.filter(({ id }) => !have.has(id));
  for (const match of added) seen.set(match.key, match);
  shown = { matches: [...shown.matches, ...added], reply, request };
  page.results.append(...added.map((match) => cardOf(match, query, onMatch)));
  if (first && inResults) focusCard(0); // the focused button is gone
  showSummary(reply);
  const complete = reply.matches.length < request.k || request.k >= MOST;
  if (!complete) observer.observe(page.end); // fires at once where the end is already in view
  else if (request.k >= MOST) page.end.textContent = `These are the best ${MOST}.`;
  else if (shown.matches.length) page.end.textContent = "No more matches.";
}

// Matches of two versions, or of all rows and of some, do not belong into one list.
function sourceOf({ version, coverage }) {
  return `${version} ${coverage.rows_searched}`;
}

function showSummary({ coverage, degraded, version, took_ms: took }) {
  const count = shown.matches.length;
  const rows = coverage.rows_searched.toLocaleString("en");
  page.version.textContent = `version ${version}`;
  page.status.textContent =
    `${plural(count, "match", "matches")} · ${rows} rows searched · ${took.total.toFixed(1)} ms`;
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
  page["filters-off"].hidden = !query.where.length;
  page["no-match-why"].textContent = whyNothing();
}

function whyNothing() {
  const filters = query.where.length === 1 ? "the filter" : "all filters";
  const score = `has a score of ${query.threshold.toFixed(2)} or more`;
  if (query.threshold && query.where.length) return `Nothing that passes ${filters} ${score}.`;
  if (query.threshold) return `Nothing ${score}.`;
  if (query.where.length) return `Nothing passes ${filters}.`;
  return "The index has nothing to show for this query.";
}

function showError(error, again) {
  setBusy(false);
  const told = error.type ? `${error.message} (${error.type}).` : error.message;
  const wait = error.wait ? ` The service asks to wait ${plural(error.wait, "second")}.` : "";
  page["error-message"].textContent = told + wait;
  page.retry.hidden = !again;
  page.retry.onclick = again;
  page.error.hidden = false;
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

async function takeImage(file) {
  try {
    const image = await keepImage(file);
    go({ ...NOTHING, image });
    page.box.focus({ preventScroll: true });
  } catch (error) {
    showError(error);
  }
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

function onPaste(event) {
  const file = event.clipboardData?.files[0];
  if (!file) return;
  event.preventDefault();
  takeImage(file);
}

function onFile() {
  if (page.file.files.length) takeImage(page.file.files[0]);
  page.file.value = ""; // the same file can be picked again
}

function onKeyGiven() {
  const key = page["key-box"].value.trim();
  page["key-box"].value = "";
  useKey(key);
  start();
}

function onFilter() {
  const [column, operator] = [page.column.value, page.operator.value];
  const value = page.value.value.trim();
  page.value.value = "";
  page.value.focus();
  onMatch.where({ column, operator, value });
}

function showFilterForm(open) {
  page.filter.hidden = !open;
  page["filter-toggle"].setAttribute("aria-expanded", open);
  (open ? page.value : page["filter-toggle"]).focus();
}

let settled;
function onThreshold() {
  const threshold = Number(page.threshold.value);
  page["threshold-value"].textContent = threshold ? threshold.toFixed(2) : "off";
  clearTimeout(settled);
  settled = setTimeout(() => go({ threshold }, { replace: true }), 150);
}

function onSubmit(form, act) {
  form.addEventListener("submit", (event) => { event.preventDefault(); act(); });
}

function onClick(button, act) {
  button.addEventListener("click", () => act());
}

onSubmit(page.form, () => go({}));
onSubmit(page.filter, onFilter);
onSubmit(page.gate, onKeyGiven);
onClick(page.forget, forgetKey);
onClick(page.download, saveResults);
onClick(page["filter-toggle"], () => showFilterForm(page.filter.hidden));
onClick(page["threshold-off"], () => go({ threshold: 0 }));
onClick(page["filters-off"], () => go({ where: [] }));
page.file.addEventListener("change", onFile);
page.index.addEventListener("change", () => go({ index: page.index.value, like: "", less: [] }));
for (const button of findButtons) {
  button.addEventListener("change", () => go({ find: button.value }));
}
page.threshold.addEventListener("input", onThreshold);
for (const type of ["dragenter", "dragover", "dragleave", "drop"]) addEventListener(type, onDrag);
addEventListener("paste", onPaste);
addEventListener("popstate", load);
listenForKeys({
  startAgain,
  open: (at) => onMatch.open(shown.matches[at]),
  closeFilterForm: () => showFilterForm(false),
});
start();
