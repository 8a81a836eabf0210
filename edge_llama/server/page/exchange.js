// Conversations as a file: all of them out, and what such a file holds back in. Nothing of a file is believed: each
// field is taken by name and type, and the rest is left.
import { dataUrl } from "./answer.js";
import { randomId } from "./store.js";

const FORMAT = "edge-llama conversations";
const IMAGE = /^data:(image\/(?:png|jpeg|webp|gif|bmp|avif));base64,([A-Za-z0-9+/=]*)$/;

/** The conversations as a file's content. */
export async function exported(conversations) {
  const written = [];
  for (const { id, title, created, updated, messages } of conversations) {
    written.push({ id, title, created, updated, messages: await Promise.all(messages.map(outward)) });
  }
  return new Blob([JSON.stringify({ format: FORMAT, version: 1, conversations: written }, null, 1)], { type: "application/json" });
}

async function outward(message) {
  if (!message.images?.length) return message;
  const images = await Promise.all(message.images.map(async ({ name, blob }) => ({ name, data: await dataUrl(blob) })));
  return { ...message, images };
}

/** The conversations in a file's content. Raises Error that says what is wrong with it. */
export function imported(text) {
  let file = null;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("it is no JSON");
  }
  if (file?.format !== FORMAT || !Array.isArray(file.conversations)) throw new Error("this page did not export it");
  if (file.version !== 1) throw new Error(`its version is ${string(String(file.version)).slice(0, 20)}, this page knows 1`);
  return file.conversations.filter((each) => Array.isArray(each?.messages)).map(inward);
}

function inward(each) {
  const messages = each.messages.map((message) => (message?.role === "user" ? user(message) : answer(message)));
  const now = Date.now();
  return {
    id: /^[0-9a-f]{24}$/.test(each.id) ? each.id : randomId(),
    title: string(each.title).slice(0, 200) || "Imported",
    created: count(each.created) ?? now,
    updated: count(each.updated) ?? now,
    messages,
  };
}

function user(message) {
  const images = list(message.images).map((image) => ({ name: string(image?.name), blob: blob(string(image?.data)) }));
  return { role: "user", text: string(message.text), images: images.filter((image) => image.blob) };
}

function answer(message) {
  const calls = list(message?.calls).map((call) => ({ name: string(call?.name), arguments: string(call?.arguments) }));
  return {
    role: "assistant",
    model: string(message?.model),
    text: string(message?.text),
    thinking: string(message?.thinking),
    calls,
    notes: list(message?.notes).map(string),
    finish: string(message?.finish) || "stopped",
    error: string(message?.error) || undefined,
    firstSeconds: count(message?.firstSeconds),
    thinkingSeconds: count(message?.thinkingSeconds),
    usage: message?.usage ? usage(message.usage) : undefined,
  };
}

function usage(given) {
  const of = (name) => count(given[name]) ?? 0;
  return { prompt: of("prompt"), cached: of("cached"), generated: of("generated"), thinking: of("thinking"), speed: count(given.speed) ?? null };
}

const string = (value) => (typeof value === "string" ? value : "");
const list = (value) => (Array.isArray(value) ? value : []);
const count = (value) => (Number.isFinite(value) && value >= 0 ? value : undefined);

function blob(address) {
  const found = IMAGE.exec(address);
  if (!found) return null;
  try {
    return new Blob([Uint8Array.from(atob(found[2]), (char) => char.charCodeAt(0))], { type: found[1] });
  } catch {
    return null;
  }
}
