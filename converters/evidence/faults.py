"""What is wrong with a converted file, and where: in which layer, or in which component outside the layers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.architectures import for_config
from converters.architectures.hyperparameters import Hyperparameters, Rope
from converters.architectures.rope import KEPT, attention_factor
from converters.architectures.rotary import frequencies
from converters.checkpoint import Checkpoint
from converters.evidence.matrices import MatrixError
from converters.metadata.vocabulary import Vocabulary
from converters.targets.onnx.llama import rope_factors

EMBEDDING, FINAL_NORM, HEAD, ROPE, TOKENIZER = "embedding", "final norm", "head", "RoPE", "tokenizer"
ENGINE = "engine"
STRUCTURE = "hyperparameters"
_OUTSIDE = {
    "token_embd.weight": EMBEDDING,
    "output_norm.weight": FINAL_NORM,
    "output.weight": HEAD,
    **dict.fromkeys(KEPT, ROPE),
}
_APART = {"rope", "window_rope", "tied", "n_vocab", "layer_types", "moe_step", "rope_layers", "window_layers"}
"""Fields that are compared by what they lead to, or by other fields that say the same."""
_SAME = 1e-5
"""Frequencies may differ by this part: numbers of config.json and of GGUF are float64 and float32."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A part that is not the checkpoint's, and what was found there."""

    part: str
    """``layer 3``, ``router of layer 3``, ``embedding``, ``final norm``, ``head``, ``RoPE``, ``tokenizer``,
    ``hyperparameters``, ``engine``."""
    told: str

    def __str__(self) -> str:
        return f"{self.part}: {self.told}"


def part_of(matrix: MatrixError) -> str:
    """The part of the model that a matrix belongs to."""
    if matrix.layer < 0:
        return _OUTSIDE.get(matrix.name, matrix.name)
    return f"router of layer {matrix.layer}" if matrix.role == "router" else f"layer {matrix.layer}"


def of_matrices(matrices: Sequence[MatrixError]) -> Iterator[Fault]:
    """Those that are others than the checkpoint's."""
    for matrix in matrices:
        if matrix.is_off:
            yield Fault(part_of(matrix), f"{matrix.name} {matrix.problem or _off(matrix)}")


def _off(matrix: MatrixError) -> str:
    told = f"is off by {matrix.error:.3g}, its rounding gives {matrix.expected:.3g}"
    if matrix.rows == 1:
        return told
    most = "" if matrix.rows_off == matrix.rows else f", row {matrix.worst:,} most of all"
    return f"{told}: {matrix.rows_off:,} of {matrix.rows:,} rows are not the checkpoint's{most}"


def of_structure(reference: Checkpoint, own: Checkpoint) -> Iterator[Fault]:
    """Rotary frequencies, and all else that config.json says of the tower's form."""
    true, found = (for_config(each).hyperparameters(each) for each in (reference, own))
    if found.tied and not true.tied:
        yield Fault(HEAD, "output.weight is missing: the embedding serves in place of the checkpoint's own head")
    for each in fields(Hyperparameters):
        left, right = getattr(true, each.name), getattr(found, each.name)
        if each.name not in _APART and not _is_same(left, right):
            yield Fault(STRUCTURE, f"{each.name} is {right!r:.60} instead of {left!r:.60}")
    for layer in range(min(true.n_layer, found.n_layer)):
        if true.has_rope(layer) != found.has_rope(layer):
            yield Fault(ROPE, f"layer {layer} has {'none' if true.has_rope(layer) else 'one, the checkpoint none'}")
        if true.has_window(layer) != found.has_window(layer):
            told = "no sliding window" if true.has_window(layer) else "a sliding window, the checkpoint none"
            yield Fault(STRUCTURE, f"layer {layer} has {told}")
    if (error := rope_error(reference, own)) > _SAME:
        yield Fault(ROPE, f"its frequencies are off by a factor of up to {1 + error:.6g}")


def _is_same(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-6)
    return bool(left == right)


def rope_error(reference: Checkpoint, own: Checkpoint) -> float:
    """By what part rotary frequencies differ, at most; infinite where there are others in number."""
    true, found = _all_frequencies(reference), _all_frequencies(own)
    if [each.shape for each in true] != [each.shape for each in found]:
        return math.inf
    pairs = zip(map(np.abs, true), map(np.abs, found), strict=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = [np.maximum(left / right, right / left) - 1 for left, right in pairs]
    return max((float(np.nanmax(ratio, initial=0.0)) for ratio in ratios), default=0.0)


def _all_frequencies(checkpoint: Checkpoint) -> list[NDArray[np.float64]]:
    """Of each kind of rotary embedding: its frequencies, and by what it multiplies."""
    hp = for_config(checkpoint).hyperparameters(checkpoint)
    factors = rope_factors(checkpoint.tensors)
    ropes: list[tuple[Rope, NDArray[np.float32] | None]] = [(hp.rope, factors if _is_told(hp.rope) else None)]
    if hp.window_rope is not None:
        ropes.append((hp.window_rope, None))
    found = []
    for rope, own in ropes:
        rates = frequencies(hp.head_dim, rope.theta, {} if _is_told(rope) else rope.scaling, own)
        strength = 1.0 if _is_told(rope) else attention_factor(rope)
        found.append(np.append(rates.astype(np.float64), strength))
    return found


def _is_told(rope: Rope) -> bool:
    """Whether only a tensor tells its scaling."""
    return rope.kind == "explicit"


def of_vocabulary(true: Vocabulary, own: Vocabulary) -> Iterator[Fault]:
    """The first difference between two vocabularies that changes which ids a text becomes, or what ids mean."""
    for name in ("model", "pre"):
        left, right = getattr(true, name), getattr(own, name)
        if left != right:
            yield Fault(TOKENIZER, f"{name} is {right!r:.60} instead of {left!r:.60}")
            return
    for name in ("tokens", "types", "merges", "scores"):
        left, right = getattr(true, name), getattr(own, name)
        if told := _difference(name, left, right):
            yield Fault(TOKENIZER, told)
            return
    for name in ("bos", "eos"):
        left, right = true.special.get(name), own.special.get(name)
        if left != right:
            yield Fault(TOKENIZER, f"the {name} token is {right} instead of {left}")
            return


def _difference(name: str, left: Sequence[Any] | None, right: Sequence[Any] | None) -> str:
    if not left or not right:
        return "" if not left and not right else f"has {'no' if left else 'own'} {name}"
    if len(left) != len(right):
        return f"has {len(right):,} {name} instead of {len(left):,}"
    if name == "scores":
        equal = np.asarray(left, np.float32) == np.asarray(right, np.float32)
    else:
        equal = np.array([one == other for one, other in zip(left, right, strict=True)])
    if equal.all():
        return ""
    at = int(np.argmin(equal))
    return f"{name} differ, first number {at:,}: {right[at]!r:.60} instead of {left[at]!r:.60}"
