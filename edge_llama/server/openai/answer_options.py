"""Options of an answer that chat completions and responses ask for in the same way."""

from collections.abc import Mapping, Sequence
from typing import Any

TEXT_CHOICES = ("auto", "none")
"""The choices among tools that leave text as an answer."""
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
"""The schema of any JSON object."""


def tool_options(
    tools: Sequence[Mapping[str, Any]], choice: str | Mapping[str, Any], parallel: bool | None
) -> dict[str, Any]:
    """The tools, the choice among them, and whether there may be several calls: nothing where there is none to call."""
    told: dict[str, Any] = {"tools": tools} if tools else {}
    if tools or choice not in TEXT_CHOICES:
        told |= {"tool_choice": choice, "parallel_tool_calls": parallel is not False}
    return told


def form_options(choice: str | Mapping[str, Any], schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """The form of an answer that may be text; nothing where a call must come."""
    return {} if schema is None or choice not in TEXT_CHOICES else {"json_schema": schema}
