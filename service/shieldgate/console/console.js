// The frame: a tab for each view, and the fragment of the address, which says what is shown.

import { h } from "./page.js";
import { view as chat } from "./chat.js";
import { view as connect } from "./connect.js";
import { view as now } from "./now.js";
import { view as policies } from "./policies.js";
import { view as review } from "./review.js";
import { view as tryOut } from "./try.js";

// A view has an `id` for the fragment, a `title`, and `build(root, setting)`, which is called once,
// when it is first shown. What that gives may have `shown(setting)` and `hidden()`; a setting is
// the URLSearchParams behind the view's id: `#try?profile=strict`.
const VIEWS = [tryOut, chat, policies, now, review, connect];

const main = document.querySelector("main");
const nav = document.querySelector("nav");
const built = new Map();
let current = null;

function show() {
  const [id, query = ""] = location.hash.slice(1).split("?");
  const view = VIEWS.find((each) => each.id === id) ?? VIEWS[0];
  const setting = new URLSearchParams(query);
  if (current && current !== view) {
    built.get(current).root.hidden = true;
    built.get(current).calls?.hidden?.();
  }
  current = view;
  document.title = `${view.title} · shieldgate`;
  for (const link of nav.children) {
    if (link.dataset.view === view.id) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!built.has(view)) {
    const root = h("section", { id: `view-${view.id}`, "aria-label": view.title });
    main.append(root);
    built.set(view, { root });
    built.get(view).calls = view.build(root, setting);
  }
  built.get(view).root.hidden = false;
  built.get(view).calls?.shown?.(setting);
}

// Until the scorer is there, say so; what is asked meanwhile has a failure that says it, too.
async function watchLoading() {
  const state = document.getElementById("state");
  try {
    const { status } = await (await fetch(new URL("../readyz", import.meta.url))).json();
    state.textContent = status === "ready" ? "" : status;
    if (status !== "ready") setTimeout(watchLoading, 2000);
  } catch {
    state.textContent = "not reached";
    setTimeout(watchLoading, 5000);
  }
}

nav.append(...VIEWS.map((view) => h("a", { href: `#${view.id}`, "data-view": view.id }, view.title)));
addEventListener("hashchange", show);
show();
watchLoading();
