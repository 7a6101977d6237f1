// What all views are made of: elements, and how numbers and failures are shown.

const SVG = "http://www.w3.org/2000/svg";

// Children that are strings become text nodes: no text is ever read as markup. Attributes that
// begin with "on" are listeners, and null leaves one out. The page's policy forbids the attribute
// `style`; `element.style.setProperty` is allowed.
function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null));
  return element;
}
export const h = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
export const s = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);

export const count = (value) => value.toLocaleString("en");
export const plural = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;
export const duration = (ms) =>
  ms < 10 ? `${ms.toFixed(1)} ms` : ms < 1000 ? `${ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(1)} s`;

// A probability as people compare it; only what is certain reads 0 or 1.
export function probability(p) {
  if (p > 0 && p < 0.001) return "<0.001";
  if (p < 1 && p > 0.999) return ">0.999";
  return p.toFixed(3);
}

let fields = 0;
// A field with its label above it and, where there is one, a hint below.
export function field(label, control, hint = null) {
  control.id ||= `field-${++fields}`;
  if (hint !== null) control.setAttribute("aria-describedby", `${control.id}-hint`);
  return h("div", { class: "field" },
    h("label", { for: control.id }, label), control,
    hint === null ? null : h("small", { id: `${control.id}-hint` }, hint));
}

export const tile = (name, value, about, warns = false) =>
  h("div", { class: warns ? "tile warns" : "tile" }, h("h3", null, name), h("p", { class: "value" }, value), h("small", null, about));

export function table(heads, rows) {
  return h("div", { class: "scroll" }, h("table", null,
    h("thead", null, h("tr", null, heads.map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", null, rows.map((cells) => h("tr", null, cells.map((cell) => h("td", null, cell)))))));
}

export const chooser = (options, chosen, onchange) =>
  h("select", { onchange: (event) => onchange?.(event.target.value) },
    options.map((option) => h("option", { value: option, selected: option === chosen }, option)));

// What went wrong, in the server's words; `again` tries once more.
export function failure(error, again = null) {
  const facts = [error.code, error.requestId].filter(Boolean).join(" · ");
  return h("div", { class: "failure", role: "alert" },
    h("p", null, error.message),
    facts ? h("small", null, facts) : null,
    again ? h("p", null, h("button", { type: "button", onclick: again }, "Try again")) : null);
}

// Write the setting of a view into the address, for as long as the view is what is shown.
export function link(view, setting) {
  const [shown] = location.hash.slice(1).split("?");
  if (shown && shown !== view) return;
  history.replaceState(null, "", setting.size ? `#${view}?${setting}` : `#${view}`);
}
