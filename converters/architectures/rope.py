"""Rotary embedding as config.json and GGUF describe it: where its numbers stand, and who wins.

As transformers 5.23 decides (``modeling_rope_utils.py``: ``RotaryEmbeddingConfigMixin``): ``rope_scaling``, if it says
anything, takes the place of ``rope_parameters`` with all that is in it; the base within that object beats
``rope_theta`` beside it; ``original_max_position_embeddings`` beside it beats that within.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.architectures.hyperparameters import Rope
from converters.architectures.rotary import llama3_scaling
from converters.architectures.unused_fields import check_unknown_within
from converters.checkpoint import Tensor
from edge_llama.files.formats import F32
from edge_llama.files.gguf import Header, Value, f32, shortest, string, u32
from edge_llama.files.json_fields import Fields

ROPE_FREQS = "rope_freqs.weight"
KEPT = (ROPE_FREQS, "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors of a GGUF file that may scale frequencies in a way that no number in config.json expresses."""
EXPLICIT = "explicit"
"""Our name for a scaling that only a GGUF file's own tensors or keys tell."""
PLACES = ("rope_scaling", "rope_parameters")
"""The first that says something is taken, as a whole."""
KEYS = frozenset({*PLACES, "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"})
"""Fields of config.json that are read here."""
_YARN = {
    "attention_factor": "yarn_attn_factor",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}
"""Optional numbers, and what GGUF calls them after ``rope.scaling.``."""
_KNOWN = frozenset(
    {
        *("rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "partial_rotary_factor"),
        *("low_freq_factor", "high_freq_factor", "mscale", "mscale_all_dim", "truncate", "finetuned", "by"),
        *_YARN,
    }
)


def parameters(config: Mapping[str, Any]) -> tuple[str, Any]:
    """The field that is taken, and what it holds; an empty object if neither says anything."""
    for place in PLACES:
        if config.get(place):
            return place, config[place]
    return PLACES[0], {}


def contradiction(config: Mapping[str, Any]) -> str:
    """What to tell a person where both places say something, and not the same; empty otherwise."""
    first, second = (config.get(place) for place in PLACES)
    if not first or not second or first == second:
        return ""
    return "rope_scaling is taken and rope_parameters, which differs, is not: as transformers does"


def read_rope(fields: Fields, n_ctx: int, default_theta: float) -> Rope:
    """What config.json says; CheckpointError names the field that is missing, of a wrong type or unsupported."""
    place, content = parameters(fields.content)
    if not isinstance(content, dict):
        raise fields.fail(place, f"is {content!r:.100}, expected an object")
    return rope_within(fields, place, content, n_ctx, fields.real("rope_theta", default_theta))


def rope_within(fields: Fields, place: str, content: Mapping[str, Any], n_ctx: int, theta: float) -> Rope:
    """What the object ``content`` under ``place`` says, where ``theta`` is the base if it has none."""
    rope = replace(fields, content=content, called=f"{fields.called}{place}.")
    check_unknown_within(rope, _KNOWN)
    theta = rope.real("rope_theta", theta)
    for where in (fields, rope):
        if where.real("partial_rotary_factor", 1.0) != 1.0:
            raise where.fail("partial_rotary_factor", f"is {where.content['partial_rotary_factor']!r}, expected 1")
    kind = content.get("rope_type", content.get("type", "default"))
    if kind in ("default", "dynamic"):  # dynamic: as default up to the length of context for which it was trained
        return Rope(theta)
    if kind == EXPLICIT:
        return Rope(theta, {"rope_type": kind, "by": content.get("by", ROPE_FREQS)})
    if kind not in ("linear", "llama3", "yarn"):
        raise fields.fail(place, f"has type {kind!r:.100}", "supported: default, linear, llama3, yarn, dynamic")
    if kind == "yarn" and theta <= 1:
        raise fields.fail("rope_theta", f"is {theta:g}, expected more than 1 with YaRN")
    return Rope(theta, {"rope_type": kind, "factor": _needed(rope, "factor")} | _numbers(fields, rope, kind, n_ctx))


def _needed(rope: Fields, key: str) -> float:
    if rope.content.get(key) is None:
        raise rope.fail(key, "is missing")
    return rope.real(key, 1.0)


def _numbers(fields: Fields, rope: Fields, kind: str, n_ctx: int) -> dict[str, Any]:
    if kind == "linear":
        return {}
    beside = fields.content.get("original_max_position_embeddings") is not None
    where = fields if beside else rope
    original = where.real("original_max_position_embeddings", n_ctx)
    if not 1 <= original < 1 << 32:
        raise where.fail("original_max_position_embeddings", f"is {original:g}, expected a number of positions")
    if kind == "llama3":
        low, high = (_needed(rope, f"{which}_freq_factor") for which in ("low", "high"))
        return {"low_freq_factor": low, "high_freq_factor": high, "original": original}
    found: dict[str, Any] = {"original": original, "truncate": rope.get("truncate", bool, True)}
    given = (*_YARN, "mscale", "mscale_all_dim")
    return found | {key: rope.real(key, 1.0) for key in given if rope.content.get(key)}


def attention_factor(rope: Rope) -> float:
    """By what cosines and sines are multiplied: 1 but for YaRN, where it follows from the factor unless it is given."""
    scaling = rope.scaling
    if rope.kind != "yarn" or "attention_factor" in scaling:
        return float(scaling.get("attention_factor", 1.0))
    shares = [scaling.get(key) for key in ("mscale", "mscale_all_dim")]
    if all(shares):
        first, second = (_paper_factor(scaling["factor"], float(share or 0)) for share in shares)
        return first / second
    return _paper_factor(scaling["factor"])


def _paper_factor(factor: float, share: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * share * math.log(factor) + 1.0


def is_papers_yarn(rope: Rope) -> bool:
    """Whether llama.cpp computes it: its YaRN has the paper's attention factor and whole bounds.

    Source: ``llama-context.cpp``, where ``yarn_attn_factor`` is set anew, and ``ggml_rope_yarn_corr_dims``.
    """
    if rope.kind != "yarn":
        return True
    is_paper = math.isclose(attention_factor(rope), _paper_factor(rope.scaling["factor"]), rel_tol=1e-6)
    return is_paper and bool(rope.scaling["truncate"])


def to_gguf(rope: Rope, window_rope: Rope | None) -> dict[str, Value]:
    """Under llama.cpp's keys, after the architecture's name; a tensor tells llama3's scaling.

    ``window_rope``: that of layers with a sliding window.
    """
    found: dict[str, Value] = {}
    if rope.kind in ("linear", "yarn"):
        found["rope.scaling.type"] = string(rope.kind)
        found["rope.scaling.factor"] = f32(rope.scaling["factor"])
    if rope.kind == "yarn":
        found["rope.scaling.original_context_length"] = u32(int(rope.scaling["original"]))
        found |= {f"rope.scaling.{name}": f32(rope.scaling[key]) for key, name in _YARN.items() if key in rope.scaling}
    found["rope.freq_base"] = f32(rope.theta)
    return found if window_rope is None else found | {"rope.freq_base_swa": f32(window_rope.theta)}


def from_gguf(header: Header, freqs: Tensor | None, head_dim: int, default_theta: float) -> dict[str, Any]:
    """config.json's ``rope_theta`` and ``rope_scaling``, which is None if frequencies are as trained."""
    theta = shortest(header.get(f"{header.architecture}.rope.freq_base", float, default_theta))
    return {"rope_theta": theta, "rope_scaling": _scaling_from_gguf(header, freqs, head_dim, theta)}


def _scaling_from_gguf(header: Header, freqs: Tensor | None, head_dim: int, theta: float) -> dict[str, Any] | None:
    if freqs is not None:
        scaling = llama3_scaling(_numbers_of(freqs), head_dim, theta) if freqs.format is F32 else None
        if scaling is None:
            return {"rope_type": EXPLICIT, "by": f"tensor {ROPE_FREQS!r}"}
        return {key: value for key, value in scaling.items() if key != "original"} | {
            "original_max_position_embeddings": round(scaling["original"])
        }
    prefix = f"{header.architecture}.rope."
    factor = header.get(prefix + "scaling.factor", float, 0.0) or header.get(prefix + "scale_linear", float, 0.0)
    kind = header.get(prefix + "scaling.type", str, "linear")
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None
    if kind == "linear":
        return {"rope_type": kind, "factor": shortest(factor)}
    return _yarn_from_gguf(header, factor) or {"rope_type": EXPLICIT, "by": f"{prefix}scaling.type {kind!r}"}


def _yarn_from_gguf(header: Header, factor: float) -> dict[str, Any] | None:
    """What config.json can say of it: not a strength of extrapolation, nor what multiplies attention apart from it."""
    prefix = f"{header.architecture}.rope.scaling."
    unsaid = ("yarn_ext_factor", "yarn_log_multiplier", "attn_factor")
    is_yarn = header.get(prefix + "type", str, "") == "yarn"
    if not is_yarn or not factor or any(prefix + key in header.fields for key in unsaid):
        return None
    trained = header.get(f"{header.architecture}.context_length", int, 0)
    found: dict[str, Any] = {"rope_type": "yarn", "factor": shortest(factor)}
    found["original_max_position_embeddings"] = header.get(prefix + "original_context_length", int, trained)
    for key, name in _YARN.items():
        if prefix + name in header.fields:
            found[key] = shortest(header.get(prefix + name, float, 0.0))
    return found


def _numbers_of(tensor: Tensor) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = tensor.read(0, 1).view(np.float32)[0]
    return numbers
