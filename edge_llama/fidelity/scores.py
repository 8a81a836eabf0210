"""The numbers of each token: how likely it was, how far two distributions lie apart, whether both choose the same."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import EngineError

_BLOCK = 1 << 18
"""Logits that are computed with at once: in float64 they stay in a processor's cache."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Of ``n`` tokens; what needs a reference is None without one. All in nats, float64 ``(n,)``."""

    nll: NDArray[np.float64]
    """The model's negative log-likelihood of each token."""
    nll_reference: NDArray[np.float64] | None = None
    kl: NDArray[np.float64] | None = None
    """The divergence of the model from the reference at each token, KL(reference || model)."""
    is_same_top: NDArray[np.bool_] | None = None
    """Whether both give the same token the largest logit."""

    def __len__(self) -> int:
        return len(self.nll)

    def part(self, which: NDArray[np.bool_]) -> "Scores":
        """Those of the tokens that ``which`` names, ``(n,)``."""
        if self.nll_reference is None or self.kl is None or self.is_same_top is None:
            return Scores(self.nll[which])
        return Scores(self.nll[which], self.nll_reference[which], self.kl[which], self.is_same_top[which])


def joined(parts: Sequence[Scores]) -> Scores:
    """The scores of all parts in their order; all have a reference or none has."""
    nll = np.concatenate([part.nll for part in parts])
    references = [part.nll_reference for part in parts if part.nll_reference is not None]
    kls = [part.kl for part in parts if part.kl is not None]
    tops = [part.is_same_top for part in parts if part.is_same_top is not None]
    if not kls:
        return Scores(nll)
    return Scores(nll, np.concatenate(references), np.concatenate(kls), np.concatenate(tops))


def score(
    targets: NDArray[np.int64],
    model: NDArray[np.float32],
    reference: NDArray[np.float32] | None = None,
    pool: ThreadPoolExecutor | None = None,
) -> Scores:
    """Scores of the tokens ``targets`` ``(n,)`` by the logits before each, ``(n, n_vocab)``, of all the vocabulary.

    With ``pool`` its threads share the rows. EngineError if a number comes out that is none: logits are NaN, or
    infinite where it matters.
    """

    def block(rows: slice) -> Scores:
        return _score(targets[rows], model[rows], None if reference is None else reference[rows])

    n_rows, n_vocab = model.shape
    found = joined(by_blocks(block, n_rows, n_vocab, pool))
    for name, values in (("model", found.nll), ("reference", found.nll_reference), ("model", found.kl)):
        if values is not None and not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            what = f"the {name}'s logits of row {row:,}, before token {targets[row]:,}"
            raise EngineError(f"{what}, are no finite numbers")
    return found


def by_blocks(work: Callable[[slice], T], n_rows: int, n_vocab: int, pool: ThreadPoolExecutor | None) -> list[T]:
    """What ``work`` gives for stretches of rows, in their order, each so short that a processor's cache holds it."""
    step = max(1, _BLOCK // n_vocab)
    slices = [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
    return list((pool.map if pool else map)(work, slices))


def _score(targets: NDArray[np.int64], model: NDArray[np.float32], reference: NDArray[np.float32] | None) -> Scores:
    at = np.arange(len(targets)), targets
    with np.errstate(all="ignore"):  # what is infinite or NaN is found in the results
        shifted, log_sum, _ = _shifted(model)
        nll = log_sum - shifted[at]
        if reference is None:
            return Scores(nll)
        shifted_reference, log_sum_reference, exponentials = _shifted(reference)
        nll_reference = log_sum_reference - shifted_reference[at]
        # sum p (log p - log q) with log p = shifted - log_sum: the sums of logarithms leave the sum over p, which is 1.
        shifted_reference -= shifted
        weighted = np.einsum("ij,ij->i", exponentials, shifted_reference) / exponentials.sum(axis=1)
        kl = weighted - log_sum_reference + log_sum
    is_same_top = model.argmax(axis=1) == reference.argmax(axis=1)
    # It is never negative; rounding in the 16th digit is.
    return Scores(nll, nll_reference, np.where(kl < 0, 0.0, kl), is_same_top)


def _shifted(logits: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Logits less their largest, the logarithm of the sum of their exponentials, and these: float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return shifted, np.log(exponentials.sum(axis=1)), exponentials
