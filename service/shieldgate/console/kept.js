// How kept texts are shown, and what is said where there is none to show.

import { count, h, plural } from "./page.js";

export const WHY = { near: "it is near a threshold", random: "it was drawn at random" };

const SWITCH_ON = `pip install 'shieldgate[review]'
openssl rand -base64 32 > key && chmod 600 key
shieldgate serve --keep-texts review.db --keep-texts-key-file key`;
const EVALUATE = `shieldgate evaluate labelled.jsonl --weight weight --out runs/reviewed
shieldgate calibrate runs/reviewed/scores.jsonl --target fpr=0.01`;

// The text that is judged, below its prompt where it is an answer.
export function texts({ prompt, response }) {
  if (response === null) return [whole(prompt)];
  return [
    h("h3", null, "The prompt, for context"), whole(prompt),
    h("h3", null, "The answer, which is judged"), whole(response)];
}

// More than a person reads at once would take a browser long to draw.
const MOST_CHARACTERS = 20_000;
const MOST_PIECES = 2_000;

// A text in parts, each with true where it is the number of a hidden character.
function whole(parts) {
  const element = h("p", { class: "text", dir: "auto" });
  const pieces = parts.flatMap(([text, hidden]) => text.match(/.{1,1000}/gsu).map((piece) => [piece, hidden]));
  let next = 0;
  function more() {
    const from = next;
    for (let characters = 0; next < pieces.length && next - from < MOST_PIECES && characters < MOST_CHARACTERS; next++) {
      const [text, hidden] = pieces[next];
      characters += text.length;
      element.append(hidden ? h("mark", { title: "a hidden character" }, text) : text);
    }
    if (next === pieces.length) return;
    const left = pieces.slice(next).reduce((sum, [text]) => sum + text.length, 0);
    const button = h("button", { type: "button", onclick: () => (button.remove(), more()) }, `${count(left)} more characters`);
    element.append(button);
  }
  more();
  return element;
}

// Why there is nothing to ask, and the next step; `again` asks from the first text on.
export function ending({ keeping, kept, unfinished, labelled, elsewhere, locked }, begun, again) {
  const button = (name) => h("p", null, h("button", { type: "button", class: "main", onclick: again }, name));
  if (!keeping) {
    return [
      h("h2", null, "This server keeps no texts"),
      h("p", null, "A server keeps the texts of some decisions for people to label only where its operator asks for it: sealed, for a time, those near a threshold and a random share of the rest. These lines switch it on:"),
      h("pre", null, SWITCH_ON)];
  }
  if (!kept) {
    return [
      h("h2", null, "Nothing is kept yet"),
      h("p", null, "Texts come as the server judges them: all that are near a threshold, and a random share of the rest (--keep-texts-near, --keep-texts-share)."),
      button("Look again")];
  }
  if (locked >= kept) {
    return [
      h("h2", null, "No key of this server opens what is kept"),
      h("p", null, `There ${kept === 1 ? "is" : "are"} ${plural(kept, "text")}, sealed by another key. Give the server that key, after its own: one in each line of --keep-texts-key-file.`),
      button("Look again")];
  }
  const done = labelled ? [
    h("p", null, "“Download labels” gives what was labelled, in rows that evaluate, calibrate and tune read:"),
    h("pre", null, EVALUATE)] : [];
  if (!unfinished) {
    return [h("h2", null, "All that is kept is labelled"), h("p", null, "Others come as the server judges them."), ...done, button("Look again")];
  }
  const why = ["skipped", "came meanwhile", elsewhere ? `are with somebody else now (${count(elsewhere)})` : null, "are asked about another policy"].filter(Boolean);
  return [
    h("h2", null, begun ? "That was the last one" : "There is nothing to ask here now"),
    h("p", null, `${plural(unfinished, "text")} still ${unfinished === 1 ? "lacks" : "lack"} a label: they were ${why.slice(0, -1).join(", ")} or ${why.at(-1)}.`),
    ...done, button("Go through them again")];
}
