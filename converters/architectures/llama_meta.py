"""Llama 1 to 3.3 as Meta publishes it: params.json and its names, in Hugging Face's terms.

Sources: github.com/meta-llama/llama and llama-models (``model.py``: what the fields mean), transformers'
``convert_llama_weights_to_hf.py`` (what they become in config.json). Meta writes down neither the context's length
nor the factor of the rotary scaling; both are derived here as that script does, with the model told apart by what it
holds rather than by an option.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from converters.architectures.llama_families import LLAMA3_TOKENS, Tokens
from converters.architectures.llama_meta_int4 import Int4Release
from converters.architectures.meta import EMBEDDING, OUTPUT
from converters.checkpoint import Tensor, config_fields
from converters.metadata.vocabulary import Vocabulary
from converters.tensors.permuted import halved
from edge_llama.files.json_fields import Fields

OUTSIDE = {EMBEDDING: "model.embed_tokens.weight", "norm.weight": "model.norm.weight", OUTPUT: "lm_head.weight"}
_LAYER = {
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attention.wq.weight": "self_attn.q_proj.weight",
    "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
}
_ELSEWHERE = {
    "moe_args": "a mixture of experts",
    "vision_args": "a model with vision",
    "vision_chunk_size": "a model with vision",
    "vision_num_cross_attention_layers": "a model with vision",
}


@dataclass(frozen=True, slots=True)
class MetaLlama:
    """params.json, checked; see :class:`~converters.architectures.meta.MetaFamily`."""

    name: ClassVar[str] = "Llama"
    tokens: ClassVar[Tokens] = LLAMA3_TOKENS
    has_sentencepiece: ClassVar[bool] = True
    ignored: ClassVar[re.Pattern[str]] = re.compile(r"(^|\.)rope\.freqs$")  # Llama 1 and 2: recomputed by every runtime
    remedy: ClassVar[str] = "give the folder of a text Llama in full precision, or its Hugging Face version"
    gate: ClassVar[str] = "layers.0.feed_forward.w1.weight"

    fields: Fields
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    n_vocab: int | None
    norm_eps: float
    rope_theta: float
    scaled_rope: bool
    release: Int4Release | None
    """How the weights are quantized, if they are."""

    @classmethod
    def read(cls, config: Mapping[str, Any], path: Path) -> "MetaLlama":
        """Check the content of ``path``/params.json; CheckpointError names the field."""
        nested = config.get("model")  # Llama 3.1 405B's
        fields = config_fields(nested if isinstance(nested, dict) else config, path, "params.json")
        for key, meaning in _ELSEWHERE.items():
            value = fields.content.get(key)
            if value and value != -1:
                raise fields.fail(key, f"is set: {meaning} can't be converted from Meta's format", cls.remedy)
        dim, n_heads = fields.size("dim"), fields.size("n_heads")
        n_kv_heads = fields.size("n_kv_heads", n_heads)
        if dim % n_heads or dim // n_heads % 2:
            raise fields.fail("n_heads", f"is {n_heads}, which does not divide dim {dim} into heads of even size")
        if n_heads % n_kv_heads:
            raise fields.fail("n_kv_heads", f"is {n_kv_heads}, which does not divide {n_heads} heads")
        return cls(
            fields=fields,
            dim=dim,
            n_layers=fields.size("n_layers"),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            n_vocab=None if fields.content.get("vocab_size", -1) == -1 else fields.size("vocab_size"),
            norm_eps=fields.real("norm_eps", 1e-5),
            rope_theta=fields.real("rope_theta", 10000.0),
            scaled_rope=fields.flag("use_scaled_rope"),
            release=Int4Release.read(fields, path),
        )

    @property
    def head_dim(self) -> int:
        """Values of a head."""
        return self.dim // self.n_heads

    @property
    def n_ff(self) -> int:
        """The feed-forward width, by the formula of Meta's ``FeedForward``."""
        width = int(2 * 4 * self.dim / 3)
        if self.fields.content.get("ffn_dim_multiplier") is not None:
            width = int(self.fields.real("ffn_dim_multiplier", 1.0) * width)
        multiple = self.fields.size("multiple_of", 256)
        return -(-width // multiple) * multiple

    @property
    def has_integers(self) -> bool:
        """Whether weights may be integers with scales beside them."""
        return self.release is not None

    def split(self, shard: Mapping[str, Tensor], where: Path) -> Mapping[str, Tensor]:
        """The shard as it is, or its weights dequantized."""
        return shard if self.release is None else self.release.plain(shard, where, self.n_ff)

    def is_known(self, name: str) -> bool:
        """Whether a Llama has a tensor of that name."""
        return _new_name(name) is not None

    def shape(self, name: str, n_vocab: int) -> tuple[int, ...]:
        """What a tensor's shape must be, all shards together."""
        q, kv = self.dim, self.n_kv_heads * self.head_dim
        return {
            EMBEDDING: (n_vocab, self.dim),
            OUTPUT: (n_vocab, self.dim),
            "attention.wq.weight": (q, self.dim),
            "attention.wk.weight": (kv, self.dim),
            "attention.wv.weight": (kv, self.dim),
            "attention.wo.weight": (self.dim, q),
            "feed_forward.w1.weight": (self.n_ff, self.dim),
            "feed_forward.w3.weight": (self.n_ff, self.dim),
            "feed_forward.w2.weight": (self.dim, self.n_ff),
        }.get(re.sub(r"^layers\.\d+\.", "", name), (self.dim,))

    def copies(self, name: str, shards: int) -> int:
        """In how many shards the same rows lie: K and V of fewer heads than shards (405B in 16 parts)."""
        is_kv = name.endswith((".attention.wk.weight", ".attention.wv.weight"))
        return max(shards // self.n_kv_heads, 1) if is_kv else 1

    def is_whole(self, _name: str, shape: tuple[int, ...]) -> bool:
        """Whether it is a norm."""
        return len(shape) == 1

    def hugging_face(self, merged: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors as Hugging Face has them: the rows of Q and K in halves."""
        found = {}
        for name, tensor in merged.items():
            new_name = _new_name(name) or name
            found[new_name] = (halved(tensor, self.head_dim) if _is_rotary(name) else tensor).renamed(new_name)
        return found

    def config(self, vocabulary: Vocabulary, *, tied: bool) -> dict[str, Any]:
        """config.json's content."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "vocab_size": len(vocabulary.tokens),
            "hidden_size": self.dim,
            "intermediate_size": self.n_ff,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self._context(_is_llama3(vocabulary)),
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": self._rope_scaling(tied or self.release is not None) if self.scaled_rope else None,
            "tie_word_embeddings": tied,
            "attention_bias": False,
            "mlp_bias": False,
        }

    def _context(self, is_llama3: bool) -> int:
        """Tokens of context that the model was trained for, which params.json doesn't say.

        By transformers' script; Llama 1 is told from Llama 2 by its eps, as llama.cpp's older script did.
        """
        if is_llama3:
            return 131072 if self.scaled_rope else 8192
        if self.rope_theta > 10000.0:
            return 16384  # Code Llama
        return 4096 if self.norm_eps == 1e-5 else 2048

    def _rope_scaling(self, is_small: bool) -> dict[str, Any]:
        """Llama 3.1's scaling. Its factor, where params.json has none, is 8, and 32 in Llama 3.2 1B and 3B.

        Meta's own code says 8 for all; the published config.json files say 32 for these two, and so do torchtune and
        every GGUF of them. They are the only Llamas whose output is the embedding, or that Meta quantized to int4 (3.2
        11B and 90B, with vision, have 8).
        """
        factor = 32.0 if is_small else 8.0
        return {
            "rope_type": "llama3",
            "factor": self.fields.real("rope_scaling_factor", factor),
            "low_freq_factor": 1.0,
            "high_freq_factor": self.fields.real("rope_high_freq_factor", 4.0),
            "original_max_position_embeddings": 8192,
        }

    def template(self, vocabulary: Vocabulary) -> str:
        """The chat template's name."""
        return ("llama3.1" if self.scaled_rope else "llama3") if _is_llama3(vocabulary) else "llama2"

    def notes(self, config: Mapping[str, Any], stored: Mapping[str, Tensor]) -> dict[str, str]:
        """What params.json left open, by topic."""
        found = self.release.notes(stored) if self.release else {}
        scaling = config["rope_scaling"]
        if scaling is None or self.fields.content.get("rope_scaling_factor") is not None:
            return found
        why = self.release.label if self.release else "since the output is the embedding"
        which = f"Llama 3.2, {why}" if scaling["factor"] == 32.0 else "Llama 3.1 and 3.3"
        return {**found, "rotary scaling": f"factor {scaling['factor']:g}, as in {which} (params.json doesn't say)"}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know before using what is made of it."""
        return self.release.warnings if self.release else ()


def _new_name(name: str) -> str | None:
    match = re.fullmatch(r"layers\.(0|[1-9]\d{0,5})\.(.+)", name)
    rest = _LAYER.get(match[2]) if match else None
    return f"model.layers.{match[1]}.{rest}" if match and rest else OUTSIDE.get(name)


def _is_rotary(name: str) -> bool:
    """Whether rows are in the order of Meta's rotary embedding: neighbours are a pair."""
    return name.endswith((".attention.wq.weight", ".attention.wk.weight"))


def _is_llama3(vocabulary: Vocabulary) -> bool:
    return vocabulary.merges is not None
