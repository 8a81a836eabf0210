"""What a model's logits say of texts, beside a reference's or alone: means with bounds, quantiles, by text, position.

Logits are had a few rows at a time and never kept; of each token four numbers are.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import EngineError, InputError, OptionError
from edge_llama.fidelity.bootstrap import BLOCK, Estimate, means
from edge_llama.fidelity.scores import Scores, joined, score
from edge_llama.fidelity.source import Chunk, LogitSource
from edge_llama.host.devices import cpu_threads

Progress = Callable[[str, int, int], None]
"""Told what is done, how much of it, and of how much."""
Observer = Callable[[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32] | None, ThreadPoolExecutor], None]
"""Given the same as :func:`edge_llama.fidelity.scores.score`."""
_LOGIT_BYTES = 1 << 26
"""Of each side's logits at once."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What is said of a number of tokens; what needs a reference is None without one. Divergences in nats."""

    n_tokens: int
    perplexity: Estimate
    perplexity_reference: Estimate | None = None
    ratio: Estimate | None = None
    """The model's perplexity divided by the reference's."""
    kl: Estimate | None = None
    """The mean divergence."""
    kl_median: float | None = None
    kl_99: float | None = None
    """99 % of the tokens have less."""
    kl_999: float | None = None
    kl_max: float | None = None
    top1: Estimate | None = None
    """The part of the tokens before which both have the same largest logit, 0 to 1."""

    def to_json(self) -> dict[str, Any]:
        """By the fields' names, without those that are None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value.to_json() if isinstance(value, Estimate) else value
            for name, value in values.items()
            if value is not None
        }


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """The scores of every token, and of which text each is."""

    model: str
    reference: str | None
    scores: Scores
    texts: tuple[str, ...]
    """The names of the texts."""
    domains: tuple[str, ...]
    """The domain of each text."""
    text_of: NDArray[np.int64]
    """Of each token the number of its text, ``(n,)``."""
    positions: NDArray[np.int64]
    """Of each token how many were before it in its chunk, ``(n,)``."""
    blocks: NDArray[np.int64]
    """Of each token the stretch that it is of, ``(n,)``: consecutive tokens of a chunk, drawn together for bounds."""

    def summary(self, which: NDArray[np.bool_] | None = None) -> Summary:
        """Of all tokens, or of those that ``which`` ``(n,)`` names; at least one."""
        if which is None:
            return _summary(self.scores, self.blocks)
        return _summary(self.scores.part(which), self.blocks[which])

    def by_text(self) -> dict[str, Summary]:
        """Of each text, in their order."""
        return {text: self.summary(self.text_of == number) for number, text in enumerate(self.texts)}

    def by_domain(self) -> dict[str, Summary]:
        """Of each domain, in the order of the texts."""
        of_texts = np.array(self.domains)
        names = dict.fromkeys(self.domains)
        return {domain: self.summary((of_texts == domain)[self.text_of]) for domain in names}

    def by_position(self, count: int = 8) -> dict[tuple[int, int], Summary]:
        """Of ``count`` stretches of positions in the chunk, from and to (exclusive); none that has no token."""
        low, high = int(self.positions.min()), int(self.positions.max()) + 1
        edges = np.unique(np.linspace(low, high, count + 1).round().astype(np.int64))
        found = {}
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            which = (self.positions >= start) & (self.positions < stop)
            if which.any():
                found[start, stop] = self.summary(which)
        return found

    def to_json(self) -> dict[str, Any]:
        """All summaries; scores of single tokens are left out."""
        positions = [
            {"from": start, "to": stop, **summary.to_json()} for (start, stop), summary in self.by_position().items()
        ]
        return {
            "model": self.model,
            "reference": self.reference,
            "all": self.summary().to_json(),
            "texts": [
                {"text": name, "domain": domain, **summary.to_json()}
                for (name, summary), domain in zip(self.by_text().items(), self.domains, strict=True)
            ],
            "domains": {name: summary.to_json() for name, summary in self.by_domain().items()},
            "positions": positions,
        }


def compare(
    reference: LogitSource | None,
    model: LogitSource,
    chunks: Sequence[Chunk],
    on_progress: Progress | None = None,
    observe: Observer | None = None,
) -> Comparison:
    """Score ``model`` on ``chunks``, beside ``reference`` if there is one.

    ``observe`` is given the logits too, before they are let go. Raises InputError for no chunks or ids that are not in
    the vocabulary, OptionError for vocabularies of different sizes, EngineError for logits that are no numbers, and
    what the sources raise.
    """
    sources = [source for source in (reference, model) if source is not None]
    _check(sources, chunks)
    tell = on_progress or (lambda *_: None)
    for source in sources:
        source.prepare([chunk.ids for chunk in chunks], partial(tell, source.name))
    total, done = sum(len(chunk.ids) for chunk in chunks), 0
    parts = []
    with ThreadPoolExecutor(cpu_threads(), "edge-llama-scores") as pool:
        for number, chunk in enumerate(chunks):
            for start, stop in _slices(chunk, model.n_vocab):
                targets = chunk.ids[start + 1 : stop + 1]
                given = reference.logits(number, start, stop) if reference else None
                logits = model.logits(number, start, stop)
                parts.append(_scored(chunk, start, score, targets, logits, given, pool))
                if observe:
                    observe(targets, logits, given, pool)
                tell("scoring", done + stop + 1, total)
            done += len(chunk.ids)
    return _comparison(reference, model, chunks, joined(parts))


def _slices(chunk: Chunk, n_vocab: int) -> Iterator[tuple[int, int]]:
    """Rows whose logits are had together; the last token predicts nothing that is known."""
    step = max(1, _LOGIT_BYTES // (4 * n_vocab))
    last = len(chunk.ids) - 1
    for start in range(chunk.begin - 1, last, step):
        yield start, min(start + step, last)


def _scored(
    chunk: Chunk, start: int, work: Callable[..., Scores], *given: NDArray[Any] | ThreadPoolExecutor | None
) -> Scores:
    """The scores of a slice; an error says of which text and where."""
    try:
        return work(*given)
    except EngineError as error:
        where = f"{chunk.text}: after {start:,} tokens of a chunk"
        raise EngineError(f"{where}: {error.message}", remedy="verify the file: edge-llama verify MODEL") from error


def _check(sources: Sequence[LogitSource], chunks: Sequence[Chunk]) -> None:
    if not chunks:
        raise InputError("there is nothing to score", remedy="give a longer text, or a smaller --n-ctx")
    if len({source.n_vocab for source in sources}) > 1:
        told = ", ".join(f"{source.name} has {source.n_vocab:,} tokens" for source in sources)
        raise OptionError(
            f"the vocabularies differ: {told}", remedy="compare models of the same checkpoint, with one vocabulary"
        )
    n_vocab = sources[0].n_vocab
    for chunk in chunks:
        if int(chunk.ids.min()) < 0 or int(chunk.ids.max()) >= n_vocab:
            raise InputError(f"{chunk.text}: has tokens outside the vocabulary of {n_vocab:,}")


def _comparison(
    reference: LogitSource | None, model: LogitSource, chunks: Sequence[Chunk], scores: Scores
) -> Comparison:
    texts = {chunk.text: chunk.domain for chunk in chunks}
    numbers = {text: number for number, text in enumerate(texts)}
    positions = [np.arange(chunk.begin, len(chunk.ids), dtype=np.int64) for chunk in chunks]
    blocks, n_blocks = [], 0
    for chunk in chunks:
        blocks.append(n_blocks + np.arange(chunk.n_scored, dtype=np.int64) // BLOCK)
        n_blocks = int(blocks[-1][-1]) + 1
    return Comparison(
        model=model.name,
        reference=reference.name if reference else None,
        scores=scores,
        texts=tuple(texts),
        domains=tuple(texts.values()),
        text_of=np.repeat([numbers[chunk.text] for chunk in chunks], [chunk.n_scored for chunk in chunks]),
        positions=np.concatenate(positions),
        blocks=np.concatenate(blocks),
    )


def _summary(scores: Scores, blocks: NDArray[np.int64]) -> Summary:
    kl, reference, same = scores.kl, scores.nll_reference, scores.is_same_top
    if kl is None or reference is None or same is None:
        (nll,) = means(scores.nll[:, None], blocks)
        return Summary(len(scores), nll.exp())
    columns = np.stack([scores.nll, reference, scores.nll - reference, kl, same.astype(np.float64)], axis=1)
    nll, nll_reference, difference, mean_kl, top1 = means(columns, blocks)
    median, high, higher = map(float, np.quantile(kl, (0.5, 0.99, 0.999)))
    return Summary(
        n_tokens=len(scores),
        perplexity=nll.exp(),
        perplexity_reference=nll_reference.exp(),
        ratio=difference.exp(),
        kl=mean_kl,
        kl_median=median,
        kl_99=high,
        kl_999=higher,
        kl_max=float(kl.max()),
        top1=top1,
    )
