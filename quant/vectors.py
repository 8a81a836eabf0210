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
_SEED = 3
"""Of twenty the one whose rows give kernels with fused products away most surely."""


@cache
def rows() -> Rows:
    """``(288, 1024)`` float32, near enough to normal, of many sizes: the same everywhere.

    They are integers of PCG64's raw stream, which numpy keeps, times powers of two: no operation here rounds.
    """
    count = len(_MANTISSAS) * _ROWS
    drawn = np.random.PCG64(_SEED).random_raw(count * _COLUMNS).reshape(count, _COLUMNS)
    thirds = [(drawn >> np.uint64(shift)).astype(np.int64) & 0x1FFFFF for shift in (0, 21, 42)]
    sums = (sum(thirds) - 3 * (1 << 20)).astype(np.float32)  # type: ignore[union-attr]
    weights = np.ldexp(sums, -21 - np.arange(count)[:, None] % 13).astype(np.float32)
    masks = np.repeat([np.uint32(-(1 << (24 - bits)) & 0xFFFFFFFF) for bits in _MANTISSAS], _ROWS)
    return (weights.view(np.uint32) & masks[:, None]).view(np.float32)


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
    ("q2_k", False): "bf86797b808764815e8e932629d994d2a008737a55a2d027e600a957e1b04551",
    ("q2_k", True): "d4271dac11ff212217c6ae5dd8b6ef34eb7b05a59bd30c3e4a0aa83bfa4e1b38",
    ("q3_k", False): "47d4f4c3c01df9899421bc6996c9a3aff7a82ecabd73f4af5fd3cb951a105bd4",
    ("q3_k", True): "f862575a3ff5a9ddbe35512804ddf86eeb4e21cd919414e26ffec5f15ee59624",
    ("q4_k", False): "931df2feb75ce249f28462ca7e553e7e52e990ab30aae4260f5b51cbc52cefda",
    ("q4_k", True): "4b094b8cea11eb168f70006648a5642129878ceac7f672a5fdc4b014457578b3",
    ("q5_k", False): "626340d94647e74d335f80f43466d6b52a9b3b47acb857786fcdbe656ea309a8",
    ("q5_k", True): "33694656ffb660c782dad35a73f583da1aa69b1b46ffe1b2a5cf4d431c743aa1",
    ("q6_k", False): "ec0315589a82fa8b3e3f1fdec0e6a855eb18d9abd324ef666edb4e4023e8e629",
    ("q6_k", True): "f07111ac776ee01a3e004d6f8cecb43e8fd3df543f4db5751c3f83c6df4bf172",
    ("q4_0", False): "d335e23448a90c843d5f31370e746fa50432de98ee4d5d341422cb3afd786d48",
    ("q4_0", True): "79b9d1ec1823e04e6a52db8ac5284883d3e396e0cad8c2b8ec3c5967a2780cb7",
    ("q4_1", False): "5bfae31e93b11dba85e822814c618a61abb96b4449f1dcfb79f50d26357b646d",
    ("q4_1", True): "3d60a6c369c7cefda1d47bb0f79bb27af44b443311adb816a9f617a5ba57b755",
    ("q5_0", False): "004bdca753c2f7d40f44689f2cdfba8bd0bab83ce7ae58fa2867f395a7b16ff9",
    ("q5_0", True): "ebf577f4b3fb10ae696065fe7a4ccbba93eaeb0793bbe5f57b372111f4fb48c6",
    ("q5_1", False): "7e8f12c6005e546d377e8391c1946dff887aca68f9a9b2bbfce373c3af0e425d",
    ("q5_1", True): "c3d7553b6cc4ae1fa492d89a168332db346c4dd20e69aea0df32bc5869bed5ea",
    ("q8_0", False): "098e631d877cc40de401e79935055fb105b14bcc9d996e802cb6bdc1dc602737",
    ("q8_0", True): "098e631d877cc40de401e79935055fb105b14bcc9d996e802cb6bdc1dc602737",
    ("iq4_nl", False): "2d0d997f99d783eeb4fd2d0bdfbdfe78918828dccd81488d8e9895a5f0b7bd25",
    ("iq4_nl", True): "6e63fb54e11c1966fc9dbbea8507de65e554094b1085cf0728df9893502e051e",
    ("iq4_xs", False): "54cdb3e058662e419a5c4fcf45116e417589f5d05878638672eeae43c9640b30",
    ("iq4_xs", True): "59bfd644ca3fef7399d5b4c1f059fdadf1cd76a406fb7f049ddccb5f4a663d4a",
}
