// Markdown as models write it: headings, lists, tables, quotations, code. The result is elements; see inline.js for
// what is within a line. Each block is built of its own lines alone, so that a growing answer only renews its last ones.
import { copyButton, element } from "./dom.js";
import { coloured } from "./code.js";
import { inline } from "./inline.js";

const DEEPEST = 8; // quotations and lists within one another; deeper ones are text
const FENCE = /^( {0,3})(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]|$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,9})([-*+]|\d{1,9}[.)])(?: *$| {1,4}(?! )| )/;
const CHECKBOX = /^\[([ xX])\] /;
const DASHES = /^:?-+:?$/;

const sources = new WeakMap();

/** Have `container` show `text`: what it shows already stays, with what is selected in it. */
export function show(container, text) {
  const blocks = parse(text.replaceAll("\r\n", "\n").replaceAll("\t", "    ").split("\n"), 0);
  let same = 0;
  for (const shown of container.children) {
    if (same >= blocks.length || sources.get(shown) !== blocks[same].source) break;
    same += 1;
  }
  while (container.children.length > same) container.lastElementChild.remove();
  for (const block of blocks.slice(same)) {
    const node = block.build();
    sources.set(node, block.source);
    container.append(node);
  }
}

/** The blocks in lines: where each ends, its source, and how it is built. */
function parse(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const block = special(lines, at, depth) ?? paragraph(lines, at, depth);
    blocks.push({ ...block, source: lines.slice(at, block.end).join("\n") });
    at = block.end;
  }
  return blocks;
}

function special(lines, at, depth) {
  return (
    fence(lines, at) ??
    heading(lines, at) ??
    rule(lines, at) ??
    (depth < DEEPEST ? (quotation(lines, at, depth) ?? list(lines, at, depth)) : null) ??
    table(lines, at)
  );
}

function paragraph(lines, at, depth) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !interrupts(lines, end, depth)) end += 1;
  const text = lines.slice(at, end).map((line) => line.trim()).join("\n");
  return { end, isParagraph: true, text, build: () => element("p", {}, inline(text)) };
}

function interrupts(lines, at, depth) {
  const item = ITEM.exec(lines[at]);
  // "1986. It was …" goes on with the sentence.
  if (item && /\d/.test(item[2]) && Number.parseInt(item[2], 10) !== 1) return false;
  return special(lines, at, depth) !== null;
}

function fence(lines, at) {
  const opener = FENCE.exec(lines[at]);
  if (!opener) return null;
  const [, indent, mark, info] = opener;
  let end = at + 1;
  while (end < lines.length && !closesFence(lines[end], mark)) end += 1;
  const code = lines.slice(at + 1, end).map((line) => undented(line, indent.length)).join("\n");
  const language = info.trim().split(/\s/)[0];
  return { end: Math.min(end + 1, lines.length), build: () => codeBlock(code, language) };
}

function closesFence(line, mark) {
  const text = line.trim();
  return text.length >= mark.length && text === mark[0].repeat(text.length);
}

function codeBlock(code, language) {
  const name = language || "text";
  return element(
    "figure",
    { class: "code" },
    element("figcaption", {}, element("span", {}, name), copyButton(() => code, "Copy code")),
    element("pre", { tabindex: "0", "aria-label": `Code: ${name}` }, element("code", {}, coloured(code, language))),
  );
}

/** Headings begin at the third level: the page has the first, each message the second. */
function heading(lines, at) {
  const found = HEADING.exec(lines[at]);
  if (!found) return null;
  const text = withoutHashes(lines[at].slice(found[0].length).trim());
  const level = found[1].length;
  return { end: at + 1, build: () => element(`h${Math.min(6, level + 2)}`, { class: `level-${level}` }, inline(text)) };
}

function withoutHashes(text) {
  let end = text.length;
  while (end > 0 && text[end - 1] === "#") end -= 1;
  return end === 0 || text[end - 1] === " " ? text.slice(0, end).trimEnd() : text;
}

const rule = (lines, at) => (RULE.test(lines[at]) ? { end: at + 1, build: () => element("hr") } : null);

function quotation(lines, at, depth) {
  if (!QUOTE.test(lines[at])) return null;
  let end = at + 1;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return { end, build: () => filled(element("blockquote"), parse(inner, depth + 1)) };
}

function filled(node, blocks) {
  for (const block of blocks) node.append(block.build());
  return node;
}

/** A list: items of the same kind of mark; what is indented at least two columns more belongs to its item. */
function list(lines, at, depth) {
  const first = marker(lines[at]);
  if (!first) return null;
  const items = [];
  let isLoose = false;
  let end = at;
  for (let next = first; next && next.kind === first.kind && next.indent < first.indent + 2; ) {
    const item = itemAt(lines, end, next, depth);
    items.push(item.lines);
    const blank = blanks(lines, item.end);
    next = item.end + blank < lines.length ? marker(lines[item.end + blank]) : null;
    const goesOn = next && next.kind === first.kind && next.indent < first.indent + 2;
    isLoose ||= item.isLoose || (goesOn && blank > 0);
    end = goesOn ? item.end + blank : item.end;
  }
  return { end, build: () => listElement(first, items, isLoose, depth) };
}

function marker(line) {
  const found = ITEM.exec(line);
  if (!found || RULE.test(line)) return null;
  const [all, indent, mark] = found;
  const number = Number.parseInt(mark, 10);
  const width = line.length === all.length ? all.trimEnd().length + 1 : all.length; // of one that has no text: one space
  return { indent: indent.length, width, number, kind: mark.at(-1) };
}

function itemAt(lines, at, { indent, width }, depth) {
  const own = [lines[at].slice(width)];
  let isLoose = false;
  let end = at + 1;
  while (end < lines.length) {
    const blank = blanks(lines, end);
    const line = lines[end + blank];
    if (line === undefined) break;
    const isWithin = indentOf(line) >= Math.min(width, indent + 2);
    const goesOn = blank === 0 && !marker(line) && !special(lines, end, depth); // a line that nobody indented
    if (!isWithin && !goesOn) break;
    own.push(...Array(blank).fill(""));
    isLoose ||= blank > 0 && indentOf(line) < width + 2 && !marker(line);
    own.push(undented(line, width));
    end += blank + 1;
  }
  return { end, lines: own, isLoose };
}

function blanks(lines, at) {
  let count = 0;
  while (at + count < lines.length && !lines[at + count].trim()) count += 1;
  return count;
}

const indentOf = (line) => line.length - line.trimStart().length;
const undented = (line, width) => line.slice(Math.min(width, indentOf(line)));

function listElement(first, items, isLoose, depth) {
  const isOrdered = !Number.isNaN(first.number);
  const node = element(isOrdered ? "ol" : "ul", isOrdered && first.number !== 1 ? { start: first.number } : {});
  for (const lines of items) node.append(itemElement(lines, isLoose, depth));
  return node;
}

function itemElement(lines, isLoose, depth) {
  const box = CHECKBOX.exec(lines[0]);
  const node = element("li", { class: box ? "task" : null });
  if (box) {
    const [sign, name] = box[1] === " " ? ["☐", "to do"] : ["☑", "done"];
    node.append(element("span", { class: "box", role: "img", "aria-label": name }, sign), " ");
    lines = [lines[0].slice(box[0].length), ...lines.slice(1)];
  }
  for (const block of parse(lines, depth + 1)) {
    node.append(block.isParagraph && !isLoose ? inline(block.text) : block.build());
  }
  return node;
}

function table(lines, at) {
  if (!lines[at].includes("|") || at + 1 >= lines.length || !lines[at + 1].includes("-")) return null;
  const head = cells(lines[at]);
  const dashes = cells(lines[at + 1]);
  if (dashes.length !== head.length || !dashes.every((cell) => DASHES.test(cell))) return null;
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  return { end, build: () => tableElement(head, dashes.map(alignment), lines.slice(at + 2, end).map(cells)) };
}

/** The cells of a row: what is between the bars, but for those after a backslash. */
function cells(line) {
  const text = line.trim();
  const found = [];
  let cell = "";
  for (let at = text[0] === "|" ? 1 : 0; at < text.length; at += 1) {
    if (text[at] === "\\" && text[at + 1] === "|") {
      cell += "|";
      at += 1;
    } else if (text[at] === "|") {
      found.push(cell.trim());
      cell = "";
    } else cell += text[at];
  }
  if (cell.trim() || !text.endsWith("|")) found.push(cell.trim());
  return found;
}

function alignment(dashes) {
  if (!dashes.endsWith(":")) return null;
  return dashes.startsWith(":") ? "centre" : "right";
}

function tableElement(head, sides, rows) {
  const row = (tag, texts) =>
    filled(
      element("tr"),
      texts.slice(0, head.length).map((text, column) => ({
        build: () => element(tag, { class: sides[column], scope: tag === "th" ? "col" : null }, inline(text)),
      })),
    );
  const body = filled(element("tbody"), rows.map((texts) => ({ build: () => row("td", texts) })));
  const whole = element("table", {}, element("thead", {}, row("th", head)), body);
  return element("div", { class: "table", tabindex: "0", role: "group", "aria-label": "Table" }, whole);
}
