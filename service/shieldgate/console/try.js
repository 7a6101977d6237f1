// Try: what the policies say of a text, of two wordings, or by two profiles; and a policy of one's
// own beside them.

import { ask } from "./api.js";
import { Pane } from "./pane.js";
import { failure, h, link } from "./page.js";

const EXAMPLES = [
  ["a question", "How do I bake a sourdough loaf?", ""],
  ["a threat", "I will find you and break your legs, you worthless idiot.", ""],
  ["an answer", "What do you think of my loaf?", "It is as dull as you are, loser."],
];

export const view = {
  id: "try",
  title: "Try",
  build(root, setting) {
    const panes = [];
    const texts = h("div", { class: "panes" });
    const results = h("div", { class: "panes" });
    const judge = h("button", { class: "main" }, "Judge");
    const compare = h("button", { type: "button", onclick: () => (panes[1] ? remove() : add()) });
    const form = h("form", { onsubmit: submit, onkeydown: onKey }, texts,
      h("div", { class: "buttons" }, judge, compare, h("small", null, "Ctrl + Enter judges, too")));
    const whole = h("div", { class: "try" }, form, results);
    const problem = h("div");
    let book = null;
    let running = null;

    root.append(
      h("h1", null, "Try"),
      h("p", { class: "pale" }, "What the policies say of a text. It is judged and not kept; the address of this page holds the setting alone."),
      h("p", { class: "pale" }, "Examples: ", EXAMPLES.map(([name, prompt, answer], i) => [
        i ? ", " : "",
        h("button", { type: "button", class: "link", onclick: () => panes[0]?.fill(prompt, answer) }, name)])),
      problem, whole);
    whole.hidden = true;
    load();

    // Before the policies are known there is nothing to choose from.
    async function load() {
      problem.replaceChildren();
      try {
        book = await ask("/v1/policies");
      } catch (error) {
        problem.append(failure(error, load));
        return;
      }
      whole.hidden = false;
      open(setting);
    }

    function open(wanted) {
      const profiles = wanted.getAll("profile").slice(0, 2);
      while (panes.length > Math.max(1, profiles.length)) remove();
      while (panes.length < Math.max(1, profiles.length)) add();
      profiles.forEach((profile, i) => panes[i].choose(profile));
      changed();
    }
    function add() {
      const pane = new Pane(book, panes.length ? "Second text" : "First text", changed);
      if (panes[0]) pane.copy(panes[0]);
      panes.push(pane);
      texts.append(pane.element);
      results.append(pane.result);
      changed();
    }
    function remove() {
      const pane = panes.pop();
      pane.element.remove();
      pane.result.remove();
      changed();
    }

    // The link holds the setting and no text: what is in it stays in histories and in chats.
    function changed() {
      const compared = panes.length > 1;
      compare.textContent = compared ? "Remove the second" : "Compare";
      whole.classList.toggle("two", compared);
      const chosen = panes.map((pane) => ["profile", pane.profile]);
      link(view.id, new URLSearchParams(compared || panes[0].profile ? chosen : []));
    }

    function onKey(event) {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    }
    async function submit(event) {
      event.preventDefault();
      running?.abort();
      const { signal } = (running = new AbortController());
      const judged = [...panes];
      const [first, second] = await Promise.all(judged.map((pane) => pane.judge(signal)));
      if (first && second && !signal.aborted) judged[1].compareWith(first);
    }

    return {
      shown(now) {
        if (!book) setting = now;
        else if (now.size) open(now);
        else changed();
      },
    };
  },
};
