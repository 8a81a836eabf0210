"""The fields of a text tower's :class:`edge_llama.files.artifact.Artifact`, and what most kinds have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, ClassVar

from edge_llama.files.artifact import Recommended, Row
from edge_llama.files.formats import F16, Format
from edge_llama.files.gguf import TensorInfo
from edge_llama.files.shape import TextShape


@dataclass(frozen=True, slots=True, kw_only=True)
class TextArtifact(ABC):
    """See :class:`edge_llama.files.artifact.Artifact`, which says what each member is."""

    engine: ClassVar[str]

    path: Path
    name: str
    architecture: str
    chat_template: str | None
    n_layer: int
    n_ctx_train: int
    n_vocab: int
    kv_values_per_token: int
    sampling: tuple[Recommended, ...] = field(default=(), repr=False)
    named_templates: Mapping[str, str] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def kv_format(self) -> Format:
        """What the engine keeps keys and values in, unless told otherwise."""
        return F16

    @property
    @abstractmethod
    def form(self) -> str:
        """The kind of file, for people."""

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
    def n_weights(self) -> int | None:
        """How many numbers the tensors hold; None where several are packed into one."""
        return sum(prod(tensor.shape) for tensor in self.tensors)

    @property
    @abstractmethod
    def shape(self) -> TextShape:
        """What memory and speed depend on."""

    @property
    def takes_embeddings(self) -> bool:
        """Whether images can be given to it."""
        return True

    @property
    def takes_adapters(self) -> bool:
        """Whether its engine can compute with adapters beside its weights."""
        return False

    @property
    def is_encoder(self) -> bool:
        """Whether it embeds text and writes none."""
        return False

    @property
    def sees_whole_text(self) -> bool:
        """Whether every token sees every other, also those after it."""
        return False

    @property
    def gives_hidden_states(self) -> bool:
        """Whether texts can be embedded by it."""
        return False

    @property
    def pooling(self) -> str | None:
        """How the file wants hidden states pooled; None: it doesn't say."""
        return None

    @property
    def cache_depends_on_context(self) -> bool:
        """Whether the context's size changes what the KV cache holds."""
        return False

    @abstractmethod
    def identity(self) -> str:
        """Which model it is: 64 hexadecimal digits."""

    @abstractmethod
    def metadata(self) -> Mapping[str, Any]:
        """What the file says beside its tensors, as JSON has it."""

    @abstractmethod
    def rows(self) -> Sequence[Row]:
        """The same for people."""

    @abstractmethod
    def verify(self, on_progress: Callable[[int], None]) -> None:
        """Check every bit by hashes that the file carries."""
