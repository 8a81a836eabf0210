"""A LoRA adapter in a GGUF file: what its header says, checked, and whether it fits a model. No native code.

llama.cpp ends the process where a value is of another type than it expects, and where the ranks or the number of
dimensions of two matrices disagree; it ignores norms in silence, and computes nonsense where embedding and head are one
matrix. All of that is refused here. Sources: ``llama-adapter.cpp``, ``llama-graph.cpp: build_lora_mm,
build_inp_embd`` in llama-cpp-python 0.3.36.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from edge_llama.errors import ArtifactError
from edge_llama.files.artifact import Artifact
from edge_llama.files.checkpoint_folder import ADAPTER
from edge_llama.files.formats import FORMATS
from edge_llama.files.gguf import DAMAGED, Header, TensorInfo, ValueType, read_header
from edge_llama.files.gguf_limits import GRAPHS
from edge_llama.files.gguf_metadata import type_of
from edge_llama.files.identity import identity_of

KIND = "adapter"
"""``general.type`` of such a file."""
TYPE_KEY, TYPE = "adapter.type", "lora"
ALPHA = "adapter.lora.alpha"
_INVOCATION = "adapter.alora.invocation_tokens"
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_MULTIPLIED = re.compile(
    r"(blk\.\d+\.(attn_(q|k|v|qkv|output)|ffn_(gate|up|down)(_shexp)?|ffn_gate_inp)|output|token_embd)\.weight"
)
"""The weights that llama.cpp's graphs multiply with an adapter beside them; on others it would be without effect."""
_FORMATS = {FORMATS[name] for name in ("f32", "f16", "bf16", "q8_0")}
"""What adapters are written in, here and by llama.cpp's converter."""
_MERGE = "merge it at conversion instead: edge-llama convert BASE OUTPUT --lora ADAPTER"
_ANOTHER = "is it an adapter for another model?"


class Pair(NamedTuple):
    """The two matrices beside a weight, shapes rows first.

    A ``(r, inputs)``, B ``(outputs, r)``; beside the embedding A is transposed: ``(tokens, r)``.
    """

    a: TensorInfo
    b: TensorInfo


@dataclass(frozen=True)
class AdapterFile:
    """An adapter's file, read and found sound."""

    path: Path
    architecture: str
    """Of the models that it is for: ``llama``."""
    alpha: float
    pairs: Mapping[str, Pair] = field(repr=False)
    """By the names of the weights that they stand beside."""
    header: Header = field(repr=False)

    @cached_property
    def identity(self) -> str:
        """Which adapter it is, wherever it lies: 64 hexadecimal digits."""
        return identity_of([(self.path, self.header.data_offset, self.header.tensors)])

    @property
    def nbytes(self) -> int:
        """Bytes of its matrices."""
        return sum(tensor.nbytes for tensor in self.header.tensors)


def is_adapter(path: Path) -> bool:
    """Whether the file at ``path`` is GGUF and says that it is an adapter. ArtifactError if its header is damaged."""
    return type_of(path) == KIND


def read_adapter(path: Path) -> AdapterFile:
    """Read and check the header at ``path``. ArtifactError names what is wrong, or what it is instead."""
    if path.is_dir():
        raise ArtifactError(f"{path}: is a folder, expected an adapter's .gguf file", remedy=_of_folder(path))
    header = read_header(path)
    _check_kind(header)
    alpha = header.fields.get(ALPHA)
    if alpha is None or alpha.type is not ValueType.FLOAT32 or not math.isfinite(alpha.data):
        told = "is missing" if alpha is None else f"is {alpha.data!r:.100}, expected a finite number of 32 bits"
        raise ArtifactError(f"{path}: {ALPHA} {told}", remedy=DAMAGED)
    if _INVOCATION in header.fields:
        raise ArtifactError(
            f"{path}: {_INVOCATION}: it is an adapter that begins to act at certain tokens (aLoRA)",
            remedy="such adapters are not run here: take a LoRA adapter",
        )
    return AdapterFile(path, header.architecture, float(alpha.data), _pairs(header), header)


def _of_folder(folder: Path) -> str:
    if (folder / ADAPTER).is_file():
        return f"convert it first: edge-llama convert {folder} OUTPUT.gguf --base BASE"
    return "give the file"


def _check_kind(header: Header) -> None:
    kind = header.get("general.type", str, "")
    if kind != KIND:
        raise ArtifactError(
            f"{header.path}: is no adapter: general.type is {kind[:100]!r}",
            remedy="convert the folder that peft saved: edge-llama convert ADAPTER OUTPUT.gguf --base BASE",
        )
    if (found := header.get(TYPE_KEY, str, "")) != TYPE:
        raise ArtifactError(f"{header.path}: {TYPE_KEY} is {found[:100]!r}", remedy=f"supported: {TYPE}")
    if not header.architecture:
        raise ArtifactError(f"{header.path}: general.architecture is missing", remedy=DAMAGED)
    if header.get("split.count", int, 0) > 1:
        raise ArtifactError(f"{header.path}: is a part of several files", remedy="convert the adapter to one file")


def _pairs(header: Header) -> dict[str, Pair]:
    """The matrices by what they stand beside: two each, of one rank, in formats that are multiplied."""
    halves: dict[str, dict[str, TensorInfo]] = {}
    for tensor in header.tensors:
        name, _, half = tensor.name.rpartition(".")
        if half not in ("lora_a", "lora_b"):
            raise _wrong(header, tensor.name, "is no matrix of an adapter: llama.cpp would leave it out", _MERGE)
        if not _MULTIPLIED.fullmatch(name):
            raise _wrong(header, tensor.name, "stands beside a weight that takes no adapter in llama.cpp", _MERGE)
        if len(tensor.shape) != 2:
            raise _wrong(header, tensor.name, f"has {len(tensor.shape)} dimensions, expected 2")
        if tensor.format not in _FORMATS:
            raise _wrong(header, tensor.name, f"is stored as {tensor.format}", "convert the adapter again")
        halves.setdefault(name, {})[half] = tensor
    if not halves:
        raise ArtifactError(f"{header.path}: holds no matrices", remedy=DAMAGED)
    return {name: _pair(header, name, found) for name, found in halves.items()}


def _pair(header: Header, name: str, found: Mapping[str, TensorInfo]) -> Pair:
    for half in ("lora_a", "lora_b"):
        if half not in found:
            raise _wrong(header, f"{name}.{half}", "is missing")
    a, b = found["lora_a"], found["lora_b"]
    rank = a.shape[1] if name == _EMBEDDING else a.shape[0]
    if rank != b.shape[1]:
        raise _wrong(header, b.name, f"has rank {b.shape[1]:,}, its other half {rank:,}")
    return Pair(a, b)


def _wrong(header: Header, name: str, problem: str, remedy: str = DAMAGED) -> ArtifactError:
    return ArtifactError(f"{header.path}: tensor {name!r:.200} {problem}", remedy=remedy)


def check_fits(adapter: AdapterFile, model: Artifact) -> None:
    """ArtifactError, which names both files, unless ``model`` is one that the adapter can stand beside."""
    if model.architecture != adapter.architecture:
        raise ArtifactError(
            f"{adapter.path}: an adapter for {adapter.architecture[:100]!r}, {model.path} is {model.architecture!r}",
            remedy=_ANOTHER,
        )
    if model.architecture not in GRAPHS:
        raise ArtifactError(
            f"{adapter.path}: adapters for {model.architecture!r} are not run here (they are for {', '.join(GRAPHS)})",
            remedy=_MERGE,
        )
    weights = {tensor.name: tensor for tensor in model.tensors}
    for name, pair in adapter.pairs.items():
        _check_beside(adapter, model, name, pair, weights)


def _check_beside(
    adapter: AdapterFile, model: Artifact, name: str, pair: Pair, weights: Mapping[str, TensorInfo]
) -> None:
    if name in (_EMBEDDING, _HEAD) and _HEAD not in weights:
        raise _wrong(
            adapter.header, pair.a.name, f"would change a matrix that is embedding and head of {model.path}", _MERGE
        )
    weight = weights.get(name)
    if weight is None:
        raise _wrong(adapter.header, pair.a.name, f"stands beside {name!r}, which {model.path} has not", _ANOTHER)
    if weight.format is FORMATS["nvfp4"]:
        told = f"stands beside a weight of {model.path} that is stored as {weight.format}, as none can"
        raise _wrong(adapter.header, pair.a.name, told, _MERGE)
    rank = pair.b.shape[1]
    outputs, inputs = weight.shape[::-1] if name == _EMBEDDING else weight.shape
    expected = ((inputs, rank) if name == _EMBEDDING else (rank, inputs), (outputs, rank))
    for tensor, shape in zip(pair, expected, strict=True):
        if tensor.shape != shape:
            raise _wrong(
                adapter.header,
                tensor.name,
                f"has shape {list(tensor.shape)}, rank {rank:,} and {model.path} imply {list(shape)}",
                _ANOTHER,
            )
