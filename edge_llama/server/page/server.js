// What the page asks of its server, and of nobody else: addresses are relative, and so is the policy connect-src.

const KEY = "edge-llama-key";

/** What the server, or the way to it, said instead of an answer; `message` is for people. */
export class ServerError extends Error {
  constructor(message, { status = 0, code = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let askForKey = async () => null;
let asked = null; // the question that is open: requests that fail together ask once

/** Have `ask(wasWrong)` called where the server wants a key; it gives one, or null. */
export function useKeysFrom(ask) {
  askForKey = ask;
}

/** The response to a request; a key is asked for as often as it takes. Raises ServerError, and AbortError. */
export async function request(path, { body = null, signal = null } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const response = await sent(path, body, signal, key);
    if (response.ok) return response;
    if (response.status !== 401) throw await refusal(response);
    if (sessionStorage.getItem(KEY) === key && !(await gotKey(key !== null))) {
      throw new ServerError("This server answers only with its key.", { status: 401 });
    }
  }
}

async function sent(path, body, signal, key) {
  const headers = {};
  if (body) headers["Content-Type"] = "application/json";
  if (key) headers.Authorization = `Bearer ${key}`;
  const options = { method: body ? "POST" : "GET", headers, signal, credentials: "omit", cache: "no-store" };
  try {
    return await fetch(path, { ...options, body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server can't be reached. Is edge-llama serve still running?");
  }
}

async function gotKey(wasWrong) {
  asked ??= askForKey(wasWrong).finally(() => (asked = null));
  const key = await asked;
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
  return Boolean(key);
}

const KINDS = {
  403: "The server does not allow this",
  404: "The server doesn't know that",
  413: "That is more than the server takes at once",
  429: "The server is busy",
  503: "The model can't answer just now",
  504: "That took too long",
};

/** How such a message begins for programs that look for it; what follows says the same for people. */
const PROMPT_IS_TOO_LONG = /^prompt is too long: [^:]* maximum: /;

async function refusal(response) {
  let error = null;
  try {
    error = (await response.json()).error;
  } catch {
    // Whoever stands between the server and us has forms of their own.
  }
  return toldError(error, response.status, response.headers.get("Retry-After"));
}

/** The server's own words, after those that say what it means for the person who reads them. */
export function toldError(error, status = 0, retryAfter = null) {
  const own = typeof error?.message === "string" ? error.message.replace(PROMPT_IS_TOO_LONG, "") : "";
  const code = error?.code ?? null;
  let kind = KINDS[status] ?? (status >= 500 ? `The server failed (${status})` : "");
  if (code === "context_length_exceeded") kind = "This conversation no longer fits";
  const wait = status === 429 && retryAfter ? ` Try again in ${retryAfter} s.` : "";
  const text = kind && own ? `${kind}: ${own}` : kind || own || `The server answered ${status}, without a reason.`;
  return new ServerError(`${text}${/[.!?]$/.test(text) ? "" : "."}${wait}`, { status, code });
}

/** The data of a response's server-sent events, as they come. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const lines = (rest + part.value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The connection broke in the middle of the answer.");
  } finally {
    reader.cancel().catch(() => {}); // of what nobody reads to its end
  }
}
