"""How fast an open model reads and writes, by the tests that llama-bench made common: pp512, tg128, at a depth.

Reading is timed as llama-bench does it. Writing includes what an answer needs besides, choosing each token and its
text; llama-bench leaves both out.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edge_llama.backends.base import OneSequence
from edge_llama.errors import OptionError
from edge_llama.model import Model
from edge_llama.sampling.params import SamplingParams, check_whole


@dataclass(frozen=True, slots=True)
class Test:
    """``n_prompt`` tokens read, or ``n_gen`` written one by one, after ``n_depth`` others."""

    n_prompt: int
    n_gen: int
    n_depth: int

    def __str__(self) -> str:
        name = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        return f"{name} @ d{self.n_depth}" if self.n_depth else name

    @property
    def end(self) -> int:
        """Positions that the test needs."""
        return self.n_depth + self.n_prompt + self.n_gen


@dataclass(frozen=True, slots=True)
class Speed:
    """A test's result: tokens per second, one number for each repetition."""

    test: Test
    samples: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Tokens per second."""
        return statistics.fmean(self.samples)

    @property
    def deviation(self) -> float:
        """Standard deviation of the samples; 0 if there is one."""
        return statistics.stdev(self.samples) if len(self.samples) > 1 else 0.0


def tests(prompts: Sequence[int], answers: Sequence[int], depths: Sequence[int]) -> list[Test]:
    """Every length at every depth, those of one depth together. OptionError for a length below 1 or no test at all."""
    for name, counts, least in (("n_prompt", prompts, 1), ("n_gen", answers, 1), ("n_depth", depths, 0)):
        for count in counts:
            check_whole(name, count, least, 2**31 - 1)
    found = [
        test
        for depth in depths
        for test in (*(Test(count, 0, depth) for count in prompts), *(Test(0, count, depth) for count in answers))
    ]
    if not found:
        raise OptionError("there is nothing to measure", remedy="give a length to read or to write, and a depth")
    return found


def measure(
    model: Model, wanted: Sequence[Test], *, repetitions: int = 5, on_run: Callable[[Test, int], None] | None = None
) -> list[Speed]:
    """Run the tests on an open model; ``on_run(test, number)`` is told before each run, in the engine's thread.

    What the model's cache held is read anew by the next answer. Ctrl-C stops at once. Raises OptionError if a test
    needs more than the model's context, or EngineError.
    """
    check_whole("repetitions", repetitions, 1, 10_000)
    for test in wanted:
        if test.end > model.n_ctx:
            raise OptionError(f"{test} needs {test.end:,} tokens of context, the model has {model.n_ctx:,}")
    engine = model._engine

    def run() -> list[Speed]:
        engine.cache.clear()
        tower = OneSequence(engine.tower)
        try:
            runner = _Runner(tower, repetitions, on_run or (lambda *_: None))
            return [runner.run(test) for test in wanted]
        finally:
            tower.cut(0)

    return engine.call(run, is_alone=True)


class _Runner:
    """The tests, in the engine's thread."""

    def __init__(self, tower: OneSequence, repetitions: int, on_run: Callable[[Test, int], None]) -> None:
        self._tower = tower
        self._repetitions = repetitions
        self._on_run = on_run
        self._depth = 0
        self._n_vocab = len(tower.decode(self._begun([1])).values)  # warm: the first decode allocates
        tower.cut(0)
        self._random = np.random.default_rng(0)

    def run(self, test: Test) -> Speed:
        samples = []
        for number in range(1, self._repetitions + 1):
            self._on_run(test, number)
            self._go_to(test.n_depth)
            count = test.n_prompt or test.n_gen
            started = time.perf_counter()
            if test.n_prompt:
                self._read(test.n_prompt)
            else:
                self._write(test.n_gen)
            samples.append(count / (time.perf_counter() - started))
        return Speed(test, tuple(samples))

    def _go_to(self, depth: int) -> None:
        """Bring the cache to ``depth`` tokens; what is there from the last test stays."""
        if depth < self._depth or not depth:
            self._tower.cut(depth)
        else:
            self._tower.cut(self._depth)
            self._read(depth - self._depth)
        self._depth = depth

    def _read(self, count: int) -> None:
        for tokens in self._batches(count):
            self._tower.decode(self._begun(tokens))  # it waits until the work is done

    def _begun(self, tokens: list[int]) -> list[int]:
        """The same, but the first of a text is the one that begins texts: a tower may take no other there."""
        tower = self._tower.tower
        bos = tower.tokenizer.bos
        return tokens if bos is None or tower.length(self._tower.sequence) else [bos, *tokens[1:]]

    def _batches(self, count: int) -> Iterator[list[int]]:
        step = self._tower.tower.n_batch
        for start in range(0, count, step):
            yield self._random.integers(0, self._n_vocab, min(step, count - start)).tolist()

    def _write(self, count: int) -> None:
        tower = self._tower.tower
        sampler = tower.sampler(SamplingParams(temperature=0), [])
        try:
            (token,) = self._begun([int(self._random.integers(0, self._n_vocab))])
            for _ in range(count):
                token = sampler.sample(self._tower.decode([token]))
                tower.tokenizer.piece(token)
        finally:
            sampler.close()
