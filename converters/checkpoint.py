"""A checkpoint: full-precision weights as published. Nothing is read until asked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from converters.metadata.provenance import Provenance
from converters.metadata.vocabulary import Vocabulary
from edge_llama.errors import UNREADABLE, CheckpointError
from edge_llama.files.formats import Format
from edge_llama.files.gguf import Value
from edge_llama.files.json_fields import Fields, parse_object
from edge_llama.host.regular_files import content_of

TEMPLATE_NOTE = "chat template"
"""The topic of a checkpoint's note on where its chat template is from."""
NOT_TOGETHER = "config.json and the weights don't belong together: download both again"


@runtime_checkable
class Striped(Protocol):
    """A way to read rows that can also read a part of each, without reading the rest."""

    def __call__(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows ``start`` to ``stop``."""

    def stripe(self, start: int, stop: int, first: int, last: int) -> NDArray[np.uint8]:
        """Bytes ``first`` to ``last`` of these rows."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a file has numbers, and how many bytes of it they are."""

    path: Path
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor that is read in slices of rows.

    ``read(start, stop)`` gives rows as bytes, uint8 ``(stop - start, row_bytes)``, of the tensor seen as
    ``(prod(shape[:-1]), shape[-1])``. Both bounds must be multiples of ``step`` (or the end). Any thread may call it.
    ``stored``: all that is read of files for it, whatever it has become since; nothing if it is computed.
    ``requantized``: how quantized numbers are quantized again on the way, ``q8_0 to int8``; empty: they are not.
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    read: Callable[[int, int], NDArray[np.uint8]] = field(repr=False)
    step: int = 1
    stored: frozenset[Stored] = frozenset()
    requantized: str = ""

    @property
    def rows(self) -> int:
        """Number of rows; 1 for a vector."""
        return prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """Values in a row."""
        return self.shape[-1]

    @property
    def nbytes(self) -> int:
        """Bytes of all its rows."""
        return self.rows * self.format.row_bytes(self.columns)

    def stripe(self, start: int, stop: int, first: int, last: int) -> NDArray[np.uint8]:
        """Bytes ``first`` to ``last`` of rows ``start`` to ``stop``; the rest is not read where that can be avoided."""
        if isinstance(self.read, Striped):
            return self.read.stripe(start, stop, first, last)
        return self.read(start, stop)[:, first:last]

    def reading(self, *others: "Tensor") -> "Tensor":
        """The same tensor, for whose rows ``others`` are read too."""
        return replace(self, stored=self.stored.union(*(other.stored for other in others)))

    def renamed(self, name: str) -> "Tensor":
        """The same tensor under another name."""
        return replace(self, name=name)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What every source gives, in Hugging Face's terms: config.json's content, tensors by name, a vocabulary.

    ``files`` are all that it is read from, also those that would be if they were there. ``generation`` is
    generation_config.json's content, empty if there is none. ``notes`` tell by topic what the source
    left open and what was chosen: for the conversion's report. ``metadata`` is a GGUF source's own, which a GGUF output
    keeps; empty for other sources.
    """

    path: Path
    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    vocabulary: Vocabulary
    generation: Mapping[str, Any]
    files: tuple[Path, ...]
    notes: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Value] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    provenance: Provenance = field(default_factory=Provenance)

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor ``name``, which must have ``shape``."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{self.path}: tensor {name!r} is missing", remedy="the download may be incomplete")
        if tensor.shape != shape:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} has shape {list(tensor.shape)}, config.json implies {list(shape)}",
                remedy=NOT_TOGETHER,
            )
        return tensor


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What config.json says of the text tower: all of it, or the object ``text_config`` and what stands beside it."""
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def config_fields(config: Mapping[str, Any], path: Path, file: str = "config.json") -> Fields:
    """The content of a checkpoint's ``file``: an error is a CheckpointError that names checkpoint and file too."""
    return Fields(f"{path}: {file}", config, "correct it, or download the file again", error=CheckpointError)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; CheckpointError names the file and the place."""
    try:
        raw = content_of(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}", remedy=UNREADABLE) from error
    return parse_object(path, raw, "download it again", error=CheckpointError, is_strict=False)
