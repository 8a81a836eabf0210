"""What running a tower layer by layer needs, known before a weight is read."""

from collections.abc import Sequence
from dataclasses import dataclass

from converters.checkpoint import Tensor
from converters.evidence.attention import slice_of
from converters.evidence.head import AHEAD, block_bytes
from converters.evidence.tower import Tower

_PROCESS = 240 << 20
"""Python with numpy and ONNX Runtime, rows on their way from a file, and what observers are told."""


@dataclass(frozen=True, slots=True)
class Needed:
    """Bytes of ``memory`` at most, and of ``disk`` for hidden states."""

    memory: int
    disk: int


def needed_bytes(tower: Tower, lengths: Sequence[int], *, is_watched: bool = False) -> Needed:
    """What ``tower`` needs for chunks of these ``lengths``; ``is_watched``: each layer's input is kept for its end."""
    hp = tower.hp
    is_mixture = any(tower.mixture(layer) for layer in range(hp.n_layer))
    copies = 1 + is_mixture * (1 + is_watched)
    layers = max(_weights(tower, layer) for layer in range(hp.n_layer))
    memory = max(layers + _activations(tower, max(lengths)), block_bytes(tower) + AHEAD)
    return Needed(_PROCESS + memory, copies * 4 * sum(lengths) * hp.n_embd)


def _weights(tower: Tower, layer: int) -> int:
    """Bytes of a layer's largest part in float32: attention and all that is not an expert, or one expert."""
    mixture, prefix = tower.mixture(layer), f"model.layers.{layer}."
    names = [name for name in tower.tensors if name.startswith(prefix)]
    if mixture is None:
        return sum(_f32(tower.tensors[name]) for name in names)
    apart = tuple(prefix + part for part in (mixture.experts, mixture.shared) if part)
    experts = [
        _f32(tensor) // tensor.shape[0] for tensor in map(tower.tensors.get, names) if tensor and tensor.shape[2:]
    ]
    return max(sum(_f32(tower.tensors[name]) for name in names if not name.startswith(apart)), sum(experts))


def _f32(tensor: Tensor) -> int:
    return 4 * tensor.rows * tensor.columns


def _activations(tower: Tower, longest: int) -> int:
    """What lies between the operators for a slice of the longest chunk, whose states are there whole."""
    hp = tower.hp
    rows = slice_of(hp.n_head, longest)
    wide = max(hp.n_ff, hp.n_ff_dense)
    scores = hp.n_head * rows * longest
    caches = 4 * hp.kv * longest
    return 4 * (rows * (6 * hp.n_embd + 2 * hp.q + 4 * wide) + 2 * scores + caches + 3 * longest * hp.n_embd)
