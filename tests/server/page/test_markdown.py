"""What models write becomes elements of a few harmless kinds, whatever it is, and the same in pieces as at once."""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
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
DATA = json.loads((Path(__file__).parents[2] / "data" / "page_markdown.json").read_text("utf-8"))
CASES: Mapping[str, tuple[str, str]] = DATA["cases"]
"""What is written, and what the browser shows of it, but for buttons."""
HOSTILE = (Path(__file__).parent / "hostile.js").read_text("utf-8")
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
def page(served: Served, browser: object) -> "Iterator[Page]":
    context = browser.new_context()  # type: ignore[attr-defined]
    tab = Tab.open(context, served.url)
    yield tab.page
    tab.check()
    context.close()


@pytest.mark.parametrize("name", CASES)
def test_it_becomes(page: "Page", name: str) -> None:
    text, html = CASES[name]
    assert page.evaluate(HTML, text) == html


@pytest.mark.parametrize("seed", range(4))
def test_hostile_texts_stay_texts(page: "Page", seed: int) -> None:
    draw = random.Random(seed)
    texts = ["".join(draw.choices(DATA["hostile"], k=draw.randint(1, 30))) for _ in range(500)]
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
    tab.until("document.querySelector('#announcements').textContent === 'Copied'")
    assert tab.page.evaluate("navigator.clipboard.readText()") == "const a = `<b>`;"
