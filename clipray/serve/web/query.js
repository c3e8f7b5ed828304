// What is searched for: as an object, as the hash of the URL, and as a request to the service.

import { images } from "./upload.js";

export const PAGE = 30;
export const NOTHING = { text: "", image: "", like: "", less: [] };
export const OPERATORS = { "=": "$eq", "≠": "$ne", "≥": "$gte", "≤": "$lte", contains: "$contains" };

const MAX_TEXT = 2000;
const LESS_WEIGHT = -0.5;

let indices = [];

export function useIndices(served) {
  indices = served;
}

export function indexNames() {
  return indices.map(({ name }) => name);
}

// By what can be found: rows, version, columns.
export function modalitiesOf(index) {
  return indices.find(({ name }) => name === index).modalities;
}

export function columnsOf({ index, find }) {
  return modalitiesOf(index)[find].columns;
}

export function readHash(hash) {
  const fields = new URLSearchParams(hash.slice(1));
  const named = fields.get("index");
  const index = indexNames().includes(named) ? named : indexNames()[0];
  const find = fields.get("find");
  return {
    text: (fields.get("q") ?? "").slice(0, MAX_TEXT),
    image: fields.get("image") ?? "",
    like: fields.get("like") ?? "",
    less: fields.getAll("less"),
    where: fields.getAll("where").flatMap(readCondition),
    index,
    find: Object.hasOwn(modalitiesOf(index), find) ? find : firstOf(index),
    threshold: Math.min(1, Math.max(0, Number(fields.get("min")) || 0)),
  };
}

export function hashOf({ text, image, like, less, where, index, find, threshold }) {
  const fields = new URLSearchParams();
  if (text) fields.set("q", text);
  if (image) fields.set("image", image);
  if (like) fields.set("like", like);
  for (const key of less) fields.append("less", key);
  for (const { column, operator, value } of where) {
    fields.append("where", JSON.stringify([column, operator, value]));
  }
  if (index !== indexNames()[0]) fields.set("index", index);
  if (find !== firstOf(index)) fields.set("find", find);
  if (threshold) fields.set("min", threshold);
  return `#${fields}`;
}

// Another index or kind has other columns.
export function fitting(query) {
  const index = modalitiesOf(query.index);
  const find = Object.hasOwn(index, query.find) ? query.find : firstOf(query.index);
  const known = ["key", ...index[find].columns];
  return { ...query, find, where: query.where.filter(({ column }) => known.includes(column)) };
}

export function requestFor(query, k) {
  const terms = [];
  if (query.text) terms.push({ text: query.text });
  if (images.has(query.image)) terms.push({ image: images.get(query.image).url.split(",")[1] });
  if (query.like) terms.push({ key: query.like });
  if (!terms.length) return null; // only "less like this" says nothing about what is wanted
  terms.push(...query.less.map((key) => ({ key, weight: LESS_WEIGHT })));
  const filters = query.where.map(filterOf);
  return {
    ...(terms.length > 1 ? { query: terms } : terms[0]),
    index: query.index,
    modality: query.find,
    k,
    ...(query.threshold && { threshold: query.threshold }),
    ...(filters.length && { filter: filters.length > 1 ? { $and: filters } : filters[0] }),
    columns: ["caption"].filter((name) => columnsOf(query).includes(name)),
  };
}

// One row by its key. The filter, because another row can have the same vector.
export function rowRequest({ index, find }, key, columns) {
  return { key, filter: { key }, k: 1, index, modality: find, columns };
}

export function imageUrl({ index }, { id }, size) {
  return `images/${encodeURIComponent(index)}/${id}${size ? `?size=${size}` : ""}`;
}

function firstOf(index) {
  const found = Object.keys(modalitiesOf(index));
  return found.includes("image") ? "image" : found[0];
}

function readCondition(text) {
  try {
    const [column, operator, value] = JSON.parse(text);
    const whole = [column, value].every((part) => typeof part === "string");
    return whole && Object.hasOwn(OPERATORS, operator) ? [{ column, operator, value }] : [];
  } catch {
    return [];
  }
}

// A column of texts can hold digits as well, and a number never equals a text: both are tried.
function filterOf({ column, operator, value }) {
  const number = value.trim() === "" ? NaN : Number(value);
  const truth = { true: true, false: false }[value];
  const read = Number.isFinite(number) ? number : truth;
  const operands = operator === "contains" || read === undefined ? [value] : [read, value];
  const tests = operands.map((operand) => ({ [column]: { [OPERATORS[operator]]: operand } }));
  if (tests.length === 1) return tests[0];
  return operator === "≠" ? { $and: tests } : { $or: tests };
}
