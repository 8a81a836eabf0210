"""Scales of groups: stored before numbers are chosen, and never worse than a plain rounding's."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_llama.files.formats import BF16, F16, F32, FORMATS, Format
from quant.fitting import Fit, compiled_fit, fitted
from quant.floats import narrow, widen
from quant.kernels import recode_arrays
from quant.nbits import Grid, repacked
from quant.reference import ggml

DTYPES = pytest.mark.parametrize("scales", [BF16, F16], ids=["bf16", "f16"])


def stored(scale: NDArray[np.float32], scales: Format) -> NDArray[np.float32]:
    return widen(narrow(np.ascontiguousarray(scale[None], np.float32), scales), scales)[0]


def errors(
    groups: NDArray[np.float32], scale: NDArray[np.float32], numbers: NDArray[np.float32]
) -> NDArray[np.float64]:
    """The squared error of each group."""
    off = numbers.astype(np.float64) * scale[:, None].astype(np.float64) - groups
    return np.square(off).sum(axis=1)


def numbered(groups: NDArray[np.float32], scales: Format) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Scales, and numbers plus 8, a byte each."""
    scale, octets = fitted(groups, scales)
    return scale, np.stack((octets & 15, octets >> 4), axis=-1).reshape(groups.shape)


def plain(groups: NDArray[np.float32], scales: Format) -> NDArray[np.float64]:
    """What compressed-tensors' min-max observer leaves: the largest magnitude is 7.5 steps."""
    scale = stored(np.abs(groups).max(axis=1) / np.float32(7.5), scales)
    divisor = np.where(scale == 0, np.float32(1), scale)
    return errors(groups, scale, np.rint(groups / divisor[:, None]).clip(-8, 7))


@DTYPES
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([32, 64, 128]), spread=st.floats(-6, 2), tail=st.booleans())
def test_no_group_is_worse_than_plainly_rounded(
    scales: Format, seed: int, size: int, spread: float, tail: bool
) -> None:
    rng = np.random.default_rng(seed)
    groups = (rng.standard_normal((9, size)) * np.float32(10) ** np.float32(spread)).astype(np.float32)
    if tail:
        groups[:, 3] *= 20
    groups[4] = 0
    scale, numbers = numbered(groups, scales)
    assert np.array_equal(scale, stored(scale, scales))
    assert numbers.max() <= 15
    held = np.isfinite(scale)  # float16 does not hold every scale: a conversion tells of it
    with np.errstate(invalid="ignore"):
        ours, theirs = errors(groups, scale, numbers.astype(np.float32) - 8)[held], plain(groups, scales)[held]
    assert (ours <= theirs * (1 + 1e-5) + 1e-30).all()
    assert (scale[4], set(numbers[4])) == (1, {8})


@DTYPES
def test_the_error_is_a_good_deal_smaller(scales: Format) -> None:
    groups = np.random.default_rng(5).standard_normal((500, 128)).astype(np.float32)
    scale, numbers = numbered(groups, scales)
    ours, theirs = errors(groups, scale, numbers.astype(np.float32) - 8).sum(), plain(groups, scales).sum()
    assert ours < 0.93 * theirs, ours / theirs


@DTYPES
def test_what_lies_on_the_grid_stays_there(scales: Format) -> None:
    """Its largest number is -8, as wherever the format's numbers were chosen well."""
    rng = np.random.default_rng(6)
    scale = stored(rng.uniform(-1, 1, 40).astype(np.float32), scales)
    numbers = rng.integers(-7, 8, (40, 64)).astype(np.float32)
    numbers[:, 11] = -8
    groups = numbers * scale[:, None]
    found, codes = numbered(groups, scales)
    assert np.array_equal(found, scale)
    assert np.array_equal(codes.astype(np.float32) - 8, numbers)


def test_q4_0_goes_over_bit_by_bit() -> None:
    rows, q4_0 = np.random.default_rng(7).standard_normal((6, 96)).astype(np.float32), FORMATS["q4_0"]
    raw = ggml.quantize(rows, q4_0)
    grid = Grid(4, scales=F16)
    arrays = recode_arrays(raw, q4_0, grid.array("numbers"))
    assert all(np.array_equal(arrays[part], repacked(raw, q4_0, F16)[part]) for part in grid.parts)
    octets = arrays["numbers"]
    numbers = np.stack((octets & 15, octets >> 4), axis=-1).reshape(6, 96).astype(np.float32) - 8
    scale = np.repeat(arrays["scales"].view(np.float16).astype(np.float32), 32, axis=1)
    assert np.array_equal(numbers * scale, ggml.dequantize(raw, q4_0))


def test_weights_that_float16_cannot_hold_are_named() -> None:
    """Below its largest number already: 8 times the scale is what must be held."""
    rows = np.ones((2, 64), np.float32)
    rows[1, 5:7] = 65500, -65500
    f16, bf16 = (Grid(4, 64, scales=scales).array("numbers") for scales in (F16, BF16))
    recode_arrays(rows.view(np.uint8), F32, bf16)
    with pytest.raises(ValueError, match="a weight of 65500 is too large for int4 by 64 with f16 scales"):
        recode_arrays(rows.view(np.uint8), F32, f16)


@pytest.fixture(scope="module")
def compiled() -> Fit:
    found = compiled_fit()
    assert found is not None, "it gives other bytes than numpy here"
    return found


@DTYPES
@pytest.mark.timeout(600)  # the first of them compiles
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 70), st.sampled_from([32, 64, 128])),
    exponent=st.integers(-45, 36),
)
def test_compiled_gives_the_same_bytes(
    scales: Format, compiled: Fit, seed: int, shape: tuple[int, int], exponent: int
) -> None:
    rng = np.random.default_rng(seed)
    groups = (rng.standard_t(3, shape) * 10.0**exponent).astype(np.float32)
    groups[rng.random(shape[0]) < 0.1] = 0
    groups[rng.random(shape) < 0.1] *= -0.0
    if rng.random() < 0.5:
        groups = stored(groups.reshape(-1), BF16).reshape(shape)
    for ours, theirs in zip(compiled(groups, scales), fitted(groups, scales), strict=True):
        assert np.array_equal(ours, theirs)


@DTYPES
def test_a_group_is_fitted_alike_whatever_stands_beside_it(scales: Format, rng: np.random.Generator) -> None:
    groups = rng.standard_normal((40, 64)).astype(np.float32)
    whole = fitted(groups, scales)
    for size in (1, 2, 3, 7, 33):
        pieces = [fitted(groups[at : at + size], scales) for at in range(0, 40, size)]
        for at, expected in enumerate(whole):
            assert np.array_equal(np.concatenate([piece[at] for piece in pieces]), expected)


LOADED = """
import numpy as np
from quant import kernels
from quant.loading import Need, loading_kernels
from quant.nbits import Grid
from edge_llama.files.formats import BF16
with loading_kernels({Need(Grid(4, 64, scales=BF16).array("numbers")): COUNT}, 1):
    print(kernels.fit_is_loaded())
"""


@pytest.mark.parametrize(("kernels", "expected"), [("compiled", "True"), ("ggml", "False"), ("auto", "False")])
def test_kernels_are_loaded_as_for_other_formats(kernels: str, expected: str) -> None:
    """A few weights are not worth a compiler, unless it is asked for."""
    command = [sys.executable, "-c", LOADED.replace("COUNT", "1000")]
    environment = os.environ | {"EDGE_LLAMA_KERNELS": kernels}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
