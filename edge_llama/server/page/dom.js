// Elements are built of names, attributes and texts. No file of this page parses markup: what a model or a person
// wrote is only ever the text of a text node, and the policy require-trusted-types-for holds us to it.

/** An element; attributes that are functions are listeners, false and null ones are left out. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  for (const child of children) if (child !== null && child !== undefined) node.append(child);
  return node;
}

/** The element of index.html with that id. */
export const byId = (id) => document.getElementById(id);

const SVG = "http://www.w3.org/2000/svg"; // a name, not an address: nothing is asked of it

/** One of the symbols in index.html. */
export function icon(name) {
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("class", "icon");
  drawing.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  drawing.append(use);
  return drawing;
}

/** A button that is only a symbol; its name is told to screen readers, and on hovering. */
export function iconButton(name, label, pressed, attributes = {}) {
  const given = { type: "button", class: "icon-button", "aria-label": label, title: label, click: pressed };
  return element("button", { ...given, ...attributes }, icon(name));
}

/** A button that copies what `text` gives, and says that it did. */
export function copyButton(text, label) {
  const button = iconButton("copy", label, async () => {
    const done = await copied(text());
    button.replaceChildren(icon(done ? "check" : "cross"));
    say(done ? "Copied" : "The browser did not allow copying");
    setTimeout(() => button.replaceChildren(icon("copy")), 1600);
  });
  return button;
}

/** Have it copied; false if the browser does not allow it. */
async function copied(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      return false;
    }
  }
  // Browsers have no clipboard for pages that came by plain HTTP from another machine.
  const field = element("textarea", { class: "visually-hidden", "aria-hidden": "true" });
  field.value = text;
  const before = document.activeElement;
  (document.querySelector("dialog[open]") ?? document.body).append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  before?.focus();
  return done;
}

/** Tell who listens to the page, politely; nothing is shown. */
export function say(text) {
  const region = byId("announcements");
  region.textContent = "";
  // The same words twice are told twice only if the region was empty between.
  setTimeout(() => (region.textContent = text), 50);
}

const SHOWN_MS = 9000;

/** A short message over the page that goes away, perhaps with something to do about it. */
export function toast(text, { kind = "info", action = null } = {}) {
  const note = element("div", { class: `toast ${kind}` }, element("p", {}, text));
  let timer = null;
  const leave = () => {
    clearTimeout(timer);
    note.remove();
  };
  const begin = () => (timer = setTimeout(leave, SHOWN_MS));
  if (action) {
    const run = () => {
      leave();
      action.run();
    };
    note.append(element("button", { type: "button", class: "plain-button", click: run }, action.label));
  }
  note.append(iconButton("cross", "Dismiss", leave));
  // Who is about to press a button has as long as it takes.
  for (const event of ["pointerenter", "focusin"]) note.addEventListener(event, () => clearTimeout(timer));
  for (const event of ["pointerleave", "focusout"]) note.addEventListener(event, begin);
  byId("toasts").append(note);
  begin();
  return leave;
}

/** A number as the reader's language writes it. */
export const number = (value, digits = 0) =>
  value.toLocaleString(undefined, { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** "1 message", "2 messages". */
export const counted = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;

/** Bytes in a unit that is easy to read. */
export const bytes = (count) =>
  count < 1e6 ? `${number(Math.ceil(count / 1e3))} kB` : `${number(count / 1e6, 1)} MB`;
