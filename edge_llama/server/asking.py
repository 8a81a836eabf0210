"""One neutral request to a model, and its answers: what every API is translated to and from."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from edge_llama.generation import Answer, Generation, Piece, Timings
from edge_llama.model import Model
from edge_llama.prompts.messages import Message
from edge_llama.server.failures import ApiError
from edge_llama.server.metrics import Counts
from edge_llama.server.pool import Lease, Pool
from edge_llama.server.settings import Limits

SEEDS = 2**32 - 1
"""How many seeds there are; APIs whose seeds are larger numbers have each stand for one of these."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text that is given by its tokens, which are taken as they are."""

    ids: tuple[int, ...]


Text = str | Tokens


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked of a model: an answer to a conversation, or the continuation of a text."""

    prompt: tuple[Message, ...] | Text
    options: Mapping[str, Any] = field(default_factory=dict)
    """:class:`edge_llama.AnswerOptions`, for a text :class:`edge_llama.RequestOptions`."""
    choices: int = 1
    """How many answers, each with a seed of its own."""
    others: tuple[Text, ...] = ()
    """Texts that are continued besides, each as often; what continues them comes after, text by text."""

    @property
    def count(self) -> int:
        """How many answers, to all prompts."""
        return self.choices * (1 + len(self.others))

    def begin(self, model: Model, number: int, limits: Limits) -> Generation:
        """Have the answer of that number begun. It renders the prompt: call it in a thread."""
        options = {**self.options, "deadline": limits.seconds, "max_tokens": self._max_tokens(limits.max_tokens)}
        if options.get("seed") is not None:
            options["seed"] = (options["seed"] + number % self.choices) % SEEDS
        prompt = self.others[number // self.choices - 1] if number >= self.choices else self.prompt
        if isinstance(prompt, Tokens):
            return model.generate(prompt.ids, **options)
        if isinstance(prompt, str):
            return model.generate(prompt, **options)
        return model.answer(prompt, **options)

    def _max_tokens(self, most: int | None) -> int | None:
        """As asked, else as many as may be. ApiError for more."""
        asked: int | None = self.options.get("max_tokens")
        if asked is not None and most is not None and asked > most:
            raise ApiError(
                400, f"max_tokens is {asked:,}, an answer may have at most {most:,} here", param="max_tokens"
            )
        return most if asked is None else asked


class Answers:
    """The answers to an :class:`Ask`, as they come. Left as a context: what still runs is cancelled."""

    def __init__(self, lease: Lease, generations: Sequence[Generation], stack: AsyncExitStack, choices: int) -> None:
        """``choices`` is how many of them answer the same prompt, one after another."""
        self.lease = lease
        self._choices = choices
        self._generations = generations
        self._stack = stack

    @property
    def timings(self) -> Timings:
        """What the first answer took so far: its prompt's counts are there with the first piece."""
        return self._generations[0].timings

    def counts(self) -> Counts:
        """Tokens so far: those of each prompt once, and of all answers."""
        timings = [generation.timings for generation in self._generations]
        prompts = timings[:: self._choices]
        return Counts(
            self.lease.name,
            sum(each.prompt_tokens for each in prompts),
            sum(each.cached_tokens for each in prompts),
            sum(each.generated_tokens for each in timings),
        )

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """The pieces of all answers, each with its answer's number. Raises what generating raises."""
        if len(self._generations) == 1:
            async for piece in self._generations[0]:
                yield 0, piece
            return
        queue: asyncio.Queue[tuple[int, Piece] | Exception | None] = asyncio.Queue()
        tasks = [asyncio.create_task(_forward(*each, queue)) for each in enumerate(self._generations)]
        try:
            running = len(tasks)
            while running:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    running -= 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()

    async def whole(self) -> list[Answer]:
        """All answers, once they are whole. Raises what generating the first that fails raises, at once."""
        return await asyncio.gather(*self._generations)

    def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        return self.pieces()

    async def __aenter__(self) -> "Answers":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _cancel(self._generations)
        await self._stack.aclose()


async def _forward(
    number: int, generation: Generation, queue: "asyncio.Queue[tuple[int, Piece] | Exception | None]"
) -> None:
    try:
        async for piece in generation:
            queue.put_nowait((number, piece))
        queue.put_nowait(None)
    except Exception as error:
        queue.put_nowait(error)


def _cancel(generations: Sequence[Generation]) -> None:
    for generation in generations:
        generation.cancel()


async def begun(pool: Pool, name: str, ask: Callable[[Model], Ask], limits: Limits) -> Answers:
    """Have the model called ``name`` answer what ``ask`` says for it; both may take a while and run in threads.

    Raises ApiError for no such model, and what loading it and rendering the prompt raise.
    """
    stack = AsyncExitStack()
    try:
        lease = await stack.enter_async_context(pool.lease(name))
        asked = await pool.in_thread(ask, lease.model)
        if asked.count > limits.choices:
            raise ApiError(
                400,
                f"{asked.count:,} answers are asked for, at most {limits.choices:,} may be in one request",
                param="n",
            )
        generations: list[Generation] = []
        stack.callback(_cancel, generations)
        for number in range(asked.count):
            generations.append(await pool.in_thread(asked.begin, lease.model, number, limits))  # noqa: PERF401 - what is begun ends if another fails
    except BaseException:
        await stack.aclose()
        raise
    return Answers(lease, generations, stack, asked.choices)
