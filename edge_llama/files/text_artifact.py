"""What is known of a text tower before a weight is read: what the kinds for each engine have in common."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from edge_llama.files.formats import F16, Format
from edge_llama.files.gguf import TensorInfo


@dataclass(frozen=True, slots=True)
class Recommended:
    """A sampling setting of the model's publisher: which option, what the file calls it, and the value, unchecked."""

    option: str
    called: str
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact(ABC):
    """A text tower whose files were read and found sound."""

    engine: ClassVar[str]
    """The engine that runs it, as a manifest names it."""
    kv_format: ClassVar[Format] = F16
    """What the engine keeps keys and values in, unless told otherwise."""

    path: Path
    """The file that the engine opens."""
    name: str
    architecture: str
    chat_template: str | None
    n_layer: int
    n_ctx_train: int
    n_vocab: int
    kv_values_per_token: int
    """Numbers that the KV cache holds per token, over all layers, keys and values."""
    sampling: tuple[Recommended, ...] = field(default=(), repr=False)

    @property
    @abstractmethod
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The weights."""

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """The files that hold the weights, the one that the engine opens first."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors' data."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def takes_embeddings(self) -> bool:
        """Whether images can be given to it."""
        return True

    @property
    def cache_depends_on_context(self) -> bool:
        """Whether the context's size changes what the KV cache holds: some models then turn keys by other angles."""
        return False

    @abstractmethod
    def identity(self) -> str:
        """Which model it is, to tell it from others of the same shape: 64 hexadecimal digits.

        ArtifactError if a file can't be read.
        """
