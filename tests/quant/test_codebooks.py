"""Formats whose values are points of a codebook: ggml's search for them ends the process where it finds none.

That the installed ggml gives the carried bytes of each is tried by every conversion, and so by test_importance.py.
"""

import numpy as np
import pytest

from edge_llama.files.formats import F32, FORMATS, Format
from quant.dequantize import dequantize, is_finite
from quant.kernels import recode
from quant.reference import ggml
from quant.reference.vectors import ggml_is_canonical, importance, rows

CHEAP = ("iq2_xxs", "iq3_xxs", "iq3_s")
"""Those whose tables are set up within a second."""


@pytest.mark.parametrize("name", sorted(ggml.CODEBOOKS))
@pytest.mark.parametrize("value", [np.nan, np.inf, -1e30, 2.0**26])
def test_weights_by_which_no_point_is_found_are_an_error_unchecked_too(name: str, value: float) -> None:
    given, weights = np.ones((2, 256), np.float32), np.ones(256, np.float32)
    given[1, 3] = value
    with pytest.raises(ValueError, match=f"a weight of .* is too large for {name}"):
        ggml.quantize(given, FORMATS[name], weights)
    if name in CHEAP:
        with pytest.raises(ValueError, match=f"a weight of .* is too large for {name}"):
            recode(given.view(np.uint8), F32, FORMATS[name], check=False, importance=weights)


@pytest.mark.parametrize("name", sorted(ggml.CODEBOOKS))
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 1e30])
def test_so_is_such_importance(name: str, value: float) -> None:
    weights = np.ones(256, np.float32)
    weights[7] = value
    with pytest.raises(ValueError, match=f"is none for {name}"):
        ggml.quantize(np.ones((1, 256), np.float32), FORMATS[name], weights)


@pytest.mark.parametrize("name", ["iq1_s", "iq2_xxs", "iq2_xs"])
def test_some_can_t_do_without_importance(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} can't be quantized to without importance"):
        ggml.quantize(np.ones((1, 256), np.float32), FORMATS[name])


def shaped(rng: np.random.Generator) -> list[np.ndarray]:
    """Importance as it is and as it may be: of nothing in whole blocks, of hardly anything, of much."""
    usual = (rng.random(1024) ** 4).astype(np.float32)
    holes = usual.copy()
    holes[:512], holes[600:616], holes[640:672] = 0, 0, 0
    return [usual, holes, np.zeros(1024, np.float32), usual * np.float32(1e-38), usual * np.float32(1e17)]


@pytest.mark.parametrize("name", CHEAP)
def test_importance_of_any_size_gives_finite_weights_of_any_size(name: str, rng: np.random.Generator) -> None:
    format_ = FORMATS[name]
    drawn = rng.standard_normal((16, 1024)).astype(np.float32)
    for scale in (0, 1e-42, 1e-20, 0.02, 1e4):
        for weights in shaped(rng):
            raw = ggml.quantize(drawn * np.float32(scale), format_, weights)
            assert is_finite(raw, format_)
            assert np.isfinite(dequantize(raw, format_)).all()


@pytest.mark.parametrize("name", CHEAP)
def test_the_installed_ggml_gives_the_carried_bytes_and_chunks_change_nothing(name: str) -> None:
    format_ = FORMATS[name]
    assert ggml_is_canonical(format_, has_importance=True)
    given = np.ascontiguousarray(rows()[:64])
    whole = ggml.quantize(given, format_, importance())
    halves = [ggml.quantize(given[at : at + 32], format_, importance()) for at in (0, 32)]
    assert np.array_equal(np.concatenate(halves), whole)


@pytest.mark.parametrize("name", sorted(ggml.CODEBOOKS))
def test_a_scale_that_is_infinite_is_found(name: str) -> None:
    format_: Format = FORMATS[name]
    blocks = np.zeros((3, format_.block_bytes), np.uint8)
    assert is_finite(blocks, format_)
    if name == "iq1_m":  # its scale's nibbles, lowest first, end the last four words
        blocks[1, -7::2] = [0x00, 0x00, 0xC0, 0x70]
    else:
        blocks[1, :2] = [0x00, 0x7C]
    assert not is_finite(blocks, format_)
    assert not np.isfinite(dequantize(blocks, format_)[1]).any()
