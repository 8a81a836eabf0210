"""The small model that answers in milliseconds, behind a server, with templates that know of tools and thoughts."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving import Served, serve

from edge_llama.planning.options import checked
from edge_llama.server.pool import Pool
from edge_llama.server.settings import ServerSettings

QUESTION, ANSWER = "What is the capital of Japan?", "The capital of Japan is Tokyo."
STORY = "Tell a very long story."
"""What it answers without end."""
_BEGIN = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.first and tools %}{{ tools | tojson }}{% endif %}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}"
    '<tool_call>{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson }}}'
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
)
TEMPLATE = _BEGIN + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
THINKING = _BEGIN + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Tokyo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
"""The arguments of a tool."""


@contextmanager
def talking(
    model: Path, template: str = TEMPLATE, settings: ServerSettings | None = None, **options: Any
) -> Iterator[Served]:
    """A server of ``model``, in this process."""
    given = {"n_ctx": 1024, "threads": 1, "chat_template": template, **options}
    with serve(Pool([str(model)], checked(given), isolate=False), settings) as served:
        yield served
