"""An open model as a source of logits, whichever engine runs it, and whether two sources mean the same by token ids."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.scoring import scored
from edge_llama.errors import ContextFullError, OptionError
from edge_llama.fidelity.source import Chunk
from edge_llama.files.artifact import Artifact
from edge_llama.host.memory import give_back
from edge_llama.model import Model
from edge_llama.prompts.messages import Message
from edge_llama.prompts.tokenizer import Tokenizer

_SEQUENCE = 0


class ModelLogits:
    """Keeps the Protocol :class:`edge_llama.fidelity.source.LogitSource`. What the model's cache held is let go.

    Nobody else may use the model meanwhile: the logits are the engine's own memory, good until the next call.
    """

    def __init__(self, model: Model, name: str, *, is_whole: bool = False) -> None:
        """``is_whole``: all rows of a chunk are computed together, the last too, of which no logits are asked for.

        Where several rows pass through a kernel together, their number decides how each is rounded; so llama-perplexity
        computes chunks. It takes more memory.
        """
        self.name = name
        self._is_whole = is_whole
        self._ahead: tuple[int, NDArray[np.float32]] | None = None
        self._model, self._engine = model, model._engine
        self._chunks: Sequence[NDArray[np.int64]] = ()
        self._at = -1

    @property
    def n_vocab(self) -> int:
        """Logits that each row has."""
        return self._model.artifact.n_vocab

    def prepare(
        self,
        chunks: Sequence[NDArray[np.int64]],
        on_progress: Callable[[int, int], None] | None = None,  # noqa: ARG002 - there is nothing to do beforehand
    ) -> None:
        """Remember the chunks. ContextFullError for one that the model's context does not hold."""
        longest = max((len(ids) for ids in chunks), default=0)
        if longest > self._model.n_ctx:
            raise ContextFullError(longest, self._model.n_ctx, text=f"a chunk for {self.name}")
        self._chunks, self._at, self._ahead = chunks, -1, None
        self._engine.call(self._begin, is_alone=True)

    def logits(self, number: int, start: int, stop: int) -> NDArray[np.float32]:
        """See :meth:`edge_llama.fidelity.source.LogitSource.logits`. Ctrl-C stops it at once."""
        return self._engine.call(lambda: self._logits(number, start, stop), is_alone=True)

    def close(self) -> None:
        """Leave the model's cache empty."""
        self._engine.call(self._begin, is_alone=True)

    def _begin(self) -> None:
        self._ahead = None
        self._engine.cache.clear()
        self._engine.tower.cut(_SEQUENCE, 0)

    def _logits(self, number: int, start: int, stop: int) -> NDArray[np.float32]:
        """The same, in the engine's thread."""
        if not self._is_whole:
            return self._decoded(number, start, stop)
        if number != self._at or self._ahead is None or start < self._ahead[0]:
            self._ahead = start, self._decoded(number, start, len(self._chunks[number]))
        first, rows = self._ahead
        return rows[start - first : stop - first]

    def _decoded(self, number: int, start: int, stop: int) -> NDArray[np.float32]:
        tower = self._engine.tower
        if number != self._at or tower.length(_SEQUENCE) > start:
            tower.cut(_SEQUENCE, 0)
            self._at = number
        begin = tower.length(_SEQUENCE)
        return scored(tower, _SEQUENCE, self._chunks[number][begin:stop].tolist(), stop - start)


class LaterLogits:
    """The same of a model that is opened when all else is ready: a reference may need the memory until then."""

    def __init__(self, artifact: Artifact, opened: Callable[[], Model], *, is_whole: bool = False) -> None:
        self.name, self.n_vocab = artifact.path.name, artifact.n_vocab
        self.model: Model | None = None
        """The model, once it is open."""
        self._opened, self._is_whole = opened, is_whole
        self._logits: ModelLogits | None = None

    def prepare(
        self, chunks: Sequence[NDArray[np.int64]], on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Open the model, whose errors this raises, and remember the chunks."""
        give_back()
        if self.model is None:
            self.model = self._opened()
        self._logits = ModelLogits(self.model, self.name, is_whole=self._is_whole)
        self._logits.prepare(chunks, on_progress)

    def logits(self, number: int, start: int, stop: int) -> NDArray[np.float32]:
        """See :meth:`ModelLogits.logits`."""
        assert self._logits is not None  # noqa: S101 - prepared
        return self._logits.logits(number, start, stop)

    def close(self) -> None:
        """Close the model, if it was opened."""
        if self.model is not None:
            self.model.close()


def pieces_of(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes that each token of an open model stands for."""
    return [tokenizer.piece(token) for token in range(tokenizer.n_vocab)]


def check_same_vocabulary(
    model: str, pieces: Sequence[bytes], reference: str, pieces_reference: Sequence[bytes]
) -> None:
    """OptionError if an id stands for other text in the one than in the other: they can't be compared by ids.

    A token that is control to one of both says nothing: files differ in what they call so.
    """
    found = next(
        (
            (token, own, other)
            for token, (own, other) in enumerate(zip(pieces, pieces_reference, strict=False))
            if own and other and own != other
        ),
        None,
    )
    if found:
        token, own, other = found
        difference = f"its token {token:,} is {_shown(other)}, not {_shown(own)}"
        raise OptionError(
            f"{reference} has another vocabulary than {model}: {difference}",
            remedy="compare models of the same checkpoint",
        )


def _shown(piece: bytes) -> str:
    return repr(piece.decode("utf-8", "backslashreplace"))[:60]


def continuations(
    model: Model, questions: Sequence[str], n_ctx: int, on_progress: Callable[[int, int], None] | None = None
) -> list[Chunk]:
    """What ``model`` answers to each question, choosing the likeliest token always, its answers to be scored.

    TemplateError for a model that has no chat template; ContextFullError for a question that leaves no room.
    """
    found = []
    for number, question in enumerate(questions):
        messages = [Message("user", question)]
        ids = model.template.tokens(messages, n_ctx=n_ctx)
        answer = model.answer(messages, temperature=0, max_tokens=n_ctx - len(ids)).result()
        if answer.tokens:
            whole = np.array([*ids, *answer.tokens], np.int64)
            found.append(Chunk(whole, f"answer {number + 1}", "answers", begin=len(ids)))
        if on_progress:
            on_progress(number + 1, len(questions))
    return found
