// The text within a paragraph: emphasis, code, links. CommonMark's rules, but for two: a line break stays one, as
// models mean it, and * may stand beside any punctuation, which CommonMark forbids and Chinese and Japanese need.
//
// It takes time in proportion to the text, whatever is in it: one pass, a stack of what is open, no search further
// down it than FARTHEST, no pattern without a bound.
import { element } from "./dom.js";

const FARTHEST = 64;
const DEEPEST = 12; // elements within one another: layout is recursive
const SPECIAL = /[\\`*_~[\]<!\n]|https?:\/\//g;
const RUN = /\*+|_+|~+/y;
const TICKS = /`+/g;
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const BREAK = /<br ?\/?>/iy;
const ANGLED = /<(https?:\/\/[^\s<>]{1,2000})>/iy;
const BARE = /https?:\/\/[^\s<>"'`*[\]|\\]{1,2000}/iy;
const TARGET =
  /\(\s{0,9}(?:<([^<>\n]{0,2000})>|((?:[^\s()\\]|\\.|\((?:[^\s()\\]|\\.){0,2000}\)){0,2000}))(?:\s{1,9}(?:"[^"]{0,500}"|'[^']{0,500}'))?\s{0,9}\)/y;
const SPACE = /\s/;
const PUNCTUATION = /[\p{P}\p{S}]/u;

/** The text as nodes. */
export function inline(text) {
  const fragment = document.createDocumentFragment();
  for (const { node } of new Inline(text).entries()) fragment.append(node);
  return fragment;
}

/** An address that a link may have, as the browser writes it; null for any but http and https ones. */
export function safeAddress(text) {
  try {
    const url = new URL(text);
    return url.protocol === "http:" || url.protocol === "https:" ? url.href : null;
  } catch {
    return null;
  }
}

/** What is open: a run of * _ ~ or a bracket that may find its end, with all that came since. The first is none. */
class Frame {
  entries = []; // {node, depth}
  depth = 0;

  constructor(char = "", literal = "", flanks = {}) {
    this.char = char;
    this.literal = literal;
    this.length = this.left = literal.length; // at first, and what is not used yet
    this.opens = flanks.opens;
    this.closes = flanks.closes;
  }

  put(entry) {
    const last = this.entries.at(-1)?.node;
    if (entry.node instanceof Text && last instanceof Text) last.appendData(entry.node.data);
    else this.entries.push(entry);
    this.depth = Math.max(this.depth, entry.depth);
  }

  /** What it is if it never ends: its characters and what came since. */
  unopened() {
    const literal = this.char === "[" ? this.literal : this.char.repeat(this.left);
    return literal ? [plain(literal), ...this.entries] : this.entries;
  }
}

const plain = (text) => ({ node: document.createTextNode(text), depth: 0 });

class Inline {
  #frames = [new Frame()];
  #at = 0;
  #missing = new Set(); // lengths of runs of backticks that nothing ends from here on

  constructor(text) {
    this.text = text;
  }

  entries() {
    while (this.#at < this.text.length) {
      SPECIAL.lastIndex = this.#at;
      const found = SPECIAL.exec(this.text);
      const next = found ? found.index : this.text.length;
      if (next > this.#at) this.#put(plain(this.text.slice(this.#at, next)));
      this.#at = next;
      if (found) this.#special(found[0]);
    }
    return this.#flattened(0);
  }

  #put(entry) {
    this.#frames.at(-1).put(entry);
  }

  /** `count` characters as they stand. */
  #literal(count) {
    this.#put(plain(this.text.slice(this.#at, this.#at + count)));
    this.#at += count;
  }

  #special(found) {
    if (found === "\\") this.#escape();
    else if (found === "`") this.#code();
    else if (found === "\n") this.#lineBreak();
    else if (found === "<") this.#angled();
    else if (found === "[") this.#bracket("[");
    else if (found === "!") this.text[this.#at + 1] === "[" ? this.#bracket("![") : this.#literal(1);
    else if (found === "]") this.#link();
    else if (found.length > 1) this.#bare();
    else this.#run();
  }

  #matched(pattern) {
    pattern.lastIndex = this.#at;
    return pattern.exec(this.text);
  }

  #escape() {
    const next = this.text[this.#at + 1];
    this.#at += 1;
    if (next !== undefined && ESCAPABLE.test(next)) this.#literal(1);
    else if (next !== "\n") this.#put(plain("\\"));
  }

  #lineBreak() {
    this.#put({ node: element("br"), depth: 1 });
    this.#at += 1;
    while (this.text[this.#at] === " ") this.#at += 1;
  }

  #code() {
    const opener = this.#matched(TICKS)[0];
    const from = this.#at + opener.length;
    const end = this.#missing.has(opener.length) ? -1 : this.#endOfCode(from, opener.length);
    if (end < 0) {
      this.#missing.add(opener.length);
      this.#literal(opener.length);
      return;
    }
    let code = this.text.slice(from, end).replaceAll("\n", " ");
    if (code.startsWith(" ") && code.endsWith(" ") && code.trim()) code = code.slice(1, -1);
    this.#put({ node: element("code", {}, code), depth: 1 });
    this.#at = end + opener.length;
  }

  #endOfCode(from, length) {
    TICKS.lastIndex = from;
    for (let run = TICKS.exec(this.text); run; run = TICKS.exec(this.text)) {
      if (run[0].length === length) return run.index;
    }
    return -1;
  }

  #angled() {
    const lineBreak = this.#matched(BREAK);
    if (lineBreak) {
      this.#put({ node: element("br"), depth: 1 });
      this.#at += lineBreak[0].length;
      return;
    }
    const found = this.#matched(ANGLED);
    const address = found && safeAddress(found[1]);
    if (!address) {
      this.#literal(1);
      return;
    }
    this.#put(linked(address, [plain(found[1])]));
    this.#at += found[0].length;
  }

  #bare() {
    const found = this.#matched(BARE)?.[0];
    const shown = found && withoutEnd(found);
    const address = shown && safeAddress(shown);
    if (!address) {
      this.#literal(1);
      return;
    }
    this.#put(linked(address, [plain(shown)]));
    this.#at += shown.length;
  }

  #bracket(literal) {
    this.#frames.push(new Frame("[", literal));
    this.#at += literal.length;
  }

  /** At "]": a link, if a bracket is open and an address follows. */
  #link() {
    const lowest = Math.max(1, this.#frames.length - FARTHEST);
    let level = this.#frames.length - 1;
    while (level >= lowest && this.#frames[level].char !== "[") level -= 1;
    if (level < lowest) {
      this.#literal(1);
      return;
    }
    const opener = this.#frames[level];
    this.#at += 1;
    const target = this.#matched(TARGET);
    const address = target && safeAddress((target[1] ?? target[2]).replace(/\\([!-/:-@[-`{-~])/g, "$1"));
    const entries = this.#flattened(level).slice(1); // without the bracket itself
    const link = address ? linked(address, entries, opener.literal === "![") : null;
    if (link) {
      this.#put(link);
      this.#at += target[0].length;
      return;
    }
    for (const entry of [plain(opener.literal), ...entries, plain("]")]) this.#put(entry);
  }

  /** A run of * _ or ~, which may end an emphasis, begin one, or both, or stand for itself. */
  #run() {
    const literal = this.#matched(RUN)[0];
    const end = this.#at + literal.length;
    const run = new Frame(literal[0], literal, flanks(literal, this.text[this.#at - 1], this.text[end]));
    this.#at = end;
    if (run.closes) this.#close(run);
    if (run.left && run.opens) this.#frames.push(run);
    else if (run.left) this.#put(plain(run.char.repeat(run.left)));
  }

  #close(run) {
    let level = this.#frames.length - 1;
    for (let looked = 0; run.left && level > 0 && looked < FARTHEST; looked += 1) {
      const opener = this.#frames[level];
      if (!belong(opener, run)) {
        level -= 1;
        continue;
      }
      if (this.#frames.slice(level).some((frame) => frame.depth >= DEEPEST)) return;
      const used = Math.min(2, opener.left, run.left);
      const above = this.#frames.splice(level + 1).flatMap((frame) => frame.unopened());
      const wrapped = emphasised(run.char, used, [...opener.entries, ...above]);
      opener.left -= used;
      run.left -= used;
      opener.entries = [];
      opener.depth = 0;
      if (!opener.left) this.#frames.pop();
      this.#put(wrapped);
      level = this.#frames.length - 1;
    }
  }

  /** All from `level` on as it stands, no longer open. */
  #flattened(level) {
    return this.#frames.splice(level).flatMap((frame) => frame.unopened());
  }
}

function flanks(literal, before = " ", after = " ") {
  const opens = !SPACE.test(after);
  const closes = !SPACE.test(before);
  if (literal[0] === "~") return { opens: opens && literal.length === 2, closes: closes && literal.length === 2 };
  if (literal[0] === "*") return { opens, closes };
  // snake_case is a word.
  return { opens: opens && (!closes || PUNCTUATION.test(before)), closes: closes && (!opens || PUNCTUATION.test(after)) };
}

function belong(opener, run) {
  if (opener.char !== run.char) return false;
  const sum = opener.length + run.length; // CommonMark's rule of three, for **a*b**
  return !((opener.closes || run.opens) && sum % 3 === 0 && (opener.length % 3 || run.length % 3));
}

function emphasised(char, used, entries) {
  const tag = char === "~" ? "del" : used === 2 ? "strong" : "em";
  return wrapped(element(tag), entries);
}

function wrapped(node, entries) {
  let depth = 0;
  for (const entry of entries) {
    node.append(entry.node);
    depth = Math.max(depth, entry.depth);
  }
  return { node, depth: depth + 1 };
}

/** A link; null if there is one within. An image is a link too: nothing is fetched that nobody asked for. */
function linked(address, entries, isImage = false) {
  const within = entries.map(({ node, depth }) =>
    node instanceof HTMLAnchorElement ? plain(node.textContent) : { node, depth },
  );
  if (within.some(({ node }) => node instanceof Element && node.querySelector("a"))) return null;
  const attributes = { href: address, title: address, target: "_blank", rel: "noopener noreferrer" };
  const text = within.length ? within : [plain(isImage ? "picture" : address)];
  return wrapped(element("a", { ...attributes, class: isImage ? "picture-link" : null }), text);
}

/** An address in running text ends before the sentence's punctuation, and before a bracket that it didn't open. */
function withoutEnd(address) {
  let end = address.length;
  let open = 0;
  for (const char of address) open += char === "(" ? 1 : char === ")" ? -1 : 0;
  for (; end > 0; end -= 1) {
    const last = address[end - 1];
    if (last === ")" && open < 0) open += 1;
    else if (!".,;:!?_~".includes(last)) break;
  }
  return address.slice(0, end);
}
