"""Which tensor gets which format, by llama.cpp's own mixtures: :mod:`quant.mixtures` is the table of them.

A file converted by them equals llama.cpp's byte for byte, with an importance matrix and without.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from edge_llama.errors import OptionError
from edge_llama.files.formats import F16, F32, FORMATS, Format
from quant.mixtures import RECIPES, Model, Recipe
from quant.reference import ggml

__all__ = [
    "RECIPES",
    "ROLES",
    "WRITTEN",
    "Choice",
    "Model",
    "Recipe",
    "Slot",
    "assign",
    "check_present",
    "check_types",
    "needs_importance",
]

ROLES = ("token_embd", "output", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
"""The roles whose format can be chosen; experts, routed and shared, have the role of their dense counterpart.

Norms, biases and routers (``norm``, ``bias``, ``router``) are never quantized.
"""

_FALLBACKS = {
    "q2_k": "q4_0",
    "q3_k": "q4_0",
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"),
}
_NEED_IMPORTANCE = frozenset(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"))
"""Formats that llama.cpp quantizes to without importance for the embedding and the head alone, if at all."""
_ENDS = ("token_embd", "output")


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor as a recipe sees it: ``role`` and ``layer`` (-1 outside the layers), sizes, and the source's format.

    ``asked`` is the format that was asked for this tensor, whatever the recipe says.
    """

    role: str
    layer: int
    columns: int
    n_dims: int
    source: Format
    asked: Format | None = None


class Choice(NamedTuple):
    """The format that a tensor gets; ``wanted`` differs where its rows are no multiple of that one's block."""

    format: Format
    wanted: Format


WRITTEN = tuple(dict.fromkeys(recipe.default.name for recipe in RECIPES.values()))
"""Names of the formats that a role can be given."""


def assign(
    recipe: Recipe, slots: Sequence[Slot], model: Model, tensor_types: Mapping[str, str] | None = None
) -> list[Choice]:
    """A format for each slot. The order counts: rules go by a tensor's index among its kind.

    ``tensor_types`` (role -> format name) overrides the recipe, as ``llama-quantize --tensor-type`` does; unlike there
    it holds in recipes of floats too, and a role is not a pattern. OptionError for an unknown role or format, and for
    a role that the model lacks. Rows that are no multiple of a block fall back as they do by recipe.
    """
    check_types(tensor_types or {}, WRITTEN)
    check_present(tensor_types or {}, {slot.role for slot in slots})
    given = {role: FORMATS[name] for role, name in (tensor_types or {}).items()}
    tied = all(slot.role != "output" for slot in slots)
    seen: dict[str, int] = {}
    wanted = [
        _kept(slot) or given.get(slot.role) or slot.asked or _wanted(recipe, slot, model, tied, seen) for slot in slots
    ]
    return [Choice(_fallback(format_, slot.columns), format_) for format_, slot in zip(wanted, slots, strict=True)]


def needs_importance(recipe: Recipe, role: str, chosen: Format) -> bool:
    """Whether llama.cpp refuses to quantize a tensor of this role to ``chosen`` unless its importance is known."""
    if role in _ENDS:
        return ggml.requires_importance(chosen)
    return chosen.name in _NEED_IMPORTANCE or (chosen.name == "q2_k" and recipe.name == "q2_k_s")


def check_types(tensor_types: Mapping[str, str], formats: Collection[str]) -> None:
    """OptionError for a role or a format that nobody knows."""
    for role, name in tensor_types.items():
        option = f"--tensor-type {role}={name}"
        if role not in ROLES:
            raise OptionError(f"{option}: no such role", remedy=f"known: {', '.join(ROLES)}")
        if name not in formats:
            raise OptionError(f"{option}: no such format", remedy=f"known: {', '.join(formats)}")


def check_present(tensor_types: Mapping[str, str], present: Collection[str]) -> None:
    """OptionError for a role that the model lacks."""
    for role, name in tensor_types.items():
        if role not in present:
            there = ", ".join(role for role in ROLES if role in present)
            why = " (its head is token_embd)" if role == "output" else ""
            raise OptionError(
                f"--tensor-type {role}={name}: the model has no such tensor{why}", remedy=f"there are: {there}"
            )


def _kept(slot: Slot) -> Format | None:
    """The format of what is never quantized; routers are F32 as llama.cpp's converter has them."""
    if slot.n_dims < 2 or slot.role == "router":
        return F32
    return slot.source if slot.role in ("norm", "bias") else None


def _wanted(recipe: Recipe, slot: Slot, model: Model, tied: bool, seen: dict[str, int]) -> Format:
    if not recipe.default.is_quantized:
        return recipe.default
    if slot.role == "output" or (tied and slot.role == "token_embd"):
        return _head(recipe, slot.columns)
    index = seen.get(slot.role, 0)
    seen[slot.role] = index + 1
    if slot.role.startswith("ffn_") and model.n_expert > 1 and not recipe.is_tiny:
        index = slot.layer
    rule = recipe.rules.get(slot.role)
    name = rule(index, model) if rule else None
    chosen = FORMATS[name] if name else recipe.default
    return chosen if recipe.is_tiny else _for_large_models(chosen, slot.role, model)


def _head(recipe: Recipe, columns: int) -> Format:
    """The output matrix, also where the embedding serves as one: five or six bits at least."""
    whole = columns % recipe.default.block_size == 0
    return recipe.head if whole and recipe.default.name != "q8_0" else FORMATS["q8_0"]


def _for_large_models(chosen: Format, role: str, model: Model) -> Format:
    """llama.cpp's exceptions for Llama 2 70B and for eight experts."""
    is_70b = model.n_layer == 80 and model.n_head != model.n_head_kv and not model.n_expert
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
