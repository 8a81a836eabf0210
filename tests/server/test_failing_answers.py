"""Several answers of which one fails: that is told at once, whatever the others do and whatever error it is."""

import asyncio
from collections.abc import AsyncIterator, Generator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from edge_llama.generation import Answer, Piece
from edge_llama.server.asking import Answers


class Endless:
    """An answer that never ends."""

    def __await__(self) -> Generator[Any, None, Answer]:
        yield from asyncio.Event().wait().__await__()
        raise AssertionError

    async def __aiter__(self) -> AsyncIterator[Piece]:
        yield Piece("a", ())
        await asyncio.Event().wait()

    def cancel(self) -> None:
        pass


class Failing(Endless):
    """One that fails at once, by an error that is none of the runtime's."""

    def __await__(self) -> Generator[Any, None, Answer]:
        yield from asyncio.sleep(0).__await__()
        raise ValueError("broken")

    async def __aiter__(self) -> AsyncIterator[Piece]:
        if self:
            raise ValueError("broken")
        yield Piece("a", ())


def answers() -> Answers:
    generations: Any = [Endless(), Failing()]
    lease: Any = None
    return Answers(lease, generations, AsyncExitStack(), 2)


async def pieces() -> list[str]:
    async with answers() as given:
        return [piece.text async for _, piece in given]


async def whole() -> list[Answer]:
    async with answers() as given:
        return await given.whole()


@pytest.mark.parametrize("taken", [pieces, whole])
def test_the_others_are_not_waited_for(taken: Any) -> None:
    with pytest.raises(ValueError, match="broken"):
        asyncio.run(asyncio.wait_for(taken(), 10))
