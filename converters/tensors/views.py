"""How a tensor of a table lies in a Hugging Face folder and in GGUF, seen from the tower: a row for each output.

A view goes both ways: between a folder's tensors and the tower's (``load``, ``store``), and the tower's and GGUF's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from converters.checkpoint import Tensor
from converters.tensors.permuted import halved, interleaved
from converters.tensors.shifted import shifted
from converters.tensors.split import matrix
from converters.tensors.stacked import stacked
from converters.tensors.transposed import floats, transposed


class Sizes(Protocol):
    """What a view asks of the model."""

    @property
    def head_dim(self) -> int:
        """Values of a head."""


class Take(Protocol):
    """The tensors of a checkpoint, of which those that are taken are marked as used."""

    def __call__(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor ``name``, checked for its shape: CheckpointError."""

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""


class View(Protocol):
    """Names are those within a layer, with ``prefix`` before them."""

    def load(self, take: Take, prefix: str, name: str, shape: tuple[int, ...]) -> Tensor:
        """What a folder has, as the tower's tensor ``name`` of ``shape``."""

    def store(self, prefix: str, name: str, tensor: Tensor) -> Iterator[Tensor]:
        """The tower's tensor as a folder has it; parts of the same name stand side by side there."""

    def apart(self, prefix: str, name: str, tensor: Tensor) -> Iterator[Tensor]:
        """The same where each matrix is a linear layer of its own, experts' too, as programs that quantize have it."""

    def to_tower(self, tensor: Tensor) -> Tensor:
        """As it is computed with."""

    def to_gguf(self, tensor: Tensor, sizes: Sizes) -> Tensor:
        """As GGUF has it."""

    def from_gguf(self, tensor: Tensor, sizes: Sizes) -> Tensor:
        """The inverse of :meth:`to_gguf`."""


@dataclass(frozen=True, slots=True)
class Plain:
    """The same everywhere."""

    def load(self, take: Take, prefix: str, name: str, shape: tuple[int, ...]) -> Tensor:
        """Under its name."""
        return take(prefix + name, shape)

    def store(self, prefix: str, name: str, tensor: Tensor) -> Iterator[Tensor]:
        """Under its name."""
        yield tensor.renamed(prefix + name)

    def apart(self, prefix: str, name: str, tensor: Tensor) -> Iterator[Tensor]:
        """As a folder has it."""
        return self.store(prefix, name, tensor)

    def to_tower(self, tensor: Tensor) -> Tensor:
        """As it is."""
        return tensor

    def to_gguf(self, tensor: Tensor, _sizes: Sizes) -> Tensor:
        """As it is."""
        return tensor

    def from_gguf(self, tensor: Tensor, _sizes: Sizes) -> Tensor:
        """As it is."""
        return tensor


class Rotary(Plain):
    """Q and K, whose rows GGUF has in neighbouring pairs."""

    __slots__ = ()

    def to_gguf(self, tensor: Tensor, sizes: Sizes) -> Tensor:
        """From halves of a head to pairs."""
        return interleaved(tensor, sizes.head_dim)

    def from_gguf(self, tensor: Tensor, sizes: Sizes) -> Tensor:
        """From pairs to halves of a head."""
        return halved(tensor, sizes.head_dim)


class FromZero(Plain):
    """A norm whose weights Hugging Face stores less one, and GGUF as they multiply."""

    __slots__ = ()

    def to_tower(self, tensor: Tensor) -> Tensor:
        """As it multiplies."""
        return shifted(tensor, 1.0)

    def to_gguf(self, tensor: Tensor, _sizes: Sizes) -> Tensor:
        """As it multiplies."""
        return shifted(tensor, 1.0)

    def from_gguf(self, tensor: Tensor, _sizes: Sizes) -> Tensor:
        """Less one."""
        return shifted(tensor, -1.0)


@dataclass(frozen=True, slots=True)
class EachExpert(Plain):
    """A folder has a matrix for each expert, ``{}`` in ``pattern`` its number; all lie in one tensor elsewhere."""

    pattern: str

    def load(self, take: Take, prefix: str, name: str, shape: tuple[int, ...]) -> Tensor:
        """One above the other."""
        if take.has(prefix + name):
            return take(prefix + name, shape)
        parts = [take(prefix + self.pattern.format(expert), shape[1:]) for expert in range(shape[0])]
        return stacked(parts).renamed(prefix + name)

    def store(self, prefix: str, _name: str, tensor: Tensor) -> Iterator[Tensor]:
        """Taken apart."""
        for expert in range(tensor.shape[0]):
            yield matrix(tensor, expert).renamed(prefix + self.pattern.format(expert))


@dataclass(frozen=True, slots=True)
class Transposed(Plain):
    """Experts that multiply from the right in a folder's tensor ``source``; of its columns, one of ``parts``."""

    source: str
    part: int = 0
    parts: int = 1

    def load(self, take: Take, prefix: str, name: str, shape: tuple[int, ...]) -> Tensor:
        """A row for each output."""
        if take.has(prefix + name):
            return take(prefix + name, shape)
        n_expert, rows, columns = shape
        whole = take(prefix + self.source, (n_expert, columns, self.parts * rows))
        return transposed(whole, self.part * rows, (self.part + 1) * rows).renamed(prefix + name)

    def store(self, prefix: str, _name: str, tensor: Tensor) -> Iterator[Tensor]:
        """A row for each input, in floats: blocks can't be transposed."""
        yield transposed(floats(tensor)).renamed(prefix + self.source)

    def apart(self, prefix: str, name: str, tensor: Tensor) -> Iterator[Tensor]:
        """A matrix for each expert, whose number stands before the last word: ``experts.3.up_proj.weight``."""
        experts, kind, weight = name.rsplit(".", 2)
        for expert in range(tensor.shape[0]):
            yield matrix(tensor, expert).renamed(f"{prefix}{experts}.{expert}.{kind}.{weight}")


PLAIN, ROTARY, FROM_ZERO = Plain(), Rotary(), FromZero()
