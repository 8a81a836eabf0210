"""What is particular to Gemma 3's config.json: windows, two bases of RoPE, scales; and what GGUF can say of them.

Sources: transformers' ``configuration_gemma3.py``, llama.cpp's ``src/models/gemma3.cpp``.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from converters.architectures import rope
from converters.architectures.hyperparameters import Hyperparameters, Rope
from converters.architectures.table import REAL, Values
from converters.architectures.unused_fields import check_unknown_within
from converters.architectures.windows import FULL, SLIDING, typed_layers
from edge_llama.files.gguf import Header, shortest
from edge_llama.files.json_fields import Fields

_PATTERN = 6  # built into llama.cpp: every sixth layer sees everything
LOCAL_BASE = "rope_local_base_freq"
KEYS = frozenset({"layer_types", "sliding_window_pattern", "query_pre_attn_scalar", LOCAL_BASE})
"""Fields of config.json that are read here."""
_N_LAYER_27B = 62  # llama.cpp tells 27B from others by its layers


def _optional_real(fields: Fields, key: str, default: Any) -> float | None:
    return default if fields.content.get(key) is None else fields.real(key, 1.0)


OPTIONAL_REAL = replace(REAL, read=_optional_real)


def layers(fields: Fields, values: Values) -> Mapping[str, Any]:
    """Which layers have windows, and by what numbers are multiplied."""
    n_layer, pattern = values["n_layer"], fields.size("sliding_window_pattern", _PATTERN)
    usual = [FULL if (layer + 1) % pattern == 0 else SLIDING for layer in range(n_layer)]
    found = dict(typed_layers(fields, n_layer, usual, values["window"]))
    scale = fields.real("query_pre_attn_scalar", 256) ** -0.5
    return found | {"embedding_scale": values["n_embd"] ** 0.5, "attention_scale": scale}


def ropes(fields: Fields, values: Values, default_theta: float) -> dict[str, Rope]:
    """As transformers' ``Gemma3TextConfig.convert_rope_params_to_dict``: ``rope_scaling`` adds to the full layers'."""
    places = fields.get("rope_parameters", dict, {})
    check_unknown_within(replace(fields, content=places, called="rope_parameters."), (FULL, SLIDING))
    given = {kind: places.get(kind) or {} for kind in (FULL, SLIDING)}
    for kind, content in given.items():
        if not isinstance(content, dict):
            raise fields.fail("rope_parameters", f"has {content!r:.100} for {kind}, expected an object")
    full = {**given[FULL], **fields.get("rope_scaling", dict, {})}
    n_ctx, theta, local = values["n_ctx"], fields.real("rope_theta", default_theta), fields.real(LOCAL_BASE, 1e4)
    window_rope = rope.rope_within(fields, "rope_parameters", given[SLIDING], n_ctx, local)
    if window_rope.kind != "default":
        raise fields.fail("rope_parameters", f"scales {SLIDING}: {window_rope.kind}", "only full_attention can have it")
    return {"rope": rope.rope_within(fields, "rope_scaling", full, n_ctx, theta), "window_rope": window_rope}


def has_built_in_layers(hp: Hyperparameters) -> bool:
    """Whether windows are where llama.cpp has them."""
    every_sixth = tuple((layer + 1) % _PATTERN != 0 for layer in range(hp.n_layer))
    return hp.window is None or hp.window_layers == every_sixth


def has_built_in_scale(hp: Hyperparameters) -> bool:
    """Whether products of Q and K are scaled as llama.cpp does."""
    divisor = hp.n_embd // hp.n_head if hp.n_layer == _N_LAYER_27B else hp.head_dim
    return hp.attention_scale is not None and abs(hp.attention_scale * divisor**0.5 - 1) < 1e-6


def from_gguf(header: Header) -> Mapping[str, Any]:
    """What has a form of its own in GGUF, or is built into llama.cpp."""
    n_layer = header.get("gemma3.block_count", int, 0)
    heads, width = header.get("gemma3.attention.head_count", int, 1), header.get("gemma3.embedding_length", int, 0)
    head_dim = header.get("gemma3.attention.key_length", int, width // max(heads, 1))
    pattern = header.get("gemma3.attention.sliding_window_pattern", int, _PATTERN)
    has_window = header.get("gemma3.attention.sliding_window", int, 0) > 0
    return {
        "query_pre_attn_scalar": width // max(heads, 1) if n_layer == _N_LAYER_27B else head_dim,
        "sliding_window_pattern": pattern if has_window else 1,
        LOCAL_BASE: shortest(header.get("gemma3.rope.freq_base_swa", float, 1e4)),
    }
