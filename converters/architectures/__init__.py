"""Model architectures: one file each, used by every source and target."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from converters.architectures.family import Family, Place, ServingTensors, Weight
from converters.architectures.gemma3 import GEMMA3
from converters.architectures.hyperparameters import Hyperparameters
from converters.architectures.llama import LLAMA
from converters.architectures.llama4 import LLAMA4
from converters.architectures.llama4_meta import MetaLlama4, is_llama4
from converters.architectures.llama_meta import MetaLlama
from converters.architectures.meta import MetaFamily
from converters.architectures.mistral import MISTRAL
from converters.architectures.mixtral import MIXTRAL
from converters.architectures.notes import notes
from converters.architectures.qwen2 import QWEN2
from converters.architectures.qwen3 import QWEN3
from converters.architectures.smollm3 import SMOLLM3
from converters.checkpoint import Checkpoint, Tensor
from edge_llama.errors import CheckpointError
from edge_llama.files.gguf import Header, Value
from quant.recipe import Model

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "MetaFamily",
    "Place",
    "ServingTensors",
    "Weight",
    "for_config",
    "for_gguf",
    "for_meta",
    "named_by",
    "notes",
]


class Architecture(Protocol):
    """What is particular to a family: names and roles, row order, hyperparameters."""

    @property
    def name(self) -> str:
        """By which graphs and other things of a family are found."""

    @property
    def gguf_name(self) -> str:
        """``general.architecture``."""

    @property
    def config_names(self) -> tuple[str, ...]:
        """Entries of ``architectures`` in config.json."""

    @property
    def tells_space_prefix(self) -> bool:
        """Whether metadata of a byte-level vocabulary has ``add_space_prefix``, which is without effect there."""

    @property
    def called(self) -> str:
        """As errors call it."""

    @property
    def kept_modules(self) -> tuple[str, ...]:
        """Regular expressions of linear layers' names that :meth:`serving_tensors` doesn't have as such."""

    @property
    def overflows_float16(self) -> bool:
        """Whether activations are too large for float16."""

    def claims(self, header: Header) -> bool:
        """Whether a GGUF file is of this family."""

    def hyperparameters(self, checkpoint: Checkpoint) -> Hyperparameters:
        """What config.json says, checked; CheckpointError names a field that is missing, wrong or not understood."""

    def weights(self, checkpoint: Checkpoint) -> list[Weight]:
        """Every tensor of the GGUF file, checked for shape, in llama.cpp's order of rows. Reads nothing."""

    def metadata(self, checkpoint: Checkpoint) -> dict[str, Value]:
        """The hyperparameters under GGUF's keys."""

    def recipe_model(self, checkpoint: Checkpoint) -> Model:
        """What a recipe's rules ask."""

    def tower_tensors(self, checkpoint: Checkpoint) -> Mapping[str, Tensor]:
        """The text tower's tensors under Hugging Face's names, checked for shape, a row for each output.

        Experts' gates, ups and downs apart, norms as they multiply; ``rope_freqs.weight`` where only it tells how
        rotary embedding is scaled.
        """

    def folder_tensors(self, checkpoint: Checkpoint) -> Mapping[str, Tensor]:
        """A Hugging Face folder's tensors; CheckpointError if the checkpoint isn't whole or no folder expresses it."""

    def serving_tensors(self, checkpoint: Checkpoint) -> ServingTensors:
        """The same for programs that quantize linear layers, which these are apart; CheckpointError likewise."""

    def places_in(self, checkpoint: Checkpoint) -> Mapping[str, Place]:
        """The rows of the table of tensors by the names that the checkpoint has for them."""

    def config_from_gguf(self, header: Header, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """A config.json's content from GGUF metadata, and from tensors that hold settings."""

    def tensors_from_gguf(
        self, tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: Path
    ) -> dict[str, Tensor]:
        """GGUF's tensors under Hugging Face's names and in its order of rows."""


ARCHITECTURES: tuple[Family, ...] = (LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, SMOLLM3, GEMMA3, LLAMA4)


def for_config(checkpoint: Checkpoint) -> Architecture:
    """The architecture that the checkpoint's config names; CheckpointError lists those supported."""
    return named_by(checkpoint.config, checkpoint.path)


def named_by(config: Mapping[str, Any], path: Path) -> Family:
    """The architecture that a config.json's content names; ``path`` is what an error is about."""
    named = config.get("architectures") or [None]
    for architecture in ARCHITECTURES:
        if isinstance(named, list) and named[0] in architecture.config_names:
            return architecture
    supported = ", ".join(name for architecture in ARCHITECTURES for name in architecture.config_names)
    raise CheckpointError(f"{path}: architecture {named!r:.100} is not supported", remedy=f"supported: {supported}")


def for_gguf(header: Header) -> Architecture:
    """The architecture of a GGUF source."""
    for architecture in ARCHITECTURES:
        if architecture.claims(header):
            return architecture
    supported = ", ".join(dict.fromkeys(architecture.gguf_name for architecture in ARCHITECTURES))
    raise CheckpointError(
        f"{header.path}: architecture {header.architecture!r} can't be converted", remedy=f"supported: {supported}"
    )


def for_meta(params: Mapping[str, Any], folder: Path) -> MetaFamily:
    """The family of a Meta folder whose params.json holds ``params``, which are checked: CheckpointError."""
    return MetaLlama4.read(params, folder) if is_llama4(params) else MetaLlama.read(params, folder)
