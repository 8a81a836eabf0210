"""What memory and speed of a text tower depend on: read from a file's header, or planned from a config.json alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

from edge_llama.files.formats import Format


class Stored(Protocol):
    """A tensor as it is stored, wherever."""

    @property
    def name(self) -> str:
        """As its file names it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first, columns last."""

    @property
    def format(self) -> Format:
        """How its numbers are stored."""

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor that no file holds yet."""

    name: str
    shape: tuple[int, ...]
    format: Format

    @property
    def nbytes(self) -> int:
        """Bytes of its data, padding excluded."""
        return prod(self.shape[:-1]) * self.format.row_bytes(self.shape[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class TextShape:
    """A text tower without its weights."""

    name: str
    engine: str
    """The engine that runs it, as a manifest names it."""
    tensors: Sequence[Stored] = field(repr=False)
    weight_bytes: int
    """What the engine reads: of ONNX whole files, of which two tensors may share a part."""
    n_layer: int
    n_ctx_train: int
    n_embd: int
    n_head: int
    """Query heads of the layer that has the most."""
    n_head_kv: int
    """Key heads of that layer."""
    head_dim: int
    n_ff: int
    """Width of the widest feed-forward part, all experts of a token together."""
    n_vocab: int
    kv_values_per_token: int
    """Numbers that the KV cache holds per token, over all layers, keys and values."""
    n_merges: int = 0
    """Pairs that a byte-level vocabulary joins: they take more memory than its tokens."""
    n_expert: int = 0
    n_expert_used: int = 0
    has_windows: bool = False
    """Whether some layers see a part of the context alone, a window or a chunk: they have a mask of their own."""
    has_output: bool = True
    """Whether the output matrix is another than the embeddings'."""

    @property
    def active_bytes(self) -> int:
        """Bytes of weights that one token is multiplied by: of experts those that it is sent to."""
        return sum(self.active(tensor) for tensor in self.tensors)

    @property
    def embedding_bytes(self) -> int:
        """Bytes of the table of embeddings, where it is not the output matrix, too."""
        if not self.has_output:
            return 0
        return sum(tensor.nbytes for tensor in self.tensors if is_embedding(tensor.name))

    @property
    def active_weights(self) -> int:
        """How many weights one token is multiplied by."""
        return sum(
            self.active(tensor) * tensor.format.block_size // tensor.format.block_bytes for tensor in self.tensors
        )

    def active(self, tensor: Stored) -> int:
        """Bytes of ``tensor`` that one token is multiplied by: of embeddings a row, which counts as none."""
        if is_embedding(tensor.name) and self.has_output:
            return 0
        if self.n_expert and is_expert(tensor.name):
            return tensor.nbytes * self.n_expert_used // self.n_expert
        return tensor.nbytes


def is_embedding(name: str) -> bool:
    """Whether a tensor of this name, GGUF's or Hugging Face's, is the table of embeddings."""
    return name.startswith(("token_embd.", "model.embed_tokens."))


def is_expert(name: str) -> bool:
    """Whether a tensor of this name is that of a layer's routed experts, all in one or one of many."""
    return "_exps." in name or ".experts." in name


def nearest_multiple(number: int, step: int) -> int:
    """``number`` rounded up to a multiple of ``step``."""
    return -(-number // step) * step
