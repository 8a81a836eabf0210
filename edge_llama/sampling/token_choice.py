"""One token after the other: a sampler's choice, with what surrounds it for every engine and every sampler.

A caller's functions over the logits, the mask of a schema or grammar, and the record of how likely the model itself
held each token. What is changed is written into the engine's own logits, which its sampler reads, and undone after the
choice: who answers the same prompt next may find them there.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import OptionError
from edge_llama.prompts.tokenizer import Tokenizer
from edge_llama.sampling.constraint import Constraint
from edge_llama.sampling.logprobs import Distribution, TokenLogprobs
from edge_llama.sampling.params import LogitsProcessor, SamplingParams
from edge_llama.sampling.sampler import LogitsRow, Sampler

_MAX_LOGIT = 1e8  # divided by the least temperature, 1e-30, it is finite in float32


class TokenChoice:
    """Chooses the tokens of one answer. For the engine's thread."""

    def __init__(
        self,
        sampler: Sampler,
        params: SamplingParams,
        constraint: Constraint | None,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        on_logprobs: Callable[[TokenLogprobs], None],
    ) -> None:
        """``prompt`` are its token ids, for functions over the logits.

        ``on_logprobs`` is told of each token, an end token too, if ``params`` ask for it.
        """
        self._sampler = sampler
        self._processors = cast("tuple[LogitsProcessor, ...]", params.logits_processor)
        self._constraint = constraint
        self._tokenizer = tokenizer
        self._token_ids = list(prompt) if self._processors else []
        self._n_logprobs = params.logprobs
        self._on_logprobs = on_logprobs
        self._changes_logits = bool(self._processors or constraint)

    def __call__(self, row: LogitsRow, given: int | None = None) -> int:
        """The next token, by logits that are put back as they were, or the one that is ``given``.

        OptionError if a function over the logits fails, EngineError or OptionError if nothing can follow.
        """
        if self._n_logprobs is None:
            return self._chosen(row) if given is None else self.take(given)
        raw = Distribution(row.values)
        token = self._chosen(row) if given is None else self.take(given)
        self._on_logprobs(raw.of(token, self._n_logprobs))
        return token

    @property
    def needs_logits(self) -> bool:
        """Whether every token needs the logits of its place: they are recorded, or functions are told of each."""
        return bool(self._processors) or self._n_logprobs is not None

    def take(self, token: int) -> int:
        """A token that was not chosen here."""
        self._sampler.accept(token)
        if self._processors:
            self._token_ids.append(token)
        return token

    def forced(self) -> Iterator[int]:
        """The tokens that the constraint leaves no choice about, each accepted as it is taken.

        None where a record of the logits is wanted, or functions change them.
        """
        if self._constraint is None or self.needs_logits:
            return
        for token in self._constraint.forced():
            self._constraint.accept(token)
            self._sampler.accept(token)
            yield token

    def constrain(self, constraint: Constraint) -> None:
        """From here on what comes fits ``constraint``."""
        self._constraint = constraint
        self._changes_logits = True

    @property
    def is_complete(self) -> bool:
        """Whether the answer fits its constraint and nothing can follow."""
        return self._constraint is not None and self._constraint.is_complete

    def _chosen(self, row: LogitsRow) -> int:
        if not self._changes_logits:
            return self._sampler.sample(row)
        logits = row.values
        whole = logits.copy()
        try:
            self._change(logits)
            token = self._sampler.sample(row)
        finally:
            logits[:] = whole
        if self._processors:
            self._token_ids.append(token)
        if self._constraint and not self._tokenizer.is_end(token):
            self._constraint.accept(token)
        return token

    def _change(self, logits: NDArray[np.float32]) -> None:
        for processor in self._processors:
            logits[:] = _processed(processor, self._token_ids, logits)
        if self._constraint:
            self._constraint.mask(logits)
            if self._processors and logits.max() == -np.inf:
                raise OptionError("logits_processor: it leaves no token that the schema, regex or grammar allows")


def _processed(
    processor: LogitsProcessor, token_ids: Sequence[int], logits: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What the function makes of a copy of the logits. OptionError if it raises or gives what can't be sampled."""
    try:
        found = np.asarray(processor(token_ids, logits.copy()))
    except Exception as error:
        raise OptionError(f"logits_processor: it raised {type(error).__name__}: {error}") from error
    if found.shape != logits.shape or found.dtype.kind not in "fiu":
        raise OptionError(
            f"logits_processor: it gave {found.dtype} of the shape {found.shape}, expected numbers of {logits.shape}",
            remedy="return the logits, changed or not",
        )
    with np.errstate(over="ignore"):  # of float64 below float32's range: -inf is meant
        changed = found.astype(np.float32)
    best = changed.max()
    if not -np.inf < best <= _MAX_LOGIT:  # NaN is neither
        raise OptionError(
            f"logits_processor: the largest logit that it gave is {best}, expected a number up to {_MAX_LOGIT:,.0f}",
            remedy="give -inf to tokens that must not come, and leave one that may",
        )
    return changed
