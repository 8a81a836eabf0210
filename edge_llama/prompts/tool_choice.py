"""``tool_choice``: whether an answer may, must not or must be calls of tools, and of which."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from edge_llama.errors import OptionError
from edge_llama.prompts.call_style import CallStyle
from edge_llama.prompts.tool_formats import TAGS
from edge_llama.prompts.tool_grammar import CalledTool, CallGrammar, Rules, quoted
from edge_llama.prompts.tools import Tools, name_of

ToolChoice: TypeAlias = str | Mapping[str, Any]
"""``auto``, ``none``, ``required``, a tool's name, or ``{"type": "function", "function": {"name": ...}}``."""
AUTO, NONE, REQUIRED = "auto", "none", "required"
_CLOSING = {"<|python_start|>": "<|python_end|>"}
_TAGGED_FORMS = ("json", "pythonic")
_MAX_DEPTH = 64
_MAX_CALLS = 16  # in one answer: a small model that must call would go on for ever
_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "additionalItems")
_JOINED = ("$ref", "allOf", "anyOf", "oneOf", "patternProperties")


def decides(choice: ToolChoice | None) -> bool:
    """Whether the model may call tools or not."""
    return choice is None or choice == AUTO


def called_tools(choice: ToolChoice | None, tools: Tools, *, has_schema: bool = False) -> tuple[CalledTool, ...]:
    """The tools of which the answer must be calls; none where the model decides, or must not call any.

    ``has_schema``: answers that are no calls must fit a schema; where the model decides these are all tools then.
    OptionError for a choice that is none, or not among the tools.
    """
    name = _name(choice)
    given = {name_of(schema): schema for schema in tools.schemas}
    if has_schema and given and decides(choice):
        name = choice = REQUIRED
    if name is None:
        return ()
    if not given:
        raise OptionError(f"tool_choice is {choice!r:.80}, but no tools were given", remedy="give them: tools=")
    if choice == REQUIRED:
        return tuple(CalledTool(each, _parameters(each, schema)) for each, schema in given.items())
    if name not in given:
        known = ", ".join([AUTO, NONE, REQUIRED, *given])
        raise OptionError(f"tool_choice is {choice!r:.80}", remedy=f"known: {known}")
    return (CalledTool(name, _parameters(name, given[name])),)


def _name(choice: object) -> str | None:
    """The name of a tool, or :data:`REQUIRED`."""
    if choice is None or (isinstance(choice, str) and choice in (AUTO, NONE)):
        return None
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        function = choice.get("function", choice)
        choice = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(choice, str):
        raise OptionError(
            f"tool_choice is {type(choice).__name__}, expected {AUTO}, {NONE}, {REQUIRED} or a tool's name"
        )
    return choice


def call_grammar(
    tools: Iterable[CalledTool],
    style: CallStyle,
    control: Mapping[str, int],
    *,
    is_single: bool,
    may_answer: bool = False,
) -> CallGrammar:
    """The answers that are calls of these tools: one, or up to 16. ``may_answer`` is the grammar's.

    ``control`` are the ids of the vocabulary's control tokens by their text. OptionError for a tool that can't be
    called in this form.
    """
    rules, written = Rules(), style.written
    call = rules.rule(" | ".join(style.form.call(rules, tool, written) for tool in tools))
    more = "" if is_single else f"({quoted(written.between)} {call}){{0,{_MAX_CALLS - 1}}}"
    rules.rule(f"{quoted(written.begin)} {call} {more} {quoted(written.end)}", "calls")
    opening = [tag for tag, is_opening in TAGS.items() if is_opening and tag in control]
    is_tagged = style.form.name in _TAGGED_FORMS
    tags = tuple((control[tag], control.get(_CLOSING.get(tag, ""))) for tag in opening) if is_tagged else ()
    return CallGrammar(rules.text, rules.schemas, tags, may_answer)


def _parameters(name: str, described: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments as a model is held to it."""
    schema = {"type": "object", **(described.get("function", described).get("parameters") or {})}
    if schema["type"] != "object":
        raise CalledTool(name, schema).error(f"its parameters are of type {schema['type']!r}, expected object")
    closed = {"additionalProperties": False} if not schema.keys() & {*_JOINED, "additionalProperties"} else {}
    return {**_for_calls(schema), **closed}


def _for_calls(schema: Any, depth: int = 0, *, closes: bool = True) -> Any:
    """A copy in which objects have no keys but those that they name, where it doesn't say otherwise.

    Elsewhere a key might come twice, which makes a call none. Within parts that are put together with others that can't
    be said. And OpenAPI's ``nullable``, which Hugging Face's tools have, is said in JSON schema's words.
    """
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return schema
    found = {key: _within(key, value, depth + 1, closes) for key, value in schema.items() if key != "nullable"}
    if closes and "properties" in schema and not schema.keys() & {*_JOINED, "additionalProperties"}:
        found["additionalProperties"] = False
    return {"anyOf": [found, {"type": "null"}]} if schema.get("nullable") is True and depth else found


def _within(keyword: str, value: Any, depth: int, closes: bool) -> Any:
    if keyword in _SINGLE:
        return _for_calls(value, depth, closes=closes)
    if keyword in _LISTS and isinstance(value, list):
        return [_for_calls(item, depth, closes=False) for item in value]
    if keyword in _OF_SCHEMAS and isinstance(value, dict):
        closes = closes and keyword == "properties"
        return {key: _for_calls(item, depth, closes=closes) for key, item in value.items()}
    return value
