"""Meta's own quantized releases of Llama 3.2 (SpinQuant and QLoRA, "INT4_EO8"), as full-precision tensors.

Sources: llama-models ``models/llama3/args.py`` and ``models/llama3/quantization/loader.py`` (what the fields and the
tensors mean: torchao's ``Int8DynActInt4WeightLinear``), llama-stack ``quantization/hadamard_utils.py`` and executorch
``examples/models/llama/source_transformation`` (the online Hadamard transform before ``w2``).

- Linear layers are integers from -8 to 7, one in a byte, with ``scales`` for groups of columns (and ``zeros``, where
  they are not 0); the embedding and the output are int8 with a scale for each row.
- SpinQuant: the rotations R1 and R2 are in the weights. R4 is computed online: ``w2(H x)`` with a Hadamard matrix over
  the whole width, which equals ``(w2 H) x``: it is folded into the rows of ``w2``, exact but for float32's rounding.
  R3 turns queries and keys alike and changes no score; only a quantized KV cache needs it.
- QLoRA: ``adaptor.A`` and ``adaptor.B`` beside each linear layer are merged: ``W + scale * B A``.

The releases also round activations to 8 bits while they run; no weight tells of that, and no target does it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import Tensor
from converters.tensors.integers import changed, column, dequantized, floats, hadamard
from edge_llama.errors import CheckpointError
from edge_llama.files.formats import F32, FORMATS
from edge_llama.files.json_fields import Fields

I8 = FORMATS["i8"]
_SCHEME = "int4_weight_int8_dynamic_activation"
_REMEDY = "download it again, or give the release in full precision"
_SCALES = (".scales", ".zeros")
_PARTS = (*_SCALES, ".adaptor.A.weight", ".adaptor.B.weight")
_W2 = ".feed_forward.w2.weight"
_NEAR = 4  # folders of a path: NAME/original, or models--OWNER--NAME/snapshots/HASH/original


@dataclass(frozen=True, slots=True)
class Int4Release:
    """``quantization_args`` and ``lora_args`` of params.json, checked; ``rank`` is None without an adapter inside."""

    fields: Fields
    group: int
    is_spinquant: bool
    is_said: bool
    """Whether params.json says so, and not the folder's name."""
    rank: int | None
    scale: float

    @classmethod
    def read(cls, params: Fields, folder: Path) -> "Int4Release | None":
        """What ``params``, those of ``folder``, say of quantization; None if nothing. CheckpointError names the field.

        Meta's list of its models has no ``spinquant`` for its SpinQuant releases: then their folder's name tells.
        """
        if params.content.get("quantization_args") is None:
            if params.content.get("lora_args"):
                raise params.fail("lora_args", "is set, quantization_args is not", _REMEDY)
            return None
        fields, lora = params.within("quantization_args"), params.within("lora_args")
        if (scheme := fields.get("scheme", str, _SCHEME)) != _SCHEME:
            raise fields.fail("scheme", f"is {scheme!r:.100}", f"supported: {_SCHEME}")
        is_lora, is_said = bool(lora.content), fields.content.get("spinquant") is not None
        is_named = any("spinquant" in part.lower() for part in folder.absolute().parts[-_NEAR:])
        if not (is_said or is_lora or is_named):
            raise fields.fail(
                "spinquant",
                "is missing: nothing says whether a Hadamard transform belongs before w2",
                "set it to true for Meta's SpinQuant release, else to false",
            )
        return cls(
            params,
            fields.size("group_size"),
            fields.flag("spinquant") if is_said else is_named and not is_lora,
            is_said,
            lora.size("rank") if is_lora else None,
            lora.real("scale", 1.0) if is_lora else 0.0,
        )

    @property
    def label(self) -> str:
        """What the release is called."""
        kind = "SpinQuant" if self.is_spinquant else "QLoRA" if self.rank else "int4"
        return f"Meta's {kind} release"

    def plain(self, shard: Mapping[str, Tensor], where: Path, n_ff: int) -> dict[str, Tensor]:
        """The only shard's tensors as a Llama in full precision has them. CheckpointError names the tensor."""
        first = shard.get(f"layers.0{_W2}")
        if first is not None and first.columns != n_ff:
            raise CheckpointError(
                f"{where}: tensor {first.name!r} has {first.columns:,} columns, {self.label} of this width {n_ff:,}",
                remedy="quantized releases in several shards are not read: give the release in full precision",
            )
        found = {name: self._whole(name, tensor, shard, where) for name, tensor in shard.items() if not _is_part(name)}
        for name in filter(_is_part, shard):
            weight = shard.get(_weight_of(name))
            if weight is None or (weight.format is not I8 and name.endswith(_SCALES)):
                raise _bad(where, name, f"belongs to {_weight_of(name)!r}, which is not there as int8")
        return found

    def _whole(self, name: str, tensor: Tensor, shard: Mapping[str, Tensor], where: Path) -> Tensor:
        weights = _dequantized(name, tensor, shard, where) if tensor.format is I8 else tensor
        if name.endswith(_W2) and self.is_spinquant:
            weights = self._rotated(weights, where)
        stem = name.removesuffix(".weight")
        pair = tuple(shard.get(f"{stem}.adaptor.{side}.weight") for side in "AB")
        if name.startswith("layers.") and self.rank is not None and len(tensor.shape) == 2:
            return self._merged(weights, pair, where)
        if any(pair):
            raise _bad(where, name, "has an adapter, params.json names none for it")
        return weights

    def _rotated(self, weights: Tensor, where: Path) -> Tensor:
        width = weights.columns
        if width & (width - 1):
            raise _bad(where, weights.name, f"has {width:,} columns, a Hadamard transform needs a power of two")
        return changed(weights, lambda rows, _start, _stop: hadamard(rows))

    def _merged(self, weights: Tensor, pair: tuple[Tensor | None, ...], where: Path) -> Tensor:
        a, b = pair
        if a is None or b is None:
            raise _bad(where, weights.name, "has no adapter, though params.json has lora_args")
        rank = self.rank or 0
        for tensor, shape in ((a, (rank, weights.columns)), (b, (weights.rows, rank))):
            if tensor.shape != shape:
                raise _bad(where, tensor.name, f"has shape {list(tensor.shape)}, lora_args imply {list(shape)}")

        def merge(rows: NDArray[np.float32], start: int, stop: int) -> NDArray[np.float32]:
            left, right = floats(b, start, stop).astype(np.float64), floats(a, 0, rank).astype(np.float64)
            return rows + (left @ right * self.scale).astype(np.float32)

        return changed(weights, merge).reading(a, b)

    def notes(self, stored: Mapping[str, Tensor]) -> dict[str, str]:
        """What was done, and what params.json says otherwise than the tensors as they are ``stored``."""
        done = f"{self.label}, dequantized" + (", its Hadamard transform folded into w2" if self.is_spinquant else "")
        done += f", its adapter of rank {self.rank} merged" if self.rank else ""
        notes = {"quantization": f"{done}; it also rounds activations to 8 bits, which no output does"}
        if self.is_spinquant and not self.is_said:
            notes["quantization"] += "; SpinQuant by the folder's name (params.json doesn't say)"
        if (group := _group_size(stored)) not in (None, self.group):
            notes["group size"] = f"{group} weights by the scales themselves, params.json says {self.group}"
        return notes

    @property
    def warnings(self) -> tuple[str, ...]:
        """A person may have the weights that these were made of."""
        return (
            f"{self.label} was rounded to 4 bits already: quality is lost twice; "
            "convert the full-precision checkpoint if you can get it",
        )


def _dequantized(name: str, tensor: Tensor, shard: Mapping[str, Tensor], where: Path) -> Tensor:
    stem = name.removesuffix(".weight")
    scales, zeros = shard.get(f"{stem}.scales"), shard.get(f"{stem}.zeros")
    if scales is None or len(tensor.shape) != 2:
        raise _bad(where, name, "is int8 and has no scales" if scales is None else "is int8 and no matrix")
    return dequantized(
        tensor, _by_rows(scales, tensor, where), None if zeros is None else _by_rows(zeros, tensor, where)
    )


def _group_size(shard: Mapping[str, Tensor]) -> int | None:
    """Weights that share a scale in a layer, as the tensors have it; None where they don't tell."""
    numbers, scales = shard.get("layers.0.attention.wq.weight"), shard.get("layers.0.attention.wq.scales")
    return None if numbers is None or scales is None or len(scales.shape) != 2 else numbers.columns // scales.columns


def _by_rows(scales: Tensor, numbers: Tensor, where: Path) -> Tensor:
    """``(rows, groups)``; one for each row may be a vector."""
    if scales.format not in (F32, FORMATS["f16"], FORMATS["bf16"]):
        raise _bad(where, scales.name, f"is {scales.format}, expected floats")
    scales = column(scales) if len(scales.shape) == 1 else scales
    if len(scales.shape) != 2 or scales.rows != numbers.rows or numbers.columns % scales.columns:
        raise _bad(where, scales.name, f"has shape {list(scales.shape)}, which fits no groups of {list(numbers.shape)}")
    return scales


def _is_part(name: str) -> bool:
    return name.endswith(_PARTS)


def _weight_of(name: str) -> str:
    part = next(part for part in _PARTS if name.endswith(part))
    return f"{name.removesuffix(part)}.weight"


def _bad(where: Path, name: str, problem: str) -> CheckpointError:
    return CheckpointError(f"{where}: tensor {name!r:.200} {problem}", remedy=_REMEDY)
