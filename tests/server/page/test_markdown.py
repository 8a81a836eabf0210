"""What models write becomes elements of a few harmless kinds, whatever they write, and the same in pieces as at once."""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from browsing import Tab
from serving import Served

if TYPE_CHECKING:
    from playwright.sync_api import Page

SHOW = """
async (text) => {
  const { show } = await import("/page/markdown.js");
  const box = document.createElement("div");
  show(box, text);
  for (const button of box.querySelectorAll("button")) button.remove();
  return box;
}
"""
HTML = f"async (text) => {{ const box = await ({SHOW})(text); return box.innerHTML; }}"
CASES = {
    "plain": ("one\ntwo  \nthree\n\nfour", "<p>one<br>two<br>three</p><p>four</p>"),
    "emphasis": ("*a* _b_ **c** __d__ ***e*** ~~f~~", "<p><em>a</em> <em>b</em> <strong>c</strong> <strong>d</strong> <em><strong>e</strong></em> <del>f</del></p>"),
    "nested": ("**a *b* c**", "<p><strong>a <em>b</em> c</strong></p>"),
    "no emphasis": ("2 * 3 * 4, snake_case_name, a ** b, *open, ~one~", "<p>2 * 3 * 4, snake_case_name, a ** b, *open, ~one~</p>"),
    "chinese": ("**注意：**这是", "<p><strong>注意：</strong>这是</p>"),
    "escapes": (r"\*a\* \[b\] \\ \q", r"<p>*a* [b] \ \q</p>"),
    "code": ("`a<b` ``c ` d`` `open", "<p><code>a&lt;b</code> <code>c ` d</code> `open</p>"),
    "markup": ("<b onclick=x>hi</b> &amp; <script>alert(1)</script>", "<p>&lt;b onclick=x&gt;hi&lt;/b&gt; &amp;amp; &lt;script&gt;alert(1)&lt;/script&gt;</p>"),
    "line breaks": ("a<br>b<br/>c", "<p>a<br>b<br>c</p>"),
    "headings": ("# One\n## Two ##\n####### seven\n#none", '<h3 class="level-1">One</h3><h4 class="level-2">Two</h4><p>####### seven<br>#none</p>'),
    "rule": ("a\n\n---\n\n* * *", "<p>a</p><hr><hr>"),
    "quote": ("> a\n> > b\n\nc", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>"),
    "list": ("- a\n- b\n  - c\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
    "ordered": ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
    "indented by two": ("1. a\n  - b\n2. c", "<ol><li>a<ul><li>b</li></ul></li><li>c</li></ol>"),
    "loose list": ("- a\n\n- b", "<ul><li><p>a</p></li><li><p>b</p></li></ul>"),
    "list after text": ("Things:\n- a\n- b", "<p>Things:</p><ul><li>a</li><li>b</li></ul>"),
    "a year": ("It was in\n1986. Then", "<p>It was in<br>1986. Then</p>"),
    "item goes on": ("- a\nb\n- c", "<ul><li>a<br>b</li><li>c</li></ul>"),
    "tasks": ("- [ ] a\n- [x] b", '<ul><li class="task"><span class="box" role="img" aria-label="to do">☐</span> a</li><li class="task"><span class="box" role="img" aria-label="done">☑</span> b</li></ul>'),
    "fence": ("```\na\n\n  b\n```\nc", '<figure class="code"><figcaption><span>text</span></figcaption><pre tabindex="0" aria-label="Code: text"><code>a\n\n  b</code></pre></figure><p>c</p>'),
    "open fence": ("~~~text\na", '<figure class="code"><figcaption><span>text</span></figcaption><pre tabindex="0" aria-label="Code: text"><code>a</code></pre></figure>'),
    "fence in a list": ("1. a\n\n   ```\n   b\n\n\n   c\n   ```\n2. d", '<ol><li><p>a</p><figure class="code"><figcaption><span>text</span></figcaption><pre tabindex="0" aria-label="Code: text"><code>b\n\n\nc</code></pre></figure></li><li><p>d</p></li></ol>'),
    "table": ("|a|b|\n|:-:|--:|\n|1|`2`|\n|3\\|4|", '<div class="table" tabindex="0" role="group" aria-label="Table"><table><thead><tr><th class="centre" scope="col">a</th><th class="right" scope="col">b</th></tr></thead><tbody><tr><td class="centre">1</td><td class="right"><code>2</code></td></tr><tr><td class="centre">3|4</td></tr></tbody></table></div>'),
    "no table": ("a | b\n--- and", "<p>a | b<br>--- and</p>"),
}  # fmt: skip
A = 'title="{0}" target="_blank" rel="noopener noreferrer"'.format
LINKS = {
    "link": ("[a *b*](https://x.example/c)", f'<p><a href="https://x.example/c" {A("https://x.example/c")}>a <em>b</em></a></p>'),
    "title": ('[a](https://x.example/ "t")', f'<p><a href="https://x.example/" {A("https://x.example/")}>a</a></p>'),
    "brackets": ("[a](https://x.example/b_(c))", f'<p><a href="https://x.example/b_(c)" {A("https://x.example/b_(c)")}>a</a></p>'),
    "bare": ("see https://x.example/a_b_c, (http://y.example/).", f'<p>see <a href="https://x.example/a_b_c" {A("https://x.example/a_b_c")}>https://x.example/a_b_c</a>, (<a href="http://y.example/" {A("http://y.example/")}>http://y.example/</a>).</p>'),
    "bold": ("**https://x.example/**", f'<p><strong><a href="https://x.example/" {A("https://x.example/")}>https://x.example/</a></strong></p>'),
    "its own text": ("[https://x.example/](https://y.example/)", f'<p><a href="https://y.example/" {A("https://y.example/")}>https://x.example/</a></p>'),
    "picture": ("![cat](https://x.example/cat.png)", f'<p><a href="https://x.example/cat.png" {A("https://x.example/cat.png")} class="picture-link">cat</a></p>'),
    "angled": ("<https://x.example/>", f'<p><a href="https://x.example/" {A("https://x.example/")}>https://x.example/</a></p>'),
    "none": ("[a](javascript:alert(1)) [b](/c) [c](data:text/html,x) [d] (e) ![f](file:///g)", "<p>[a](javascript:alert(1)) [b](/c) [c](data:text/html,x) [d] (e) ![f](file:///g)</p>"),
}  # fmt: skip
HOSTILE = """
async (texts) => {
  const allowed = new Set("P BR EM STRONG DEL CODE A H3 H4 H5 H6 HR BLOCKQUOTE UL OL LI SPAN FIGURE FIGCAPTION PRE DIV TABLE THEAD TBODY TR TH TD BUTTON".split(" "));
  const attributes = new Set("class href title target rel start tabindex aria-label role scope type".split(" "));
  const { show } = await import("/page/markdown.js");
  const wrong = [];
  const plain = (text) => text.replace(/[^\\p{L}\\p{N}]/gu, "");
  for (const text of texts) {
    const box = document.createElement("div");
    show(box, text);
    document.body.append(box); // whatever would load or run does now
    for (const node of box.querySelectorAll("*:not(svg, svg *)")) {
      if (!allowed.has(node.tagName)) wrong.push([text, node.tagName]);
      for (const { name, value } of node.attributes) {
        if (!attributes.has(name)) wrong.push([text, `${node.tagName} ${name}=${value}`]);
        if (name === "href" && !/^https?:\\/\\/[^\\s]/.test(value)) wrong.push([text, value]);
      }
    }
    for (const link of box.querySelectorAll("a")) {
      if (link.rel !== "noopener noreferrer" || link.querySelector("a")) wrong.push([text, link.outerHTML]);
    }
    const parts = document.createElement("div");
    for (let end = 0; end < text.length; end += 1 + (end % 7)) show(parts, text.slice(0, end));
    show(parts, text);
    if (parts.innerHTML !== box.innerHTML) wrong.push([text, "in pieces it is another"]);
    box.remove();
  }
  return [wrong.slice(0, 3), window.alerted ?? false];
}
"""
FRAGMENTS = (
    "<script>window.alerted=1</script>", "<img src=x onerror=window.alerted=1>", "<iframe src=https://evil.example>", "<svg onload=window.alerted=1>",
    "[a](javascript:window.alerted=1)", "[a](JaVaScRiPt:window.alerted=1)", "[a](java\nscript:window.alerted=1)", "[a](data:text/html,<script>window.alerted=1</script>)",
    "[a](vbscript:x)", "[a](https://x.example/\"onmouseover=window.alerted=1)", "![a](https://evil.example/a.png)", "![a](//evil.example/a.png)", "<https://x.example/>",
    "https://x.example/`a`", "http://[::1]:99999/", "https://", "<a href=javascript:window.alerted=1>", "</div></main>", "<style>*{display:none}</style>", "<link rel=stylesheet href=//evil.example>",
    "<meta http-equiv=refresh content=0;url=//evil.example>", "<base href=//evil.example>", "<form action=//evil.example><button>", "&lt;script&gt;", "&#x3c;b&#x3e;", "\x00", "\u202e", "\ud83d\ude00", "\ufeff",
    "`", "``", "```", "```js\n", "~~~", "*", "**", "***", "_", "__", "~~", "[", "]", "](", "(", ")", "![", "\\", "|", "|-|-|\n", "|a|b|\n|-|-|\n", "> ", ">>", "- ", "1. ", "- [ ] ", "# ", "---", "\n", "\n\n", "  ", "    ", "\t", "word", "a", "<", ">", "\"", "'",
)  # fmt: skip
LARGE = {
    "stars": "*" * 20_000,
    "open stars": "*a " * 10_000,
    "closing stars": "_a " * 5_000 + "a* " * 5_000,
    "nested stars": "*a" * 5_000 + "a*" * 5_000,
    "brackets": "[" * 20_000,
    "closed brackets": "[a](" * 5_000,
    "pairs of brackets": "[" * 5_000 + "](https://x.example/)" * 2_000,
    "ticks": "".join("`" * (each % 150) + "a" for each in range(5_000)),
    "quotes": ">" * 20_000,
    "lists": "".join("  " * (each % 400) + "- a\n" for each in range(5_000)),
    "table": "|a" * 500 + "\n" + "|-" * 500 + "\n" + ("|b" * 500 + "\n") * 50,
    "hashes": "# " + "#" * 20_000 + " a",
    "spaces": "-" + " " * 20_000 + "-" + " " * 20_000 + "x",
    "backslashes": "\\" * 20_000,
    "addresses": "https://a.example/" * 2_000,
    "one word": "a" * 200_000,
    "lines": "a\n" * 20_000,
    "angles": "<" * 20_000,
}


@pytest.fixture(scope="module")
def page(served: Served, browser: object) -> "Page":
    context = browser.new_context()  # type: ignore[attr-defined]
    tab = Tab.open(context, served.url)
    yield tab.page
    tab.check()
    context.close()


@pytest.mark.parametrize("name", [*CASES, *LINKS])
def test_it_becomes(page: "Page", name: str) -> None:
    text, html = (CASES | LINKS)[name]
    assert page.evaluate(HTML, text) == html


@pytest.mark.parametrize("seed", range(4))
def test_hostile_texts_stay_texts(page: "Page", seed: int) -> None:
    draw = random.Random(seed)
    texts = ["".join(draw.choices(FRAGMENTS, k=draw.randint(1, 30))) for _ in range(500)]
    wrong, alerted = page.evaluate(HOSTILE, texts)
    assert wrong == []
    assert not alerted


@pytest.mark.parametrize("name", LARGE)
def test_the_browser_survives(page: "Page", name: str) -> None:
    """Each is shown, laid out, and not nested so deep that layout fails."""
    depth = page.evaluate(
        f"""async (text) => {{
          const box = await ({SHOW})(text);
          document.querySelector("#messages").append(box);
          const height = box.getBoundingClientRect().height;
          let deepest = 0;
          for (const node of box.querySelectorAll("*")) {{
            let depth = 0;
            for (let each = node; each !== box; each = each.parentNode) depth += 1;
            deepest = Math.max(deepest, depth);
          }}
          box.remove();
          return height > 0 ? deepest : 1000;
        }}""",
        LARGE[name],
    )
    assert depth <= 40


def test_every_letter_is_shown(page: "Page") -> None:
    draw = random.Random(11)
    words = [f"w{each}" for each in range(200)]
    marks = ("*", "**", "_", "`", "\n- ", "\n> ", "\n\n", "\n# ", " | ", "\n1. ", "~~", "[", "]", "<b>", "\\")
    for _ in range(100):
        text = " ".join(word + draw.choice(marks) if draw.random() < 0.3 else word for word in words)
        shown = page.evaluate(f"async (text) => (await ({SHOW})(text)).textContent", text)
        assert [word for word in words if word not in shown] == []


def test_what_is_shown_already_stays(page: "Page") -> None:
    """A selection in a code block, or its copied mark, outlives the rest of the answer."""
    kept = page.evaluate(
        """async () => {
          const { show } = await import("/page/markdown.js");
          const box = document.createElement("div");
          show(box, "one\\n\\n```py\\nx = 1\\n```\\n\\nthr");
          const [first, second, third] = box.children;
          show(box, "one\\n\\n```py\\nx = 1\\n```\\n\\nthree\\n\\nfour");
          const now = [...box.children];
          return [now.length, now[0] === first, now[1] === second, now[2] === third];
        }"""
    )
    assert kept == [4, True, True, False]


def test_colours_change_no_character(page: "Page") -> None:
    code = "def f(x):  # it's\n    return \"a\\\"b\" + 'c' + str(0x1f)  # <b>\n"
    script = """async ([code, language]) => {
      const { coloured } = await import("/page/code.js");
      const box = document.createElement("code");
      box.append(coloured(code, language));
      return [box.textContent, [...box.children].map((each) => `${each.className}: ${each.textContent}`)];
    }"""
    text, spans = page.evaluate(script, [code, "python"])
    assert text == code
    assert spans[:3] == ["code-word: def", "code-comment: # it's", "code-word: return"]
    for language in ("", "js", "sql", "html", "nobody's"):
        assert page.evaluate(script, [code, language])[0] == code


def test_code_is_copied(served: Served, new_context: Callable[..., object], open_tab: Callable[..., Tab]) -> None:
    context = new_context(permissions=["clipboard-read", "clipboard-write"])
    tab = open_tab(served.url, context)
    tab.page.evaluate(
        """async () => {
          const { show } = await import("/page/markdown.js");
          show(document.querySelector("#messages"), "```js\\nconst a = `<b>`;\\n```");
        }"""
    )
    tab.page.get_by_label("Copy code").click()
    tab.page.wait_for_function("document.querySelector('#announcements').textContent === 'Copied'")
    assert tab.page.evaluate("navigator.clipboard.readText()") == "const a = `<b>`;"
