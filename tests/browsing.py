"""The server's page in a real browser, as a person uses it, and a watch on what it asks and loads."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Locator, Page, Request

COMPLETIONS = "/v1/chat/completions"
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sample}`));
"""
ANSWERED = """
(count) => {
  const answers = document.querySelectorAll("article.assistant");
  return answers.length === count && answers[count - 1].getAttribute("aria-busy") === "false";
}
"""
_QUIET = "Failed to load resource"
"""What Chromium's console says of every response that is no 2xx: some tests are about those."""
_MS = 60_000
"""More than anything here takes."""


@dataclass
class Tab:
    """A tab with the page open, and all that it did."""

    page: "Page"
    url: str
    asked: "list[Request]" = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, context: "BrowserContext", url: str) -> "Tab":
        """Open the page at ``url`` and wait until it knows its model, or asks for a key."""
        tab = cls(context.new_page(), url)
        page = tab.page
        page.set_default_timeout(_MS)
        page.add_init_script(WATCH)
        page.on("request", tab._asks)
        page.on("pageerror", lambda error: tab.errors.append(str(error)))
        page.on("console", lambda message: tab._heard(message.type, message.text))
        page.goto(url)
        tab.until("document.querySelector('#facts').textContent || document.querySelector('#key').open")
        return tab

    def until(self, expression: str, argument: object = None) -> None:
        """Wait for it to be true. Playwright's own way evaluates texts in the page, which the policy forbids."""
        last = time.monotonic() + _MS / 1000
        while not self.page.evaluate(expression, argument):
            assert time.monotonic() < last, expression
            self.page.wait_for_timeout(10)

    def _asks(self, request: "Request") -> None:
        self.asked.append(request)

    def _heard(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not text.startswith(_QUIET):
            self.errors.append(text)

    def check(self) -> None:
        """Nothing was blocked, nothing failed, and nobody else was asked."""
        assert self.page.evaluate("window.violations") == []
        assert self.errors == []
        others = [each.url for each in self.asked if not each.url.startswith((self.url, "blob:"))]
        assert others == []

    def settings(self, **values: object) -> None:
        """Set sampling settings as a person does."""
        self.page.click("#open-settings")
        for name, value in values.items():
            self.page.fill(f"#set-{name}", str(value))
        self.page.keyboard.press("Escape")

    def send(self, text: str) -> None:
        """Write a message and send it."""
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")

    def wait(self) -> None:
        """Until nothing is being written."""
        self.page.wait_for_selector("#send:visible")

    def ask(self, text: str) -> str:
        """The answer to a message."""
        count = self.answers.count()
        self.send(text)
        self.until(ANSWERED, count + 1)
        return self.answers.last.locator(":scope > .markdown").inner_text()

    @property
    def answers(self) -> "Locator":
        """The articles of answers."""
        return self.page.locator("article.assistant")

    @property
    def questions(self) -> "Locator":
        """The articles of a person's messages."""
        return self.page.locator("article.user")

    @property
    def texts(self) -> Sequence[str]:
        """What a person's messages say."""
        return self.page.locator("article.user .bubble").all_inner_texts()

    @property
    def titles(self) -> Sequence[str]:
        """The names in the list of conversations."""
        return self.page.locator("#conversations .row").all_inner_texts()

    @property
    def toast(self) -> "Locator":
        """The last notice."""
        return self.page.locator(".toast").last

    @property
    def sent(self) -> Sequence[Mapping[str, Any]]:
        """The bodies of requests for answers."""
        return [json.loads(each.post_data or "") for each in self.asked if each.url.endswith(COMPLETIONS)]

    def picture(self, folder: Path, name: str) -> None:
        """Keep a screenshot."""
        self.page.screenshot(path=folder / f"{name}.png")


def stream(*chunks: Mapping[str, Any]) -> str:
    """Server-sent events of a chat completion, for what the models of tests don't say by themselves."""
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def delta(**said: object) -> Mapping[str, Any]:
    """A chunk with a part of an answer."""
    return {"choices": [{"index": 0, "delta": said, "finish_reason": None}]}


def end(reason: str) -> Mapping[str, Any]:
    """A chunk that ends an answer."""
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
