// The parts of a query that are no words, each as a chip that takes it away; and the form that
// makes a condition on a column.

import { ask, letGo, showPicture } from "./api.js";
import { copyOf, page } from "./page.js";
import { OPERATORS, columnsOf, imageUrl, rowRequest } from "./query.js";
import { images } from "./upload.js";

export const seen = new Map(); // key → match, so that a chip can show more than a key

// `go` takes the changes of the query that removing a chip means.
export function drawChips(query, go) {
  letGo(page.chips);
  page.chips.replaceChildren(...chipsOf(query, go));
  page.chips.hidden = !page.chips.children.length;
}

export function drawFilterForm(query) {
  const columns = ["key", ...columnsOf(query)];
  if (page.column.dataset.columns === String(columns)) return; // keep what is chosen
  page.column.dataset.columns = columns;
  page.column.replaceChildren(...columns.map((name) => new Option(name, name)));
  page.column.value = columns.includes("caption") ? "caption" : "key";
  page.operator.replaceChildren(...Object.keys(OPERATORS).map((name) => new Option(name, name)));
  page.operator.value = "contains";
}

function chipsOf(query, go) {
  const list = [];
  if (query.image) {
    const gone = { name: "not part of this link, give it again" };
    const { name, url } = images.get(query.image) ?? gone;
    const chip = chipOf("Image", name, () => go({ image: "" }));
    drawPicture(chip, url && ((picture) => { picture.src = url; }));
    list.push(chip);
  }
  if (query.like) list.push(keyChip(query, "More like", query.like, () => go({ like: "" })));
  for (const key of query.less) {
    const less = query.less.filter((other) => other !== key);
    list.push(keyChip(query, "Less like", key, () => go({ less })));
  }
  query.where.forEach(({ column, operator, value }, at) => {
    const chip = chipOf(`${column} ${operator}`, value, () => go({ where: query.where.toSpliced(at, 1) }));
    drawPicture(chip);
    list.push(chip);
  });
  return list;
}

function keyChip(query, kind, key, remove) {
  const chip = chipOf(kind, key, remove);
  const match = seen.get(key);
  if (match) showMatch(query, chip, match);
  else lookUp(query, key).then((found) => chip.isConnected && showMatch(query, chip, found));
  return chip;
}

function showMatch(query, chip, match) {
  if (match.caption) chip.querySelector(".label").textContent = match.caption;
  chip.title = match.key;
  const path = match.id && imageUrl(query, match, 256);
  drawPicture(chip, path && ((picture) => showPicture(picture, path)));
}

// For a key that came with a link. What cannot be found out stays a key.
async function lookUp(query, key) {
  const columns = ["caption"].filter((name) => columnsOf(query).includes(name));
  const reply = await ask("search", rowRequest(query, key, columns)).catch(() => null);
  const match = reply?.matches[0] ?? { key };
  if (reply) seen.set(key, match);
  return match;
}

function chipOf(kind, label, remove) {
  const chip = copyOf(page.chip);
  const button = chip.querySelector("button");
  chip.querySelector(".kind").textContent = kind;
  chip.querySelector(".label").textContent = chip.title = label;
  button.setAttribute("aria-label", `Remove “${kind} ${label}”`);
  button.addEventListener("click", () => { remove(); page.box.focus(); });
  return chip;
}

function drawPicture(chip, draw) {
  const picture = chip.querySelector("img");
  picture.addEventListener("error", () => picture.remove()); // such as TIFF, which browsers cannot show
  if (draw) draw(picture);
  else picture.remove();
}
