"""Our engine, opened in a process of its own: the jobs that concurrency.py gives it (see jobs.py).

It uses the public interface alone, so that it serves an older commit's engine too: what is imported decides.
"""

import json
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jobs import Answer, serve

import edge_llama
from edge_llama import Message

MESSAGE = "Write down all numbers from {} on, in words, one after the other, and never stop. This is list {}."
WAIT = 120  # seconds


def main() -> None:
    options = json.loads(sys.argv[1])
    started = time.perf_counter()
    with edge_llama.open(**options) as model:
        ends = {token: -1e4 for token in range(model.tokenizer.n_vocab) if model.tokenizer.is_end(token)}
        jobs: dict[str, Callable[..., Answer]] = {
            "ask": partial(ask, model, ends),
            "continue": partial(continued, model),
            "cancel": partial(cancel, model, ends),
        }
        told = {"seconds": time.perf_counter() - started, "n_ctx": model.n_ctx, "context": str(model.context)}
        serve(jobs, {**told, "ends": list(ends)})


def ask(
    model: edge_llama.Model,
    ends: Mapping[int, float],
    system: str,
    question: str,
    count: int,
    *,
    may_end: bool = False,
    **options: Any,
) -> Answer:
    """A greedy answer as its pieces come, of ``count`` tokens, or fewer where it ``may_end``."""
    bias = {} if may_end else {"logit_bias": ends}
    chat = model.chat(system=system or None)
    started = time.perf_counter()
    pieces = chat.send(question, temperature=0, max_tokens=count, **bias, **options)
    first = 0.0
    for piece in pieces:
        if not first and piece.token_ids:
            first = time.perf_counter() - started
    seconds = time.perf_counter() - started
    answer = pieces.result()
    return {
        "first": first,
        "tokens": len(answer.tokens),
        "seconds": seconds,
        "cached": answer.timings.cached_tokens,
        "ids": answer.tokens,
        "text": answer.text,
        "margins": [entry.top[0].logprob - entry.top[1].logprob for entry in answer.logprobs],
    }


def continued(model: edge_llama.Model, messages: Sequence[Sequence[str]], question: str) -> Answer:
    """Seconds until the first token of the next answer in a conversation, and how much of it was known."""
    chat = model.chat()
    chat.messages = [Message(role, text) for role, text in messages]
    started = time.perf_counter()
    pieces = chat.send(question, temperature=0, max_tokens=8)
    next(pieces)
    first = time.perf_counter() - started
    timings = pieces.result().timings
    return {"first": first, "prompt": timings.prompt_tokens, "cached": timings.cached_tokens}


# What a cancel costs its caller and the others.


def cancel(
    model: edge_llama.Model, ends: Mapping[int, float], others: int, rounds: int, *, prompt: int, seed: int
) -> Answer:
    """Seconds from a cancel until its caller is released, and until each of ``others`` that write has its next token.

    A ``prompt`` of more than a few tokens is cancelled while it is read.
    """
    rng = np.random.default_rng(seed)
    writers = [Writer(model, ends, number) for number in range(others)]
    released: list[float] = []
    following: list[float] = []
    try:
        for number in range(rounds):
            for writer in writers:
                writer.await_token(time.perf_counter())
            text = long_text(rng, prompt) if prompt else MESSAGE.format(number, f"{seed}-{number}")
            one, each = cancelled(model, ends, text, float(rng.uniform(0.02, 0.25)), writers)
            released.append(one)
            following += each
    finally:
        for writer in writers:
            writer.stop()
    return {"released": released, "next": following}


def cancelled(
    model: edge_llama.Model, ends: Mapping[int, float], text: str, wait: float, writers: Sequence["Writer"]
) -> tuple[float, list[float]]:
    generation = model.generate(text, temperature=0, max_tokens=1000, logit_bias=ends)
    if len(text) < 200:
        next(generation)  # it writes
    ended: list[float] = []

    def take() -> None:
        for _ in generation:
            pass
        ended.append(time.perf_counter())

    taker = threading.Thread(target=take)
    taker.start()
    time.sleep(wait)
    at = time.perf_counter()
    generation.cancel()
    following = [came - at for writer in writers if (came := writer.await_token(at))]
    taker.join()
    return ended[0] - at, following


class Writer:
    """A caller whose answers follow each other without end, and when its tokens came."""

    def __init__(self, model: edge_llama.Model, ends: Mapping[int, float], number: int) -> None:
        self._model, self._ends, self._number = model, ends, number
        self._came = threading.Condition()
        self._times: list[float] = []
        self._answers = 0
        self._is_stopped = False
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        for piece in self._pieces():
            if piece.token_ids:
                with self._came:
                    self._times.append(time.perf_counter())
                    self._came.notify_all()

    def _pieces(self) -> Iterator[edge_llama.Piece]:
        while not self._is_stopped:
            prompt = MESSAGE.format(self._number, self._number)
            self._answers += 1
            with self._model.generate(prompt, temperature=0, max_tokens=1000, logit_bias=self._ends) as generation:
                for piece in generation:
                    yield piece
                    if self._is_stopped:
                        return

    def await_token(self, after: float) -> float:
        """When the first token after that moment came; 0 if it is another answer's than the last before."""
        answers = self._answers
        with self._came:
            if not self._came.wait_for(lambda: bool(self._times) and self._times[-1] > after, WAIT):
                raise TimeoutError(f"a caller has had no token for {WAIT} seconds")
            return self._times[bisect_right(self._times, after)] if self._answers == answers else 0.0

    def stop(self) -> None:
        self._is_stopped = True
        self._thread.join()


def long_text(rng: np.random.Generator, tokens: int) -> str:
    """Numbers, of which the tokenizer makes about three tokens each: no prefix of another text."""
    return " ".join(map(str, rng.integers(10, 100, tokens // 3)))


if __name__ == "__main__":
    main()
