// Policies: the book in force as people read it, and drafts of it.

import { ask } from "./api.js";
import { Draft } from "./draft.js";
import { chooser, failure, field, h, plural } from "./page.js";
import { stacked, written } from "./tables.js";

const DIRECTIONS = ["prompt", "response"];
const SOURCES = {
  profile: () => "the profile's own",
  calibration: () => "calibrated for this scorer",
  policy: () => "the policy's default",
  cap: ({ uncapped }) => `capped by the profile, else ${uncapped}`,
};

export const view = {
  id: "policies",
  title: "Policies",
  build(root, setting) {
    const about = h("p", { class: "pale" });
    const problem = h("div");
    const profiles = h("div");
    const policies = h("div");
    const draft = h("div");
    const whole = h("div", { hidden: true },
      h("h2", null, "Profiles"), profiles, h("h2", null, "Policies"), policies, h("h2", null, "Try a draft"), draft);
    let book = null;
    root.append(h("h1", null, "Policies"), about, problem, whole);

    async function load() {
      try {
        book = await ask("/v1/policies");
      } catch (error) {
        problem.replaceChildren(failure(error, load));
        return;
      }
      problem.replaceChildren();
      about.textContent = `The book in force, version ${book.version}: ${plural(book.policies.length, "policy", "policies")}, ${plural(book.profiles.length, "profile")}. `
        + (book.scorer ? `Thresholds are those for ${book.scorer}.` : "No scorer is loaded yet, so no calibration holds.");
      policies.replaceChildren(...book.policies.map(policyCard));
      choose(setting.get("profile"));
      if (!draft.firstChild) draft.append(new Draft(book.profiles.map(({ name }) => name)).element);
      whole.hidden = false;
    }

    function choose(name) {
      const profile = book.profiles.find((each) => each.name === name) ?? book.profiles[0];
      const choice = chooser(book.profiles.map((each) => each.name), profile.name, (chosen) => {
        history.replaceState(null, "", `#policies?${new URLSearchParams({ profile: chosen })}`);
        choose(chosen);
        profiles.querySelector("select").focus();
      });
      profiles.replaceChildren(field("Profile", choice, profile.description || null), ...profileTables(profile, book));
    }

    return {
      shown(now) {
        setting = now;
        load();
      },
    };
  },
};

function profileTables(profile, book) {
  const titles = new Map(book.policies.map(({ id, title }) => [id, title]));
  const own = new Set(book.own[profile.name]);
  const settings = Object.entries(profile).filter(([name]) => !["name", "description", "policies", "thresholds", "max_thresholds"].includes(name));
  const list = (entries) => h("dl", null, entries.map(([name, value]) => [h("dt", null, name), h("dd", null, written(value))]));
  const said = settings.filter(([name]) => own.has(name)), inherited = settings.filter(([name]) => !own.has(name));
  return [
    stacked(["policy", ...DIRECTIONS.map((direction) => `a ${direction} is flagged from`)],
      Object.entries(book.in_force[profile.name]).map(([id, thresholds]) => [
        [h("a", { href: "#", onclick: (event) => unfold(event, id) }, titles.get(id)), h("small", { class: "id" }, id)],
        ...DIRECTIONS.map((direction) => threshold(thresholds[direction]))])),
    said.length ? [h("h3", { class: "said" }, "What it says itself"), list(said)] : h("p", { class: "pale" }, "It says nothing else: the rest is as in every profile that leaves it out."),
    inherited.length ? h("details", null, h("summary", null, "What it leaves as it is in every profile"), list(inherited)) : null,
  ].flat().filter(Boolean);
}

const threshold = (found) => [
  h("span", { class: "threshold" }, String(Number(found.threshold.toPrecision(4)))), " ", h("small", null, SOURCES[found.source](found))];

function unfold(event, id) {
  event.preventDefault();
  const card = document.getElementById(`policy-${id}`);
  card.open = true;
  card.scrollIntoView({ block: "start" });
  card.querySelector("summary").focus({ preventScroll: true });
}

function policyCard(policy) {
  const guidelines = [...new Set(Object.values(policy.guidelines))].length === 1
    ? [["for both", policy.guidelines.prompt]]
    : DIRECTIONS.map((direction) => [`for ${direction}s`, policy.guidelines[direction]]);
  const others = Object.keys(policy.calibrated_for);
  const facts = [
    ...guidelines,
    ["flagged by default from", written(policy.thresholds)],
    policy.openai.length ? ["speaks for OpenAI's", policy.openai.join(", ")] : null,
    others.length ? ["calibrated for", others.join(", ")] : null,
  ].filter(Boolean);
  return h("details", { class: "card policy", id: `policy-${policy.id}` },
    h("summary", null, policy.title, " ", h("small", { class: "id" }, policy.id)),
    h("dl", null, facts.map(([name, value]) => [h("dt", null, name), h("dd", null, value)])),
    Object.entries(policy.calibration).map(([direction, fitted]) => calibration(direction, fitted)));
}

// What was fitted for the scorer that is loaded, and from what.
function calibration(direction, { threshold: from, temperature, bias, provenance }) {
  const facts = [["threshold", from], ["temperature", temperature], ["bias", bias], ...Object.entries(provenance)];
  return h("details", { class: "fitted" },
    h("summary", null, `Calibrated for ${direction}s: flagged from ${from}`),
    h("dl", null, facts.map(([name, value]) => [h("dt", null, name.replaceAll("_", " ")), h("dd", null, written(value))])));
}
