"""Tools that a model may call: descriptions as JSON schemas, given as such or derived from Python functions."""

import inspect
import json
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from edge_llama.errors import OptionError
from edge_llama.prompts.messages import ToolCall, as_json, check_text

Tool = Mapping[str, Any] | Callable[..., Any]
"""``{"type": "function", "function": {"name", "description", "parameters"}}``, the inner part alone, or a function.

With ``"defer_loading": True`` beside these a tool may be called, but its description stands in no prompt's beginning: a
message tells of it, so that what was there before stays in the KV cache.

Examples:
    >>> def weather(city: str) -> str:
    ...     '''Tell the weather.
    ...
    ...     Args:
    ...         city: Where
    ...     '''
    ...     return f"22 degrees in {city}"
    >>> described = {"name": "time", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}}
    >>> tools = model.chat(tools=[weather, described]).options["tools"]
    >>> sorted(tools.names)
    ['time', 'weather']
    >>> tools.schemas[0]["function"]["parameters"]["properties"]
    {'city': {'type': 'string', 'description': 'Where'}}
"""
DEFERRED = "defer_loading"

_SECTION = re.compile(r"^(Args|Returns|Raises):[ \t]*", re.MULTILINE)
_ARGUMENT = re.compile(r"(\w+)[ \t]*(?:\([^()]*\))?:[ \t]*(.*)")
_CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)
_TYPES: dict[Any, str] = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    type(None): "null",
    list: "array",
    tuple: "array",
    dict: "object",
}
_SCALARS = (int, float, str, bool, type(None))


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of an answer: how they are described to the model, and the functions among them by name."""

    schemas: tuple[dict[str, Any], ...] = ()
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """What the model may call."""
        return frozenset(map(name_of, self.schemas))

    @property
    def told(self) -> tuple[dict[str, Any], ...]:
        """Those that a prompt's beginning describes."""
        return tuple(schema for schema in self.schemas if schema.get(DEFERRED) is not True)

    def run(self, call: ToolCall) -> Any:
        """What the function gives, or an object with the ``error`` if it doesn't take such arguments.

        OptionError if the tool is no Python function. What the function itself raises comes through as it is.
        """
        function = self.functions.get(call.name)
        if function is None:
            raise OptionError(f"{call.name} is no Python function", remedy="answer the call by add_tool_result")
        try:
            inspect.signature(function).bind(**call.arguments)
        except TypeError as error:
            return {"error": str(error)}
        return function(**call.arguments)


def tools_of(given: Iterable[Tool] | Tools | None) -> Tools:
    """The tools in any of the forms that :data:`Tool` names; OptionError for anything else, or a name given twice."""
    if given is None or isinstance(given, Tools):
        return given or Tools()
    if not isinstance(given, Iterable) or isinstance(given, str | bytes | Mapping):
        raise OptionError(f"tools is {type(given).__name__}, expected a list of functions or their JSON schemas")
    schemas: dict[str, dict[str, Any]] = {}
    functions: dict[str, Callable[..., Any]] = {}
    for at, tool in enumerate(given):
        schema = function_schema(tool) if callable(tool) else _checked(tool, f"tool {at}")
        name = name_of(schema)
        if name in schemas:
            raise OptionError(f"two tools are called {name}", remedy="rename one")
        schemas[name] = schema
        if callable(tool):
            functions[name] = tool
    return Tools(tuple(schemas.values()), functions)


def trained_tools(variables: Mapping[str, Any]) -> frozenset[str]:
    """Names of tools that the model was trained with and that its template is told of (``builtin_tools``)."""
    names = variables.get("builtin_tools", ())
    return (
        frozenset(name for name in names if isinstance(name, str)) if isinstance(names, list | tuple) else frozenset()
    )


def name_of(schema: Mapping[str, Any]) -> str:
    """That of a description."""
    return str(schema.get("function", schema)["name"])


def tool_schema(
    name: str, description: str | None, parameters: Mapping[str, Any] | None, **others: Any
) -> dict[str, Any]:
    """A description as chat templates know it: with all of its parts, and ``others`` of the function's alone."""
    schema = {"type": "object", "properties": {}} if parameters is None else parameters
    function = {"name": name, "description": description or "", "parameters": schema, **others}
    return {"type": "function", "function": function}


def _checked(tool: object, where: str) -> dict[str, Any]:
    """The description as it was given, a copy."""
    if not isinstance(tool, Mapping):
        raise OptionError(f"{where} is {type(tool).__name__}, expected a function or its JSON schema")
    schema: dict[str, Any] = as_json(dict(tool), where)
    if "function" in schema and schema.get("type") != "function":
        raise OptionError(f"{where} is of type {schema.get('type')!r}, expected 'function'")
    function = schema.get("function", schema)
    if not isinstance(function, dict):
        raise OptionError(f"{where}: function is {type(function).__name__}, expected an object")
    check_text(name := function.get("name"), f"{where}: name")
    if not name:
        raise OptionError(f"{where}: the name is empty")
    for key, kind in (("description", str), ("parameters", dict)):
        if not isinstance(function.get(key, kind()), kind):
            raise OptionError(f"{where} ({name}): {key} is {type(function[key]).__name__}, expected {kind.__name__}")
    return schema


def function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """The description of a Python function: what transformers' ``get_json_schema`` makes of it.

    Types come from the hints, texts from a docstring with ``Args:`` and ``Returns:``; ``(choices: ["a", "b"])`` at an
    argument's end lists its values. OptionError if a hint or a text is missing, or a hint has no place in JSON.
    """
    name = getattr(function, "__name__", type(function).__name__)
    where = f"the tool {name}"
    document = inspect.getdoc(function)
    if not document:
        raise OptionError(f"{where} has no docstring", remedy="say what it does and what its arguments are")
    sections = _sections(document)
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError) as error:
        raise OptionError(f"{where}: its type hints can't be read: {error}") from error
    texts = _argument_texts(sections["Args"])
    properties: dict[str, Any] = {}
    required: list[str] = []
    for parameter in _parameters(function, where):
        if parameter.name not in hints:
            raise OptionError(f"{where}: argument {parameter.name} has no type hint")
        if parameter.name not in texts:
            raise OptionError(f"{where}: the docstring says nothing of {parameter.name}", remedy="add it under Args:")
        schema = _hint_schema(hints[parameter.name], f"{where}: argument {parameter.name}")
        properties[parameter.name] = _described(schema, texts[parameter.name], where)
        required += [parameter.name] if parameter.default is parameter.empty else []
    parameters = {"type": "object", "properties": properties} | ({"required": required} if required else {})
    return tool_schema(name, sections[""], parameters, **_returns(hints, sections["Returns"]))


def _sections(document: str) -> dict[str, str]:
    """The docstring's parts by their heading; the text before the first has none."""
    first, *rest = _SECTION.split(document)
    sections = {"Args": "", "Returns": "", "Raises": ""} | dict(zip(rest[::2], rest[1::2], strict=True))
    return {"": first.strip(), **sections}


def _argument_texts(section: str) -> dict[str, str]:
    """What is said of each argument; a line that is indented deeper goes on with the last."""
    texts: dict[str, str] = {}
    name, depth = "", 0
    for line in filter(str.strip, section.split("\n")):
        indent = len(line) - len(line.lstrip())
        begun = _ARGUMENT.match(line.strip())
        if begun and (not name or indent <= depth):
            name, depth = begun[1], indent
            texts[name] = begun[2].strip()
        elif name:
            texts[name] = f"{texts[name]} {line.strip()}".strip()
    return texts


def _parameters(function: Callable[..., Any], where: str) -> list[inspect.Parameter]:
    parameters = list(inspect.signature(function).parameters.values())
    if parameters and parameters[0].name in ("self", "cls") and parameters[0].annotation is inspect.Parameter.empty:
        del parameters[0]
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise OptionError(f"{where}: argument {parameter} has no name that a model could give")
    return parameters


def _described(schema: dict[str, Any], text: str, where: str) -> dict[str, Any]:
    if choices := _CHOICES.search(text):
        try:
            values = json.loads(choices[1])
        except ValueError as error:
            raise OptionError(f"{where}: the choices {choices[1]} are no JSON: {error}") from error
        schema["enum"] = [value.strip() if isinstance(value, str) else value for value in values]
        text = text[: choices.start()].strip()
    return schema | {"description": text}


def _returns(hints: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Hugging Face's addition to the form; a type that JSON lacks is left out, since no model has to write it."""
    if "return" not in hints:
        return {}
    try:
        schema = _hint_schema(hints["return"], "")
    except OptionError:
        return {}
    return {"return": schema | ({"description": text.strip()} if text.strip() else {})}


def _hint_schema(hint: Any, where: str) -> dict[str, Any]:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or hint in _TYPES:
        return {"type": _TYPES[hint]} if hint in _TYPES else {}
    if origin is Literal:
        return _values_schema(list(args), where)
    if isinstance(hint, type) and origin is None and issubclass(hint, Enum):
        return _values_schema([member.value for member in hint], where)
    if origin in (Union, types.UnionType):
        return _union_schema(args, where)
    if origin not in (list, tuple, dict) or ... in args or (origin is tuple and len(args) == 1):
        raise OptionError(f"{where}: the type {hint} has no place in JSON", remedy="give the tool's JSON schema")
    key = {list: "items", tuple: "prefixItems", dict: "additionalProperties"}[origin]
    inner = [_hint_schema(item, where) for item in args]
    return {"type": _TYPES[origin], key: inner if origin is tuple else inner[-1]}


def _values_schema(values: list[Any], where: str) -> dict[str, Any]:
    if not values or any(type(value) not in _SCALARS for value in values):
        raise OptionError(f"{where}: the choices {values} are not all plain values of JSON")
    kinds = list(dict.fromkeys(_TYPES[type(value)] for value in values))
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}


def _union_schema(args: tuple[Any, ...], where: str) -> dict[str, Any]:
    schemas = [_hint_schema(item, where) for item in args if item is not type(None)]
    schema: dict[str, Any] = {"anyOf": schemas}
    if len(schemas) == 1:
        schema = schemas[0]
    elif all(item.keys() == {"type"} and isinstance(item["type"], str) for item in schemas):
        kinds = sorted({item["type"] for item in schemas})
        schema = {"type": kinds[0] if len(kinds) == 1 else kinds}
    return schema | ({"nullable": True} if type(None) in args else {})
