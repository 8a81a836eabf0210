"""Talking with a model on the page: answers as they come, stopped, given again, after an edit, and after an error."""

import json
import time
from collections.abc import Callable

from browsing import COMPLETIONS, Tab, delta, end, stream
from serving import Served

LONG = "Write a very long story about a lighthouse, with many chapters."
LENGTHS = """
() => {
  window.lengths = new Set();
  new MutationObserver(() => {
    const body = document.querySelector("article.assistant > .markdown");
    if (body) window.lengths.add(body.textContent.length);
  }).observe(document.querySelector("#messages"), { childList: true, subtree: true, characterData: true });
}
"""


def test_an_answer_arrives_in_pieces(tab: Tab) -> None:
    tab.settings(max_tokens=48, temperature=0)
    tab.page.evaluate(LENGTHS)
    answer = tab.ask("Write about the sea.")
    lengths = tab.page.evaluate("[...window.lengths]")
    assert len(lengths) > 5
    assert lengths == sorted(lengths)
    assert len(answer) > 40
    assert tab.answers.last.get_attribute("aria-busy") == "false"


def test_an_answer_tells_what_it_took(tab: Tab) -> None:
    tab.settings(max_tokens=16, temperature=0)
    tab.ask("Write about the wind.")
    figures = tab.page.locator(".figures").inner_text()
    assert figures.startswith("16 tokens · ")
    assert "tokens/s · first after " in figures
    assert figures.endswith("from the cache")
    assert "cut here" in tab.page.locator(".note").inner_text()
    used = int(tab.page.inner_text("#gauge-text").split(" of ")[0])
    assert 16 < used < 200
    assert tab.page.inner_text("#gauge-text").endswith("of 2,048 tokens")
    assert tab.page.get_attribute("#gauge-ring", "aria-valuenow") == str(round(100 * used / 2048))
    tab.until("document.querySelector('#announcements').textContent === 'Answer finished, 16 tokens.'")


def test_the_second_turn_sends_the_first(tab: Tab) -> None:
    tab.settings(max_tokens=12, temperature=0)
    first = tab.ask("Name a colour.")
    tab.ask("Another one.")
    assert [each["role"] for each in tab.sent[1]["messages"]] == ["user", "assistant", "user"]
    assert tab.sent[1]["messages"][1]["content"].split() == first.split()
    assert " 0 of" not in tab.page.locator(".figures").last.inner_text()  # the cache had the first turn


def test_settings_are_sent_and_kept(tab: Tab) -> None:
    values = {"temperature": 0.5, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "seed": 7, "max_tokens": 4}
    tab.settings(system="You are terse.", **values)
    tab.page.reload()
    tab.ask("Hello!")
    (body,) = tab.sent
    assert body["messages"][0] == {"role": "system", "content": "You are terse."}
    assert {name: body[name] for name in values} == values
    assert body["stream_options"] == {"include_usage": True}
    tab.page.click("#open-settings")
    tab.page.click("#reset-settings")
    tab.page.keyboard.press("Escape")
    tab.settings(max_tokens=4)
    tab.ask("Hello again!")
    assert not set(tab.sent[1]) & {"temperature", "top_p", "top_k", "min_p", "seed"}
    assert [each["role"] for each in tab.sent[1]["messages"]] == ["user", "assistant", "user"]


def test_what_is_no_setting_is_said_and_not_sent(tab: Tab) -> None:
    tab.settings(max_tokens=4, temperature=0)
    tab.page.click("#open-settings")
    tab.page.fill("#set-temperature", "9")
    assert tab.page.inner_text("#set-temperature-problem")
    tab.page.keyboard.press("Escape")
    tab.ask("Hello!")
    assert "temperature" not in tab.sent[0]


def test_escape_stops_an_answer_on_the_server_too(served: Served, tab: Tab) -> None:
    tab.send(LONG)
    tab.until("document.querySelector('article.assistant > .markdown').textContent.length > 20")
    assert served.model.stats().running == 1
    tab.page.keyboard.press("Escape")
    tab.wait()
    assert tab.page.locator(".note").inner_text() == "Stopped."
    until = time.monotonic() + 20
    while served.model.stats().running and time.monotonic() < until:
        time.sleep(0.02)
    assert served.model.stats().running == 0


def test_the_button_stops_too_and_what_came_is_sent_on(tab: Tab) -> None:
    tab.send(LONG)
    tab.until("document.querySelector('article.assistant > .markdown').textContent.length > 20")
    tab.page.click("#stop")
    tab.wait()
    part = tab.answers.last.locator(":scope > .markdown").inner_text()
    tab.settings(max_tokens=4)
    tab.ask("And then?")
    assert tab.sent[1]["messages"][1]["content"].split() == part.split()


def test_an_answer_is_given_again_and_the_old_one_had_back(tab: Tab) -> None:
    tab.settings(max_tokens=12, temperature=0)
    old = tab.ask("Name a fruit.")
    tab.settings(system="You always answer in capital letters.")
    tab.answers.last.get_by_label("Answer again").click()
    tab.page.wait_for_selector("#stop:visible")
    tab.wait()
    assert tab.answers.count() == 1
    assert [each["role"] for each in tab.sent[1]["messages"]] == ["system", "user"]
    tab.toast.get_by_text("Undo").click()
    tab.until(f"document.querySelector('article.assistant > .markdown').innerText === {json.dumps(old)}")
    assert tab.answers.count() == 1


def test_an_edit_cuts_what_came_after_it_and_says_so(tab: Tab) -> None:
    tab.settings(max_tokens=6, temperature=0)
    tab.ask("Name a tree.")
    tab.ask("Name a bird.")
    tab.questions.first.hover()
    tab.questions.first.get_by_label("Edit this message").click()
    field = tab.page.locator(".editor textarea")
    assert field.input_value() == "Name a tree."
    assert tab.page.inner_text(".editor .hint") == "3 later messages will be removed."
    field.fill("Name a river.")
    field.press("Enter")
    tab.page.wait_for_selector("#stop:visible")
    tab.wait()
    assert tab.texts == ["Name a river."]
    assert tab.sent[2]["messages"] == [{"role": "user", "content": "Name a river."}]
    tab.toast.get_by_text("Undo").click()
    tab.until("document.querySelectorAll('article.user').length === 2")
    assert tab.texts == ["Name a tree.", "Name a bird."]


def test_what_was_cut_cant_come_back_over_what_is_said_since(tab: Tab) -> None:
    tab.settings(max_tokens=4, temperature=0)
    tab.ask("Name a fruit.")
    tab.answers.last.get_by_label("Answer again").click()
    tab.page.wait_for_selector(".toast")
    tab.wait()
    tab.ask("Another one.")
    assert tab.page.locator(".toast").count() == 0


def test_an_edit_can_be_left(tab: Tab) -> None:
    tab.settings(max_tokens=4)
    tab.ask("Name a tree.")
    tab.questions.first.hover()
    tab.questions.first.get_by_label("Edit this message").click()
    tab.page.locator(".editor textarea").fill("Never sent.")
    tab.page.keyboard.press("Escape")
    assert tab.texts == ["Name a tree."]
    assert len(tab.sent) == 1


def test_a_prompt_that_does_not_fit_is_said_in_words_and_tried_again(tab: Tab) -> None:
    tab.send("word " * 5000)
    tab.page.wait_for_selector(".problem")
    assert tab.page.locator(".problem").inner_text().startswith("This conversation no longer fits")
    tab.settings(max_tokens=4)
    tab.questions.first.hover()
    tab.questions.first.get_by_label("Edit this message").click()
    tab.page.locator(".editor textarea").fill("Hello!")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector(".figures:has-text('token')")
    assert tab.page.locator(".problem").count() == 0


def test_a_server_that_is_gone_is_said_and_asked_again(tab: Tab) -> None:
    tab.settings(max_tokens=4)
    tab.page.route(f"**{COMPLETIONS}", lambda route: route.abort())
    tab.send("Are you there?")
    tab.page.wait_for_selector(".problem")
    assert "can't be reached" in tab.page.locator(".problem").inner_text()
    tab.page.unroute(f"**{COMPLETIONS}")
    tab.page.get_by_text("Try again").click()
    tab.page.wait_for_selector(".figures:has-text('token')")
    assert tab.page.locator(".problem").count() == 0
    assert tab.answers.count() == 1


def test_a_new_message_after_an_error_goes_with_the_one_before(tab: Tab) -> None:
    tab.settings(max_tokens=4)
    tab.page.route(f"**{COMPLETIONS}", lambda route: route.abort())
    tab.send("First.")
    tab.page.wait_for_selector(".problem")
    tab.page.unroute(f"**{COMPLETIONS}")
    tab.ask("Second.")
    parts = [{"type": "text", "text": text} for text in ("First.", "Second.")]
    assert tab.sent[1]["messages"] == [{"role": "user", "content": parts}]


def test_a_connection_that_breaks_is_an_error_and_what_came_stays(tab: Tab) -> None:
    body = stream(delta(content="Half of it")).removesuffix("data: [DONE]\n\n")
    tab.page.route(f"**{COMPLETIONS}", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    tab.send("Hello!")
    tab.page.wait_for_selector(".problem")
    assert "broke in the middle" in tab.page.locator(".problem").inner_text()
    assert tab.answers.last.locator(":scope > .markdown").inner_text() == "Half of it"


def test_an_error_in_the_middle_of_a_stream_is_told(tab: Tab) -> None:
    body = stream(delta(content="Half"), {"error": {"message": "the engine died", "type": "server_error"}})
    tab.page.route(f"**{COMPLETIONS}", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    tab.send("Hello!")
    tab.page.wait_for_selector(".problem")
    assert tab.page.locator(".problem p").inner_text() == "the engine died."


def test_a_busy_server_is_said_with_when_to_come_back(tab: Tab) -> None:
    body = '{"error": {"message": "64 wait already", "code": "busy"}}'
    tab.page.route(
        f"**{COMPLETIONS}",
        lambda route: route.fulfill(
            status=429, headers={"Retry-After": "3"}, content_type="application/json", body=body
        ),
    )
    tab.send("Hello!")
    tab.page.wait_for_selector(".problem")
    assert tab.page.locator(".problem p").inner_text() == "The server is busy: 64 wait already. Try again in 3 s."


def test_thoughts_and_calls_are_parts_of_their_own(tab: Tab) -> None:
    call = {
        "index": 0,
        "id": "c1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
    }
    usage = {"prompt_tokens": 20, "completion_tokens": 30, "completion_tokens_details": {"reasoning_tokens": 12}}
    body = stream(
        delta(reasoning_content="Which **city**?"),
        delta(content="I look it up."),
        delta(tool_calls=[call]),
        end("tool_calls"),
        {"choices": [], "usage": {**usage, "edge_llama": {"tokens_per_second": 40, "notes": ["a call stayed text"]}}},
    )
    tab.page.route(f"**{COMPLETIONS}", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    answer = tab.ask("How is the weather?")
    assert answer == "I look it up."
    thoughts = tab.page.locator("details.thoughts")
    assert "(12 tokens)" in thoughts.locator("summary").inner_text()
    assert not thoughts.locator(".markdown").is_visible()
    thoughts.locator("summary").click()
    assert thoughts.locator("strong").inner_text() == "city"
    assert tab.page.locator(".rest figcaption").inner_text() == "Tool call: weather"
    assert tab.page.locator(".rest pre").inner_text() == '{"city": "Oslo"}'
    assert tab.page.locator(".note").inner_text() == "a call stayed text"
    assert "30 tokens · 40.0 tokens/s" in tab.page.locator(".figures").inner_text()
    tab.ask("Go on.")
    assert tab.sent[1]["messages"][1] == {
        "role": "assistant",
        "content": "I look it up.",
        "reasoning_content": "Which **city**?",
    }


def test_two_conversations_are_answered_at_once(served: Served, tab: Tab) -> None:
    tab.send(LONG)
    tab.until("document.querySelector('article.assistant > .markdown').textContent.length > 5")
    tab.page.click("#new-chat")
    tab.settings(max_tokens=4)
    tab.ask("Hello!")
    tab.page.locator("#conversations .row", has_text="Write a very long").click()
    tab.page.wait_for_selector("#stop:visible")
    tab.page.keyboard.press("Escape")
    tab.wait()
    assert tab.page.locator(".note").inner_text() == "Stopped."


def test_a_key_is_asked_for_and_kept_in_the_tab(open_tab: Callable[..., Tab], key_server: Served) -> None:
    tab = open_tab(key_server.url)
    assert tab.page.locator("#key").get_attribute("open") is not None
    tab.page.fill("#key-field", "wrong")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector("#key-problem:has-text('not this server')")
    tab.page.fill("#key-field", "right-key")
    tab.page.keyboard.press("Enter")
    tab.until("document.querySelector('#facts').textContent")
    tab.settings(max_tokens=4)
    tab.ask("Hello!")
    assert "token" in tab.page.locator(".figures").inner_text()
    assert "right-key" not in tab.page.evaluate("JSON.stringify(localStorage)")
    tab.page.reload()
    tab.until("document.querySelector('#facts').textContent")
    assert tab.page.locator("#key").get_attribute("open") is None


def test_who_gives_no_key_is_told_and_may_try_again(open_tab: Callable[..., Tab], key_server: Served) -> None:
    tab = open_tab(key_server.url)
    tab.page.keyboard.press("Escape")
    assert "only with its key" in tab.toast.inner_text()
    tab.toast.get_by_text("Try again").click()
    tab.page.wait_for_selector("#key-field:visible")
