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

  /** `choice()` gives {model, settings}; `view` has opened, renamed, changed, ended, listed and notKept. */
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
    const kept = await this.store.get(id);
    const found = this.#running.get(id)?.conversation ?? kept; // an answer may have begun meanwhile
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

  /** Whether `message` is in it still: while one waits, it may be cut off, or all of it deleted. */
  holds(conversation, message) {
    return conversation.messages.includes(message) && !this.#removed.has(conversation.id);
  }

  /** Have an answer that the conversation holds given anew, without what came after it. */
  async retry(conversation, message) {
    conversation.messages = conversation.messages.slice(0, conversation.messages.indexOf(message));
    await this.#answer(conversation);
  }

  /** Have a message that the conversation holds say `text` instead, without what came after it, and answered. */
  async edit(conversation, message, text) {
    const before = conversation.messages.slice(0, conversation.messages.indexOf(message));
    conversation.messages = [...before, { ...message, text }];
    await this.#answer(conversation);
  }

  /** Have a conversation be as it was: `messages` are those of then. */
  async restore(conversation, messages) {
    await this.stop(conversation);
    conversation.messages = messages;
    await this.#keep(conversation);
    this.#showIfOpen(conversation);
  }

  /** End the answer that is being written, and wait until it has ended. */
  async stop(conversation = this.current) {
    const running = this.#running.get(conversation.id);
    running?.controller.abort();
    await running?.ended;
  }

  /** `listed` is a copy of some time ago, here and in `remove`: only its id counts. */
  async rename(listed, title) {
    const conversation = await this.#whole(listed);
    if (!conversation) return;
    conversation.title = title;
    await this.#keep(conversation);
    if (conversation === this.current) this.view.renamed();
  }

  /** Gives what was removed, for `bringBack`. */
  async remove(listed) {
    this.#removed.add(listed.id);
    const conversation = (await this.#whole(listed)) ?? listed;
    await this.stop(conversation);
    await this.store.remove(conversation.id);
    if (conversation.id === this.current.id) this.start();
    this.view.listed();
    return conversation;
  }

  async bringBack(conversation) {
    this.#removed.delete(conversation.id);
    await this.#keep(conversation);
  }

  /** Keep conversations of a file, but none over one that is here as new or newer. Gives how many were kept. */
  async bringIn(conversations) {
    let kept = 0;
    for (const conversation of conversations) {
      const here = await this.store.get(conversation.id);
      if (this.isRunning(conversation) || here?.updated >= conversation.updated) continue;
      this.#removed.delete(conversation.id);
      await this.store.put(conversation);
      this.#showIfOpen(conversation);
      kept += 1;
    }
    return kept;
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

  /** The conversation as it is now, or undefined: at work, open, or kept. */
  async #whole({ id }) {
    const running = this.#running.get(id);
    const kept = await this.store.get(id);
    if (id === this.current.id) return this.current;
    return (this.#running.get(id) ?? running)?.conversation ?? kept;
  }

  /** It may have been opened as a copy of its own while this one was waited for. */
  #showIfOpen(conversation) {
    if (conversation.id !== this.current.id) return;
    this.current = conversation;
    this.view.opened();
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
    this.#showIfOpen(conversation);
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
