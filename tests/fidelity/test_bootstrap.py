"""How sure a mean is: bounds hold the truth as often as they say, also where neighbours go together."""

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_llama.fidelity import bootstrap
from edge_llama.fidelity.bootstrap import Estimate, means


def stretches(count: int) -> NDArray[np.int64]:
    return np.arange(count) // bootstrap.BLOCK


def correlated(random: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Numbers of mean 0 of which each is near to the one before."""
    noise = random.standard_normal(count + 1)
    for at in range(1, count + 1):
        noise[at] += 0.8 * noise[at - 1]
    return noise[1:]


def test_independent_tokens_have_the_standard_error() -> None:
    values = np.random.default_rng(1).standard_normal((20_000, 1))
    (found,) = means(values, stretches(20_000))
    assert found.value == pytest.approx(values.mean(), rel=1e-12)
    assert found.half == pytest.approx(1.96 * values.std() / np.sqrt(20_000), rel=0.12)
    assert found.low < found.value < found.high


def test_bounds_of_correlated_tokens_hold_the_truth_nineteen_times_of_twenty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 400)
    random = np.random.default_rng(3)
    held = plain = 0
    for _ in range(200):
        values = correlated(random, 4_000)
        (found,) = means(values[:, None], stretches(4_000))
        held += found.low <= 0 <= found.high
        plain += abs(values.mean()) <= 1.96 * values.std() / np.sqrt(4_000)
    assert held >= 180
    assert plain < 140  # what takes tokens one by one promises too much


def test_the_same_seed_gives_the_same_bounds_and_columns_go_together() -> None:
    random = np.random.default_rng(5)
    first, second = random.standard_normal((2, 3_000))
    columns = np.stack([first, second, first - second, first - first], axis=1)
    found = means(columns, stretches(3_000), seed=4)
    assert found == means(columns, stretches(3_000), seed=4)
    assert found != means(columns, stretches(3_000), seed=5)
    assert found[3] == Estimate(0, 0, 0)
    assert found[2].value == pytest.approx(found[0].value - found[1].value)


def test_few_stretches_have_no_bounds() -> None:
    (found,) = means(np.ones((10, 1)), np.arange(10) // 2)
    assert found.value == 1
    assert found.to_json() == {"value": 1.0, "low": None, "high": None}


def test_many_stretches_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 1_000)
    values = np.random.default_rng(1).standard_normal((5_000, 2))
    wide = means(values, stretches(5_000))
    assert [each.half == pytest.approx(1.96 / np.sqrt(5_000), rel=0.35) for each in wide] == [True, True]
