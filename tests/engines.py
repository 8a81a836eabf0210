"""Look into an open model from a test: its tower's logits, its session, in the thread that owns them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import llama_cpp
import numpy as np
from numpy.typing import NDArray
from one_sequence import OneSequence

import edge_llama
from edge_llama.backends.base import AskedDevice, TextTower, VisionTower
from edge_llama.backends.llama_cpp.text import LlamaCppTower
from edge_llama.backends.registry import vision_engine_of
from edge_llama.files.artifact import VisionArtifact
from edge_llama.runtime.cache_entries import CacheOwner, Held
from edge_llama.runtime.prompt_cache import PromptCache
from edge_llama.runtime.session_file import State

T = TypeVar("T")
CAPITAL = "What is the capital of Japan?"
"""A question that the built-in model answers right in every format, with a margin."""


class Session:
    """The cache of an open model by hand: it prefills as answers do, and what was used last can be looked at."""

    def __init__(self, tower: TextTower, cache: PromptCache) -> None:
        self.tower = tower
        self.cache = cache

    @property
    def held(self) -> Held | None:
        return self.cache._held[-1] if self.cache._held else None

    @property
    def tokens(self) -> list[int]:
        return self.held.tokens if self.held else []

    @property
    def length(self) -> int:
        """Positions, as the tower counts them."""
        return self.tower.length(self.held.number if self.held else 0)

    def logits(self) -> NDArray[np.float32]:
        """Of the last position."""
        assert self.held
        assert self.held.logits is not None
        return self.held.logits.copy()

    def prefill(self, prompt: Sequence[int], owner: CacheOwner | None = None) -> int:
        """Have exactly these tokens in the cache; how many were there."""
        beginning = self.cache.begin(np.array(prompt, np.int32), owner)
        assert beginning
        held, one, logits = beginning.held, OneSequence(self.tower, beginning.held.number), beginning.held.logits
        try:
            for at in range(beginning.reused, len(prompt), self.tower.n_batch):
                tokens = prompt[at : at + self.tower.n_batch]
                one.decode(tokens)
                self.cache.appended(held, tokens)
                logits = one.logits()
        finally:
            self.cache.synchronize(held)
            self.cache.end(held, logits)
        return beginning.reused

    def append(self, *tokens: int) -> None:
        self.prefill([*self.tokens, *tokens])

    def rewind(self, length: int) -> None:
        """Keep the first tokens; with none of them, forget what others read too."""
        if not length:
            self.cache.clear()
        elif self.held:
            self.cache.cut(self.held, length)
            self.cache.end(self.held)

    def state(self, owner: CacheOwner) -> State | None:
        return self.cache.state(owner)


def on_engine(model: edge_llama.Model, work: Callable[[Session, TextTower], T]) -> T:
    """What ``work(session, tower)`` gives, called in the engine's thread while nothing is running."""
    engine = model._engine
    return engine.call(lambda: work(Session(engine.tower, engine.cache), engine.tower), is_alone=True)


def last_logits(path: Path, tokens: Sequence[int], n_ctx: int = 512) -> Any:
    """Logits after a prompt, at the settings where parity is tight: f32 cache, no flash attention."""

    def work(session: Session, _tower: TextTower) -> Any:
        session.prefill(tokens)
        return session.logits()

    with edge_llama.open(path, n_ctx=n_ctx, kv_format="f32") as model:
        return on_engine(model, work)


def logits_with(
    model: edge_llama.Model, tokens: Sequence[int], adapters: Sequence[str] | Mapping[str, float] | None
) -> NDArray[np.float32]:
    """After ``tokens``, computed anew with adapters that the model was opened with."""

    def work(session: Session, tower: TextTower) -> NDArray[np.float32]:
        assert isinstance(tower, LlamaCppTower)
        tower.use_adapters(model.adapter_set(adapters))
        one = OneSequence(tower, session.cache._free[-1])
        found = one.decode(tokens).values.copy()
        one.cut(0)
        return found

    return on_engine(model, work)


def greedy(path: Path, tokens: Sequence[int], count: int) -> list[int]:
    """The likeliest continuation by plain argmax, at the same settings; no end token stops it."""

    def work(session: Session, _tower: TextTower) -> list[int]:
        session.prefill(tokens)
        chosen: list[int] = []
        for _ in range(count):
            chosen.append(int(session.logits().argmax()))
            session.append(chosen[-1])
        return chosen

    with edge_llama.open(path, n_ctx=512, kv_format="f32") as model:
        return on_engine(model, work)


def decoded(model: edge_llama.Model) -> tuple[int, int]:
    """Tokens that llama.cpp itself counts: those read several at once, and those read one at a time."""

    def work(_session: Session, tower: TextTower) -> tuple[int, int]:
        assert isinstance(tower, LlamaCppTower)
        llama_cpp.llama_synchronize(tower._context)
        counts = llama_cpp.llama_perf_context(tower._context)
        return counts.n_p_eval, counts.n_eval

    return on_engine(model, work)


def logits_along(model: edge_llama.Model, tokens: Sequence[int]) -> Any:
    """Logits at the cache's end, and after each of ``tokens`` that is appended, ``(1 + n, n_vocab)``."""

    def work(session: Session, _tower: TextTower) -> Any:
        rows = [session.logits()]
        for token in tokens:
            session.append(token)
            rows.append(session.logits())
        return np.stack(rows)

    return on_engine(model, work)


def open_vision(artifact: VisionArtifact, *, threads: int, device: str = "auto") -> VisionTower:
    """The vision tower on its engine, where ``device`` says."""
    engine = vision_engine_of(artifact)
    return engine.open(artifact, engine.place(artifact, AskedDevice(device)), threads=threads)
