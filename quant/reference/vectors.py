"""What a kernel's bytes must be, on whichever machine: carried as hashes, so that no other library has to say.

The bytes of a quantized row hang on each rounding. A compiler that fuses a product with a sum (one rounding in place of
two) changes some of them: clang and gcc do so by default on aarch64, where ggml's own bytes then differ from those of
x86-64. Expected are the bytes without: ``scripts/kernel_hashes.py`` took them from ggml 0.25 on x86-64, and a test
compares.
"""

import hashlib
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from edge_llama.files.formats import Format

Rows = NDArray[np.float32]
Quantize = Callable[[Rows, Rows | None], NDArray[np.uint8]]

_COLUMNS, _ROWS = 1024, 96
_MANTISSAS = (24, 8, 4)
"""Bits of the weights' mantissas, ``_ROWS`` each: the fewer, the more often a weight lies on a level's border."""
_SEED = 2
"""Of thirty the one whose rows give kernels with fused products away most surely."""


@cache
def rows() -> Rows:
    """``(288, 1024)`` float32, near enough to normal, of many sizes: the same everywhere.

    They are integers of PCG64's raw stream, which numpy keeps, times powers of two: no operation here rounds.
    """
    count = len(_MANTISSAS) * _ROWS
    drawn = np.random.PCG64(_SEED).random_raw(count * _COLUMNS).reshape(count, _COLUMNS)
    thirds = [(drawn >> np.uint64(shift)).astype(np.int64) & 0x1FFFFF for shift in (0, 21, 42)]
    sums = (sum(thirds) - 3 * (1 << 20)).astype(np.float32)  # type: ignore[union-attr]
    weights: Rows = np.ldexp(sums, -21 - np.arange(count)[:, None] % 13).astype(np.float32)
    bits = weights.view(np.uint32)
    for part, mantissa in enumerate(_MANTISSAS):
        bits[part * _ROWS : (part + 1) * _ROWS] &= np.uint32(-(1 << (24 - mantissa)) & 0xFFFFFFFF)
    return weights


@cache
def importance() -> Rows:
    """``(1024,)`` float32 from 0 to 1: some columns count much, some for nothing."""
    drawn = np.random.PCG64(_SEED + 1).random_raw(_COLUMNS)
    weights = np.ldexp((drawn >> np.uint64(52)).astype(np.float32), -12) ** 2
    weights[::50] = 0
    return weights


def hashed(quantize: Quantize, has_importance: bool) -> str:
    """The SHA-256 of what ``quantize`` makes of :func:`rows`, with :func:`importance` or without."""
    return hashlib.sha256(quantize(rows(), importance() if has_importance else None).tobytes()).hexdigest()


def gives_expected_bytes(format_: Format, quantize: Quantize, *, has_importance: bool = False) -> bool:
    """Whether ``quantize`` gives the bytes of ``format_`` that all machines shall give; False if they aren't known."""
    return hashed(quantize, has_importance) == _HASHES.get((format_.name, has_importance))


_HASHES = {
    ("q2_k", False): "83547ce70360687de6174d2fc620d015a5d8d554200f6fdeb75dc86c29660638",
    ("q2_k", True): "afdd8805fe66676f679244efc7d3ad8acb9df8e8ecca6520ab8c52703976425a",
    ("q3_k", False): "bfcdbdccdbc4d2deb43cdc2fda1029390f605a8e702f287bf1ed18126f6ed65f",
    ("q3_k", True): "8f7c29f046bacafad3aab0e095692cf06c480bf44642997c2b0a468142fa5827",
    ("q4_k", False): "5a3962f57f026972224e2d762e64c714b89a0bc2fa9ba1b7f0929d1bcf3f5923",
    ("q4_k", True): "4118e3977aff9f9d5f2c00513dc65d3501854397d3c7bad69dc6965575ffe151",
    ("q5_k", False): "684d29ccbc95a0cff6749c608d8cc89e012e6c2bf6e4edf8800c84b40d249d67",
    ("q5_k", True): "aabf08dbf17e638ee32fac0f1f6357c7a1038ddf20b13abb6b06943e06bfe889",
    ("q6_k", False): "1ed2c3c6e6906144b9c5076cdd9c60a68132ef2bf3e42de8d9c4a0224ed40286",
    ("q6_k", True): "2b2a3b772d6a1e2d6a8a3eb25c41c56f6bf7dded34602563b1ee4877a5981a55",
    ("q4_0", False): "7ae75c596d79685027dfc341c2e45e076e0f2dac21b6c3e08cf229bdcbfeb5cd",
    ("q4_0", True): "86e27422acfa09beb1d76bbf41a42a0f9e1a88ab64c84f76710f8fdf5ffcf068",
    ("q4_1", False): "445d38506ec254e32cce25c5b7687416babd01d804069038e3bec85cafd2c97e",
    ("q4_1", True): "9d38719bb287d6e78ef9739e90c971cb4515e7d837679904f428c9ff9b749cd9",
    ("q5_0", False): "e36207974e1cd96f3ea57b795bb3eeff27c8bf442e983c74e0a0de7b21883d25",
    ("q5_0", True): "5a0b2cc83d646f16a57d2df65cf041757bcb7f61ec973637c81dc1e17baad8ca",
    ("q5_1", False): "fca819a550a908882f80fba11e11945ebd040d4351bc71c8ae5bdc5e7d5adb8a",
    ("q5_1", True): "9057b9f7957b2f7f5efcf3e0efb7f007fa6fb449f924c4c445037415478d9ef3",
    ("q8_0", False): "370901458dc04ee33c032e843f519157873690f2a18ddcf4327c2d4fd10ce521",
    ("q8_0", True): "370901458dc04ee33c032e843f519157873690f2a18ddcf4327c2d4fd10ce521",
    ("iq4_nl", False): "18774db8dabf2f772e6a6b4164545a0a5316774f879a77e44d12cf6c501945c7",
    ("iq4_nl", True): "f9ac25941f2b6d3830b2b8d4a4b7254bd82daae487d00d08fcc265bc549f32f2",
    ("iq4_xs", False): "f5c2827ba376bd8ed2defd774d5d01c0ecc5f212fefc1a544ceac2fbc6d8dc12",
    ("iq4_xs", True): "9ad95c31008d1e6fa9660a37186222d025d78360e1d4ae3b4935463d24c59802",
}
