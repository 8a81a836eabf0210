"""Mistral 7B and its like, dense: Llama with attention that may be that of a sliding window.

Sources: transformers' ``configuration_mistral.py`` and ``modeling_mistral.py``, llama.cpp's ``conversion/llama.py``. In
GGUF it is a ``llama``, whose graph has no window: so only a checkpoint without one can be written there.
"""

from typing import Any

from converters.architectures import llama
from converters.architectures.family import Family
from converters.architectures.table import OPTIONAL, HParam, Limit, Values
from edge_llama.files.json_fields import Fields


def sliding_window(default: int | None) -> HParam:
    """The row of the window: ``default`` if config.json doesn't say, none if it says null."""
    return HParam("window", "sliding_window", (), OPTIONAL, default, null=lambda _values: None)


def everywhere(_fields: Fields, values: Values) -> dict[str, Any]:
    """A window is that of every layer."""
    return {"window_layers": (values["window"] is not None,) * values["n_layer"]}


NO_WINDOW = Limit(("sliding_window",), lambda hp: hp.window is None, "null, since llama.cpp's graph has no window")

MISTRAL = Family(
    name="mistral",
    called="Mistral",
    gguf_name="llama",
    config_names=("MistralForCausalLM",),
    model_type="mistral",
    has_experts=False,
    hparams=(
        llama.N_LAYER,
        llama.context(131072),
        llama.N_EMBD,
        llama.N_FF,
        llama.N_HEAD,
        llama.kv_heads(8),
        llama.eps(1e-6),
        llama.HEAD_DIM,
        llama.N_VOCAB,
        llama.rotary(),
        llama.ACTIVATION,
        llama.TIED,
        sliding_window(4096),
    ),
    outside=llama.OUTSIDE,
    layer=(*llama.NORMS, *llama.ATTENTION, *llama.FEED_FORWARD),
    derived=everywhere,
    limits={"gguf": (NO_WINDOW,)},
)
