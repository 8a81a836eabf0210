"""What a kernel's bytes must be, on whichever machine: carried as hashes, so that no other library has to say.

The bytes of a quantized row hang on each rounding. A compiler that fuses a product with a sum (one rounding in place of
two) changes some of them: clang and gcc do so by default on aarch64, where ggml's own bytes then differ from those of
x86-64. Expected are the bytes without: ``scripts/kernel_hashes.py`` took them from ggml 0.25 on x86-64, and a test
compares. What misses them is not used, be it a compiled kernel or the ggml that is installed.
"""

import hashlib
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import EngineError
from edge_llama.files.formats import Format
from quant.reference import ggml

Rows = NDArray[np.float32]
Quantize = Callable[[Rows, Rows | None], NDArray[np.uint8]]

_COLUMNS, _ROWS = 1024, 288
_MANTISSAS = (24, 8, 4)
"""Bits of the weights' mantissas, ``_ROWS`` each: the fewer, the more often a weight lies on a level's border."""
_BF16 = 8
_SEED = 4
"""Of fourteen the one whose rows give kernels with fused products away most surely: by four blocks at least."""


@cache
def rows() -> Rows:
    """``(1152, 1024)`` float32, shaped as weights are and as they rarely are: the same everywhere.

    They are integers of PCG64's raw stream, which numpy keeps, times powers of two: no operation here rounds.
    """
    usual = _of_many_sizes(_drawn(_SEED, _ROWS * len(_MANTISSAS)))
    for part, mantissa in enumerate(_MANTISSAS):
        _cut(usual[part * _ROWS : (part + 1) * _ROWS], mantissa)
    return np.concatenate([usual, _heavy_tailed(192), _extreme(96)])


def _drawn(seed: int, count: int) -> Rows:
    """``count`` rows from -1.5 to 1.5, near enough to normal: multiples of 2^-21."""
    drawn = np.random.PCG64(seed).random_raw(count * _COLUMNS).reshape(count, _COLUMNS)
    first, second, third = ((drawn >> np.uint64(shift)).astype(np.int64) & 0x1FFFFF for shift in (0, 21, 42))
    rows: Rows = np.ldexp((first + second + third - 3 * (1 << 20)).astype(np.float32), -21)
    return rows


def _of_many_sizes(weights: Rows) -> Rows:
    """Each row halved up to twelve times."""
    return np.ldexp(weights, -(np.arange(len(weights), dtype=np.int32) % 13)[:, None])


def _cut(weights: Rows, mantissa: int) -> None:
    """Leave so many bits of the mantissas, in place."""
    bits = weights.view(np.uint32)
    bits &= np.uint32(-(1 << (24 - mantissa)) & 0xFFFFFFFF)


def _heavy_tailed(count: int) -> Rows:
    """Half of the weights doubled, half of these again, and so on, up to 2^10; every other row is bfloat16's."""
    weights = _drawn(_SEED + 2, count)
    tosses = np.random.PCG64(_SEED + 3).random_raw(weights.size).reshape(weights.shape)
    lowest_bit = tosses & (~tosses + np.uint64(1))
    weights = _of_many_sizes(weights * np.minimum(lowest_bit, np.uint64(1 << 10)).astype(np.float32))
    _cut(weights[::2], _BF16)
    return weights


def _extreme(count: int) -> Rows:
    """Bfloat16 rows of eight kinds in turn, of what has broken quantizers or tells how they round scales."""
    weights = _drawn(_SEED + 4, count)
    _cut(weights, _BF16)
    columns = np.arange(_COLUMNS)
    weights[0::8, ::256] *= 512  # an outlier to each super-block
    weights[1::8] = weights[1::8, :1]  # constant
    weights[2::8] = abs(weights[2::8])  # of one sign
    weights[3::8] *= np.where(columns % 3 == 0, 1, 0)  # mostly zeros
    weights[4::8] = np.where(weights[4::8] < 0, np.float32(-0.375), np.float32(0.375))  # ties wherever one looks
    weights[5::8] *= np.where(columns % 64 < 32, 1, 0)  # whole blocks of zeros
    weights[6::8] *= np.float32(2.0**-20)  # float16 scales below 2^-14 lose bits
    weights[7::8] *= np.float32(2.0**14)
    return weights


@cache
def importance() -> Rows:
    """``(1024,)`` float32 from 0 to 1: some columns count much, some for nothing."""
    drawn = np.random.PCG64(_SEED + 1).random_raw(_COLUMNS)
    weights = np.ldexp((drawn >> np.uint64(52)).astype(np.float32), -12) ** 2
    weights[::50] = 0
    return weights


def hashed(quantize: Quantize, has_importance: bool, *, every_third: bool = False) -> str:
    """The SHA-256 of what ``quantize`` makes of :func:`rows`, with :func:`importance` or without.

    ``every_third``: of every third of them, which are of every kind too.
    """
    given = np.ascontiguousarray(rows()[::3]) if every_third else rows()
    return hashlib.sha256(quantize(given, importance() if has_importance else None).tobytes()).hexdigest()


def gives_expected_bytes(format_: Format, quantize: Quantize, *, has_importance: bool = False) -> bool:
    """Whether ``quantize`` gives the bytes of ``format_`` that all machines shall give; False if they aren't known."""
    expected = _HASHES.get((format_.name, has_importance))
    if expected is None:
        return False
    return hashed(quantize, has_importance, every_third=by_every_third(format_)) == expected


def by_every_third(format_: Format) -> bool:
    """Whether every third row has to do: it tells fused products too, but for iq2_xxs, where they change little."""
    return format_.name in ggml.CODEBOOKS and format_.name != "iq2_xxs"


def ggml_is_canonical(format_: Format, *, has_importance: bool = False) -> bool:
    """Whether ggml is installed and gives the expected bytes of ``format_``: tenths of a second, once in a process."""
    return ggml.is_installed() and _ggml_passes(format_, has_importance)


@cache
def _ggml_passes(format_: Format, has_importance: bool) -> bool:
    return gives_expected_bytes(
        format_, lambda rows, importance: ggml.quantize(rows, format_, importance), has_importance=has_importance
    )


def require_ggml(need: str, format_: Format, *, has_importance: bool = False) -> None:
    """EngineError unless :func:`ggml_is_canonical`; ``need`` says in a sentence what takes ggml's kernel."""
    ggml.require(need)
    if not ggml_is_canonical(format_, has_importance=has_importance):
        raise EngineError(
            f"{need}, and the installed llama.cpp gives other bytes of {format_} than it should on every machine",
            remedy="most likely its build fuses products and sums: build llama-cpp-python again with CFLAGS and "
            "CXXFLAGS set to '-ffp-contract=off' (edge-llama devices shows what is used)",
        )


_HASHES = {
    ("q2_k", False): "6ea31d7e7f34ed9a8077b1b0ee24c6ca53a7defebfda27133f8d6b06942a8afb",
    ("q2_k", True): "1e9436b603f28326bac669c535360699530e47bc8bdba592c2100c761cffbc19",
    ("q3_k", False): "f184ae9726a74d39400aebfae7e0a29e2d6a06ab5f687cc8d8a40e60d95fd16f",
    ("q3_k", True): "683498762133dbd372a5d1050e56f4070231de14fc33ddc968ab6c30bf95d531",
    ("q4_k", False): "02795fa75a67c95a0051441b804ac779c1812d3f01690868de86c18a5df4d6a7",
    ("q4_k", True): "f60857fa77906d5489096635c742e61c311e1ca7ee7f5aca4a03a252afc39d86",
    ("q5_k", False): "79702bcdafafce2fb5ff064ddb8f15abe4ed4de448868390f0f83f07dd2fdfaa",
    ("q5_k", True): "087bbb24031b092fd1662da00c78afd7af50b46f5972090dbfa08432ef083c26",
    ("q6_k", False): "a5f497ad199f1dcf1f8b69646ead4231e2cec7eb41814ee104e80df2c0824ea0",
    ("q6_k", True): "85f1f173cefb40dfb79f650d60f1f1642038c03ed5e9ca1097281dcf8c3da5c3",
    ("q4_0", False): "5bf4c0e6b286b2186eae944c05871b1a1a47e93610498a1cf25d28ed59d71285",
    ("q4_0", True): "2d4bc0f5e280652239e0c12a8558ade2385c6f5a87c6f29eb3e1a05b44e361d4",
    ("q4_1", False): "eeba1e498ce94bfc6ddd3a9db599bfea59d459d8726fe17407ffb258cb1630ca",
    ("q4_1", True): "d23837874a0dea8e84e87204e57188fe896093de6e766b28eeb286015d1366f6",
    ("q5_0", False): "0e74edd0a894e8fcf875206716eb0eecbdc38e1261a1a84b0ccfe524f73703d8",
    ("q5_0", True): "c881a8fb222cd2cfce0cf40e6aac5d7b459716419d336189c1ba1be4fa279b4e",
    ("q5_1", False): "275d0dd51521f1fef91efedebb897bef371c4ebb779b1e07132516b52107698d",
    ("q5_1", True): "95c8bc765e2503a56d7337d4194a3bc1e752efb651c4b3090992899f79232006",
    ("q8_0", False): "9f9878f8c51842487993e3795af126d08a6d4baacd8b3ceef03829389a83384e",
    ("q8_0", True): "9f9878f8c51842487993e3795af126d08a6d4baacd8b3ceef03829389a83384e",
    ("iq4_nl", False): "f2a2092d8da96d8355784e89487079c1cc8a6e07db34065ba18357fdb2877395",
    ("iq4_nl", True): "e11ab33ac26b4f359df01bc7c181937cfa13c8c62bc48a1be045a2c84d716d1c",
    ("iq4_xs", False): "69d0bc0505ac50bed9be2475e558c193eaf7648ebd0ad6f64f471837b698c61d",
    ("iq4_xs", True): "70cd2403dddaad5f89a4de7d0bd04aaba01947f1101e6f9b9c435d5410d1518f",
    ("iq3_s", False): "57a245f41546e68e8ed77167644246f2ac5038afc5875ff8c53d62a98912c202",
    ("iq3_s", True): "7495b0d10176cb66ac138559c8fdaec6a1e53ede50d8acf0e96d686ec7b4ed38",
    ("iq3_xxs", False): "a4df70ceb60c4470908318cc9d0e34a5fca2a45c5f1c56cac75cf484aad1f28e",
    ("iq3_xxs", True): "bd6925d8172d96edf9b67383ed422a6449a7e648ff8477c49502e02157f186bb",
    ("iq2_s", False): "d5c8a04be8bd8aade5d5a5a58341fe47c28fe02127f0c0ef9e6a10a6ba0e4e12",
    ("iq2_s", True): "0e63894610eecc183dacaca751bd34f8253287be771b3fa78ec5581567b477f7",
    ("iq2_xs", True): "6aa18b76fbfae8ce64733a9a1d3a10f602403d25c02f6dc915a317f357cbf0b7",
    ("iq2_xxs", True): "05d09d3d2d517381feb0c629d495c7c99bf0af164737a8f9df36ea5dae0b961c",
    ("iq1_m", False): "644321247baa4b46aa6f1ef1cea21d7932e784538e1412792ace013396d913b9",
    ("iq1_m", True): "44c8812e6a94297dc6b9353909068f386b01419e84e0ff1ae5d066d4739e4706",
    ("iq1_s", True): "dd8103b1c015836e8d316ecca1cea66cd76fa8c64dffab34cbda002afc454871",
}
