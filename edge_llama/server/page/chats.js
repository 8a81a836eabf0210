// Conversations at work: which one is open, which of them are being answered, and what becomes of them. Nothing here
// knows how they look; `view` is told what changed.
import { emptyAnswer, fill } from "./answer.js";
import { ServerError } from "./server.js";
import { emptyConversation } from "./store.js";

const KEPT_EVERY_MS = 1500;
const TITLE = 60; // characters

export class Chats {
  current = emptyConversation();
  #running = new Map(); // by the conversation's id: {conversation, controller, ended}
  #removed = new Set();
  #isLeft = false;

  /** `choice()` gives {model, settings}; `view` has opened, changed, ended and listed. */
  constructor(store, choice, view) {
    this.store = store;
    this.choice = choice;
    this.view = view;
  }

  isRunning(conversation = this.current) {
    return this.#running.has(conversation.id);
  }

  /** Whether `message` is the answer that is being written. */
  isWriting(message) {
    return this.isRunning() && this.current.messages.at(-1) === message;
  }

  start() {
    this.current = emptyConversation();
    this.view.opened();
  }

  /** Open that conversation; false if it isn't there (any more). */
  async open(id) {
    const found = this.#running.get(id)?.conversation ?? (await this.store.get(id));
    if (!found) return false;
    this.current = found;
    this.view.opened();
    return true;
  }

  async send(text, images) {
    const conversation = this.current;
    conversation.title ||= titleOf(text, images);
    conversation.messages.push({ role: "user", text, images });
    await this.#answer(conversation);
  }

  /** Have an answer given anew, without what came after it. */
  async retry(message) {
    const conversation = this.current;
    conversation.messages = conversation.messages.slice(0, conversation.messages.indexOf(message));
    await this.#answer(conversation);
  }

  /** Have `message` say `text` instead, without what came after it, and answered. */
  async edit(message, text) {
    const conversation = this.current;
    const before = conversation.messages.slice(0, conversation.messages.indexOf(message));
    conversation.messages = [...before, { ...message, text }];
    await this.#answer(conversation);
  }

  /** Have a conversation be as it was: `messages` are those of then. */
  async restore(conversation, messages) {
    await this.stop(conversation);
    conversation.messages = messages;
    await this.#keep(conversation);
    if (this.current.id === conversation.id) this.view.opened();
  }

  /** End the answer that is being written, and wait until it has ended. */
  async stop(conversation = this.current) {
    const running = this.#running.get(conversation.id);
    running?.controller.abort();
    await running?.ended;
  }

  async rename(conversation, title) {
    conversation.title = title;
    if (conversation.id === this.current.id) this.current.title = title;
    await this.#keep(conversation);
  }

  async remove(conversation) {
    this.#removed.add(conversation.id);
    await this.stop(conversation);
    await this.store.remove(conversation.id);
    if (conversation.id === this.current.id) this.start();
    this.view.listed();
  }

  async bringBack(conversation) {
    this.#removed.delete(conversation.id);
    await this.#keep(conversation);
  }

  /** Another tab changed a conversation. */
  async changedElsewhere(id) {
    if (id === this.current.id && !this.isRunning()) await this.open(id);
    this.view.listed();
  }

  /** Keep what is there of the answers that are being written: the page is being left. What fails now is no news. */
  leave() {
    this.#isLeft = true;
    for (const { conversation } of this.#running.values()) this.#keep(conversation, { isOnItsWay: true });
  }

  async #answer(conversation) {
    const { model, settings } = this.choice();
    const answer = emptyAnswer(model);
    const messages = conversation.messages.slice();
    conversation.messages.push(answer);
    conversation.updated = Date.now();
    const controller = new AbortController();
    const ended = this.#filled(conversation, answer, messages, { model, settings, signal: controller.signal });
    this.#running.set(conversation.id, { conversation, controller, ended });
    this.view.opened();
    await ended;
  }

  async #filled(conversation, answer, messages, options) {
    await this.#keep(conversation);
    let kept = performance.now();
    const changed = () => {
      this.view.changed(conversation, answer);
      if (performance.now() - kept < KEPT_EVERY_MS) return;
      kept = performance.now();
      this.#keep(conversation, { isOnItsWay: true });
    };
    try {
      await fill(answer, messages, { ...options, changed });
    } catch (error) {
      if (this.#isLeft) return;
      if (error.name === "AbortError") answer.finish = "stopped";
      else answer.error = error instanceof ServerError ? error.message : `This page failed: ${error.message}`;
    }
    answer.finish ??= "failed";
    this.#running.delete(conversation.id);
    conversation.updated = Date.now();
    await this.#keep(conversation);
    this.view.ended(conversation, answer);
  }

  async #keep(conversation, how = {}) {
    if (this.#removed.has(conversation.id)) return;
    try {
      await this.store.put(conversation, how);
    } catch (error) {
      this.view.notKept(error);
    }
    if (!how.isOnItsWay) this.view.listed();
  }
}

function titleOf(text, images) {
  const line = text.trim().split("\n")[0].trim();
  if (!line) return images[0]?.name || "Picture";
  return line.length > TITLE ? `${line.slice(0, TITLE - 1).trimEnd()}…` : line;
}
