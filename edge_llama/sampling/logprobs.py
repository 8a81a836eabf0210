"""How likely the model itself held each token, whatever was then chosen and how."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have come, and its log-probability (natural, at most 0).

    Examples:
        >>> answer = model.chat().send("What is the capital of Japan?", logprobs=2, max_tokens=1).result()
        >>> best, second = answer.logprobs[0].top
        >>> best.logprob >= second.logprob, best.token_id in answer.tokens
        (True, True)
    """

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token of an answer: its log-probability, and the likeliest tokens at its place, best first.

    Both by the model's raw distribution, the log-softmax of its logits, before penalties, bias, temperature,
    top_k and the like, and before the mask of a schema or grammar. The token itself is among ``top`` only if it was
    one of the likeliest.

    Examples:
        >>> answer = model.chat().send("What is the capital of Japan?", logprobs=0, temperature=0).result()
        >>> len(answer.logprobs) == len(answer.tokens)
        True
        >>> sum(entry.logprob for entry in answer.logprobs) < 0  # the answer's log-probability
        True
    """

    token_id: int
    logprob: float
    top: tuple[Alternative, ...]


class Distribution:
    """The log-softmax of ``(n_vocab,)`` float32 logits, which it copies what it needs of."""

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self._logprobs = logits.astype(np.float64)
        self._logprobs -= self._logprobs.max()
        self._logprobs -= np.log(np.exp(self._logprobs).sum())

    def of(self, token: int, count: int) -> TokenLogprobs:
        """The entry for ``token`` with the ``count`` likeliest tokens; equals come in the order of their ids."""
        values = self._logprobs
        best = likeliest(values, count) if count else np.empty(0, np.intp)
        return TokenLogprobs(token, float(values[token]), tuple(Alternative(int(at), float(values[at])) for at in best))


def likeliest(values: NDArray[np.floating], count: int) -> NDArray[np.intp]:
    """Where the ``count`` largest of 1-D ``values`` are, largest first and equals in order; fewer if fewer are finite.

    One partition and no sort of the whole: 0.5 ms of 200,000.
    """
    least = -np.inf
    if count < len(values):
        least = np.partition(values, len(values) - count)[len(values) - count]
    found = np.flatnonzero(values >= least) if least > -np.inf else np.flatnonzero(values > least)
    return found[np.argsort(-values[found], kind="stable")[:count]]
