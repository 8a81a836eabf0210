"""Mixtral: Mistral with a mixture of experts in every layer, of which a few are weighed by a softmax.

Sources: transformers' ``configuration_mixtral.py`` and ``modeling_mixtral.py``, llama.cpp's ``conversion/llama.py`` and
``src/models/llama.cpp``: in GGUF it is a ``llama`` with ``expert_count``.
"""

from dataclasses import replace

from converters.architectures import llama
from converters.architectures.family import Family
from converters.architectures.mistral import NO_WINDOW, everywhere, sliding_window
from converters.architectures.table import HParam, TensorSpec
from converters.tensors.views import EachExpert

_EXPERTS = "block_sparse_moe.experts."
_ROWS, _COLUMNS = ("n_expert", "n_ff", "n_embd"), ("n_expert", "n_embd", "n_ff")

MIXTRAL = Family(
    name="mixtral",
    called="Mixtral",
    gguf_name="llama",
    config_names=("MixtralForCausalLM",),
    model_type="mixtral",
    has_experts=True,
    default_theta=1000000.0,
    hparams=(
        llama.N_LAYER,
        llama.context(131072),
        llama.N_EMBD,
        llama.N_FF,
        llama.N_HEAD,
        llama.kv_heads(8),
        llama.eps(1e-5),
        HParam("n_expert", "num_local_experts", ("expert_count",), default=8),
        HParam("n_expert_used", "num_experts_per_tok", ("expert_used_count",), default=2, check=llama.experts_enough),
        replace(llama.HEAD_DIM, given=True),
        llama.N_VOCAB,
        llama.rotary(),
        llama.ACTIVATION,
        llama.TIED,
        sliding_window(None),
    ),
    outside=llama.OUTSIDE,
    layer=(
        *llama.NORMS,
        *llama.ATTENTION,
        TensorSpec("ffn_gate_inp.weight", "block_sparse_moe.gate.weight", "router", ("n_expert", "n_embd")),
        *(
            TensorSpec(
                f"ffn_{kind}_exps.weight",
                f"{_EXPERTS}{kind}_proj.weight",
                f"ffn_{kind}",
                shape,
                view=EachExpert(f"{_EXPERTS}{{}}.{theirs}.weight"),
            )
            for kind, theirs, shape in (("gate", "w1", _ROWS), ("up", "w3", _ROWS), ("down", "w2", _COLUMNS))
        ),
    ),
    derived=everywhere,
    limits={"gguf": (NO_WINDOW,)},
    kept_modules=(r".*\.gate$",),
)
