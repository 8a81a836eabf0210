"""Texts become vectors: batches of them through the engine's thread, pooled and brought to unit length here.

Each batch is a piece of work of its own for that thread, so that running answers wait for one at most. A long text of a
causal model comes in parts; an encoder's, where every token sees every other, comes whole.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.base import AbortedError, TextEmbedder
from edge_llama.errors import ContextFullError, EngineError, InputError, OptionError
from edge_llama.files.artifact import Artifact, Pooling
from edge_llama.prompts.messages import check_text
from edge_llama.prompts.tokenizer import Tokenizer
from edge_llama.runtime.scheduler import Scheduler

_KNOWN: tuple[Pooling, ...] = get_args(Pooling)
_COUNTED = 100_000  # characters that any tokenizer counts in no time
_CUT = "cut it into shorter ones, or open the model with a larger n_ctx (--n-ctx), if it was trained for more"


@dataclass(frozen=True, slots=True)
class PoolingChoice:
    """How hidden states are pooled, and why; ``is_known``: somebody said so.

    Examples:
        >>> print(model.pooling())
        mean (the default: the file names none)
        >>> model.pooling("last").is_known
        True
    """

    name: Pooling
    reason: str
    is_known: bool = True

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def choose_pooling(artifact: Artifact, asked: object = None) -> PoolingChoice:
    """As asked, else as the file says, else the mean. InputError, or OptionError for what the model can't do."""
    if not artifact.gives_hidden_states:
        raise InputError(
            f"{artifact.path}: the model gives no hidden states, from which embeddings are computed",
            remedy="convert it again with --embeddings, or to GGUF",
        )
    if asked is not None and asked not in _KNOWN:
        raise OptionError(f"pooling is {asked!r:.100}", remedy=f"known: {', '.join(_KNOWN)}")
    if asked is None and artifact.pooling == "rank":
        raise OptionError(
            f"{artifact.path}: the model ranks pairs of texts: its file names no pooling for embeddings",
            remedy=f"give one: {', '.join(_KNOWN)}",
        )
    wanted = asked or artifact.pooling
    reason = "as asked" if asked else "as the file says" if wanted else "the default: the file names none"
    name = next((name for name in _KNOWN if name == wanted), _KNOWN[0])
    if name == "cls" and not artifact.sees_whole_text:
        raise OptionError(
            f"{artifact.path}: pooling {name} ({reason}) takes the first token's vector, which is the same for all "
            f"texts: in this model a token sees none after it",
            remedy="take mean or last",
        )
    return PoolingChoice(name, reason, is_known=wanted is not None)


def check_texts(texts: object) -> None:
    """OptionError for what is no list of texts."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
        raise OptionError(f"texts is {type(texts).__name__}, expected a list of texts", remedy="put it into a list")
    for number, text in enumerate(texts):
        check_text(text, f"texts[{number}]")


def text_tokens(texts: Sequence[str], tokenizer: Tokenizer, n_ctx: int) -> list[list[int]]:
    """The ids of each text with what the model wants around it; at most ``n_ctx``, else ContextFullError.

    OptionError for a text without a token of its own.
    """
    before, after = tokenizer.frame
    found = []
    for number, text in enumerate(texts):
        if len(text) > _COUNTED and (least := tokenizer.least_tokens(text)) > n_ctx:
            raise ContextFullError(least, n_ctx, is_bound=True, text=f"texts[{number}]", remedy=_CUT)
        own = tokenizer.encode(text)
        if not own:
            raise OptionError(f"texts[{number}] is empty: {text!r:.40} has no tokens", remedy="leave it out")
        if (count := len(before) + len(own) + len(after)) > n_ctx:
            raise ContextFullError(count, n_ctx, text=f"texts[{number}]", remedy=_CUT)
        found.append([*before, *own, *after])
    return found


class Embeddings:
    """The vectors of texts by the tower of an engine. Any thread may ask; each batch of each is done in turn."""

    def __init__(self, engine: Scheduler) -> None:
        self._engine = engine
        self._lock = threading.Lock()  # the parts of a long text must follow each other

    def of(self, texts: Sequence[Sequence[int]], pooling: Pooling) -> NDArray[np.float32]:
        """``(n, n_embd)`` of unit length, for token ids that fit the context."""
        if not texts:
            return np.zeros((0, self._engine.call(lambda: self._engine.tower.embedder(1).n_embd)), np.float32)
        longest = max(map(len, texts))
        vectors: list[NDArray[np.float32]] = []
        for batch in self._batches(texts, longest):
            with self._lock:
                vectors += self._embedded(batch, longest, pooling)
        return np.stack(vectors)

    def _batches(self, texts: Sequence[Sequence[int]], longest: int) -> Iterator[Sequence[Sequence[int]]]:
        """Texts one after another that fit one batch; a longer one alone."""
        with self._lock:
            limits = self._engine.call(lambda: _limits(self._engine.tower.embedder(longest)))
        begin = tokens = 0
        for at, text in enumerate(texts):
            if at > begin and (tokens + len(text) > limits[0] or at - begin == limits[1]):
                yield texts[begin:at]
                begin, tokens = at, 0
            tokens += len(text)
        yield texts[begin:]

    def _embedded(
        self, texts: Sequence[Sequence[int]], longest: int, pooling: Pooling
    ) -> Iterator[NDArray[np.float32]]:
        if len(texts) > 1:
            states = self._states(texts, longest)
            ends = np.cumsum([len(text) for text in texts])[:-1]
            parts = [[part] for part in np.split(states, ends)]
        else:
            parts = [list(self._in_parts(texts[0], longest))]
        for part in parts:
            yield _unit(_pooled(part, pooling))

    def _in_parts(self, text: Sequence[int], longest: int) -> Iterator[NDArray[np.float32]]:
        at = 0
        while at < len(text):
            states = self._states([text[at:]], longest, continues=at > 0)
            at += len(states)
            yield states

    def _states(self, texts: Sequence[Sequence[int]], longest: int, *, continues: bool = False) -> NDArray[np.float32]:
        """As much of the last text as fits a batch. What an abort for others stopped is done again.

        Whoever waits here was told by then, if it was for him; a closed model refuses the next piece of work.
        """

        def work() -> NDArray[np.float32] | None:
            embedder = self._engine.tower.embedder(longest)
            parts = [text[: embedder.n_tokens] for text in texts]
            try:
                return embedder.states(parts, continues=continues)
            except AbortedError:
                return None

        while (states := self._engine.call(work)) is None:
            pass
        return states


def _limits(embedder: TextEmbedder) -> tuple[int, int]:
    return embedder.n_tokens, embedder.n_texts


def _pooled(parts: Sequence[NDArray[np.float32]], pooling: Pooling) -> NDArray[np.float64]:
    """One vector of a text whose hidden states came in ``parts``."""
    if pooling == "mean":
        total: NDArray[np.float64] = np.sum([part.sum(axis=0, dtype=np.float64) for part in parts], axis=0)
        return total / sum(map(len, parts))
    row: NDArray[np.float32] = parts[-1][-1] if pooling == "last" else parts[0][0]
    return row.astype(np.float64)


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float32]:
    """Of length 1; EngineError for what has no direction."""
    length = float(np.linalg.norm(vector))
    if not 0 < length < np.inf:
        raise EngineError(f"a text's vector has the length {length}: the model's weights are damaged")
    return (vector / length).astype(np.float32)
