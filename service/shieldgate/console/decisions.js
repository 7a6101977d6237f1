// The last decisions: records without texts, filtered, the newest first.

import { ask } from "./api.js";
import { chooser, failure, field, h, plural, probability } from "./page.js";
import { ACTIONS, judged } from "./verdict.js";

const ALL = "all";
const PAGE = 25;

export class Decisions {
  #chosen = { caller: ALL, policy: ALL, action: ALL };
  #filters = {};
  #rows = new Map(); // by place, so that what is unfolded or has the focus stays
  #policies = null;
  #before = null;
  #next = null;
  #changed;
  #list = h("ol", { class: "decisions" });
  #about = h("p", { class: "pale", role: "status" });
  #problem = h("div");
  #newest = h("button", { type: "button", onclick: () => this.#turn(null) }, "Newest");
  #older = h("button", { type: "button", onclick: () => this.#turn(this.#next) }, "Older");

  // `changed` is called when another filter was chosen.
  constructor(setting, changed) {
    this.#changed = changed;
    this.element = h("div", null,
      h("div", { class: "filters" }, ["caller", "policy", "action"].map((name) => {
        this.#filters[name] = chooser([ALL], ALL, (value) => this.#filter(name, value));
        return field(name === "policy" ? "violates" : name, this.#filters[name]);
      })),
      this.#about, this.#problem, this.#list, h("div", { class: "buttons" }, this.#newest, this.#older));
    this.#offer("action", Object.keys(ACTIONS));
    this.choose(setting);
  }

  get setting() {
    return new URLSearchParams(Object.entries(this.#chosen).filter(([, value]) => value !== ALL));
  }
  choose(setting) {
    for (const name of Object.keys(this.#chosen)) {
      this.#chosen[name] = setting.get(name) ?? ALL;
      this.#offer(name, []);
    }
    this.#before = null;
  }

  // Ask for what is shown; older pages stay as they are.
  async refresh(signal) {
    if (!this.#policies) {
      this.#policies = (await ask("/v1/policies", { signal })).policies;
      this.#offer("policy", this.#policies.map(({ id }) => id));
    }
    if (this.#before === null) await this.#load(signal);
  }
  async #load(signal) {
    const query = this.#query;
    const found = await ask(`/admin/decisions?${query}`, { signal });
    // Meanwhile other ones may be wanted, which are asked for by themselves.
    if (query === this.#query) this.#show(found);
  }
  get #query() {
    const query = this.setting;
    query.set("limit", PAGE);
    if (this.#before !== null) query.set("before", this.#before);
    return query.toString();
  }
  async #turn(before) {
    this.#before = before;
    try {
      await this.#load();
      this.#problem.replaceChildren();
      this.element.querySelector("select").closest(".filters").scrollIntoView({ block: "nearest" });
    } catch (error) {
      this.#problem.replaceChildren(failure(error, () => this.#turn(before)));
    }
  }
  #filter(name, value) {
    this.#chosen[name] = value;
    this.#changed();
    this.#turn(null);
  }

  // Add to what can be chosen, and show what is.
  #offer(name, values) {
    const select = this.#filters[name];
    const known = new Set([...select.options].map((option) => option.value));
    const wanted = [...values, this.#chosen[name]].filter((value) => !known.has(value));
    select.append(...wanted.map((value) => h("option", { value }, (name === "action" && ACTIONS[value]) || value)));
    select.value = this.#chosen[name];
  }

  #show({ decisions, next, callers, kept, since, processes }) {
    this.#offer("caller", callers);
    this.#next = next;
    this.#older.disabled = next === null;
    this.#newest.disabled = this.#before === null;
    this.#about.textContent = kept
      ? `${decisions.length ? "" : "None of them is like that. "}The last ${plural(kept, "decision")} are in memory${processes > 1 ? ` of ${processes} processes` : ""}, since ${new Date(since).toLocaleString()}. Texts are not.`
      : "There was no decision yet.";
    const places = decisions.map(({ at }) => at);
    if (String(places) === String([...this.#rows.keys()])) return;
    this.#rows = new Map(decisions.map((decision) => [decision.at, this.#rows.get(decision.at) ?? row(decision)]));
    const focused = document.activeElement;
    this.#list.replaceChildren(...this.#rows.values());
    if (this.#list.contains(focused)) focused.focus({ preventScroll: true });
  }
}

function row({ timestamp, record }) {
  const found = Object.entries(record.policies);
  const worst = found.filter(([, each]) => each).sort(([, a], [, b]) => b.probability / b.threshold - a.probability / a.threshold)[0];
  const why = record.violated.length ? record.violated.join(", ")
    : record.failure ?? (worst ? `${worst[0]} ${probability(worst[1].probability)}, threshold ${worst[1].threshold}` : "");
  const time = new Date(timestamp);
  return h("li", null, h("details", { class: record.action },
    h("summary", null,
      h("time", { datetime: timestamp, title: time.toLocaleString() }, time.toLocaleTimeString()),
      h("span", { class: "action" }, ACTIONS[record.action]),
      h("span", { class: "why" }, why),
      h("span", { class: "who" }, [record.caller, record.direction].filter(Boolean).join(", "))),
    judged(found.filter(([, each]) => each).map(([policy, each]) => ({ policy, name: policy, ...each, violated: record.violated.includes(policy) }))),
    h("dl", null, facts(record).map(([name, value]) => [h("dt", null, name), h("dd", null, value)]))));
}

const facts = (record) => [
  ["request", h("code", null, record.request_id)],
  ["profile", record.profile],
  ["policy book", record.policy_book],
  ["scorer", record.scorer || "none was loaded"],
  ["not judged", record.failure],
  ["unknown to the scorer", record.unsupported_language && `the text's language, ${record.unsupported_language}`],
  ["digest of the prompt", record.prompt_digest && h("code", null, record.prompt_digest)],
  ["digest of the answer", record.response_digest && h("code", null, record.response_digest)],
].filter(([, value]) => value);
