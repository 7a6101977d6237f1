// Connect: for each client and gateway the lines to paste, with this server's own address.

import { address } from "./api.js";
import { groups } from "./clients.js";
import { h } from "./page.js";

const SAID_MS = 1500;

export const view = {
  id: "connect",
  title: "Connect",
  build(root) {
    const { host, hostname, port, protocol } = new URL(address);
    const at = { url: address, host, hostname, port: port || { "http:": 80, "https:": 443 }[protocol] };
    root.append(
      h("h1", null, "Connect"),
      h("p", { class: "pale" }, "This server is ", h("code", null, address), ". For ", h("code", null, "sg-..."),
        " give an API key of this server; where it has none, any word will do."),
      ...groups(at).map(([title, about, clients]) => h("section", null,
        h("h2", null, title), about ? h("p", { class: "pale" }, about) : null, clients.map(client))));
  },
};

function client({ name, about = null, lines }) {
  const text = h("pre", { tabindex: 0, "aria-label": `Lines for ${name}` }, lines);
  const copy = h("button", { type: "button", "aria-live": "polite", onclick: () => copied(text, copy) }, "Copy");
  return h("details", { class: "card client" }, h("summary", null, name),
    about ? h("p", { class: "pale" }, about) : null, h("div", { class: "lines" }, text, copy));
}

async function copied(text, button) {
  try {
    await navigator.clipboard.writeText(text.textContent);
    button.textContent = "Copied";
  } catch {
    // Browsers lend the clipboard to pages over HTTPS and on this machine only.
    getSelection().selectAllChildren(text);
    button.textContent = "Selected: press Ctrl + C";
  }
  setTimeout(() => { button.textContent = "Copy"; }, SAID_MS);
}
