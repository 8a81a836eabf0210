"""numpy's decoders and roundings against ggml's own C: the same bits for any bytes."""

import ctypes

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_llama.files.formats import BF16, F16, F32, FORMATS, Format
from quant.dequantize import can_dequantize, dequantize, dequantize_by_numpy, is_finite, takes_ggml
from quant.floats import FLOATS, narrow, widen
from quant.reference import ggml

DECODED = [name for name, format_ in FORMATS.items() if can_dequantize(format_) and not takes_ggml(format_)]
HALVED = [name for name in DECODED if name not in ("f32", "mxfp4", "nvfp4")]
"""Formats with numbers that may be infinite: those two have none, ggml refuses one exponent of the first."""


def by_numpy(raw: NDArray[np.uint8], format_: Format) -> NDArray[np.float32]:
    """What an environment without llama-cpp-python has."""
    return widen(raw, format_) if format_ in FLOATS else dequantize_by_numpy(raw, format_)


def any_bytes(format_: Format, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Rows of random bytes: scales of every kind, infinite and NaN among them."""
    return rng.integers(0, 256, (64, format_.row_bytes(1024)), np.uint8)


def assert_same_bits(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Equal bit for bit; of NaN only that it is one: which of two operands' bits it keeps is the processor's choice."""
    assert found.shape == expected.shape
    is_same = found.view(np.uint32) == expected.view(np.uint32)
    assert (is_same | (np.isnan(found) & np.isnan(expected))).all()


def test_what_can_be_dequantized_is_what_ggml_can() -> None:
    for name, format_ in FORMATS.items():
        assert can_dequantize(format_) == ggml.can_dequantize(format_), name


@pytest.mark.parametrize("name", DECODED)
def test_any_bytes_become_ggmls_floats(name: str, rng: np.random.Generator) -> None:
    raw = any_bytes(FORMATS[name], rng)
    assert_same_bits(by_numpy(raw, FORMATS[name]), ggml.dequantize(raw, FORMATS[name]))
    assert_same_bits(dequantize(raw, FORMATS[name]), ggml.dequantize(raw, FORMATS[name]))


@pytest.mark.parametrize("name", [name for name in DECODED if FORMATS[name].is_quantized])
def test_every_scale_becomes_ggmls_floats(name: str, rng: np.random.Generator) -> None:
    """The first and the last two bytes, where most have their scale, run through all float16: denormals, -0, NaN."""
    format_ = FORMATS[name]
    raw = rng.integers(0, 256, (1 << 16, format_.block_bytes), np.uint8)
    every = np.arange(1 << 16, dtype="<u2").view(np.uint8).reshape(-1, 2)
    raw[:, :2], raw[:, -2:] = every, every[::-1]
    assert_same_bits(by_numpy(raw, format_), ggml.dequantize(raw, format_))


@pytest.mark.parametrize("name", DECODED)
def test_no_rows_become_no_floats(name: str) -> None:
    assert by_numpy(np.empty((0, FORMATS[name].row_bytes(512)), np.uint8), FORMATS[name]).shape == (0, 512)


@pytest.mark.parametrize("name", [name for name, format_ in FORMATS.items() if takes_ggml(format_)])
def test_formats_with_large_grids_are_ggmls(name: str, rng: np.random.Generator) -> None:
    raw = any_bytes(FORMATS[name], rng)
    assert_same_bits(dequantize(raw, FORMATS[name]), ggml.dequantize(raw, FORMATS[name]))


@pytest.mark.parametrize("format_", [F16, BF16], ids=str)
def test_floats_are_rounded_as_ggml_rounds_them(format_: Format, rng: np.random.Generator) -> None:
    """Any bits, NaN and denormals among them, and what lies at and beside the middle between two float16."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
    middles = [halves + np.uint32(offset) for offset in (0, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001)]
    bits = np.concatenate([rng.integers(0, 1 << 32, 1 << 20, np.uint32), *middles]).reshape(1, -1)
    rows = bits.view(np.float32)
    assert np.array_equal(narrow(rows, format_), ggml.quantize(rows, format_))


@pytest.mark.parametrize("format_", FLOATS, ids=str)
def test_narrow_numbers_come_back(format_: Format, rng: np.random.Generator) -> None:
    raw = narrow(rng.standard_normal((3, 40)).astype(np.float32), format_)
    assert np.array_equal(narrow(widen(raw, format_), format_), raw)


def ggml_validates(raw: NDArray[np.uint8], format_: Format) -> bool:
    validate = ggml._library().ggml_validate_row_data
    validate.argtypes, validate.restype = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t], ctypes.c_bool
    return bool(validate(format_.ggml_id, raw.ctypes.data, raw.nbytes))


@pytest.mark.parametrize("name", ["f32", *HALVED])
def test_what_is_finite_is_what_ggml_validates(name: str, rng: np.random.Generator) -> None:
    """Few random blocks: about as often sound as not."""
    format_ = FORMATS[name]
    found = []
    for _ in range(200):
        raw = rng.integers(0, 256, (1, format_.block_bytes * int(rng.integers(1, 40))), np.uint8)
        found.append(is_finite(raw, format_))
        assert found[-1] == ggml_validates(raw, format_)
    assert set(found) == {False, True}


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_one_number_that_is_not_finite_is_found(bad: float, rng: np.random.Generator) -> None:
    rows = rng.standard_normal((5, 64)).astype(np.float32)
    assert all(is_finite(narrow(rows, format_), format_) for format_ in FLOATS)
    rows[3, 63] = bad
    assert not any(is_finite(narrow(rows, format_), format_) for format_ in FLOATS)


def test_floats_pass_as_they_are(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((2, 8)).astype(np.float32)
    assert np.shares_memory(narrow(rows, F32), rows)
