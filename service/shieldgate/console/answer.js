// A message and its streamed answer as the guard lets it out: which text leaves when, and what was
// said of both.

import { count, failure, h, plural } from "./page.js";
import { judged, languageWarning, verdict } from "./verdict.js";

const TOGETHER_MS = 60; // what leaves after one check comes at once
const seconds = (ms) => `${(ms / 1000).toFixed(2)} s`;
const STRICTEST = ["full", "hold", "async"];

export class Answer {
  #titles;
  #profiles;
  #began = performance.now();
  #shown = h("p", { class: "text" });
  #when = h("summary", null, "What left when");
  #steps = h("ol", { class: "steps" });
  #course = h("details", { hidden: true }, this.#when, this.#steps);
  #state = h("p", { class: "held", role: "status" }, "Nothing may leave yet: the prompt is judged, and the first words of the answer …");
  #ofPrompt = h("div");
  #ofAnswer = h("div");
  #bursts = []; // what left together: its element, its line among the steps, when, how much
  #open = false; // whether text leaves before it is judged
  #covered = 0;
  text = "";
  blocked = false;

  constructor(prompt, book) {
    this.#titles = new Map(book.policies.map((policy) => [policy.id, policy.title]));
    this.#profiles = new Map(book.profiles.map((profile) => [profile.name, profile]));
    this.element = h("div", null,
      h("article", { class: "turn" }, h("h2", null, "You"), h("p", { class: "text" }, prompt), this.#ofPrompt),
      h("article", { class: "turn" }, h("h2", null, "Model"), this.#shown, this.#state, this.#ofAnswer, this.#course));
  }

  // Say by which profiles the answer is judged: "default", or "default+strict".
  judgedBy(names) {
    const profiles = (names ?? "").split("+").map((name) => this.#profiles.get(name)).filter(Boolean);
    const modes = profiles.map((profile) => profile.streaming.mode);
    const mode = STRICTEST.find((each) => modes.includes(each));
    const enforced = profiles.some((profile) => profile.mode === "enforce");
    this.#open = profiles.length > 0 && (!enforced || mode === "async");
  }

  // Take the JSON of an event.
  take(data) {
    if (data.error) throw Object.assign(new Error(data.error.message), { code: data.error.code });
    for (const choice of data.choices ?? []) {
      const { delta = {} } = choice;
      const thought = delta.reasoning_content ?? delta.reasoning;
      if (thought) this.#release(thought, "thought");
      if (delta.content) {
        this.#release(delta.content);
        this.text += delta.content;
      }
      if (delta.refusal) this.#refused(delta.refusal);
      if (choice.content_filter_offsets) this.#covers(choice.content_filter_offsets.end_offset);
      if (choice.finish_reason === "content_filter") this.#isBlocked();
    }
    if (data.moderation) this.#tell(data.moderation);
  }
  ended() {
    this.#state.remove();
    const [first] = this.#bursts;
    if (first) this.#when.textContent = `What left when: the first text after ${seconds(first.first)}, the end at ${seconds(this.#now)}`;
  }
  stopped() {
    this.#state.replaceWith(h("p", { class: "pale" }, "You stopped it."));
  }
  failed(error) {
    this.#state.remove();
    this.#ofAnswer.append(failure(error));
  }
  promptBlocked(moderation) {
    this.blocked = true;
    this.#state.replaceWith(h("p", null, "The prompt was blocked, and the model was not asked."));
    this.#tell(moderation);
  }

  get #now() {
    return performance.now() - this.#began;
  }
  #step(what) {
    this.#steps.append(h("li", null, `${seconds(this.#now)}: ${what}`));
  }
  #release(text, kind = null) {
    const now = this.#now;
    let burst = this.#bursts.at(-1);
    if (!burst || now - burst.at > TOGETHER_MS) {
      burst = { characters: 0, first: now, element: h("span", { class: this.#open ? "unjudged" : null }), line: h("li") };
      if (this.#bursts.length && !this.#open) this.#shown.append(h("span", { class: "check", title: "judged up to here", "aria-hidden": "true" }));
      this.#bursts.push(burst);
      this.#shown.append(burst.element);
      this.#steps.append(burst.line);
      this.#course.hidden = false;
    }
    burst.at = now;
    burst.characters += [...text].length;
    burst.element.append(kind ? h("span", { class: kind }, text) : text);
    const how = this.#open ? "left, not yet judged" : "judged, and released";
    burst.line.textContent = `${seconds(burst.first)}: ${plural(burst.characters, "character")} ${how}`;
    this.#state.textContent = this.#open ? "Leaves as it comes, judged behind …" : "Held: what comes next waits for its check …";
  }
  // The checks have come so far, in characters.
  #covers(end) {
    this.#covered = Math.max(this.#covered, end);
    let before = 0;
    for (const burst of this.#bursts) {
      before += burst.characters;
      if (before <= this.#covered) burst.element.classList.remove("unjudged");
    }
    this.#step(`judged up to character ${count(end)}`);
  }
  #isBlocked() {
    this.blocked = true;
    if (this.#bursts.length) this.#step("a check stopped it, and nothing after that left");
  }
  #refused(sentence) {
    this.#ofAnswer.append(h("p", { class: "refusal" }, sentence));
  }

  #tell({ input, output }) {
    const [asked, answered] = [worst(input), worst(output)];
    // Where the answer was blocked, what was found in the prompt was let pass.
    this.#side(this.#ofPrompt, input, asked, this.blocked && !answered.length);
    this.#side(this.#ofAnswer, output, answered, this.blocked);
  }
  #side(element, side, found, blocked) {
    if (side.type === "error") {
      element.append(verdict(blocked ? "failed_closed" : "failed_open", side.message));
      return;
    }
    if (!found.length) return;
    const rows = found.map((row) => ({ ...row, name: this.#titles.get(row.policy) ?? row.policy }));
    const violated = rows.filter((row) => row.violated).map((row) => row.name).join(", ");
    const action = !violated ? "allowed" : blocked ? "blocked" : "would_block";
    const language = side.results.find((result) => result.unsupported_language)?.unsupported_language;
    element.append(h("details", { class: "side" }, h("summary", null, verdict(action, violated)), judged(rows)),
      languageWarning(language) ?? "");
  }
}

// Of each policy the highest probability of all that was judged on one side.
function worst(side) {
  const rows = new Map();
  for (const { category_scores, categories } of side.results ?? []) {
    for (const [policy, probability] of Object.entries(category_scores)) {
      if (probability >= (rows.get(policy)?.probability ?? 0)) rows.set(policy, { policy, probability, violated: categories[policy] });
    }
  }
  return [...rows.values()];
}
