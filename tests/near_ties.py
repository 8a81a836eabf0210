"""Where float32 has no right answer: an expert or a token chosen by less than what rounding moves."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.models.llama4.modeling_llama4 import Llama4Router

MARGIN = 1e-4
"""Logits of engines differ by some 1e-5 here; those of routers are smaller."""


def is_decided(model: Any, ids: Sequence[int]) -> bool:
    """Whether every expert, and the token after ``ids``, wins by more than `MARGIN` in transformers' ``model``."""
    margins: list[float] = []

    def watch(router: Llama4Router, given: tuple[torch.Tensor], _: Any) -> None:
        margins.append(_margin(torch.nn.functional.linear(given[0], router.weight), router.top_k))

    hooks = [part.register_forward_hook(watch) for part in model.modules() if isinstance(part, Llama4Router)]
    try:
        with torch.inference_mode():
            margins.append(_margin(model(input_ids=torch.tensor([ids])).logits[:, -1], 1))
    finally:
        for hook in hooks:
            hook.remove()
    return min(margins) > MARGIN


def decided(model: Any, draw: Callable[[], list[int]]) -> list[int]:
    """The first of the token ids that ``draw`` gives, all of whose choices are clear."""
    while not is_decided(model, ids := draw()):
        pass
    return ids


def _margin(logits: torch.Tensor, taken: int) -> float:
    """The smallest distance between the last that is taken and the first that isn't, of (tokens, choices)."""
    if taken == logits.shape[-1]:
        return float("inf")
    best = logits.topk(taken + 1, -1).values
    return float((best[..., -2] - best[..., -1]).min())
