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

_COLUMNS, _ROWS = 1024, 288
_MANTISSAS = (24, 8, 4)
"""Bits of the weights' mantissas, ``_ROWS`` each: the fewer, the more often a weight lies on a level's border."""
_SEED = 4
"""Of fourteen the one whose rows give kernels with fused products away most surely: by four blocks at least."""


@cache
def rows() -> Rows:
    """``(864, 1024)`` float32, near enough to normal, of many sizes: the same everywhere.

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
    ("q2_k", False): "dbc97a7475937eec225f17b5e74870f88827d96ba07859e1fa710c162e0e0e74",
    ("q2_k", True): "2ef7eac92c18592ee35b50a96efd2d6c3d3a2b833cd08872a2d641c7233f0155",
    ("q3_k", False): "a38e4cb1c08200d3db73c43ffc21ee8976599dbcd72c296d119d68e8573302de",
    ("q3_k", True): "fad844acebeef79f64f9dc996a154d050fc83c6b5416cd96c8fb27126360c8ae",
    ("q4_k", False): "921b3e5f68a2e438a7e4b24adf2333b4188f453e4fafd97870147fbf94eed205",
    ("q4_k", True): "ff05feac7c3c9df2c2a1ef3027274c298229136a21ecbb0a2c50623e2a899527",
    ("q5_k", False): "88e6746f0f703a9b2d3324882884686069f79951ec1fbd0b4b7300bc51789db8",
    ("q5_k", True): "14dbf8f059dd2ff2fa721603ec7652ac4ae98cd24d1c2e5da5bd89f7b64a62f5",
    ("q6_k", False): "ba84ae33b294f843d71fff63ca8e97c53b3de3b2c82255c7e4269afe5ed32895",
    ("q6_k", True): "aaae3590fa69c982047238303e04f1344a05ba5d1b7df5979438fd4238ea8273",
    ("q4_0", False): "bf20343f7be68dad2d4dc0fb4f8adef4aa146bddacb99b5077061412d0996f86",
    ("q4_0", True): "0d90c2639612de96f7934f7991b7eca4f477d7038c8e07d603be2735942921ed",
    ("q4_1", False): "48ec0c46e0d9fc2aa2bec59aa41c560f4e30eb95fecfa88371242e3b599a085a",
    ("q4_1", True): "2273ebb21d2f75a74aaefad79b06718e42e75a7595c2655f549d0355e0fe48fa",
    ("q5_0", False): "9714db58605dfdb564dd632d9987b439a3bffe7217417fa3591f0974c6b1f2e7",
    ("q5_0", True): "934c45e419dcb52c4c4de41553d804cc3e53efbc749bfcb12822d9c492fb0914",
    ("q5_1", False): "9d8ef10afa1ee2ed1c502f56aef444c25a1bc531ac7f2b6dc791294c9f18bea6",
    ("q5_1", True): "3de046da20ce8359a212513653bc8986530e0eee67f0f42b0302fce8f400dea7",
    ("q8_0", False): "28b021a24ddbc31cba018041f2ac064c6e141f5e9244da0b36ad5b94c4852289",
    ("q8_0", True): "28b021a24ddbc31cba018041f2ac064c6e141f5e9244da0b36ad5b94c4852289",
    ("iq4_nl", False): "cf4bb64b1fa516f1c8cbbbaa0e7ee00f717e5f0cb4e65217358d30f6dd9bb98b",
    ("iq4_nl", True): "8b9ef6925d1b1d5d54b53a6e518a51fed0cf610200fe96ffdcbe960969913420",
    ("iq4_xs", False): "fdfedad593f10b1543c4efd26ef3dba7d2f803f5d366bd36aeacd3e621474bf0",
    ("iq4_xs", True): "125ff261c4a664c8dfd6e95d3015d657524465de5e366300ea7e1030c237a8cc",
}
