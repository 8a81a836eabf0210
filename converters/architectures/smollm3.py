"""SmolLM3: Llama whose every fourth layer has no rotary embedding.

Sources: transformers' ``configuration_smollm3.py`` and ``modeling_smollm3.py``, llama.cpp's ``conversion/llama.py`` and
``src/models/smollm3.cpp``, where "every fourth" is built in.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from converters.architectures import llama
from converters.architectures.family import Family
from converters.architectures.nope import KEYS, is_built_in, rope_layers
from converters.architectures.table import Limit, Values
from converters.architectures.windows import ALL_FULL, FULL, SLIDING, WINDOW_KEYS, typed_layers
from edge_llama.files.json_fields import Fields


def _layers(fields: Fields, values: Values) -> Mapping[str, Any]:
    """Those without positions have a window, if one is used and no list says otherwise."""
    rotary = rope_layers(fields, values["n_layer"])
    has_window = fields.flag("use_sliding_window") and fields.content.get("sliding_window") is not None
    window = fields.size("sliding_window") if has_window else None
    usual = [SLIDING if has_window and not is_rotary else FULL for is_rotary in rotary]
    return {"rope_layers": rotary, **typed_layers(fields, values["n_layer"], usual, window)}


SMOLLM3 = Family(
    name="smollm3",
    called="SmolLM3",
    gguf_name="smollm3",
    config_names=("SmolLM3ForCausalLM",),
    model_type="smollm3",
    default_theta=2000000.0,
    hparams=(
        llama.N_LAYER,
        llama.context(32768),
        llama.N_EMBD,
        llama.N_FF,
        llama.N_HEAD,
        llama.kv_heads(4),
        llama.eps(1e-6),
        replace(llama.HEAD_DIM, given=True),
        llama.N_VOCAB,
        llama.rotary(),
        llama.ACTIVATION,
        replace(llama.TIED, default=True),
        llama.biases("attention_bias", "attention_bias", "attn_q"),
        llama.biases("mlp_bias", "mlp_bias", "ffn_up"),
    ),
    outside=llama.OUTSIDE,
    layer=llama.LAYER,
    ropes=("default", "linear", "yarn"),
    derived=_layers,
    derived_keys=WINDOW_KEYS | {*KEYS},
    limits={
        "gguf": (
            Limit(KEYS, lambda hp: is_built_in(hp.rope_layers), "every fourth layer without"),
            ALL_FULL,
            llama.NO_BIASES,
            Limit(("mlp_bias",), lambda hp: not hp.mlp_bias, "no biases"),
        )
    },
)
