// One answer: what is sent for it, and what comes back, piece by piece.
import { ServerError, events, request, toldError } from "./server.js";

/** An answer that has not begun. */
export const emptyAnswer = (model) => ({ role: "assistant", model, text: "", thinking: "", calls: [], finish: null });

/**
 * Have `answer` filled with what the model says after `messages`; `changed` is called with every piece.
 * Raises ServerError, and AbortError if it is stopped.
 */
export async function fill(answer, messages, { model, settings, signal, changed }) {
  const { system, ...sampling } = settings;
  const body = { model, messages: await wire(messages, system), stream: true, ...sampling };
  body.stream_options = { include_usage: true };
  const clock = { begun: performance.now(), first: null };
  const response = await request("v1/chat/completions", { body, signal });
  let isWhole = false;
  for await (const data of events(response)) {
    isWhole = data === "[DONE]";
    if (isWhole) break;
    take(answer, parsed(data), clock);
    changed();
  }
  if (!isWhole) throw new ServerError("The connection broke in the middle of the answer.");
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ServerError("The server sent something that is no JSON in the middle of the answer.");
  }
}

function take(answer, chunk, clock) {
  if (chunk.error) throw toldError(chunk.error);
  const choice = chunk.choices?.[0];
  const delta = choice?.delta ?? {};
  if (clock.first === null && (delta.content || delta.reasoning_content || delta.tool_calls)) {
    clock.first = performance.now();
    answer.firstSeconds = (clock.first - clock.begun) / 1000;
  }
  if (delta.reasoning_content) answer.thinking += delta.reasoning_content;
  if (delta.content) {
    if (answer.thinking && !answer.text) answer.thinkingSeconds = (performance.now() - clock.first) / 1000;
    answer.text += delta.content;
  }
  for (const part of delta.tool_calls ?? []) addCall(answer.calls, part);
  if (choice?.finish_reason) answer.finish = choice.finish_reason;
  if (chunk.usage) count(answer, chunk.usage, clock);
}

function addCall(calls, { index = 0, function: named = {} }) {
  calls[index] ??= { name: "", arguments: "" };
  calls[index].name += named.name ?? "";
  calls[index].arguments += named.arguments ?? "";
}

/** What the answer took. The server's own clock is better than ours: it knows the first token from its arrival. */
function count(answer, usage, clock) {
  const seconds = clock.first === null ? 0 : (performance.now() - clock.first) / 1000;
  const told = usage.edge_llama ?? {};
  answer.usage = {
    prompt: usage.prompt_tokens,
    cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
    generated: usage.completion_tokens,
    thinking: usage.completion_tokens_details?.reasoning_tokens ?? 0,
    speed: told.tokens_per_second ?? (seconds > 0 ? (usage.completion_tokens - 1) / seconds : null),
  };
  if (told.notes?.length) answer.notes = told.notes;
}

/** The conversation as the API wants it: without what failed, and one message where two of a person are left alone. */
async function wire(messages, system) {
  const sent = system ? [{ role: "system", content: system }] : [];
  for (const message of messages) {
    if (message.role === "user") await addUser(sent, message);
    else if (spoken(message)) sent.push(assistant(message));
  }
  return sent;
}

const spoken = (answer) => answer.text || answer.calls.map((call) => `${call.name}(${call.arguments})`).join("\n");

function assistant(message) {
  const said = { role: "assistant", content: spoken(message) };
  return message.thinking ? { ...said, reasoning_content: message.thinking } : said;
}

async function addUser(sent, { text, images }) {
  const parts = [];
  for (const image of images ?? []) {
    parts.push({ type: "image_url", image_url: { url: await dataUrl(image.blob) } });
  }
  if (text) parts.push({ type: "text", text });
  const last = sent.at(-1);
  if (last?.role === "user") last.content = [...asParts(last.content), ...parts];
  else sent.push({ role: "user", content: parts.every((part) => part.type === "text") ? text : parts });
}

const asParts = (content) => (typeof content === "string" ? [{ type: "text", text: content }] : content);

/** An image as the text that JSON can hold. */
export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new ServerError("The browser no longer has one of this conversation's images."));
    reader.readAsDataURL(blob);
  });
}
