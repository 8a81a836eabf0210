// A little colour for code: comments, texts, numbers and words that most languages share. Not a parser: what it
// doesn't know stays plain, and it never changes a character.
import { element } from "./dom.js";

const LONGEST = 50_000; // characters that are coloured; more stay plain
const WORDS =
  "abstract and as assert async await begin bool boolean break byte case catch char class const continue constexpr crate def " +
  "default del delete do double elif else end enum except export extends extern false finally float fn for from func function " +
  "global go if impl implements import in include inline instanceof int interface is lambda let local long loop match mod mut " +
  "namespace new nil none None not null nonlocal of or override package pass private protected pub public raise return self short " +
  "signed static string struct super switch then this throw throws trait true True False try type typeof undefined union unsafe unsigned " +
  "use using var virtual void while where with yield";
const SQL =
  "select from where insert into values update set delete create table drop alter join left right inner outer on group by order " +
  "having limit and or not null as distinct primary key references union all case when then else end in is like exists";
const HASHED = new Set(["python", "py", "bash", "sh", "shell", "zsh", "ruby", "rb", "yaml", "yml", "toml", "r", "perl", "make", "makefile", "dockerfile", "elixir", "julia", "console", "powershell"]);
const DASHED = new Set(["sql", "lua", "haskell", "hs", "ada", "elm"]);
const PLAIN = new Set(["", "text", "txt", "plain", "plaintext", "markdown", "md", "csv", "html", "xml", "svg", "diff", "output"]);

/** The code as nodes. */
export function coloured(code, language) {
  const name = language.toLowerCase();
  if (PLAIN.has(name) || code.length > LONGEST) return document.createTextNode(code);
  const words = new Set((name === "sql" ? `${SQL} ${SQL.toUpperCase()}` : WORDS).split(" "));
  const fragment = document.createDocumentFragment();
  let at = 0;
  for (const found of code.matchAll(pattern(name))) {
    const kind = kindOf(found.groups, words);
    if (!kind) continue;
    fragment.append(code.slice(at, found.index), element("span", { class: `code-${kind}` }, found[0]));
    at = found.index + found[0].length;
  }
  fragment.append(code.slice(at));
  return fragment;
}

/** Texts end with their line, so that one apostrophe too many doesn't colour the rest. */
function pattern(name) {
  const comment = HASHED.has(name) ? "#[^\\n]*" : DASHED.has(name) ? "--[^\\n]*" : "//[^\\n]*|/\\*[^]{0,5000}?\\*/";
  const text = '"""[^]{0,5000}?"""|"(?:[^"\\\\\\n]|\\\\.)*"|\'(?:[^\'\\\\\\n]|\\\\.)*\'|`(?:[^`\\\\\\n]|\\\\.)*`';
  const parts = [`(?<comment>${comment})`, `(?<text>${text})`, "(?<number>\\b\\d[\\w.]*)", "(?<word>\\b[A-Za-z_]\\w*)"];
  return new RegExp(parts.join("|"), "g");
}

function kindOf({ comment, text, number, word }, words) {
  if (comment !== undefined) return "comment";
  if (text !== undefined) return "text";
  if (number !== undefined) return "number";
  return words.has(word) ? "word" : null;
}
