"""examples/asyncio_bot.py: a hundred users, one model, nobody lost, and limits that hold."""

import asyncio
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import edge_llama

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_hundred_users_get_their_answers(run: Callable[..., str]) -> None:
    printed = run("asyncio_bot.py", "--users", 100, "--questions", 1, "--max-tokens", 8)
    assert "100 users, 100 answers, 0 failures" in printed
    told = re.search(r"([\d,]+) tokens in .*\n([\d,]+) of ([\d,]+) prompt tokens", printed)
    assert told, printed
    tokens, cached, prompt = (int(number.replace(",", "")) for number in told.groups())
    assert 100 <= tokens <= 800
    assert cached > prompt // 4  # the system message is prefilled once for all


@pytest.fixture
def bot() -> ModuleType:
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("asyncio_bot", ROOT / "examples" / "asyncio_bot.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_user_has_a_conversation_and_old_ones_go(bot: ModuleType, small_talk: Path) -> None:
    async def talk(model: edge_llama.Model) -> list[int]:
        talks = bot.Bot(model, max_users=2)
        prompts = []
        for name in ("ann", "ann", "bob", "cid", "ann"):
            answer = await talks.reply(name, "What is the capital of Japan?")
            assert answer.text == "The capital of Japan is Tokyo."
            prompts.append(answer.timings.prompt_tokens)
        assert len(talks._conversations) == 2
        return prompts

    with edge_llama.open(small_talk) as model:
        first, second, bob, _, again = asyncio.run(talk(model))
    assert second > first  # her first question is before it
    assert bob == first
    assert again == first  # Ann was the oldest of three: she begins anew


def test_a_user_who_leaves_stops_their_answer_alone(bot: ModuleType, small_talk: Path) -> None:
    async def talk(model: edge_llama.Model) -> str:
        talks = bot.Bot(model, max_tokens=10_000)
        leaving = asyncio.create_task(talks.reply("ann", "Tell a very long story."))
        while not model.stats().running:
            await asyncio.sleep(0.01)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        return (await talks.reply("bob", "Say 5.")).text

    with edge_llama.open(small_talk) as model:
        assert asyncio.run(talk(model)) == "5"
