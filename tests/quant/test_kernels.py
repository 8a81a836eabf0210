"""Kernels against gguf-py's, an implementation of its own in numpy."""

import gguf as reference
import numpy as np
import pytest
from quantizer import FORMATS_WITHOUT_IMPORTANCE

from edge_llama.files.formats import BF16, F16, F32, FORMATS
from quant.kernels import NonFiniteError, recode
from quant.reference import ggml

EXACT = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")  # gguf-py has no K-quant quantizers


def weights(rng: np.random.Generator, rows: int = 8, columns: int = 512) -> np.ndarray:
    scale = 10.0 ** rng.uniform(-4, 2, (rows, 1))
    return (rng.standard_t(3, (rows, columns)) * scale).astype(np.float32)


@pytest.mark.parametrize("name", EXACT)
def test_quantized_bytes_equal_gguf_pys(name: str, rng: np.random.Generator) -> None:
    rows = weights(rng)
    expected = reference.quants.quantize(rows, reference.GGMLQuantizationType[name.upper()])
    assert np.array_equal(ggml.quantize(rows, FORMATS[name]), np.ascontiguousarray(expected).view(np.uint8))


@pytest.mark.parametrize("name", FORMATS_WITHOUT_IMPORTANCE)
def test_dequantized_values_equal_gguf_pys(name: str, rng: np.random.Generator) -> None:
    raw = ggml.quantize(weights(rng), FORMATS[name])
    expected = reference.quants.dequantize(raw, reference.GGMLQuantizationType[name.upper()])
    # The order of ggml's float operations differs from numpy's in the K-quants: the last bit may too.
    np.testing.assert_allclose(ggml.dequantize(raw, FORMATS[name]), expected.reshape(8, 512), rtol=3e-7, atol=0)


@pytest.mark.parametrize("name", ["f16", "bf16", "q8_0", "q4_0", "q4_k"])
def test_recoding_to_the_same_format_leaves_the_bytes_alone(name: str, rng: np.random.Generator) -> None:
    raw = ggml.quantize(weights(rng), FORMATS[name])
    assert np.array_equal(recode(raw, FORMATS[name], FORMATS[name]), raw)


@pytest.mark.parametrize("source", [F32, F16, BF16])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_counted(source: object, bad: float, rng: np.random.Generator) -> None:
    rows = rng.standard_normal((4, 256)).astype(np.float32)
    rows[1, 7] = rows[3, 250] = bad
    with pytest.raises(NonFiniteError, match="2 weights"):
        recode(ggml.quantize(rows, source), source, FORMATS["q8_0"])  # type: ignore[arg-type]


def test_opposite_infinities_and_huge_finite_weights_are_told_apart() -> None:
    rows = np.full((1, 256), 3e38, np.float32)
    assert recode(rows.view(np.uint8), F32, BF16).shape == (1, 512)  # their sum overflows, they don't
    rows[0, :2] = np.inf, -np.inf
    with pytest.raises(NonFiniteError, match="2 weights"):
        recode(rows.view(np.uint8), F32, BF16)


def test_a_weight_too_large_for_the_format_is_an_error_and_no_silent_infinity() -> None:
    rows = np.zeros((2, 256), np.float32)
    rows[1, 3] = 70000
    with pytest.raises(ValueError, match="a weight of 70000 is too large for f16"):
        recode(rows.view(np.uint8), F32, F16)
    rows[1, 3] = 1e30
    with pytest.raises(ValueError, match="too large for q8_0"):
        recode(rows.view(np.uint8), F32, FORMATS["q8_0"])


def test_zeros_and_denormals_pass() -> None:
    rows = np.zeros((2, 256), np.float32)
    rows[1] = 1e-42
    for name in FORMATS_WITHOUT_IMPORTANCE:
        assert np.isfinite(ggml.dequantize(recode(rows.view(np.uint8), F32, FORMATS[name]), FORMATS[name])).all()
