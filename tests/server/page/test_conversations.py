"""Conversations stay in the browser: after a reload, under another name, deleted, had back, in a file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing import COMPLETIONS, Tab
from serving import Served

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

READ_ALL = """
async () => {
  const { Store } = await import("/page/store.js");
  const store = new Store();
  await store.open(() => {});
  return (await store.all()).map(({ title, messages }) => [title, messages.map(({ role, text }) => [role, text])]);
}
"""


@pytest.fixture
def talked(tab: Tab) -> Tab:
    """A tab with two conversations; the second is open."""
    tab.settings(max_tokens=4, temperature=0)
    tab.ask("Tell me of herons.")
    tab.page.click("#new-chat")
    tab.ask("Tell me of otters.")
    return tab


def row(tab: Tab, title: str):
    return tab.page.locator("#conversations li", has_text=title)


def press(tab: Tab, title: str, button: str) -> None:
    """Press a button of a row."""
    row(tab, title).hover()
    row(tab, title).get_by_label(f"{button} ").click()


def kept(tab: Tab, title: str) -> list[list[str]]:
    """The roles and texts of a conversation as the browser keeps it now."""
    (messages,) = [messages for name, messages in tab.page.evaluate(READ_ALL) if title in name]
    return messages


def test_conversations_survive_a_reload(talked: Tab) -> None:
    answer = talked.answers.last.inner_text()
    talked.page.reload()
    talked.page.wait_for_selector("article.assistant")
    assert talked.texts == ["Tell me of otters."]
    assert talked.answers.last.inner_text() == answer
    assert talked.titles == ["Tell me of otters.", "Tell me of herons."]
    row(talked, "herons").locator(".row").click()
    talked.until("document.title === 'Tell me of herons. · edge-llama'")
    assert talked.texts == ["Tell me of herons."]


def test_a_page_that_is_left_keeps_what_came(tab: Tab) -> None:
    tab.send("Write a very long story.")
    tab.until("document.querySelector('article.assistant > .markdown').textContent.length > 20")
    tab.page.reload()
    tab.page.wait_for_selector("article.assistant")
    assert tab.page.locator(".note").inner_text().startswith("Not whole: the page that wrote it was left")
    assert len(tab.answers.last.locator(":scope > .markdown").inner_text()) > 5


def test_a_conversation_is_renamed(talked: Tab) -> None:
    row(talked, "herons").hover()
    row(talked, "herons").get_by_label("Rename Tell me of herons.").click()
    talked.page.locator("#conversations input").fill("Birds")
    talked.page.keyboard.press("Enter")
    talked.page.wait_for_selector("#conversations .row:has-text('Birds')")
    row(talked, "otters").hover()
    row(talked, "otters").get_by_label("Rename Tell me of otters.").click()
    talked.page.locator("#conversations input").fill("Never")
    talked.page.keyboard.press("Escape")
    talked.page.wait_for_selector("#conversations .row:has-text('otters')")
    talked.page.reload()
    talked.page.wait_for_selector("#conversations .row")
    assert sorted(talked.titles) == ["Birds", "Tell me of otters."]


def test_a_conversation_is_deleted_and_had_back(talked: Tab) -> None:
    row(talked, "otters").hover()
    row(talked, "otters").get_by_label("Delete Tell me of otters.").click()
    talked.page.wait_for_selector("#welcome:visible")
    assert talked.titles == ["Tell me of herons."]
    assert [title for title, _ in talked.page.evaluate(READ_ALL)] == ["Tell me of herons."]
    talked.toast.get_by_text("Undo").click()
    talked.page.wait_for_selector("#conversations .row:has-text('otters')")
    row(talked, "herons").hover()
    row(talked, "herons").get_by_label("Delete Tell me of herons.").click()
    talked.page.wait_for_selector("#conversations .row:has-text('herons')", state="detached")
    talked.page.reload()
    talked.page.wait_for_selector("#conversations .row")
    assert talked.titles == ["Tell me of otters."]


def test_another_name_keeps_what_was_said_since_the_list_was_built(talked: Tab) -> None:
    talked.ask("And of seals.")
    messages = kept(talked, "otters")
    assert len(messages) == 4
    assert all(text for _, text in messages)
    press(talked, "otters", "Rename")
    talked.page.locator("#conversations input").fill("Mammals")
    talked.page.keyboard.press("Enter")
    talked.page.wait_for_selector("#conversations .row:has-text('Mammals')")
    assert kept(talked, "Mammals") == messages
    assert talked.page.inner_text("#title") == "Mammals"
    assert talked.page.title() == "Mammals · edge-llama"
    talked.page.reload()
    talked.page.wait_for_selector("article.assistant")
    assert talked.texts == ["Tell me of otters.", "And of seals."]


def test_undo_brings_back_what_was_said_since_the_list_was_built(talked: Tab) -> None:
    talked.ask("And of seals.")
    messages = kept(talked, "otters")
    assert len(messages) == 4
    press(talked, "otters", "Delete")
    talked.page.wait_for_selector("#welcome:visible")
    talked.toast.get_by_text("Undo").click()
    talked.page.wait_for_selector("#conversations .row:has-text('otters')")
    assert kept(talked, "otters") == messages


def test_an_answer_given_again_is_that_of_its_own_conversation(talked: Tab) -> None:
    """Before the running one has stopped, "Answer again" is pressed twice, and another conversation opened."""
    herons = kept(talked, "herons")
    talked.settings(max_tokens="")
    talked.send("Write a very long story of otters.")
    talked.until("document.querySelectorAll('article.assistant > .markdown')[1]?.textContent.length > 5")
    talked.page.evaluate("""() => {
      const again = document.querySelector('article.assistant [aria-label="Answer again"]');
      again.click();
      again.click();
      document.querySelectorAll("#conversations .row")[1].click();
    }""")
    talked.until("document.title === 'Tell me of herons. · edge-llama'")
    talked.page.wait_for_selector(".toast:has-text('3 messages replaced.')")
    press(talked, "otters", "Delete")  # ends the answer, which needn't be whole
    talked.page.wait_for_selector("#conversations .row:has-text('otters')", state="detached")
    assert [each["messages"][-1]["content"] for each in talked.sent][-2:] == [
        "Write a very long story of otters.",
        "Tell me of otters.",
    ]
    assert kept(talked, "herons") == herons
    assert talked.page.locator(".toast:has-text('replaced')").count() == 1


def test_one_that_is_being_answered_can_be_deleted(served: Served, tab: Tab) -> None:
    tab.send("Write a very long story.")
    tab.until("document.querySelector('article.assistant > .markdown').textContent.length > 20")
    row(tab, "very long").hover()
    row(tab, "very long").get_by_label("Delete").click()
    tab.page.wait_for_selector("#welcome:visible")
    assert tab.page.evaluate(READ_ALL) == []


def test_search_looks_into_messages(talked: Tab) -> None:
    talked.page.fill("#search", "OTTERS")
    assert talked.titles == ["Tell me of otters."]
    talked.page.fill("#search", "no such word")
    assert talked.titles == []
    assert "No conversation" in talked.page.inner_text("#conversations")
    talked.page.fill("#search", "")
    assert len(talked.titles) == 2


def test_all_go_into_a_file_and_come_back(talked: Tab, tmp_path: Path, open_tab: Callable[..., Tab]) -> None:
    with talked.page.expect_download() as waiting:
        talked.page.click("#export")
    file = tmp_path / "conversations.json"
    waiting.value.save_as(file)
    before = talked.page.evaluate(READ_ALL)
    other = open_tab(talked.url)  # another browser
    assert other.page.evaluate(READ_ALL) == []
    said = ["2 conversations imported.", "0 conversations imported. 2 skipped: what is here is as new or newer."]
    for each in said:  # the same again is not twice there
        other.page.set_input_files("#import-file", file)
        other.page.wait_for_selector(f".toast:has-text('{each}')")
        assert other.page.evaluate(READ_ALL) == before


def test_a_file_brings_back_what_is_gone_and_nothing_over_what_was_said_since(talked: Tab, tmp_path: Path) -> None:
    with talked.page.expect_download() as waiting:
        talked.page.click("#export")
    file = tmp_path / "conversations.json"
    waiting.value.save_as(file)
    herons = kept(talked, "herons")
    talked.ask("And of seals.")
    otters = kept(talked, "otters")
    assert len(otters) == 4
    press(talked, "herons", "Delete")
    talked.page.wait_for_selector("#conversations .row:has-text('herons')", state="detached")
    talked.page.set_input_files("#import-file", file)
    talked.page.wait_for_selector(".toast:has-text('1 conversation imported. 1 skipped')")
    assert (kept(talked, "herons"), kept(talked, "otters")) == (herons, otters)
    row(talked, "herons").locator(".row").click()
    talked.until("document.title === 'Tell me of herons. · edge-llama'")
    talked.ask("Go on.")  # it was deleted in this tab, and is kept again
    assert len(kept(talked, "herons")) == 4


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("no json", "it is no JSON"),
        ("{}", "this page did not export it"),
        ('{"format": "edge-llama conversations", "version": 2, "conversations": []}', "its version is 2"),
    ],
)
def test_another_file_is_refused_with_the_reason(tab: Tab, content: str, why: str) -> None:
    file = {"name": "notes.json", "mimeType": "application/json", "buffer": content.encode()}
    tab.page.set_input_files("#import-file", file)
    tab.page.wait_for_selector(".toast")
    assert f"notes.json was not imported: {why}" in tab.toast.inner_text()
    assert tab.page.evaluate(READ_ALL) == []


def test_a_hostile_file_brings_texts_alone(tab: Tab) -> None:
    messages = [
        {"role": "system", "text": {"not": "a text"}, "calls": "no list", "usage": {"prompt": "x"}, "notes": [1]},
        {
            "role": "user",
            "text": "<img src=x onerror=alert(1)>",
            "images": [{"name": 1, "data": "https://evil.example/"}],
        },
        None,
    ]
    found = {"id": "../../x", "title": "<b>bold</b>", "updated": "later", "messages": messages}
    content = json.dumps({"format": "edge-llama conversations", "version": 1, "conversations": [found, 7, None]})
    file = {"name": "x.json", "mimeType": "application/json", "buffer": content.encode()}
    tab.page.set_input_files("#import-file", file)
    tab.page.wait_for_selector("#conversations .row")
    assert tab.titles == ["<b>bold</b>"]
    tab.page.click("#conversations .row")
    tab.page.wait_for_selector("article.user")
    assert tab.texts == ["<img src=x onerror=alert(1)>"]
    assert tab.page.locator("#messages img").count() == 0


def test_another_tab_of_the_same_browser_follows(
    talked: Tab, open_tab: Callable[..., Tab], new_context: "Callable[..., BrowserContext]"
) -> None:
    other = open_tab(talked.url, talked.page.context)
    other.page.wait_for_selector("#conversations .row")
    row(talked, "herons").hover()
    row(talked, "herons").get_by_label("Rename").click()
    talked.page.locator("#conversations input").fill("Birds")
    talked.page.keyboard.press("Enter")
    other.page.wait_for_selector("#conversations .row:has-text('Birds')")
    assert other.titles == ["Tell me of otters.", "Birds"]


def test_where_a_browser_keeps_nothing_it_says_so_and_works(
    served: Served, new_context: "Callable[..., BrowserContext]", open_tab: Callable[..., Tab]
) -> None:
    context = new_context()
    context.add_init_script("indexedDB.open = () => { throw new DOMException('not here', 'SecurityError'); };")
    tab = open_tab(served.url, context)
    assert "keeps no conversations" in tab.toast.inner_text()
    tab.settings(max_tokens=4)
    tab.ask("Hello!")
    assert tab.titles == ["Hello!"]


def test_the_address_names_the_conversation(talked: Tab) -> None:
    address = talked.page.url
    talked.page.click("#new-chat")
    assert "#" not in talked.page.url
    talked.page.goto(address)
    talked.page.wait_for_selector("article.user")
    assert talked.texts == ["Tell me of otters."]
    talked.page.evaluate("location.hash = 'ffffffffffffffffffffffff'")  # deleted, or another browser's
    talked.page.wait_for_selector("#welcome:visible")


def test_several_models_are_chosen_by_name(two_models: Served, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(two_models.url)
    names = [entry.name for entry in two_models.pool.entries]
    assert tab.page.locator("#model option").all_inner_texts() == names
    tab.settings(max_tokens=4)
    tab.page.select_option("#model", names[1])
    tab.ask("Hello!")
    assert tab.sent[0]["model"] == names[1]
    assert tab.answers.last.locator("h2").inner_text(timeout=1000) == names[1]
    tab.page.wait_for_selector("#gauge:visible")  # its context is known once it is loaded
    tab.page.reload()
    tab.until("document.querySelector('#facts').textContent")
    assert tab.page.input_value("#model") == names[1]


def test_requests_go_to_one_endpoint(talked: Tab) -> None:
    paths = {each.url.removeprefix(talked.url) for each in talked.asked if "/page/" not in each.url}
    assert {path for path in paths if not path.startswith("blob:")} <= {"/", "", COMPLETIONS}
