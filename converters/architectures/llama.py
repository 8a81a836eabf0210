"""Llama 1 to 3.3 and models of the same shape (SmolLM2, TinyLlama): dense, RMSNorm, rotary, grouped queries.

Sources: transformers' ``modeling_llama.py`` for what a checkpoint means, llama.cpp's ``src/models/llama.cpp``
and ``conversion/llama.py`` for what a GGUF file must hold.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.architectures.rotary import llama3_factors, llama3_scaling
from converters.checkpoint import NOT_TOGETHER, Checkpoint, Fields, Tensor, shortest
from edge_llama.errors import CheckpointError
from edge_llama.formats import F32
from edge_llama.gguf import Header, Value, f32, string, u32
from quant.recipe import Model

_LAYER = {
    "attn_norm.weight": ("input_layernorm.weight", "norm"),
    "ffn_norm.weight": ("post_attention_layernorm.weight", "norm"),
    "attn_q.weight": ("self_attn.q_proj.weight", "attn_q"),
    "attn_k.weight": ("self_attn.k_proj.weight", "attn_k"),
    "attn_v.weight": ("self_attn.v_proj.weight", "attn_v"),
    "attn_output.weight": ("self_attn.o_proj.weight", "attn_output"),
    "ffn_gate.weight": ("mlp.gate_proj.weight", "ffn_gate"),
    "ffn_up.weight": ("mlp.up_proj.weight", "ffn_up"),
    "ffn_down.weight": ("mlp.down_proj.weight", "ffn_down"),
    "attn_q.bias": ("self_attn.q_proj.bias", "bias"),
    "attn_k.bias": ("self_attn.k_proj.bias", "bias"),
    "attn_v.bias": ("self_attn.v_proj.bias", "bias"),
    "attn_output.bias": ("self_attn.o_proj.bias", "bias"),
    "ffn_gate.bias": ("mlp.gate_proj.bias", "bias"),
    "ffn_up.bias": ("mlp.up_proj.bias", "bias"),
    "ffn_down.bias": ("mlp.down_proj.bias", "bias"),
}
_OUTSIDE = {
    "token_embd.weight": ("model.embed_tokens.weight", "token_embd"),
    "output_norm.weight": ("model.norm.weight", "norm"),
    "output.weight": ("lm_head.weight", "output"),
}
_ROPE_FREQS = "rope_freqs.weight"
_EXPLICIT = "explicit"  # our name for a scaling that only a GGUF file's own rope_freqs tensor tells
_IGNORED = re.compile(r"rope\.freqs$|\.rotary_emb\.inv_freq$")  # recomputed by every runtime


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of the output under its GGUF name, with what recipes ask: its role and layer (-1 outside the layers)."""

    tensor: Tensor
    role: str
    layer: int


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """A Llama config, checked, with today's and older spellings made one and transformers' defaults filled in."""

    n_vocab: int
    n_ctx: int
    n_embd: int
    n_ff: int
    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any]
    tied: bool
    attention_bias: bool
    mlp_bias: bool


def hyperparameters(config: Mapping[str, Any], path: Path) -> Hyperparameters:
    """Read a Llama config.json; CheckpointError names the field that is missing, of a wrong type or unsupported."""
    fields = Fields(config, path)
    if config.get("quantization_config"):
        raise fields.fail(
            "quantization_config", "is set: these weights are quantized", "give the full-precision checkpoint"
        )
    if (activation := config.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise fields.fail("hidden_act", f"is {activation!r}, expected 'silu'", "only Llama's own is supported")
    n_embd, n_head = fields.size("hidden_size"), fields.size("num_attention_heads")
    n_head_kv = fields.size("num_key_value_heads", n_head)
    if n_head % n_head_kv:
        raise fields.fail("num_key_value_heads", f"is {n_head_kv}, which does not divide {n_head} heads")
    if config.get("head_dim") is None and n_embd % n_head:
        raise fields.fail("num_attention_heads", f"is {n_head}, which does not divide hidden_size {n_embd}")
    head_dim = fields.size("head_dim", n_embd // n_head)
    if head_dim % 2:
        raise fields.fail("head_dim", f"is {head_dim}, expected an even number")
    rope_theta, rope_scaling = _rope(fields)
    return Hyperparameters(
        n_vocab=fields.size("vocab_size"),
        n_ctx=fields.size("max_position_embeddings", 2048),
        n_embd=n_embd,
        n_ff=fields.size("intermediate_size"),
        n_layer=fields.size("num_hidden_layers"),
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        norm_eps=fields.real("rms_norm_eps", 1e-6),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tied=fields.flag("tie_word_embeddings"),
        attention_bias=fields.flag("attention_bias"),
        mlp_bias=fields.flag("mlp_bias"),
    )


def _rope(fields: Fields) -> tuple[float, dict[str, Any]]:
    """The base and the scaling, empty if there is none. transformers 5 keeps both in ``rope_parameters``."""
    parameters = fields.config.get("rope_parameters") or fields.config.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise fields.fail("rope_scaling", f"is {parameters!r}, expected an object")
    theta = fields.real("rope_theta", 10000.0, parameters if "rope_theta" in parameters else None)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return theta, {}
    if kind == _EXPLICIT:
        return theta, {"rope_type": kind}
    if kind not in ("linear", "llama3"):
        raise fields.fail("rope_scaling", f"has type {kind!r}", "supported: default, linear, llama3")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": fields.real("factor", 8.0, parameters)}
    if kind == "llama3":
        scaling["low_freq_factor"] = fields.real("low_freq_factor", 1.0, parameters)
        scaling["high_freq_factor"] = fields.real("high_freq_factor", 4.0, parameters)
        scaling["original"] = fields.real("original_max_position_embeddings", 8192, parameters)
    return theta, scaling


def _factors(hp: Hyperparameters, path: Path) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        factors = llama3_factors(hp.head_dim, hp.rope_theta, hp.rope_scaling)
    if not np.isfinite(factors).all():
        numbers = {"rope_theta": hp.rope_theta, **hp.rope_scaling}
        raise CheckpointError(
            f"{path}: config.json: rope_scaling makes no finite frequencies of {numbers}",
            remedy="download config.json again",
        )
    return factors


def interleaved(tensor: Tensor, head_dim: int) -> Tensor:
    """Q or K rows from Hugging Face's order (halves) to llama.cpp's (pairs)."""
    return _reordered(tensor, head_dim, (2, head_dim // 2))


def halved(tensor: Tensor, head_dim: int) -> Tensor:
    """The inverse of :func:`interleaved`."""
    return _reordered(tensor, head_dim, (head_dim // 2, 2))


def _reordered(tensor: Tensor, head_dim: int, grid: tuple[int, int]) -> Tensor:
    """Within each head, rows seen as ``grid`` are transposed. A bias is a column of such rows."""
    is_vector = len(tensor.shape) == 1
    unit = tensor.format.row_bytes(1 if is_vector else tensor.columns)

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        raw = tensor.read(start, stop)
        return raw.reshape(-1, *grid, unit).swapaxes(1, 2).reshape(raw.shape)

    return replace(tensor, read=read, step=1 if is_vector else head_dim)


class Llama:
    """The architecture's description."""

    gguf_name = "llama"
    config_names = ("LlamaForCausalLM", "LLaMAForCausalLM")

    def weights(self, checkpoint: Checkpoint) -> list[Weight]:
        """Every tensor of the GGUF file: checked for shape, Q and K rows reordered, sorted as llama.cpp sorts."""
        hp = hyperparameters(checkpoint.config, checkpoint.path)
        weights = list(self._weights(checkpoint, hp))
        self._check_leftovers(checkpoint, hp)
        return sorted(weights, key=lambda weight: (weight.layer, weight.tensor.name.encode()))

    def _weights(self, checkpoint: Checkpoint, hp: Hyperparameters) -> Iterator[Weight]:
        for name, (source, role) in _OUTSIDE.items():
            if role == "output" and hp.tied and source not in checkpoint.tensors:
                continue
            yield Weight(checkpoint.tensor(source, _shape(name, hp)).renamed(name), role, -1)
        for layer in range(hp.n_layer):
            for name, (source, role) in _layer_names(hp).items():
                tensor = checkpoint.tensor(f"model.layers.{layer}.{source}", _shape(name, hp))
                if name.startswith(("attn_q.", "attn_k.")):
                    tensor = interleaved(tensor, hp.head_dim)
                yield Weight(tensor.renamed(f"blk.{layer}.{name}"), role, layer)
        # Last: the Q projection has shown by now that head_dim is a size to make something of.
        kind = hp.rope_scaling.get("rope_type")
        if kind == "llama3":
            yield Weight(_constant(_ROPE_FREQS, _factors(hp, checkpoint.path)), "norm", -1)
        elif kind == _EXPLICIT:
            yield Weight(checkpoint.tensor(_ROPE_FREQS, (hp.head_dim // 2,)), "norm", -1)

    def _check_leftovers(self, checkpoint: Checkpoint, hp: Hyperparameters) -> None:
        """A tensor that nothing reads would be dropped in silence: an error instead."""
        known = {source for source, _ in _OUTSIDE.values()}
        known |= {_ROPE_FREQS} if hp.rope_scaling.get("rope_type") == _EXPLICIT else set()
        known |= {f"model.layers.{i}.{source}" for i in range(hp.n_layer) for source, _ in _layer_names(hp).values()}
        left = sorted(name for name in checkpoint.tensors if name not in known and not _IGNORED.search(name))
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise CheckpointError(
                f"{checkpoint.path}: tensor {left[0]!r}{more} is not part of a Llama of this config",
                remedy=NOT_TOGETHER,
            )

    def metadata(self, checkpoint: Checkpoint) -> dict[str, Value]:
        """The hyperparameters under llama.cpp's keys."""
        hp = hyperparameters(checkpoint.config, checkpoint.path)
        fields = {
            "llama.block_count": u32(hp.n_layer),
            "llama.context_length": u32(hp.n_ctx),
            "llama.embedding_length": u32(hp.n_embd),
            "llama.feed_forward_length": u32(hp.n_ff),
            "llama.attention.head_count": u32(hp.n_head),
            "llama.attention.head_count_kv": u32(hp.n_head_kv),
        }
        if hp.rope_scaling.get("rope_type") == "linear":
            fields["llama.rope.scaling.type"] = string("linear")
            fields["llama.rope.scaling.factor"] = f32(hp.rope_scaling["factor"])
        return fields | {
            "llama.rope.freq_base": f32(hp.rope_theta),
            "llama.attention.layer_norm_rms_epsilon": f32(hp.norm_eps),
            "llama.attention.key_length": u32(hp.head_dim),
            "llama.attention.value_length": u32(hp.head_dim),
            "llama.vocab_size": u32(hp.n_vocab),
            "llama.rope.dimension_count": u32(hp.head_dim),
        }

    def recipe_model(self, checkpoint: Checkpoint) -> Model:
        """What a recipe's rules ask."""
        hp = hyperparameters(checkpoint.config, checkpoint.path)
        return Model(hp.n_layer, hp.n_head, hp.n_head_kv)

    def check_for_folder(self, checkpoint: Checkpoint) -> None:
        """CheckpointError unless the checkpoint is whole and config.json can express it."""
        hp = hyperparameters(checkpoint.config, checkpoint.path)
        self.weights(checkpoint)
        if hp.rope_scaling.get("rope_type") == _EXPLICIT:
            raise CheckpointError(
                f"{checkpoint.path}: tensor {_ROPE_FREQS!r}: no llama3 rope scaling reproduces its values",
                remedy="convert to GGUF, which keeps the tensor, or start from the original checkpoint",
            )

    def config_from_gguf(self, header: Header, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """A config.json's content from GGUF metadata; the scaling of rotary frequencies from their tensor."""
        names = tensors.keys()

        def number(key: str, default: int = 0) -> int:
            return header.get(f"llama.{key}", int, default)

        heads = number("attention.head_count")
        head_dim = number("attention.key_length", number("embedding_length") // max(heads, 1))
        theta = shortest(header.get("llama.rope.freq_base", float, 10000.0))
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": _n_vocab(header, tensors),
            "hidden_size": number("embedding_length"),
            "intermediate_size": number("feed_forward_length"),
            "num_hidden_layers": number("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": number("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "max_position_embeddings": number("context_length"),
            "rms_norm_eps": shortest(header.get("llama.attention.layer_norm_rms_epsilon", float, 1e-6)),
            "rope_theta": theta,
            "rope_scaling": _scaling_from_gguf(header, tensors.get(_ROPE_FREQS), head_dim, theta),
            "hidden_act": "silu",
            "tie_word_embeddings": "output.weight" not in names,
            "attention_bias": "blk.0.attn_q.bias" in names,
            "mlp_bias": "blk.0.ffn_up.bias" in names,
        }

    def tensors_from_gguf(
        self, tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: Path
    ) -> dict[str, Tensor]:
        """GGUF's tensors under Hugging Face's names, Q and K rows in halves again."""
        hp = hyperparameters(config, path)
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if name == _ROPE_FREQS:
                found |= {name: tensor} if hp.rope_scaling.get("rope_type") == _EXPLICIT else {}
                continue
            prefix, layer, rest = _split(name)
            source = (_layer_names(hp) if layer else _OUTSIDE).get(rest)
            if source is None:
                raise CheckpointError(
                    f"{path}: tensor {name!r} is not part of a Llama", remedy="start from the original checkpoint"
                )
            is_rotary = rest.startswith(("attn_q.", "attn_k."))
            full_name = prefix + source[0]
            found[full_name] = (halved(tensor, hp.head_dim) if is_rotary else tensor).renamed(full_name)
        return found


def _n_vocab(header: Header, tensors: Mapping[str, Tensor]) -> int:
    """Rows of the embedding; a vocabulary may be shorter, never longer."""
    n_tokens = len(header.fields["tokenizer.ggml.tokens"].data)
    embedding = tensors.get("token_embd.weight")
    rows = embedding.rows if embedding else n_tokens
    if n_tokens > rows:
        raise CheckpointError(
            f"{header.path}: {n_tokens:,} tokens but token_embd.weight has {rows:,} rows",
            remedy="the file is damaged: download or convert it again",
        )
    return rows


def _scaling_from_gguf(header: Header, freqs: Tensor | None, head_dim: int, theta: float) -> dict[str, Any] | None:
    """config.json's ``rope_scaling``, None if frequencies are as trained."""
    if freqs is not None:
        scaling = llama3_scaling(freqs.read(0, 1).view(np.float32)[0], head_dim, theta) if freqs.format is F32 else None
        if scaling is None:
            return {"rope_type": _EXPLICIT}
        return {key: value for key, value in scaling.items() if key != "original"} | {
            "original_max_position_embeddings": round(scaling["original"])
        }
    factor = header.get("llama.rope.scaling.factor", float, 0.0) or header.get("llama.rope.scale_linear", float, 0.0)
    kind = header.get("llama.rope.scaling.type", str, "linear")
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None
    return {"rope_type": kind, "factor": shortest(factor) or 1.0}


def _layer_names(hp: Hyperparameters) -> dict[str, tuple[str, str]]:
    """A layer's tensors under this config: biases only where it has them."""
    return {
        name: entry
        for name, entry in _LAYER.items()
        if not name.endswith(".bias") or (hp.attention_bias if name.startswith("attn") else hp.mlp_bias)
    }


def _shape(name: str, hp: Hyperparameters) -> tuple[int, ...]:
    q, kv = hp.n_head * hp.head_dim, hp.n_head_kv * hp.head_dim
    outputs, inputs = {
        "token_embd": (hp.n_vocab, hp.n_embd),
        "output": (hp.n_vocab, hp.n_embd),
        "attn_q": (q, hp.n_embd),
        "attn_k": (kv, hp.n_embd),
        "attn_v": (kv, hp.n_embd),
        "attn_output": (hp.n_embd, q),
        "ffn_gate": (hp.n_ff, hp.n_embd),
        "ffn_up": (hp.n_ff, hp.n_embd),
        "ffn_down": (hp.n_embd, hp.n_ff),
    }.get(name.rpartition(".")[0], (hp.n_embd, 0))
    return (outputs, inputs) if inputs and name.endswith(".weight") else (outputs,)


def _split(name: str) -> tuple[str, bool, str]:
    """``blk.3.attn_q.weight`` -> (``model.layers.3.``, True, ``attn_q.weight``)."""
    match = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    return (f"model.layers.{match[1]}.", True, match[2]) if match else ("", False, name)


def _constant(name: str, values: NDArray[np.float32]) -> Tensor:
    raw = values.view(np.uint8).reshape(1, -1)
    return Tensor(name, values.shape, F32, lambda start, stop: raw[start:stop])


LLAMA = Llama()
