"""Which tensor gets which format: llama.cpp's own mixtures, by ``llama-quantize``'s names.

The rules are those of ``llama-quant.cpp`` (ggml 0.25); a file converted by them equals llama.cpp's byte for byte.
They know roles, not names: ``attn_v`` of layer 3 of 32.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from edge_llama.formats import F16, F32, FORMATS, Format

_FALLBACKS = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "q3_k": "q4_0", "q2_k": "q4_0"}


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor as a recipe sees it: ``role`` and ``layer`` (-1 outside the layers), sizes, and the source's format."""

    role: str
    layer: int
    columns: int
    n_dims: int
    source: Format


@dataclass(frozen=True, slots=True)
class Model:
    """What the rules ask of the model: layers, query and KV heads, experts, and whether the head is its own tensor."""

    n_layer: int
    n_head: int
    n_head_kv: int
    n_expert: int = 0


class Choice(NamedTuple):
    """The format that a tensor gets; ``wanted`` differs where its rows are no multiple of that one's block."""

    format: Format
    wanted: Format


Rule = Callable[[int, Model], str | None]
"""(index among its kind, model) -> format name, or None for the recipe's default."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """``ftype`` is llama.cpp's number for the mixture (``general.file_type``); ``rules`` are by role."""

    name: str
    ftype: int
    default: Format
    rules: Mapping[str, Rule] = field(default_factory=dict)


def _more_bits(index: int, n: int) -> bool:
    """The first and last eighth and every third between: llama.cpp's ``use_more_bits``."""
    return index < n // 8 or index >= 7 * n // 8 or (index - n // 8) % 3 == 2


def _q6_k_where_it_counts(index: int, model: Model) -> str | None:
    return "q6_k" if _more_bits(index, model.n_layer) else None


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in [
        Recipe("f32", 0, F32),
        Recipe("f16", 1, F16),
        Recipe("bf16", 32, FORMATS["bf16"]),
        Recipe("q8_0", 7, FORMATS["q8_0"]),
        Recipe("q4_0", 2, FORMATS["q4_0"]),
        Recipe("q4_k_m", 15, FORMATS["q4_k"], {"attn_v": _q6_k_where_it_counts, "ffn_down": _q6_k_where_it_counts}),
    ]
}


def assign(recipe: Recipe, slots: Sequence[Slot], model: Model) -> list[Choice]:
    """A format for each slot. The order counts: rules go by a tensor's index among its kind."""
    tied = all(slot.role != "output" for slot in slots)
    seen: dict[str, int] = {}
    wanted = [_wanted(recipe, slot, model, tied, seen) for slot in slots]
    return [Choice(_fallback(format_, slot.columns), format_) for format_, slot in zip(wanted, slots, strict=True)]


def _wanted(recipe: Recipe, slot: Slot, model: Model, tied: bool, seen: dict[str, int]) -> Format:
    if slot.n_dims < 2:
        return F32
    if slot.role in ("norm", "router", "bias"):
        return slot.source
    if not recipe.default.is_quantized:
        return recipe.default
    if slot.role == "output" or (tied and slot.role == "token_embd"):
        return _head(recipe.default, slot.columns)
    index = seen.get(slot.role, 0)
    seen[slot.role] = index + 1
    if slot.role == "ffn_down" and model.n_expert > 1:
        index = slot.layer
    rule = recipe.rules.get(slot.role)
    name = rule(index, model) if rule else None
    chosen = FORMATS[name] if name else recipe.default
    return _for_large_models(chosen, slot.role, model)


def _head(default: Format, columns: int) -> Format:
    """The output matrix, also where the embedding serves as one: six bits at least."""
    whole = columns % default.block_size == 0
    return FORMATS["q6_k" if whole and default.name != "q8_0" else "q8_0"]


def _for_large_models(chosen: Format, role: str, model: Model) -> Format:
    """llama.cpp's exceptions for Llama 2 70B and for eight experts."""
    is_70b = model.n_layer == 80 and model.n_head != model.n_head_kv
    if role == "attn_v" and is_70b and chosen.name in ("q3_k", "q4_k"):
        chosen = FORMATS["q5_k"]
    if role in ("attn_k", "attn_v") and model.n_expert == 8:
        chosen = FORMATS["q8_0"]
    return chosen


def _fallback(format_: Format, columns: int) -> Format:
    """A format whose block divides the row."""
    if columns % format_.block_size == 0:
        return format_
    format_ = FORMATS[_FALLBACKS.get(format_.name, format_.name)]
    return format_ if columns % format_.block_size == 0 else F16
