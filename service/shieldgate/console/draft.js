// A draft of a policy file: checked as `policies check` does, and tried on rows. Nothing is written.

import { ask } from "./api.js";
import { chooser, count, failure, field, h, plural, probability } from "./page.js";
import { stacked, written } from "./tables.js";
import { ACTIONS, stops } from "./verdict.js";

const WHOLE = "the whole book";
const NEW = "a new file";
const BESIDE = "draft.yaml";
const MOST_ROWS = 50;

export class Draft {
  #files = {};
  #drafts = new Map(); // what was written for each file, until the page is left
  #file = null;
  #running = null;
  #text = h("textarea", { class: "yaml", rows: 14, spellcheck: "false", autocapitalize: "off", wrap: "off" });
  #rows = h("textarea", { class: "rows", rows: 5, spellcheck: "false" });
  #which = h("div");
  #result = h("div", { role: "status" });
  #profile;
  #go = h("button", { class: "main" }, "Check and try");

  constructor(profiles) {
    this.#profile = chooser(profiles, "default", null);
    this.element = h("div", null,
      h("p", { class: "pale" }, "Change a policy file here, and see whether it is in order and what it would change. The server keeps nothing of it: what you like, you put into the file yourself."),
      h("p", null, h("button", { type: "button", onclick: (event) => this.#begin(event.target) }, "Begin with the files in force")));
  }

  async #begin(button) {
    button.disabled = true;
    try {
      const { files, problems } = await ask("/admin/policies/files");
      this.#files = files;
      this.element.replaceChildren(this.element.firstChild, problemList(problems, null), this.#form());
      this.#choose(Object.keys(files)[0] ?? WHOLE);
      this.element.querySelector("select").focus();
    } catch (error) {
      button.disabled = false;
      this.element.querySelector(".failure")?.remove();
      this.element.append(failure(error));
    }
  }
  #form() {
    const options = [...Object.keys(this.#files), NEW, WHOLE];
    const choice = chooser(options, options[0], (file) => this.#choose(file));
    return h("form", { class: "draft", onsubmit: (event) => this.#submit(event) },
      h("div", { class: "editor" },
        field("The draft stands for", choice),
        field("Draft", this.#text, "YAML, as policy files are written. Tab leaves the field."),
        h("p", { class: "buttons" }, h("button", { type: "button", onclick: () => this.#restore() }, "Start again from what is in force"))),
      h("div", { class: "trial" },
        field("Rows to try it on", this.#rows, `A prompt on each line, ${MOST_ROWS} at most; for answers, or prompts of several lines, JSON: {"prompt": "…", "response": "…"}`),
        field("Tried under the profile", this.#profile),
        h("div", { class: "buttons" }, this.#go)),
      this.#result);
  }
  #choose(file) {
    if (this.#file !== null) this.#drafts.set(this.#file, this.#text.value);
    this.#file = file;
    this.#text.value = this.#drafts.get(file) ?? this.#files[file] ?? "";
    this.#result.replaceChildren();
  }
  async #restore() {
    try {
      this.#files = (await ask("/admin/policies/files")).files;
      this.#text.value = this.#files[this.#file] ?? "";
      this.#text.focus();
    } catch (error) {
      this.#result.replaceChildren(failure(error));
    }
  }

  async #submit(event) {
    event.preventDefault();
    this.#running?.abort();
    const { signal } = (this.#running = new AbortController());
    let rows;
    try {
      rows = read(this.#rows.value);
    } catch (error) {
      this.#result.replaceChildren(h("div", { class: "failure", role: "alert" }, h("p", null, error.message)));
      return;
    }
    const body = { draft: this.#text.value, rows, profile: this.#profile.value };
    if (this.#file !== WHOLE) body.file = this.#file === NEW ? BESIDE : this.#file;
    this.#result.replaceChildren(h("p", { class: "pale" }, rows.length ? `Judging ${plural(rows.length, "row")} by both …` : "Checking …"));
    try {
      const found = await ask("/admin/policies/draft", { body, signal });
      this.#result.replaceChildren(...this.#show(found, rows, body.file));
      this.#result.scrollIntoView({ block: "nearest" });
    } catch (error) {
      if (error.name !== "AbortError") this.#result.replaceChildren(failure(error));
    }
  }
  #show({ problems, warnings, version, changes, results }, rows, file) {
    if (problems.length) {
      const here = (problem) => problem.line !== null && problem.file === (file ?? BESIDE);
      return [h("h3", null, `It would be refused: ${plural(problems.length, "problem")}`),
        problemList(problems, (problem) => (here(problem) ? () => this.#point(problem.line) : null))];
    }
    return [
      h("h3", null, changes.length ? `In order: version ${version}` : `In order, and it says what is in force (version ${version})`),
      warnings.length ? h("div", { class: "notes" }, warnings.map((line) => h("p", null, line))) : null,
      changes.length ? changed(changes) : null,
      results.length ? tried(results, rows) : null,
    ].filter(Boolean);
  }
  // Select a line, and show it.
  #point(line) {
    const lines = this.#text.value.split("\n"), from = lines.slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0);
    this.#text.focus();
    this.#text.setSelectionRange(from, from + (lines[line - 1] ?? "").length);
    const height = this.#text.scrollHeight / Math.max(lines.length, 1);
    this.#text.scrollTop = Math.max(0, (line - 4) * height);
  }
}

// Read what stands in the field: a prompt on each line, or JSON.
function read(text) {
  const lines = text.split("\n").map((line, i) => [line.trim(), i + 1]).filter(([line]) => line);
  if (lines.length > MOST_ROWS) throw new Error(`There are ${count(lines.length)} rows, and ${MOST_ROWS} can be tried at once.`);
  return lines.map(([line, number]) => {
    if (!line.startsWith("{")) return { prompt: line };
    try {
      const { prompt, response } = JSON.parse(line);
      if (typeof prompt === "string" && ["string", "undefined"].includes(typeof response)) return { prompt, response };
    } catch { /* said below */ }
    throw new Error(`Line ${number} of the rows begins as JSON and is none with a "prompt" and perhaps a "response".`);
  });
}

function problemList(problems, action) {
  if (!problems.length) return "";
  return h("ol", { class: "problems" }, problems.map((problem) => {
    const place = problem.line === null ? null : `${problem.file}, line ${problem.line}`;
    const go = action?.(problem);
    return h("li", null, place === null ? null : go ? h("button", { type: "button", class: "link", onclick: go }, place) : h("strong", null, place), place === null ? "" : ": ", problem.what);
  }));
}

// Of two lists, what one has and the other has not.
function besides(before, after) {
  if (!Array.isArray(before) || !Array.isArray(after)) return written(after);
  const more = after.filter((one) => !before.includes(one)).map((one) => `+ ${one}`);
  const less = before.filter((one) => !after.includes(one)).map((one) => `− ${one}`);
  return [...more, ...less].join(", ") || `${written(after)} (in another order)`;
}

const SHOWN = 40;
function changed(changes) {
  const rows = changes.map(({ at, before, after }) => [h("code", null, at.split(/(?<=[./])/).flatMap((part) => [part, h("wbr")])), before === null ? "–" : written(before), after === null ? "–" : besides(before, after)]);
  const heads = ["what changes", "in force", "draft"];
  return h("div", { class: "changes" }, stacked(heads, rows.slice(0, SHOWN)),
    rows.length > SHOWN ? h("details", null, h("summary", null, `${count(rows.length - SHOWN)} more`), stacked(heads, rows.slice(SHOWN))) : null);
}

function tried(results, rows) {
  const all = results.map((result, i) => ({ ...result, row: rows[i], number: i + 1 }));
  const differs = all.filter(({ changed: does }) => does);
  const [stopped, passed, unjudged] = [
    all.filter(({ before, after }) => !stops(before.action) && stops(after.action)),
    all.filter(({ before, after }) => stops(before.action) && !stops(after.action)),
    all.filter(({ before, after }) => before.error || after.error)];
  const said = [
    differs.length ? `${count(differs.length)} of ${plural(all.length, "row")} would be judged otherwise` : `No verdict on ${plural(all.length, "row")} would change`,
    stopped.length ? `${count(stopped.length)} newly stopped` : null, passed.length ? `${count(passed.length)} no longer stopped` : null,
    unjudged.length ? `${count(unjudged.length)} could not be judged: ${(unjudged[0].after.error ?? unjudged[0].before.error).message}` : null];
  const same = all.filter(({ changed: does }) => !does);
  return h("div", null,
    h("h3", { class: "said" }, said.filter(Boolean).join("; ")),
    differs.length ? rowTable(differs) : null,
    same.length ? h("details", { open: !differs.length }, h("summary", null, `${plural(same.length, "row")} as before`), rowTable(same)) : null);
}

const rowTable = (rows) => h("div", { class: "tried" }, stacked(["row", "in force", "draft", "what the policies say"], rows.map(({ row, number, before, after, changed: does }) => [
  [h("small", null, `${number} `), h("span", { class: "text" }, shortened(row.response ?? row.prompt))],
  verdictCell(before), verdictCell(after, does), differences(before, after)])));

const verdictCell = ({ action, violated }, strong = false) => [
  h(strong ? "strong" : "span", { class: action === "allowed" ? null : "bad" }, ACTIONS[action]),
  violated.length ? h("small", { class: "id" }, violated.join(", ")) : null].filter(Boolean);

// Each policy that decides otherwise, or else the one that comes nearest to its threshold.
function differences(before, after) {
  const of = (found, id) => found.policies[id];
  const said = (found) => (found ? `${probability(found.probability)} of ${Number(found.threshold.toPrecision(4))}` : "not judged");
  const ids = [...new Set([...Object.keys(before.policies), ...Object.keys(after.policies)])];
  let shown = ids.filter((id) => Boolean(of(before, id)?.violated) !== Boolean(of(after, id)?.violated));
  const near = (id) => Math.max(...[of(before, id), of(after, id)].filter(Boolean).map((found) => found.probability / found.threshold));
  if (!shown.length) shown = ids.sort((a, b) => near(b) - near(a)).slice(0, 1);
  return shown.map((id) => h("small", { class: "id" }, h("code", null, id), ` ${said(of(before, id))}${said(of(before, id)) === said(of(after, id)) ? "" : ` → ${said(of(after, id))}`}`));
}

const shortened = (text) => (text.length > 160 ? `${text.slice(0, 160)} …` : text);
