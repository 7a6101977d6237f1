// One text with its setting (`element`), and what the policies say of it (`result`).

import { ask } from "./api.js";
import { count, duration, failure, field, h, plural } from "./page.js";
import { choose, NO_PROFILE, profileChooser } from "./profiles.js";
import { compare, judged, languageWarning, verdict } from "./verdict.js";
import { words } from "./words.js";

const YOURS = "Your policy";

export class Pane {
  #book;
  #titles;
  #prompt = h("textarea", { class: "tall", required: true });
  #answer = h("textarea");
  #own = h("textarea", { maxlength: 2000 });
  #unfold;
  #explain = h("input", { type: "checkbox", role: "switch" });
  #chosen;
  #about = h("small");
  #said = h("div", { "aria-live": "polite" }, h("p", { class: "pale" }, "What the policies say will stand here."));
  #reasons = h("div");

  // Calls `onchange` when another profile is chosen.
  constructor(book, label, onchange) {
    this.#book = book;
    this.result = h("div", { role: "group", "aria-label": `${label}: what the policies say` },
      h("h2", { class: "which" }, label), this.#said, this.#reasons);
    this.#titles = new Map(book.policies.map((policy) => [policy.id, policy.title]));
    this.#chosen = profileChooser(book, () => {
      this.#describe();
      onchange();
    });
    const profile = field("Profile", this.#chosen);
    profile.append(this.#about);
    this.#unfold = h("details", null, h("summary", null, "A policy of your own"),
      field("What is true of a text that violates it", this.#own,
        "Such as: The text gives medical advice. It is judged beside the others, and not calibrated."));
    this.element = h("div", { role: "group", "aria-label": label, oninput: () => this.#stale() },
      h("h2", { class: "which" }, label), field("Prompt", this.#prompt),
      field("Answer, if you like", this.#answer, "With one, it is the answer that is judged, together with its prompt."),
      profile,
      h("div", { class: "field switch" }, h("label", null, this.#explain, "Which words?"),
        h("small", null, "Leaves words out one by one, which takes as long as some 50 texts.")),
      this.#unfold);
    this.#describe();
  }

  get profile() {
    return this.#chosen.value;
  }
  choose(name) {
    const known = choose(this.#chosen, name);
    this.#describe(known ? null : `The link asks for the profile “${name}”, which this server does not have.`);
  }
  fill(prompt, answer) {
    this.#prompt.value = prompt;
    this.#answer.value = answer;
    this.#stale();
  }
  copy(other) {
    this.fill(other.#prompt.value, other.#answer.value);
    this.#own.value = other.#own.value;
    this.#unfold.open = other.#unfold.open;
    this.#explain.checked = other.#explain.checked;
    this.choose(other.profile);
  }

  #describe(instead = null) {
    const found = this.#book.profiles.find((profile) => profile.name === this.profile);
    this.#about.textContent = instead ?? found?.description ?? "What the operator chose, or the profile of your key.";
    this.#stale();
  }
  // What is shown was said of another text, or by another profile.
  #stale() {
    this.result.classList.toggle("stale", this.#reasons.hasChildNodes());
  }

  // Ask, and show what comes. Gives the probabilities by policy; null where nothing was judged.
  async judge(signal) {
    this.result.classList.remove("stale");
    this.#said.replaceChildren(h("p", { class: "pale" }, "Judging …"));
    this.#reasons.replaceChildren();
    try {
      const { rows, ...found } = await (this.#own.value.trim() ? this.#decide(signal) : this.#screen(signal));
      this.#show(found, rows);
      return rows.length ? new Map(rows.map((row) => [row.policy, row.probability])) : null;
    } catch (error) {
      if (error.name !== "AbortError") this.#said.replaceChildren(failure(error));
      return null;
    }
  }
  compareWith(first) {
    compare(this.#reasons, first);
  }

  async #screen(signal) {
    const body = { prompt: this.#prompt.value };
    if (this.#answered) body.response = this.#answer.value;
    if (this.profile) body.profile = this.profile;
    if (this.#explain.checked) body.explain = true;
    const { results: [result], profile, policy_book } = await ask("/v1/screen", { body, signal });
    const judged = body.response ?? body.prompt;
    return { ...result, judged, profile, policy_book, rows: this.#rows(result) };
  }
  // A policy in one's own words is a question that is judged beside the profile's policies.
  async #decide(signal) {
    const prompt = this.#prompt.value;
    const turns = [{ role: "user", content: prompt }, { role: "assistant", content: this.#answer.value }];
    const body = {
      model: this.profile || NO_PROFILE,
      input: this.#answered ? turns : prompt,
      questions: [{ type: "predicate", instructions: this.#own.value }],
    };
    const { verdict: result, answers: [{ probability }] } = await ask("/v1/decisions", { body, signal });
    const yours = { policy: YOURS, name: YOURS, probability, violated: false, calibrated: false };
    return { ...result, rows: [...this.#rows(result), yours] };
  }
  #words(explanation, judged) {
    if (explanation) return words(explanation, judged, (policy) => this.#titles.get(policy) ?? policy);
    const asked = this.#explain.checked && this.#own.value.trim();
    return asked ? h("p", { class: "pale" }, "No words are shown beside a policy of your own.") : null;
  }
  get #answered() {
    return this.#answer.value.trim() !== "";
  }
  #rows({ policies }) {
    return Object.entries(policies).map(([policy, found]) => ({ policy, name: this.#titles.get(policy) ?? policy, ...found }));
  }

  #show({ action, error, direction, profile, milliseconds, policy_book, unsupported_language, explanation, judged: text }, rows) {
    const violated = rows.filter((row) => row.violated).map((row) => row.name).join(", ");
    const scored = Math.max(1, ...rows.map((row) => row.windows ?? 0));
    const omitted = Math.max(0, ...rows.map((row) => row.prompt_omitted ?? 0));
    const facts = [
      ["judged as", direction === "prompt" ? "a prompt" : "an answer"],
      ["by profile", `${profile}, policy book ${policy_book}`],
      ["took", duration(milliseconds)],
      rows.length && ["scored", scored === 1 ? "the text as it is" : `${plural(scored, "text")}: its readings, passages and windows; the worst counts`],
      omitted && ["not shown", `${count(omitted)} characters of the prompt, which is too long beside the answer`],
    ];
    this.#said.replaceChildren(verdict(action, error ? error.message : violated),
      languageWarning(unsupported_language) ?? "");
    this.#reasons.replaceChildren(
      judged(rows),
      h("div", null, this.#words(explanation, text)),
      h("dl", null, facts.filter(Boolean).map(([name, value]) => [h("dt", null, name), h("dd", null, value)])));
  }
}
