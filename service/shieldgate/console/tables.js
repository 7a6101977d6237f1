// How the book and drafts of it are written in tables.

import { table } from "./page.js";

const DIRECTIONS = ["prompt", "response"];

// A table whose rows become blocks on a phone, each cell with its head before it.
export function stacked(heads, rows) {
  const made = table(heads, rows);
  made.classList.add("stacked");
  for (const { cells } of made.querySelectorAll("tbody tr")) {
    [...cells].slice(1).forEach((cell, i) => { cell.dataset.head = heads[i + 1]; });
  }
  return made;
}

// A value as YAML's readers write it on one line.
export function written(value) {
  if (value === null || value === undefined) return "off";
  if (Array.isArray(value)) return value.map(written).join(", ");
  if (typeof value !== "object") return String(value);
  const entries = Object.entries(value);
  // What is the same both ways is said once.
  if (entries.length === 2 && DIRECTIONS.every((direction) => direction in value) && value.prompt === value.response) return written(value.prompt);
  return entries.map(([name, each]) => `${name} ${written(each)}`).join(", ");
}
