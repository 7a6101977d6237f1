// Chat: through the guard to the model behind it, and what the guard does with the answer.

import { ask, request } from "./api.js";
import { Answer } from "./answer.js";
import { failure, field, h, link } from "./page.js";
import { choose, NO_PROFILE, profileChooser } from "./profiles.js";
import { events } from "./sse.js";

const BLOCKED = "content_filter";

export const view = {
  id: "chat",
  title: "Chat",
  build(root, setting) {
    const model = h("input", { list: "models", autocomplete: "off", spellcheck: "false", required: true });
    const models = h("datalist", { id: "models" });
    const none = h("small");
    const profile = h("div");
    const said = h("textarea", { rows: 2, required: true });
    const send = h("button", { class: "main" }, "Send");
    const stop = h("button", { type: "button", onclick: () => running?.abort() }, "Stop");
    const anew = h("button", { type: "button", onclick: begin }, "Begin anew");
    const log = h("div", { class: "log", role: "log", "aria-label": "Conversation" });
    const problem = h("div");
    const form = h("form", { onsubmit: submit, onkeydown: onKey },
      field("Message", said, "Ctrl + Enter sends, too"), h("div", { class: "buttons" }, send, stop, anew));
    const settings = h("div", { class: "settings" }, h("div", null, field("Model", model), none, models), profile);
    let book = null;
    let chosen = null;
    let running = null;
    let messages = [];

    root.append(
      h("h1", null, "Chat"),
      h("p", { class: "pale" },
        "Through the guard to the model behind this server: what is held back, judged, and released when. ",
        "The conversation stays in this tab."),
      problem, settings, log, form);
    settings.hidden = form.hidden = true;
    stop.hidden = true;
    load();

    async function load() {
      problem.replaceChildren();
      try {
        let known;
        [book, known] = await Promise.all([ask("/v1/policies"), ask("/v1/models")]);
        // Upstream's come first, then our profiles and the scorer.
        const ids = known.data.map((each) => each.id);
        const upstreams = ids.slice(0, ids.lastIndexOf(book.profiles[0].name));
        models.replaceChildren(...upstreams.map((id) => h("option", { value: id })));
        model.value = setting.get("model") ?? upstreams[0] ?? "";
        if (!upstreams.length) none.textContent = "None is listed: there is no model behind this server, or it does not list them.";
      } catch (error) {
        problem.append(failure(error, load));
        return;
      }
      chosen = profileChooser(book, changed);
      choose(chosen, setting.get("profile") ?? "");
      profile.append(field("Profile", chosen, "Judges beside the operator's; the stricter word holds."));
      model.addEventListener("change", changed);
      settings.hidden = form.hidden = false;
    }
    function changed() {
      const now = new URLSearchParams();
      if (model.value) now.set("model", model.value);
      if (chosen.value) now.set("profile", chosen.value);
      link(view.id, now);
    }

    function begin() {
      running?.abort();
      messages = [];
      log.replaceChildren();
      said.focus();
    }
    function onKey(event) {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    }
    async function submit(event) {
      event.preventDefault();
      if (running) return;
      const before = messages;
      const asked = { role: "user", content: said.value };
      const answer = new Answer(asked.content, book);
      log.append(answer.element);
      said.value = "";
      answer.element.scrollIntoView({ block: "nearest" });
      running = new AbortController();
      send.disabled = true;
      stop.hidden = false;
      try {
        await converse([...before, asked], answer, running.signal);
      } catch (error) {
        if (error.name === "AbortError") answer.stopped();
        else if (error.code === BLOCKED && error.body?.moderation) answer.promptBlocked(error.body.moderation);
        else answer.failed(error);
      } finally {
        running = null;
        send.disabled = false;
        stop.hidden = true;
        answer.element.scrollIntoView({ block: "nearest" });
      }
      // What was blocked would be judged again with every later message.
      if (answer.text && !answer.blocked) before.push(asked, { role: "assistant", content: answer.text });
    }
    async function converse(told, answer, signal) {
      const block = { mode: "block" };
      const moderation = chosen.value
        ? { model: chosen.value, policy: { input: block, output: block } }
        : { model: NO_PROFILE };
      const body = { model: model.value, stream: true, messages: told, moderation };
      const response = await request("/v1/chat/completions", { body, signal });
      answer.judgedBy(response.headers.get("x-shieldgate-profile"));
      for await (const data of events(response)) answer.take(data);
      answer.ended();
    }

    return {
      shown(now) {
        if (book && now.size) {
          model.value = now.get("model") ?? model.value;
          choose(chosen, now.get("profile") ?? "");
        } else if (chosen) changed();
        else setting = now;
      },
    };
  },
};
