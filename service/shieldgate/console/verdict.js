// How a verdict is shown: what becomes of the text, and each policy's probability.

import { h, probability } from "./page.js";

// What became of a text, in the order in which they are counted.
export const ACTIONS = {
  allowed: "allowed", blocked: "blocked", would_block: "would block",
  failed_open: "passed unjudged", failed_closed: "stopped unjudged",
};

export const stops = (action) => ["blocked", "failed_closed"].includes(action);

export function verdict(action, about) {
  const [first, ...rest] = ACTIONS[action];
  const said = [first.toUpperCase(), ...rest, action === "would_block" ? ", but the profile only monitors" : ""].join("");
  return h("span", { class: `verdict ${action}` }, h("strong", null, said), about ? `: ${about}` : null);
}

// Warn where nothing found says little, by the ISO 639 code of the text's language.
export const languageWarning = (code) => code && h("p", { class: "notes" },
  `The text, or a part of it, seems to be in ${new Intl.DisplayNames(["en"], { type: "language" }).of(code)}, which the scorer is not said to know: that nothing is found is no sign that it is harmless.`);

// A line for each policy: { name, policy, probability, violated }, with its `threshold` and
// `calibrated` where they are known.
export const judged = (rows) => h("ul", { class: "judged" }, rows.map(line));

function line({ name, policy, probability: p, threshold = null, violated, calibrated = null }) {
  const bar = h("div", { class: "bar", "aria-hidden": "true" }, h("i"), threshold === null ? null : h("b"));
  bar.style.setProperty("--probability", p);
  if (threshold !== null) bar.style.setProperty("--threshold", threshold);
  const about = [
    policy === name ? null : policy,
    threshold === null ? null : `threshold ${probability(threshold)}`,
    calibrated === false ? "not calibrated" : null].filter(Boolean).join(" · ");
  return h("li", { class: violated ? "violated" : null, "data-policy": policy, "data-probability": p },
    h("span", { class: "name" }, name),
    h("span", { class: "value" }, probability(p)), bar,
    h("small", null, h("span", null, about), violated ? h("strong", null, "violated") : null));
}

// Say beside each number of `element` how far it is from that in `first`, by policy.
export function compare(element, first) {
  for (const item of element.querySelectorAll("[data-policy]")) {
    const difference = item.dataset.probability - first.get(item.dataset.policy);
    item.querySelector(".value").prepend(h("small", null, `${said(difference)} `));
  }
}

function said(difference) {
  if (Number.isNaN(difference)) return "only here";
  if (Math.abs(difference) < 0.0005) return "the same";
  return `${difference < 0 ? "−" : "+"}${Math.abs(difference).toFixed(3)}`;
}
