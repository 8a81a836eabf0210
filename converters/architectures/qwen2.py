"""Qwen2 and Qwen2.5, dense: Llama with biases of Q, K and V.

Sources: transformers' ``configuration_qwen2.py`` and ``modeling_qwen2.py``, llama.cpp's ``conversion/qwen.py`` and
``src/models/qwen2.cpp``, whose RoPE pairs halves of a head as Hugging Face's.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from converters.architectures import llama
from converters.architectures.family import Family
from converters.architectures.table import Limit, TensorSpec, Values
from converters.architectures.windows import ALL_FULL, FULL, SLIDING, WINDOW_KEYS, typed_layers
from converters.tensors.views import PLAIN
from edge_llama.files.gguf import Header
from edge_llama.files.json_fields import Fields

ROPES = ("default", "linear", "yarn")  # llama.cpp's graphs take no factors of frequencies


def windows(fields: Fields, values: Values) -> Mapping[str, Any]:
    """Layers from ``max_window_layers`` on have a window, if one is used at all and no list says otherwise."""
    has_window = fields.flag("use_sliding_window") and fields.content.get("sliding_window", 4096) is not None
    window = fields.size("sliding_window", 4096) if has_window else None
    first = fields.size("max_window_layers", 28)
    usual = [SLIDING if window is not None and layer >= first else FULL for layer in range(values["n_layer"])]
    return typed_layers(fields, values["n_layer"], usual, window)


def without_window(_header: Header) -> Mapping[str, Any]:
    """What GGUF leaves unsaid: there is none."""
    return {"use_sliding_window": False}


def _always(spec: TensorSpec) -> TensorSpec:
    return replace(spec, view=PLAIN, when=lambda _hp, _layer: True)


QWEN2 = Family(
    name="qwen2",
    called="Qwen2",
    gguf_name="qwen2",
    config_names=("Qwen2ForCausalLM",),
    model_type="qwen2",
    hparams=(
        llama.N_LAYER,
        llama.context(32768),
        llama.N_EMBD,
        llama.N_FF,
        llama.N_HEAD,
        llama.kv_heads(32),
        llama.eps(1e-6),
        replace(llama.HEAD_DIM, given=True),
        replace(llama.N_VOCAB, gguf=()),
        llama.ACTIVATION,
        llama.TIED,
    ),
    outside=llama.OUTSIDE,
    layer=(
        *llama.NORMS,
        *map(llama.unpermuted, llama.ATTENTION),
        *map(_always, llama.ATTENTION_BIASES[:3]),
        *llama.FEED_FORWARD,
    ),
    ropes=ROPES,
    tells_space_prefix=False,
    derived=windows,
    derived_keys=WINDOW_KEYS,
    limits={
        "gguf": (
            ALL_FULL,
            Limit(("head_dim",), lambda hp: hp.q == hp.n_embd, "hidden_size / num_attention_heads"),
        )
    },
    from_gguf=without_window,
)
