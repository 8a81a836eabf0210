"""Which adapters a model is opened with, and which of them an answer asks for."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_llama.backends.adapters import AdaptedTower, AdapterSet, AdapterUse
from edge_llama.backends.base import TextTower
from edge_llama.errors import OptionError
from edge_llama.files.artifact import Artifact
from edge_llama.files.gguf_adapter import AdapterFile, check_fits, read_adapter
from edge_llama.planning.options import OpenOptions

_LARGEST = 1e6
"""Of a weight: with more there is nothing left of the model."""
Adapters = Mapping[str, AdapterFile]
"""Those that a model was opened with, by the names that answers use."""
AskedAdapters = Sequence[str] | Mapping[str, float]
"""The adapters of an answer: names, each with its whole weight, or weights by name."""


def adapters_of(artifact: Artifact, options: OpenOptions) -> Adapters:
    """The adapters that ``artifact`` shall be opened with, read and checked; none of their weights is loaded.

    OptionError for a model whose engine takes none, ArtifactError for a file that is none or is another model's.
    """
    given = options.get("adapters")
    if not given:
        return {}
    if not artifact.takes_adapters:
        told = "embeds text" if artifact.is_encoder else f"is run by {artifact.engine}"
        raise OptionError(
            f"adapters: {artifact.path} {told}, which takes none",
            remedy="merge it at conversion: edge-llama convert BASE OUTPUT --lora ADAPTER",
        )
    assert isinstance(given, Mapping)  # noqa: S101 - as checked
    found = {name: read_adapter(Path(os.fspath(path))) for name, path in given.items()}
    for adapter in found.values():
        check_fits(adapter, artifact)
    return found


def nbytes_of(adapters: Adapters) -> int:
    """Bytes of memory that they take."""
    return sum(adapter.nbytes for adapter in adapters.values())


def add_to(tower: TextTower, adapters: Adapters) -> None:
    """Load them beside the tower's weights, each once. ArtifactError if the engine refuses one."""
    if not adapters:
        return
    if not isinstance(tower, AdaptedTower):
        raise OptionError("adapters: this model's engine takes none", remedy="leave them out")
    tower.add_adapters({adapter.identity: adapter for adapter in adapters.values()}.values())


def chosen(asked: object, adapters: Adapters, *, is_deterministic: bool = False) -> AdapterSet:
    """What an answer is computed with; None: the model alone.

    OptionError for a name that is not among ``adapters``, a weight that is no number, and for several at once where
    answers must be ``is_deterministic``: llama.cpp adds them in an order that is not the same in every process.
    """
    weights: dict[str, float] = {}
    for name, weight in _pairs(asked):
        if not isinstance(name, str) or name not in adapters:
            raise OptionError(f"adapters: {name!r:.100} is none of this model's", remedy=_known(adapters))
        identity = adapters[name].identity
        weights[identity] = weights.get(identity, 0.0) + _weight(name, weight)
    found = tuple(AdapterUse(identity, weight) for identity, weight in sorted(weights.items()) if weight)
    if is_deterministic and len(found) > 1:
        raise OptionError(
            f"adapters: {len(found)} at once, but the model was opened with deterministic=True: in which order their "
            "sums are rounded is not the same in every process",
            remedy="take one, or open the model without deterministic",
        )
    return found


def _pairs(asked: object) -> Iterable[tuple[Any, Any]]:
    if asked is None:
        return ()
    if isinstance(asked, Mapping):
        return asked.items()
    if isinstance(asked, Sequence) and not isinstance(asked, str | bytes):
        return [(name, 1.0) for name in dict.fromkeys(asked)]
    raise OptionError(
        f"adapters is {asked!r:.100}, expected names or weights by name", remedy='for example {"legal": 0.5}'
    )


def _weight(name: str, weight: object) -> float:
    """As the engine computes with it: a float32."""
    if isinstance(weight, int | float) and not isinstance(weight, bool) and abs(weight) <= _LARGEST:
        return float(np.float32(weight))
    raise OptionError(f"adapters: the weight of {name!r:.100} is {weight!r:.100}, expected a number")


def _known(adapters: Adapters) -> str:
    if not adapters:
        return 'it was opened without any: edge_llama.open(..., adapters={"name": "adapter.gguf"}) (--adapter)'
    return f"known: {', '.join(adapters)}"
