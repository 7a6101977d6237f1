// Connect: what to paste into each client.
import { address } from "./api.js";
import { h } from "./page.js";

export const view = {
  id: "connect", title: "Connect",
  build(root) { root.append(h("h1", null, "Connect"), h("p", null, address)); },
};
