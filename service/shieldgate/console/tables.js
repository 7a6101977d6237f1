// Tables whose rows become blocks on a phone, each cell with its head before it.

import { table } from "./page.js";

export function stacked(heads, rows) {
  const made = table(heads, rows);
  made.classList.add("stacked");
  for (const { cells } of made.querySelectorAll("tbody tr")) {
    [...cells].slice(1).forEach((cell, i) => { cell.dataset.head = heads[i + 1]; });
  }
  return made;
}
