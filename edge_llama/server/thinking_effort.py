"""How many tokens a model may think, for each word that APIs have for it."""

from collections.abc import Mapping
from typing import Literal

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""OpenAI's words, and Anthropic's among them."""

THINKING_BUDGETS: Mapping[Effort, int | None] = {
    "none": 0,
    "minimal": 256,
    "low": 1024,
    "medium": 4096,
    "high": 16_384,
    "xhigh": 32_768,
    "max": None,
}
"""Tokens of thought; None: as many as the model wants. For a model that doesn't think they have no effect."""
