"""The numbers of rotary scaling: frequencies, and Llama 3.1's four numbers as GGUF's ``rope_freqs`` tensor and back."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.files.gguf import shortest

_PUBLISHED = (8192.0, 1.0, 4.0)  # original context, low and high frequency factor of Llama 3.1 to 3.3
_USUAL_FACTORS = (8.0, 32.0, 2.0, 4.0, 16.0, 64.0)


def llama3_factors(head_dim: int, theta: float, scaling: Mapping[str, Any]) -> NDArray[np.float32]:
    """By what each rotary frequency is divided: float32 ``(head_dim / 2,)``.

    Every step is in float32 and a number divided by an array is its reciprocal times the number: so torch computes
    what llama.cpp's converter writes, and so the bytes are equal.
    """
    one = np.float32(1)
    wavelengths = _wavelengths(head_dim, theta)
    low, high = np.float32(scaling["low_freq_factor"]), np.float32(scaling["high_freq_factor"])
    original, factor = np.float32(scaling["original"]), np.float32(scaling["factor"])
    # Equal bounds leave no band between them (Llama 4's config has them so): nothing to blend.
    smooth = (one / wavelengths * original - low) / np.float32(high - low or 1)
    blended = one / ((one - smooth) / factor + smooth)
    factors = np.where(wavelengths > original / low, factor, blended)
    return np.where(wavelengths < original / high, one, factors).astype(np.float32)


def frequencies(
    head_dim: int, theta: float, scaling: Mapping[str, Any], factors: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """By what a position is multiplied to give each pair's angle: float32 ``(head_dim / 2,)``.

    They are divided by ``factors``, or as ``scaling`` says.
    """
    if factors is None and scaling:
        factors = _BY_KIND[scaling["rope_type"]](head_dim, theta, scaling)
    plain = _frequencies(head_dim, theta)
    return plain if factors is None else plain / factors


def _linear_factors(_head_dim: int, _theta: float, scaling: Mapping[str, Any]) -> NDArray[np.float32]:
    return np.full(1, scaling["factor"], np.float32)


def _yarn_factors(head_dim: int, theta: float, scaling: Mapping[str, Any]) -> NDArray[np.float32]:
    """NTK by parts, as transformers' ``_compute_yarn_parameters``: pairs that turn slowly are stretched."""
    pairs = head_dim // 2
    low, high = (
        head_dim * math.log(scaling["original"] / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (scaling.get("beta_fast", 32.0), scaling.get("beta_slow", 1.0))
    )
    low, high = (math.floor(low), math.ceil(high)) if scaling["truncate"] else (low, high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(pairs) - low) / (high - low or 0.001), 0, 1)
    return np.asarray(1 / (ramp / scaling["factor"] + (1 - ramp)), np.float32)


def _frequencies(head_dim: int, theta: float) -> NDArray[np.float32]:
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)
    return np.asarray(np.float32(1) / powers, np.float32)


_BY_KIND: Mapping[str, Callable[[int, float, Mapping[str, Any]], NDArray[np.float32]]] = {
    "linear": _linear_factors,
    "llama3": llama3_factors,
    "yarn": _yarn_factors,
}
"""By what frequencies are divided."""


def _wavelengths(head_dim: int, theta: float) -> NDArray[np.float32]:
    return np.asarray(np.float32(1) / _frequencies(head_dim, theta) * np.float32(2 * math.pi), np.float32)


def llama3_scaling(factors: NDArray[np.float32], head_dim: int, theta: float) -> dict[str, Any] | None:
    """The scaling whose :func:`llama3_factors` are ``factors`` bit for bit; None if none was found.

    The factors fix only the ratios of original context, low and high: published values and round numbers come first.
    """
    if factors.shape != (head_dim // 2,) or not np.isfinite(factors).all() or factors.min() <= 0:
        return None
    wavelengths = _wavelengths(head_dim, theta).astype(np.float64)
    for factor in dict.fromkeys((shortest(factors.max()), *_USUAL_FACTORS)):
        for original, low, high in _candidates(factors.astype(np.float64), factor, 1 / wavelengths):
            names = {"low_freq_factor": low, "high_freq_factor": high, "original": original}
            scaling = {"rope_type": "llama3", "factor": factor, **names}
            if llama3_factors(head_dim, theta, scaling).tobytes() == factors.tobytes():
                return scaling
    return None


def _candidates(
    factors: NDArray[np.float64], factor: float, frequencies: NDArray[np.float64]
) -> Iterator[tuple[float, float, float]]:
    """(original, low, high) that may explain ``factors``.

    Between its bounds ``smooth`` is linear in the frequency, with slope ``original / (high - low)`` and intercept
    ``-low / (high - low)``: two points of the band give both.
    """
    yield _PUBLISHED
    factor = float(np.float32(factor))
    powers = [float(2**exponent) for exponent in range(24)]
    band = (factors > 1) & (factors < factor)
    smooth = (1 / factors[band] - 1 / factor) / (1 - 1 / factor) if band.any() else np.zeros(0)
    if band.sum() == 0:
        yield from ((power, 1.0, high) for power in powers for high in (4.0, 1.0))
        edges = 1 / frequencies[(factors > 1).argmax() - 1 :][:2]
        yield round(math.sqrt(edges[0] * edges[-1])), 1.0, 1.0
    elif band.sum() == 1:
        for power in powers:
            high = 1 + (frequencies[band][0] * power - 1) / smooth[0]
            yield from ((power, 1.0, rounded) for rounded in _rounded(high) if rounded > 1)
    else:
        slope, intercept = np.polyfit(frequencies[band], smooth, 1)
        for low in (1.0, 2.0, 4.0, 0.5, 3.0, 1.5, 8.0) if intercept < 0 < slope else ():
            width = -low / intercept
            for high in _rounded(low + width):
                yield from ((float(round(slope * width) + off), low, high) for off in (0, 1, -1, 2, -2))


def _rounded(number: float) -> list[float]:
    """A measured number as somebody may have written it: with few decimals first."""
    return [round(float(number), decimals) for decimals in range(6)]
