"""Tools for tests, conversations in which they are called, and the chat templates of the models that do so."""

from importlib.metadata import version
from typing import Any, Literal

from engine_source import ENGINE, unpacked
from transformers.models.llama4 import processing_llama4


def get_weather(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius") -> str:
    """Tell the weather.

    Args:
        city: Where.
        unit: Of the temperature.
    """
    return f"22 degrees {unit} in {city}"


def add(a: float, b: float) -> float:
    """Add numbers.

    Args:
        a: One.
        b: The other.

    Returns:
        The sum.
    """
    return a + b


SEARCH: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "search",
        "description": 'Find <b>pages</b>, e.g. "Köln & Bonn" — 50% {of} them.\nSlow.',
        "parameters": {
            "type": "object",
            "properties": {
                "query": {"type": "string", "description": "Words", "enum": ["a", "b"]},
                "limit": {"type": ["integer", "null"], "default": None, "minimum": 1},
                "naïve key": {"type": "array", "items": {"type": "boolean"}},
            },
            "required": ["query"],
        },
    },
}
TOOLS = (get_weather, add, SEARCH)


def call(name: str, arguments: dict[str, Any], at: int = 0) -> dict[str, Any]:
    """A tool call in Hugging Face's form."""
    return {"id": f"call{at:05}", "type": "function", "function": {"name": name, "arguments": arguments}}


def result(content: str, at: int = 0) -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": f"call{at:05}"}


def _called(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


_ASK = {"role": "user", "content": "What is the weather in Paris? "}
_CALL = _called(call("get_weather", {"city": "Paris", "unit": "celsius"}))
_CALL_2 = _called(call("search", {"query": 'a "b"\n', "limit": None}, 1))
_LONG = [_ASK, _CALL, result("22 °C"), {"role": "assistant", "content": "22."}, {"role": "user", "content": "Köln?"}]
DIALOGUES: tuple[list[dict[str, Any]], ...] = (
    [_ASK],
    [{"role": "system", "content": " Be brief. "}, _ASK],
    [_ASK, _CALL, result('{"temperature": 22}')],
    [{"role": "system", "content": "Be brief."}, *_LONG, _CALL_2, result("", at=1)],
)
_SUMS = _called(call("add", {"a": 1, "b": 2.5}), call("add", {"a": 3, "b": [True, {"x": None}]}, 1))
TWO_CALLS = [_ASK, _SUMS, result("3.5"), result("?", 1)]


def official_template(name: str) -> str:
    """A published template as llama.cpp's source carries it, which ``make test`` brings."""
    return (unpacked(version(ENGINE)) / "models" / "templates" / f"{name}.jinja").read_text("utf-8")


LLAMA4_TEMPLATE: str = processing_llama4.chat_template
"""As Hugging Face publishes Llama 4: JSON calls."""

# Not published with weights: how Meta documents Llama 4's pythonic calls, as runtimes render them.
PYTHONIC_LLAMA4_TEMPLATE = """\
{{- bos_token }}
{%- if tools %}
    {{- '<|header_start|>system<|header_end|>\\n\\nCall functions as [func_name(param=value)].\\n' }}
    {{- tools | tojson(indent=4) + '<|eot|>' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|header_start|>' + ('ipython' if message.role == 'tool' else message.role) + '<|header_end|>\\n\\n' }}
    {{- message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '<|python_start|>[' if loop.first else ', ' }}
        {{- call.function.name + '(' }}
        {%- for key, value in call.function.arguments | items %}
            {{- key + '=' + value | tojson + ('' if loop.last else ', ') }}
        {%- endfor %}
        {{- ')' + (']<|python_end|>' if loop.last else '') }}
    {%- endfor %}
    {{- '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|header_start|>assistant<|header_end|>\\n\\n' }}
{%- endif %}
"""
LLAMA4_SPECIAL = ("<|header_start|>", "<|header_end|>", "<|eot|>", "<|eom|>", "<|python_start|>", "<|python_end|>")
