// Try: what the policies say of a text.
import { h } from "./page.js";

export const view = { id: "try", title: "Try", build(root) { root.append(h("h1", null, "Try")); } };
