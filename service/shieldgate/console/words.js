// Which words carried a score: the text, with each word marked as strongly as it counts.

import { count, h } from "./page.js";

const NAMED = 5;
// What counts for less, beside the word that counts most, is not marked.
const LEAST = 0.1;

// `explanation` is that of a result, `judged` the text under judgement, and `title` names a policy.
export function words({ policies, error }, judged, title) {
  if (error) return h("p", { class: "pale" }, `No words are shown: ${error.message}`);
  return Object.entries(policies).map(([policy, explained]) => explanation(title(policy), explained, judged));
}

function explanation(name, explained, judged) {
  // The server counts characters, where a string of this language counts a smiley as two.
  const text = [...(explained.reading ?? judged)];
  const part = (start, end) => text.slice(start, end).join("");
  const most = Math.max(0, ...explained.words.map((word) => word.lost));
  const heat = h("p", { class: "heat text" });
  let at = explained.start;
  for (const { start, end, lost } of explained.words.filter((word) => word.lost > LEAST * most)) {
    const mark = h("mark", { title: `the margin loses ${margin(lost)} without it` }, part(start, end));
    mark.style.setProperty("--carried", lost / most);
    heat.append(part(at, start), mark);
    at = end;
  }
  heat.append(part(at, explained.end));
  return h("section", { class: "words", "aria-label": `Words: ${name}` },
    h("h3", null, `Which words: ${name}`), h("small", null, about(explained, text.length)), heat,
    h("small", null, said(explained, part)));
}

function about({ reading, start, end }, length) {
  if (reading !== null) return "Another reading of the text, which scores worst.";
  if (end - start < length) return `Characters ${count(start)} to ${count(end)}, the passage that scores worst.`;
  return "The whole text.";
}

function said({ words, margin: whole, tested, margin_without: without, margin_alone: alone }, part) {
  if (!tested) return "No word alone lowers the margin.";
  const worst = words.filter((word) => word.lost > 0).sort((a, b) => b.lost - a.lost).slice(0, NAMED);
  const named = worst.map(({ start, end, lost }) => `${part(start, end)} ${margin(lost)}`).join(", ");
  return `Carried most: ${named}. The margin is ${margin(whole)}, without ${tested === 1 ? "the word that carries" : `the ${count(tested)} words that carry`} most ${margin(without)}, with nothing but ${tested === 1 ? "it" : "them"} ${margin(alone)}.`;
}

const margin = (value) => value.toFixed(2).replace("-", "−");
