"""Rotary scaling is read back from GGUF's factors: whatever is found gives the same bytes again."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from converters.architectures.rotary import llama3_factors, llama3_scaling


def scaling(factor: float, low: float, high: float, original: float) -> dict[str, object]:
    names = {"low_freq_factor": low, "high_freq_factor": high, "original": original}
    return {"rope_type": "llama3", "factor": factor, **names}


@pytest.mark.parametrize("factor", [8.0, 32.0, 16.0])
@pytest.mark.parametrize("head_dim", [16, 32, 64, 128])
def test_the_published_scalings_come_back_as_published(head_dim: int, factor: float) -> None:
    published = scaling(factor, 1.0, 4.0, 8192.0)
    assert llama3_scaling(llama3_factors(head_dim, 500000.0, published), head_dim, 500000.0) == published


@settings(max_examples=300, deadline=None)
@given(
    factor=st.floats(1.5, 64).map(lambda value: round(value, 1)),
    low=st.sampled_from([1.0, 2.0, 0.5]),
    width=st.sampled_from([0.0, 1.0, 2.0, 3.0, 7.0, 15.0]),
    original=st.sampled_from([2**exponent for exponent in range(9, 18)]),
    head_dim=st.sampled_from([64, 96, 128]),
    theta=st.sampled_from([10000.0, 500000.0, 1e6]),
)
def test_what_is_found_gives_the_same_bytes(
    factor: float, low: float, width: float, original: int, head_dim: int, theta: float
) -> None:
    factors = llama3_factors(head_dim, theta, scaling(factor, low, low + width, original))
    assume(factors.max() == np.float32(factor))  # otherwise the factor itself is nowhere to be seen
    found = llama3_scaling(factors, head_dim, theta)
    assert found is not None
    assert llama3_factors(head_dim, theta, found).tobytes() == factors.tobytes()
    assert found["original"] == int(found["original"])


@pytest.mark.parametrize(
    "factors",
    [
        np.linspace(1, 8, 32, dtype=np.float32),
        np.full(32, np.nan, np.float32),
        np.zeros(32, np.float32),
        np.ones(16, np.float32),
        np.linspace(8, 1, 32, dtype=np.float32),
    ],
)
def test_factors_of_another_kind_are_not_explained_away(factors: np.ndarray) -> None:
    assert llama3_scaling(factors, 64, 500000.0) is None
