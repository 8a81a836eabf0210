"""Tools: schemas equal transformers' for functions; messages with calls go to JSON and back; nothing odd gets in."""

import enum
import json
from collections.abc import Callable
from typing import Any, Literal, Optional, Union

import pytest
from tools import SEARCH, TOOLS, add, get_weather
from transformers.utils import get_json_schema

from edge_llama import Message, OptionError, ToolCall
from edge_llama.prompts.tools import function_schema, name_of, tools_of


class Colour(enum.Enum):
    RED = "red"
    BLUE = 2


def nothing() -> None:
    """Do nothing."""


def many(
    a: list[int],
    b: dict[str, list[float]],
    c: tuple[int, str],
    d: int | str | None,
    e: Optional[bool] = None,  # noqa: UP045
    f: Union[list[int], str] = "",  # noqa: UP007
    g: Literal[1, "two", None] = 1,
    h: Colour = Colour.RED,
    i: Any = None,
    j: list = [],  # type: ignore[type-arg] # noqa: B006
    *,
    k: str = "x",
) -> list[dict[str, Any]]:
    """Take all kinds of arguments.

    In several
    paragraphs: with a colon.

    Args:
        a: A list
            that goes on: here.
        b: One.

        c: Two
        d:
            On the next line.
        e: A flag
        f: Either.
        g: Choices.
        h: A colour
        i: Anything
        j: A bare list
        k: Listed (choices: ["x ", "y"])

    Returns:
        A list, of
        things.

    Raises:
        ValueError: Never.
    """
    return []


class Thermometer:
    def read(self, room: str) -> object:
        """Read it.

        Args:
            room: Where
        """
        return room


@pytest.mark.parametrize("function", [get_weather, add, nothing, many, Thermometer().read, Thermometer.read])
def test_a_functions_schema_equals_transformers(function: Callable[..., Any]) -> None:
    ours = function_schema(function)
    assert ours == get_json_schema(function)
    assert json.dumps(ours) == json.dumps(get_json_schema(function)), "the order of keys, which templates render"


def typed(a: list[int]) -> None:
    """Take a list.

    Args:
        a (list of int): A list
            that goes on.
    """


def test_a_type_within_the_docstring_is_no_part_of_the_description() -> None:
    """As in transformers from 5.24 on, which 5.23 refuses."""
    described = function_schema(typed)["function"]["parameters"]["properties"]
    assert described == {"a": {"type": "array", "items": {"type": "integer"}, "description": "A list that goes on."}}


def undocumented(x: int) -> None: ...


def unhinted(x) -> None:  # type: ignore[no-untyped-def]
    """Do it.

    Args:
        x: A thing.
    """


def unsaid(x: int) -> None:
    """Do it."""


def odd(x: complex) -> None:
    """Do it.

    Args:
        x: A thing.
    """


def nested(x: tuple[int, ...]) -> None:
    """Do it.

    Args:
        x: A thing.
    """


def unknown(x: "Nowhere") -> None:  # type: ignore[name-defined] # noqa: F821
    """Do it.

    Args:
        x: A thing.
    """


def starred(*x: int) -> None:
    """Do it.

    Args:
        x: A thing.
    """


def badly_chosen(x: str) -> None:
    """Do it.

    Args:
        x: A thing (choices: [a])
    """


@pytest.mark.parametrize(
    ("tool", "problem"),
    [
        (undocumented, "no docstring"),
        (unhinted, "x has no type hint"),
        (unsaid, "says nothing of x"),
        (odd, "complex.* has no place in JSON"),
        (nested, "has no place in JSON"),
        (unknown, "type hints can't be read"),
        (starred, "no name that a model could give"),
        (badly_chosen, "are no JSON"),
        (7, "tool 0 is int"),
        ({}, "name is NoneType"),
        ({"name": ""}, "the name is empty"),
        ({"name": "\ud800"}, "lone surrogate"),
        ({"name": "f", "description": 5}, "description is int"),
        ({"name": "f", "parameters": []}, "parameters is list"),
        ({"name": "f", "parameters": {"x": {1}}}, "JSON can't express"),
        ({"name": "f", "parameters": {"x": float("nan")}}, "JSON can't express"),
        ({"function": {"name": "f"}}, "of type None"),
        ({"type": "function", "function": 5}, "function is int"),
    ],
)
def test_a_tool_that_cannot_be_is_an_error(tool: Any, problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        tools_of([tool])


@pytest.mark.parametrize("tools", ["search", b"x", 5, {"name": "f"}])
def test_tools_that_are_no_list_are_an_error(tools: Any) -> None:
    with pytest.raises(OptionError, match="expected a list"):
        tools_of(tools)


def test_two_tools_of_one_name_are_an_error() -> None:
    with pytest.raises(OptionError, match="two tools are called add"):
        tools_of([add, {"name": "add"}])


def test_tools_run_functions_only_and_tell_the_model_of_wrong_arguments() -> None:
    tools = tools_of(TOOLS)
    assert tools.names == {"get_weather", "add", "search"}
    assert tools.run(ToolCall("add", {"a": 1, "b": 2})) == 3
    assert "missing a required argument" in tools.run(ToolCall("add", {"a": 1}))["error"]
    with pytest.raises(OptionError, match="search is no Python function"):
        tools.run(ToolCall("search", {}))
    with pytest.raises(TypeError):
        tools.run(ToolCall("add", {"a": "x", "b": 2}))


def test_a_description_that_changes_later_changes_nothing() -> None:
    tool = {"name": "f", "parameters": {"properties": {}}}
    tools = tools_of([tool])
    tool["parameters"] = {}
    assert tools.schemas == ({"name": "f", "parameters": {"properties": {}}},)
    assert tools_of([SEARCH]).schemas == (SEARCH,)


CALL = ToolCall("search", {"query": "naïve 🦙", "limits": [1, None, True, {"x": 2.5}]}, id="abc123XYZ")


def test_messages_with_calls_survive_json() -> None:
    for message in (
        Message("assistant", "Let me see.", (CALL,)),
        Message("assistant", "", [CALL, ToolCall("add", {})]),  # type: ignore[arg-type] # any iterable
        Message("tool", "22", tool_call_id=CALL.id, name="search"),
        Message("tool", ""),
    ):
        data = message.to_json()
        assert Message.from_json(json.loads(json.dumps(data))) == message
    assert Message("assistant", "", (CALL,)).to_json()["tool_calls"] == [
        {
            "id": "abc123XYZ",
            "type": "function",
            "function": {
                "name": "search",
                "arguments": '{"query": "naïve 🦙", "limits": [1, null, true, {"x": 2.5}]}',
            },
        }
    ]


def test_json_of_openai_and_hugging_face_is_read() -> None:
    function = {"name": "search", "arguments": CALL.arguments}
    data = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}
    message = Message.from_json(data)
    assert (message.content, message.tool_calls[0].arguments) == ("", CALL.arguments)
    assert len(message.tool_calls[0].id) == 9
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    assert Message.from_json({"role": "user", "content": parts}) == Message("user", "a b")


def test_a_call_keeps_its_own_arguments_as_json_has_them() -> None:
    given: dict[str, Any] = {"x": (1, 2), "y": []}
    call = ToolCall("f", given)
    given["y"].append(1)
    assert call.arguments == {"x": [1, 2], "y": []}
    assert ToolCall("f", {}).id != ToolCall("f", {}).id


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"name": "", "arguments": {}}, "name is empty"),
        ({"name": "f", "arguments": {}, "id": ""}, "id is empty"),
        ({"name": 5, "arguments": {}}, "name is int"),
        ({"name": "f", "arguments": []}, "arguments are list"),
        ({"name": "f", "arguments": {"x": float("inf")}}, "JSON can't express"),
        ({"name": "f", "arguments": {"x": b""}}, "JSON can't express"),
        ({"name": "f", "arguments": {"x": "\udc80"}}, "lone surrogate"),
    ],
)
def test_a_call_that_cannot_be_is_an_error(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        ToolCall(**arguments)


def test_arguments_nested_too_deeply_are_an_error() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(OptionError, match="JSON can't express"):
        ToolCall("f", {"x": deep})
    while deep:  # freed step by step: a list of such depth exhausts the stack
        deep = deep.pop()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"role": "user", "content": None}, "the user message is NoneType"),
        ({"role": "user", "content": "x", "tool_calls": [CALL.to_json()]}, "only the assistant's may"),
        ({"role": "user", "content": "x", "tool_call_id": "y"}, "belongs to a tool's answer"),
        ({"role": "tool", "content": "x", "tool_call_id": 5}, "tool_call_id is int"),
        ({"role": "assistant", "content": "x", "tool_calls": "y"}, "tool_calls is str"),
        ({"role": "assistant", "content": "x", "tool_calls": [5]}, "a tool call is an object"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "function is an object"),
        (
            {"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "no JSON",
        ),
        (
            {"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": "5"}}]},
            "are int",
        ),
        ({"role": "assistant", "content": "x", "tool_calls": [{"type": "x", "function": {}}]}, "of type 'x'"),
        ({"role": "assistant", "content": "x", "weight": 1}, "a message has 'weight'"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "a part of content"),
        ({"role": "user", "content": [{"type": "image"}]}, "of type 'image'; give text and image_url parts"),
        ({"role": "user", "content": [{"type": "text"}]}, "a part of content is NoneType"),
        ({"role": "user", "content": ["x"]}, "a part of content is an object"),
    ],
)
def test_json_that_is_no_message_is_an_error(data: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        Message.from_json(data)


@pytest.mark.parametrize("calls", ["x", 5, {"name": "f"}, ["f"]])
def test_tool_calls_that_are_none_are_an_error(calls: Any) -> None:
    with pytest.raises(OptionError, match="expected"):
        Message("assistant", "", calls)


def test_a_deferred_tool_may_be_called_and_is_told_of_by_messages_alone() -> None:
    rain, snow = {"name": "rain", "parameters": {}}, {"name": "snow"}
    deferred = {"type": "function", "function": rain, "defer_loading": True}
    tools = tools_of([SEARCH, deferred, {**snow, "defer_loading": True}, {"name": "sun", "defer_loading": False}])
    assert tools.names == {"search", "rain", "snow", "sun"}
    assert [name_of(schema) for schema in tools.told] == ["search", "sun"]
