"""A checkpoint: full-precision weights as published. Nothing is read until asked."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.vocabulary import Vocabulary
from edge_llama.errors import CheckpointError
from edge_llama.formats import Format
from edge_llama.gguf import Value


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor that is read in slices of rows.

    ``read(start, stop)`` gives rows as bytes, uint8 ``(stop - start, row_bytes)``, of the tensor seen as
    ``(prod(shape[:-1]), shape[-1])``. Both bounds must be multiples of ``step`` (or the end). Any thread may call it.
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    read: Callable[[int, int], NDArray[np.uint8]] = field(repr=False)
    step: int = 1

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
        """Bytes as stored in the source."""
        return self.rows * self.format.row_bytes(self.columns)

    def renamed(self, name: str) -> "Tensor":
        """The same tensor under another name."""
        return replace(self, name=name)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What every source gives, in Hugging Face's terms: config.json's content, tensors by name, a vocabulary.

    ``generation`` is generation_config.json's content, empty if there is none. ``metadata`` is a GGUF source's own,
    which a GGUF output keeps; empty for other sources.
    """

    path: Path
    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    vocabulary: Vocabulary
    generation: Mapping[str, Any]
    metadata: Mapping[str, Value] = field(default_factory=dict)

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor ``name``, which must have ``shape``."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{self.path}: tensor {name!r} is missing", remedy="the download may be incomplete")
        if tensor.shape != shape:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} has shape {list(tensor.shape)}, config.json implies {list(shape)}"
            )
        return tensor


def shortest(number: float) -> float:
    """The decimal that a float32 was written from: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(number)))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; CheckpointError names the file and the place."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}", remedy="download it again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data
