"""What a target is, and what a bundle asks of the kinds of files that a tower may become."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from converters.checkpoint import Checkpoint
from converters.layout import Layout, Part
from converters.options import Options


class Sized(Protocol):
    """What can tell in advance how large it makes a checkpoint."""

    def sizes(self, checkpoint: Checkpoint) -> Mapping[str, int]:
        """Bytes of what is written, by what the weights may be stored in and without other options.

        CheckpointError if the checkpoint is not whole or can't be expressed.
        """


class Target(Protocol):
    """What a conversion writes, a file or a folder: it owns and checks its options."""

    def chosen(self, options: Options, towers: Collection[str]) -> Options:
        """``options`` with what they leave open, for the ``towers`` (text, vision) that are written.

        OptionError for what doesn't fit, or would be without effect.
        """

    def lay_out(self, checkpoint: Checkpoint, name: str, options: Options) -> Layout:
        """The whole output, called ``name``, from ``options`` that :meth:`chosen` gave. No weight is read.

        CheckpointError if the checkpoint is not whole, OptionError if ``options`` don't fit it.
        """


class FolderTarget(Target, Sized, Protocol):
    """A target that writes all of a checkpoint into a folder, whatever that is called."""

    @property
    def own_options(self) -> Collection[str]:
        """The fields of :class:`Options` that no other target heeds."""


@dataclass(frozen=True, slots=True)
class TowerFiles:
    """A tower's files: ``parts``, of which its engine opens the first, and small ``files`` beside them, by name."""

    parts: tuple[Part, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(part.nbytes for part in self.parts) + sum(map(len, self.files.values()))


class TowerWriter(Sized, Protocol):
    """How one tower is stored, for one engine."""

    @property
    def label(self) -> str:
        """What errors call it."""

    @property
    def engine(self) -> str:
        """The engine that runs it, as a manifest names it."""

    @property
    def quants(self) -> tuple[str, ...]:
        """What the weights may be stored in: recipes or formats."""

    @property
    def default_quant(self) -> str:
        """The one that is taken if none is asked for."""

    @property
    def options(self) -> Collection[str]:
        """The fields of :class:`Options` that it heeds."""

    def check(self, options: Options) -> None:
        """OptionError for options that don't go together."""

    def files(self, checkpoint: Checkpoint, options: Options) -> TowerFiles:
        """The tower's files in a folder. CheckpointError and OptionError as :meth:`Target.lay_out`."""
