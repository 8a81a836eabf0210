"""Adapters beside a text tower's weights: which an answer uses, and what a tower that takes some can do."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from edge_llama.files.gguf_adapter import AdapterFile


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """An adapter by its identity (:attr:`AdapterFile.identity`), and how much of it: a float32, 1 is all."""

    identity: str
    weight: float


AdapterSet = tuple[AdapterUse, ...]
"""What is computed with together: each adapter once, by identity, none of weight 0. Empty: the model alone.

What was prefilled with one set is of no use to another, so all that keeps such is asked for by it.
"""


@runtime_checkable
class AdaptedTower(Protocol):
    """A text tower that takes adapters. Used by the thread that owns it."""

    def add_adapters(self, adapters: Iterable[AdapterFile]) -> None:
        """Load the adapters, which fit. ArtifactError if the engine refuses one."""

    def use_adapters(self, adapters: AdapterSet) -> None:
        """Compute with these, which were added, from the next ``decode`` on."""


def set_to_json(adapters: AdapterSet) -> list[list[Any]]:
    """The inverse of :func:`set_from_json`."""
    return [[use.identity, use.weight] for use in adapters]


def set_from_json(data: Sequence[Sequence[Any]]) -> AdapterSet:
    """What :func:`set_to_json` gave. ValueError or TypeError for anything else."""
    return tuple(AdapterUse(str(identity), float(weight)) for identity, weight in data)
