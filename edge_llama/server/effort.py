"""How much a model thinks before it answers, where a request gives a word for it and no number."""

from typing import Literal, TypeAlias

Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""OpenAI's words and Anthropic's."""
BUDGETS: dict[Effort, int | None] = {
    "none": 0,
    "minimal": 128,
    "low": 512,
    "medium": 2048,
    "high": 8192,
    "xhigh": 32768,
    "max": None,
}
"""Tokens of thought, for models of a device's size; None: as many as the model wants."""
