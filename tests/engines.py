"""Look into an open model from a test: its tower's logits, its session, in the thread that owns them."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import llama_cpp
import numpy as np
from edge_llama.runtime.session import Session

import edge_llama
from edge_llama.backends.base import TextTower, VisionTower
from edge_llama.backends.llama_cpp.text import LlamaCppTower
from edge_llama.backends.registry import vision_engine_of
from edge_llama.files.artifact import VisionArtifact

T = TypeVar("T")
CAPITAL = "What is the capital of Japan?"
"""A question that the built-in model answers right in every format, with a margin."""


def on_engine(model: edge_llama.Model, work: Callable[[Session, TextTower], T]) -> T:
    """What ``work(session, tower)`` gives, called in the engine's thread."""
    future: Future[T] = Future()

    def run(_job: object) -> None:
        try:
            future.set_result(work(model._engine.session, model._engine.tower))
        except BaseException as error:
            future.set_exception(error)

    model._engine.submit(run)
    return future.result(timeout=120)


def last_logits(path: Path, tokens: Sequence[int], n_ctx: int = 512) -> Any:
    """Logits after a prompt, at the settings where parity is tight: f32 cache, no flash attention."""

    def work(session: Session, tower: TextTower) -> Any:
        session.prefill(tokens)
        return tower.logits()

    with edge_llama.open(path, n_ctx=n_ctx, kv_format="f32") as model:
        return on_engine(model, work)


def greedy(path: Path, tokens: Sequence[int], count: int) -> list[int]:
    """The likeliest continuation by plain argmax, at the same settings; no end token stops it."""

    def work(session: Session, tower: TextTower) -> list[int]:
        session.prefill(tokens)
        chosen: list[int] = []
        for _ in range(count):
            chosen.append(int(tower.logits().argmax()))
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

    def work(session: Session, tower: TextTower) -> Any:
        rows = [tower.logits()]
        for token in tokens:
            session.append(token)
            rows.append(tower.logits())
        return np.stack(rows)

    return on_engine(model, work)


def open_vision(artifact: VisionArtifact, *, threads: int, device: str = "auto") -> VisionTower:
    """The vision tower on its engine, where ``device`` says."""
    engine = vision_engine_of(artifact)
    return engine.open(artifact, engine.place(artifact, device), threads=threads)
