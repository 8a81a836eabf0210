"""A browser, and tabs that are checked when a test is over. Where there is none, test_browser.py alone is collected."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing import Tab
from serving import Served, serve

from edge_llama.planning.options import OpenOptions
from edge_llama.server.pool import Pool
from edge_llama.server.settings import ServerSettings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

BROWSER = os.environ.get("EDGE_LLAMA_BROWSER")
OPTIONS: OpenOptions = {"n_ctx": 2048, "threads": 1}
PICTURES = os.environ.get("EDGE_LLAMA_PICTURES")

if not BROWSER:  # one line says that they are skipped, and why, not one for each
    collect_ignore = [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name != "test_browser.py"]


@pytest.fixture(scope="module")  # no file of tests leaves a process running
def browser() -> "Iterator[Browser]":
    """The system's Chromium."""
    if BROWSER is None:
        pytest.skip("it needs a browser: make test-page")
    if not BROWSER:
        pytest.skip("there is no Chromium: apt-get install chromium, or make test-page CHROMIUM=FILE")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-page")
    with playwright.sync_playwright() as driver:
        # Without its sandbox, which root may not have; the page is our own.
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def new_context(browser: "Browser") -> "Iterator[Callable[..., BrowserContext]]":
    """Browsers with nothing in them; takes Playwright's options for a context."""
    contexts: list[BrowserContext] = []

    def new(**options: object) -> "BrowserContext":
        contexts.append(browser.new_context(**{"locale": "en-GB", "reduced_motion": "reduce", **options}))  # type: ignore[arg-type]
        return contexts[-1]

    yield new
    for context in contexts:
        context.close()


@pytest.fixture
def open_tab(new_context: "Callable[..., BrowserContext]") -> Iterator[Callable[..., Tab]]:
    """Open the page of a server in a browser of its own, or in a given context."""
    tabs: list[Tab] = []

    def open_(url: str, context: "BrowserContext | None" = None, **options: object) -> Tab:
        tabs.append(Tab.open(context or new_context(**options), url))
        return tabs[-1]

    yield open_
    for tab in tabs:
        tab.check()


@pytest.fixture
def tab(served: Served, open_tab: Callable[..., Tab]) -> Tab:
    """The page of the tests' server, whose model is loaded."""
    assert served.model
    return open_tab(served.url)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where screenshots go: PICTURES of make test-page."""
    folder = Path(PICTURES) if PICTURES else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def key_server(browser: "Browser", converted: Path) -> Iterator[Served]:
    """A server that wants a key: right-key."""
    with serve(Pool([str(converted)], OPTIONS, isolate=False), ServerSettings(api_key="right-key")) as server:
        assert server.model
        yield server


@pytest.fixture(scope="module")
def two_models(browser: "Browser", converted: Path) -> Iterator[Served]:
    """A server with two models, neither loaded."""
    small_talk = Path(__file__).parents[2] / "data" / "small_talk.gguf"
    with serve(Pool([str(converted), str(small_talk)], {"threads": 1}, isolate=False)) as server:
        yield server
