"""llama.cpp's own mixtures of formats, by ``llama-quantize``'s names, as a table: a recipe in each row.

The rules are those of ``llama-quant.cpp`` (ggml 0.25), with an importance matrix and without; :mod:`quant.recipe`
applies them. They know roles, not names: ``attn_v`` of layer 3 of 32. Not here: the ternary recipes, and those of one
block format alone (``q1_0``, ``q2_0``, ``mxfp4_moe``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edge_llama.files.formats import FORMATS, Format


@dataclass(frozen=True, slots=True)
class Model:
    """What the rules ask of the model: layers, query and KV heads, and experts (0: dense)."""

    n_layer: int
    n_head: int
    n_head_kv: int
    n_expert: int = 0
    has_importance: bool = False
    """Whether there is an importance matrix, of whichever of its tensors: no property of the model, but rules ask."""

    @property
    def is_grouped(self) -> bool:
        """Whether four query heads or more share a KV head: then attn_v is small, and better bits cost little."""
        return self.n_head // self.n_head_kv >= 4


Rule = Callable[[int, Model], str | None]
"""(index among its kind, model) -> format name, or None for the recipe's default."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """``ftype`` is llama.cpp's number for the mixture (``general.file_type``); ``rules`` are by role."""

    name: str
    ftype: int
    default: Format
    rules: Mapping[str, Rule] = field(default_factory=dict)
    head: Format = FORMATS["q6_k"]
    """Of the output matrix, where its rows allow it and ``default`` is not q8_0."""
    needs_importance: bool = False
    """Whether llama.cpp refuses it without an importance matrix: for models whose rows are whole super-blocks."""
    is_tiny: bool = False
    """Below three bits llama.cpp has rules by themselves: none of its exceptions for large models, and ``ffn_down``
    is counted, also where there are experts."""


def _all(name: str) -> Rule:
    return lambda _index, _model: name


def _first(count: int, name: str, then: str | None = None) -> Rule:
    return lambda index, _model: name if index < count else then


def _first_part(parts: int, name: str, then: str | None = None) -> Rule:
    """The first of so many equal parts of the layers; none of a model with fewer layers than parts."""
    return lambda index, model: name if index < model.n_layer // parts else then


def _inner(name: str) -> Rule:
    """All but the first and last eighth."""
    return lambda index, model: name if model.n_layer // 8 <= index < 7 * model.n_layer // 8 else None


def _is_one_of_more_bits(index: int, n: int) -> bool:
    """The first and last eighth and every third between: llama.cpp's ``use_more_bits``."""
    return index < n // 8 or index >= 7 * n // 8 or (index - n // 8) % 3 == 2


def _more_bits(name: str) -> Rule:
    return lambda index, model: name if _is_one_of_more_bits(index, model.n_layer) else None


def _grouped(name: str, otherwise: str | Rule | None = None) -> Rule:
    return lambda index, model: name if model.is_grouped else _applied(otherwise, index, model)


def _mixtral(name: str | Rule | None, otherwise: str | Rule | None = None) -> Rule:
    """Where there are eight experts, all else is small beside them."""
    return lambda index, model: _applied(name if model.n_expert == 8 else otherwise, index, model)


def _by_importance(rule: str | Rule | None, otherwise: str | Rule | None) -> Rule:
    """``rule`` where there is an importance matrix."""
    return lambda index, model: _applied(rule if model.has_importance else otherwise, index, model)


def _applied(rule: str | Rule | None, index: int, model: Model) -> str | None:
    return rule(index, model) if callable(rule) else rule


def _recipe(
    name: str,
    ftype: int,
    default: str,
    attn_v: Rule | None = None,
    ffn_down: Rule | None = None,
    attn_output: Rule | None = None,
    *,
    head: str = "q6_k",
    needs_importance: bool = False,
    **more: Rule,
) -> Recipe:
    rules = {"attn_v": attn_v, "ffn_down": ffn_down, "attn_output": attn_output, **more}
    given = {role: rule for role, rule in rules.items() if rule}
    return Recipe(name, ftype, FORMATS[default], given, FORMATS[head], needs_importance)


def _tiny(name: str, ftype: int, default: str, better: str, attn_output: str | None = None) -> Recipe:
    """Below three bits: ``better`` is the format of the embedding and of what counts most."""
    rules: dict[str, Rule] = {
        "token_embd": _all(better),
        "attn_v": lambda _index, model: "q4_k" if model.is_grouped or model.n_expert >= 4 else better,
        "attn_k": _mixtral("q4_k"),
        "ffn_down": _first_part(8, better),
        "attn_output": _mixtral("q5_k", attn_output),
    }
    return Recipe(name, ftype, FORMATS[default], rules, FORMATS["q5_k"], needs_importance=True, is_tiny=True)


_IQ4_DOWN = _by_importance(None, _first_part(8, "q5_k"))
_Q3_DOWN = _by_importance(None, _first_part(8, "q4_k", "q3_k"))

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in [
        # name, ftype, default; rules of attn_v, ffn_down, attn_output; of others by name
        _recipe("f32", 0, "f32"),
        _recipe("f16", 1, "f16"),
        _recipe("bf16", 32, "bf16"),
        _recipe("q8_0", 7, "q8_0"),
        _recipe("q6_k", 18, "q6_k"),
        _recipe("q5_k_m", 17, "q5_k", _more_bits("q6_k"), _more_bits("q6_k")),
        _recipe("q5_k_s", 16, "q5_k"),
        _recipe("q5_1", 9, "q5_1"),
        _recipe("q5_0", 8, "q5_0", ffn_down=_by_importance(_first_part(8, "q5_1"), None)),
        _recipe("q4_k_m", 15, "q4_k", _more_bits("q6_k"), _more_bits("q6_k"), _mixtral("q5_k")),
        _recipe("q4_k_s", 14, "q4_k", _first(4, "q5_k"), _first_part(8, "q5_k"), _mixtral("q5_k")),
        _recipe("q4_1", 3, "q4_1"),
        _recipe("q4_0", 2, "q4_0", ffn_down=_by_importance(_first_part(8, "q4_1"), None)),
        _recipe("iq4_nl", 25, "iq4_nl", _grouped("q5_k"), _IQ4_DOWN, _mixtral("q5_k")),
        _recipe("iq4_xs", 30, "iq4_xs", _grouped("q5_k"), _IQ4_DOWN, _mixtral("q5_k")),
        # With eight experts q3_k_l's attn_output has fewer bits than q3_k_m's: so llama.cpp has it.
        _recipe("q3_k_l", 13, "q3_k", _all("q5_k"), _all("q5_k"), _mixtral(None, "q5_k")),
        _recipe(
            "q3_k_m", 12, "q3_k", _first(2, "q5_k", "q4_k"), _first_part(16, "q5_k", "q4_k"), _mixtral("q5_k", "q4_k")
        ),
        _recipe("q3_k_s", 11, "q3_k", attn_output=_mixtral("q5_k")),
        _recipe(
            *("iq3_m", 27, "iq3_s", _all("q4_k")),
            ffn_down=_mixtral(_more_bits("q4_k"), _first_part(8, "q4_k")),
            attn_output=_mixtral("q5_k", "q4_k"),
        ),
        _recipe("iq3_s", 26, "iq3_s", _grouped("q4_k"), attn_output=_mixtral("q5_k")),
        _recipe(
            *("iq3_xs", 22, "iq3_s", _grouped("q4_k"), None, _mixtral("q5_k")),
            needs_importance=True,
            attn_q=_all("iq3_xxs"),
            attn_k=_all("iq3_xxs"),
            ffn_gate=_inner("iq3_xxs"),
            ffn_up=_inner("iq3_xxs"),
        ),
        _recipe(
            *("iq3_xxs", 23, "iq3_xxs"),
            _grouped("q4_k", _by_importance("iq3_xxs", "iq3_s")),
            _Q3_DOWN,
            _mixtral("q5_k", "iq3_s"),
            head="q5_k",
            needs_importance=True,
            token_embd=_all("iq3_s"),
            attn_q=_all("iq2_s"),
            attn_k=_all("iq2_s"),
        ),
        _recipe("q2_k", 10, "q2_k", _grouped("q4_k", "q3_k"), _all("q3_k"), _mixtral("q5_k", "q3_k")),
        _recipe("q2_k_s", 21, "q2_k", _grouped("q4_k"), _first_part(8, "q4_k"), needs_importance=True),
        # name, ftype, default; the format of what counts most, and of attn_output
        _tiny("iq2_m", 29, "iq2_s", "iq3_s", "iq3_s"),
        _tiny("iq2_s", 28, "iq2_xs", "iq3_s", "iq3_s"),
        _tiny("iq2_xs", 20, "iq2_xs", "q2_k"),
        _tiny("iq2_xxs", 19, "iq2_xxs", "q2_k"),
        _tiny("iq1_m", 31, "iq1_m", "q2_k", "iq2_xxs"),
        _tiny("iq1_s", 24, "iq1_s", "q2_k", "iq2_xxs"),
    ]
}
