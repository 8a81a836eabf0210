"""What a config.json says of a text tower, checked, in one form for every family."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding: its base, and how frequencies are scaled; ``scaling`` is empty if they are not.

    ``scaling`` has ``rope_type`` and that type's numbers (:mod:`converters.architectures.rope`).
    """

    theta: float
    scaling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """``rope_type``."""
        return str(self.scaling.get("rope_type", "default"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameters:
    """A config, checked, with today's and older spellings unified and transformers' defaults filled in.

    Sizes and ``norm_eps`` are those of every family; what follows them is as in Llama unless a family says otherwise.
    """

    n_vocab: int
    n_ctx: int
    n_embd: int
    n_ff: int
    """Width of the feed-forward layers; of an expert, where there are experts."""
    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    norm_eps: float
    rope: Rope
    tied: bool
    """Whether the embedding serves as output matrix: config.json says so, and there is no other."""

    attention_bias: bool = False
    mlp_bias: bool = False
    activation: str = "silu"
    qk_norm: bool = False
    """Whether each head of Q and K has an RMS norm with weights before its positions are put in."""
    post_norms: bool = False
    """Whether attention and feed-forward are followed by norms of their own."""
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    """By what the products of Q and K are multiplied; None: one over the root of ``head_dim``."""
    final_softcap: float | None = None
    """Logits are bent by tanh so that none is larger."""
    window: int | None = None
    """Positions that a query sees back from itself, itself included, in layers of ``window_layers``."""
    window_layers: tuple[bool, ...] = ()
    """By layer, whether its attention is that of a sliding window; empty: none is."""
    window_rope: Rope | None = None
    """Rotary embedding of these layers, if it is another."""
    rope_layers: tuple[bool, ...] = ()
    """By layer, whether positions are rotary there; empty: everywhere."""

    n_expert: int = 0
    n_expert_used: int = 0
    n_ff_dense: int = 0
    """Llama 4: width of layers without experts."""
    moe_layers: tuple[int, ...] = ()
    moe_step: int = 1
    """Llama 4: every so many layers have experts, if ``moe_layers`` are even."""
    layer_types: tuple[str, ...] = ()
    use_qk_norm: bool = False
    """Llama 4: whether heads of Q and K are normed, without weights, after their positions are in."""
    chunk_size: int | None = None
    has_temperature: bool = False
    floor_scale: float = 0.0
    attn_scale: float = 0.0

    @property
    def q(self) -> int:
        """Values of all query heads."""
        return self.n_head * self.head_dim

    @property
    def kv(self) -> int:
        """Values of all key heads."""
        return self.n_head_kv * self.head_dim

    def has_rope(self, layer: int) -> bool:
        """Whether positions are rotary in ``layer``."""
        return not self.rope_layers or self.rope_layers[layer]

    def has_window(self, layer: int) -> bool:
        """Whether attention in ``layer`` is that of a sliding window."""
        return bool(self.window_layers) and self.window_layers[layer]

    def has_experts(self, layer: int) -> bool:
        """Whether the feed-forward part of ``layer`` is a mixture of experts."""
        return layer in self.moe_layers
