// A choice among the profiles of a book, whose value is "" for the server's own.

import { h } from "./page.js";

// For fields that name a model first, and a profile only where it is one's name: this is none.
export const NO_PROFILE = "omni-moderation-latest";

export const profileChooser = (book, onchange) =>
  h("select", { onchange },
    h("option", { value: "" }, "the server's own"),
    book.profiles.map(({ name }) => h("option", { value: name }, name)));

// Choose one by name, else the server's own; tell whether there is one of that name.
export function choose(chooser, name) {
  chooser.value = name;
  if (chooser.selectedIndex < 0) chooser.selectedIndex = 0;
  return chooser.value === name;
}
