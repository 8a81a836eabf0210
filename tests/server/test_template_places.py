"""What agents send fits chat templates that refuse it: a system amid a conversation, two turns of a user in a row."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Served
from talk import TEMPLATE, WEATHER, talking

from edge_llama.prompts.chat_template import ChatTemplate
from edge_llama.prompts.messages import Message, Role
from edge_llama.server.template_places import fitted

_TURN = "<|im_start|>{{ m.role }}"
NO_LATER_SYSTEM = (
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('System message must be at the beginning') }}"
    "{% endif %}"
)
ONE_USER = (
    "{% if m.role == 'user' and loop.previtem and loop.previtem.role == 'user' %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
)
SAID = (
    Message("system", "Be brief."),
    Message("user", "Hello!"),
    Message("system", "Be polite."),
    Message("user", "Who are you?"),
)
TOOL = {"type": "function", "function": {"name": "weather", "description": "", "parameters": WEATHER}}
REMINDER = "<system-reminder>\nBe polite.\n</system-reminder>"


@pytest.fixture(
    scope="module", params=["", NO_LATER_SYSTEM, NO_LATER_SYSTEM + ONE_USER], ids=["any", "first", "strict"]
)
def served(small_talk: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Served, str]]:
    template = TEMPLATE.replace(_TURN, request.param + _TURN)
    with talking(small_talk, template) as served:
        yield served, request.param


def test_no_more_is_changed_than_the_template_asks_for(served: tuple[Served, str]) -> None:
    server, refuses = served
    reminded = (*SAID[:2], Message("user", REMINDER), SAID[3])
    together = (SAID[0], Message("user", f"Hello!\n{REMINDER}\nWho are you?"))
    expected = together if ONE_USER in refuses else reminded if refuses else SAID
    assert fitted(server.model, SAID, ()) == expected
    assert fitted(server.model, SAID, [TOOL]) == expected
    assert fitted(server.model, SAID[:2], ()) == SAID[:2]


def test_with_tools_the_template_for_tools_is_asked(small_talk: Path) -> None:
    strict = TEMPLATE.replace(_TURN, NO_LATER_SYSTEM + _TURN)
    reminded = (*SAID[:2], Message("user", REMINDER), SAID[3])
    with talking(small_talk) as server:
        model = server.model
        model.template = ChatTemplate(TEMPLATE, model.tokenizer, "a test", strict)
        assert fitted(model, SAID, ()) == SAID
        assert fitted(model, SAID, [{**TOOL, "defer_loading": True}]) == SAID
        assert fitted(model, SAID, [TOOL]) == reminded


def test_a_template_is_tried_once(small_talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roles: tuple[Role, ...] = ("user", "user")
    with talking(small_talk) as server:
        template = ChatTemplate(TEMPLATE.replace(_TURN, ONE_USER + _TURN), server.model.tokenizer, "a test")
    assert not template.takes(roles)
    monkeypatch.delattr(ChatTemplate, "text")
    assert not template.takes(roles)
    with pytest.raises(AttributeError):
        template.takes(("user",))


def test_every_endpoint_answers(served: tuple[Served, str]) -> None:
    server, _ = served
    turns = [{"role": message.role, "content": message.content} for message in SAID]
    asked: dict[str, dict[str, Any]] = {
        "/v1/messages": {"messages": turns, "max_tokens": 1},
        "/v1/messages/count_tokens": {"messages": turns},
        "/v1/responses": {"input": turns, "max_output_tokens": 1},
        "/v1/chat/completions": {"messages": turns, "max_tokens": 1},
    }
    for path, body in asked.items():
        response = server.client.post(path, json={"model": server.name, **body})
        assert response.status_code == 200, f"{path}: {response.text}"
