"""Conversations that show what a chat template does with everything that one may hold.

No text in them is a control token of a known family: what is typed is never control here, and always in transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_llama.media.images import Image
from edge_llama.prompts.messages import Message, ToolCall

WEATHER: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Tell the weather, e.g. in "Köln & Bonn" (50% of the time).',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                "days": {"type": "array", "items": {"type": "integer"}},
            },
            "required": ["city"],
        },
    },
}
_CALLS = (
    ToolCall("get_weather", {"city": "São Paulo", "unit": "celsius", "days": [1, 2]}, "call00001"),
    ToolCall("get_weather", {"city": 'a "quoted" <b>name</b>', "days": []}, "call00002"),
)
_RESULT = '{"degrees": 22.5, "sky": "clear \u2600"}'
_ACCENTS = "e\u0301 é ﬁ ½ ﷺ Ⅷ Å \u212b 한국어 हिन्दी ไทย עברית"
_SPACES = (" \n ", "\t", "\r\n", "\u00a0", "\u3000", "\u200b")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages and tools; ``shown`` are words of them that a template must write for the model to see them."""

    name: str
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    shown: tuple[str, ...] = ()


def conversations() -> tuple[Conversation, ...]:
    """All of them; each ends with what a model answers."""
    return (*_plain(), *_with_tools(), *_with_images())


def _plain() -> tuple[Conversation, ...]:
    hello, answer = Message("user", "Hello, who are you?"), Message("assistant", "A model. And you?")
    system = Message("system", "Answer in one short sentence.")
    odd = [f"{space}wide{space}{space}space{space}" for space in _SPACES]
    turns = [Message("assistant" if at % 2 else "user", f"Turn {at}: 1234567890, naïve 東京 🦙") for at in range(9)]
    marked = "{{ x }} {% if y %} <b>a &amp; b</b> \\n %s {0} `code`\n```python\nprint('hi')\n```\n# title\n* point"
    return (
        Conversation("one question", (hello,), shown=("who are you",)),
        Conversation("a system message", (system, hello), shown=("one short sentence", "who are you")),
        Conversation("a second question", (hello, answer, hello), shown=("A model. And",)),
        Conversation("many turns after a system message", (system, *turns), shown=("Turn 0", "Turn 8")),
        Conversation("white space around and within", tuple(Message("user", text) for text in odd[:1])),
        Conversation("odd white space in every turn", _alternating(odd[1:])),
        Conversation("an empty system message", (Message("system", ""), hello)),
        Conversation("an empty answer", (hello, Message("assistant", ""), hello)),
        Conversation("an empty question", (Message("user", ""),)),
        Conversation("markup and code", (Message("user", marked),)),
        Conversation("accents, composed and not", (Message("user", _ACCENTS),)),
    )


def _alternating(texts: list[str]) -> tuple[Message, ...]:
    """A system message, then turns by turns."""
    turns = (Message("assistant" if at % 2 else "user", text) for at, text in enumerate(texts[1:4]))
    return (Message("system", texts[0]), *turns)


def _with_tools() -> tuple[Conversation, ...]:
    ask, system = Message("user", "What is the weather in São Paulo?"), Message("system", "Use tools.")
    one = (Message("assistant", "", _CALLS[:1]), Message("tool", _RESULT, tool_call_id="call00001", name="get_weather"))
    other = Message("tool", " 21\n", tool_call_id="call00002", name="get_weather")
    two = (Message("assistant", "", _CALLS), one[1], other)
    later = (Message("assistant", "22.5 degrees."), Message("user", "And elsewhere?"))
    tools, called = (WEATHER,), ("get_weather", "São Paulo")
    return (
        Conversation("tools", (ask,), tools, shown=("get_weather",)),
        Conversation("tools after a system message", (system, ask), tools, shown=("Use tools", "get_weather")),
        Conversation("a tool's result", (ask, *one), tools, shown=(*called, "22.5")),
        Conversation("a question after a tool's result", (ask, *one, *later), tools, shown=(*called, "elsewhere")),
        Conversation("two calls at once", (ask, *two), tools, shown=(*called, "quoted", "22.5", "21")),
    )


def _with_images() -> tuple[Conversation, ...]:
    image = Image.open(np.zeros((4, 4, 3), np.uint8))
    one, several = Message("user", [image, "What is this?"]), Message("user", ["First ", image, " then ", image])
    later = (Message("assistant", "Two."), Message("user", "Are you sure?"))
    return (
        Conversation("an image", (one,), shown=("<|image|>", "What is")),
        Conversation("images between texts", (several, *later), shown=("<|image|>", "First", "Are you sure")),
    )
