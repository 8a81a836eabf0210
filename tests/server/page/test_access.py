"""The page by keyboard, for screen readers, on a phone, light and dark."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from browsing import COMPLETIONS, Tab, delta, end, stream
from serving import Served

SIZES: Mapping[str, Mapping[str, int]] = {
    "desktop": {"width": 1280, "height": 800},
    "phone": {"width": 360, "height": 740},
}
ANSWER = """# A small tour

A *heron* stands **very** still, then strikes. See [the field guide](https://example.org/herons), or `grep heron`.

## What it eats

1. Fish, mostly
2. Frogs
   - in spring
   - after rain
3. Now and then a vole

| Bird | Length | Sings |
|:--|--:|:-:|
| Heron | 94 cm | no |
| Bittern | 76 cm | booms |

> It is all in the waiting.

```python
def strike(pond: Pond, seconds: float = 90.5) -> Fish | None:
    \"\"\"Wait, then be quick.\"\"\"
    for ripple in pond.watch(seconds):  # most are leaves
        if ripple.is_fish:
            return pond.catch(ripple, "beak")
    return None
```

- [x] Stand still
- [ ] Fly home
"""
CONTRAST = (Path(__file__).parent / "contrast.js").read_text("utf-8")
WIDE = """
() => [...document.querySelectorAll("html, main, #scroller, #composer, dialog[open]")]
  .filter((each) => each.scrollWidth > each.clientWidth + 1).map((each) => each.id || each.tagName)
"""


def talk(tab: Tab) -> None:
    """A conversation with all that an answer may have."""
    usage = {
        "prompt_tokens": 812,
        "completion_tokens": 268,
        "prompt_tokens_details": {"cached_tokens": 640},
        "completion_tokens_details": {"reasoning_tokens": 41},
        "edge_llama": {"tokens_per_second": 61.4},
    }
    body = stream(
        delta(reasoning_content="The person wants a *short* tour. A table may help."),
        delta(content=ANSWER),
        end("stop"),
        {"choices": [], "usage": usage},
    )
    tab.page.route(f"**{COMPLETIONS}", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    tab.ask("Tell me about herons, with a table and a little code, please. I have seen one by the pond this morning.")
    tab.page.unroute(f"**{COMPLETIONS}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_readable_everywhere(
    served: Served, open_tab: Callable[..., Tab], pictures: Path, scheme: str, size: str
) -> None:
    """Contrast of all that is seen, nothing wider than the screen, in every state; the pictures are for people."""
    assert served.model
    tab = open_tab(served.url, color_scheme=scheme, viewport=SIZES[size])

    def check(name: str) -> None:
        tab.page.mouse.move(0, 0)
        tab.picture(pictures, f"{name}-{size}-{scheme}")
        assert tab.page.evaluate(CONTRAST) == []
        assert tab.page.evaluate(WIDE) == []

    check("new")
    talk(tab)
    tab.page.locator("#scroller").evaluate("each => each.scrollTop = 0")
    check("chat-begin")
    tab.page.locator("details.thoughts summary").click()
    tab.page.locator("#scroller").evaluate("each => each.scrollTop = each.scrollHeight")
    check("chat-end")
    tab.page.click("#open-settings")
    check("settings")
    tab.page.keyboard.press("Escape")
    tab.send("word " * 5000)
    tab.page.wait_for_selector(".problem")
    check("problem")
    tab.questions.first.hover()
    tab.questions.first.get_by_label("Edit this message").click()
    check("edit")
    tab.page.keyboard.press("Escape")
    if size == "phone":
        tab.page.click("#toggle-sidebar")
        check("list")
    else:
        tab.page.click("#close-sidebar")
        check("wide")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_system_chooses_light_or_dark(served: Served, open_tab: Callable[..., Tab], scheme: str) -> None:
    tab = open_tab(served.url, color_scheme=scheme)
    red = int(tab.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]"))
    assert (red > 200) is (scheme == "light")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(served: Served, open_tab: Callable[..., Tab], scheme: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe is not installed: make test-page"
    ).Axe()
    assert served.model
    tab = open_tab(served.url, color_scheme=scheme)

    def found() -> list[str]:
        violations = axe.run(tab.page).response["violations"]
        return [f"{each['id']}: {node['html']}" for each in violations for node in each["nodes"]]

    assert found() == []
    talk(tab)
    tab.page.locator("details.thoughts summary").click()
    assert found() == []
    tab.page.click("#open-settings")
    assert found() == []


def test_a_whole_conversation_by_keyboard(tab: Tab) -> None:
    page = tab.page
    tab.settings(max_tokens=4)
    page.focus("#close-sidebar")  # the first control after it
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    page.wait_for_selector("#stop:visible")
    tab.wait()
    assert tab.sent[0]["messages"] == [{"role": "user", "content": "one\ntwo"}]
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.press("Shift+Tab")
    for _ in range(12):
        if "Answer again" in (page.evaluate("document.activeElement.getAttribute('aria-label')") or ""):
            break
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    tab.until("document.querySelector('.toast')")
    tab.wait()
    assert len(tab.sent) == 2
    assert page.evaluate("document.activeElement.id") == "prompt"


def test_every_control_can_be_reached_and_shows_that_it_is(tab: Tab) -> None:
    talk(tab)
    page = tab.page
    wanted = set(
        page.evaluate(
            """() => [...document.querySelectorAll("button, input, textarea, select, a, summary, [tabindex='0']")]
            .filter((each) => each.checkVisibility({ visibilityProperty: true }) && each.tabIndex >= 0)
            .filter((each) => !each.disabled)
            .map((each, at) => (each.dataset.test = String(at)))"""
        )
    )
    reached = set()
    page.evaluate("document.activeElement.blur()")
    for _ in range(len(wanted) + 5):
        page.keyboard.press("Tab")
        name, shows = page.evaluate(
            """() => {
              const node = document.activeElement;
              const style = getComputedStyle(node);
              const accent = getComputedStyle(document.querySelector("#send")).backgroundColor;
              const border = getComputedStyle(document.querySelector("#composer")).borderTopColor;
              const outlined = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
              return [node.dataset.test ?? null, outlined || (node.id === "prompt" && border === accent)];
            }"""
        )
        assert shows or name is None, name
        reached.add(name)
    assert wanted <= reached


def test_only_the_end_of_an_answer_is_announced(tab: Tab) -> None:
    tab.settings(max_tokens=24)
    tab.page.evaluate(
        """() => {
          window.said = [];
          new MutationObserver(() => window.said.push(document.querySelector("#announcements").textContent))
            .observe(document.querySelector("#announcements"), { childList: true, characterData: true, subtree: true });
        }"""
    )
    tab.ask("Write about the rain.")
    tab.until("window.said.some(Boolean)")
    assert [text for text in tab.page.evaluate("window.said") if text] == ["Answer finished, 24 tokens."]
    live = "[aria-live], [role=log], [role=status], [role=alert]"
    assert tab.page.locator("#messages").locator(live).count() == 0


def test_the_list_on_a_phone_opens_over_the_page_and_closes(served: Served, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(served.url, viewport=SIZES["phone"])
    assert tab.page.locator("#new-chat").is_hidden()
    tab.page.click("#toggle-sidebar")
    tab.page.wait_for_selector("#new-chat:visible")
    assert tab.page.evaluate("document.activeElement.id") == "new-chat"
    assert tab.page.evaluate("document.querySelector('main').inert")
    tab.page.keyboard.press("Escape")
    tab.page.wait_for_selector("#new-chat:visible", state="hidden")
    assert tab.page.evaluate("document.activeElement.id") == "toggle-sidebar"


def test_who_reads_further_up_is_not_pulled_down(tab: Tab) -> None:
    tab.page.set_viewport_size({"width": 900, "height": 420})
    talk(tab)
    tab.settings(max_tokens=32)
    tab.send("Write about the rain.")
    tab.page.wait_for_selector("#stop:visible")
    tab.page.locator("#scroller").evaluate("each => each.scrollTop = 0")
    tab.page.wait_for_selector("#jump:visible")
    tab.wait()
    assert tab.page.locator("#scroller").evaluate("each => each.scrollTop") == 0
    tab.page.click("#jump")
    assert tab.page.locator("#scroller").evaluate("each => each.scrollHeight - each.scrollTop - each.clientHeight") < 2
