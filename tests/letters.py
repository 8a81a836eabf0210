"""A text tower without weights, for what happens around one: each next token depends on every token of its sequence.

So an answer shows whether the cache held what it should. Its cells are those of an engine: shared, counted, limited.
"""

import threading
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.adapters import AdapterSet
from edge_llama.backends.base import AbortedError, CacheSize, Rows
from edge_llama.errors import EngineError
from edge_llama.files.gguf_adapter import AdapterFile
from edge_llama.runtime.scheduler import Scheduler
from edge_llama.sampling.numpy_sampler import NumpySampler
from edge_llama.sampling.params import SamplingParams
from edge_llama.sampling.sampler import LogitsRow, Sampler

N_VOCAB = 26


def following(tokens: Sequence[int]) -> int:
    """The likeliest token after these."""
    state = 7
    for token in tokens:
        state = (state * 31 + token + 1) % 1_000_003
    return state % N_VOCAB


def said(prompt: Sequence[int], tokens: int) -> str:
    """The answer to a prompt, greedy, of so many tokens."""
    sequence = list(prompt)
    for _ in range(tokens):
        sequence.append(following(sequence))
    return "".join(chr(97 + token) for token in sequence[len(prompt) :])


class Letters:
    """Keeps the Protocol ``TextTower``, and is its own tokenizer. ``go`` cleared holds it within ``decode``."""

    n_embd, n_vocab = 1, N_VOCAB
    settings: Mapping[str, Any] = {"engine": "letters"}

    def __init__(self, cache: CacheSize | None = None, n_batch: int = 64) -> None:
        self._cache = cache or CacheSize(4096, 4096, 8)
        self.n_ctx, self.n_cells, self.n_sequences = self._cache.n_ctx, self._cache.n_cells, self._cache.n_sequences
        self.n_batch = n_batch
        self.tokenizer: Any = self
        self.sequences: list[list[tuple[int, int]]] = [[] for _ in range(self.n_sequences)]
        """Of each sequence its cells and the tokens in them."""
        self.decoded: list[dict[int, int]] = []
        """Of each decode how many rows each sequence had."""
        self.loads = 0
        self.refuses: Callable[[Sequence[Rows]], BaseException | None] = lambda _batch: None
        """The error of a decode, if it fails."""
        self.go = threading.Event()
        self.go.set()
        self.within = threading.Event()
        """Set while a decode is running."""
        self.within_abort: Callable[[], None] = lambda: None
        """Called once, while the engine's lock is held."""
        self._cells = count()
        self._is_aborted = False

    def is_end(self, token: int) -> bool:
        return False

    def piece(self, token: int) -> bytes:
        return bytes([97 + token % N_VOCAB])

    def length(self, sequence: int) -> int:
        return len(self.sequences[sequence])

    def tokens(self, sequence: int) -> list[int]:
        return [token for _, token in self.sequences[sequence]]

    @property
    def used_cells(self) -> int:
        return len({cell for sequence in self.sequences for cell, _ in sequence})

    def decode(self, batch: Sequence[Rows]) -> Sequence[LogitsRow]:
        self.within.set()
        try:
            while not self.go.wait(0.001):
                if self._is_aborted:
                    raise AbortedError
            if error := self.refuses(batch):
                raise error
            if self._is_aborted:
                raise AbortedError
            self._append(batch)
        finally:
            self.within.clear()
        return [LogitsRow(self._logits(rows.sequence)) for rows in batch if rows.needs_logits]

    def _append(self, batch: Sequence[Rows]) -> None:
        new = sum(len(rows.tokens) for rows in batch)
        assert 0 < new <= self.n_batch
        assert len({rows.embeddings is None for rows in batch}) == 1, "tokens and embeddings in one batch"
        if self.used_cells + new > self.n_cells:
            raise EngineError("there are no cells left")
        self.decoded.append({rows.sequence: len(rows.tokens) for rows in batch})
        for rows in batch:
            tokens = rows.tokens if rows.embeddings is None else [int(value) for value in rows.embeddings[:, 0]]
            self.sequences[rows.sequence] += [(next(self._cells), token) for token in tokens]
            assert self.length(rows.sequence) <= self.n_ctx

    def _logits(self, sequence: int) -> NDArray[np.float32]:
        logits = np.zeros(N_VOCAB, np.float32)
        logits[following(self.tokens(sequence))] = 10
        return logits

    def cut(self, sequence: int, length: int) -> None:
        del self.sequences[sequence][length:]

    def share(self, source: int, target: int, length: int) -> None:
        assert self.n_sequences > 1
        self.sequences[target][:length] = self.sequences[source][:length]

    def saved_bytes(self, sequence: int) -> int:
        return 4 * self.length(sequence)

    def save(self, sequence: int) -> NDArray[np.uint8]:
        return np.array(self.tokens(sequence), np.int32).view(np.uint8)

    def load(self, sequence: int, kv: NDArray[np.uint8], length: int) -> None:
        self.loads += 1
        self.cut(sequence, 0)
        if kv.nbytes != 4 * length:
            raise EngineError(f"letters read 0 of {kv.nbytes} bytes")
        self.sequences[sequence] = [(next(self._cells), token) for token in kv.view(np.int32).tolist()]

    def sampler(self, params: SamplingParams, history: Sequence[int]) -> Sampler:
        return NumpySampler(params, history)

    def use_threads(self, count: int) -> None:
        if count < 1:
            raise ValueError("no threads")

    def abort(self) -> None:
        self._is_aborted = True
        within, self.within_abort = self.within_abort, lambda: None
        within()

    def resume(self) -> None:
        self._is_aborted = False

    def close(self) -> None: ...


def said_with(prompt: Sequence[int], tokens: int, adapters: AdapterSet) -> str:
    """:func:`said` by a tower with ``adapters``."""
    return said([*_seed(adapters), *prompt], tokens)


def _seed(adapters: AdapterSet) -> list[int]:
    return [zlib.crc32(repr(adapters).encode()) % 1000] if adapters else []


class AdaptedLetters(Letters):
    """Letters that depend on adapters too. A row over cells that others computed is an AssertionError.

    Keeps the Protocol ``AdaptedTower``.
    """

    def __init__(self, cache: CacheSize | None = None, n_batch: int = 64) -> None:
        super().__init__(cache, n_batch)
        self.used: AdapterSet = ()
        self.turns: list[AdapterSet] = []
        """What each decode was computed with."""
        self._known: list[AdapterSet] = []
        self._by_cell: dict[int, AdapterSet] = {}

    def add_adapters(self, adapters: Iterable[AdapterFile]) -> None: ...

    def use_adapters(self, adapters: AdapterSet) -> None:
        self.used = adapters
        if adapters not in self._known:
            self._known.append(adapters)

    def set_of(self, sequence: int) -> AdapterSet:
        """What a sequence was computed with."""
        found = {self._by_cell.get(cell, self.used) for cell, _ in self.sequences[sequence]} or {self.used}
        assert len(found) == 1, found
        return next(iter(found))

    def decode(self, batch: Sequence[Rows]) -> Sequence[LogitsRow]:
        assert {self.set_of(rows.sequence) for rows in batch} == {self.used}
        logits = super().decode(batch)
        self.turns.append(self.used)
        for rows in batch:
            self._by_cell |= {cell: self.used for cell, _ in self.sequences[rows.sequence]}
        return logits

    def _logits(self, sequence: int) -> NDArray[np.float32]:
        logits = np.zeros(N_VOCAB, np.float32)
        logits[following([*_seed(self.set_of(sequence)), *self.tokens(sequence)])] = 10
        return logits

    def saved_bytes(self, sequence: int) -> int:
        return super().saved_bytes(sequence) + 4

    def save(self, sequence: int) -> NDArray[np.uint8]:
        number = self._known.index(self.set_of(sequence)) if self.set_of(sequence) else -1
        return np.concatenate((np.array([number], np.int32).view(np.uint8), super().save(sequence)))

    def load(self, sequence: int, kv: NDArray[np.uint8], length: int) -> None:
        super().load(sequence, kv[4:], length)
        number = int(kv[:4].view(np.int32)[0])
        adapters = self._known[number] if number >= 0 else ()
        self._by_cell |= {cell: adapters for cell, _ in self.sequences[sequence]}


def scheduler(tower: Letters, **options: Any) -> Scheduler:
    """A scheduler over the tower, with room for copies unless ``room`` says otherwise."""
    return Scheduler(tower, lambda: 1, **{"room": lambda _used: 10**9, **options})
