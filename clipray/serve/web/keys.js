// The keyboard: moving between results, and the keys that stand for a button.

import { focusCard } from "./cards.js";
import { page } from "./page.js";

const TYPED_INTO = "input:not([type=radio], [type=range], [type=file]), select";

// `on` holds startAgain, closeFilterForm, and open, which takes the place of a card.
export function listenForKeys(on) {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (page.dialog.open) moveInDialog(event, on);
    else if (event.key.startsWith("Arrow")) moveBetweenCards(event);
    else act(event, on);
  });
  page.dialog.addEventListener("close", () => focusCard(openedCard()));
}

function act(event, on) {
  const { key, target } = event;
  const typing = target.matches(TYPED_INTO);
  if (key === "Escape" && page.filter.contains(target)) on.closeFilterForm();
  else if (key === "Escape" && (!typing || target === page.box)) on.startAgain();
  else if (key === "/" && !typing) page.box.select();
  else if (key === "i" && target.closest(".card")) on.open(cards().indexOf(target.closest(".card")));
  else return;
  event.preventDefault();
}

function moveBetweenCards(event) {
  const list = cards();
  const at = list.indexOf(event.target.closest(".card"));
  const fromBox = event.target === page.box && event.key === "ArrowDown" && list.length > 0;
  if (at < 0 && !fromBox) return;
  event.preventDefault();
  if (fromBox) return focusCard(0);
  const columns = list.filter(({ offsetTop }) => offsetTop === list[0].offsetTop).length;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  const to = at + steps[event.key];
  if (to < 0) page.box.focus();
  else focusCard(Math.min(to, list.length - 1));
}

function moveInDialog({ key }, on) {
  const to = openedCard() + ({ ArrowLeft: -1, ArrowRight: 1 }[key] ?? NaN);
  if (cards()[to]) on.open(to);
}

function openedCard() {
  return cards().findIndex(({ dataset }) => dataset.id === page.dialog.dataset.id);
}

function cards() {
  return [...page.results.children];
}
