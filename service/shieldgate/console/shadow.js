// A second opinion: what a candidate that decides nothing says of live traffic.

import { count, duration, h, plural, table, tile } from "./page.js";
import { stops } from "./verdict.js";

// Its part of Now; nothing where no candidate judges.
export function secondOpinion(found) {
  if (!found) return [];
  const texts = (kind) => found.texts[kind] ?? 0;
  const decided = (wanted) => found.decisions.filter(wanted).reduce((total, each) => total + each.texts, 0);
  const judged = texts("judged");
  const same = decided((each) => each.in_force === each.candidate);
  const newly = decided((each) => stops(each.candidate) && !stops(each.in_force));
  const longer = decided((each) => stops(each.in_force) && !stops(each.candidate));
  const lost = ["failed", "dropped", "skipped"].filter(texts).map((kind) => `${count(texts(kind))} ${kind}`);
  const alike = judged ? Math.floor((1000 * same) / judged) / 10 : null; // 100 only where all are
  const by = found.profile ? `profile ${found.profile} of policy book` : "policy book";
  return [
    h("h2", null, "Second opinion"),
    h("p", { class: "pale" }, `${found.scorer || "Its scorer is not there yet"}, ${by} ${found.policy_book}; judges ${share(found.share)}, decides nothing. Counted since the start.`),
    h("div", { class: "tiles" },
      tile("Judged twice", count(judged), lost.length ? lost.join(", ") : "none was lost", texts("failed") > 0),
      tile("Decided alike", alike === null ? "–" : `${alike} %`, judged ? `${count(judged - same)} otherwise` : "nothing was judged yet"),
      tile("Would stop or let pass", `+${count(newly)} −${count(longer)}`, "newly blocked, no longer blocked"),
      tile("Computed for it", duration(1000 * found.seconds), plural(found.tokens, "token"))),
    found.flips.length ? table(
      ["policy", "direction", number("newly violated"), number("no longer")],
      flips(found.flips).map(([policy, direction, flip]) => [policy, direction, number(count(flip.newly_violated ?? 0)), number(count(flip.no_longer_violated ?? 0))])) : null,
  ].filter(Boolean);
}

const share = (part) => (part === 1 ? "all decisions" : `${+(100 * part).toPrecision(3)} % of all decisions`);
const number = (text) => h("span", { class: "number" }, text);

// Both flips of a policy and direction, in one row.
function flips(found) {
  const rows = new Map();
  for (const { policy, direction, flip, texts } of found) {
    const at = `${policy} ${direction}`;
    if (!rows.has(at)) rows.set(at, [policy, direction, {}]);
    rows.get(at)[2][flip] = texts;
  }
  return [...rows.values()];
}
