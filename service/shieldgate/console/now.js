// Now: how the server fares, out of its metrics, and the last decisions.

import { ask } from "./api.js";
import { columns } from "./charts.js";
import { Decisions } from "./decisions.js";
import { count, duration, failure, h, plural, table, tile } from "./page.js";
import { secondOpinion } from "./shadow.js";
import { ACTIONS } from "./verdict.js";

const EVERY = 3000;
const MINUTES = 10;

const REQUESTS = [{ name: "requests", class: "plain", of: (point) => point.requests }];
const VERDICTS = [
  { name: "blocked", class: "blocked", of: (point) => point.blocked },
  { name: "would block", class: "would", of: (point) => point.would_block },
  { name: "not judged", class: "failed", of: (point) => point.failed },
];
const QUEUE = [{ name: "waiting", class: "plain", of: (point) => point.queued }];

const sum = (numbers) => Object.values(numbers).reduce((total, number) => total + number, 0);
const seconds = (value) => duration(value * 1000);

export const view = {
  id: "now",
  title: "Now",
  build(root, setting) {
    const trouble = h("div");
    const about = h("p", { class: "pale" });
    const figures = h("div", { class: "tiles" });
    const charts = h("div", { class: "charts" });
    const policies = h("div");
    const drift = h("div");
    const opinion = h("section");
    const pause = h("button", { type: "button", "aria-pressed": "false", onclick: toggle }, "Pause");
    const decisions = new Decisions(setting, link);
    let shown = false, paused = false, timer = null, running = null;

    root.append(
      h("div", { class: "headline" }, h("h1", null, "Now"), pause), about, trouble, figures, charts,
      h("h2", null, "Verdicts by policy"), policies, opinion,
      h("h2", null, "Drift of the scores, in the last day"), drift,
      h("h2", null, "Last decisions"), decisions.element);
    document.addEventListener("visibilitychange", run);

    function link() {
      if (!shown) return;
      const query = decisions.setting.toString();
      history.replaceState(null, "", query ? `#now?${query}` : "#now");
    }
    function toggle() {
      paused = !paused;
      pause.textContent = paused ? "Go on" : "Pause";
      pause.setAttribute("aria-pressed", String(paused));
      run();
    }
    // Ask again and again, as long as somebody looks.
    function run() {
      clearTimeout(timer);
      running?.abort();
      running = null;
      if (shown && !paused && !document.hidden) look();
    }
    async function look() {
      const { signal } = (running = new AbortController());
      try {
        const found = await ask(`/admin/figures?minutes=${MINUTES}`, { signal });
        const other = await ask("/admin/shadow", { signal });
        await decisions.refresh(signal);
        if (signal.aborted) return;
        trouble.replaceChildren(...warnings(found));
        show(found);
        opinion.replaceChildren(...secondOpinion(other));
      } catch (error) {
        if (error.name === "AbortError") return;
        trouble.replaceChildren(failure(error, run));
        if (error.status === 401 || error.status === 403) return;
      }
      timer = setTimeout(look, EVERY);
    }

    function show(found) {
      const since = found.seconds < 90 ? plural(Math.round(found.seconds), "second") : plural(Math.round(found.seconds / 60), "minute");
      about.textContent = `${found.scorer || "No scorer is loaded yet"}, policy book ${found.policy_book}. What is counted is of the last ${since}.`;
      figures.replaceChildren(...tiles(found));
      charts.replaceChildren(
        columns("Requests", found.points, REQUESTS, MINUTES),
        columns("Violations", found.points, VERDICTS, MINUTES),
        columns("Texts that wait for the scorer", found.points, QUEUE, MINUTES));
      const rows = Object.entries(found.verdicts).sort(([a], [b]) => a.localeCompare(b));
      const shownResults = Object.entries(ACTIONS).filter(([result], i) => i < 3 || rows.some(([, results]) => results[result]));
      policies.replaceChildren(rows.length
        ? table(["policy", ...shownResults.map(([, name]) => h("span", { class: "number" }, name))],
          rows.map(([policy, results]) => [policy, ...shownResults.map(([result]) => h("span", { class: results[result] ? "number" : "number pale" }, count(results[result] ?? 0)))]))
        : h("p", { class: "pale" }, "Nothing was judged yet."));
      drift.replaceChildren(...drifts(found.drift));
    }

    return {
      shown(now) {
        shown = true;
        decisions.choose(now);
        run();
      },
      hidden() {
        shown = false;
        run();
      },
    };
  },
};

function warnings(found) {
  const open = Object.entries(found.breakers).filter(([, state]) => state !== "closed");
  const said = [
    found.ready ? null : "The scorer is not there yet: texts fail as their profile has it.",
    found.policies_refused ? "The policy files are refused, and an older book is in force. The log says why; so does Policies, where a draft begins with the files." : null,
    found.keys_refused ? "The file of API keys is refused, and older keys are in force. The log says why." : null,
    ...open.map(([name, state]) => `The breaker of ${name.replace("_", " ")} is ${state.replace("_", "-")}: what failed again and again is left alone for a moment.`),
  ].filter(Boolean);
  return said.length ? [h("div", { class: "notes", role: "status" }, said.map((line) => h("p", null, line)))] : [];
}

// Beside the rows of a calibration, which seldom are like traffic, and beside scores that somebody accepted.
const UNLIKE = { steady: "as calibrated", shifted: "has shifted", drifted: "unlike calibration" };
const MOVED = { steady: "as expected", shifted: "has shifted", drifted: "has drifted" };

// How far scores are from those that are expected, a line for each policy.
function drifts(found) {
  if (!found.length) return [h("p", { class: "pale" }, "Nothing says which scores to expect of this scorer: calibrate writes it.")];
  const of = (policy, direction) => found.find((one) => one.policy === policy && one.direction === direction);
  const cell = (one) => !one ? h("span", { class: "pale" }, "–")
    : one.state === null ? h("span", { class: "pale" }, `too few to tell (${count(one.scores)})`)
      : [h("span", { class: one.of && one.state !== "steady" ? "drifted" : null }, (one.of ? MOVED : UNLIKE)[one.state]), " ", h("small", null, `PSI ${one.psi.toFixed(2)}, ${plural(one.scores, "score")}`)];
  return [
    table(["policy", "prompts", "answers"], [...new Set(found.map(({ policy }) => policy))]
      .map((policy) => [policy, cell(of(policy, "prompt")), cell(of(policy, "response"))])),
    h("p", { class: "pale" }, "Traffic is seldom like the rows of a calibration. ", h("code", null, "shieldgate drift"), " says how far it is from them and what to do, and once you have looked makes it what to expect."),
  ];
}

function tiles(found) {
  const asked = sum(found.requests), lookups = sum(found.lookups);
  const results = (name) => Object.values(found.verdicts).reduce((total, each) => total + (each[name] ?? 0), 0);
  const refused = ["refused", "limited", "failed", "cut_off", "upstream_failed", "unjudged"]
    .filter((outcome) => found.requests[outcome]).map((outcome) => `${count(found.requests[outcome])} ${outcome.replace("_", " ")}`);
  const unjudged = results("failed_open") + results("failed_closed");
  const reasons = Object.entries(found.failures).map(([reason, number]) => `${count(number)} ${reason}`).join(", ");
  const { held, queue, forward } = found.times;
  const minutes = Math.max(found.seconds, 10) / 60;
  return [
    tile("Requests a minute", (asked / minutes).toFixed(asked / minutes < 10 ? 1 : 0), [plural(asked, "request"), ...refused].join(", ")),
    tile("Blocked", count(results("blocked")), "verdicts, each on one policy", results("blocked") > 0),
    tile("Would be blocked", count(results("would_block")), "by profiles that only monitor"),
    tile("Not judged", count(unjudged), unjudged || reasons ? reasons || "the guard failed" : "the guard answered all", unjudged > 0),
    tile("Streams held", held ? seconds(held.half) : "–", held ? `95 % at most ${seconds(held.most)}` : "no stream was held"),
    tile("Waiting now", count(found.queued), `${plural(found.in_progress, "request")} in progress${queue ? `; waited ${seconds(queue.half)}, 95 % at most ${seconds(queue.most)}` : ""}`),
    tile("A forward pass", forward ? seconds(forward.half) : "–", forward ? `95 % at most ${seconds(forward.most)}` : "none was needed"),
    tile("Found in the cache", lookups ? `${(100 * (lookups - (found.lookups.miss ?? 0)) / lookups).toFixed(0)} %` : "–", lookups ? `of ${plural(lookups, "score")}` : "no score was looked up"),
  ];
}
