// What was found: a card for each match, and a dialog with all that is known of one.

import { ask, hasKey, letGo, showPicture } from "./api.js";
import { copyOf, page } from "./page.js";
import { columnsOf, imageUrl, rowRequest } from "./query.js";

const MOST_COLUMNS = 40;
const MOST_FILTERED = 80; // characters of a value that one would filter by

// `on` holds what the buttons do: more, less, open.
export function cardOf(match, query, on) {
  const card = copyOf(page.card);
  const words = match.caption || match.key;
  card.dataset.id = match.id;
  const picture = card.querySelector("img");
  picture.alt = words;
  picture.addEventListener("error", () => card.classList.add("no-picture"));
  showPicture(picture, imageUrl(query, match, 256));
  const caption = card.querySelector(".caption");
  caption.textContent = words;
  caption.title = match.caption ? `${match.caption}\n${match.key}` : match.key;
  card.querySelector(".score").textContent = match.score.toFixed(3);
  for (const [part, name, act] of [
    [".picture", "Details", on.open],
    [".more", "More like this", on.more],
    [".less", "Less like this", on.less],
    [".open", "Details", on.open],
  ]) {
    const button = card.querySelector(part);
    button.setAttribute("aria-label", `${name}: ${words}`);
    button.addEventListener("click", () => act(match));
  }
  return card;
}

export function focusCard(at) {
  const controls = page.results.children[at]?.querySelectorAll("button") ?? [];
  [...controls].find((control) => control.offsetParent)?.focus();
}

// `on` holds more, less and where, which takes a condition.
export function openDetails(match, query, on) {
  const { dialog, large, original } = page;
  dialog.dataset.id = match.id;
  letGo(dialog);
  const path = imageUrl(query, match);
  dialog.classList.remove("no-picture");
  large.removeAttribute("src");
  large.alt = match.caption || match.key;
  large.onerror = () => dialog.classList.add("no-picture");
  // The address alone would be refused where a key is wanted.
  large.onload = () => { original.href = hasKey() ? large.src : path; };
  showPicture(large, `${path}?size=1024`);
  page["dialog-title"].textContent = match.caption || match.key;
  page["dialog-score"].textContent = `Score ${match.score.toFixed(4)}`;
  page["dialog-more"].onclick = () => { dialog.close(); on.more(match); };
  page["dialog-less"].onclick = () => { dialog.close(); on.less(match); };
  page.facts.replaceChildren(...factOf("key", match.key));
  if (!dialog.open) dialog.showModal();
  fillFacts(match, query, on);
}

async function fillFacts(match, query, on) {
  const known = columnsOf(query);
  const columns = known.slice(0, MOST_COLUMNS);
  const left = known.length - columns.length;
  page["facts-note"].textContent = "";
  try {
    const { matches: [row] } = await ask("search", rowRequest(query, match.key, columns));
    if (page.dialog.dataset.id !== match.id) return; // another one was opened meanwhile
    const values = Object.entries(row ?? {}).filter(
      ([name, value]) => columns.includes(name) && value !== null && value !== "",
    );
    page.facts.append(...values.flatMap(([name, value]) => factOf(name, value, on)));
    if (left) page["facts-note"].textContent = `and ${left} more columns`;
  } catch (error) {
    if (page.dialog.dataset.id === match.id) page["facts-note"].textContent = `The columns cannot be shown: ${error.message}`;
  }
}

function factOf(name, value, on) {
  const term = document.createElement("dt");
  const fact = document.createElement("dd");
  const text = String(value);
  const isLink = /^https?:\/\/\S+$/.test(text);
  const place = document.createElement(isLink ? "a" : "span");
  if (isLink) Object.assign(place, { href: text, target: "_blank", rel: "noopener noreferrer" });
  place.textContent = text;
  term.textContent = name;
  fact.append(place);
  if (on && text.length <= MOST_FILTERED) fact.append(filterButton(name, text, on));
  return [term, fact];
}

function filterButton(column, value, on) {
  const button = copyOf(page.only);
  button.setAttribute("aria-label", `Only matches with ${column} = ${value}`);
  button.addEventListener("click", () => {
    page.dialog.close();
    on.where({ column, operator: "=", value });
  });
  return button;
}
