"""Which tensor gets which format: llama.cpp's own mixtures, by ``llama-quantize``'s names.

The rules are those of ``llama-quant.cpp`` (ggml 0.25) where there is no importance matrix; a file converted by them
equals llama.cpp's byte for byte. They know roles, not names: ``attn_v`` of layer 3 of 32. Not here: the recipes below
three bits that need an importance matrix (``iq1_*``, ``iq2_*``, ``q2_k_s``), ``iq3_*`` and the ternary ones.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from edge_llama.errors import OptionError
from edge_llama.files.formats import F16, F32, FORMATS, Format

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
    "iq4_xs": "iq4_nl",
}


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
    """What the rules ask of the model: layers, query and KV heads, and experts (0: dense)."""

    n_layer: int
    n_head: int
    n_head_kv: int
    n_expert: int = 0

    @property
    def is_grouped(self) -> bool:
        """Whether four query heads or more share a KV head: then attn_v is small, and better bits cost little."""
        return self.n_head // self.n_head_kv >= 4


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


def _all(name: str) -> Rule:
    return lambda _index, _model: name


def _first(count: int, name: str, then: str | None = None) -> Rule:
    return lambda index, _model: name if index < count else then


def _first_part(parts: int, name: str, then: str | None = None) -> Rule:
    """The first of so many equal parts of the layers; none of a model with fewer layers than parts."""
    return lambda index, model: name if index < model.n_layer // parts else then


def _more_bits(name: str) -> Rule:
    """The first and last eighth and every third between: llama.cpp's ``use_more_bits``."""

    def rule(index: int, model: Model) -> str | None:
        n = model.n_layer
        return name if index < n // 8 or index >= 7 * n // 8 or (index - n // 8) % 3 == 2 else None

    return rule


def _grouped(name: str, otherwise: str | None = None) -> Rule:
    return lambda _index, model: name if model.is_grouped else otherwise


def _mixtral(name: str | None, otherwise: str | None = None) -> Rule:
    """Where there are eight experts, all else is small beside them."""
    return lambda _index, model: name if model.n_expert == 8 else otherwise


def _recipe(
    name: str,
    ftype: int,
    default: str,
    attn_v: Rule | None = None,
    ffn_down: Rule | None = None,
    attn_output: Rule | None = None,
) -> Recipe:
    rules = {"attn_v": attn_v, "ffn_down": ffn_down, "attn_output": attn_output}
    return Recipe(name, ftype, FORMATS[default], {role: rule for role, rule in rules.items() if rule})


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in [
        # name, ftype, default; rules of attn_v, ffn_down, attn_output
        _recipe("f32", 0, "f32"),
        _recipe("f16", 1, "f16"),
        _recipe("bf16", 32, "bf16"),
        _recipe("q8_0", 7, "q8_0"),
        _recipe("q6_k", 18, "q6_k"),
        _recipe("q5_k_m", 17, "q5_k", _more_bits("q6_k"), _more_bits("q6_k")),
        _recipe("q5_k_s", 16, "q5_k"),
        _recipe("q5_1", 9, "q5_1"),
        _recipe("q5_0", 8, "q5_0"),
        _recipe("q4_k_m", 15, "q4_k", _more_bits("q6_k"), _more_bits("q6_k"), _mixtral("q5_k")),
        _recipe("q4_k_s", 14, "q4_k", _first(4, "q5_k"), _first_part(8, "q5_k"), _mixtral("q5_k")),
        _recipe("q4_1", 3, "q4_1"),
        _recipe("q4_0", 2, "q4_0"),
        _recipe("iq4_nl", 25, "iq4_nl", _grouped("q5_k"), _first_part(8, "q5_k"), _mixtral("q5_k")),
        _recipe("iq4_xs", 30, "iq4_xs", _grouped("q5_k"), _first_part(8, "q5_k"), _mixtral("q5_k")),
        # With eight experts q3_k_l's attn_output has fewer bits than q3_k_m's: so llama.cpp has it.
        _recipe("q3_k_l", 13, "q3_k", _all("q5_k"), _all("q5_k"), _mixtral(None, "q5_k")),
        _recipe(
            "q3_k_m", 12, "q3_k", _first(2, "q5_k", "q4_k"), _first_part(16, "q5_k", "q4_k"), _mixtral("q5_k", "q4_k")
        ),
        _recipe("q3_k_s", 11, "q3_k", attn_output=_mixtral("q5_k")),
        _recipe("q2_k", 10, "q2_k", _grouped("q4_k", "q3_k"), _all("q3_k"), _mixtral("q5_k", "q3_k")),
    ]
}
WRITTEN = tuple(dict.fromkeys(recipe.default.name for recipe in RECIPES.values()))
"""Names of the formats that a role can be given: those that need no importance matrix."""


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
    wanted = [_kept(slot) or given.get(slot.role) or _wanted(recipe, slot, model, tied, seen) for slot in slots]
    return [Choice(_fallback(format_, slot.columns), format_) for format_, slot in zip(wanted, slots, strict=True)]


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
