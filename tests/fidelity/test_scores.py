"""The numbers of each token, beside torch's in float64."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edge_llama.errors import EngineError
from edge_llama.fidelity.scores import score

N, VOCAB = 37, 5_003


def logits(seed: int, scale: float = 3) -> NDArray[np.float32]:
    return (scale * np.random.default_rng(seed).standard_normal((N, VOCAB)) + 40 * seed).astype(np.float32)


TARGETS = np.random.default_rng(9).integers(0, VOCAB, N)


def log_probabilities(values: NDArray[np.float32]) -> torch.Tensor:
    return torch.log_softmax(torch.from_numpy(values).double(), dim=1)


@pytest.mark.parametrize("near", [1e-4, 0.1, 1.0])
def test_scores_are_torchs_in_float64(near: float) -> None:
    reference = logits(1)
    model = (reference + near * logits(2, 1)).astype(np.float32)
    found = score(TARGETS, model, reference)
    wanted, given = log_probabilities(model), log_probabilities(reference)
    kl = torch.nn.functional.kl_div(wanted, given, reduction="none", log_target=True).sum(dim=1)
    rows = torch.arange(N)
    assert found.kl is not None
    assert found.nll_reference is not None
    assert found.is_same_top is not None
    np.testing.assert_allclose(found.kl, kl.numpy(), rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(found.nll, -wanted[rows, torch.from_numpy(TARGETS)].numpy(), rtol=1e-13)
    np.testing.assert_allclose(found.nll_reference, -given[rows, torch.from_numpy(TARGETS)].numpy(), rtol=1e-13)
    assert (found.is_same_top == (wanted.argmax(1) == given.argmax(1)).numpy()).all()


def test_the_same_logits_have_no_divergence_and_threads_change_nothing() -> None:
    same = score(TARGETS, logits(1), logits(1))
    assert same.kl is not None
    assert same.is_same_top is not None
    assert same.kl.tolist() == [0] * N
    assert same.is_same_top.all()
    with ThreadPoolExecutor(3) as pool:
        together = score(TARGETS, logits(3), logits(1), pool)
    alone = score(TARGETS, logits(3), logits(1))
    assert together.kl is not None
    assert alone.kl is not None
    assert together.kl.tobytes() == alone.kl.tobytes()
    assert together.nll.tobytes() == alone.nll.tobytes()


def test_without_a_reference_there_is_likelihood_alone() -> None:
    found = score(TARGETS, logits(1))
    assert (found.kl, found.nll_reference, found.is_same_top) == (None, None, None)
    assert found.nll.tobytes() == score(TARGETS, logits(1), logits(2)).nll.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("who", ["model", "reference"])
def test_logits_that_are_no_numbers_are_an_error(who: str, value: float) -> None:
    given = {"model": logits(1), "reference": logits(2)}
    given[who][5, 7] = value
    with pytest.raises(EngineError, match=r"of row 5, before token .* no finite numbers"):
        score(TARGETS, **given)


def test_large_logits_do_not_overflow() -> None:
    found = score(TARGETS, logits(1, 1e4), logits(2, 1e4))
    assert found.kl is not None
    assert np.isfinite(found.kl).all()
    assert np.isfinite(found.nll).all()
