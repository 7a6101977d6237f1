// How views ask this server, with the key of the person who looks.

const KEPT = "shieldgate.key";
const ROOT = new URL("../", import.meta.url);

// This server's own address, without a slash at the end.
export const address = ROOT.href.replace(/\/$/, "");

// Why a request has no answer. `status` is 0 where nothing answered; `body` is the answer's JSON.
export class Problem extends Error {
  constructor(message, { status = 0, code = null, param = null, requestId = null, body = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param, requestId, body });
  }
}

// Give the response to a request; throw a Problem where it is an error. A `body` is sent as JSON.
// `keepalive` asks even where the page is gone by then. Where a key is missing or isn't one, or lacks the right, the person is asked for another.
export async function request(path, { body, signal, keepalive } = {}) {
  let shown = key;
  let response = await send(path, body, signal, keepalive);
  while (response.status === 401 || (response.status === 403 && shown !== null)) {
    const refused = await problemOf(response);
    // Meanwhile another request may have been given one.
    if (key === shown && !(await askForKey(key === null ? "" : refused.message))) throw refused;
    shown = key;
    response = await send(path, body, signal, keepalive);
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

// The same, read as JSON.
export const ask = async (path, options) => (await request(path, options)).json();

async function send(path, body, signal, keepalive) {
  const headers = {};
  if (key !== null) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  try {
    return await fetch(new URL(path.replace(/^\//, ""), ROOT), {
      method: body === undefined ? "GET" : "POST",
      headers, signal, keepalive, body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server does not answer. Is it still running?");
  }
}

async function problemOf(response) {
  const about = { status: response.status, requestId: response.headers.get("x-request-id") };
  try {
    const body = await response.json();
    const { message, code, param } = body.error;
    return new Problem(message, { ...about, code, param, body });
  } catch {
    return new Problem(`The server answered ${response.status}.`, about);
  }
}

// -- the key ---------------------------------------------------------------------------------

const dialog = document.getElementById("key");
const forget = document.getElementById("forget");
let key = null;
let asking = null;

// Several requests may be refused at the same time, and the person is asked once.
function askForKey(why) {
  asking ??= new Promise((done) => {
    const given = dialog.querySelector("input");
    document.getElementById("key-why").textContent = why;
    given.value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      const used = dialog.returnValue === "use";
      if (used) keep(given.value.trim());
      given.value = "";
      asking = null;
      done(used);
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

function keep(given) {
  key = given;
  forget.hidden = key === null;
  try {
    if (key === null) sessionStorage.removeItem(KEPT);
    else sessionStorage.setItem(KEPT, key);
  } catch {
    // A browser that lends pages no storage: the key is known until the page is left.
  }
}
forget.addEventListener("click", () => {
  keep(null);
  location.reload();
});
try {
  keep(sessionStorage.getItem(KEPT));
} catch {
  // The same.
}
