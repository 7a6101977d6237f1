// Review: what the gateway kept, one text at a time, labelled by one key or button.

import { ask, request } from "./api.js";
import { chooser, count, failure, field, h, link, plural, probability } from "./page.js";
import { ending, texts, WHY } from "./kept.js";

const ALL = "all policies";
const STORED = "shieldgate.review";
// As in a terminal.
const KEYS = { y: "Violates it", n: "Does not", a: "No to the rest", s: "Skip", u: "Undo" };

export const view = {
  id: "review",
  title: "Review",
  build(root, setting) {
    const review = new Review();
    root.append(review.element);
    let shown = false;
    document.addEventListener("keydown", (event) => {
      if (!shown || event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
      if (event.target.closest("input:not([type=checkbox]), select, textarea, dialog")) return;
      review.press(letter(event));
    });
    addEventListener("pagehide", () => review.leave());
    return {
      shown(now) {
        shown = true;
        review.choose(now.get("policy"));
      },
      hidden() {
        shown = false;
      },
    };
  },
};

// Where letters are others than Latin ones, the key at the same place is meant.
const letter = ({ key, code }) => (/^[a-z]$/i.test(key) || key.length > 1 ? key : code.slice(3)).toLowerCase();

class Review {
  #place = remembered();
  #policy = undefined; // the only one to be asked about, null for all
  #text = null;
  #at = 0; // which of its questions
  #steps = []; // what "undo" takes back, the last one at the end
  #given = 0;
  #labelled = 0; // texts, by whomever
  #busy = false;
  #running = Promise.resolve();

  #about = h("p", { class: "pale" });
  #notice = h("div");
  #body = h("div", { class: "kept", tabindex: "0", role: "group", "aria-label": "The text" });
  #asked = h("div", { role: "status" });
  #end = h("div", { role: "status" });
  #buttons = Object.fromEntries(Object.entries(KEYS).map(([key, name]) => [
    key, h("button", { type: "button", "aria-keyshortcuts": key, onclick: () => this.press(key) }, name, " ", h("kbd", null, key))]));
  #answers = h("div", { class: "answers", role: "group", "aria-label": "Your answer" }, Object.values(this.#buttons));
  #download = h("button", { type: "button", onclick: () => this.#alone(() => save()) }, "Download labels");
  #policies = chooser([ALL], ALL, (id) => {
    this.choose(id === ALL ? null : id);
    // Who chose by hand answers by keys now, which would choose others here.
    if (!this.#policies.matches(":focus-visible")) this.#policies.blur();
  });
  #scores = h("input", { type: "checkbox", id: "review-scores", onchange: () => this.#draw() });
  #settings = h("div", { class: "filters" }, field("Ask about", this.#policies),
    h("div", { class: "field" }, h("label", { for: "review-scores" }, this.#scores, " Show scores"),
      h("small", null, "Who sees them leans towards them.")));

  constructor() {
    this.element = h("div", { class: "review" },
      h("div", { class: "headline" }, h("h1", null, "Review"), this.#download),
      this.#about, this.#notice, this.#body, this.#asked, this.#end, this.#answers, this.#settings);
    this.#draw();
  }

  // Ask about one policy, or about all: from the first text on that lacks a label.
  choose(policy) {
    if (policy === this.#policy && this.#text) return;
    if (policy !== this.#policy && this.#policy !== undefined) this.#remember("");
    this.#policy = policy;
    this.#offer(policy ? [policy] : []);
    this.#policies.value = policy ?? ALL;
    link("review", new URLSearchParams(policy ? { policy } : {}));
    this.#running.then(() => this.#alone(() => this.#next()));
  }

  // Give back what nobody will answer here.
  leave() {
    if (this.#text) request("/admin/review/leave", { body: { reviewer: this.#place.reviewer }, keepalive: true }).catch(() => {});
  }

  press(key) {
    if (key === "u") this.#alone(() => this.#takeBack());
    if (!this.#text) return;
    if (key === "y") this.#alone(() => this.#answer(1, 1));
    if (key === "n") this.#alone(() => this.#answer(0, 1));
    if (key === "a") this.#alone(() => this.#answer(0));
    if (key === "s") this.#alone(() => this.#answer(null, 1));
  }

  // Do one thing after the other: an answer is kept before the next question is there, and what is
  // pressed meanwhile is no answer to it.
  #alone(work) {
    if (!this.#busy) this.#running = this.#run(work);
  }
  async #run(work) {
    this.#busy = true;
    this.element.ariaBusy = "true";
    try {
      await work();
    } catch (error) {
      this.#notice.replaceChildren(failure(error, this.#text ? null : () => this.#alone(() => this.#next())));
      this.#draw();
    } finally {
      this.#busy = false;
      this.element.ariaBusy = "false";
    }
  }

  async #next(why = null) {
    const { reviewer, after } = this.#place;
    const policies = this.#policy ? [this.#policy] : null;
    const found = await ask("/admin/review/next", { body: { reviewer, after: after || null, policies } });
    this.#labelled = found.labelled;
    this.#settings.hidden = !found.keeping;
    this.#show(found.text, 0);
    this.#about.textContent = found.keeping ? standing(found, this.#given) : "";
    this.#notice.replaceChildren(why ?? "");
    if (!found.text) this.#end.replaceChildren(...ending(found, Boolean(after), () => this.#again()));
    // Nobody waits for this: who looks may answer already.
    if (found.keeping && this.#policies.length < 3) ask("/v1/policies").then(({ policies: all }) => this.#offer(all.map(({ id }) => id)), () => {});
  }

  #again() {
    this.#remember("");
    this.#alone(() => this.#next());
  }

  // Answer so many questions, or all that are left; null is no label.
  async #answer(label, questions = Infinity) {
    const [text, at] = [this.#text, this.#at];
    const asked = text.questions.slice(at, at + questions).map(({ policy }) => policy);
    const labelled = label === null ? [] : asked;
    const refused = labelled.length ? await this.#tell(text, labelled, label) : null;
    if (!refused) {
      this.#steps.push({ text, at, labelled, after: this.#place.after });
      this.#given += labelled.length;
      this.#at += asked.length;
    }
    if (!refused && this.#at < text.questions.length) {
      this.#notice.replaceChildren();
      this.#draw();
      return;
    }
    this.#text = null; // whatever comes now, it is answered
    this.#remember(text.id);
    await this.#next(refused && failure(refused));
  }

  async #takeBack() {
    const step = this.#steps.at(-1);
    if (!step) return;
    const refused = await this.#tell(step.text, step.labelled, null);
    this.#steps.pop();
    if (!refused) {
      this.#given -= step.labelled.length;
      this.#remember(step.after);
      this.#show(step.text, step.at);
    }
    this.#notice.replaceChildren(refused ? failure(refused) : "");
    this.#draw();
  }

  // Keep labels of a text; gives why that can't ever be done, and throws why it can't be done now.
  async #tell({ id }, policies, label) {
    const labels = Object.fromEntries(policies.map((policy) => [policy, label]));
    try {
      await ask("/admin/review/label", { body: { reviewer: this.#place.reviewer, id, labels } });
      return null;
    } catch (error) {
      if (error.status === 404 || error.status === 409) return error;
      throw error;
    }
  }

  #show(text, at) {
    [this.#text, this.#at] = [text, at];
    this.#body.replaceChildren(...(text ? texts(text) : []));
    this.#body.scrollTop = 0;
    this.#draw();
  }

  #draw() {
    const asked = this.#text?.questions[this.#at];
    this.#download.hidden = !this.#labelled && !this.#given;
    this.#body.hidden = !asked;
    this.#asked.replaceChildren(...(asked ? this.#question(asked) : []));
    this.#end.hidden = Boolean(asked);
    this.#answers.hidden = !asked && !this.#steps.length;
    for (const [key, each] of Object.entries(this.#buttons)) each.hidden = key !== "u" && !asked;
    this.#buttons.u.disabled = !this.#steps.length;
  }

  #question({ policy, title, guideline, probability: p, threshold }) {
    const { questions, chosen } = this.#text;
    const place = questions.length > 1 ? ` · ${this.#at + 1} of ${questions.length}` : "";
    return [
      h("h2", null, title, " ", h("small", null, policy, place)),
      h("p", null, guideline),
      this.#scores.checked ? h("p", { class: "pale" },
        `Probability ${probability(p)}, threshold ${Number(threshold.toPrecision(4))}. Kept because ${chosen.map((why) => WHY[why]).join(" and ")}.`) : "",
    ];
  }

  #offer(ids) {
    const known = new Set([...this.#policies.options].map(({ value }) => value));
    this.#policies.append(...ids.filter((id) => !known.has(id)).map((id) => h("option", { value: id }, id)));
  }

  #remember(after) {
    this.#place.after = after;
    try {
      sessionStorage.setItem(STORED, JSON.stringify(this.#place));
    } catch {
      // A browser that lends pages no storage: a reload begins with the first text again.
    }
  }
}

// Who this tab is, and behind which text it asks; no word of a text.
function remembered() {
  try {
    const { reviewer, after } = JSON.parse(sessionStorage.getItem(STORED));
    return { reviewer, after };
  } catch {
    const random = crypto.getRandomValues(new Uint8Array(16));
    return { reviewer: [...random].map((byte) => byte.toString(16).padStart(2, "0")).join(""), after: "" };
  }
}

const standing = ({ kept, unfinished, elsewhere, locked }, given) => [
  `${count(unfinished)} of ${plural(kept, "kept text")} ${unfinished === 1 ? "lacks" : "lack"} a label`,
  elsewhere ? `${count(elsewhere)} with others now` : null,
  locked && locked < kept ? `${count(locked)} not opened by this server's keys` : null,
  given ? `${plural(given, "label")} given here` : null,
].filter(Boolean).join(" · ");

async function save() {
  const rows = await (await request("/admin/review/labels")).blob();
  const url = URL.createObjectURL(rows);
  h("a", { href: url, download: "labelled.jsonl" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
