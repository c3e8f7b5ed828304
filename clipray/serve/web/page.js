// Elements of the page by their id, and small things to draw with.

export const page = Object.fromEntries(
  [...document.querySelectorAll("[id]")].map((element) => [element.id, element]),
);

export function copyOf(template) {
  return template.content.firstElementChild.cloneNode(true);
}

export function plural(count, word, words = `${word}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? word : words}`;
}
