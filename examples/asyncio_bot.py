"""A hundred people talk to one model in one event loop: each has a conversation of their own, and nobody is lost.

    python examples/asyncio_bot.py [--model MODEL] [--users 100] [--questions 2] [--max-tokens 12]

``Bot`` is what a bot for a messenger, or a worker behind a queue, needs: ``reply(user, text)``. What bounds it:

- so many answers are begun at a time (``AT_ONCE``); others wait in a semaphore, where they cost nothing, so no request
  gets a BusyError, and the model's thread writes the answers of up to ``max_running`` together, a token each a step;
- each answer has a deadline, and at most ``max_tokens``;
- a conversation that outgrows the context loses its oldest exchanges (``when_full``);
- of conversations the ``max_users`` last used are kept; who comes back later begins anew.
"""

import argparse
import asyncio
import statistics
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import edge_llama

SYSTEM = "Answer briefly."
AT_ONCE = 16
DEADLINE = 300.0
"""Seconds for one answer, from when its turn has come."""
COUNTRIES = ("Japan", "Italy", "France", "Egypt", "Norway", "Peru", "Kenya", "Canada", "Spain", "India")


@dataclass(slots=True)
class Conversation:
    """A user's chat; the lock keeps the order of messages that come while one is answered."""

    chat: edge_llama.Chat
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class Bot:
    """Answers the messages of many users, each in a conversation of their own."""

    def __init__(self, model: edge_llama.Model, *, max_tokens: int = 200, max_users: int = 1000) -> None:
        self._model = model
        self._max_tokens = max_tokens
        self._max_users = max_users
        self._places = asyncio.Semaphore(AT_ONCE)
        self._conversations: OrderedDict[str, Conversation] = OrderedDict()

    async def reply(self, user: str, text: str) -> edge_llama.Answer:
        """The answer to what ``user`` says. DeadlineError if it takes too long, ContextFullError if it is too long."""
        async with self._turn(user) as chat, self._places:
            return await chat.send(text, max_tokens=self._max_tokens, temperature=0, deadline=DEADLINE)

    @asynccontextmanager
    async def _turn(self, user: str) -> AsyncIterator[edge_llama.Chat]:
        """The user's chat, when all that they said before is answered."""
        conversation = self._conversation(user)
        conversation.waiting += 1
        try:
            async with conversation.lock:
                yield conversation.chat
        finally:
            conversation.waiting -= 1
            self._drop_oldest()

    def _conversation(self, user: str) -> Conversation:
        if user not in self._conversations:
            chat = self._model.chat(system=SYSTEM, when_full="drop-oldest")
            self._conversations[user] = Conversation(chat)
        self._conversations.move_to_end(user)
        return self._conversations[user]

    def _drop_oldest(self) -> None:
        """Conversations beyond ``max_users``, but none in which someone waits."""
        for user in [user for user, each in self._conversations.items() if not each.waiting]:
            if len(self._conversations) <= self._max_users:
                return
            del self._conversations[user]


@dataclass(slots=True)
class Tally:
    """What a run came to."""

    answers: list[edge_llama.Answer] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """How long each waited, from message to answer."""
    failures: list[edge_llama.EdgeLlamaError] = field(default_factory=list)

    def told(self, users: int, seconds: float) -> str:
        """A few lines for people."""
        prompt = sum(answer.timings.prompt_tokens for answer in self.answers)
        cached = sum(answer.timings.cached_tokens for answer in self.answers)
        generated = sum(answer.timings.generated_tokens for answer in self.answers)
        waited = sorted(self.seconds)
        lines = [
            f"{users:,} users, {len(self.answers):,} answers, {len(self.failures):,} failures",
            f"{generated:,} tokens in {seconds:.1f} s ({generated / seconds:.0f} tokens/s)",
            f"{cached:,} of {prompt:,} prompt tokens were in the cache",
        ]
        if waited:
            middle, slowest = statistics.median(waited), waited[int(0.99 * (len(waited) - 1))]
            lines.append(f"an answer took {middle:.1f} s (median), {slowest:.1f} s (99th percentile)")
        return "\n".join(lines)


async def user(bot: Bot, number: int, questions: int, tally: Tally) -> None:
    """Someone who asks one thing after the other."""
    for at in range(questions):
        country = COUNTRIES[(number + at) % len(COUNTRIES)]
        begun = time.monotonic()
        try:
            answer = await bot.reply(f"user {number}", f"What is the capital of {country}?")
        except edge_llama.EdgeLlamaError as error:
            tally.failures.append(error)
        else:
            tally.answers.append(answer)
            tally.seconds.append(time.monotonic() - begun)


async def run(model: edge_llama.Model, users: int, questions: int, max_tokens: int) -> Tally:
    """All users at once; prints how far it is, and in the end what it came to."""
    bot, tally, begun = Bot(model, max_tokens=max_tokens), Tally(), time.monotonic()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(user(bot, number, questions, tally)) for number in range(users)]
        while not all(task.done() for task in tasks):
            await asyncio.wait(tasks, timeout=5)
            stats = model.stats()
            print(f"{len(tally.answers):,} answered; {stats.running} at work, {stats.queued} wait", flush=True)
    print(tally.told(users, time.monotonic() - begun))
    for error in tally.failures[:5]:
        print(f"failed: {error}")
    return tally


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="a file, a folder or a name (default: the built-in model)")
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--questions", type=int, default=2, help="that each of them asks")
    parser.add_argument("--max-tokens", type=int, default=12, help="of an answer")
    arguments = parser.parse_args()
    with edge_llama.open(arguments.model) as model:
        asyncio.run(run(model, arguments.users, arguments.questions, arguments.max_tokens))


if __name__ == "__main__":
    main()
