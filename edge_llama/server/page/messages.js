// The conversation as it is seen: an article for each message, with what can be done about it.
import { copyButton, counted, element, icon, iconButton, number } from "./dom.js";
import { show } from "./markdown.js";

const NEAR = 48; // pixels from the end that count as being there

export class Messages {
  #articles = new Map(); // message -> {node, update}
  #urls = new Map(); // blob -> address
  #isAtEnd = true;
  #due = new Set();
  #frame = null;

  /** `actions`: retry(message), edit(message, text); `isWriting(message)`: whether it is being written. */
  constructor(container, scroller, jump, { actions, isWriting }) {
    Object.assign(this, { container, scroller, actions, isWriting });
    scroller.addEventListener("scroll", () => {
      this.#isAtEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR;
      jump.hidden = this.#isAtEnd;
    });
    jump.addEventListener("click", () => this.toEnd());
  }

  /** Show these messages; those that are shown already stay as they are. */
  show(messages) {
    this.messages = messages;
    for (const [message, { node }] of this.#articles) {
      if (messages.includes(message)) continue;
      node.remove();
      this.#articles.delete(message);
    }
    messages.forEach((message, place) => {
      if (!this.#articles.has(message)) this.#articles.set(message, this.#article(message));
      const { node, update } = this.#articles.get(message);
      const there = this.container.children[place] ?? null;
      if (there !== node) this.container.insertBefore(node, there);
      update();
    });
    this.#forgetImages();
    this.toEnd();
  }

  /** A message has changed: shown with the next frame, however often it changes until then. */
  changed(message) {
    this.#due.add(message);
    this.#frame ??= requestAnimationFrame(() => this.#showDue());
  }

  /** The same at once: an answer has ended, and a hidden page has no frames. */
  ended(message) {
    this.#due.add(message);
    cancelAnimationFrame(this.#frame);
    this.#showDue();
  }

  toEnd() {
    this.#isAtEnd = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  #showDue() {
    this.#frame = null;
    for (const message of this.#due) this.#articles.get(message)?.update();
    this.#due.clear();
    if (this.#isAtEnd) this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  #article(message) {
    return message.role === "user" ? this.#userArticle(message) : answerArticle(message, this);
  }

  #userArticle(message) {
    const node = element("article", { class: "message user" });
    const display = () => {
      const edit = iconButton("edit", "Edit this message", () => this.#edit(node, message, display));
      node.replaceChildren(
        element("h2", { class: "visually-hidden" }, "You"),
        this.#images(message),
        message.text ? element("div", { class: "bubble" }, message.text) : "",
        element("footer", { class: "actions" }, edit, copyButton(() => message.text, "Copy this message")),
      );
    };
    display();
    return { node, update: () => {} };
  }

  #images({ images }) {
    const box = element("div", { class: "images" });
    for (const { name, blob } of images ?? []) {
      if (!this.#urls.has(blob)) this.#urls.set(blob, URL.createObjectURL(blob));
      box.append(element("img", { src: this.#urls.get(blob), alt: name || "Picture", load: () => this.#settle() }));
    }
    return box;
  }

  #settle() {
    if (this.#isAtEnd) this.toEnd();
  }

  /** Pictures of conversations that aren't open take no memory. */
  #forgetImages() {
    const used = new Set(this.messages.flatMap((message) => (message.images ?? []).map(({ blob }) => blob)));
    for (const [blob, url] of this.#urls) {
      if (used.has(blob)) continue;
      URL.revokeObjectURL(url);
      this.#urls.delete(blob);
    }
  }

  #edit(node, message, display) {
    const field = element("textarea", { "aria-label": "Your message", rows: "3" });
    field.value = message.text;
    const later = this.messages.length - this.messages.indexOf(message) - 1;
    const close = () => {
      display();
      node.querySelector("button").focus();
    };
    const submit = () => {
      if (field.value.trim() || message.images?.length) this.actions.edit(message, field.value);
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        submit();
      } else if (event.key === "Escape") {
        event.stopPropagation();
        close();
      }
    });
    const warning = later ? `${counted(later, "later message")} will be removed.` : "";
    node.replaceChildren(
      element("h2", { class: "visually-hidden" }, "Edit your message"),
      this.#images(message),
      element(
        "div",
        { class: "editor" },
        field,
        element("p", { class: "hint" }, warning),
        element("button", { type: "button", class: "plain-button", click: close }, "Cancel"),
        element("button", { type: "button", class: "main-button", click: submit }, "Send"),
      ),
    );
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }
}

function answerArticle(message, { actions, isWriting }) {
  const thinking = element("div", { class: "markdown" });
  const summary = element("summary");
  const thoughts = element("details", { class: "thoughts", hidden: true }, summary, thinking);
  const body = element("div", { class: "markdown" });
  const waiting = element("p", { class: "waiting" }, element("span", { class: "visually-hidden" }, "Waiting for the answer"));
  const rest = element("div", { class: "rest" });
  const footer = element("footer", { class: "actions" });
  const name = element("h2", { class: "visually-hidden" }, message.model || "The model");
  const node = element("article", { class: "message assistant" }, name, thoughts, waiting, body, rest, footer);
  const update = () => {
    const writing = isWriting(message);
    node.setAttribute("aria-busy", String(writing));
    thoughts.hidden = !message.thinking;
    if (message.thinking) show(thinking, message.thinking);
    summary.replaceChildren(icon("chevron"), thoughtsTitle(message, writing));
    show(body, message.text);
    waiting.hidden = !writing || Boolean(message.text || message.thinking);
    rest.replaceChildren(...calls(message), ...notes(message, writing), ...problem(message, actions));
    footer.replaceChildren(...(writing ? [] : footerOf(message, actions)));
  };
  return { node, update };
}

function thoughtsTitle({ text, thinkingSeconds, usage }, writing) {
  if (writing && !text) return "Thinking…";
  const tokens = usage?.thinking ? ` (${counted(usage.thinking, "token")})` : "";
  return thinkingSeconds === undefined ? `Thoughts${tokens}` : `Thought for ${number(thinkingSeconds, 1)} s${tokens}`;
}

function calls(message) {
  return message.calls.map((call) =>
    element(
      "figure",
      { class: "code" },
      element("figcaption", {}, element("span", {}, `Tool call: ${call.name}`)),
      element("pre", { tabindex: "0", "aria-label": `Arguments of ${call.name}` }, element("code", {}, call.arguments)),
    ),
  );
}

const ENDS = {
  length: "The answer was cut here: it reached the most tokens that it may have, or the context is full.",
  stopped: "Stopped.",
};

function notes(message, writing) {
  if (writing) return [];
  const end = message.finish === null ? "Not whole: the page that wrote it was left, or is still at it in another tab." : ENDS[message.finish];
  return [...(message.notes ?? []), ...(end ? [end] : [])].map((text) => element("p", { class: "note" }, text));
}

function problem(message, actions) {
  if (!message.error) return [];
  const again = element("button", { type: "button", class: "plain-button", click: () => actions.retry(message) }, "Try again");
  return [element("div", { class: "problem" }, icon("warning"), element("p", {}, message.error), again)];
}

function footerOf(message, actions) {
  const copy = copyButton(() => message.text, "Copy this answer");
  const retry = iconButton("retry", "Answer again", () => actions.retry(message));
  return [...(message.text ? [copy] : []), ...(message.error ? [] : [retry]), element("span", { class: "figures" }, figures(message))];
}

/** What the answer took, for people: "46 tokens · 38.2 tokens/s · first after 0.2 s · 96 of 128 prompt tokens cached". */
function figures({ usage, firstSeconds }) {
  if (!usage) return "";
  const said = [counted(usage.generated, "token")];
  if (usage.speed) said.push(`${number(usage.speed, 1)} tokens/s`);
  if (firstSeconds !== undefined) said.push(`first after ${number(firstSeconds, 2)} s`);
  said.push(`${number(usage.cached)} of ${counted(usage.prompt, "prompt token")} from the cache`);
  return said.join(" · ");
}
